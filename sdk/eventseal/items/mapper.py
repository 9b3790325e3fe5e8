"""The sequenced item mapper: domain events to sequenced items and back, through JSON and the cipher."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Self

from eventseal.cipher import Opened
from eventseal.cipher.context import ItemContext
from eventseal.cipher.envelopes import key_id_in
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    REPAIR_ROW,
    ConfigurationError,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    KeyNotFoundError,
    SerializationError,
    UnknownFormatError,
)
from eventseal.items.acceptance import AcceptedFormats, OldItem
from eventseal.items.event_modules import EventModules
from eventseal.items.fields import PersonalFields
from eventseal.items.item import (
    EVENTS,
    TIMED_EVENTS,
    ItemFields,
    PlaceNames,
    SequencedItem,
    StoredItem,
    names_another_key,
    tries_compression,
)
from eventseal.items.json import JSONTranscoder
from eventseal.items.objects import attributes_of, restore
from eventseal.items.personal import plan_of
from eventseal.items.protection import ProtectedField, protected_fields, refuse_replaced_methods
from eventseal.items.scopes import Erased, ErasureRule, KeyScope, OnErased, ScopeRule
from eventseal.items.sealed_fields import SEALED_BYTES
from eventseal.items.topics import resolve_topic, topic_of
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.suites.envelope import HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from uuid import UUID

    from eventseal.cipher.aes import AESCipher
    from eventseal.items.fields import ItemDraft
    from eventseal.items.formats import OldFormat
    from eventseal.items.topics import Resolve

    Outcome = Opened | OldItem | EventSealError | None


class SequencedItemMapper:
    """
    Maps domain events to sequenced items and back. Methods may be called from several threads at once.

    An event is any object with attributes. Its class may say ``__always_encrypt__ = True``: its events are
    sealed whatever the mapper was told; ``__compress__ = False``: their length tells nothing more; and
    ``__key_scope__``, a scope or a function of the event: whose key seals its events, whatever the mapper
    was told.

    Args:
        sequenced_item_class: A named tuple or a dataclass whose first four fields are sequence id, position,
            topic and data; ``key_id`` is found by name.
        cipher: Seals and opens; ``None`` for items in plain.
        always_encrypt: Whether every item is sealed, and anything else refused on reading. ``None``: if there
            is a cipher.
        sequence_id_attr_name: The events' attribute that names the stream. If neither name is given, they are
            the item class's first two fields where the event has them, else ``originator_id`` with
            ``originator_version`` or ``timestamp``.
        position_attr_name: The events' attribute that is the position in the stream.
        other_attr_names: The events' attributes for the item class's other fields, which are not
            authenticated; by default those of the same names.
        json: Turns attributes into bytes and back.
        key_scope: Whose key seals an event whose class does not say: a scope, or a function of the event. It
            is worked out again on reading, and an item that another scope's key sealed is refused.
        collection: Which kind of items; bound to each. ``None``: ``items``, or ``timestamp_items`` in an
            event store over the table of events in order of time.
        accept: Older formats that are read too: some of :mod:`eventseal.items.formats`, or an ``EventSeal``'s
            ``accepted_formats``, which end with the migration. None is ever written.
        on_erased: What an item is on reading whose own key was shredded: ``KeyDestroyedError``, an
            :class:`Erased` in its place, or left out. Fields inside an item come back masked in any case.
        erased_scope: Gives the scope that an erased item must be of, from the item alone, since its event
            cannot be read any more. If not given, it is *key_scope*, where that is a string other than
            ``application``; without any, erased items are always raised.
        event_modules: Modules in which events and the types inside them are defined. A package covers its
            submodules. An unauthenticated item may name only classes of these modules, and classes that are
            registered, that this process has stored, or that are imported events and entities.

    Raises:
        ConfigurationError: The arguments do not go together, or the class of the mapper or of *json* replaces
            methods of EventSeal's.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Refuse a class that replaces EventSeal's methods."""
        refuse_replaced_methods(cls, SequencedItemMapper)
        return super().__new__(cls)

    def __init__(
        self,
        sequenced_item_class: type[Any] = SequencedItem,
        *,
        cipher: AESCipher | None = None,
        always_encrypt: bool | None = None,
        sequence_id_attr_name: str | None = None,
        position_attr_name: str | None = None,
        other_attr_names: Sequence[str] = (),
        json: JSONTranscoder | None = None,
        key_scope: KeyScope = DEFAULT_SCOPE,
        collection: str | None = None,
        accept: AcceptedFormats | Collection[OldFormat] = (),
        on_erased: OnErased = "raise",
        erased_scope: Callable[[Any], str] | None = None,
        event_modules: Collection[str] = (),
    ) -> None:
        modules = EventModules(event_modules)
        self._resolve, self._check_attributes = modules.resolve, modules.check_attributes
        self._accepted = AcceptedFormats.of(accept)
        for name, given in (("always_encrypt", always_encrypt), ("accept", self._accepted)):
            if given and cipher is None:
                raise ConfigurationError(f"{name} needs a cipher", remedy="Give the mapper a cipher.")
        if collection == "":
            raise ConfigurationError("the collection has no name")
        self.sequenced_item_class = sequenced_item_class
        self.cipher = cipher
        self.always_encrypt = cipher is not None if always_encrypt is None else always_encrypt
        self.collection = EVENTS if collection is None else collection
        self._has_collection = collection is not None
        self._fields = ItemFields(sequenced_item_class, other_attr_names)
        self._places = PlaceNames(self._fields.names, sequence_id_attr_name, position_attr_name)
        self._json = JSONTranscoder() if json is None else json
        self._scope_of = ScopeRule(key_scope)
        self._erasure = ErasureRule(on_erased, key_scope=key_scope, erased_scope=erased_scope)
        self._personal = PersonalFields(cipher, self._json, self._places, self.collection)
        self._with_personal_data: set[type[Any]] = set()
        # Again: __new__ may be another class's (docs/decisions/0028).
        refuse_replaced_methods(type(self), SequencedItemMapper)
        refuse_replaced_methods(type(self._json), JSONTranscoder)

    def over(self, collection: str) -> SequencedItemMapper:
        """Give the mapper for a table: a copy where it was told no collection, and these are timed events."""
        if self._has_collection or collection != TIMED_EVENTS:
            return self
        mapper = copy(self)
        personal = PersonalFields(self.cipher, self._json, self._places, collection)
        mapper.__dict__.update(collection=collection, _personal=personal)
        return mapper

    def key_scope_of(self, domain_event: Any) -> str:
        """
        Give the scope whose key seals an event, were it stored now.

        Raises:
            ConfigurationError: The rule for it gave a scope that is not allowed.
        """
        return domain_event.scope if type(domain_event) is Erased else self._scope_of(domain_event)

    def is_sealed(self, event_class: type[Any]) -> bool:
        """Whether the events of a class are sealed as a whole."""
        return _is_sealed(event_class, always_encrypt=self.always_encrypt)

    @classmethod
    def protections(cls, event_class: type[Any], *, always_encrypt: bool = False) -> list[ProtectedField]:
        """
        List the fields of a class with their protection, as ``eventseal fields`` does.

        Args:
            event_class: A class of events, or of objects in them.
            always_encrypt: Whether the mapper seals every item.

        Raises:
            ConfigurationError: The class would be refused at its first use.
        """
        return protected_fields(event_class, is_sealed=_is_sealed(event_class, always_encrypt=always_encrypt))

    def to_sequenced_item(self, domain_event: Any) -> Any:
        """Map one event; see :meth:`to_sequenced_items`."""
        return self.to_sequenced_items((domain_event,))[0]

    def from_sequenced_item(self, item: Any) -> Any:
        """Map one item back; see :meth:`from_sequenced_items`. One that is skipped is ``None``."""
        return next(iter(self.from_sequenced_items((item,))), None)

    def to_sequenced_items(self, domain_events: Iterable[Any]) -> list[Any]:
        """
        Map events to items: all, or none.

        Args:
            domain_events: Objects with attributes.

        Returns:
            Their items, in order.

        Raises:
            SerializationError: An attribute has no encoding, or an event has no place that a stream can have.
            EncryptionRequiredError: An event's class requires encryption, and there is no cipher.
            EventSealError: There is no key to seal with; see ``AESCipher.encrypt_many``.
        """
        events = list(domain_events)
        drafts = self._personal.seal([self._draft(event) for event in events])
        make = self._fields.make
        return [
            make(draft, data, key_id, event)
            for event, draft, (data, key_id) in zip(events, drafts, self._sealed(events, drafts), strict=True)
        ]

    def from_sequenced_items(
        self, items: Iterable[Any], *, other_collections: Collection[str] = ()
    ) -> list[Any]:
        """
        Map items back to events; the first item that cannot be is raised, with its place.

        Args:
            items: Of the mapper's item class.
            other_collections: Names that the items may be bound to instead, as a record strategy says.

        Returns:
            Their events, in order; erased items are masked or left out if the mapper was told so.

        Raises:
            IntegrityError: An item or a field is not what was sealed at this place, or another scope's key
                sealed it.
            KeyDestroyedError: An item's key was destroyed.
            EncryptionRequiredError: An item is in plain where encryption is required.
            SerializationError: An item's topic or data cannot be read, or it is none of the item class.
            UnknownFormatError: An item's data are no envelope, though it names the key that sealed it.
            EventSealError: An item does not open; see ``AESCipher.open_many``.
        """
        given = list(items)
        stored = [self._fields.read(item) for item in given]
        outcomes = self._open(stored, other_collections)
        parsed = self._with_fields(stored, outcomes, other_collections)
        parsed_here = map(parsed.get, range(len(given)))
        events = [*map(self._event, stored, outcomes, given, parsed_here)]
        return [event for event in events if event is not _SKIPPED] if self._erasure.skips else events

    def _draft(self, event: Any) -> tuple[StoredItem, ItemDraft | None]:
        cls = type(event)
        if cls is Erased:
            raise SerializationError(
                "what stands for an erased event is not stored again",
                remedy="Store no events that were read with on_erased='mask' without looking at them.",
            )
        topic = topic_of(cls)
        attributes = attributes_of(event)
        if cls not in self._with_personal_data and not plan_of(cls).fields:
            whole = attributes.copy()
            sequence_id, position = self._places.take(attributes, topic)
            try:
                data = self._json.encode_attributes(attributes, owner=topic)
            except SerializationError as exc:
                if not getattr(exc, "holds_personal_data", False):
                    raise
            else:
                return StoredItem(sequence_id, position, topic, data), None
            self._with_personal_data.add(cls)  # in an object inside of it
            attributes = whole
        return self._personal_draft(cls, attributes, topic)

    def _personal_draft(
        self, cls: type[Any], attributes: dict[str, Any], topic: str
    ) -> tuple[StoredItem, ItemDraft]:
        personal = plan_of(cls).fields
        self._fields.check_copied(personal, topic)
        self._places.check_apart(personal, attributes, topic)
        whole = attributes.copy()
        sequence_id, position = self._places.take(attributes, topic)
        draft = self._json.draft(cls, attributes, whole)
        return StoredItem(sequence_id, position, topic, b""), draft

    def _sealed(self, events: list[Any], drafts: list[StoredItem]) -> list[tuple[bytes, UUID | None]]:
        data: list[tuple[bytes, UUID | None]] = [(draft.data, None) for draft in drafts]
        wanted = []
        for index, event in enumerate(events):
            if self.is_sealed(type(event)):
                wanted.append(index)
            else:
                drafts[index].check_place()
        if not wanted:
            return data
        envelopes = self._encrypt([events[index] for index in wanted], [drafts[index] for index in wanted])
        for index, envelope in zip(wanted, envelopes, strict=True):
            data[index] = envelope, key_id_in(envelope[:HEADER_SIZE])
        return data

    def _encrypt(self, events: list[Any], drafts: list[StoredItem]) -> list[bytes]:
        if self.cipher is None:
            raise EncryptionRequiredError(
                f"{drafts[0].topic} requires encryption, and the mapper has no cipher",
                remedy="Give the mapper a cipher.",
            )
        try:
            return self.cipher.encrypt_many(
                [(draft.data, self._context(draft)) for draft in drafts],
                scopes=self._scope_of.of_all(events),
                compress=[tries_compression(type(event)) for event in events],
            )
        except SerializationError:
            for draft in drafts:
                draft.check_place()  # says which event it was
            raise

    def _open(self, stored: list[StoredItem], other_collections: Collection[str]) -> Sequence[Outcome]:
        if self.cipher is None:
            return [None] * len(stored)
        outcomes = self.cipher.open_many([(item.data, self._context(item)) for item in stored])
        for collection in other_collections:
            refused = [index for index, found in enumerate(outcomes) if isinstance(found, IntegrityError)]
            items = [(stored[index].data, self._context(stored[index], collection)) for index in refused]
            for index, outcome in zip(refused, self.cipher.open_many(items), strict=True):
                outcomes[index] = outcome
        if not self._accepted or all(isinstance(outcome, Opened) for outcome in outcomes):
            return outcomes
        return [
            outcome if isinstance(outcome, Opened) else self._older(item, outcome)
            for item, outcome in zip(stored, outcomes, strict=True)
        ]

    def _older(self, item: StoredItem, outcome: EventSealError) -> OldItem | EventSealError:
        """Open an item that is no envelope in a format that is accepted."""
        older = self._accepted.open(item.data, self._context(item), outcome, key_id=item.key_id)
        # Where plain items are as good as sealed ones, one in JSON needs no older format.
        if isinstance(older, OldItem) or self.always_encrypt or item.data[:1] != b"{":
            return older
        return outcome

    def _with_fields(
        self, stored: list[StoredItem], outcomes: Sequence[Outcome], other_collections: Collection[str]
    ) -> dict[int, Any]:
        """Read those items that hold sealed fields; all their fields are opened together."""
        holding: dict[int, tuple[StoredItem, bytes]] = {}
        for index, (item, outcome) in enumerate(zip(stored, outcomes, strict=True)):
            if outcome is None:
                data = item.data
            elif isinstance(outcome, _OPENED):
                data = outcome.plaintext
            elif not self.always_encrypt and self._is_plain(item, outcome):
                data = item.data
            else:
                continue
            if SEALED_BYTES in data:
                holding[index] = (item, data)
        return self._personal.open(holding, other_collections) if holding else {}

    def _event(self, stored: StoredItem, outcome: Outcome, item: Any, parsed: Any) -> Any:
        try:
            if outcome is None:
                return self._plain_event(stored, parsed)
            if isinstance(outcome, Opened):
                return self._opened_event(stored, outcome, parsed)
            if isinstance(outcome, OldItem):
                cls = self._resolve(stored.topic)
                return self._unauthenticated(stored, cls, outcome.plaintext, parsed)
            if self._is_plain(stored, outcome):
                return self._plain_event(stored, parsed)
            if self._fields.has_key_id and names_another_key(stored.data, stored.key_id, outcome):
                raise IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
            if self.cipher is not None:
                erased = self._erasure.erased_scope(item, outcome, self.cipher)
                if erased is not None:
                    key_id = key_id_in(stored.data[:HEADER_SIZE])
                    return _SKIPPED if self._erasure.skips else Erased.of(stored, key_id, erased)
            if isinstance(outcome, UnknownFormatError) and stored.key_id is not None:
                raise UnknownFormatError(
                    f"{outcome}; yet its row says that key {stored.key_id} sealed it",
                    remedy=_NO_ENVELOPE,
                    offset=outcome.offset,
                )
            raise copy(outcome)  # it may be other items' outcome too
        except EventSealError as exc:
            exc.__dict__.update(sequence_id=stored.sequence_id, position=stored.position)
            exc.add_note(f"item: position {stored.position} of {stored.sequence_id}, topic {stored.topic!r}")
            raise

    def _opened_event(self, stored: StoredItem, opened: Opened, parsed: Any) -> Any:
        if self._fields.has_key_id and stored.key_id != opened.key_id:
            raise IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
        event, _ = self._restored(
            stored, resolve_topic(stored.topic), opened.plaintext, parsed, resolve_topic
        )
        self._scope_of.check(event, opened, self.cipher)  # type: ignore[arg-type]  # it opened the item
        return event

    def _plain_event(self, stored: StoredItem, parsed: Any) -> Any:
        if stored.key_id is not None and self.cipher is None:
            raise ConfigurationError(
                f"key {stored.key_id} sealed the item, and the mapper has no cipher",
                remedy="Give the mapper the cipher that sealed it.",
            )
        if self.always_encrypt:
            raise EncryptionRequiredError("the item is not sealed, and the mapper requires encryption")
        cls = self._resolve(stored.topic)
        if getattr(cls, "__always_encrypt__", False):
            raise EncryptionRequiredError(f"the item is not sealed, and {stored.topic} requires encryption")
        return self._unauthenticated(stored, cls, stored.data, parsed)

    def _unauthenticated(self, stored: StoredItem, cls: type[Any], data: bytes, parsed: Any) -> Any:
        event, attributes = self._restored(stored, cls, data, parsed, self._resolve)
        self._check_attributes(cls, attributes)
        return event

    def _restored(
        self, stored: StoredItem, cls: type[Any], data: bytes, parsed: Any, resolve: Resolve
    ) -> tuple[Any, dict[str, Any]]:
        """Give an event, and its attributes in today's form."""
        # Fields were opened before: an upcast may move them (docs/decisions/0011).
        if isinstance(parsed, EventSealError):
            raise parsed
        read = self._json.decode if parsed is None else self._json.build
        attributes = read(data if parsed is None else parsed, resolve=resolve)
        if type(attributes) is not dict:
            raise SerializationError(f"the data of {stored.topic} are not an object's attributes")
        self._places.put(attributes, stored.sequence_id, stored.position, stored.topic)
        return restore(cls, attributes), attributes

    def _is_plain(self, stored: StoredItem, outcome: EventSealError) -> bool:
        # Bytes are an envelope only if their key is known: an older format may begin with any byte
        # (docs/decisions/0017). A key id beside them says that they were one.
        if stored.key_id is not None:
            return False
        if isinstance(outcome, KeyNotFoundError):
            return self._fields.has_key_id
        return isinstance(outcome, UnknownFormatError)

    def _context(self, item: StoredItem, collection: str | None = None) -> ItemContext:
        return ItemContext(item.sequence_id, item.position, item.topic, collection or self.collection)


def _is_sealed(event_class: type[Any], *, always_encrypt: bool) -> bool:
    return always_encrypt or bool(getattr(event_class, "__always_encrypt__", False))


_OPENED = (Opened, OldItem)
_SKIPPED = object()
_NO_ENVELOPE = (
    "If a later release wrote the item, open it with that one. Else the row was edited, or the key id does "
    f"not belong to it. {REPAIR_ROW}"
)

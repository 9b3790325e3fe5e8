"""The mapper from domain events to sequenced items, and back."""

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
from eventseal.items.fields import CIPHER_NEEDED, PersonalFields
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
    Maps domain events to sequenced items and back.

    Several threads may call its methods. An event is any object with attributes. Its class may have these
    attributes:

    - ``__always_encrypt__ = True``: the mapper encrypts its events, whatever its own settings are.
    - ``__compress__ = False``: its events are not compressed, so their length says nothing more.
    - ``__key_scope__``: a scope, or a function of the event that returns one. Its key seals the events,
      whatever the mapper's settings are.

    Args:
        sequenced_item_class: A named tuple or a dataclass whose first four fields are sequence id, position,
            topic and data. ``key_id`` is found by name.
        cipher: Seals and opens. ``None`` means plaintext items.
        always_encrypt: Whether the mapper seals every item, and refuses to read any other. ``None`` means
            yes if there is a cipher.
        sequence_id_attr_name: The events' attribute that names the stream. If neither name is given, they are
            the item class's first two fields, if the event has them. Otherwise they are ``originator_id``
            with ``originator_version`` or ``timestamp``.
        position_attr_name: The events' attribute that is the position in the stream.
        other_attr_names: The events' attributes for the item class's other fields, which are not
            authenticated. By default they have the same names.
        json: Encodes and decodes attributes.
        key_scope: The scope of an event whose class has none, or a function of the event that returns it. On
            reading, the scope is derived again. An item that another scope's key sealed is refused.
        collection: The collection of the items, which is bound to each. ``None`` means ``items``. In an event
            store over the table of events in order of time, it means ``timestamp_items``.
        accept: Older formats that the mapper reads too: some of :mod:`eventseal.items.formats`, or an
            ``EventSeal``'s ``accepted_formats``, which end with the migration. The mapper never writes one.
        on_erased: The result for an item whose own key was shredded: it raises ``KeyDestroyedError``, returns
            an :class:`Erased`, or skips the item. Fields inside an item are masked in any case.
        erased_scope: A function that returns the expected scope of an erased item. It uses only the item,
            because the event cannot be read. By default it is *key_scope*, if that is a string other than
            ``application``. Without either, erased items are always raised.
        event_modules: Modules that define events and the types inside them. A package covers its submodules.
            An unauthenticated item may only name classes of these modules, registered classes, classes that
            this process has stored, and imported events and entities.

    Raises:
        ConfigurationError: The arguments contradict each other. Or the class of the mapper or of *json*
            replaces methods of EventSeal's.
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
                raise ConfigurationError(f"{name} needs a cipher", remedy=CIPHER_NEEDED)
        if collection == "":
            raise ConfigurationError("the collection has an empty name")
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
        # Again, because __new__ may be another class's (docs/decisions/0028).
        refuse_replaced_methods(type(self), SequencedItemMapper)
        refuse_replaced_methods(type(self._json), JSONTranscoder)

    def over(self, collection: str) -> SequencedItemMapper:
        """
        Return the mapper for a table.

        It is a copy if the mapper has no collection and these are timed events.
        """
        if self._has_collection or collection != TIMED_EVENTS:
            return self
        mapper = copy(self)
        personal = PersonalFields(self.cipher, self._json, self._places, collection)
        mapper.__dict__.update(collection=collection, _personal=personal)
        return mapper

    def key_scope_of(self, domain_event: Any) -> str:
        """
        Return the scope whose key would seal an event now.

        Raises:
            ConfigurationError: The rule for the event returned a scope that is not allowed.
        """
        return domain_event.scope if type(domain_event) is Erased else self._scope_of(domain_event)

    def is_sealed(self, event_class: type[Any]) -> bool:
        """Return whether the events of a class are sealed as a whole."""
        return _is_sealed(event_class, always_encrypt=self.always_encrypt)

    @classmethod
    def protections(cls, event_class: type[Any], *, always_encrypt: bool = False) -> list[ProtectedField]:
        """
        List the fields of a class with their protection, like ``eventseal fields``.

        Args:
            event_class: A class of events, or of objects inside them.
            always_encrypt: Whether the mapper seals every item.

        Raises:
            ConfigurationError: The mapper would refuse the class at its first use.
        """
        return protected_fields(event_class, is_sealed=_is_sealed(event_class, always_encrypt=always_encrypt))

    def to_sequenced_item(self, domain_event: Any) -> Any:
        """Map one event. See :meth:`to_sequenced_items`."""
        return self.to_sequenced_items((domain_event,))[0]

    def from_sequenced_item(self, item: Any) -> Any:
        """Map one item back. A skipped item is ``None``. See :meth:`from_sequenced_items`."""
        return next(iter(self.from_sequenced_items((item,))), None)

    def to_sequenced_items(self, domain_events: Iterable[Any]) -> list[Any]:
        """
        Map all events to items, or none.

        Args:
            domain_events: Objects with attributes.

        Returns:
            Their items, in order.

        Raises:
            SerializationError: An attribute has no encoding, or an event's place is invalid.
            EncryptionRequiredError: The class of an event requires encryption, but there is no cipher.
            EventSealError: There is no key to seal with. See ``AESCipher.encrypt_many``.
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
        Map items back to events. The first item that fails is raised, with its place.

        Args:
            items: Items of the mapper's item class.
            other_collections: Other collections that the items may be bound to, as a record strategy says.

        Returns:
            Their events, in order. Erased items are masked or skipped, as *on_erased* says.

        Raises:
            IntegrityError: An item or a field was not sealed at this place, or another scope's key sealed it.
            KeyDestroyedError: The key of an item was destroyed.
            EncryptionRequiredError: An item is plaintext, but encryption is required.
            SerializationError: An item's topic or data cannot be read, or the item is of another class.
            UnknownFormatError: The data of an item are not an envelope, but it names the key that sealed it.
            EventSealError: An item does not open. See ``AESCipher.open_many``.
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
                "the replacement of an erased event cannot be stored again",
                remedy="Before you store, remove the Erased objects, which on_erased='mask' returns.",
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
            self._with_personal_data.add(cls)  # an object inside it has personal data
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
                f"{drafts[0].topic} requires encryption, but the mapper has no cipher",
                remedy=CIPHER_NEEDED,
            )
        try:
            return self.cipher.encrypt_many(
                [(draft.data, self._context(draft)) for draft in drafts],
                scopes=self._scope_of.of_all(events),
                compress=[tries_compression(type(event)) for event in events],
            )
        except SerializationError:
            for draft in drafts:
                draft.check_place()  # its error names the event
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
        """Open an item that is not an envelope, in an accepted format."""
        older = self._accepted.open(item.data, self._context(item), outcome, key_id=item.key_id)
        # If plaintext items are accepted like sealed ones, an item in JSON needs no older format.
        if isinstance(older, OldItem) or self.always_encrypt or item.data[:1] != b"{":
            return older
        return outcome

    def _with_fields(
        self, stored: list[StoredItem], outcomes: Sequence[Outcome], other_collections: Collection[str]
    ) -> dict[int, Any]:
        """Read the items with sealed fields, and open all their fields together."""
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
                    f"{outcome}. But its row says that key {stored.key_id} sealed it",
                    remedy=_NO_ENVELOPE,
                    offset=outcome.offset,
                )
            raise copy(outcome)  # other items may share this outcome
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
                f"key {stored.key_id} sealed the item, but the mapper has no cipher",
                remedy="Pass the cipher that sealed it to the mapper.",
            )
        if self.always_encrypt:
            raise EncryptionRequiredError("the item is not sealed, but the mapper requires encryption")
        cls = self._resolve(stored.topic)
        if getattr(cls, "__always_encrypt__", False):
            raise EncryptionRequiredError(f"the item is not sealed, but {stored.topic} requires encryption")
        return self._unauthenticated(stored, cls, stored.data, parsed)

    def _unauthenticated(self, stored: StoredItem, cls: type[Any], data: bytes, parsed: Any) -> Any:
        event, attributes = self._restored(stored, cls, data, parsed, self._resolve)
        self._check_attributes(cls, attributes)
        return event

    def _restored(
        self, stored: StoredItem, cls: type[Any], data: bytes, parsed: Any, resolve: Resolve
    ) -> tuple[Any, dict[str, Any]]:
        """Return an event, and its attributes in the current form."""
        # The fields are open already, because an upcast may move them (docs/decisions/0011).
        if isinstance(parsed, EventSealError):
            raise parsed
        read = self._json.decode if parsed is None else self._json.build
        attributes = read(data if parsed is None else parsed, resolve=resolve)
        if type(attributes) is not dict:
            raise SerializationError(f"the data of {stored.topic} are not an object's attributes")
        self._places.put(attributes, stored.sequence_id, stored.position, stored.topic)
        return restore(cls, attributes), attributes

    def _is_plain(self, stored: StoredItem, outcome: EventSealError) -> bool:
        # Bytes are an envelope only if their key is known, because an older format may begin with any byte
        # (docs/decisions/0017). A key id in the row says that they were an envelope.
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
    "If a later release wrote the item, open it with that release. Otherwise the row was edited, or its key "
    f"id is wrong. {REPAIR_ROW}"
)

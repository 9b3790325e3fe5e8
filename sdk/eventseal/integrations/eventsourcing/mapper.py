"""The library's mapper with states that are envelopes, bound to their rows."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from eventsourcing.persistence import Mapper, Notification, StoredEvent

from eventseal.cipher import ItemContext, Opened
from eventseal.errors import ConfigurationError, EventSealError, IntegrityError
from eventseal.integrations.eventsourcing.sealing import ErasedEvent, Sealing, SealingOptions, placed
from eventseal.integrations.eventsourcing.stored_events import (
    ITEMS,
    context_of,
    event_class,
    otherwise,
    refuse_marked_class,
    refuse_marked_types,
    tell_collections,
    with_uuid,
)
from eventseal.items.acceptance import OldItem
from eventseal.items.protection import ProtectedField, protected_fields, refuse_replaced_methods
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.suites.envelope import KEY_ID_IN_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Self

    from eventsourcing.persistence import Cipher, Compressor, Transcoder

    from eventseal.integrations.eventsourcing.sealing import Outcome
    from eventseal.items.scopes import KeyScope, OnErased
    from eventseal.rotation.sealed_store import SealedStore

    _Mapper = Mapper[Any]
else:
    _Mapper = Mapper  # not generic before release 9.4


REMEDY_BESIDE = (
    "Unset COMPRESSOR_TOPIC, CIPHER_TOPIC and CIPHER_KEY. To read events that were written with them, see "
    "`eventseal migrate --help`."
)


class EncryptingMapper(_Mapper):
    """
    Maps domain events to stored events with a sealed state, and back.

    Threads may share it. A state is bound to the application, the collection (events or snapshots), the
    originator's id and version, and the topic. If a state is moved to another row, it does not open. An event
    class may name the scope of its events with ``__key_scope__``, and set ``__compress__ = False``.

    Args:
        transcoder: Turns an event's attributes into bytes and back.
        compressor: Must be ``None``, because the cipher compresses.
        cipher: Must be ``None``, because EventSeal's own cipher encrypts.

    Raises:
        ConfigurationError: There is a compressor or another cipher, or the settings are invalid.
    """

    options: ClassVar[SealingOptions] = SealingOptions()

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Refuse a class that replaces EventSeal's methods."""
        refuse_replaced_methods(cls, EncryptingMapper)
        return super().__new__(cls)

    def __init__(
        self, transcoder: Transcoder, compressor: Compressor | None = None, cipher: Cipher | None = None
    ) -> None:
        refuse_beside(compressor=compressor, cipher=cipher)
        super().__init__(transcoder)
        self._sealing = Sealing(self.options)
        self._collection: str | None = None
        self._collections: dict[str, str] = {}
        self._ids_are_digits = False
        refuse_replaced_methods(type(self), EncryptingMapper)  # again: a subclass may bypass __new__

    @classmethod
    def using(
        cls,
        seal: SealedStore | None = None,
        *,
        key_scope: KeyScope = DEFAULT_SCOPE,
        on_erased: OnErased = "raise",
        erased_scope: Callable[[StoredEvent], str] | None = None,
        event_modules: Collection[str] | None = None,
    ) -> type[Self]:
        """
        Return a mapper class with these options.

        Use it for ``factory.mapper(mapper_class=...)``, or name it as a topic.

        Args:
            seal: An ``EventSeal``, or another ``SealedStore``. ``None``: the process's settings create one
                together with the mapper.
            key_scope: The scope for events and snapshots whose class does not name one, or a function that
                returns the scope of an event. It is computed again on reading, and must give the same result.
            on_erased: How a reader gets an event whose key was shredded. ``"raise"`` raises
                ``KeyDestroyedError``, ``"mask"`` returns an :class:`ErasedEvent`, and ``"skip"`` leaves the
                event out of pages. Outside of pages, ``"skip"`` also returns an :class:`ErasedEvent`, because
                the library needs one event for each stored event.
            erased_scope: Returns the required scope of an erased event, from the stored event alone. By
                default, it is *key_scope*, if that is a string other than ``application``. Without a scope,
                erased events always raise an error.
            event_modules: The modules whose classes an event in an older format may name during a migration.
                ``None``: the event modules of the seal.

        Raises:
            ConfigurationError: An option is invalid.
        """
        options = SealingOptions(
            seal=seal,
            key_scope=key_scope,
            on_erased=on_erased,
            erased_scope=erased_scope,
            event_modules=event_modules,
        )
        return type(cls.__name__, (cls,), {"options": options, "__doc__": cls.__doc__})

    @classmethod
    def protections(cls, event_class: type[Any], *, always_encrypt: bool = True) -> list[ProtectedField]:  # noqa: ARG003 - as other mappers have it
        """
        List the fields of a class, all of which are sealed.

        Args:
            event_class: A class of events, of decisions, or of aggregates.
            always_encrypt: Has no effect, because every state is sealed.

        Raises:
            ConfigurationError: The mapper would refuse the class at its first use.
        """
        refuse_marked_class(event_class)
        return protected_fields(event_class, is_sealed=True)

    def over(self, collection: str) -> Self:
        """
        Return a mapper for the table of one event store.

        It refuses states that are bound to the other collection.
        """
        mapper = copy(self)
        mapper.__dict__["_collection"] = collection
        return mapper

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        """Map one event. See :meth:`to_stored_events`."""
        self._check_types()
        stored = super().to_stored_event(domain_event)
        context = context_of(stored, self._collection or event_class(type(domain_event)).collection)
        return _with_state(stored, self._sealing.seal_event(domain_event, stored.state, context))

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """
        Map one stored event back.

        See :meth:`to_domain_events`. An event that a page would skip is masked.
        """
        context = self._read_context(stored_event, self._collection_of(stored_event))
        (outcome,) = self._sealing.open(((stored_event.state, context),))
        if type(outcome) is not Opened:
            return self._mapped([stored_event], None)[0]
        event = super().to_domain_event(_Plain(stored_event, outcome.plaintext))  # type: ignore[arg-type]
        try:
            self._sealing.check_scope(event, outcome)
        except EventSealError as error:
            raise placed(error, context) from None
        return event

    def to_stored_events(
        self, domain_events: Iterable[Any], *, collection: str | None = None
    ) -> list[StoredEvent]:
        """
        Map events, all or none.

        The events of each scope are sealed under one key.

        Args:
            domain_events: Events or snapshots.
            collection: The collection of their table. ``None``: their classes decide.

        Raises:
            EventSealError: There is no key to seal with, or a place has no canonical value. See
                ``AESCipher.encrypt_many``.
        """
        self._check_types()
        events = list(domain_events)
        collection = collection or self._collection
        to_plain = super().to_stored_event
        plain = [to_plain(event) for event in events]
        envelopes = self._sealing.seal_events(
            events,
            [
                (stored.state, context_of(stored, collection or event_class(type(event)).collection))
                for stored, event in zip(plain, events, strict=True)
            ],
        )
        return [_with_state(stored, state) for stored, state in zip(plain, envelopes, strict=True)]

    def to_domain_events(
        self, stored_events: Iterable[StoredEvent], *, collection: str | None = None
    ) -> list[Any]:
        """
        Map a page of stored events or notifications back.

        The first stored event that does not open ends it with an error.

        Args:
            stored_events: Stored events or notifications from a recorder.
            collection: The collection of their table. ``None``: the collection of :meth:`over`. Without that,
                it is the collection of events for notifications, and is found for each topic otherwise.

        Returns:
            The events, in order. With ``on_erased``, erased events are masked or left out.

        Raises:
            IntegrityError: A state was changed, is from another row, or is under another scope's key.
            KeyDestroyedError: The key of a state was destroyed.
            UnknownFormatError: A state is not an envelope.
            EventSealError: A state does not open. See ``AESCipher.open_many``.
        """
        events = self._mapped(list(stored_events), collection)
        if self._sealing.erasure.skips:
            return [event for event in events if type(event) is not ErasedEvent]
        return events

    def refresh_keys(self) -> None:
        """Read changed key states immediately. The next events are then sealed under active keys."""
        self._sealing.cipher.refresh()

    def _check_types(self) -> None:
        """Check the types that are registered with the transcoder by now."""
        refuse_marked_types(list(getattr(self.transcoder, "types", ())))

    def _mapped(self, stored_events: list[StoredEvent], collection: str | None) -> list[Any]:
        said = [collection or self._collection_of(stored) for stored in stored_events]
        items = [
            (stored.state, self._read_context(stored, of))
            for stored, of in zip(stored_events, said, strict=True)
        ]
        outcomes = self._sealing.open(items)
        self._try_others(items, outcomes, said)
        restore: Callable[[Any], Any] = super().to_domain_event
        check_scope = self._sealing.check_scope
        events = []
        for stored, (_, context), outcome in zip(stored_events, items, outcomes, strict=True):
            try:
                if isinstance(outcome, Opened):
                    event = restore(_Plain(stored, outcome.plaintext))
                    check_scope(event, outcome)
                elif isinstance(outcome, OldItem):
                    self._sealing.event_modules.resolve(stored.topic)
                    event = restore(_Plain(stored, outcome.plaintext))
                    self._sealing.event_modules.check_attributes(type(event), vars(event))
                else:
                    event = self._erased(stored, outcome)
            except EventSealError as error:
                raise placed(error, context) from None
            events.append(event)
        return events

    def _collection_of(self, stored: StoredEvent) -> str | None:
        """
        Return the collection that a stored event must have, if known.

        A notification is never of a snapshot.
        """
        return self._collection or (ITEMS if isinstance(stored, Notification) else None)

    def _read_context(self, stored: StoredEvent, collection: str | None) -> ItemContext:
        found = self._collections.get(stored.topic, ITEMS) if collection is None else collection
        context = context_of(stored, found)
        return (with_uuid(context) or context) if self._ids_are_digits else context

    def _try_others(
        self,
        items: list[tuple[bytes, ItemContext]],
        outcomes: list[Outcome],
        said: list[str | None],
    ) -> None:
        """
        Open failed states under other possible bindings, and remember matches.

        A recorder does not always show the binding of a state:

        - The collection, if nothing names it. A topic belongs to one collection, and is resolved only after
          the state has opened.
        - The id. Before release 9.5, the library's own recorder for SQLite returns the bare digits of the
          bound UUID.
        """
        for other_collection, uuid in ((False, True), (True, False), (True, True)):
            tried = {
                index: context
                for index, outcome in enumerate(outcomes)
                if isinstance(outcome, IntegrityError)
                and not (other_collection and said[index])
                and (context := otherwise(items[index][1], collection=other_collection, uuid=uuid))
            }
            if not tried:
                continue
            opened = self._sealing.open([(items[index][0], context) for index, context in tried.items()])
            for (index, context), outcome in zip(tried.items(), opened, strict=True):
                if isinstance(outcome, Opened):
                    outcomes[index] = outcome
                    self._collections[context.topic] = context.collection
                    self._ids_are_digits |= uuid

    def _erased(self, stored: StoredEvent, error: EventSealError) -> ErasedEvent:
        scope = self._sealing.erasure.erased_scope(stored, error, self._sealing.cipher)
        if scope is None:
            raise error
        return ErasedEvent(
            sequence_id=stored.originator_id,
            position=stored.originator_version,
            topic=stored.topic,
            key_id=UUID(bytes=stored.state[KEY_ID_IN_HEADER]),
            scope=scope,
        )


class _Plain:
    """A plaintext stored event for the library's mapper. It is never returned to callers."""

    __slots__ = ("originator_id", "originator_version", "state", "topic")

    def __init__(self, stored: StoredEvent, state: bytes) -> None:
        self.originator_id = stored.originator_id
        self.originator_version = stored.originator_version
        self.topic = stored.topic
        self.state = state


tell_collections(EncryptingMapper)


def refuse_beside(*, compressor: object, cipher: object) -> None:
    """
    Refuse a compressor or a cipher of the library.

    The library would apply them in addition to the mapper.

    Raises:
        ConfigurationError: There is a compressor or a cipher.
    """
    beside = [
        f"{what} ({type(given).__module__}:{type(given).__qualname__}, set by {variables})"
        for what, given, variables in (
            ("a compressor", compressor, "COMPRESSOR_TOPIC"),
            ("a cipher", cipher, "CIPHER_TOPIC or CIPHER_KEY"),
        )
        if given is not None
    ]
    if beside:
        raise ConfigurationError(
            f"EncryptingMapper compresses and encrypts itself, but there is also {' and '.join(beside)}",
            remedy=REMEDY_BESIDE,
        )


def _with_state(stored: StoredEvent, state: bytes) -> StoredEvent:
    """Replace the state of a stored event that was not returned yet."""
    object.__setattr__(stored, "state", state)  # only callers must see it as frozen
    return stored

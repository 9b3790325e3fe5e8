"""The mapper: the library's own, whose states are envelopes bound to their rows."""

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
    "Unset COMPRESSOR_TOPIC, CIPHER_TOPIC and CIPHER_KEY. What was written with them is read by naming its "
    "format: see `eventseal migrate --help`."
)


class EncryptingMapper(_Mapper):
    """
    Maps domain events to stored events whose state is sealed, and back. Threads may share it.

    A state is bound to the application, the collection (events or snapshots), the originator's id and version
    and the topic: moved to another row, it does not open. An event class may say whose key seals its events,
    ``__key_scope__``, and ``__compress__ = False``.

    Args:
        transcoder: Turns an event's attributes into bytes and back.
        compressor: Must be ``None``: the cipher compresses.
        cipher: Must be ``None``.

    Raises:
        ConfigurationError: There is a compressor or another cipher, or the settings are wrong.
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
        refuse_replaced_methods(type(self), EncryptingMapper)  # again: __new__ may be another class's

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
        Give a mapper class with choices of its own, for ``factory.mapper(mapper_class=...)`` or a topic.

        Args:
            seal: Such as ``EventSeal``; ``None``: the process's settings say it, when the mapper is made.
            key_scope: Whose key seals an event or a snapshot whose class does not say: a scope, or a function
                of it. It is worked out again on reading, and must come out the same.
            on_erased: What an event is on reading whose key was shredded: ``KeyDestroyedError``, an
                :class:`ErasedEvent`, or left out where the store hands over pages (elsewhere an
                :class:`ErasedEvent` as well: the library takes one event for each stored one).
            erased_scope: Gives the scope that an erased event must be of, from the stored event alone. If
                not given, it is *key_scope*, where that is a string other than ``application``; without any,
                erased events are always raised.
            event_modules: Modules whose classes an event in an older format may name, while a migration
                lasts; ``None``: those of the seal.

        Raises:
            ConfigurationError: A choice is none.
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
        List the fields of a class: all of them are sealed with the state.

        Args:
            event_class: A class of events, of decisions, or of aggregates.
            always_encrypt: Has no effect, since every state is sealed.

        Raises:
            ConfigurationError: The class would be refused at its first use.
        """
        refuse_marked_class(event_class)
        return protected_fields(event_class, is_sealed=True)

    def over(self, collection: str) -> Self:
        """Give a mapper for one event store's table: it refuses what is bound to the other collection."""
        mapper = copy(self)
        mapper.__dict__["_collection"] = collection
        return mapper

    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        """Map one event; see :meth:`to_stored_events`."""
        self._check_types()
        stored = super().to_stored_event(domain_event)
        context = context_of(stored, self._collection or event_class(type(domain_event)).collection)
        return _with_state(stored, self._sealing.seal_event(domain_event, stored.state, context))

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Map one stored event back; see :meth:`to_domain_events`. One that would be skipped is masked."""
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
        Map events: all, or none, those of a scope under one key.

        Args:
            domain_events: Events or snapshots.
            collection: Of the table that they go to; ``None``: their classes say it.

        Raises:
            EventSealError: There is no key to seal with, or a place has no canonical value; see
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
        Map a page of stored events, or of notifications, back; the first that cannot be is raised.

        Args:
            stored_events: As a recorder gives them.
            collection: Of the table that they come from; ``None``: what the event store said, else that of
                events for notifications, else found out for each topic.

        Returns:
            Their events, in order; erased ones are masked or left out if the mapper was told so.

        Raises:
            IntegrityError: A state is not what was sealed for this row, or another scope's key sealed it.
            KeyDestroyedError: A state's key was destroyed.
            UnknownFormatError: A state is no envelope.
            EventSealError: A state does not open; see ``AESCipher.open_many``.
        """
        events = self._mapped(list(stored_events), collection)
        if self._sealing.erasure.skips:
            return [event for event in events if type(event) is not ErasedEvent]
        return events

    def refresh_keys(self) -> None:
        """Look at once for keys whose state changed: what is mapped next is sealed under keys that seal."""
        self._sealing.cipher.refresh()

    def _check_types(self) -> None:
        """Look at the types that are registered with the transcoder by now."""
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
        """Say which collection a stored event must be of: no snapshot is ever notified of."""
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
        Open what did not open where a recorder left open what it was bound to, and remember the answer.

        That is its collection, where nothing says it: a topic is of one of them, and is resolved only after
        the state has opened. And the id, which the library's own recorder gives back as bare digits on
        SQLite in releases before 9.5: they are the UUID that was bound.
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
    """A stored event as the library's mapper reads it: in plain, and never handed out."""

    __slots__ = ("originator_id", "originator_version", "state", "topic")

    def __init__(self, stored: StoredEvent, state: bytes) -> None:
        self.originator_id = stored.originator_id
        self.originator_version = stored.originator_version
        self.topic = stored.topic
        self.state = state


tell_collections(EncryptingMapper)


def refuse_beside(*, compressor: object, cipher: object) -> None:
    """
    Refuse what the library would put around a state beside the mapper.

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
            f"EncryptingMapper compresses and encrypts itself, and there is {' and '.join(beside)} beside it",
            remedy=REMEDY_BESIDE,
        )


def _with_state(stored: StoredEvent, state: bytes) -> StoredEvent:
    """Put another state into a stored event that nobody else has seen yet."""
    object.__setattr__(stored, "state", state)  # it is frozen for those who get it
    return stored

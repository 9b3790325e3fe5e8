"""
Seal and open events for the library's mappers.

The module has the options of an application, and the one EventSeal of the process.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from eventsourcing.utils import TopicError, register_topic

from eventseal.configuration import EventSeal
from eventseal.errors import EventSealError, KeyClosedError
from eventseal.integrations.eventsourcing.stored_events import (
    event_class,
    refuse_marked_event,
    uuid_of_digits,
)
from eventseal.items.acceptance import NO_FORMATS, AcceptedFormats, OldItem
from eventseal.items.event_modules import EventModules
from eventseal.items.scopes import Erased, ErasureRule, KeyScope, OnErased, ScopeRule
from eventseal.keys.concurrency import renew_in_children
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.rotation.sealed_store import event_modules_of
from eventseal.storage.database.transactions import writes
from eventseal.storage.items.fences import CLOSED, fence_states, open_fences
from eventseal.suites.envelope import KEY_ID_IN_HEADER
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.cipher import ItemContext, Opened
    from eventseal.rotation.sealed_store import SealedStore


@dataclass(frozen=True)
class ErasedEvent(Erased):
    """
    The mask of a stored event whose key was shredded.

    A mapper with ``on_erased="mask"`` returns it. The library's projector can apply it. If all events of an
    aggregate are erased, the aggregate is not found. If only some are erased, it continues after them. The
    place and the topic are from the row, and nothing authenticates them any more.
    """

    def mutate(self, aggregate: Any) -> Any:
        """Count as an event, but change nothing else."""
        if aggregate is not None:
            aggregate.version = self.originator_version
        return aggregate


class SealingOptions:
    """
    The options of ``using()``.

    Args:
        seal: The store whose keys and databases are used. ``None``: the process's settings create one.
        key_scope: The scope for events whose class has no ``__key_scope__``, or a function that returns it.
        on_erased: How a reader gets an event whose key was shredded.
        erased_scope: Returns the required scope of an erased event, from the stored event alone.
        event_modules: The modules whose classes an event in an older format may name. ``None``: the event
            modules of the seal.

    Raises:
        ConfigurationError: An option is invalid.
    """

    def __init__(
        self,
        seal: SealedStore | None = None,
        *,
        key_scope: KeyScope = DEFAULT_SCOPE,
        on_erased: OnErased = "raise",
        erased_scope: Callable[[Any], str] | None = None,
        event_modules: Collection[str] | None = None,
    ) -> None:
        self.seal = seal
        self.scope_rule = ScopeRule(key_scope)
        self.one_scope = key_scope if isinstance(key_scope, str) else None
        self.erasure = ErasureRule(on_erased, key_scope=key_scope, erased_scope=erased_scope)
        self.event_modules = event_modules


def stream_scope(event: Any) -> str:
    """
    Return a separate scope for each aggregate.

    With its own scope, you can erase an aggregate alone. The function accepts domain events, snapshots
    and stored events. Use it as both ``key_scope`` and ``erased_scope``.
    """
    return f"stream:{uuid_of_digits(event.originator_id) or event.originator_id}"


class ProcessSeal:
    """
    Creates an EventSeal at the first call, and keeps it.

    The EventSeal renews itself in a forked process. This class only renews its own lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seal: EventSeal | None = None
        renew_in_children(self)

    def __call__(self) -> SealedStore:
        """
        Return the process's EventSeal.

        Raises:
            ConfigurationError: The settings name no KMS key or no database, or are invalid.
        """
        with self._lock:
            if self._seal is None:
                self._seal = EventSeal.from_settings()
            return self._seal

    def close(self) -> None:
        """Close the EventSeal, its keys and its connections. The next call reads the settings again."""
        with self._lock:
            seal, self._seal = self._seal, None
        if seal is not None:
            seal.close()

    def renew_in_child(self) -> None:
        """Replace the parent's lock, which may be held."""
        self._lock = threading.Lock()


process_seal = ProcessSeal()
"""
The process's EventSeal, from ``eventseal.toml`` and ``EVENTSEAL_*``.

The library does not pass its own ``env`` to mappers.
"""


MOST_REMEMBERED = 100_000
"""
The highest number of keys whose fence is remembered.

If there are more, all are forgotten and looked up again.
"""


@writes("creating the fences of keys", filtered=True)
def _opened(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, str]:
    open_fences(connection, key_ids)
    return fence_states(connection, key_ids)


Outcome: TypeAlias = "Opened | OldItem | EventSealError"
"""
The result of opening a state.

It is an opened envelope, an item in an older format that is still accepted, or the error.
"""


class LibraryEventModules(EventModules):
    """Looks up classes, and registers them with the library. The library then finds the very same classes."""

    def resolve(self, topic: str) -> type[Any]:
        """Return the class that *topic* names. See the base class."""
        found = super().resolve(topic)
        with suppress(TopicError):  # the library already knows the topic, and keeps its class
            register_topic(topic, found)
        return found


class Sealing:
    """
    Seals and opens events for one mapper. Threads may share it.

    Args:
        options: The options of the application.

    Raises:
        ConfigurationError: The options or the process's settings are invalid.
    """

    def __init__(self, options: SealingOptions) -> None:
        self._scope_of, self._one_scope = options.scope_rule, options.one_scope
        seal = process_seal() if options.seal is None else options.seal
        self.cipher = seal.cipher
        self.erasure = options.erasure
        self._datastore = seal.datastore
        self._fenced: set[bytes] = set()  # key ids
        names = event_modules_of(seal) if options.event_modules is None else options.event_modules
        self.event_modules = LibraryEventModules(names)
        self._accepted: AcceptedFormats = getattr(seal, "accepted_formats", NO_FORMATS)

    def seal_events(self, events: list[Any], items: Sequence[tuple[bytes, ItemContext]]) -> list[bytes]:
        """
        Seal the serialized events. See :meth:`seal`.

        Args:
            events: The events, which decide their scope and their compression.
            items: The plaintext and the place of each event.
        """
        for event in events:
            refuse_marked_event(event)
        compress = [known.compress for known in map(event_class, map(type, events))]
        return self.seal(items, scopes=self._scope_of.of_all(events), compress=compress)

    def seal_event(self, event: Any, plaintext: bytes, context: ItemContext) -> bytes:
        """Seal one serialized event, faster than :meth:`seal_events`."""
        refuse_marked_event(event)
        known = event_class(type(event))
        scope = self._scope_of(event) if self._one_scope is None or known.has_scope else self._one_scope
        envelope = self.cipher.encrypt(plaintext, context, scope=scope, compress=known.compress)
        if envelope[KEY_ID_IN_HEADER] in self._fenced:
            return envelope
        return self.seal(((plaintext, context),), scopes=scope, compress=known.compress)[0]

    def seal(
        self,
        items: Sequence[tuple[bytes, ItemContext]],
        *,
        scopes: str | Sequence[str] = DEFAULT_SCOPE,
        compress: bool | Sequence[bool] = True,
    ) -> list[bytes]:
        """
        Seal states, all or none.

        Args:
            items: The plaintext and the place of each state.
            scopes: One scope for all states, or one for each.
            compress: Whether to try compression, for all states or for each.

        Returns:
            The envelopes, in order, each under a key that has an open fence.

        Raises:
            KeyClosedError: A key was retired, but is still the active key of its scope.
            StoreError: The items' database rejects a request or fails.
            EventSealError: An error of ``AESCipher.encrypt_many``.
        """
        for _ in range(2):
            envelopes = self.cipher.encrypt_many(items, scopes=scopes, compress=compress)
            # The fence is created before the library writes, so that the library's insert does not wait for
            # another one (docs/decisions/0019).
            closed = self._closed_among(envelopes)
            if not closed:
                return envelopes
            self.cipher.refresh()
        raise KeyClosedError(
            f"nothing was sealed: {counted(len(closed), 'key was', 'keys were')} retired meanwhile: "
            f"{', '.join(map(str, closed))}",
            key_ids=tuple(closed),
        )

    def _closed_among(self, envelopes: Iterable[bytes]) -> list[UUID]:
        """
        Create an open fence for each key that has none yet.

        This happens before any envelope under the key is returned. So the row that a retirement closes
        exists, and the trigger on the table refuses late writes.

        Returns:
            The keys of the envelopes that were already retired.
        """
        unknown = {envelope[KEY_ID_IN_HEADER] for envelope in envelopes} - self._fenced
        if not unknown:
            return []
        states = _opened(self._datastore.engine, [UUID(bytes=raw) for raw in unknown])
        closed = sorted(key_id for key_id, state in states.items() if state == CLOSED)
        if len(self._fenced) + len(unknown) > MOST_REMEMBERED:
            self._fenced.clear()
        self._fenced |= unknown - {key_id.bytes for key_id in closed}
        return closed

    def open(self, items: Sequence[tuple[bytes, ItemContext]]) -> list[Outcome]:
        """
        Open states, and return the result of each.

        If a state is not an envelope, the older formats that a migration still accepts are tried.
        """
        outcomes: list[Outcome] = [*self.cipher.open_many(items)]
        if self._accepted:
            for index, outcome in enumerate(outcomes):
                if isinstance(outcome, EventSealError):
                    outcomes[index] = self._accepted.open(*items[index], outcome)
        return outcomes

    def check_scope(self, event: Any, opened: Opened) -> None:
        """
        Check that an event is sealed under a key of its scope.

        Raises:
            IntegrityError: The scopes of the event and of the key differ.
        """
        if opened.scope == self._one_scope and not event_class(type(event)).has_scope:
            return
        self._scope_of.check(event, opened, self.cipher)


def placed(error: EventSealError, context: ItemContext) -> EventSealError:
    """
    Return a copy of an error with the place of its item.

    It is a copy because several items may share the error.
    """
    own = copy(error)
    own.__dict__.update(sequence_id=context.sequence_id, position=context.position)
    own.add_note(f"item: position {context.position} of {context.sequence_id}, topic {context.topic!r}")
    return own

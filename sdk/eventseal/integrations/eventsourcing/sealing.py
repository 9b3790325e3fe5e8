"""Seals and opens for the library's mappers: an application's options, and the process's one EventSeal."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.cipher import ItemContext, Opened
    from eventseal.rotation.sealed_store import SealedStore


@dataclass(frozen=True)
class ErasedEvent(Erased):
    """
    Stands for a stored event whose key was shredded, where the mapper was told ``on_erased="mask"``.

    The library's projector can take it: an aggregate of which all is erased is not found, and one that lost
    some of its events goes on behind them. Its place and topic are those of the row, which nothing
    authenticates any more.
    """

    def mutate(self, aggregate: Any) -> Any:
        """Count as an event that changed nothing."""
        if aggregate is not None:
            aggregate.version = self.originator_version
        return aggregate


class SealingOptions:
    """
    The choices of ``using()``.

    Args:
        seal: Whose keys and databases are used; ``None``: the process's settings say it.
        key_scope: Whose key seals an event whose class has no ``__key_scope__``.
        on_erased: What an event is on reading whose key was shredded.
        erased_scope: Gives the scope that an erased event must be of, from what was stored alone.
        event_modules: Whose classes an event in an older format may name; ``None``: those of the seal.

    Raises:
        ConfigurationError: A choice is none.
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
    Give each aggregate keys of its own, so that it can be erased alone.

    Takes domain events, snapshots and stored events alike: it is a ``key_scope`` and an ``erased_scope``.
    """
    return f"stream:{uuid_of_digits(event.originator_id) or event.originator_id}"


class ProcessSeal:
    """
    Makes an EventSeal when it is first asked for, and keeps it.

    What is inside of it renews itself in a forked process; only the lock is this class's own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seal: EventSeal | None = None
        renew_in_children(self)

    def __call__(self) -> SealedStore:
        """
        Give the process's EventSeal.

        Raises:
            ConfigurationError: The settings name no KEK or no database, or are wrong.
        """
        with self._lock:
            if self._seal is None:
                self._seal = EventSeal.from_settings()
            return self._seal

    def close(self) -> None:
        """Forget it, its keys and its connections: whoever asks next reads the settings anew."""
        with self._lock:
            seal, self._seal = self._seal, None
        if seal is not None:
            seal.close()

    def renew_in_child(self) -> None:
        """Take no lock of the parent's."""
        self._lock = threading.Lock()


process_seal = ProcessSeal()
"""Reads ``eventseal.toml`` and ``EVENTSEAL_*`` of the process: the library does not show its own ``env``."""


MOST_REMEMBERED = 100_000
"""Keys whose fence is known to be there; when there are more, all are forgotten and asked for again."""


@writes("making the fences of keys", filtered=True)
def _opened(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, str]:
    open_fences(connection, key_ids)
    return fence_states(connection, key_ids)


Outcome: TypeAlias = "Opened | OldItem | EventSealError"
"""What a state was, in an envelope or in an older format that is still accepted, or why it does not open."""


class LibraryEventModules(EventModules):
    """Looks up classes, and registers them with the library, so that it finds the very same ones."""

    def resolve(self, topic: str) -> type[Any]:
        """Find the class that *topic* names; see the base."""
        found = super().resolve(topic)
        with suppress(TopicError):  # the library knows the topic, and keeps what it knows
            register_topic(topic, found)
        return found


class Sealing:
    """
    Seals and opens for one mapper. Methods may be called from several threads at once.

    Args:
        options: The application's choices.

    Raises:
        ConfigurationError: They, or the process's settings, are wrong.
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
        Seal what events were written as; see :meth:`seal`.

        Args:
            events: Say whose key seals each, and whether it is compressed.
            items: Plaintext and place of each.
        """
        for event in events:
            refuse_marked_event(event)
        compress = [known.compress for known in map(event_class, map(type, events))]
        return self.seal(items, scopes=self._scope_of.of_all(events), compress=compress)

    def seal_event(self, event: Any, plaintext: bytes, context: ItemContext) -> bytes:
        """Seal what one event was written as, with less ado than :meth:`seal_events`."""
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
        Seal states: all, or none.

        Args:
            items: Plaintext and place of each.
            scopes: One for all, or one for each.
            compress: For all, or for each.

        Returns:
            The envelopes, in order, each under a key whose fence is there.

        Raises:
            KeyClosedError: A key was retired and still is the scope's.
            StoreError: The items' database refused or failed.
            EventSealError: What ``AESCipher.encrypt_many`` raises.
        """
        for _ in range(2):
            envelopes = self.cipher.encrypt_many(items, scopes=scopes, compress=compress)
            # The fence is made before the library writes, so that its insert waits for no other one
            # (docs/decisions/0019).
            closed = self._closed_among(envelopes)
            if not closed:
                return envelopes
            self.cipher.refresh()
        raise KeyClosedError(
            f"nothing was sealed: retired meanwhile: {', '.join(map(str, closed))}", key_ids=tuple(closed)
        )

    def _closed_among(self, envelopes: Iterable[bytes]) -> list[UUID]:
        """
        Make an open fence for each key that has none yet, before anything under the key is handed out.

        So the row that a retirement closes is there, and the trigger on the table refuses what comes late.

        Returns:
            The envelopes' keys that were retired already.
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
        Open states, each with an outcome of its own.

        What is no envelope is tried in the older formats that are accepted while a migration lasts.
        """
        outcomes: list[Outcome] = [*self.cipher.open_many(items)]
        if self._accepted:
            for index, outcome in enumerate(outcomes):
                if isinstance(outcome, EventSealError):
                    outcomes[index] = self._accepted.open(*items[index], outcome)
        return outcomes

    def check_scope(self, event: Any, opened: Opened) -> None:
        """
        Compare the scope that an event belongs to with that of the key that sealed it.

        Raises:
            IntegrityError: They differ.
        """
        if opened.scope == self._one_scope and not event_class(type(event)).has_scope:
            return
        self._scope_of.check(event, opened, self.cipher)


def placed(error: EventSealError, context: ItemContext) -> EventSealError:
    """Give a copy of an outcome, which may be other items' too, that says where its item stands."""
    own = copy(error)
    own.__dict__.update(sequence_id=context.sequence_id, position=context.position)
    own.add_note(f"item: position {context.position} of {context.sequence_id}, topic {context.topic!r}")
    return own

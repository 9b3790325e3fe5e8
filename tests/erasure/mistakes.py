"""Mistakes that the interleavings must catch: each makes the real code wrong in one place."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from eventseal.keys import InMemoryKeyStore, KeyState, memory_store
from eventseal.keys.ring import destroying, sealing, state_transitions
from eventseal.keys.ring.held_keys import HeldKeys, KnownStates
from eventseal.keys.ring.key_cache import KeyCache
from eventseal.keys.ring.opening import Opener, Refresher, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


@dataclass(frozen=True)
class Mistake:
    """
    A mistake, and where it shows.

    Attributes:
        make: Makes it until the block ends.
        scenario: Of which some order shows it.
    """

    make: Callable[[], AbstractContextManager[Any]]
    scenario: str


def _load_kept_over_a_refresh() -> AbstractContextManager[Any]:
    admit = KnownStates.admit

    def wrong(self: Any, record: Any, since: Any) -> bool:
        return admit(self, record, since._replace(changes=self.changes))

    return patch.object(KnownStates, "admit", wrong)


def _moment_taken_after_the_row() -> AbstractContextManager[Any]:
    read = Opener._read

    def wrong(self: Any, key_ids: Any) -> Rows:
        rows = read(self, key_ids)
        return Rows(rows.records, self._held_keys.moment())

    return patch.object(Opener, "_read", wrong)


def _kept_since_a_refresh_asked() -> AbstractContextManager[Any]:
    drop = KeyCache.drop

    def wrong(self: Any, key_id: Any, *, close: bool) -> None:
        if close:
            drop(self, key_id, close=close)

    return patch.object(KeyCache, "drop", wrong)


def _own_shred_is_not_remembered() -> AbstractContextManager[Any]:
    return patch.object(HeldKeys, "note_change", lambda *_, **__: None)


def _tombstone_leaves_its_handle_open() -> AbstractContextManager[Any]:
    return patch.object(HeldKeys, "_end", lambda *_: None)


@contextmanager
def _tombstone_without_slot() -> Iterator[None]:
    tombstone_of, next_version = state_transitions.tombstone_of, state_transitions.next_version

    def ends(record: Any, by: Any, *, active_scope: str | None = None) -> Any:
        return tombstone_of(record, by)

    def moves(record: Any, **changes: Any) -> Any:
        return next_version(record, **{**changes, "active_scope": None})

    with (
        patch.object(state_transitions, "tombstone_of", ends),
        patch.object(state_transitions, "next_version", moves),
    ):
        yield


def _no_tombstone_for_what_the_scope_lacks() -> AbstractContextManager[Any]:
    transitions_of_shred = destroying.transitions_of_shred

    def wrong(*arguments: Any, **options: Any) -> Any:
        return transitions_of_shred(*arguments, **options)._replace(tombstones=())

    return patch.object(destroying, "transitions_of_shred", wrong)


@contextmanager
def _key_that_came_meanwhile_is_left_out() -> Iterator[None]:
    with (
        patch.object(InMemoryKeyStore, "_is_left_out", lambda *_: False),
        patch.object(memory_store, "_holding", lambda _: []),
    ):
        yield


def _replaced_without_looking_at_its_row() -> AbstractContextManager[Any]:
    return patch.object(InMemoryKeyStore, "_follows", lambda *_: True)


def _wrapping_put_beside_a_tombstone() -> AbstractContextManager[Any]:
    def wrong(self: Any, add: Any, *, verified: bool = False) -> set[Any]:
        with self._lock:
            for key_id, wrapped in add.items():
                record = self._records[key_id]
                self._records[key_id] = replace(record, wrappings=(wrapped, *record.wrappings))
        return set(add)

    return patch.object(InMemoryKeyStore, "put_wrappings", wrong)


def _confirmed_when_answered() -> AbstractContextManager[Any]:
    refresh = Refresher._refresh

    def wrong(self: Any) -> None:
        began = self._ring.given.clock.now()
        refresh(self)
        late = self._ring.given.clock.now() - began
        self._ring.confirmation.opens_until += late
        self._ring.confirmation.seals_until += late

    return patch.object(Refresher, "_refresh", wrong)


@contextmanager
def _closed_scope_is_not_looked_at() -> Iterator[None]:
    with (
        patch.object(sealing, "why_not_sealing", lambda *_, **__: None),
        patch.object(sealing.Seats, "_settle_closed", lambda *_: None),
    ):
        yield


def _outage_outlives_the_end() -> AbstractContextManager[Any]:
    def wrong(self: Any, record: Any) -> None:
        cached = self._held(record.key_id)
        if cached is not None:
            cached.expires = 0.0  # unwrapped again, but not forgotten

    return patch.object(HeldKeys, "_end", wrong)


def _state_of_the_key_alone_closes_it() -> AbstractContextManager[Any]:
    moved = HeldKeys.note_change

    def wrong(self: Any, record: Any, *, counter: int) -> None:
        if record.state is KeyState.DESTROYED:
            self.known.raise_floor(counter)
        else:
            moved(self, record, counter=counter)

    return patch.object(HeldKeys, "note_change", wrong)


MISTAKES: dict[str, Mistake] = {
    "a load in flight kept over a refresh": Mistake(_load_kept_over_a_refresh, "a load"),
    "the moment taken after the row": Mistake(_moment_taken_after_the_row, "a load"),
    "a key kept since a refresh asked": Mistake(_kept_since_a_refresh_asked, "a load"),
    "an own shred that is not remembered": Mistake(
        _own_shred_is_not_remembered, "a load in the process that shreds"
    ),
    "an own end of which only the counter is remembered": Mistake(
        _state_of_the_key_alone_closes_it, "a load in the process that shreds"
    ),
    "a tombstone that leaves its handle open": Mistake(
        _tombstone_leaves_its_handle_open, "a load while time goes by"
    ),
    "a tombstone without active_scope": Mistake(_tombstone_without_slot, "a stale append"),
    "no tombstone for what the scope lacks": Mistake(
        _no_tombstone_for_what_the_scope_lacks, "first uses of the fields' key"
    ),
    "a key that came meanwhile is left out": Mistake(
        _key_that_came_meanwhile_is_left_out, "first uses of the fields' key"
    ),
    "a key replaced without a look at its row": Mistake(_replaced_without_looking_at_its_row, "a rotation"),
    "a wrapping put beside a tombstone": Mistake(_wrapping_put_beside_a_tombstone, "a rewrap"),
    "confirmed when it was answered": Mistake(_confirmed_when_answered, "a slow refresh"),
    "a scope that is closed, and neither row nor tree is looked at": Mistake(
        _closed_scope_is_not_looked_at, "first uses of the fields' key"
    ),
    "an outage that outlives the end": Mistake(_outage_outlives_the_end, "a load in an outage"),
}

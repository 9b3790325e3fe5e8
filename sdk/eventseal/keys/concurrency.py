"""Threads and forks: shared attempts, bounded calls, short refusals, and what a forked child renews."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakSet

from eventseal.errors import EventSealError, KeyDestroyedError, KeyNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from uuid import UUID


K = TypeVar("K")
V = TypeVar("V")
Error = TypeVar("Error", bound=EventSealError)


def copied(error: Error) -> Error:
    """Copy an error for another thread or another item: raised, each collects a traceback of its own."""
    duplicate = copy(error)
    duplicate.__cause__ = error.__cause__
    return duplicate


class _Flight(Generic[V]):
    __slots__ = ("landed", "outcome")

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.outcome: V | EventSealError | None = None


class SingleFlight(Generic[K, V]):
    """
    Lets a batch claim what nobody loads, load that together, and wait for the rest.

    A batch loads what it claimed before it waits, so two batches never wait for each other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[K, _Flight[V]] = {}

    def run(
        self, keys: Collection[K], load: Callable[[list[K]], Mapping[K, V | EventSealError]]
    ) -> tuple[dict[K, V | EventSealError], dict[K, V | EventSealError]]:
        """
        Load each of *keys* here, or wait for the thread that does.

        Args:
            keys: What is wanted.
            load: Called with those that no other thread loads, if any; gives an outcome for each. It should
                look first whether another thread has just loaded them.

        Returns:
            The outcomes of *load*, and those of other threads. An error of theirs is a copy; a key is in
            neither if the thread that loaded it was interrupted.
        """
        mine: dict[K, _Flight[V]] = {}
        theirs: dict[K, _Flight[V]] = {}
        with self._lock:
            for key in dict.fromkeys(keys):  # asked for twice, a key must not wait for itself
                flight = self._flights.get(key)
                if flight is None:
                    mine[key] = self._flights[key] = _Flight()
                else:
                    theirs[key] = flight
        loaded = self._load(mine, load) if mine else {}
        awaited: dict[K, V | EventSealError] = {}
        for key, flight in theirs.items():
            flight.landed.wait()
            outcome = flight.outcome
            if outcome is not None:
                awaited[key] = copied(outcome) if isinstance(outcome, EventSealError) else outcome
        return loaded, awaited

    def _load(
        self, mine: dict[K, _Flight[V]], load: Callable[[list[K]], Mapping[K, V | EventSealError]]
    ) -> dict[K, V | EventSealError]:
        try:
            loaded = dict(load(list(mine)))
        except EventSealError as error:
            self._land(mine, dict.fromkeys(mine, error))
            raise
        except BaseException:
            self._land(mine, {})
            raise
        self._land(mine, loaded)
        return loaded

    def _land(self, mine: dict[K, _Flight[V]], outcomes: Mapping[K, V | EventSealError]) -> None:
        with self._lock:
            for key, flight in mine.items():
                self._flights.pop(key, None)
                flight.outcome = outcomes.get(key)
        for flight in mine.values():
            flight.landed.set()


CALLS_IN_FLIGHT = 20
"""Calls that one keyring has in flight at most, to all its KEKs together."""


class CallSlots:
    """
    Lets so many calls in at once; who has waited longest goes first.

    Args:
        count: Slots that there are.
    """

    def __init__(self, count: int = CALLS_IN_FLIGHT) -> None:
        self._count = self._free = count
        self._condition = threading.Condition()
        self._queue: deque[object] = deque()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        """
        Wait for slots and hold them.

        Args:
            wanted: How many calls the block may have in flight. An adapter's batch may make one for each of
                its keys, so it counts as that many, or as all slots if there are fewer.
        """
        wanted = min(wanted, self._count)
        self._take(wanted)
        try:
            yield
        finally:
            with self._condition:
                self._free += wanted
                self._condition.notify_all()

    def _take(self, wanted: int) -> None:
        ticket = object()
        with self._condition:
            self._queue.append(ticket)
            try:
                self._condition.wait_for(lambda: self._queue[0] is ticket and self._free >= wanted)
                self._free -= wanted
            finally:  # also if the thread is interrupted
                self._queue.remove(ticket)
                self._condition.notify_all()


REFUSAL_SECONDS = 5.0
_MOST_REFUSALS = 10_000


class Refusals:
    """
    Remembers absent and destroyed keys. A KMS or a key store that failed is never remembered.

    Each operation is one of a dictionary's, so threads need no lock.
    """

    def __init__(self) -> None:
        self._refusals: dict[UUID, tuple[EventSealError, float]] = {}

    def add(self, key_id: UUID, error: EventSealError, now: float) -> None:
        """Answer for *key_id* with *error* for a short while, if it is one that lasts."""
        if isinstance(error, (KeyNotFoundError, KeyDestroyedError)):
            if len(self._refusals) >= _MOST_REFUSALS:
                self._refusals.clear()
            self._refusals[key_id] = (error, now + REFUSAL_SECONDS)

    def get(self, key_id: UUID, now: float) -> EventSealError | None:
        """Give a copy of the error that answers for *key_id* at the moment, if one does."""
        error, until = self._refusals.get(key_id, (None, 0.0))
        return copied(error) if error is not None and now < until else None

    def forget(self, key_id: UUID) -> None:
        """Look for *key_id* again: it was found."""
        self._refusals.pop(key_id, None)

    def clear(self) -> None:
        """Look for every key again."""
        self._refusals.clear()


class Renewable(Protocol):
    """Something with locks and keys of its own."""

    def renew_in_child(self) -> None:
        """Drop what the parent holds, without waiting for any lock, and start with new ones."""
        ...


_renewables: WeakSet[Renewable] = WeakSet()


def renew_in_children(renewable: Renewable) -> None:
    """Have *renewable* renewed in every child forked from now on, for as long as it lives."""
    _renewables.add(renewable)


def _renew_all() -> None:
    for renewable in list(_renewables):
        renewable.renew_in_child()


if hasattr(os, "register_at_fork"):  # where there is no fork, there is nothing to renew
    os.register_at_fork(after_in_child=_renew_all)

"""Threads and forks: loads that threads share, and renewal in forked children."""

from __future__ import annotations

import os
import threading
from copy import copy
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from weakref import WeakSet

from eventseal.errors import EventSealError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping


K = TypeVar("K")
V = TypeVar("V")
Error = TypeVar("Error", bound=EventSealError)


def copied(error: Error) -> Error:
    """
    Copy an error for another thread or another item.

    When it is raised, each copy collects its own traceback.
    """
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
    Lets several threads load keys, and each key only once.

    A batch claims the keys that no other thread loads, loads them together, and waits for the rest. It loads
    its own keys before it waits, so two batches never wait for each other.
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
            keys: The keys to load.
            load: Called with the keys that no other thread loads, if there are any. It returns an outcome for
                each. It should first check whether another thread has just loaded them.

        Returns:
            The outcomes of *load*, and the outcomes of other threads. Errors of other threads are copies. If
            the thread that loaded a key was interrupted, the key is in neither.
        """
        mine: dict[K, _Flight[V]] = {}
        theirs: dict[K, _Flight[V]] = {}
        with self._lock:
            for key in dict.fromkeys(keys):  # a key that is requested twice must not wait for itself
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


class Renewable(Protocol):
    """An object with locks and keys."""

    def renew_in_child(self) -> None:
        """
        Drop everything of the parent without waiting for a lock.

        The object then starts with new locks and keys.
        """
        ...


_renewables: WeakSet[Renewable] = WeakSet()


def renew_in_children(renewable: Renewable) -> None:
    """Renew *renewable*, while it exists, in every child forked from now on."""
    _renewables.add(renewable)


def _renew_all() -> None:
    for renewable in list(_renewables):
        renewable.renew_in_child()


if hasattr(os, "register_at_fork"):  # without fork, there is nothing to renew
    os.register_at_fork(after_in_child=_renew_all)

"""
Threads that run one at a time, in an order that is chosen: each step by step, up to its next call.

Locks and events under test are replaced by ones that tell the schedule who waits, so that every order that
the real ones allow can be played, none hangs, and the same choices give the same run.
"""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

PATIENCE = 120.0
"""Seconds that a step may take: it waits for nothing but its own work."""

MOST_STEPS = 5_000
MOST_PREEMPTIONS = 4


class DeadlockError(AssertionError):
    """Every actor waits for another one."""


class _Abandoned(BaseException):
    """The schedule is over for this actor: what it waits for never comes."""


class Choice(NamedTuple):
    """
    What was chosen at a step.

    Attributes:
        among: The actors that could go on, in order of their names.
        chosen: The number of the one that did.
        current: The number of the one that went before, if it could go on.
    """

    among: tuple[str, ...]
    chosen: int
    current: int | None

    @property
    def is_preemption(self) -> bool:
        """Whether an actor had to stop that could go on."""
        return self.current is not None and self.chosen != self.current


@dataclass
class _Actor:
    name: str
    work: Callable[[], object]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    waits_for: Callable[[], bool] | None = None
    is_done: bool = False


_here = threading.local()


def step() -> None:
    """Stop here if the calling thread is an actor, until it is this one's turn again."""
    found: tuple[Schedule, _Actor] | None = getattr(_here, "actor", None)
    if found is not None:
        found[0].pause(found[1])


def wait_until(condition: Callable[[], bool]) -> None:
    """Stop until *condition* holds; what is no actor has nobody to wait for."""
    found: tuple[Schedule, _Actor] | None = getattr(_here, "actor", None)
    if found is None:
        assert condition(), "a lock was left locked, or an event was never set"
        return
    found[0].pause(found[1], condition)


class Schedule:
    """
    One run of some actors.

    Args:
        actors: By name what each does.
        choices: The numbers to choose at the first steps; then whoever is at work goes on as long as it can.

    Attributes:
        history: What was chosen, and among whom.
    """

    def __init__(self, actors: dict[str, Callable[[], object]], choices: Sequence[int]) -> None:
        self._actors = [_Actor(name, work) for name, work in sorted(actors.items())]
        self._choices = choices
        self._over = threading.Semaphore(0)
        self._errors: list[BaseException] = []
        self._is_abandoned = False
        self._current: _Actor | None = None
        self.history: list[Choice] = []

    def run(self) -> None:
        """
        Run all actors to their end.

        Raises:
            DeadlockError: They wait for each other.
            BaseException: What the first actor that failed has raised.
        """
        threads = [threading.Thread(target=self._act, args=(actor,)) for actor in self._actors]
        for thread in threads:
            thread.start()
        self._hand_on(None)
        assert self._over.acquire(timeout=PATIENCE), (
            "an actor waits for something that the schedule does not know"
        )
        for thread in threads:
            thread.join(PATIENCE)
        if self._errors:
            raise self._errors[0]

    def pause(self, actor: _Actor, waits_for: Callable[[], bool] | None = None) -> None:
        """Let the schedule choose who goes on; returns when that is *actor*, and what it waits for holds."""
        if self._is_abandoned:
            raise _Abandoned
        actor.waits_for = waits_for
        self._hand_on(actor)
        actor.waits_for = None
        if self._is_abandoned:
            raise _Abandoned

    def _act(self, actor: _Actor) -> None:
        _here.actor = (self, actor)
        actor.turn.acquire()
        try:
            if not self._is_abandoned:
                actor.work()
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - told to whoever runs the schedule
            self._errors.append(error)
        actor.is_done = True
        if not self._is_abandoned:
            self._hand_on(None)

    def _hand_on(self, me: _Actor | None) -> None:
        chosen = self._chosen()
        if chosen is None:
            self._over.release()
            if me is not None:
                me.turn.acquire()
        elif chosen is not me:
            chosen.turn.release()
            if me is not None:
                me.turn.acquire()

    def _chosen(self) -> _Actor | None:
        able = [actor for actor in self._actors if not actor.is_done and _can_go_on(actor)]
        if not able:
            waiting = [actor for actor in self._actors if not actor.is_done]
            if waiting:
                self._errors.append(DeadlockError(", ".join(actor.name for actor in waiting) + " wait"))
                self._abandon(waiting)
            return None
        current = able.index(self._current) if self._current in able else None
        number = len(self.history)
        assert number < MOST_STEPS, "the actors never come to an end"
        chosen = self._choices[number] if number < len(self._choices) else (current or 0)
        # Ids are random, and two keys may share a node of the revocation tree: then a load has a call less.
        chosen = min(chosen, len(able) - 1)
        self.history.append(Choice(tuple(actor.name for actor in able), chosen, current))
        self._current = able[chosen]
        return self._current

    def _abandon(self, waiting: list[_Actor]) -> None:
        self._is_abandoned = True
        for actor in waiting:
            actor.turn.release()


def _can_go_on(actor: _Actor) -> bool:
    return actor.waits_for is None or actor.waits_for()


# --- what stands in for the primitives of `threading` ---


class ScheduledLock:
    """A lock whose waiters the schedule knows."""

    def __init__(self) -> None:
        self._is_held = False

    def __enter__(self) -> None:
        wait_until(lambda: not self._is_held)
        self._is_held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_held = False


class ScheduledEvent:
    """An event whose waiters the schedule knows."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Let those who wait go on."""
        self._is_set = True

    def wait(self) -> None:
        """Wait until it is set."""
        wait_until(lambda: self._is_set)


@contextmanager
def scheduled_primitives() -> Iterator[None]:
    """Give a keyring's refreshes and single flights, where threads wait for each other, such primitives."""
    instead = SimpleNamespace(Lock=ScheduledLock, Event=ScheduledEvent)
    with (
        patch("eventseal.keys.ring.opening.threading", instead),
        patch("eventseal.keys.concurrency.threading", instead),
    ):
        yield


# --- which orders are played ---


class _Branch(NamedTuple):
    """A run's choices up to a step, and another one there."""

    choices: tuple[int, ...]
    at: int
    instead: int

    def prefix(self) -> tuple[int, ...]:
        return (*self.choices[: self.at], self.instead)


def explore(play: Callable[[Sequence[int]], list[Choice]], *, count: int, seed: int) -> int:
    """
    Play different orders: all with one preemption first, then some of those with up to four.

    Args:
        play: Plays one, given the first choices, and gives all that were made.
        count: How many, at most.
        seed: Of which ones are played, where there are more.

    Returns:
        How many there were; no two of them chose alike.
    """
    chance = random.Random(seed)
    waiting: list[list[_Branch]] = [[] for _ in range(MOST_PREEMPTIONS + 1)]
    prefix: tuple[int, ...] = ()
    for played in range(1, count + 1):
        history = play(prefix)
        _check_replayed(prefix, history)
        _add_branches(waiting, history, len(prefix))
        branch = _next(waiting, chance)
        if branch is None:
            return played
        prefix = branch.prefix()
    return count


def _add_branches(waiting: list[list[_Branch]], history: list[Choice], start: int) -> None:
    """Note what else could have been chosen behind the choices that were given."""
    choices = tuple(choice.chosen for choice in history)
    preemptions = sum(choice.is_preemption for choice in history[:start])
    for at in range(start, len(history)):
        among, chosen, current = history[at]
        for other in range(len(among)):
            total = preemptions + (current is not None and other != current)
            if other != chosen and total <= MOST_PREEMPTIONS:
                waiting[total].append(_Branch(choices, at, other))
        preemptions += history[at].is_preemption


def _next(waiting: list[list[_Branch]], chance: random.Random) -> _Branch | None:
    few, many = waiting[:2], [branches for branches in waiting[2:] if branches]
    branches = next(filter(None, few), None) or (chance.choice(many) if many else None)
    if branches is None:
        return None
    at = chance.randrange(len(branches))
    branches[at], branches[-1] = branches[-1], branches[at]
    return branches.pop()


def _check_replayed(prefix: tuple[int, ...], history: list[Choice]) -> None:
    assert prefix == tuple(choice.chosen for choice in history[: len(prefix)]), "the run was not the same"

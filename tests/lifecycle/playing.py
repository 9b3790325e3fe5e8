"""Plays schedules: one client stands still, fails or ends at its calls in turn, while others act."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.lifecycle.client import EVENTS, Noted
from tests.lifecycle.operations import Append
from tests.lifecycle.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.lifecycle.client import Terms
    from tests.lifecycle.operations import Operation
    from tests.lifecycle.site import Site
    from tests.lifecycle.traffic import Fault

TENANT = "tenant:acme"


@dataclass(frozen=True)
class Schedule:
    """
    What happens before one client begins, while it stands still, and after it went on.

    Attributes:
        before: Makes the state.
        slot: Who stands still, or meets a fault.
        operation: What it does then.
        beside: What others do meanwhile.
        after: What is done in the end: reads, for the most part.
        fault: What happens at each of its calls in turn; ``None``: it stands still there.
        terms: What the clients are set to.
    """

    before: Callable[[World], object]
    slot: int
    operation: Callable[[World], Operation]
    beside: Callable[[World], object] = lambda _: None
    after: Callable[[World], object] = lambda _: None
    fault: Fault | None = None
    terms: Terms | None = None


def places_of(site: Site, schedule: Schedule) -> list[str]:
    """Name the places of a schedule's operation, where nothing comes between."""
    world = World(site, schedule.terms)
    try:
        schedule.before(world)
        outcome = world.do(schedule.slot, schedule.operation(world))
        return outcome.places
    finally:
        world.close()


def some(count: int, most: int) -> list[int]:
    """Give numbers from 0 to *count*, evenly, and not many more than *most*."""
    return list(range(0, count, max(1, count // most)))


def sweep(site: Site, schedule: Schedule, among: Sequence[int]) -> None:
    """
    Play a schedule once for each of some of the operation's places.

    Raises:
        Violation: At one of them something came out that must never be.
    """
    for at in among:
        world = World(site, schedule.terms)
        try:
            schedule.before(world)
            operation = schedule.operation(world)
            if schedule.fault is None:
                world.stall(schedule.slot, operation, at)
            else:
                world.do(schedule.slot, operation, replace(schedule.fault, at=at))
                world.clients[schedule.slot].traffic.heal()
            schedule.beside(world)
            if schedule.slot in world.running:
                world.go_on(schedule.slot)
            schedule.after(world)
        finally:
            world.close()


# --- what happens in one ---


def append(slot: int, scope: str = TENANT, table: str = EVENTS) -> Callable[[World], object]:
    return lambda world: world.do(slot, an_append(scope, table)(world))


def an_append(scope: str = TENANT, table: str = EVENTS) -> Callable[[World], Append]:
    def make(world: World) -> Append:
        place = world.place(table, scope)
        return Append({place: Noted(place.sequence_id, place.position, scope, world.text())})

    return make


def does(slot: int, make: Callable[[], Operation]) -> Callable[[World], object]:
    return lambda world: world.do(slot, make())


def in_turn(*acts: Callable[[World], object]) -> Callable[[World], object]:
    def act(world: World) -> None:
        for each in acts:
            each(world)

    return act

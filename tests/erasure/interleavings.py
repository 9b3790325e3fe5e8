"""What is played against a shred, and in how many orders."""

from __future__ import annotations

import random
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeAlias
from unittest.mock import patch

from tests.erasure.scheduling import Choice, Schedule, explore, scheduled_primitives, step
from tests.erasure.scopes_under_fire import INTERVAL, World, place_of, stepping

from eventseal.errors import KmsUnavailableError
from eventseal.keys import KeyPurpose
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Actors: TypeAlias = "dict[str, Callable[[], object]]"

AFTER_TTL = 1_000.0


def _a_load() -> tuple[World, Actors]:
    world = World()
    one, other = world.process(), world.process()
    return world, {
        "load": lambda: one.load(world.key_ids),
        "refresh": lambda: (one.refresh(), one.load(world.key_ids)),
        "shred": other.shred,
    }


def _loads_that_share_a_flight() -> tuple[World, Actors]:
    world = World()
    one, other = world.process(), world.process()
    return world, {
        "first page": lambda: one.read([place_of(0), place_of(1)]),
        "second page": lambda: one.read([place_of(1), place_of(0)]),
        "refresh": lambda: (one.refresh(), one.read([place_of(1)])),
        "shred": other.shred,
    }


def _a_load_in_the_process_that_shreds() -> tuple[World, Actors]:
    world = World()
    one = world.process()
    return world, {
        "load": lambda: one.load(world.key_ids),
        "seal": one.seal,
        "shred": lambda: (one.shred(), one.load(world.key_ids), one.seal()),
    }


def _a_load_while_time_goes_by() -> tuple[World, Actors]:
    world = World()
    one, other = world.process(), world.process()
    one.load(world.key_ids)

    def time() -> None:
        for _ in range(4):
            world.clock.advance(INTERVAL / 2)
            step()

    return world, {
        "load": lambda: (one.load(world.key_ids), one.seal(), one.load(world.key_ids)),
        "shred": other.shred,
        "time": time,
    }


def _a_slow_refresh() -> tuple[World, Actors]:
    world = World()
    one, two, other = world.process(), world.process(), world.process()
    one.load(world.key_ids)
    two.seal()
    world.clock.advance(INTERVAL + 1)
    return world, {
        "load": lambda: one.load(world.key_ids),
        "seal": two.seal,  # in another process: a tombstone in the slot has this one look at once
        "shred": lambda: (other.shred(), world.clock.advance(INTERVAL - 10)),
    }


def _a_load_after_the_ttl() -> tuple[World, Actors]:
    world = World()
    one, other = world.process(), world.process()
    one.load(world.key_ids)
    one.seal()
    world.clock.advance(AFTER_TTL)
    return world, {
        "load": lambda: one.load(world.key_ids),
        "seal": one.seal,
        "refresh": lambda: (one.refresh(), one.load(world.key_ids)),
        "shred": other.shred,
    }


def _a_cold_load() -> tuple[World, Actors]:
    world = World()
    one, other = world.process(cold=True), world.process()
    return world, {
        "load": lambda: one.load(world.key_ids),
        "seal": one.seal,
        "shred": other.shred,
    }


def _a_load_in_an_outage() -> tuple[World, Actors]:
    world = World()
    world.fair = (KmsUnavailableError,)  # where the key was forgotten while the KMS was asked
    one, other = world.process(), world.process()
    one.load(world.key_ids)
    world.clock.advance(AFTER_TTL)
    world.kms.fail_always()
    return world, {
        "load": lambda: (one.load(world.key_ids), one.load(world.key_ids)),
        "refresh": one.refresh,
        "shred": other.shred,
    }


def _a_rotation() -> tuple[World, Actors]:
    world = World()
    one, other = world.process(), world.process()
    return world, {
        "rotate": one.rotate,
        "load": lambda: one.load(world.key_ids),
        "shred": other.shred,
    }


def _two_rotations() -> tuple[World, Actors]:
    world = World(keys=1)
    one, two, other = world.process(), world.process(), world.process()
    return world, {
        "rotate": one.rotate,
        "compromise": lambda: two.compromise(world.key_ids),
        "shred": other.shred,
    }


def _first_uses_of_the_fields_key() -> tuple[World, Actors]:
    world = World()
    one, two, other = world.process(), world.process(), world.process()
    return world, {
        "first": lambda: one.seal(purpose=KeyPurpose.FIELD),
        "second": lambda: two.seal(purpose=KeyPurpose.FIELD),
        "shred": other.shred,
    }


def _first_uses_of_the_items_key() -> tuple[World, Actors]:
    world = World(keys=0)
    one, two, other = world.process(), world.process(), world.process()
    one.seal(purpose=KeyPurpose.FIELD)  # so that there is something to be shredded
    return world, {
        "first": lambda: one.append(0),
        "second": two.seal,
        "shred": other.shred,
    }


def _a_stale_append() -> tuple[World, Actors]:
    world = World()
    one, other = world.process(), world.process()
    one.seal()
    return world, {
        "append": lambda: one.append(2),
        "again": lambda: one.append(3),
        "shred": other.shred,
    }


def _a_snapshot_of_what_is_in_memory() -> tuple[World, Actors]:
    world = World()
    one, two, other = world.process(), world.process(), world.process()
    return world, {
        "snapshot": lambda: one.snapshot(2),
        "rotate": two.rotate,
        "shred": other.shred,
    }


def _a_reencryption() -> tuple[World, Actors]:
    world = World()
    one, two, other = world.process(), world.process(), world.process()
    return world, {
        "reencrypt": lambda: one.reencrypt([0]),
        "read": lambda: two.read([place_of(0), place_of(1)]),
        "shred": other.shred,
    }


def _a_reencryption_and_a_retirement() -> tuple[World, Actors]:
    world = World()
    world.endings.add("retired")
    one, two, other = world.process(), world.process(), world.process()
    one.reencrypt([0])
    world.items.close_fences(world.key_ids[:1])
    return world, {
        "retire": lambda: one.retire(world.key_ids[:1]),
        "load": lambda: two.load(world.key_ids),
        "shred": other.shred,
    }


def _a_rewrap() -> tuple[World, Actors]:
    world = World()
    second = FakeKms("second")
    one, other = world.process(kms=[world.kms, second]), world.process()
    return world, {
        "rewrap": one.rewrap,
        "load": lambda: one.load(world.key_ids),
        "shred": other.shred,
    }


def _under_branch_keys() -> tuple[World, Actors]:
    world = World(branches=1)
    one, two, other = world.process(), world.process(), world.process()
    return world, {
        "load": lambda: one.load(world.key_ids),
        "branches": lambda: (two.keyring.rotate_branches(), two.keyring.wrappings.rewrap_under_branches()),
        "rotate": two.rotate,
        "shred": other.shred,
    }


def _two_shreds() -> tuple[World, Actors]:
    world = World()
    one, two, three = world.process(), world.process(), world.process()
    return world, {"shred": one.shred, "shred too": two.shred, "load": lambda: three.load(world.key_ids)}


def _everybody() -> tuple[World, Actors]:
    world = World()
    one, two, other = world.process(), world.process(), world.process()
    one.seal()

    def time() -> None:
        for _ in range(3):
            world.clock.advance(INTERVAL / 2)
            step()

    return world, {
        "load": lambda: (one.load(world.key_ids), one.read([place_of(0), place_of(1)])),
        "append": lambda: one.append(2),
        "fields": lambda: two.seal(purpose=KeyPurpose.FIELD),
        "reencrypt": lambda: two.reencrypt([0]),
        "rotate": two.rotate,
        "shred": other.shred,
        "time": time,
    }


SCENARIOS: dict[str, Callable[[], tuple[World, Actors]]] = {
    "a load": _a_load,
    "loads that share a flight": _loads_that_share_a_flight,
    "a load in the process that shreds": _a_load_in_the_process_that_shreds,
    "a load while time goes by": _a_load_while_time_goes_by,
    "a slow refresh": _a_slow_refresh,
    "a load after the TTL": _a_load_after_the_ttl,
    "a cold load": _a_cold_load,
    "a load in an outage": _a_load_in_an_outage,
    "a rotation": _a_rotation,
    "two rotations": _two_rotations,
    "first uses of the fields' key": _first_uses_of_the_fields_key,
    "first uses of the items' key": _first_uses_of_the_items_key,
    "a stale append": _a_stale_append,
    "a snapshot of what is in memory": _a_snapshot_of_what_is_in_memory,
    "a re-encryption": _a_reencryption,
    "a re-encryption and a retirement": _a_reencryption_and_a_retirement,
    "a rewrap": _a_rewrap,
    "under branch keys": _under_branch_keys,
    "two shreds": _two_shreds,
    "everybody": _everybody,
}


def play(name: str, choices: Sequence[int]) -> list[Choice]:
    """
    Play one order of a scenario, and see what is left.

    Raises:
        AssertionError: Something came back, or an actor got what nobody may get.
    """
    # The same keys and ids each time: where they lie in the revocation tree decides what must be read of it.
    ticks = SimpleNamespace(time_ns=count(10**18, 10**6).__next__)
    with (
        patch("os.urandom", random.Random(1).randbytes),
        patch("eventseal.keys.records.time", ticks),  # the store key's id is in the names of scopes
    ):
        world, actors = SCENARIOS[name]()
        schedule = Schedule(actors, choices)
        try:
            schedule.run()
            world.kms.recover()
            world.check()
        except BaseException as error:
            taken = tuple(choice.chosen for choice in schedule.history)
            error.add_note(f"{name}: play({name!r}, {taken})")
            raise
    return schedule.history


def play_many(name: str, orders: int, *, seed: int = 1) -> int:
    """Play up to *orders* of a scenario; gives how many there were, no two of them alike."""
    with scheduled_primitives(), stepping():
        return explore(lambda choices: play(name, choices), count=orders, seed=seed)

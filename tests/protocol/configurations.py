"""
The set-ups that are explored: one large one would be out of reach, so each has what may meet in it.

Every set-up is finite and explored to its end. An actor's number is its place in the tuple.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol.ending import Marker, Reopener, Retirer, Rotator, Shredder
from tests.protocol.memory import Refreshes
from tests.protocol.reading import Reader
from tests.protocol.reencrypting import Reencrypter
from tests.protocol.state import Budget
from tests.protocol.world import Crashes, Time, World
from tests.protocol.wrapping_actors import BranchRotator, KekRemover, KeyDestroyer, Maker, Rewrapper, Verifier
from tests.protocol.wrappings import WrappingWorld
from tests.protocol.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.checker import Model

ONE, TWO = ((0, 0),), ((0, 0), (0, 0))
"""Places of items: in scope 0 and database 0."""


def _rotation(*, rotations: int, sqlite: bool = False, crashes: int = 0, name: str) -> World:
    return World(
        name=name,
        actors=(
            Writer("writer a", 0, process=0, rotates=True),
            Refreshes(0, 0),
            Writer("writer b", 1, process=1),
            Refreshes(1, 2),
            Rotator("rotator"),
            Retirer("retirer"),
            Reencrypter("rotator's job"),
            Crashes("process of writer a", 0, process=0),
            Crashes("process of the retirer", 5),
            Crashes("process of the job", 6),
        ),
        places=TWO,
        processes=2,
        sqlite=sqlite,
        budget=Budget(rotations=rotations, crashes=crashes),
    )


def rotation_on_postgresql() -> World:
    """Two processes append while keys are rotated, re-encrypted and retired; one process is killed."""
    return _rotation(name="rotation on PostgreSQL", rotations=1, crashes=1)


def rotation_on_sqlite() -> World:
    """The same where one transaction writes at a time, keys and items in one file."""
    return _rotation(name="rotation on SQLite", rotations=1, crashes=1, sqlite=True)


def two_rotations() -> World:
    """A key is rotated, and its successor too, while its items are on their way there."""
    return World(
        name="two rotations",
        actors=(
            Writer("writer", 0),
            Writer("snapshots", 1, 1),
            Rotator("rotator"),
            Retirer("retirer"),
            Reencrypter("job"),
            Crashes("process of the retirer", 3),
            Crashes("process of the job", 4),
        ),
        places=TWO,
        budget=Budget(rotations=2, crashes=1),
    )


def two_rotators() -> World:
    """Two jobs and two retirers meet each other."""
    return World(
        name="two rotators",
        actors=(
            Writer("snapshots", 0, 0),
            Rotator("rotator a"),
            Rotator("rotator b"),
            Retirer("retirer a"),
            Retirer("retirer b"),
            Reencrypter("job a"),
            Reencrypter("job b"),
        ),
        places=ONE,
        budget=Budget(rotations=2),
    )


def old_snapshots() -> World:
    """Callers' transactions in REPEATABLE READ began before the key that seals was made, or was closed."""
    return World(
        name="old snapshots",
        actors=(
            Writer("writer a", 0, old_snapshot=True),
            Writer("writer b", 1, old_snapshot=True),
            Rotator("rotator"),
            Retirer("retirer"),
            Reencrypter("job"),
            Crashes("process of the retirer", 3),
        ),
        places=TWO,
        budget=Budget(rotations=2, crashes=1),
    )


def one_old_snapshot() -> World:
    """The same with one such transaction."""
    return World(
        name="one old snapshot",
        actors=(
            Writer("writer", 0, old_snapshot=True),
            Rotator("rotator"),
            Retirer("retirer"),
            Reencrypter("job"),
        ),
        places=ONE,
        budget=Budget(rotations=2),
    )


def small_sqlite() -> World:
    """One process appends to a SQLite file while its keys are rotated, re-encrypted and retired."""
    return World(
        name="small SQLite",
        actors=(
            Writer("writer", 0, 0, process=0, rotates=True),
            Refreshes(0, 0),
            Rotator("rotator"),
            Retirer("retirer"),
            Reencrypter("job"),
        ),
        places=ONE,
        processes=1,
        sqlite=True,
        budget=Budget(rotations=1),
    )


def two_databases() -> World:
    """Items in two databases, keys in a third: fences close one by one, keys are checked by a query."""
    return World(
        name="two databases",
        actors=(
            Writer("writer a", 0),
            Writer("writer b", 1),
            Rotator("rotator"),
            Retirer("retirer"),
            Reencrypter("job"),
            Shredder("shredder"),
            Reopener("reopener"),
            Crashes("process of the retirer", 3),
        ),
        places=((0, 0), (0, 1)),
        databases=2,
        keys_apart=True,
        budget=Budget(rotations=1, shreds=1, reopens=1, crashes=1),
    )


def shred() -> World:
    """A scope is shredded and reopened while a process appends and reads with its memory, and rotates."""
    return World(
        name="shred",
        actors=(
            Writer("writer", 0, 1, process=0, rotates=True),
            Reader("reader", 0, process=0),
            Refreshes(0, 0, 1),
            Rotator("rotator"),
            Shredder("shredder"),
            Reopener("reopener"),
            Time(),
        ),
        places=TWO,
        processes=1,
        retires=False,
        budget=Budget(rotations=1, shreds=1, reopens=1),
    )


def small_shred() -> World:
    """The same with one append, and no rotation."""
    return World(
        name="small shred",
        actors=(
            Writer("writer", 0, process=0),
            Reader("reader", 0, process=0),
            Refreshes(0, 0, 1),
            Shredder("shredder"),
            Reopener("reopener"),
            Time(),
        ),
        places=ONE,
        processes=1,
        retires=False,
        budget=Budget(shreds=1, reopens=1),
    )


def shred_with_two_processes() -> World:
    """Another process makes and loads keys while the scope is shredded and reopened."""
    return World(
        name="shred, two processes",
        actors=(
            Writer("writer a", 0, process=0),
            Refreshes(0, 0),
            Writer("writer b", 1, process=1),
            Reader("reader", 0, process=1),
            Refreshes(1, 2, 3),
            Shredder("shredder"),
            Reopener("reopener"),
            Time(),
        ),
        places=TWO,
        processes=2,
        retires=False,
        budget=Budget(shreds=1, reopens=1),
    )


def shred_and_reencryption() -> World:
    """A shred meets re-encryption, rotation and retire; keys beside the items."""
    return World(
        name="shred and re-encryption",
        actors=(
            Writer("writer", 0, 0),
            Writer("late writer", 1),
            Rotator("rotator"),
            Retirer("retirer"),
            Reencrypter("job"),
            Shredder("shredder"),
            Reopener("reopener"),
        ),
        places=TWO,
        budget=Budget(rotations=1, shreds=1, reopens=1),
    )


def two_scopes() -> World:
    """One scope is shredded; the other is rotated, and must not notice."""
    return World(
        name="two scopes",
        actors=(
            Writer("writer a", 0, process=0),
            Writer("writer b", 1, process=0),
            Reader("reader", 0, 1, process=0),
            Refreshes(0, 0, 1, 2),
            Rotator("rotator", 1),
            Shredder("shredder", 0),
            Time(),
        ),
        places=((0, 0), (1, 0)),
        scopes=2,
        processes=1,
        retires=False,
        budget=Budget(rotations=1, shreds=1),
    )


def compromised() -> World:
    """A key is marked compromised, with its high-water marks, and its items leave it."""
    return World(
        name="compromised",
        actors=(
            Writer("writer a", 0),
            Writer("writer b", 1),
            Rotator("rotator"),
            Rotator("emergency"),
            Marker("marker"),
            Reencrypter("job"),
            Retirer("retirer"),
        ),
        places=TWO,
        budget=Budget(rotations=1, compromises=1),
    )


def compromised_once() -> World:
    """The same with one item."""
    return World(
        name="compromised once",
        actors=(
            Writer("writer", 0),
            Rotator("rotator"),
            Rotator("emergency"),
            Marker("marker"),
            Reencrypter("job"),
            Retirer("retirer"),
        ),
        places=ONE,
        budget=Budget(rotations=1, compromises=1),
    )


def rewraps() -> WrappingWorld:
    """A key moves from one KEK to another, inside the KMS and by unwrapping, and the old KEK is deleted."""
    return WrappingWorld(
        name="rewrap",
        actors=(
            Rewrapper("rewrap inside", "B", inside=True),
            Rewrapper("rewrap", "B"),
            Verifier("reader"),
            KekRemover("operator", "A"),
            Maker("writer", "A", "B"),
            KeyDestroyer("retirer"),
        ),
        garbled=1,
        new_keys=1,
    )


def many_rewraps() -> WrappingWorld:
    """The same with two keys."""
    return WrappingWorld(
        name="rewrap of two keys",
        actors=rewraps().actors,
        first=(("A",), ("A",)),
        garbled=1,
        new_keys=1,
    )


def opposite_rewraps() -> WrappingWorld:
    """Two rewraps want opposite ends: neither may drop what the other has just made the only one."""
    return WrappingWorld(
        name="opposite rewraps",
        actors=(Rewrapper("to b", "B"), Rewrapper("to a", "A"), Verifier("reader")),
        first=(("A",), ("A", "B")),
    )


def branch_keys() -> WrappingWorld:
    """A branch key is rotated and retired while data keys are made under it, from any memory."""
    return WrappingWorld(
        name="branch keys",
        actors=(
            Rewrapper("rewrap", "branch 1"),
            Maker("writer a"),
            Maker("writer b"),
            BranchRotator("operator"),
            Verifier("reader"),
        ),
        first=(("branch 0",),),
        target="branch 1",
        new_keys=2,
        branches=True,
    )


SHORT: tuple[Callable[[], Model], ...] = (
    two_rotations,
    one_old_snapshot,
    small_sqlite,
    small_shred,
    shred_and_reencryption,
    compromised_once,
    opposite_rewraps,
    branch_keys,
    rewraps,
)
"""About 200,000 states: for every run of the tests."""

LONG: tuple[Callable[[], Model], ...] = (
    rotation_on_postgresql,
    rotation_on_sqlite,
    two_rotators,
    old_snapshots,
    two_databases,
    shred,
    shred_with_two_processes,
    two_scopes,
    compromised,
    many_rewraps,
)
"""Millions of states."""

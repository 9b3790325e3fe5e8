"""The set-ups of the roll of the epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol.epoch_actors import (
    BranchOperator,
    DataShredder,
    DateEditor,
    KeyBackups,
    LazyMaker,
    Roller,
)
from tests.protocol.epochs import BRANCH, KEK, EpochBudget, EpochWorld, Home, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.checker import Model


def _rolled(name: str, budget: EpochBudget) -> EpochWorld:
    return EpochWorld(
        name=name,
        actors=(
            Roller("roller"),
            LazyMaker("writer", BRANCH),
            LazyMaker("process", KEK),
            DataShredder("shredder"),
            KeyBackups("operator"),
        ),
        budget=budget,
    )


def roll() -> EpochWorld:
    """A key is made, one is shredded, and a backup is taken, at any moment of a roll."""
    return _rolled("roll", EpochBudget(new_keys=1, shreds=1, backups=1))


def interrupted_roll() -> EpochWorld:
    """The roll is killed, too, and another run takes it up."""
    return _rolled("interrupted roll", EpochBudget(shreds=1, backups=1, crashes=1))


def long_roll() -> EpochWorld:
    """More of all that."""
    return _rolled("long roll", EpochBudget(new_keys=2, shreds=1, backups=1, crashes=1))


def _rotated(name: str, budget: EpochBudget) -> EpochWorld:
    return EpochWorld(
        name=name,
        actors=(
            Roller("roller"),
            BranchOperator("operator of branch keys"),
            LazyMaker("writer", BRANCH),
            DataShredder("shredder"),
            KeyBackups("operator"),
        ),
        budget=budget,
    )


def roll_beside_a_rotation() -> EpochWorld:
    """The branch key is rotated beside the roll."""
    return _rotated("roll beside a rotation", EpochBudget(rotations=1, new_keys=1))


def long_roll_beside_a_rotation() -> EpochWorld:
    """The same with a shred, a backup and a crash."""
    budget = EpochBudget(rotations=1, new_keys=1, shreds=1, backups=1, crashes=1)
    return _rotated("long roll beside a rotation", budget)


def two_backups() -> EpochWorld:
    """What one backup holds may be opened with what another one does."""
    return _rolled("two backups", EpochBudget(backups=2, crashes=1))


def two_backups_of_new_keys() -> EpochWorld:
    """The same while a key is made."""
    return _rolled("two backups of new keys", EpochBudget(new_keys=1, backups=2, crashes=1))


def _two_rolls(name: str, budget: EpochBudget, first: tuple[Row, ...]) -> EpochWorld:
    return EpochWorld(
        name=name,
        actors=(
            Roller("roller"),
            Roller("other roller", joins=True),
            LazyMaker("process", KEK),
            DataShredder("shredder"),
            KeyBackups("operator"),
        ),
        budget=budget,
        first=first,
    )


def meeting_rolls() -> EpochWorld:
    """Two runs meet, and the second may have begun anew; only the KEK has wrapped keys."""
    return _two_rolls("meeting rolls", EpochBudget(new_keys=1, shreds=1, backups=1), ())


def meeting_rolls_with_branches() -> EpochWorld:
    """The same with a branch, which has wrapped the key that is shredded."""
    first = (Row(True, (Home(KEK, 1),)), Row(False, (Home(BRANCH, 0),)))
    return _two_rolls("meeting rolls with branches", EpochBudget(shreds=1, backups=1), first)


def edited_dates() -> EpochWorld:
    """Somebody sets ``created_at`` of a branch key; the roll is killed, too, and another run takes it up."""
    return EpochWorld(
        name="edited dates",
        actors=(
            Roller("roller"),
            DataShredder("shredder"),
            KeyBackups("operator"),
            DateEditor("attacker"),
        ),
        budget=EpochBudget(shreds=1, backups=1, crashes=1, dates=1),
    )


SHORT: tuple[Callable[[], Model], ...] = (
    roll,
    interrupted_roll,
    roll_beside_a_rotation,
    two_backups,
    meeting_rolls,
    edited_dates,
)
"""For every run of the tests."""

LONG: tuple[Callable[[], Model], ...] = (
    long_roll,
    long_roll_beside_a_rotation,
    two_backups_of_new_keys,
    meeting_rolls_with_branches,
)
"""Millions of states."""

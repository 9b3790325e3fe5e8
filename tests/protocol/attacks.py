"""The set-ups in which somebody edits the database."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.attack_actors import (
    ItemMover,
    Process,
    TreeReopener,
    TreeRetirer,
    TreeRotator,
    TreeShredder,
)
from tests.protocol.attacked import AttackBudget, AttackedWorld, Item, Mark, Row, Tables
from tests.protocol.edits import Attacker, Repair
from tests.protocol.state import COMPROMISED, DEACTIVATED, RETIRED, SHREDDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.checker import Model

_ON_KEYS = (steps.PUT_ROW_BACK, steps.PUT_LEAF_BACK, steps.DELETE_LEAF)


def _old_rows(name: str, budget: AttackBudget) -> AttackedWorld:
    return AttackedWorld(
        name=name,
        actors=(
            Process(0),
            TreeRetirer(),
            Attacker(*_ON_KEYS, steps.PUT_TABLES_BACK),
            Repair(),
        ),
        budget=budget,
        rows=(Row(COMPROMISED, slot=False, version=1), Row()),
        tree=(COMPROMISED, "", ()),
        items=(None,),
        places=(0,),
    )


def old_rows() -> AttackedWorld:
    """A compromised key is retired, and its row, its leaf or all key tables are put back."""
    return _old_rows("old rows", AttackBudget(restarts=1))


def upgraded() -> AttackedWorld:
    """The same after an upgrade: the mark of before does not say that the key was retired."""
    before = Mark(0, ("", "", "", ()), ended=1, revoked=1, old=True)
    return AttackedWorld(
        name="upgraded",
        actors=(
            Process(0),
            TreeRotator(),
            ItemMover(),
            TreeRetirer(),
            Attacker(*_ON_KEYS, steps.PUT_OLD_MARK_BACK),
            Repair(),
        ),
        budget=AttackBudget(copies=0, restarts=1, rotations=1),
        rows=(Row(RETIRED, slot=False, version=2), Row()),
        tree=(RETIRED, "", "", ()),
        items=(None,),
        places=(0,),
        old_mark=before,
        copy=Tables((Row(DEACTIVATED, slot=False, version=1), Row()), ("", "", "", ()), before),
    )


def _closed(name: str, budget: AttackBudget) -> AttackedWorld:
    return AttackedWorld(
        name=name,
        actors=(
            Process(0),
            TreeShredder(),
            TreeReopener(),
            Attacker(*_ON_KEYS, steps.FREE_TOMBSTONE, steps.GIVE_SLOT),
            Repair(),
        ),
        budget=budget,
        rows=(Row(SHREDDED, slot=False, version=2),),
        tree=(SHREDDED, "", "", (False, 2)),
        items=(None,),
        places=(0,),
    )


def closed_scope() -> AttackedWorld:
    """A scope that was reopened is shredded again, while a key is made in it and rows are put back."""
    return _closed("closed scope", AttackBudget(shreds=1, restarts=1))


def shredded_again() -> AttackedWorld:
    """A scope is closed, its slot is freed, rows are put back, and it is shredded once more."""
    return replace(
        _closed("shredded again", AttackBudget(shreds=1, restarts=1)),
        rows=(Row(SHREDDED, version=1),),
        tree=(SHREDDED, "", "", (True, 1)),
        copy=Tables((Row(),), ("", "", "", ()), Mark(0, ("", "", "", ()))),
    )


def closed_and_reopened() -> AttackedWorld:
    """A scope is shredded twice, and reopened between."""
    return _closed("closed and reopened", AttackBudget(attacks=2, shreds=2, reopens=1, restarts=1))


def reopened_scope() -> AttackedWorld:
    """A scope is reopened, and junk that names its old key is written over old items and new ones."""
    return AttackedWorld(
        name="reopened scope",
        actors=(
            Process(1),
            TreeReopener(),
            Attacker(steps.WRITE_JUNK, *_ON_KEYS, steps.FREE_TOMBSTONE),
            Repair(),
        ),
        budget=AttackBudget(reopens=1),
        rows=(Row(SHREDDED, version=1),),
        tree=(SHREDDED, "", (True, 1)),
        items=(Item(0, 0), None),
        places=(0, 0),
    )


def counted() -> AttackedWorld:
    """Keys are retired while columns and the registry of two tables are edited."""
    return AttackedWorld(
        name="counted",
        actors=(
            TreeRotator(),
            ItemMover(),
            TreeRetirer(),
            Attacker(steps.SET_COLUMN, steps.EDIT_REGISTRY),
            Repair(),
        ),
        budget=AttackBudget(copies=0, rotations=1),
        rows=(Row(DEACTIVATED, slot=False, version=1), Row()),
        tree=("", "", "", ()),
        items=(Item(0, 0), Item(1, 1)),
        places=(0, 1),
    )


SHORT: tuple[Callable[[], Model], ...] = (
    old_rows,
    upgraded,
    closed_scope,
    shredded_again,
    reopened_scope,
    counted,
)
"""For every run of the tests."""

LONG: tuple[Callable[[], Model], ...] = (closed_and_reopened,)
"""More of it."""

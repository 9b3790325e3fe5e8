"""The rules of somebody who can write to the database: an edit, what must hold after it, and all put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from tests.lifecycle.attacker import play
from tests.lifecycle.attacks import (
    AFTER_ALL,
    AHEAD,
    LONG_AGO,
    BringBack,
    DateKey,
    FreeSlots,
    HideTable,
    JunkOverItem,
    MisleadColumn,
)
from tests.lifecycle.choices import SCOPES, slots
from tests.lifecycle.client import TABLES
from tests.lifecycle.erasing import RollBesideDatedKeys, RollOverEditedRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lifecycle.attacker import Scene
    from tests.lifecycle.operations import Operation
    from tests.lifecycle.world import World

scopes = st.sampled_from(SCOPES[1:])  # that can be shredded
ends = st.sampled_from(("retired", "compromised", "shredded"))
nodes = st.sampled_from(("older", "deleted"))
attacks = st.one_of(
    st.builds(BringBack, scopes, ends),
    st.builds(BringBack, scopes, ends, st.booleans(), nodes, st.integers(1, 2)),
    st.builds(FreeSlots, scopes),
    st.builds(HideTable, scopes, st.sampled_from(sorted(TABLES)), st.booleans()),
    st.builds(MisleadColumn, scopes, st.booleans()),
    st.builds(JunkOverItem, scopes),
    st.builds(DateKey, st.integers(0, 20), st.sampled_from((LONG_AGO, AHEAD, AFTER_ALL))),
)


class AttackRules:
    """A part of the machine; what it needs of the rest stands here without a body."""

    if TYPE_CHECKING:
        world: World

        def _do(self, slot: int, operation: Operation, faults: Any, retry: bool) -> None: ...
        def _count(self, what: str) -> None: ...

    @precondition(lambda self: not self.world.running and not self.world.terms.in_memory)
    @rule(slot=slots, attack=attacks)
    def attack(self, slot: int, attack: Callable[[Scene], None]) -> None:
        self._count(type(attack).__name__)
        play(self.world, slot, attack)

    @precondition(lambda self: not self.world.running and self.world.attacker.epoch_rows)
    @rule(slot=slots, number=st.integers(0, 5), forged=st.booleans())
    def roll_over_an_edited_row(self, slot: int, number: int, forged: bool) -> None:
        self.world.clients[slot].traffic.heal()
        self._do(slot, RollOverEditedRow(number, forged), (), retry=False)

    @precondition(lambda self: not self.world.running and self.world.can_roll)
    @rule(slot=slots)
    def roll_beside_dated_keys(self, slot: int) -> None:
        self.world.clients[slot].traffic.heal()
        self._do(slot, RollBesideDatedKeys(), (), retry=False)

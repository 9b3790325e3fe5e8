"""The rules of what erases, and of the backups that would bring it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from tests.lifecycle.choices import SCOPES, several, slots
from tests.lifecycle.erasing import AfterRestore, Reopen, RollEpoch, Shred

if TYPE_CHECKING:
    from tests.lifecycle.maintenance import SealOnly
    from tests.lifecycle.operations import Operation
    from tests.lifecycle.traffic import Fault
    from tests.lifecycle.world import World


class ErasingRules:
    """A part of the machine; what it needs of the rest stands here without a body."""

    if TYPE_CHECKING:
        world: World
        sealed: list[SealOnly]

        def _do(self, slot: int, operation: Operation, faults: Any, retry: bool) -> None: ...
        def _placed(self, operation: Operation, faults: Any) -> list[Fault]: ...
        def _count(self, what: str) -> None: ...

    @rule(slot=slots, scope=st.sampled_from(SCOPES[1:]), faults=several, retry=st.booleans())
    def shred(self, slot: int, scope: str, faults: Any, retry: bool) -> None:
        self._do(slot, Shred(scope), faults, retry)

    @rule(slot=slots, scope=st.sampled_from(SCOPES[1:]), faults=several, retry=st.booleans())
    def reopen(self, slot: int, scope: str, faults: Any, retry: bool) -> None:
        self._do(slot, Reopen(scope), faults, retry)

    @precondition(lambda self: not self.world.running and not self.world.terms.in_memory)
    @rule()
    def back_up(self) -> None:
        self._count("back up")
        self.world.backups.take()

    @precondition(lambda self: not self.world.running and self.world.backups)
    @rule(
        slot=slots,
        number=st.integers(0, 5),
        scope=st.sampled_from((None, *SCOPES[1:])),
        shred_faults=several,
        faults=several,
    )
    def restore(self, slot: int, number: int, scope: str | None, shred_faults: Any, faults: Any) -> None:
        """Restore a backup, often with an erasure right before it."""
        if scope is not None:
            self._do(slot, Shred(scope), shred_faults, retry=False)
        backups = self.world.backups.whole()
        self._count("restore" if backups else "no backup opens")
        if backups:
            self.sealed.clear()
            where = self._placed(AfterRestore(), faults)
            self.world.backups.restore(backups[number % len(backups)], slot, *where)

    @precondition(lambda self: self.world.can_roll)
    @rule(slot=slots, backed_up=st.booleans(), faults=several, retry=st.booleans())
    def roll_epoch(self, slot: int, backed_up: bool, faults: Any, retry: bool) -> None:
        if backed_up and not self.world.running:
            self.back_up()
        self._do(slot, RollEpoch(), faults, retry)

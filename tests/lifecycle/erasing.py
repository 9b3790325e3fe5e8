"""What erases: shreds and reopenings by the ledger, the check after a restore, and the roll of the epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.lifecycle.audit import DATA, DESTROYED
from tests.lifecycle.model import Violation
from tests.lifecycle.operations import Operation

from eventseal.erasure import after_restore, reopen, roll_epoch, shred
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    JobError,
    KmsKeyStateError,
)
from eventseal.storage.keys.tables import encryption_keys, epochs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from tests.lifecycle.attacker import Row
    from tests.lifecycle.client import Client
    from tests.lifecycle.ledgers import Told
    from tests.lifecycle.model import KeyLife, Model
    from tests.lifecycle.world import Outcome, World


@dataclass
class Shred(Operation):
    """Destroy a scope's keys, and close it; the ledger is told before and after."""

    scope: str
    _old: frozenset[UUID] = frozenset()

    def begin(self, world: World) -> None:
        self._old = frozenset(
            key_id
            for key_id, life in world.model.keys.items()
            if life.row.scope == self.scope and life.row.purpose == DATA and life.row.state != DESTROYED
        )
        world.model.may_shred.add(self.scope)

    def run(self, client: Client) -> Any:
        return shred(client, self.scope)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return isinstance(error, ConfigurationError) and "never had a key" in str(error) and not self._old

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is None:
            return
        for key_id in self._old:
            row = world.model.keys[key_id].row
            if row.state != DESTROYED:
                raise Violation(f"{self} left {row}")
            client.shredded[key_id] = outcome.began.step
            fence = world.model.found.fences.get(key_id)
            if outcome.value.complete and row.destroyed_by == "shredded" and fence != "closed":
                raise Violation(f"{self} says that it is complete, and the fence of {key_id} is {fence}")
        if outcome.is_clean and not outcome.value.complete:
            raise Violation(f"{self} is not complete: {outcome.value}")
        if not world.model.was_closed(self.scope, after=outcome.began.time):
            raise Violation(f"{self} did not close the scope")
        if outcome.value.complete:
            self._judge_receipt(world, outcome)

    def _judge_receipt(self, world: World, outcome: Outcome) -> None:
        receipt = outcome.value.receipt
        world.told.look()
        if receipt is None or not set(receipt.keys) >= self._old:
            raise Violation(f"{self} gave the receipt {receipt} for {self._old}")
        done = world.told.entries[receipt.done_entry - 1]
        if (done.kind, done.mac.hex()) != ("done", receipt.done_mac):
            raise Violation(f"{self} gave {receipt}, and the ledger says {done}")
        if not outcome.contended and self.scope in world.told.open_scopes():
            raise Violation(f"{self} is done, and the ledger says that it is begun only")


@dataclass
class Reopen(Operation):
    """Let a scope have keys again."""

    scope: str

    def run(self, client: Client) -> Any:
        return reopen(client, self.scope)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        if isinstance(error, JobError):
            world.told.look()
            return outcome.contended or self.scope in world.told.open_scopes()
        return isinstance(error, ConfigurationError) and "never had a key" in str(error)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is None or not outcome.is_clean:
            return
        if world.model.is_closed(self.scope):
            raise Violation(f"{self} left the scope closed")
        world.told.look()
        if outcome.value.done and self.scope not in world.told.reopened_scopes():
            raise Violation(f"{self} did not tell the ledger")


@dataclass
class AfterRestore(Operation):
    """
    Shred again what a restored backup brought back, before anybody else begins.

    Attributes:
        gone: Keys that are to be destroyed: they were, or the ledger says so.
        begun: Scopes whose shred was begun and not done: all of their keys are to be destroyed.
        closed: Scopes that are to be closed.
        open: Scopes that nobody may close.
        states: The keys of the backup, with their states in it.
    """

    gone: set[UUID] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    states: Mapping[UUID, str] = field(default_factory=dict)

    @classmethod
    def expected(cls, before: Model, restored: Model, told: Told) -> AfterRestore:
        """
        Say what is to come out.

        Args:
            before: What was true before the restore.
            restored: What the backup has.
            told: What the ledger says.
        """
        shredded = {key_id for key_id, life in before.keys.items() if life.shredded is not None}
        return cls(
            gone=told.named() | shredded,
            begun=told.open_scopes(),
            closed=told.closed_scopes(),
            open={scope for scope in told.reopened_scopes() if not restored.is_closed(scope)},
            states={key_id: life.row.state for key_id, life in restored.keys.items()},
        )

    def begin(self, world: World) -> None:
        world.model.may_shred |= self.begun

    def run(self, client: Client) -> Any:
        return after_restore(client)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return isinstance(error, ConfigurationError) and not world.told.entries  # nothing was ever erased

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is None:
            return
        if not outcome.value.complete:
            if outcome.is_clean:
                raise Violation(f"after a restore it gave {outcome.value}")
            return
        world.told.look()
        if world.told.open_scopes():
            raise Violation(f"the shreds of {world.told.open_scopes()} were not carried through")
        for life in world.model.keys.values():
            self._judge_key(life)
        if wrong := {scope for scope in self.closed if not world.model.is_closed(scope)}:
            raise Violation(f"the scopes {wrong} were closed, and are open after the restore")
        if wrong := {scope for scope in self.open if world.model.is_closed(scope)}:
            raise Violation(f"the scopes {wrong} were open, and are closed after the restore")

    def _judge_key(self, life: KeyLife) -> None:
        row = life.row
        if row.key_id in self.gone or row.scope in self.begun:
            if row.purpose == DATA and row.state != DESTROYED:
                raise Violation(f"{row} came back by the restore, and stays")
        elif self.states.get(row.key_id, row.state) != row.state:
            raise Violation(f"{row} was {self.states[row.key_id]} in the backup, and nobody had shredded it")


@dataclass
class RollEpoch(Operation):
    """Make the backups of the key tables useless."""

    def begin(self, world: World) -> None:
        world.attacker.keep_epoch()

    def run(self, client: Client) -> Any:
        return roll_epoch(client)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        # Of two that roll at once, the one ends what the other has just made; run again, it goes on.
        return outcome.contended and isinstance(error, JobError | KmsKeyStateError)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        result = outcome.value
        if result is None:
            return
        if outcome.is_clean and not result.complete:
            raise Violation(f"{self} is not complete: {result}")
        if not result.complete:
            return
        world.told.look()
        entry = world.told.entries[result.receipt.recorded.number - 1]
        if (entry.kind, entry.mac.hex()) != ("epoch", result.receipt.recorded.mac):
            raise Violation(f"{self} gave {result.receipt}, and the ledger says {entry}")
        world.backups.cover(result.covers_before)


@dataclass
class RollOverEditedRow(RollEpoch):
    """
    Roll the epoch over an older row of ``eventseal_epochs``, or over a forged one; it is judged as any roll.

    Attributes:
        number: Which of the older rows.
        forged: Whether the newest row is edited: a later roll has made the versions that are there.
    """

    number: int = 0
    forged: bool = True
    _there: Sequence[Row] = ()
    _ended: Sequence[set[str]] = ()

    def begin(self, world: World) -> None:
        super().begin(world)
        attacker = world.attacker
        if not attacker.epoch_rows:
            return
        self._there = attacker.copied(epochs)
        self._ended = [set(kek.deleted) for kek in world.kms]
        old = attacker.epoch_rows[self.number % len(attacker.epoch_rows) :][:1]
        if self.forged:
            later = world.auditor.store.now() + timedelta(hours=1)
            versions = {kek.uri: kek.current for kek in world.kms}
            is_done = {"begun_at": later, "kek_versions": versions, "finished_at": None}
            old = [{**row, **is_done} for row in self._there]
        attacker.put(epochs, old)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return self.forged and isinstance(error, IntegrityError) and "epochs" in str(error)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        super().judge(world, client, outcome)
        if isinstance(outcome.error, IntegrityError):
            world.attacker.put(epochs, self._there)
            if self._ended != [kek.deleted for kek in world.kms]:
                raise Violation(f"{self} was refused, and ended {[kek.deleted for kek in world.kms]}")


@dataclass
class RollBesideDatedKeys(RollEpoch):
    """Roll the epoch while all keys are said to be made later; it is judged as any roll."""

    _there: Sequence[Row] = ()

    def begin(self, world: World) -> None:
        super().begin(world)
        self._there = world.attacker.copied(encryption_keys)
        world.attacker.edit(encryption_keys, {"created_at": datetime(2998, 1, 1, tzinfo=UTC)})

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        super().judge(world, client, outcome)
        for row in self._there:
            created_at = {"created_at": row["created_at"]}
            world.attacker.edit(encryption_keys, created_at, key_id=row["key_id"])

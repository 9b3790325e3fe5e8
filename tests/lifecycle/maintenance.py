"""What operators do: they rotate all, re-encrypt, rewrap, retire, verify."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete
from tests.lifecycle.audit import ACTIVE, COMPROMISED, DATA, DEACTIVATED, DESTROYED, Place
from tests.lifecycle.client import TABLES, Client, Noted
from tests.lifecycle.model import Violation
from tests.lifecycle.operations import Append, Operation

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    JobError,
    KeyClosedError,
    KeyDestroyedError,
    StoreUnavailableError,
)
from eventseal.rotation import (
    mark_compromised,
    reencrypt,
    refuse_needed_kek,
    retire,
    rewrap,
    rotate_keys,
    verify,
)

if TYPE_CHECKING:
    from uuid import UUID

    from tests.lifecycle.world import Outcome, World


MANY = 1_000
"""More items than a world has."""

# --- items that were sealed a while ago ---


@dataclass
class SealOnly(Operation):
    """Seal events as an append does, and keep the items: *sealed* holds them."""

    events: dict[Place, Noted]
    sealed: list[Any] = field(default_factory=list)

    def run(self, client: Client) -> None:
        (table,) = {place.table for place in self.events}
        self.sealed[:] = client.mappers[table].to_sequenced_items(self.events.values())

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return Append(self.events).excuses(world, client, outcome, error)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        for item in self.sealed:
            world.model.sealed[item.key_id].add(item.data)


@dataclass
class WriteSealed(Append):
    """Append items that some client sealed a while ago: refused if a key of theirs has ended since."""

    sealed: list[Any] = field(default_factory=list)

    def run(self, client: Client) -> None:
        client.strategies[self.table].append(self.sealed)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        if isinstance(error, KeyClosedError):
            return all(world.model.found.fences.get(key_id) == "closed" for key_id in error.key_ids)
        return super().excuses(world, client, outcome, error)

    def judge_key(self, world: World, outcome: Outcome, place: Place) -> None:
        """Nothing is wrong with an old key as long as its fence is open."""


@dataclass
class Replace(Append):
    """Put another snapshot into the place of one, as an application may that keeps only the last."""

    _row: Any = None

    @property
    def replacing(self) -> dict[Place, Noted]:
        return self.events

    def begin(self, world: World) -> None:
        (self._place,) = self.places
        self._row = world.model.found.items[self._place]
        world.model.some_were_deleted = True

    def run(self, client: Client) -> None:
        session = client.datastore.session
        table = TABLES[self.table].__table__.c
        gone = delete(TABLES[self.table]).where(
            table.sequence_id == self._place.sequence_id, table.position == self._place.position
        )
        try:
            try:
                session.execute(gone)
            except Exception as error:
                raise StoreUnavailableError("the caller's own statement failed") from error
            client.stores[self.table].append(list(self.events.values()))
        except EventSealError:
            session.rollback()
            raise

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return (isinstance(error, StoreUnavailableError) and world.site.is_sqlite) or super().excuses(
            world, client, outcome, error
        )

    def stored(self, world: World, outcome: Outcome) -> bool:
        row = world.model.found.items[self._place]
        said = world.auditor.opened(world.model.found)[self._place]
        if isinstance(said, KeyDestroyedError):
            # Erased meanwhile: it does not say which of the two it was, and never will.
            return outcome.error is None and not outcome.crashed and row.data != self._row.data
        return said == self.events[self._place]


# --- keys ---


@dataclass
class RotateKeys(Operation):
    """Rotate every scope, or some."""

    scopes: tuple[str, ...] | None = None
    compromised: bool = False
    _old: frozenset[UUID] = frozenset()

    def begin(self, world: World) -> None:
        self._old = frozenset(
            key_id
            for key_id, life in world.model.keys.items()
            if (life.row.purpose, life.row.state) == (DATA, ACTIVE)
            and (self.scopes is None or life.row.scope in self.scopes)
        )

    def run(self, client: Client) -> Any:
        return rotate_keys(client, scopes=self.scopes, compromised=self.compromised)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        if isinstance(error, ConfigurationError) and self.scopes is not None:
            return "never had a key" in str(error)
        return isinstance(error, KeyDestroyedError) and error.destroyed_by == "shredded"

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is None or outcome.value.failed:
            if outcome.value is not None and outcome.is_clean:
                raise Violation(f"{self} failed: {outcome.value}")
            return
        for key_id in self._old:
            row = world.model.keys[key_id].row
            if row.state == ACTIVE or (
                self.compromised and not outcome.contended and row.state == DEACTIVATED
            ):
                raise Violation(f"{self} left {row}")


@dataclass
class MarkCompromised(Operation):
    """Mark one key compromised by its id."""

    key_id: UUID

    def run(self, client: Client) -> Any:
        return mark_compromised(client, [self.key_id])

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return isinstance(error, KeyDestroyedError) and world.model.keys[self.key_id].row.state == DESTROYED

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        row = world.model.keys[self.key_id].row
        if outcome.value is not None and row.state not in {COMPROMISED, DESTROYED}:
            raise Violation(f"{self} left {row}")
        if outcome.value is not None and world.model.found.fences.get(self.key_id) != "closed":
            raise Violation(f"{self} left its fence open")


@dataclass
class Reencrypt(Operation):
    """Seal items again under the active keys of their scopes."""

    batch: int = 1000
    keys: frozenset[UUID] | None = None
    moves = True

    def run(self, client: Client) -> Any:
        return reencrypt(client, batch=self.batch, keys=self.keys)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return (
            isinstance(error, ConfigurationError)
            and self.keys is not None
            and any(world.model.keys[key_id].row.state == DESTROYED for key_id in self.keys)
        )

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        result = outcome.value
        if result is None:
            return
        suspected = sum(counts.get("suspected", 0) for counts in result.by_table.values())
        if not world.model.some_were_deleted and (suspected or any(result.failures)):
            raise Violation(f"{self} suspects, or could not move, honest items: {result}")
        if not outcome.is_clean or result.left:
            # Under a limit of a few items their own moving may end the key that they move to.
            if outcome.is_clean and world.terms.max_items > MANY:
                raise Violation(f"{self} left items: {result}")
            return
        for place, item in world.model.found.items.items():
            life = world.model.keys[item.key_id]
            wanted = self.keys is None or item.key_id in self.keys
            if wanted and life.row.state in {DEACTIVATED, COMPROMISED} and not suspected:
                raise Violation(f"{self} left {place} under {life.row}")


@dataclass
class Retire(Operation):
    """Destroy keys that nothing needs; ``None``: every one that seals no more."""

    keys: frozenset[UUID] | None = None

    def run(self, client: Client) -> Any:
        return retire(client, keys=self.keys)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        # Whether items needed it is seen by those that stand still as well: a guard may be too careful.
        return isinstance(error, JobError) and self.keys is not None

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is None or not outcome.is_clean:
            return
        if outcome.value.failed:
            raise Violation(f"{self} failed: {outcome.value}")
        used = {item.key_id for item in world.model.found.items.values()}
        for key_id, life in world.model.keys.items():
            wanted = self.keys is None or key_id in self.keys
            closed = life.row.purpose == DATA and life.row.state in {DEACTIVATED, COMPROMISED}
            if wanted and closed and key_id not in used:
                raise Violation(f"{self} left {life.row}, which nothing needs")


@dataclass
class WholeWay(Operation):
    """Rotate every scope, move all items to the new keys, and retire the old ones."""

    moves = True

    def run(self, client: Client) -> Any:
        rotate_keys(client)
        reencrypt(client)
        return retire(client)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        Retire().judge(world, client, outcome)


@dataclass
class RewrapKeys(Operation):
    """Wrap keys where they should be: under every KEK, or under one alone."""

    to: int | None = None

    def run(self, client: Client) -> Any:
        return rewrap(client, to=None if self.to is None else client.kms[self.to])

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is not None and outcome.is_clean and outcome.value.failed:
            raise Violation(f"{self} failed: {outcome.value}")


@dataclass
class AskForKek(Operation):
    """Ask whether a KEK may go; if it may, everything opens without it."""

    kek: int

    def run(self, client: Client) -> int:
        return refuse_needed_kek(client, client.kms[self.kek].uri)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return isinstance(error, JobError)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is not None and not outcome.contended:
            world.auditor.check_without(self.kek, world.model.found)


@dataclass
class Verify(Operation):
    """Open everything."""

    def run(self, client: Client) -> Any:
        return verify(client)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is not None and outcome.value.failed:
            raise Violation(f"{self} found {outcome.value}")

"""What clients do, and how each is judged by its outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import insert
from tests.lifecycle.audit import ACTIVE, COMPROMISED, DATA, DESTROYED, Place
from tests.lifecycle.model import Violation
from tests.lifecycle.site import Outbox

from eventseal.errors import (
    EventSealError,
    KeyDestroyedError,
    SequencedItemConflictError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from tests.lifecycle.client import Client, Noted
    from tests.lifecycle.world import Outcome, World


class Operation:
    """
    One thing that a client does.

    Attributes:
        places: Where items may stand afterwards that did not before: all of them, or none.
        note: What may be in the outbox afterwards.
        moves: Whether items may be under other keys afterwards.
    """

    places: frozenset[Place] = frozenset()
    note: str | None = None
    moves = False

    @property
    def replacing(self) -> Mapping[Place, Noted]:
        """What may stand at a place instead of what stands there."""
        return {}

    def begin(self, world: World) -> None:
        """Remember what is true before it runs."""

    def run(self, client: Client) -> Any:
        """Do it."""
        raise NotImplementedError

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        """Whether an error that is no outage is right."""
        return False

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        """Compare the outcome with the model, which has seen the database since."""

    def wants_retry(self, world: World, outcome: Outcome) -> bool:
        """Whether asking again makes sense: not if it had taken effect after all."""
        return True


# --- writing ---


@dataclass
class Append(Operation):
    """
    Append events to the streams of their scopes.

    Attributes:
        events: Where each goes, and what it says.
        note: What the caller adds to the same transaction, before.
    """

    events: dict[Place, Noted]
    note: str | None = None

    def __post_init__(self) -> None:
        self.places = frozenset(self.events)
        (self.table,) = {place.table for place in self.places}

    def run(self, client: Client) -> None:
        session = client.datastore.session
        events = list(self.events.values())
        if self.note is None:
            client.stores[self.table].append(events if len(events) > 1 else events[0])
            return
        try:
            try:
                session.execute(insert(Outbox).values(note=self.note))
            except Exception as error:
                raise StoreUnavailableError("the caller's own statement failed") from error
            client.stores[self.table].append(events)
        except EventSealError:
            session.rollback()
            raise

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        match error:
            case KeyDestroyedError():
                since = outcome.began.time - world.terms.refresh_interval
                return error.destroyed_by == "shredded" and any(
                    world.model.was_closed(event.scope, after=since) for event in self.events.values()
                )
            case SequencedItemConflictError():
                return not self.stored(world, outcome) and any(
                    self._is_taken(world, place) for place in self.places
                )
            case StoreUnavailableError():  # first use inside an open SQLite write transaction
                return self.note is not None and world.site.is_sqlite
        return False

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        stored = self.stored(world, outcome)
        if outcome.error is None and not outcome.crashed and not stored:
            raise Violation(f"{self} was acknowledged, and is not there")
        if stored and outcome.error is not None and "not known" not in str(outcome.error):
            raise Violation(f"{self} gave {outcome.error!r}, and is there")
        if self.note is not None and (self.note in world.model.found.outbox) != stored:
            raise Violation(f"{self} and its caller's own row were not stored together")
        if not stored:
            return
        world.model.items.update(self.events)
        if self.note is not None:
            world.model.outbox.add(self.note)
        for place in self.places:
            self.judge_key(world, outcome, place)

    def wants_retry(self, world: World, outcome: Outcome) -> bool:
        return not self.stored(world, outcome) and not any(
            self._is_taken(world, place) for place in self.places
        )

    def stored(self, world: World, outcome: Outcome) -> bool:
        """Whether what stands at the places is this very batch; raises if only a part of it does."""
        rows = world.model.found.items
        there = [place for place in self.places if place in rows and self._is_mine(world, place)]
        if 0 < len(there) < len(self.places):
            raise Violation(f"only {there} of {self} were stored")
        return bool(there)

    def _is_mine(self, world: World, place: Place) -> bool:
        if place in world.model.items and world.model.items[place] is not self.events[place]:
            return False
        outcome = world.auditor.opened(world.model.found)[place]
        # What was erased already says nothing: the place alone tells then.
        return outcome == self.events[place] or isinstance(outcome, KeyDestroyedError)

    def _is_taken(self, world: World, place: Place) -> bool:
        return place in world.model.found.items

    def judge_key(self, world: World, outcome: Outcome, place: Place) -> None:
        """No key seals that was replaced longer ago than a client may not know."""
        key_id = world.model.found.items[place].key_id
        stopped = world.model.keys[key_id].stopped if key_id in world.model.keys else None
        if stopped is None:
            return
        if stopped.time < outcome.began.time - world.terms.refresh_interval:
            raise Violation(f"{place} was sealed under {key_id} that had been replaced at {stopped}")
        if stopped.step < outcome.confirmed:
            raise Violation(f"{place} was sealed under {key_id} that this client had seen replaced")


# --- keys ---


@dataclass
class Refresh(Operation):
    """See what changed."""

    def run(self, client: Client) -> None:
        client.keyring.refresh()

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.error is None and not outcome.crashed:
            client.confirmed = max(client.confirmed, outcome.began.step)


@dataclass
class Prepare(Operation):
    """Make keys ahead."""

    scopes: tuple[str, ...]

    def run(self, client: Client) -> None:
        client.keyring.prepare(self.scopes)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return _is_closed(world, outcome, error, self.scopes)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.error is None and not outcome.crashed:
            holding = {life.row.scope for life in world.model.keys.values() if life.row.purpose == DATA}
            if missing := set(self.scopes) - holding:
                raise Violation(f"the keys of {missing} were prepared, and are not there")


@dataclass
class Rotate(Operation):
    """Give a scope a new key."""

    scope: str
    compromised: bool = False
    _old: UUID | None = None

    def begin(self, world: World) -> None:
        self._old = _active_key(world, self.scope, DATA)

    def run(self, client: Client) -> Any:
        return client.keyring.rotate(self.scope, compromised=self.compromised)

    def excuses(self, world: World, client: Client, outcome: Outcome, error: EventSealError) -> bool:
        return _is_closed(world, outcome, error, (self.scope,))

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is None:
            return
        life = world.model.keys[outcome.value.key_id]
        if life.row.scope != self.scope or ACTIVE not in life.since:
            raise Violation(f"{self} gave {life.row}")
        if self._old is None:
            return
        old = world.model.keys[self._old]
        if old.row.state == ACTIVE:
            raise Violation(f"{self} left {old.row} active")
        # Beside others it may have been replaced before this one looked: then the next one was meant.
        if self.compromised and not outcome.contended and old.row.state not in {COMPROMISED, DESTROYED}:
            raise Violation(f"{self} left {old.row}")


@dataclass
class RotateBranches(Operation):
    """Give every branch a new key."""

    compromised: bool = False
    _old: frozenset[UUID] = frozenset()
    purpose: ClassVar[str] = "branch"

    def begin(self, world: World) -> None:
        self._old = frozenset(
            key_id
            for key_id, life in world.model.keys.items()
            if life.row.purpose == self.purpose and life.row.state == ACTIVE
        )

    def run(self, client: Client) -> Any:
        return client.keyring.rotate_branches(compromised=self.compromised)

    def judge(self, world: World, client: Client, outcome: Outcome) -> None:
        if outcome.value is not None:
            for key_id in self._old:
                row = world.model.keys[key_id].row
                if row.state == ACTIVE or (
                    self.compromised and not outcome.contended and row.state != COMPROMISED
                ):
                    raise Violation(f"{self} left {row}")


def _active_key(world: World, scope: str, purpose: str) -> UUID | None:
    return next(
        (
            key_id
            for key_id, life in world.model.keys.items()
            if (life.row.scope, life.row.purpose, life.row.state) == (scope, purpose, ACTIVE)
        ),
        None,
    )


def _is_closed(world: World, outcome: Outcome, error: EventSealError, scopes: tuple[str, ...]) -> bool:
    """Whether an error says rightly that a scope was closed."""
    since = outcome.began.time - world.terms.refresh_interval
    return (
        isinstance(error, KeyDestroyedError)
        and error.destroyed_by == "shredded"
        and any(world.model.was_closed(scope, after=since) for scope in scopes)
    )

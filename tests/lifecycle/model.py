"""What must be true: a small account of items, keys and scopes, kept beside the real ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from tests.lifecycle.audit import ACTIVE, COMPROMISED, DATA, DEACTIVATED, DESTROYED, Found, KeyRow, Place

from eventseal.cipher import inspect
from eventseal.errors import EventSealError, KeyDestroyedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

    from tests.lifecycle.client import Noted

    from eventseal.items import SequencedItem

_ORDER = (ACTIVE, DEACTIVATED, COMPROMISED, DESTROYED)


class Violation(AssertionError):  # noqa: N818 - no error of the program's: it is what a checker finds
    """The real code did what must never be."""


class Moment(NamedTuple):
    """When something was first seen: by the world's steps, and by the clients' clock."""

    step: int
    time: float


@dataclass
class KeyLife:
    """A key's row as it is, and when it came into each state."""

    row: KeyRow
    since: dict[str, Moment] = field(default_factory=dict)

    @property
    def stopped(self) -> Moment | None:
        """When it was the active one no more."""
        return min((m for state, m in self.since.items() if state != ACTIVE), default=None)

    @property
    def shredded(self) -> Moment | None:
        """When it was shredded; such a key's items are erased."""
        return self.since[DESTROYED] if self.row.destroyed_by == "shredded" else None


@dataclass
class Model:
    """
    What was acknowledged, and what was seen since.

    Attributes:
        items: Everything that was stored: never one less.
        keys: Every key that was ever seen.
        outbox: What callers committed together with items.
        sealed: Every envelope seen under each key.
        unreserved: Items that ended clients had sealed on credit.
        closed: When each scope was closed, and opened again.
        may_shred: Scopes that somebody began to shred.
        some_were_deleted: Whether rows were deleted: then nobody can tell what was forged.
    """

    items: dict[Place, Noted] = field(default_factory=dict)
    keys: dict[UUID, KeyLife] = field(default_factory=dict)
    outbox: set[str] = field(default_factory=set)
    sealed: dict[UUID, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    unreserved: dict[UUID, int] = field(default_factory=lambda: defaultdict(int))
    closed: dict[str, list[tuple[Moment, Moment | None]]] = field(default_factory=lambda: defaultdict(list))
    may_shred: set[str] = field(default_factory=set)
    some_were_deleted: bool = False
    found: Found = field(default_factory=Found)

    def copied(self) -> Model:
        """Give one of its own that says the same."""
        return replace(
            self,
            items=dict(self.items),
            keys={key_id: KeyLife(life.row, dict(life.since)) for key_id, life in self.keys.items()},
            outbox=set(self.outbox),
            sealed=defaultdict(set, {key_id: set(data) for key_id, data in self.sealed.items()}),
            unreserved=self.unreserved.copy(),
            closed=defaultdict(list, {scope: list(times) for scope, times in self.closed.items()}),
            may_shred=set(self.may_shred),
        )

    def observe(self, found: Found, now: Moment, *, moving: bool) -> None:
        """
        Take over what is in the database now, if it may follow from what was there.

        Args:
            found: All of it.
            now: The moment.
            moving: Whether somebody may have moved items to other keys.

        Raises:
            Violation: A key's state went back, a fence opened, or something is gone that never goes.
        """
        if gone := self.keys.keys() - found.keys.keys():
            raise Violation(f"keys are gone: {gone}")
        if found.counter < self.found.counter:
            raise Violation(f"the change counter went from {self.found.counter} to {found.counter}")
        for key_id, row in found.keys.items():
            self._observe_key(key_id, row, now)
        for key_id, state in self.found.fences.items():
            if state == "closed" and found.fences.get(key_id) != "closed":
                raise Violation(f"the fence of {key_id} is closed no more")
        for place, item in found.items.items():
            self._observe_item(place, item, moving=moving)
        for scope in {row.scope for row in found.keys.values() if row.purpose == DATA}:
            self._observe_scope(scope, found, now)
        self.found = found

    def _observe_key(self, key_id: UUID, row: KeyRow, now: Moment) -> None:
        life = self.keys.get(key_id)
        if life is None:
            self.keys[key_id] = KeyLife(row, {row.state: now})
            return
        before = life.row
        if _ORDER.index(row.state) < _ORDER.index(before.state):
            raise Violation(f"key {key_id} went from {before.state} to {row.state}")
        if row.row_version < before.row_version or row.items_reserved < before.items_reserved:
            raise Violation(f"key {key_id} went back from {before} to {row}")
        if (row.scope, row.purpose) != (before.scope, before.purpose):
            raise Violation(f"key {key_id} was of {before.scope}, and is of {row.scope}")
        if before.destroyed_by is not None and row.destroyed_by != before.destroyed_by:
            raise Violation(f"key {key_id} was {before.destroyed_by}, and is {row.destroyed_by}")
        life.row = row
        if row.destroyed_by == "shredded" and row.purpose == DATA and row.scope not in self.may_shred:
            raise Violation(f"key {key_id} of {row.scope} was shredded by nobody")
        life.since.setdefault(row.state, now)

    def _observe_item(self, place: Place, item: SequencedItem, *, moving: bool) -> None:
        before = self.found.items.get(place)
        if item.key_id is None or (before is not None and before.data == item.data):
            return
        self.sealed[item.key_id].add(item.data)
        if self.found.fences.get(item.key_id) == "closed":
            raise Violation(f"the item at {place} was written under {item.key_id} behind its closed fence")
        if before is not None and not moving and not self.some_were_deleted:
            raise Violation(f"the item at {place} went from {before.key_id} to {item.key_id} by itself")

    def _observe_scope(self, scope: str, found: Found, now: Moment) -> None:
        is_closed = any(
            row.scope == scope
            and row.purpose == DATA
            and row.state == DESTROYED
            and row.active_scope is not None
            for row in found.keys.values()
        )
        times = self.closed[scope]
        was_closed = bool(times) and times[-1][1] is None
        if is_closed and not was_closed:
            times.append((now, None))
        elif was_closed and not is_closed:
            times[-1] = (times[-1][0], now)

    def closed_keys(self) -> list[UUID]:
        """Data keys that seal no more, and are not destroyed."""
        return [
            key_id
            for key_id, life in self.keys.items()
            if life.row.purpose == DATA and life.row.state in {DEACTIVATED, COMPROMISED}
        ]

    def is_closed(self, scope: str) -> bool:
        return bool(self.closed[scope]) and self.closed[scope][-1][1] is None

    def was_closed(self, scope: str, *, after: float) -> bool:
        """Whether a scope was closed at any moment after one of the clock."""
        return any(end is None or end.time >= after for _, end in self.closed[scope])

    def check_keys(self, owed: Mapping[UUID, int]) -> None:
        """
        Check what is true of keys at every moment.

        Args:
            owed: Items that living clients sealed on credit, by key.
        """
        slots: dict[tuple[str, str], UUID] = {}
        for key_id, life in self.keys.items():
            row = life.row
            if row.active_scope is not None:
                other = slots.setdefault((row.purpose, row.active_scope), key_id)
                if other != key_id or row.active_scope != row.scope:
                    raise Violation(f"keys {other} and {key_id} hold the slot of {row.active_scope}")
            if row.state == ACTIVE and row.active_scope is None:
                raise Violation(f"key {key_id} is active without a slot")
            if row.state in {DEACTIVATED, COMPROMISED} and row.active_scope is not None:
                raise Violation(f"key {key_id} is {row.state} and holds a slot")
            if (row.wrappings == 0) != (row.state == DESTROYED):
                raise Violation(f"key {key_id} is {row.state} with {row.wrappings} wrappings")
            sealed = len(self.sealed[key_id])
            covered = row.items_reserved + owed.get(key_id, 0) + self.unreserved[key_id]
            if row.purpose == DATA and sealed > covered:
                raise Violation(f"key {key_id} sealed {sealed} items, and {covered} were reserved")

    def check_items(
        self,
        opened: Mapping[Place, Noted | EventSealError],
        pending: Collection[frozenset[Place]],
        notes: Collection[str],
        replacing: Mapping[Place, Noted],
    ) -> None:
        """
        Check that every item is there, and says what it said.

        Args:
            opened: Each item as a process sees it that starts now.
            pending: The places that operations which have not ended yet may fill, all of one or none.
            notes: What their callers may have put into the outbox.
            replacing: What they may have put in the place of something else.
        """
        rows = self.found.items
        if lost := self.items.keys() - rows.keys():
            raise Violation(f"acknowledged items are gone: {sorted(lost)}")
        excess = new = rows.keys() - self.items.keys()
        for places in pending:
            excess = excess - places
            if places & new and not places <= new:
                raise Violation(f"a part of a batch was stored: {places & new} of {places}")
        if excess:
            raise Violation(f"items are stored that nobody appended: {sorted(excess)}")
        for place, item in rows.items():
            if item.key_id is None or inspect(item.data).key_id != item.key_id:
                raise Violation(f"the item at {place} stands under {item.key_id}, not under its envelope's")
            self._check_item(place, item.key_id, opened[place], replacing.get(place))
        if not self.outbox <= self.found.outbox:
            raise Violation(f"the outbox lost {self.outbox - self.found.outbox}")
        if excess_notes := self.found.outbox - self.outbox - set(notes):
            raise Violation(f"the outbox has {excess_notes} from nobody")

    def _check_item(
        self, place: Place, key_id: UUID, outcome: Noted | EventSealError, other: Noted | None
    ) -> None:
        life = self.keys.get(key_id)
        if life is None:
            raise Violation(f"the item at {place} names key {key_id}, which nobody stored")
        if life.shredded is not None:
            if not (isinstance(outcome, KeyDestroyedError) and outcome.destroyed_by == "shredded"):
                raise Violation(f"the erased item at {place} gives {outcome!r}")
        elif isinstance(outcome, EventSealError):
            raise Violation(f"the item at {place} does not open: {outcome!r}")
        elif place in self.items and outcome not in (self.items[place], other):
            raise Violation(f"the item at {place} says {outcome}, not {self.items[place]}")

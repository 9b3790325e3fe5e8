"""The state machine: Hypothesis chooses what clients do, what fails, and who stands still where."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.lifecycle.attack_rules import AttackRules
from tests.lifecycle.audit import ACTIVE, DATA, DESTROYED
from tests.lifecycle.choices import (
    PLACES,
    SCOPES,
    database_faults,
    kms_faults,
    places,
    scopes,
    seconds,
    several,
    slots,
    tables,
    terms,
)
from tests.lifecycle.client import SNAPSHOTS, Noted, Terms
from tests.lifecycle.erasing import Reopen, RollEpoch, Shred
from tests.lifecycle.erasing_rules import ErasingRules
from tests.lifecycle.maintenance import (
    AskForKek,
    MarkCompromised,
    Reencrypt,
    Replace,
    Retire,
    RewrapKeys,
    RotateKeys,
    SealOnly,
    Verify,
    WholeWay,
    WriteSealed,
)
from tests.lifecycle.operations import (
    Append,
    Operation,
    Prepare,
    Refresh,
    Rotate,
    RotateBranches,
)
from tests.lifecycle.reading import OpenPage, Replay
from tests.lifecycle.world import World

if TYPE_CHECKING:
    from uuid import UUID

    from tests.lifecycle.audit import Place
    from tests.lifecycle.site import Site
    from tests.lifecycle.traffic import Fault


class Lifecycle(AttackRules, ErasingRules, RuleBasedStateMachine):
    """
    Rules are thin: a world does and judges everything.

    Attributes:
        site: Where its worlds are built.
        steps: How many rules were run, by all machines of the class.
        tally: What they did, and how often.
    """

    site: Site
    steps = 0
    tally: ClassVar[dict[str, int]] = {}

    @initialize(terms=terms)
    def build(self, terms: Terms) -> None:
        self.world = World(self.site, terms)
        self.sealed: list[SealOnly] = []
        self.places = dict(PLACES)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()

    # --- operations ---

    @rule(
        slot=slots,
        scopes=st.lists(scopes, min_size=1, max_size=4),
        table=tables,
        with_note=st.sampled_from((False, False, True)),
        faults=several,
        retry=st.booleans(),
    )
    def append(
        self, slot: int, scopes: list[str], table: str, with_note: bool, faults: Any, retry: bool
    ) -> None:
        self._do(slot, self._append(scopes, table, with_note=with_note), faults, retry)

    @rule(slot=slots, scope=scopes, table=tables, number=st.integers(0, 5), faults=several)
    def append_where_something_is(self, slot: int, scope: str, table: str, number: int, faults: Any) -> None:
        taken = self._taken(scope, table)
        if taken:
            place = taken[number % len(taken)]
            self._do(slot, Append({place: self._event(place, scope)}), faults, retry=False)

    @rule(slot=slots, scope=scopes, table=tables, faults=several, retry=st.booleans())
    def replay(self, slot: int, scope: str, table: str, faults: Any, retry: bool) -> None:
        self._do(slot, Replay(scope, table), faults, retry)

    @rule(slot=slots, table=tables, faults=several, retry=st.booleans())
    def open_page(self, slot: int, table: str, faults: Any, retry: bool) -> None:
        self._do(slot, OpenPage(table), faults, retry)

    @rule(slot=slots, scope=scopes, compromised=st.booleans(), faults=several, retry=st.booleans())
    def rotate(self, slot: int, scope: str, compromised: bool, faults: Any, retry: bool) -> None:
        self._do(slot, Rotate(scope, compromised), faults, retry)

    @precondition(lambda self: self.world.terms.branches)
    @rule(slot=slots, compromised=st.booleans(), faults=several, retry=st.booleans())
    def rotate_branches(self, slot: int, compromised: bool, faults: Any, retry: bool) -> None:
        self._do(slot, RotateBranches(compromised), faults, retry)

    @rule(slot=slots, faults=several, retry=st.booleans())
    def refresh(self, slot: int, faults: Any, retry: bool) -> None:
        self._do(slot, Refresh(), faults, retry)

    @rule(slot=slots, scopes=st.lists(scopes, min_size=1, max_size=3, unique=True), faults=several)
    def prepare(self, slot: int, scopes: list[str], faults: Any) -> None:
        self._do(slot, Prepare(tuple(scopes)), faults, retry=True)

    # --- items that wait ---

    @rule(slot=slots, scope=scopes, table=tables)
    def seal_only(self, slot: int, scope: str, table: str) -> None:
        operation = SealOnly(self._append([scope], table, with_note=False).events)
        self._do(slot, operation, (), retry=False)
        if operation.sealed:
            self.sealed.append(operation)

    @precondition(lambda self: self.sealed)
    @rule(slot=slots, number=st.integers(0, 5), faults=several)
    def write_sealed(self, slot: int, number: int, faults: Any) -> None:
        operation = self.sealed.pop(number % len(self.sealed))
        self._do(slot, WriteSealed(operation.events, sealed=operation.sealed), faults, retry=False)

    @rule(slot=slots, scope=scopes, number=st.integers(0, 5), faults=several, retry=st.booleans())
    def replace_snapshot(self, slot: int, scope: str, number: int, faults: Any, retry: bool) -> None:
        taken = [p for p in self._taken(scope, SNAPSHOTS) if p in self.world.model.items]
        if taken and not self.world.running:
            place = taken[number % len(taken)]
            self._do(slot, Replace({place: self._event(place, scope)}), faults, retry)

    # --- what operators do ---

    @rule(
        slot=slots,
        scope=st.sampled_from((None, *SCOPES)),
        compromised=st.booleans(),
        faults=several,
        retry=st.booleans(),
    )
    def rotate_keys(self, slot: int, scope: str | None, compromised: bool, faults: Any, retry: bool) -> None:
        operation = RotateKeys(None if scope is None else (scope,), compromised)
        self._do(slot, operation, faults, retry)

    @rule(slot=slots, number=st.integers(0, 20), faults=several, retry=st.booleans())
    def mark_compromised(self, slot: int, number: int, faults: Any, retry: bool) -> None:
        keys = self._keys(DESTROYED)
        if keys:
            self._do(slot, MarkCompromised(keys[number % len(keys)]), faults, retry)

    @rule(
        slot=slots,
        batch=st.sampled_from((1, 2, 1000)),
        some=st.booleans(),
        faults=several,
        retry=st.booleans(),
    )
    def reencrypt(self, slot: int, batch: int, some: bool, faults: Any, retry: bool) -> None:
        operation = self._reencrypt(batch, some=some)
        if operation is not None:
            self._do(slot, operation, faults, retry)

    @rule(slot=slots, some=st.booleans(), faults=several, retry=st.booleans())
    def retire(self, slot: int, some: bool, faults: Any, retry: bool) -> None:
        keys = self._keys(DESTROYED, ACTIVE)
        self._do(slot, Retire(frozenset(keys) if some and keys else None), faults, retry)

    @rule(slot=slots, faults=several, retry=st.booleans())
    def whole_way(self, slot: int, faults: Any, retry: bool) -> None:
        if self._reencrypt(1000, some=False) is not None:
            self._do(slot, WholeWay(), faults, retry)

    @rule(slot=slots, to=st.sampled_from((None, 0, 1)), faults=several, retry=st.booleans())
    def rewrap(self, slot: int, to: int | None, faults: Any, retry: bool) -> None:
        if to is None or self.world.terms.keks > 1:
            self._do(slot, RewrapKeys(to), faults, retry)

    @precondition(lambda self: self.world.terms.keks > 1)
    @rule(slot=slots, kek=st.integers(0, 1))
    def ask_for_kek(self, slot: int, kek: int) -> None:
        self._do(slot, AskForKek(kek), (), retry=False)

    @rule(slot=slots, faults=several)
    def verify(self, slot: int, faults: Any) -> None:
        self._do(slot, Verify(), faults, retry=False)

    # --- somebody stands still ---

    @precondition(lambda self: len(self.world.running) < 2)
    @rule(
        slot=slots,
        at=places,
        scopes=st.lists(scopes, min_size=1, max_size=3),
        table=tables,
        with_note=st.sampled_from((False, False, True)),
        faults=several,
    )
    def stall_append(
        self, slot: int, at: int, scopes: list[str], table: str, with_note: bool, faults: Any
    ) -> None:
        self._stall(slot, self._append(scopes, table, with_note=with_note), at, faults)

    @precondition(lambda self: len(self.world.running) < 2)
    @rule(slot=slots, at=places, scope=st.sampled_from((None, *SCOPES)), table=tables, faults=several)
    def stall_read(self, slot: int, at: int, scope: str | None, table: str, faults: Any) -> None:
        self._stall(slot, OpenPage(table) if scope is None else Replay(scope, table), at, faults)

    @precondition(lambda self: len(self.world.running) < 2)
    @rule(
        slot=slots,
        at=places,
        kind=st.sampled_from(("refresh", "prepare", "rotate", "compromise")),
        scope=scopes,
        faults=several,
    )
    def stall_keyring(self, slot: int, at: int, kind: str, scope: str, faults: Any) -> None:
        operations: dict[str, Operation] = {
            "refresh": Refresh(),
            "prepare": Prepare((scope,)),
            "rotate": Rotate(scope),
            "compromise": Rotate(scope, compromised=True),
        }
        self._stall(slot, operations[kind], at, faults)

    @precondition(lambda self: len(self.world.running) < 2)
    @rule(
        slot=slots,
        at=places,
        kind=st.sampled_from(
            ("rotate", "re-encrypt", "re-encrypt", "retire", "shred", "reopen", "rewrap", "roll")
        ),
        scope=st.sampled_from(SCOPES[1:]),
        flag=st.booleans(),
        faults=several,
    )
    def stall_operator(self, slot: int, at: int, kind: str, scope: str, flag: bool, faults: Any) -> None:
        operations: dict[str, Operation | None] = {
            "rotate": RotateKeys(compromised=flag),
            "re-encrypt": self._reencrypt(1000, some=flag),
            "retire": Retire(),
            "shred": Shred(scope),
            "reopen": Reopen(scope),
            "rewrap": RewrapKeys(),
            "roll": RollEpoch() if self.world.can_roll else None,
        }
        if operations[kind] is not None:
            self._stall(slot, operations[kind], at, faults)

    @precondition(lambda self: self.world.running)
    @rule(slot=slots, crash=st.sampled_from((False, False, False, True)))
    def go_on(self, slot: int, crash: bool) -> None:
        running = sorted(self.world.running)
        self._count("crash where it stands" if crash else "go on")
        self.world.go_on(running[slot % len(running)], crash=crash)

    @precondition(lambda self: self.world.running)
    @rule(slot=slots)
    def refresh_beside(self, slot: int) -> None:
        running = sorted(self.world.running)
        self._count("refresh beside")
        self.world.refresh_beside(running[slot % len(running)])

    # --- what happens to clients ---

    @rule(seconds=seconds)
    def advance(self, seconds: float) -> None:
        self._count("advance")
        self.world.advance(seconds)

    @rule(
        slot=slots,
        what=st.sampled_from((None, "kms", "kms", "database")),
        kms=kms_faults,
        database=database_faults,
    )
    def outage(self, slot: int, what: str | None, kms: Any, database: Any) -> None:
        """Something is away for a client, until it restarts, or all is well again."""
        traffic = self.world.clients[slot].traffic
        if traffic.failing or what is None:
            self._count("all comes back")
            traffic.heal()
            return
        self._count(f"{what} goes")
        traffic.kms_fault = kms if what == "kms" else None
        traffic.database_fault = database if what == "database" else None

    @rule(slot=slots, crash=st.booleans())
    def restart(self, slot: int, crash: bool) -> None:
        if slot not in self.world.running:
            self._count("restart")
            self.world.restart(slot, crash=crash)

    # --- inside ---

    def _do(self, slot: int, operation: Operation, faults: Any, retry: bool) -> None:
        if slot in self.world.running:
            return
        name = type(operation).__name__
        outcome = self.world.do(slot, operation, *self._placed(operation, faults), retry=retry)
        if outcome.is_clean:
            self.places[name] = max(2, len(outcome.places))
        ended = (
            "crashed"
            if outcome.crashed
            else "done"
            if outcome.error is None
            else f"gave {type(outcome.error).__name__}"
        )
        self._count(f"{name} {ended}")

    def _placed(self, operation: Operation, faults: Any) -> list[Fault]:
        """Put faults at places that the operation is likely to have."""
        count = self.places[type(operation).__name__]
        return [replace(fault, at=fault.at * count // 1_000) for fault in faults]

    def _stall(self, slot: int, operation: Any, at: int, faults: Any) -> None:
        if slot not in self.world.running:
            where = at * self.places[type(operation).__name__] // 1_000
            stands = self.world.stall(slot, operation, where, *self._placed(operation, faults))
            self._count(f"{type(operation).__name__} {'stands still' if stands else 'did not stand still'}")

    def _count(self, what: str) -> None:
        type(self).steps += 1
        self.tally[what] = self.tally.get(what, 0) + 1

    def _append(self, scopes: list[str], table: str, *, with_note: bool) -> Append:
        events: dict[Place, Noted] = {}
        for scope in scopes:
            place = self.world.place(table, scope)
            events[place] = self._event(place, scope)
        return Append(events, self.world.text() if with_note else None)

    def _keys(self, *but: str) -> list[UUID]:
        """Data keys in any state but some."""
        return sorted(
            key_id
            for key_id, life in self.world.model.keys.items()
            if life.row.purpose == DATA and life.row.state not in but
        )

    def _reencrypt(self, batch: int, *, some: bool) -> Reencrypt | None:
        """A job of its own: of a job that somebody has, who stands still, the rest would be waited for."""
        keys = frozenset(self._keys(DESTROYED, ACTIVE)) if some else None
        running = [one.operation for one in self.world.running.values()]
        others = [one.keys for one in running if isinstance(one, Reencrypt)]
        return None if keys in others or keys == frozenset() else Reencrypt(batch, keys)

    def _event(self, place: Place, scope: str) -> Noted:
        return Noted(place.sequence_id, place.position, scope, self.world.text())

    def _taken(self, scope: str, table: str) -> list[Place]:
        """Places of a scope that are taken, or about to be by somebody who stands still."""
        pending = [place for running in self.world.running.values() for place in running.operation.places]
        return sorted(
            place
            for place in {*self.world.model.items, *pending}
            if place.table == table and place.sequence_id == self.world.stream(scope)
        )

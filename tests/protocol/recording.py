"""Erasures with a ledger: what is meant is told first, then the keys go, and at last it is told as done."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.ledger import (
    DONE,
    INTENT,
    REOPEN,
    has_as_closed,
    named_keys,
    open_intents,
    strangers,
    with_entry,
)
from tests.protocol.state import (
    CLOSED,
    IDLE,
    NONE,
    OPENS,
    RETIRED,
    SHREDDED,
    Client,
    Entry,
    Key,
    bit,
    keys_of,
    with_client,
    with_fence,
    with_key,
    with_new_key,
)
from tests.protocol.world import Mistake, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.state import State

    Moves = Iterator[tuple[Label, State]]

Rows = tuple[tuple[int, Key], ...]


class Work(NamedTuple):
    """
    What a run has in hand.

    Attributes:
        rows: Of the scope, as they were read last.
        intents: The numbers of those that it told.
        fences: That are to be closed, by database and key.
        closes: The intents that were open when it looked.
        told: Whether it has told the ledger, or need not.
        rest: What is to be done afterwards.
        known: How many entries the ledger had when it was read.
    """

    rows: Rows = ()
    intents: tuple[int, ...] = ()
    fences: tuple[tuple[int, int], ...] = ()
    closes: tuple[int, ...] = ()
    told: bool = False
    rest: tuple[object, ...] = ()
    known: int = 0


class _Teller:
    """Somebody at a command that tells the ledger; each point between two steps may be his last."""

    def __init__(self, name: str, scope: int = 0, *, is_early: bool = False) -> None:
        self.name = name
        self.index = NONE
        self.is_early = is_early
        self._scope = scope

    def _to(
        self, state: State, step: str, at: str, work: Work, note: str = "", *, scope: int | None = None
    ) -> tuple[Label, State]:
        place = self._scope_at(state) if scope is None else scope
        client = Client() if at == IDLE else Client(at, place=place, rows=work)
        return Label(self.name, step, note), with_client(state, self.index, client)

    def _scope_at(self, state: State) -> int:
        """Give the scope that is worked on: a client keeps it while it is busy."""
        client = state.clients[self.index]
        return self._scope if client.at == IDLE else client.place

    def _fence_moves(self, world: World, state: State, work: Work, at: str, given_up: str) -> Moves:
        """Close the next fence; or give up, as often as there are timeouts, and else wait."""
        (database, key), *left = work.fences
        if world.can_close(state, database, key):
            after = with_fence(state, database, key, CLOSED)
            note = f"key {key}, database {database}"
            yield self._to(after, steps.CLOSE_FENCE, at, work._replace(fences=tuple(left)), note)
        elif state.budget.timeouts:
            budget = state.budget._replace(timeouts=state.budget.timeouts - 1)
            note = f"the fence of key {key} stays open"
            yield self._to(
                state._replace(budget=budget), steps.LOCK_TIMEOUT, IDLE, work, f"{note}; {given_up}"
            )


class RecordedShredder(_Teller):
    """
    Shreds a scope, with a ledger. What a crash, or a held fence, left undone is run again.

    Args:
        name: For the trace.
        scope: Whose keys.
        is_early: May run before a restore is checked.
    """

    def moves(self, world: World, state: State) -> Moves:
        """Read the rows, tell what is meant, destroy, close fences, tell that it is done."""
        client = state.clients[self.index]
        if client.at == IDLE:
            if self._may_begin(state):
                budget = state.budget._replace(shreds=max(0, state.budget.shreds - 1))
                yield self._read(world, state._replace(budget=budget), self._scope, Work())
            return
        yield from self._chain(world, state, client)

    def _may_begin(self, state: State) -> bool:
        if not keys_of(state, self._scope):
            return False
        if state.budget.shreds:
            return True
        busy = any(isinstance(client.rows, Work) and client.rows.rows for client in state.clients)
        # An intent may name a key that the restore took away: then only the restore's check can end it.
        begun = not state.erasures.unchecked and open_intents(state, self._scope)
        return not busy and bool(begun or strangers(state, self._scope))

    def _chain(self, world: World, state: State, client: Client) -> Moves:
        work: Work = client.rows  # type: ignore[assignment]
        if client.at in {"to intend", "to intend late"}:
            yield self._intended(world, state, work)
        elif client.at == "shredding":
            if world.can_write_keys(state):
                yield self._destroyed(world, state, work)
        elif client.at == "closing fences" and work.fences:
            yield from self._fence_moves(world, state, work, client.at, "the intent stays open")
        elif client.at == "closing fences" and world.mistake is Mistake.DONE_BEFORE_SHRED:
            yield self._ended(state, steps.SHRED, work)
        elif client.at == "closing fences":
            found = open_intents(state, client.place)
            if (
                world.mistake is not Mistake.DONE_CLOSES_LATER
            ):  # their keys are not what this run has destroyed
                found = tuple(number for number in found if number <= max(work.intents))
            yield self._to(state, steps.OPEN_INTENTS, "to finish", work._replace(closes=found))
        else:
            yield self._finished(world, state, work)

    def _read(
        self, world: World, state: State, scope: int, work: Work, step: str = steps.SHRED_KEYS
    ) -> tuple[Label, State]:
        rows = keys_of(state, scope)
        live = sum(key.state in OPENS for _, key in rows)
        at = "shredding" if world.mistake is Mistake.SHRED_BEFORE_INTENT else "to intend"
        return self._to(state, step, at, work._replace(rows=rows), f"{live} keys live", scope=scope)

    def _intended(self, world: World, state: State, work: Work) -> tuple[Label, State]:
        scope, keys = self._scope_at(state), _mask(work.rows)
        needs = True  # also when the rows had to be read once more: the intent before may be done with
        if work.intents and world.mistake is Mistake.INTENT_WITHOUT_NEW_KEY:
            needs = False
        elif work.intents and world.mistake is Mistake.INTENT_USED_AGAIN:
            needs = bool(keys & ~named_keys(state, work.intents))
        if needs:
            state = with_entry(state, Entry(INTENT, scope, keys))
            work = work._replace(intents=(*work.intents, len(state.erasures.ledger)))
        at = "shredding"
        if state.clients[self.index].at == "to intend late":
            at = "closing fences"
        elif world.mistake is Mistake.DONE_BEFORE_SHRED:
            at, work = "to finish", work._replace(closes=work.intents)
        return self._to(state, steps.INTEND, at, work, "told" if needs else "told already")

    def _destroyed(self, world: World, state: State, work: Work) -> tuple[Label, State]:
        scope, rows = self._scope_at(state), dict(work.rows)
        planned = _end_of_scope(world, work.rows)
        lacks_holder = not any(_is_candidate(key) for key in rows.values())
        after = state
        if planned or lacks_holder:
            moved = any(state.keys[number].version != rows[number].version for number in planned)
            left = [key for number, key in keys_of(state, scope) if number not in planned]
            if moved or any(key.slot or key.state in OPENS for key in left):  # the latter by the index
                return self._read(world, state, scope, work, steps.SET_STATES)
            for number, slot in planned.items():
                if rows[number].state in OPENS and not named_keys(state) & bit(number):
                    after = after._replace(broken=f"key {number} is destroyed, and no intent names it")
                after = with_key(after, number, to=_end_of(rows[number]), slot=slot)
            after = closed(_with_tombstone(after, scope) if lacks_holder else after, scope)
            if not has_as_closed(after, scope):
                after = after._replace(broken=f"scope {scope} is shredded, and the ledger has it as open")
        at = "to intend late" if world.mistake is Mistake.SHRED_BEFORE_INTENT else "closing fences"
        work = work._replace(rows=keys_of(after, scope), fences=open_fences(world, after, scope))
        return self._to(after, steps.SET_STATES, at, work, f"scope {scope}")

    def _finished(self, world: World, state: State, work: Work) -> tuple[Label, State]:
        scope, keys = self._scope_at(state), _mask(work.rows)
        closes = tuple(n for n in work.closes if not state.erasures.ledger[n - 1].keys & ~keys)
        after = with_entry(state, Entry(DONE, scope, keys, work.intents, closes))
        if world.mistake is Mistake.DONE_BEFORE_SHRED:
            return self._to(after, steps.FINISH, "shredding", work, "told before it is done")
        return self._ended(after, steps.FINISH, work)

    def _ended(self, state: State, step: str, work: Work) -> tuple[Label, State]:
        taken = 0
        for number, key in keys_of(state, self._scope_at(state)):
            if key.state == SHREDDED:
                taken |= bit(number)
        return self._to(state._replace(returned=state.returned | taken), step, IDLE, work, "returns")


class RecordedReopener(_Teller):
    """
    Reopens a scope, with a ledger: the fences first, then the ledger, then the slot.

    Args:
        name: For the trace.
        scope: Which.
    """

    def moves(self, world: World, state: State) -> Moves:
        """Read the rows, close the fences, look for intents, tell, free the slot."""
        client = state.clients[self.index]
        work: Work = client.rows  # type: ignore[assignment]
        if client.at == IDLE:
            if state.budget.reopens and _has_holder(keys_of(state, self._scope)):
                yield self._read(world, state, Work(), steps.REOPEN)
        elif client.at == "closing fences":
            if work.fences:
                yield from self._fence_moves(world, state, work, client.at, "the scope stays closed")
            elif open_intents(state, self._scope):
                yield self._to(state, steps.OPEN_INTENTS, IDLE, work, "a shred was begun: refused")
            else:
                yield self._to(state, steps.OPEN_INTENTS, self._behind_look(world, work), work)
        elif client.at == "to tell":
            yield self._told(world, state, work)
        elif client.at == "to tell late":
            yield self._to(_reopening(state, self._scope, work), steps.TELL_REOPENING, IDLE, work)
        elif world.can_write_keys(state):
            yield self._freed(world, state, work)

    def _behind_look(self, world: World, work: Work) -> str:
        if world.mistake in {Mistake.REOPEN_NOT_TOLD, Mistake.REOPEN_TOLD_LATE}:
            return "to free"
        return "to free" if world.mistake is Mistake.REOPEN_TOLD_ONCE and work.told else "to tell"

    def _read(self, world: World, state: State, work: Work, step: str) -> tuple[Label, State]:
        rows = keys_of(state, self._scope)
        if not _has_holder(rows):
            return self._to(state, step, IDLE, work, "another reopened it")
        fences = open_fences(world, state, self._scope)
        return self._to(state, step, "closing fences", work._replace(rows=rows, fences=fences))

    def _told(self, world: World, state: State, work: Work) -> tuple[Label, State]:
        if open_intents(state, self._scope) and world.mistake is not Mistake.REOPEN_BESIDE_INTENT:
            return self._to(state, steps.TELL_REOPENING, IDLE, work, "a shred was begun meanwhile: refused")
        after = _reopening(state, self._scope, work)
        return self._to(after, steps.TELL_REOPENING, "to free", work._replace(told=True))

    def _freed(self, world: World, state: State, work: Work) -> tuple[Label, State]:
        number, holder = next((n, key) for n, key in work.rows if key.slot)
        if state.keys[number].version != holder.version:
            return self._read(world, state, work, steps.FREE_SLOT)
        after = with_key(state, number, to=holder.state, slot=False)
        budget = after.budget._replace(reopens=after.budget.reopens - 1)
        after = after._replace(budget=budget, closed=after.closed & ~bit(self._scope))
        at = "to tell late" if world.mistake is Mistake.REOPEN_TOLD_LATE else IDLE
        return self._to(after, steps.FREE_SLOT, at, work, f"scope {self._scope}")


def _reopening(state: State, scope: int, work: Work) -> State:
    return with_entry(state, Entry(REOPEN, scope, _mask(work.rows)))


def _mask(rows: Rows) -> int:
    keys = 0
    for number, _ in rows:
        keys |= bit(number)
    return keys


def _end_of(key: Key) -> str:
    return SHREDDED if key.state in OPENS else key.state


def _is_candidate(key: Key) -> bool:
    """Whether the tombstone of a key may hold the slot."""
    return key.slot or key.state != RETIRED


def _has_holder(rows: Rows) -> bool:
    """Whether a tombstone holds the slot."""
    return any(key.slot and key.state not in OPENS for _, key in rows)


def _end_of_scope(world: World, rows: Rows) -> dict[int, bool]:
    """
    Say which keys move, and which of them holds the slot afterwards: who does already, else the newest.

    All move, also those that stay as they are: who read one of them before has to read it again.
    """
    held = [number for number, key in rows if key.slot]
    holder = max(held or [number for number, key in rows if _is_candidate(key)], default=NONE)
    moves = {number: number == holder for number, _ in rows}
    if world.mistake is Mistake.CLOSED_SCOPE_LEFT_ALONE:
        return {n: moves[n] for n, key in rows if key.state in OPENS or key.slot != moves[n]}
    if world.mistake is Mistake.HOLDER_MOVED_ALONE:
        return {n: moves[n] for n, key in rows if key.state in OPENS or key.slot or moves[n]}
    return moves


def _with_tombstone(state: State, scope: int) -> State:
    """Insert a row of what never was a key."""
    state = with_new_key(state, scope)
    return with_key(state, len(state.keys) - 1, to=SHREDDED, slot=True)


def closed(state: State, scope: int) -> State:
    """Note what ought to be: the scope is closed, and what it has is erased."""
    keys = _mask(keys_of(state, scope))
    items = tuple(
        item._replace(erased=True) if item is not None and keys & bit(item.key) else item
        for item in state.items
    )
    erasures = state.erasures._replace(shredded=state.erasures.shredded | keys)
    return state._replace(closed=state.closed | bit(scope), items=items, erasures=erasures)


def open_fences(world: World, state: State, scope: int) -> tuple[tuple[int, int], ...]:
    """Give the fences of a scope's shredded keys that are not closed, by database and key."""
    return tuple(
        (database, number)
        for number, key in keys_of(state, scope)
        if key.state == SHREDDED
        for database in range(world.databases)
        if state.fences[database][number] != CLOSED
    )

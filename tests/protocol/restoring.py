"""Backups of the key tables, their restore, and the check that makes up for it."""

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
    says_closed,
    strangers,
    with_entry,
)
from tests.protocol.recording import RecordedShredder, Rows, Work, open_fences
from tests.protocol.state import (
    ACTIVE,
    CLOSED,
    GONE,
    IDLE,
    NONE,
    OPENS,
    RETIRED,
    SHREDDED,
    STALE,
    Backup,
    Client,
    Entry,
    Key,
    Process,
    bit,
    keys_of,
    with_fence,
    with_key,
)
from tests.protocol.world import Mistake, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.state import State

    Moves = Iterator[tuple[Label, State]]


class Backups:
    """Takes backups."""

    name = "operator"
    index = NONE

    def moves(self, world: World, state: State) -> Moves:
        """Take one, as long as there is something in it."""
        if state.budget.backups and state.keys:
            backup = Backup(state.keys)
            if world.items_too:
                backup = Backup(state.keys, state.items, state.fences)
            budget = state.budget._replace(backups=state.budget.backups - 1)
            after = state._replace(erasures=state.erasures._replace(backup=backup), budget=budget)
            yield Label(self.name, steps.BACK_UP), after


class Restores:
    """Stops every process, and puts the backup back."""

    name = "operator"
    index = NONE

    def moves(self, world: World, state: State) -> Moves:
        """Restore at any moment; what is open is rolled back, and nothing is in memory afterwards."""
        backup = state.erasures.backup
        if backup is None or not state.budget.restores:
            return
        lost = tuple(Key(key.scope, GONE, slot=False) for key in state.keys[len(backup.keys) :])
        keys = (*backup.keys, *lost)
        after = state._replace(
            keys=keys,
            closed=_closed_scopes(keys),
            budget=state.budget._replace(restores=state.budget.restores - 1),
            erasures=state.erasures._replace(unchecked=True, due=_due(state)),
            processes=(Process(STALE, (NONE,) * world.scopes),) * world.processes,
            clients=tuple(Client(done=client.done) for client in state.clients),
        )
        if world.items_too:
            shredded = state.erasures.shredded
            items = tuple(
                item and item._replace(erased=bool(shredded & bit(item.key))) for item in backup.items
            )
            fences = tuple((*of_database, *("-",) * len(lost)) for of_database in backup.fences)
            after = after._replace(items=items, fences=fences)
        yield Label(self.name, steps.RESTORE), after


class Forger:
    """Writes into the ledger without its key: an intent that names every key, to have them destroyed."""

    name = "forger"
    index = NONE
    is_early = True

    def moves(self, world: World, state: State) -> Moves:
        """Forge; or put the ledger back from its copy."""
        ledger = state.erasures.ledger
        if not state.erasures.unchecked or any(client.at != IDLE for client in state.clients):
            return
        if any(entry.forged for entry in ledger):
            honest = tuple(entry for entry in ledger if not entry.forged)
            after = state._replace(erasures=state.erasures._replace(ledger=honest))
            yield Label("operator", steps.PUT_BACK), after
        elif state.budget.forgeries:
            keys = sum(bit(number) for number, _ in keys_of(state, 0))
            budget = state.budget._replace(forgeries=state.budget.forgeries - 1)
            after = with_entry(state, Entry(INTENT, 0, keys, forged=True))
            yield Label(self.name, steps.FORGE), after._replace(budget=budget)


class Undone(NamedTuple):
    """A scope that is not as the ledger says."""

    scope: int
    keys: int
    is_closed: bool
    is_open: bool


class Check(RecordedShredder):
    """
    Makes up for a restore: destroys by id what the ledger says, and carries through what was begun.

    Args:
        name: For the trace.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, is_early=True)

    def moves(self, world: World, state: State) -> Moves:
        """Read the ledger; look for what is undone; take one scope after the other; say how it went."""
        client = state.clients[self.index]
        if client.at == IDLE:
            if state.erasures.unchecked:
                yield from self._begun(world, state)
            return
        work: Work = client.rows  # type: ignore[assignment]
        if client.at == "ledger read":
            yield self._looked(world, state, work)
        elif client.at == "checking" and work.rest:
            yield self._read_again(state, work)
        elif client.at == "checking":
            yield self._checked(state, work)
        elif client.at == "again":
            yield from self._shredded_again(world, state, work)
        elif client.at == "fences again":
            yield self._fenced(world, state, work)
        elif client.at == "to tell":
            yield self._told(state, work)
        else:
            yield from self._chain(world, state, client)

    def _begun(self, world: World, state: State) -> Moves:
        if world.mistake is Mistake.CHECK_TAKES_FORGED or not any(e.forged for e in state.erasures.ledger):
            yield self._to(state, steps.READ_LEDGER, "ledger read", Work(known=len(state.erasures.ledger)))

    def _looked(self, world: World, state: State, work: Work) -> tuple[Label, State]:
        found = tuple(filter(None, (_undone(world, state, scope) for scope in range(world.scopes))))
        note = ", ".join(f"scope {undone.scope}" for undone in found)
        return self._to(
            state, steps.LOOK_FOR_UNDONE, "checking", work._replace(rest=found), note or "nothing"
        )

    def _read_again(self, state: State, work: Work) -> tuple[Label, State]:
        undone: Undone = work.rest[0]  # type: ignore[assignment]
        work = work._replace(rows=keys_of(state, undone.scope))
        return self._to(state, steps.SHRED_KEYS_AGAIN, "again", work, scope=undone.scope)

    def _shredded_again(self, world: World, state: State, work: Work) -> Moves:
        if not world.can_write_keys(state):
            return
        undone: Undone = work.rest[0]  # type: ignore[assignment]
        planned = _end_again(world, work.rows, undone)
        rows = dict(work.rows)
        changed = any(
            number in rows and state.keys[number].version != rows[number].version for number in planned
        )
        holder = [n for n, (_, slot) in planned.items() if slot]
        taken = holder and any(key.slot and n not in planned for n, key in keys_of(state, undone.scope))
        if changed or taken:
            yield self._read_again(state, work)
            return
        after = state
        for number, (ends, slot) in planned.items():
            after = with_key(after, number, to=ends, slot=slot)
        if holder:
            after = after._replace(closed=after.closed | bit(undone.scope))
        named = named_keys(state)
        for number in sorted(planned.keys() & rows):
            if rows[number].state in OPENS and not named & bit(number):
                after = after._replace(broken=f"key {number} is destroyed, and no verified entry names it")
        if undone.is_open:
            after = _erased(after, undone.keys)
        strange = undone.is_closed and any(
            key.state in OPENS and number not in planned for number, key in work.rows
        )
        settled = all(number in rows and rows[number].state not in OPENS for number in planned)
        fences = open_fences(world, after, undone.scope)
        work = work._replace(fences=fences, told=strange and settled)  # or each run would tell it anew
        if undone.is_open and world.mistake is not Mistake.CHECK_LEAVES_INTENTS:
            yield self._read(
                world, after, undone.scope, Work(rest=work.rest[1:], known=work.known), steps.SHRED_AGAIN
            )
        else:
            yield self._to(after, steps.SET_STATES, "fences again", work, f"scope {undone.scope}")

    def _fenced(self, world: World, state: State, work: Work) -> tuple[Label, State]:
        """Close fences: no application runs that could hold one."""
        after = state
        for database, key in work.fences:
            after = with_fence(after, database, key, CLOSED)
        if work.told:
            return self._to(after, steps.CLOSE_FENCE, "checking", Work(rest=work.rest[1:], known=work.known))
        return self._to(after, steps.CLOSE_FENCE, "to tell", work._replace(fences=()))

    def _told(self, state: State, work: Work) -> tuple[Label, State]:
        undone: Undone = work.rest[0]  # type: ignore[assignment]
        after = with_entry(state, Entry(DONE, undone.scope, undone.keys))
        return self._to(after, steps.SHRED_AGAIN, "checking", Work(rest=work.rest[1:], known=work.known))

    def _ended(self, state: State, step: str, work: Work) -> tuple[Label, State]:
        """Go on with the next scope: the shred that was begun is done."""
        _, after = super()._ended(state, step, work)
        return self._to(after, step, "checking", Work(rest=work.rest, known=work.known))

    def _checked(self, state: State, work: Work) -> tuple[Label, State]:
        told = named_keys(state)
        unrecorded = any(key.state == SHREDDED and not told & bit(n) for n, key in enumerate(state.keys))
        strange = any(strangers(state, scope) for scope in {key.scope for key in state.keys})
        if unrecorded or strange:
            return self._to(state, steps.CHECK_RESTORE, IDLE, work, "not complete")
        after = state._replace(erasures=state.erasures._replace(unchecked=False, due=0))
        for scope in {key.scope for key in state.keys}:
            if any(number <= work.known for number in open_intents(state, scope)):
                after = after._replace(
                    broken=f"the restore was checked, and a shred of scope {scope} is begun"
                )
            elif state.erasures.due & ~state.closed & bit(scope):
                after = after._replace(
                    broken=f"scope {scope} was closed, and the restore's check leaves it open"
                )
        return self._to(after, steps.CHECK_RESTORE, IDLE, work, "complete")


def _undone(world: World, state: State, scope: int) -> Undone | None:
    """Say what is amiss with a scope, as the ledger has it."""
    ledger = state.erasures.ledger
    is_open = bool(open_intents(state, scope))
    keys, is_closed, amiss = 0, False, False
    for number, entry in enumerate(ledger, 1):
        if entry.scope != scope or entry.kind == REOPEN:
            continue
        if world.mistake is Mistake.CHECK_OF_DONE_ALONE and entry.kind == INTENT:
            continue
        if is_open or not _agree(state, number, entry):
            amiss = True
            keys |= entry.keys
            is_closed |= says_closed(state, number)
    return Undone(scope, keys, is_closed, is_open) if amiss else None


def _agree(state: State, number: int, entry: Entry) -> bool:
    named = [key for n, key in enumerate(state.keys) if entry.keys & bit(n)]
    if any(key.state in OPENS or key.state == GONE for key in named):
        return False
    held = any(key.slot and key.state not in OPENS for _, key in keys_of(state, entry.scope))
    return held or not says_closed(state, number)


def _end_again(world: World, rows: Rows, undone: Undone) -> dict[int, tuple[str, bool]]:
    """Say what becomes of keys: what they are then, and whether they hold the slot."""
    there = dict(rows)
    named = {n for n in range(undone.keys.bit_length()) if undone.keys & bit(n)}
    if world.mistake is Mistake.CHECK_BY_SCOPE:
        named |= set(there)
    lost = named - set(there)
    if world.mistake is Mistake.CHECK_WITHOUT_TOMBSTONES:
        lost = set()
    dead = {n for n, key in there.items() if n in named or key.state not in OPENS}
    survivor = any(key.slot for n, key in there.items() if n not in dead)
    takes_slot = undone.is_closed and not survivor and world.mistake is not Mistake.CHECK_LEAVES_SLOTS
    held = {n for n in dead if there[n].slot}
    others = {n for n in dead if there[n].state != RETIRED} | lost
    holder = max(held or others, default=NONE) if takes_slot else NONE
    planned = {}
    for number in dead:
        key = there[number]
        if key.state in OPENS:
            planned[number] = (SHREDDED, number == holder)
        elif takes_slot and key.slot != (number == holder):
            planned[number] = (key.state, number == holder)
    return planned | {number: (SHREDDED, number == holder) for number in lost}


def _erased(state: State, keys: int) -> State:
    """Note that items are erased: their shred was begun, and ends here."""
    items = tuple(
        item._replace(erased=True) if item is not None and keys & bit(item.key) else item
        for item in state.items
    )
    shredded = state.erasures.shredded | keys
    return state._replace(items=items, erasures=state.erasures._replace(shredded=shredded))


def _due(state: State) -> int:
    """Give the scopes that are closed, and are not just being reopened."""
    return sum(bit(s) for s in {key.scope for key in state.keys} if has_as_closed(state, s)) & state.closed


def _closed_scopes(keys: tuple[Key, ...]) -> int:
    closed_scopes = 0
    for key in keys:
        if key.slot and key.state != ACTIVE:
            closed_scopes |= bit(key.scope)
    return closed_scopes

"""How keys end: rotated, marked compromised, retired, shredded, and their scopes reopened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.state import (
    ACTIVE,
    CLOSED,
    COMPROMISED,
    DEACTIVATED,
    IDLE,
    NONE,
    OPENS,
    RETIRABLE,
    RETIRED,
    SHREDDED,
    Client,
    bit,
    holder_of,
    with_client,
    with_fence,
    with_key,
    with_new_key,
)
from tests.protocol.world import Mistake, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.state import Key, State

    Moves = Iterator[tuple[Label, State]]


class _Operator:
    """Somebody at a command; the memory of the process does not matter, since it reads before it writes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = NONE

    def _to(self, state: State, step: str, client: Client, note: str = "") -> tuple[Label, State]:
        note = note or (f"key {client.key}" if client.key != NONE else "")
        return Label(self.name, step, note), with_client(state, self.index, client)


class Rotator(_Operator):
    """
    Rotates a scope's key: plainly, or because it is compromised.

    Args:
        name: For the trace.
        scope: Whose key.
    """

    def __init__(self, name: str, scope: int = 0) -> None:
        super().__init__(name)
        self._scope = scope

    def moves(self, world: World, state: State) -> Moves:
        """Read the active row, call the KMS, replace."""
        client = state.clients[self.index]
        if client.at == IDLE:
            old = holder_of(state, self._scope)
            if old == NONE or state.keys[old].state != ACTIVE:
                return
            read = Client("rotating", key=old, version=state.keys[old].version)
            if state.budget.rotations:
                yield self._to(state, steps.ROTATE, read)
            if state.budget.compromises:
                yield self._to(state, steps.ROTATE, read._replace(at="compromising"))
        elif world.can_write_keys(state):
            if client.at == "still to compromise":
                yield self._compromised(state, client)
            else:
                yield self._replaced(world, state, client)

    def _replaced(self, world: World, state: State, client: Client) -> tuple[Label, State]:
        old = state.keys[client.key]
        compromised = client.at == "compromising"
        follows = old.version == client.version or world.mistake is Mistake.REPLACE_WITHOUT_VERSION
        if (old.slot or world.mistake is Mistake.REPLACE_WITHOUT_VERSION) and follows:
            after = with_key(state, client.key, to=COMPROMISED if compromised else DEACTIVATED)
            after = _spent(with_new_key(after, self._scope), compromised=compromised)
            return self._to(after, steps.REPLACE_ACTIVE, Client(), f"key {client.key}, new {len(state.keys)}")
        if compromised:
            return self._to(state, steps.REPLACE_ACTIVE, client._replace(at="still to compromise"))
        return self._to(state, steps.REPLACE_ACTIVE, Client(), "another was first")

    def _compromised(self, state: State, client: Client) -> tuple[Label, State]:
        """The loser of a race marks the key none the less."""
        if state.keys[client.key].state in {COMPROMISED, RETIRED, SHREDDED}:
            return self._to(state, steps.COMPROMISE, Client())
        after = _spent(with_key(state, client.key, to=COMPROMISED), compromised=True)
        return self._to(after, steps.COMPROMISE, Client(), f"key {client.key}")


class Marker(_Operator):
    """Records compromised keys' high-water marks: the fence is closed first, in the same transaction."""

    def moves(self, world: World, state: State) -> Moves:
        """Close a fence, record, commit."""
        client = state.clients[self.index]
        if client.at == IDLE:
            for number, key in enumerate(state.keys):
                for database in range(world.databases):
                    if key.state == COMPROMISED and not state.marks[database] & bit(number):
                        yield from self._begun(world, state, number, database)
            return
        after = _marked(state, client.key, client.database)
        if world.mistake is not Mistake.MARKS_BEFORE_FENCE:
            after = with_fence(after, client.database, client.key, CLOSED)
        yield self._to(after, steps.RECORD_MARKS, Client(), f"key {client.key}")

    def _begun(self, world: World, state: State, key: int, database: int) -> Moves:
        careless = world.mistake is Mistake.MARKS_BEFORE_FENCE
        if careless or world.can_close(state, database, key):
            at = "marking carelessly" if careless else "marking"
            yield self._to(state, steps.CLOSE_FENCE, Client(at, key=key, database=database))


class Retirer(_Operator):
    """Retires whatever key may go: fences first, each with a count behind it, then the wrappings."""

    def moves(self, world: World, state: State) -> Moves:
        """Close a fence, count, commit; in each items database; destroy."""
        client = state.clients[self.index]
        if client.at == IDLE:
            for number, key in enumerate(state.keys):
                if key.state in RETIRABLE:
                    chosen = Client(key=number, version=key.version)
                    if world.mistake is Mistake.DESTROY_BEFORE_FENCES:
                        yield from self._destroyed(world, state, chosen)
                    else:
                        yield from self._closing(world, state, chosen, 0)
        elif client.at == "next database":
            yield from self._closing(world, state, client, client.place)
        elif client.at == "snapshot taken":
            if world.can_close(state, client.place, client.key):
                yield self._to(state, steps.CLOSE_FENCE, client._replace(at="closing", database=client.place))
        elif client.at == "closing":
            yield self._counted(world, state, client)
        elif client.at == "counted":
            yield self._committed(world, state, client)
        else:
            yield from self._destroyed(world, state, client)

    def _closing(self, world: World, state: State, client: Client, database: int) -> Moves:
        client = client._replace(at="closing", database=database, place=NONE)
        note = f"key {client.key}, database {database}"
        if world.mistake is Mistake.WRONG_ISOLATION:
            # The statement's snapshot is the transaction's, and it is taken before the lock is waited for.
            found = _count(world, state, client.key, database)
            waiting = client._replace(at="snapshot taken", database=NONE, place=database, rows=(found,))
            yield self._to(state, steps.CLOSE_FENCE, waiting, f"{note}: waits")
        elif world.mistake is Mistake.COUNT_BEFORE_LOCK:
            if not _count(world, state, client.key, database):
                counted = client._replace(at="snapshot taken", database=NONE, place=database, rows=(0,))
                yield self._to(state, steps.COUNT, counted, note)
        elif world.can_close(state, database, client.key):
            yield self._to(state, steps.CLOSE_FENCE, client, note)

    def _counted(self, world: World, state: State, client: Client) -> tuple[Label, State]:
        found = client.rows[0] if client.rows else _count(world, state, client.key, client.database)
        if found:
            return self._to(state, steps.COUNT, Client(), f"key {client.key} is still needed: rolled back")
        return self._to(state, steps.COUNT, client._replace(at="counted", rows=()), "none")

    def _committed(self, world: World, state: State, client: Client) -> tuple[Label, State]:
        after = with_fence(state, client.database, client.key, CLOSED)
        following = client.database + 1
        at = "next database" if following < world.databases else "all closed"
        moved = Client(
            at, key=client.key, version=client.version, place=following if at == "next database" else NONE
        )
        return self._to(after, steps.COMMIT_CLOSING, moved, f"database {client.database} is closed")

    def _destroyed(self, world: World, state: State, client: Client) -> Moves:
        if not world.can_write_keys(state):
            return
        if state.keys[client.key].version != client.version:
            yield self._to(state, steps.RETIRE, Client(), f"key {client.key} moved on: later")
        else:
            yield self._to(
                with_key(state, client.key, to=RETIRED), steps.RETIRE, Client(), f"key {client.key}"
            )


class Shredder(_Operator):
    """
    Shreds a scope: one transaction takes every key and the slot; then fences are closed, as well as can be.

    Args:
        name: For the trace.
        scope: Whose keys.
    """

    def __init__(self, name: str, scope: int = 0) -> None:
        super().__init__(name)
        self._scope = scope

    def moves(self, world: World, state: State) -> Moves:
        """Read the scope's rows, destroy them, close fences, return."""
        client = state.clients[self.index]
        if client.at == IDLE:
            if state.budget.shreds and any(key.scope == self._scope for key in state.keys):
                read = tuple((n, key.version) for n, key in self._live(state))
                yield self._to(
                    state, steps.SHRED_KEYS, Client("shredding", rows=read), f"{len(read)} keys live"
                )
        elif client.at == "shredding":
            if world.can_write_keys(state):
                yield self._destroyed(world, state, client)
        else:
            yield from self._fenced(world, state, client)

    def _live(self, state: State) -> list[tuple[int, object]]:
        return [
            (number, key)
            for number, key in enumerate(state.keys)
            if key.scope == self._scope and key.state in OPENS
        ]

    def _destroyed(self, world: World, state: State, client: Client) -> tuple[Label, State]:
        live = tuple((number, state.keys[number].version) for number, _ in self._live(state))
        partly = world.mistake is Mistake.SHRED_WITHOUT_WHOLE_SCOPE
        if live != client.rows and not (partly and set(client.rows) <= set(live)):
            return self._to(state, steps.SET_STATES, Client(), "a key moved: once more")
        holder = holder_of(state, self._scope)
        after = state
        newest = max((number for number, _ in client.rows), default=NONE)
        keeps = world.mistake is not Mistake.TOMBSTONE_WITHOUT_SLOT
        for number, _ in client.rows:
            after = with_key(after, number, to=SHREDDED, slot=keeps and number == newest)
        if holder == NONE and newest == NONE:  # reopened, or nothing but retired keys
            shredded = [n for n, key in enumerate(after.keys) if self._is_shredded(key)]
            if not shredded:
                after = with_new_key(after, self._scope)
            after = with_key(after, max(shredded, default=len(after.keys) - 1), to=SHREDDED, slot=keeps)
        items = tuple(
            item._replace(erased=True) if item is not None and self._takes(after, item.key) else item
            for item in after.items
        )
        budget = after.budget._replace(shreds=after.budget.shreds - 1)
        after = after._replace(closed=after.closed | bit(self._scope), items=items, budget=budget)
        return self._to(after, steps.SET_STATES, Client("closing fences", rows=self._open(world, after)))

    def _takes(self, state: State, key: int) -> bool:
        return key < len(state.keys) and state.keys[key].scope == self._scope

    def _open(self, world: World, state: State) -> tuple[tuple[int, int], ...]:
        """Give the fences of the scope's shredded keys that are not closed."""
        return tuple(
            (database, number)
            for number, key in enumerate(state.keys)
            if self._is_shredded(key)
            for database in range(world.databases)
            if state.fences[database][number] != CLOSED
        )

    def _is_shredded(self, key: Key) -> bool:
        return key.scope == self._scope and key.state == SHREDDED

    def _fenced(self, world: World, state: State, client: Client) -> Moves:
        if not client.rows:
            taken = 0
            for number, key in enumerate(state.keys):
                if self._is_shredded(key):
                    taken |= bit(number)
            yield self._to(state._replace(returned=state.returned | taken), steps.SHRED, Client(), "returns")
            return
        (database, key), *left = client.rows
        moved = client._replace(rows=tuple(left))
        if world.can_close(state, database, key):
            after = with_fence(state, database, key, CLOSED)
            yield self._to(after, steps.CLOSE_FENCE, moved, f"key {key}, database {database}")
        else:
            yield self._to(state, steps.LOCK_TIMEOUT, moved, f"the fence of key {key} stays open")


class Reopener(_Operator):
    """
    Reopens a scope that was shredded: the only way to new keys for it.

    A shred closes fences as well as it can; here each must close first. Else a writer that has been stalled
    since before the shred would commit, in a scope that is open, what nobody can read.

    Args:
        name: For the trace.
        scope: Which.
    """

    def __init__(self, name: str, scope: int = 0) -> None:
        super().__init__(name)
        self._scope = scope

    def moves(self, world: World, state: State) -> Moves:
        """Read which keys were shredded, close their fences, clear the slot."""
        client = state.clients[self.index]
        if client.at == IDLE:
            if state.budget.reopens and state.closed & bit(self._scope):
                ready = world.mistake is Mistake.REOPEN_BEFORE_FENCES
                read = Client("fenced" if ready else "closing fences", rows=self._shredded(state))
                yield self._to(state, steps.REOPEN, read)
        elif client.at == "fenced":
            if world.can_write_keys(state):
                yield self._reopened(state, client)
        else:
            yield from self._fenced(world, state, client)

    def _shredded(self, state: State) -> tuple[int, ...]:
        return tuple(
            number
            for number, key in enumerate(state.keys)
            if key.scope == self._scope and key.state == SHREDDED
        )

    def _fenced(self, world: World, state: State, client: Client) -> Moves:
        for database in range(world.databases):
            for key in client.rows:
                if state.fences[database][key] == CLOSED:
                    continue
                if world.can_close(state, database, key):
                    after = with_fence(state, database, key, CLOSED)
                    yield self._to(after, steps.CLOSE_FENCE, client, f"key {key}, database {database}")
                else:
                    yield self._to(state, steps.LOCK_TIMEOUT, Client(), "the scope stays closed")
                return
        yield self._to(state, steps.COMMIT_CLOSING, client._replace(at="fenced"), "all are closed")

    def _reopened(self, state: State, client: Client) -> tuple[Label, State]:
        holder = holder_of(state, self._scope)
        if holder == NONE or state.keys[holder].state != SHREDDED or self._shredded(state) != client.rows:
            return self._to(state, steps.FREE_SLOT, Client(), "another reopened it, or shredded it again")
        after = with_key(state, holder, to=SHREDDED, slot=False)
        budget = after.budget._replace(reopens=after.budget.reopens - 1)
        after = after._replace(budget=budget, closed=after.closed & ~bit(self._scope))
        return self._to(after, steps.FREE_SLOT, Client(), f"scope {self._scope}")


def _spent(state: State, *, compromised: bool) -> State:
    budget = state.budget
    name = "compromises" if compromised else "rotations"
    return state._replace(budget=budget._replace(**{name: max(0, getattr(budget, name) - 1)}))


def _marked(state: State, key: int, database: int) -> State:
    marks = list(state.marks)
    marks[database] |= bit(key)
    return state._replace(marks=tuple(marks))


def _count(world: World, state: State, key: int, database: int) -> int:
    """Count the committed items under a key in one database."""
    return sum(
        item is not None and item.key == key and world.places[place][1] == database
        for place, item in enumerate(state.items)
    )

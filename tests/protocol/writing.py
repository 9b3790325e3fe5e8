"""Appends: a key is found or made, seals, and the item goes in behind its key's fence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.invariants import PENDING, committed
from tests.protocol.memory import buried, kept, vacated
from tests.protocol.state import (
    ACTIVE,
    DEACTIVATED,
    GONE,
    IDLE,
    NO_FENCE,
    NONE,
    OPEN,
    STALE,
    Client,
    Item,
    holder_of,
    put,
    with_client,
    with_fence,
    with_key,
    with_new_key,
    with_process,
)
from tests.protocol.world import Mistake, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.state import State

    Moves = Iterator[tuple[Label, State]]


class FirstUse:
    """
    Makes the key of a scope that has none, and seals nothing with it.

    Args:
        name: For the trace.
        scope: Whose key.
    """

    def __init__(self, name: str, scope: int = 0) -> None:
        self.name = name
        self.index = NONE
        self._scope = scope

    def moves(self, world: World, state: State) -> Moves:
        """Commit the row, whenever the slot is free."""
        if holder_of(state, self._scope) == NONE and world.can_write_keys(state):
            yield (
                Label(self.name, steps.ADD_ACTIVE, f"key {len(state.keys)}"),
                with_new_key(state, self._scope),
            )


class Writer:
    """
    Appends its items one after the other, each in a transaction.

    Args:
        name: For the trace.
        places: Of its items; one that comes twice is replaced in the same transaction (a snapshot is).
        process: Whose memory it uses. ``None``: it may seal under any key that its scope ever had, as if the
            key had been in memory for any time.
        old_snapshot: Its transaction may begin before it seals, in REPEATABLE READ.
        rotates: The policy may ask for a rotation on the write path.
        is_early: May run before a restore is checked.
    """

    def __init__(
        self,
        name: str,
        *places: int,
        process: int | None = None,
        old_snapshot: bool = False,
        rotates: bool = False,
        is_early: bool = False,
    ) -> None:
        self.name = name
        self.is_early = is_early
        self.index = NONE
        self._places = places
        self._process = process
        self._old_snapshot = old_snapshot
        self._rotates = rotates

    def moves(self, world: World, state: State) -> Moves:
        """Take the next step of an append."""
        client = state.clients[self.index]
        if client.at == IDLE:
            if client.done < len(self._places):
                yield from self._begun(world, state, client)
            return
        steps_from = {
            "begun": self._sealing,
            "confirmed": self._confirmed,
            "making": self._making,
            "loading": self._loading,
            "replacing": self._replacing,
            "replaced": self._replaced,
            "sealed": self._sealed,
            "inserted": self._inserted,
            "adding late": self._adding_late,
        }
        yield from steps_from[client.at](world, state, client)

    # --- the key ---

    def _begun(self, world: World, state: State, client: Client) -> Moves:
        place = self._places[client.done]
        _, database = world.places[place]
        client = client._replace(place=place, database=NONE)
        yield from self._sealing(world, state, client)
        if self._old_snapshot and not client.rows:
            snapshot = client._replace(at="begun", rows=state.fences[database])
            yield Label(self.name, steps.BEGIN), with_client(state, self.index, snapshot)

    def _sealing(self, world: World, state: State, client: Client) -> Moves:
        scope, _ = world.places[client.place]
        if self._process is not None:
            if state.processes[self._process].fresh != STALE:
                yield self._step(state, client, steps.CONFIRM_SEALING, at="confirmed")
            return
        for number, key in enumerate(state.keys):
            if key.scope == scope and key.state != GONE:
                yield self._seal(state, client, number)
        if holder_of(state, scope) == NONE:
            yield from self._added(world, state, client)

    def _confirmed(self, world: World, state: State, client: Client) -> Moves:
        scope, _ = world.places[client.place]
        process = self._process or 0
        seat = state.processes[process].seats[scope]
        if seat != NONE:
            yield self._seal(state, client, seat)
            if self._rotates and state.budget.rotations:
                version = state.keys[seat].version if state.keys[seat].state == ACTIVE else NONE
                yield self._step(state, client, steps.ROTATE_DUE, at="replacing", key=seat, version=version)
            return
        holder = holder_of(state, scope)
        if holder == NONE:
            yield self._step(state, client, steps.READ_ACTIVE, at="making", note="none")
        else:
            yield self._found(state, client, holder, steps.READ_ACTIVE)

    def _found(self, state: State, client: Client, holder: int, step: str) -> tuple[Label, State]:
        """Go on with the row that holds the slot: its key is loaded, or the scope is closed."""
        if state.keys[holder].state == ACTIVE:
            return self._step(state, client, step, at="loading", key=holder)
        after = buried(state, self._process or 0, holder)
        return Label(self.name, step, "the scope is closed"), with_client(
            after, self.index, self._rest(client)
        )

    def _making(self, world: World, state: State, client: Client) -> Moves:
        """The KMS has wrapped a new key, which nobody knows yet."""
        scope, _ = world.places[client.place]
        if world.mistake is Mistake.CACHED_BEFORE_COMMIT:
            yield self._seal(state, client, PENDING)
            return
        if not world.can_write_keys(state):
            return
        holder = holder_of(state, scope)
        if holder != NONE:  # the unique violation: the own key is dropped
            yield self._found(state, client, holder, steps.ADD_ACTIVE)
            return
        after = with_new_key(state, scope)
        yield self._step(after, client, steps.ADD_ACTIVE, at="loading", key=len(state.keys))

    def _added(self, world: World, state: State, client: Client) -> Moves:
        """First use without a memory: the row is committed, and the key seals."""
        scope, _ = world.places[client.place]
        if world.can_write_keys(state):
            after = with_new_key(state, scope)
            sealed = client._replace(at="sealed", key=len(state.keys))
            yield (
                Label(self.name, steps.ADD_ACTIVE, f"key {sealed.key}"),
                with_client(after, self.index, sealed),
            )

    def _loading(self, world: World, state: State, client: Client) -> Moves:
        """The row was read and its key unwrapped."""
        if client.moved:
            yield self._step(state, client, steps.KEEP, at="confirmed", key=NONE, moved=False)
            return
        scope, _ = world.places[client.place]
        after = kept(state, self._process or 0, client.key, scope=scope)
        yield self._seal(after, client, client.key, step=steps.SEAT)

    def _replacing(self, world: World, state: State, client: Client) -> Moves:
        if not world.can_write_keys(state):
            return
        scope, _ = world.places[client.place]
        old = state.keys[client.key]
        if old.slot and old.version == client.version and state.budget.rotations:
            after = with_new_key(with_key(state, client.key, to=DEACTIVATED), scope)
            budget = state.budget._replace(rotations=state.budget.rotations - 1)
            after = after._replace(budget=budget)
            yield self._step(
                after, client, steps.REPLACE_ACTIVE, at="replaced", source=client.key, key=len(state.keys)
            )
            return
        process = state.processes[self._process or 0]
        unseated = process._replace(seats=put(process.seats, scope, NONE))
        after = with_process(state, self._process or 0, unseated)
        yield self._step(after, client, steps.UNSEAT, at="confirmed", key=NONE, version=0, moved=False)

    def _replaced(self, world: World, state: State, client: Client) -> Moves:
        """The new key is committed; now the process learns of its own change."""
        process = self._process or 0
        after = with_process(state, process, vacated(state.processes[process], client.source))
        if client.moved:
            again = client._replace(source=NONE, moved=False)
            yield self._step(after, again, steps.REPLACED, at="confirmed", key=NONE)
            return
        scope, _ = world.places[client.place]
        after = kept(after, process, client.key, scope=scope)
        yield self._seal(after, client._replace(source=NONE), client.key, step=steps.REPLACED)

    # --- the item ---

    def _sealed(self, world: World, state: State, client: Client) -> Moves:
        _, database = world.places[client.place]
        if not world.can_write(state, database) or self._waits_for_row(world, state, client):
            return
        if client.key == PENDING:
            yield self._insert(state, client, database)
            return
        fence = state.fences[database][client.key]
        if fence == NO_FENCE and not world.is_closing(state, database, client.key):
            if not world.sqlite:
                after = with_fence(state, database, client.key, OPEN)
                yield Label(self.name, steps.OPEN_FENCE, f"key {client.key}"), after
                return
            # In the inserting transaction; with it, it would be rolled back.
            state, fence = with_fence(state, database, client.key, OPEN), OPEN
        locks = world.mistake not in {Mistake.NO_FENCE_LOCK, Mistake.FOR_KEY_SHARE}
        if locks and world.is_closing(state, database, client.key):
            return  # waits for whoever is closing it
        yield self._inserting(state, client, database, fence)

    def _inserting(self, state: State, client: Client, database: int, fence: str) -> tuple[Label, State]:
        if client.rows:  # REPEATABLE READ: what the snapshot shows, unless the row was updated since
            visible = client.rows[client.key] if client.key < len(client.rows) else NO_FENCE
            if visible != fence or visible != OPEN:
                return self._refused(state, client, "the snapshot is older than the fence")
        elif fence != OPEN:
            return self._refused(state, client, f"the fence of key {client.key} is {fence}")
        return self._insert(state, client, database)

    def _insert(self, state: State, client: Client, database: int) -> tuple[Label, State]:
        return self._step(state, client, steps.INSERT, at="inserted", database=database, rows=())

    def _inserted(self, world: World, state: State, client: Client) -> Moves:
        old = state.items[client.place]
        item = Item(client.key, 0 if old is None else old.content + 1)
        after = committed(state, client.place, item, client.database)
        done = Client(done=client.done + 1)
        if client.key == PENDING:
            done = done._replace(at="adding late", place=client.place)
        yield (
            Label(self.name, steps.COMMIT, f"item {client.place} under key {client.key}"),
            with_client(after, self.index, done),
        )
        yield Label(self.name, steps.ROLL_BACK), with_client(state, self.index, self._rest(client))

    def _adding_late(self, world: World, state: State, client: Client) -> Moves:
        """Only with a mistake: the row of a key that has sealed already is committed."""
        scope, database = world.places[client.place]
        if holder_of(state, scope) != NONE:
            yield (
                Label(self.name, steps.ADD_ACTIVE, "lost the race"),
                with_client(state, self.index, self._rest(client)),
            )
            return
        number = len(state.keys)
        after = with_new_key(state, scope)
        items = put(after.items, client.place, Item(number))
        after = with_fence(after._replace(items=items), database, number, OPEN)
        yield (
            Label(self.name, steps.ADD_ACTIVE, f"key {number}"),
            with_client(after, self.index, self._rest(client)),
        )

    def _waits_for_row(self, world: World, state: State, client: Client) -> bool:
        return world.is_row_locked(state, client.place)

    # --- small steps ---

    def _seal(self, state: State, client: Client, key: int, step: str = steps.SEAL) -> tuple[Label, State]:
        sealed = client._replace(at="sealed", key=key, version=0, moved=False)
        return Label(self.name, step, f"key {key}"), with_client(state, self.index, sealed)

    def _refused(self, state: State, client: Client, why: str) -> tuple[Label, State]:
        return Label(self.name, steps.REFUSE, why), with_client(state, self.index, self._rest(client))

    def _step(
        self, state: State, client: Client, step: str, *, note: str = "", **changes: object
    ) -> tuple[Label, State]:
        moved = client._replace(**changes)  # type: ignore[arg-type]
        note = note or (f"key {moved.key}" if moved.key != NONE else "")
        return Label(self.name, step, note), with_client(state, self.index, moved)

    def _rest(self, client: Client) -> Client:
        return Client(done=client.done)

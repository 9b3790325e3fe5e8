"""Re-encryption: read a row, seal its content under the active key, swap, look at both keys, commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.invariants import PENDING, committed
from tests.protocol.state import (
    ACTIVE,
    CLOSED,
    COMPROMISED,
    GONE,
    IDLE,
    NO_FENCE,
    NONE,
    OPEN,
    OPENS,
    Client,
    Item,
    bit,
    holder_of,
    with_client,
    with_fence,
    with_new_key,
)
from tests.protocol.world import Mistake, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.state import State

    Moves = Iterator[tuple[Label, State]]


class Reencrypter:
    """
    Re-encrypts one item after the other.

    Its memory is as stale as can be: it opens under a key that was destroyed meanwhile, and seals under any
    key that the scope ever had. A crash loses nothing but the row in hand, so the cursor is not modelled.

    Args:
        name: For the trace.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = NONE

    def moves(self, world: World, state: State) -> Moves:
        """Take the next step of the batch, which is one item."""
        client = state.clients[self.index]
        if client.at == IDLE:
            for place, item in enumerate(state.items):
                if item is not None and self._is_old(world, state, place, item):
                    yield from self._read(world, state, place, item)
        elif client.at == "page read":
            yield from self._sealed(world, state, client)
        elif client.at == "sealed again":
            yield from self._fenced(world, state, client)
        elif client.at == "fence shared":
            yield from self._swapped(world, state, client)
        elif client.at == "swapped":
            yield from self._source_read(world, state, client)
        else:
            yield self._committed(state, client)

    def _is_old(self, world: World, state: State, place: int, item: Item) -> bool:
        if item.key == PENDING or state.keys[item.key].state in {ACTIVE, GONE}:
            return False
        _, database = world.places[place]
        needs_mark = state.keys[item.key].state == COMPROMISED
        return not needs_mark or bool(state.marks[database] & bit(item.key))

    def _read(self, world: World, state: State, place: int, item: Item) -> Moves:
        client = Client("page read", place=place, source=item.key, content=item.content)
        if world.mistake is Mistake.SOURCE_READ_FIRST and state.keys[item.key].state not in OPENS:
            return
        yield self._to(state, steps.READ_PAGE, client, f"item {place} under key {item.key}")

    def _sealed(self, world: World, state: State, client: Client) -> Moves:
        scope, _ = world.places[client.place]
        for number, key in enumerate(state.keys):
            if key.scope == scope and number != client.source and key.state != GONE:
                yield self._to(state, steps.RESEAL, client._replace(at="sealed again", key=number))
        if state.keys[client.source].state not in OPENS:
            yield self._to(state, steps.RESEAL, Client(), "does not open any more")
        if holder_of(state, scope) == NONE:
            if world.mistake is Mistake.REENCRYPTION_MAKES_KEYS:
                sealed = client._replace(at="sealed again", key=len(state.keys))
                made = with_new_key(state, scope)._replace(broken="a re-encryption made a key")
                yield self._to(made, steps.ADD_ACTIVE, sealed)
            else:
                yield self._to(state, steps.SKIP, Client(), "the scope has no key")

    def _fenced(self, world: World, state: State, client: Client) -> Moves:
        _, database = world.places[client.place]
        if not world.can_write(state, database):
            return
        if world.mistake is not Mistake.NO_TARGET_FENCE:
            fence = state.fences[database][client.key]
            if world.is_closing(state, database, client.key):
                return
            if fence == NO_FENCE:
                after = with_fence(state, database, client.key, OPEN)
                yield Label(self.name, steps.OPEN_FENCE, f"key {client.key}"), after
                return
            if fence == CLOSED:
                yield self._again(
                    state, client, steps.SHARE_FENCE, f"the fence of key {client.key} is closed"
                )
                return
        yield self._to(state, steps.SHARE_FENCE, client._replace(at="fence shared", database=database))

    def _swapped(self, world: World, state: State, client: Client) -> Moves:
        if world.is_row_locked(state, client.place):
            return
        item = state.items[client.place]
        same = item is not None and item.key == client.source
        if world.mistake is not Mistake.SWAP_ON_KEY_ID:
            same = same and item is not None and item.content == client.content
        if same:
            yield self._to(state, steps.SWAP, client._replace(at="swapped"))
        else:
            yield self._to(state, steps.SWAP, Client(), "the row has changed: left as it is")

    def _source_read(self, world: World, state: State, client: Client) -> Moves:
        live = state.keys[client.source].state in OPENS and state.keys[client.key].state in OPENS
        if world.mistake is Mistake.SOURCE_READ_FIRST:
            yield self._committed(state, client)
        elif not live:
            yield self._again(state, client, steps.CHECK_KEYS, "a key was destroyed meanwhile: rolled back")
        elif world.keys_apart:
            yield self._to(state, steps.CHECK_KEYS, client._replace(at="keys checked"))
        else:  # FOR SHARE: nobody destroys them before the COMMIT
            yield self._committed(state, client)

    def _again(self, state: State, client: Client, step: str, note: str) -> tuple[Label, State]:
        """Roll back; the page in hand is sealed once more."""
        return self._to(state, step, client._replace(at="page read", key=NONE, database=NONE), note)

    def _committed(self, state: State, client: Client) -> tuple[Label, State]:
        after = committed(state, client.place, Item(client.key, client.content), client.database)
        return self._to(after, steps.COMMIT_BATCH, Client(), f"item {client.place} under key {client.key}")

    def _to(self, state: State, step: str, client: Client, note: str = "") -> tuple[Label, State]:
        note = note or (f"key {client.key}" if client.key != NONE else "")
        return Label(self.name, step, note), with_client(state, self.index, client)

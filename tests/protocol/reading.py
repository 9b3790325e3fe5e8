"""Reads: an item's row, then its key from memory or from its row, then the plaintext."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.invariants import PENDING
from tests.protocol.memory import buried, kept
from tests.protocol.state import IDLE, NONE, OPENS, RETIRED, STALE, Client, bit, with_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.state import State
    from tests.protocol.world import World

    Moves = Iterator[tuple[Label, State]]

LATE = 1
"""In ``version``: the read began when the refresh bound had passed since its key was shredded."""


class Reader:
    """
    Reads items, again and again.

    Args:
        name: For the trace.
        process: Whose memory it uses.
        places: Of the items that it reads.
    """

    def __init__(self, name: str, *places: int, process: int) -> None:
        self.name = name
        self.index = NONE
        self._process = process
        self._places = places

    def moves(self, world: World, state: State) -> Moves:
        """Take the next step of a read."""
        client = state.clients[self.index]
        if client.at == IDLE:
            for place in self._places:
                item = state.items[place]
                if item is not None and item.key != PENDING:
                    late = LATE if state.bound & bit(item.key) else 0
                    yield self._to(state, steps.READ_ITEMS, Client("read", key=item.key, version=late))
        elif client.at == "read":
            if state.processes[self._process].fresh != STALE:
                yield self._to(state, steps.CONFIRM_OPENING, client._replace(at="opening"))
        elif client.at == "opening":
            yield self._opening(state, client)
        elif client.moved:
            yield self._to(state, steps.KEEP, client._replace(at="opening", moved=False))
        else:
            yield self._opened(kept(state, self._process, client.key), client, steps.KEEP)

    def _opening(self, state: State, client: Client) -> tuple[Label, State]:
        memory, key = state.processes[self._process], client.key
        if memory.held & bit(key):
            return self._opened(state, client, steps.OPEN_ITEM)
        if memory.refused & bit(key):
            return self._to(state, steps.OPEN_ITEM, Client())
        if state.keys[key].state in OPENS:
            return self._to(state, steps.READ_KEY, client._replace(at="loading"))
        # A row that was read before a re-encryption may name a key that was retired since: read it again.
        after = buried(state, self._process, key)
        label = "retired meanwhile" if state.keys[key].state == RETIRED else "erased"
        return Label(self.name, steps.BURY, label), with_client(after, self.index, Client())

    def _opened(self, state: State, client: Client, step: str) -> tuple[Label, State]:
        if client.version == LATE:
            state = state._replace(broken="a read that began after the refresh bound got shredded plaintext")
        return self._to(state, step, Client(), note=f"plaintext of an item under key {client.key}")

    def _to(self, state: State, step: str, client: Client, *, note: str = "") -> tuple[Label, State]:
        note = note or (f"key {client.key}" if client.key != NONE else "")
        return Label(self.name, step, note), with_client(state, self.index, client)

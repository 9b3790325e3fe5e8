"""What a process does with its memory of keys: refreshes, keeps, seats, drops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.state import ACTIVE, NONE, OPENS, STALE, Process, Refresh, bit, put, with_process
from tests.protocol.world import Mistake, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.state import State

LOADING = frozenset({"loading", "making", "replacing", "replaced"})
"""Points at which an actor has read a row and has not kept its key yet."""


class Refreshes:
    """
    Refreshes one process's memory; one at a time, whichever thread does it.

    Args:
        process: Its number.
        actors: The numbers of those that run in it.
    """

    def __init__(self, process: int, *actors: int) -> None:
        self.name = f"refresh of process {process}"
        self.index = NONE
        self.is_early = True  # who does not run does not refresh
        self._process = process
        self._actors = actors

    def moves(self, world: World, state: State) -> Iterator[tuple[Label, State]]:
        """
        Begin, read or learn.

        A refresh that would find nothing moved, and confirm what is confirmed, is left out.
        """
        process = state.processes[self._process]
        refresh = process.refresh
        if refresh is None:
            if process.moved or process.fresh == STALE:
                began = state.returned & ~state.bound
                after = process._replace(refresh=Refresh(process.held, began))
                yield Label(self.name, steps.ASK), with_process(state, self._process, after)
        elif refresh.rows is None:
            rows = tuple(
                (number, key.state)
                for number, key in enumerate(state.keys)
                if refresh.asked & process.moved & bit(number)
            )
            read = refresh._replace(rows=rows, moved=bool(process.moved))
            after = process._replace(moved=0, refresh=read)
            yield Label(self.name, steps.READ_CHANGES), with_process(state, self._process, after)
        else:
            yield Label(self.name, steps.LEARN), self._learned(world, state, process, refresh)

    def _learned(self, world: World, state: State, process: Process, refresh: Refresh) -> State:
        after = process._replace(fresh=refresh.began, refresh=None)
        if refresh.moved:
            for number, key_state in refresh.rows or ():
                if key_state not in OPENS:
                    after = dropped(after, number)
                elif key_state != ACTIVE:
                    after = vacated(after, number)
            if world.mistake is not Mistake.KEPT_DURING_REFRESH:
                for number in range(len(state.keys)):
                    if after.held & ~refresh.asked & bit(number):
                        after = dropped(after, number)
            if world.mistake is not Mistake.LOAD_NOT_RECHECKED:
                state = self._loads_flagged(state)
        return with_process(state, self._process, after)

    def _loads_flagged(self, state: State) -> State:
        clients = tuple(
            client._replace(moved=True)
            if index in self._actors and client.at in LOADING and not client.moved
            else client
            for index, client in enumerate(state.clients)
        )
        return state._replace(clients=clients)


def dropped(process: Process, key: int) -> Process:
    """Let a key go."""
    return vacated(process, key)._replace(held=process.held & ~bit(key))


def vacated(process: Process, key: int) -> Process:
    """Seal no more under a key."""
    if key not in process.seats:
        return process
    return process._replace(seats=tuple(NONE if seat == key else seat for seat in process.seats))


def kept(state: State, process: int, key: int, *, scope: int | None = None) -> State:
    """Hold a key, and seat it if it is to seal for a scope."""
    memory = state.processes[process]
    memory = memory._replace(held=memory.held | bit(key), refused=memory.refused & ~bit(key))
    if scope is not None:
        memory = memory._replace(seats=put(memory.seats, scope, key))
    return with_process(state, process, memory)


def buried(state: State, process: int, key: int) -> State:
    """Drop a key whose tombstone was read, and remember that it does not open."""
    memory = dropped(state.processes[process], key)
    return with_process(state, process, memory._replace(refused=memory.refused | bit(key)))

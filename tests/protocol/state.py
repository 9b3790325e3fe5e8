"""
What the model's world consists of: the tables, what processes hold in memory, and where every actor stands.

Keys are numbered in the order in which their rows are committed. A set of keys is a mask of bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

# The states of a key; `retired` and `shredded` are `destroyed`, by what its tombstone says.
ACTIVE, DEACTIVATED, COMPROMISED, RETIRED, SHREDDED = (
    "active",
    "deactivated",
    "compromised",
    "retired",
    "shredded",
)
GONE = "gone"
"""There is no such row any more: the key tables were restored from a backup that does not have it."""
OPENS = frozenset({ACTIVE, DEACTIVATED, COMPROMISED})
RETIRABLE = frozenset({DEACTIVATED, COMPROMISED})

NO_FENCE, OPEN, CLOSED = "-", "open", "closed"

NONE = -1
"""No key, no place."""

STALE = -1
"""What a process knows was confirmed too long ago."""

IDLE = "idle"


class Key(NamedTuple):
    """A row of ``eventseal_encryption_keys``; ``slot`` is whether ``active_scope`` is set."""

    scope: int
    state: str = ACTIVE
    slot: bool = True
    version: int = 0


class Item(NamedTuple):
    """A stored item; ``erased`` (nobody stores it) is whether its scope was shredded after it was written."""

    key: int
    content: int = 0
    erased: bool = False


class Refresh(NamedTuple):
    """A refresh in flight: the keys it asks for, the shreds that had returned when it began, what it read."""

    asked: int
    began: int
    moved: bool = False
    rows: tuple[tuple[int, str], ...] | None = None


class Process(NamedTuple):
    """
    What a process holds of keys.

    Attributes:
        fresh: ``STALE``, or the keys whose shredding had returned when what it knows was confirmed.
        held: Keys that open.
        seats: By scope the key that seals, or ``NONE``.
        moved: Keys that have changed since the last refresh read: the counter is not the one it knows.
        refused: Negative entries.
        refresh: In flight.
    """

    fresh: int
    seats: tuple[int, ...]
    held: int = 0
    moved: int = 0
    refused: int = 0
    refresh: Refresh | None = None


class Client(NamedTuple):
    """
    Where an actor stands, and what it has in hand.

    Attributes:
        at: The point between two steps.
        key: It seals, opens, closes or destroys.
        database: Where it has a transaction open.
        place: Where the item is that it writes.
        source: Key of the item that it re-encrypts.
        content: Of that item.
        version: Of the key's row when it was read.
        moved: Whether states moved since the row was read, so that it must be read again.
        rows: What it has read, or what it has still to do.
        done: Items that it has written.
    """

    at: str = IDLE
    key: int = NONE
    database: int = NONE
    place: int = NONE
    source: int = NONE
    content: int = 0
    version: int = 0
    moved: bool = False
    rows: tuple[Any, ...] = ()
    done: int = 0


class Budget(NamedTuple):
    """How often what would otherwise go on for ever may still happen."""

    rotations: int = 0
    compromises: int = 0
    shreds: int = 0
    reopens: int = 0
    crashes: int = 0
    timeouts: int = 0
    backups: int = 0
    restores: int = 0
    forgeries: int = 0


class Entry(NamedTuple):
    """
    An entry of the erasure ledger; its number is its place, from 1.

    Attributes:
        kind: ``intent``, ``done`` or ``reopen``.
        scope: Of what it tells.
        keys: Of which it tells.
        told_by: Of a ``done``: its run's own intents.
        closes: Of a ``done``: the intents that are done by it.
        forged: It does not authenticate.
    """

    kind: str
    scope: int
    keys: int
    told_by: tuple[int, ...] = ()
    closes: tuple[int, ...] = ()
    forged: bool = False


class Backup(NamedTuple):
    """A copy of the key tables; and of the items and fences, if they are in the same database."""

    keys: tuple[Key, ...]
    items: tuple[Item | None, ...] = ()
    fences: tuple[tuple[str, ...], ...] = ()


class Erasures(NamedTuple):
    """
    What is kept of erasures outside of the key tables, and what nobody keeps.

    Attributes:
        ledger: Its entries.
        backup: If one was taken.
        unchecked: Whether the key tables were restored, and the restore is not checked yet.
        shredded: The keys that were ever shredded. Nobody stores this, nor what follows.
        due: Scopes that were closed when the tables were restored.
    """

    ledger: tuple[Entry, ...] = ()
    backup: Backup | None = None
    unchecked: bool = False
    shredded: int = 0
    due: int = 0


class State(NamedTuple):
    """
    Everything.

    Attributes:
        keys: Rows, by number.
        fences: By database and key.
        marks: By database, the compromised keys whose high-water mark is recorded.
        items: By place.
        closed: Scopes that were shredded and not reopened. Nobody stores this: it is what ought to be.
        returned: Keys whose shredding has returned to its caller.
        bound: Those for which the refresh bound has passed since.
        budget: What may still happen.
        broken: The invariant that the last step broke.
        erasures: The ledger, and backups.
        processes: Their memories.
        clients: By the number of the actor.
    """

    keys: tuple[Key, ...]
    fences: tuple[tuple[str, ...], ...]
    marks: tuple[int, ...]
    items: tuple[Item | None, ...]
    closed: int
    returned: int
    bound: int
    budget: Budget
    broken: str
    erasures: Erasures
    processes: tuple[Process, ...]
    clients: tuple[Client, ...]

    def __str__(self) -> str:
        keys = [f"key {n}: {key.state}" + (", slot" if key.slot else "") for n, key in enumerate(self.keys)]
        items = [f"item {n} under key {item.key}" for n, item in enumerate(self.items) if item is not None]
        ledger = [f"{n} {entry.kind}" for n, entry in enumerate(self.erasures.ledger, 1)]
        told = [f"ledger {', '.join(ledger)}"] if ledger else []
        return "; ".join([*keys, f"fences {self.fences}", *items, *told])


def bit(number: int) -> int:
    """Give the mask of one key or scope."""
    return 1 << number


def put(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    """Replace one element."""
    return (*values[:index], value, *values[index + 1 :])


def with_client(state: State, index: int, client: Client) -> State:
    """Move an actor."""
    return state._replace(clients=put(state.clients, index, client))


def with_process(state: State, index: int, process: Process) -> State:
    """Change what a process holds."""
    return state._replace(processes=put(state.processes, index, process))


def holder_of(state: State, scope: int) -> int:
    """Give the key that holds a scope's slot, maybe a tombstone, or ``NONE``."""
    for number, key in enumerate(state.keys):
        if key.slot and key.scope == scope:
            return number
    return NONE


def keys_of(state: State, scope: int) -> tuple[tuple[int, Key], ...]:
    """Give the rows of a scope, with their numbers."""
    return tuple((n, key) for n, key in enumerate(state.keys) if key.scope == scope and key.state != GONE)


def with_new_key(state: State, scope: int) -> State:
    """Commit the row of a new active key."""
    return state._replace(
        keys=(*state.keys, Key(scope)), fences=tuple((*fences, NO_FENCE) for fences in state.fences)
    )


def with_key(state: State, number: int, *, to: str, slot: bool = False) -> State:
    """Commit a key's change of state: every process has a change to learn."""
    key = state.keys[number]
    keys = put(state.keys, number, Key(key.scope, to, slot, key.version + 1))
    processes = tuple(process._replace(moved=process.moved | bit(number)) for process in state.processes)
    return state._replace(keys=keys, processes=processes)


def with_fence(state: State, database: int, key: int, fence: str) -> State:
    """Commit a fence's row."""
    return state._replace(fences=put(state.fences, database, put(state.fences[database], key, fence)))

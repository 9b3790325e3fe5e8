"""The model: a set-up with its actors, put together into something that can be explored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.invariants import violation
from tests.protocol.ledger import DONE, INTENT, REOPEN, open_intents
from tests.protocol.state import (
    CLOSED,
    IDLE,
    NONE,
    RETIRABLE,
    SHREDDED,
    STALE,
    Budget,
    Client,
    Entry,
    Erasures,
    Key,
    Process,
    State,
    bit,
    put,
    with_client,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.checker import Model


class Mistake(Enum):
    """What the protocol must not be: each is a way in which it would lose something."""

    NO_FENCE_LOCK = "the INSERT looks at the fence without locking it"
    FOR_KEY_SHARE = "the INSERT locks the fence FOR KEY SHARE, which the closing UPDATE does not wait for"
    COUNT_BEFORE_LOCK = "retire counts before it closes the fence"
    WRONG_ISOLATION = "retire counts in the snapshot that it took before it got the fence"
    TOMBSTONE_WITHOUT_SLOT = "shred's tombstone does not keep active_scope"
    SWAP_ON_KEY_ID = "the swap compares the key's id instead of the old bytes"
    CACHED_BEFORE_COMMIT = "a key is handed out before its row is committed"
    LOAD_NOT_RECHECKED = "a load that was in flight during a refresh is kept without reading the row again"
    KEPT_DURING_REFRESH = (
        "a key that was kept while a refresh was reading stays, although nobody asked for it"
    )
    SOURCE_READ_FIRST = "re-encryption reads the source key's state before it takes the target's key"
    NO_TARGET_FENCE = "the swap does not hold the target's fence"
    REENCRYPTION_MAKES_KEYS = "re-encryption makes the key of a scope that has none"
    SHRED_WITHOUT_WHOLE_SCOPE = "shred destroys the keys that it read, and not one that came meanwhile"
    REPLACE_WITHOUT_VERSION = "a rotation closes the key that it read without comparing its row_version"
    REOPEN_BEFORE_FENCES = "reopen clears the slot before the fences of the shredded keys are closed"
    MARKS_BEFORE_FENCE = "the high-water mark is recorded without closing the fence first"
    DESTROY_BEFORE_FENCES = "retire deletes the wrappings before every items database has closed its fence"
    SHRED_BEFORE_INTENT = "the keys are destroyed, and then the ledger is told what is meant"
    DONE_BEFORE_SHRED = "the ledger is told that it is done before the keys are destroyed"
    INTENT_WITHOUT_NEW_KEY = "a key that a rotation made meanwhile is destroyed, and no intent names it"
    INTENT_USED_AGAIN = "a shred that has to read the rows again goes on with an intent that is done with"
    DONE_CLOSES_LATER = "what is done closes intents that were told after the keys were destroyed"
    CLOSED_SCOPE_LEFT_ALONE = "a shred of a scope that is closed leaves every row as it is"
    HOLDER_MOVED_ALONE = "a shred of a scope that is closed moves the tombstone that holds the slot alone"
    REOPEN_NOT_TOLD = "a reopening is not told to the ledger"
    REOPEN_TOLD_LATE = "a reopening is told to the ledger when it is done"
    REOPEN_TOLD_ONCE = "a reopening that has to read the rows again is not told again"
    REOPEN_BESIDE_INTENT = "a reopening looks for intents first, and is told without looking again"
    CHECK_TAKES_FORGED = "the restore's check acts by entries that it did not verify"
    CHECK_BY_SCOPE = "the restore's check destroys every key of a scope that was ever shredded"
    CHECK_WITHOUT_TOMBSTONES = "the restore's check does not put back tombstones"
    CHECK_LEAVES_INTENTS = "the restore's check destroys what intents name, and does not carry them through"
    CHECK_LEAVES_SLOTS = "the restore's check destroys keys, and does not close scopes"
    CHECK_OF_DONE_ALONE = "the restore's check looks at what was done, and not at intents"


class Actor(Protocol):
    """Somebody who takes steps."""

    name: str
    index: int

    def moves(self, world: World, state: State) -> Iterator[tuple[Label, State]]:
        """Give what it can do next."""
        ...


@dataclass(frozen=True, kw_only=True)
class World:
    """
    A set-up of the model.

    Attributes:
        name: What it is about.
        actors: Who takes steps; each has its number here.
        budget: How often what would go on for ever may happen.
        places: By place, the scope and the items database of an item that may be written.
        scopes: How many.
        databases: Items databases.
        processes: Whose memories are modelled.
        sqlite: One writer at a time in each database; else PostgreSQL.
        keys_apart: The keys are in a database of their own; else beside the items of the first one.
        retires: Somebody does, so that no key of the past need be left in the end.
        items_too: Backups are of the items and fences, too; else of the key tables alone.
        reopened: The first scope was shredded and reopened before: key 0 is a tombstone without a slot.
        mistake: Made on purpose.
    """

    name: str
    actors: tuple[Actor, ...]
    budget: Budget
    places: tuple[tuple[int, int], ...]
    scopes: int = 1
    databases: int = 1
    processes: int = 0
    sqlite: bool = False
    keys_apart: bool = False
    retires: bool = True
    items_too: bool = False
    reopened: bool = False
    mistake: Mistake | None = None

    def __post_init__(self) -> None:
        for index, actor in enumerate(self.actors):
            actor.index = index

    # --- what the checker asks ---

    def initial(self) -> State:
        """Begin with empty tables, or those of a scope that was reopened, and cold caches."""
        past = (Key(0, SHREDDED, slot=False),) if self.reopened else ()
        told = (Entry(INTENT, 0, bit(0)), Entry(DONE, 0, bit(0), (1,), (1,)), Entry(REOPEN, 0, bit(0)))
        return State(
            keys=past,
            fences=((CLOSED,) * len(past),) * self.databases,
            marks=(0,) * self.databases,
            items=(None,) * len(self.places),
            closed=0,
            returned=len(past),
            bound=len(past),
            budget=self.budget,
            broken="",
            erasures=Erasures(told, shredded=bit(0)) if past else Erasures(),
            processes=(Process(STALE, (NONE,) * self.scopes),) * self.processes,
            clients=(Client(),) * len(self.actors),
        )

    def moves(self, state: State) -> Iterator[tuple[Label, State]]:
        """Let every actor take its next step."""
        for actor in self.actors:
            # Until a restore is checked no application starts; but one may be early.
            if not state.erasures.unchecked or getattr(actor, "is_early", False):
                yield from actor.moves(self, state)

    def violation(self, state: State) -> str | None:
        """Say which invariant a state breaks."""
        return violation(state)

    def is_done(self, state: State) -> bool:
        """Whether everybody rests and, if somebody retires keys, only active and destroyed ones are left."""
        if any(client.at != IDLE for client in state.clients):
            return False
        if state.erasures.unchecked or any(open_intents(state, scope) for scope in range(self.scopes)):
            return False
        return not self.retires or not any(key.state in RETIRABLE for key in state.keys)

    def parts(self, state: State) -> tuple[Any, ...]:
        """Take a state apart where its parts change apart from each other."""
        return (
            state.keys,
            (state.fences, state.marks),
            state.items,
            (state.closed, state.returned, state.bound, state.budget, state.broken),
            state.erasures,
            *state.processes,
            *state.clients,
        )

    def whole(self, parts: tuple[Any, ...]) -> State:
        """Put a state together again."""
        keys, (fences, marks), items, (closed, returned, bound, budget, broken), erasures = parts[:5]
        memories = 5 + self.processes
        return State(
            keys,
            fences,
            marks,
            items,
            closed,
            returned,
            bound,
            budget,
            broken,
            erasures,
            parts[5:memories],
            parts[memories:],
        )

    # --- locks: held by who stands inside a transaction ---

    def shares_fence(self, state: State, database: int, key: int) -> bool:
        """Whether an open transaction holds a key's fence ``FOR SHARE``."""
        return any(
            client.at in SHARING and client.key == key and client.database == database
            for client in state.clients
        )

    def is_closing(self, state: State, database: int, key: int) -> bool:
        """Whether an open transaction has closed a fence, and not committed."""
        return any(
            client.at in CLOSING and client.key == key and client.database == database
            for client in state.clients
        )

    def can_write(self, state: State, database: int) -> bool:
        """Whether nobody holds SQLite's write lock."""
        if not self.sqlite:
            return True
        return not any(
            client.database == database and (client.at in SHARING or client.at in CLOSING)
            for client in state.clients
        )

    def can_write_keys(self, state: State) -> bool:
        """Whether the key tables can be written at once; they may be in the items' file."""
        return self.keys_apart or self.can_write(state, 0)

    def can_close(self, state: State, database: int, key: int) -> bool:
        """Whether a fence's closing UPDATE need not wait."""
        if self.sqlite:
            return self.can_write(state, database)
        if self.is_closing(state, database, key):
            return False
        locks = self.mistake not in {Mistake.NO_FENCE_LOCK, Mistake.FOR_KEY_SHARE}
        return not (locks and self.shares_fence(state, database, key))

    def is_row_locked(self, state: State, place: int) -> bool:
        """Whether an open transaction has written an item's row."""
        return any(client.at in WRITTEN and client.place == place for client in state.clients)


WRITTEN = frozenset({"inserted", "swapped", "keys checked"})
"""Points inside a transaction that has written items."""

SHARING = WRITTEN | {"fence shared"}
"""Points inside a transaction that shares the fences of the keys that it writes under."""

CLOSING = frozenset({"closing", "counted", "marking"})
"""Points inside a transaction that has closed a fence."""


def killed(state: State, indexes: tuple[int, ...]) -> State:
    """Let actors forget where they were; what they had not committed is rolled back."""
    for index in indexes:
        state = with_client(state, index, Client(done=state.clients[index].done))
    return state._replace(budget=state.budget._replace(crashes=state.budget.crashes - 1))


class Crashes:
    """
    Kills a process: its memory and its open transactions are gone.

    Args:
        name: For the trace.
        actors: Numbers of those that run in the process.
        process: Its number, if its memory is modelled.
    """

    def __init__(self, name: str, *actors: int, process: int | None = None) -> None:
        self.name = name
        self.index = NONE
        self._actors = actors
        self._process = process

    def moves(self, world: World, state: State) -> Iterator[tuple[Label, State]]:
        """Crash, unless nothing would be lost."""
        busy = any(state.clients[index].at != IDLE for index in self._actors)
        if state.budget.crashes and busy:
            after = killed(state, self._actors)
            if self._process is not None:
                cold = Process(STALE, (NONE,) * world.scopes)
                # The new process has learned nothing; what it reads first is current.
                after = after._replace(processes=put(after.processes, self._process, cold))
            yield Label(self.name, steps.CRASH, fault=True), after


class Time:
    """Lets the refresh interval pass after a shred has returned."""

    name = "the clock"
    index = NONE

    def moves(self, world: World, state: State) -> Iterator[tuple[Label, State]]:
        """Make stale what was confirmed before the shreds returned that had returned by now."""
        waiting = state.returned & ~state.bound
        if not waiting:
            return
        processes = []
        for process in state.processes:
            fresh = 0 if process.fresh != STALE and not waiting & ~process.fresh else STALE
            refresh = process.refresh
            if refresh is not None:
                began = 0 if refresh.began != STALE and not waiting & ~refresh.began else STALE
                refresh = refresh._replace(began=began)
            processes.append(process._replace(fresh=fresh, refresh=refresh))
        yield (
            Label(self.name, steps.TIME),
            state._replace(bound=state.returned, processes=tuple(processes)),
        )


if TYPE_CHECKING:
    _: type[Model] = World
    __: type[Actor] = Crashes

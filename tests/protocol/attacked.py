"""
A model of its own for somebody who writes to the database, and cannot call the KMS.

There is one scope. Digests are modelled by what they stand for: the mark holds the tree that it proves.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tests.protocol.state import (
    ACTIVE,
    COMPROMISED,
    IDLE,
    NONE,
    OPENS,
    RETIRABLE,
    RETIRED,
    SHREDDED,
    bit,
    put,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.protocol.checker import Label, Model

    Moves = Iterator[tuple[Label, "Attacked"]]

OURS, THEIRS, UNREGISTERED = "ours", "another application's", "not registered"
"""What the registry says of a table."""

ENDED = frozenset({RETIRED, SHREDDED})
LATER = {"": OPENS | ENDED, COMPROMISED: {COMPROMISED, *ENDED}, RETIRED: ENDED, SHREDDED: ENDED}
"""By what the tree says of a key, the states that its row may show."""

SCOPE = -1
"""The tree's leaf of the scope; the others are of keys, by number."""


class AttackMistake(Enum):
    """What the protocol must not be where somebody writes to the database."""

    ROWS_BELIEVED = "a row is believed although the tree has its key in a later state"
    LEAVES_BELIEVED = "a leaf of the tree is believed although the mark does not prove it"
    RETIRED_NOT_LISTED = "a compromised key leaves the tree when it is retired"
    REFRESH_BY_ROWS = "a refresh goes by the rows of the keys that are held, and not by the tree"
    OLD_FORMAT_TAKEN = "a mark of the format before the tree is taken after the upgrade"
    EARLIER_MARK_TAKEN = "a mark is taken that is earlier than one that was seen"
    OPEN_BY_SLOT = "first use takes a scope as open whose slot is free"
    LOOKED_AT_ONCE = "first use does not read the mark again after its INSERT"
    STOPPED_BY_EDITS = "a shred stops at an edited row of a destroyed key"
    SLOT_LEFT = "a shred leaves the slot to an edited row that holds it"
    SHRED_ONCE = "a scope that is closed cannot be shredded again"
    LISTED_LATE = "a scope is reopened, and then its erased items are listed"
    ERASED_UNLISTED = "in a reopened scope, whatever names a destroyed key reads as erased"
    COUNT_BY_COLUMN = "retire counts by the column beside the envelopes"
    OWN_TABLES_ALONE = "retire counts the tables alone that the registry has as its application's"
    REGISTRY_BELIEVED = "retire counts the registered tables, and does not look for others"


class Row(NamedTuple):
    """A key's row with its wrapping; ``sealed`` is whether a keyring wrote it as it is."""

    state: str = ACTIVE
    slot: bool = True
    version: int = 0
    sealed: bool = True


class Mark(NamedTuple):
    """
    The change mark.

    Attributes:
        counter: Rises with every change.
        tree: By key ``""``, ``compromised``, ``retired`` or ``shredded``; at the end, of the scope, ``()`` or
            whether it is closed and how often that changed.
        ended: The keys that were destroyed when it was written. Nobody stores this, nor what follows.
        revoked: Those, and the compromised ones.
        old: It is of the format before the tree.
    """

    counter: int
    tree: tuple[Any, ...]
    ended: int = 0
    revoked: int = 0
    old: bool = False


class Tables(NamedTuple):
    """The key tables: rows by key, the tree's leaves (``None``: deleted), and the mark."""

    rows: tuple[Row, ...]
    leaves: tuple[Any, ...]
    mark: Mark


class Item(NamedTuple):
    """
    A stored item.

    Attributes:
        key: In its envelope's header.
        column: Beside the envelope.
        junk: Nothing that a keyring sealed.
        late: What was there was sealed after a reopening, and not shredded since. Nobody stores this.
    """

    key: int
    column: int
    junk: bool = False
    late: bool = False


class Memory(NamedTuple):
    """
    What the process holds.

    Attributes:
        known: The mark as of its last refresh.
        held: Keys that open.
        seat: The key that seals.
        ended: Keys of which it must know that they were destroyed; not stored, nor what follows.
        revoked: Those, and the compromised ones.
    """

    known: Mark | None = None
    held: int = 0
    seat: int = NONE
    ended: int = 0
    revoked: int = 0


class Stand(NamedTuple):
    """
    Where an actor stands, and what it has in hand.

    Attributes:
        at: The point between two steps.
        key: It counts.
        place: Of the item that it writes.
        rows: The rows that it has read, by number with their versions.
        edited: Those that it leaves as they are, but for their slot.
        leaves_slot: Whether one of these holds it, and keeps it: only by mistake.
        tree: As of which it has looked at the scope; ``None``: it has not.
    """

    at: str = IDLE
    key: int = NONE
    place: int = NONE
    rows: tuple[tuple[int, int], ...] = ()
    edited: tuple[int, ...] = ()
    leaves_slot: bool = False
    tree: tuple[Any, ...] | None = None


class AttackBudget(NamedTuple):
    """How often what would otherwise go on for ever may still happen."""

    attacks: int = 3
    copies: int = 1
    restarts: int = 0
    rotations: int = 0
    shreds: int = 0
    reopens: int = 0


class Attacked(NamedTuple):
    """
    Everything.

    Attributes:
        tables: As they are in the database.
        truth: As they would be if nobody had edited them. Nobody stores this.
        copy: What the attacker has kept.
        items: By place.
        listed: Of erased items the place, the key and whether they are junk, as of a reopening.
        fenced: Keys under which nothing is written any more.
        registry: By table.
        process: Its memory.
        budget: What may still happen.
        broken: The invariant that the last step broke.
        stands: Of the actors.
    """

    tables: Tables
    truth: Tables
    copy: Tables | None
    items: tuple[Item | None, ...]
    listed: frozenset[tuple[int, int, bool]]
    fenced: int
    registry: tuple[str, ...]
    process: Memory
    budget: AttackBudget
    broken: str
    stands: tuple[Stand, ...]

    def __str__(self) -> str:
        rows = [f"key {n}: {row.state}" + ", slot" * row.slot for n, row in enumerate(self.tables.rows)]
        return "; ".join([*rows, f"leaves {self.tables.leaves}", f"mark {self.tables.mark}"])


class AttackActor(Protocol):
    """Somebody who takes steps."""

    name: str
    index: int

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """Give what it can do next."""
        ...


@dataclass(frozen=True, kw_only=True)
class AttackedWorld:
    """
    A set-up of the model.

    Attributes:
        name: What it is about.
        actors: Who takes steps.
        budget: How often what would go on for ever may happen.
        rows: The keys at the beginning.
        tree: The mark's, with room for every key that may come.
        items: By place; ``None``: to be written.
        places: By place, the table.
        old_mark: Of the format before the tree, from before the upgrade.
        copy: What the attacker has kept from before the beginning.
        mistake: Made on purpose.
    """

    name: str
    actors: tuple[AttackActor, ...]
    budget: AttackBudget
    rows: tuple[Row, ...]
    tree: tuple[Any, ...]
    items: tuple[Item | None, ...] = ()
    places: tuple[int, ...] = ()
    old_mark: Mark | None = None
    copy: Tables | None = None
    mistake: AttackMistake | None = None

    def __post_init__(self) -> None:
        for index, actor in enumerate(self.actors):
            actor.index = index

    # --- what the checker asks ---

    def initial(self) -> Attacked:
        """Begin with tables that nobody has edited, and a cold process."""
        ended = sum(bit(n) for n, row in enumerate(self.rows) if row.state in ENDED)
        revoked = ended | sum(bit(n) for n, row in enumerate(self.rows) if row.state == COMPROMISED)
        tables = Tables(self.rows, self.tree, Mark(1, self.tree, ended, revoked))
        return Attacked(
            tables,
            tables,
            self.copy,
            self.items,
            frozenset(),
            ended,
            (OURS,) * (max(self.places, default=0) + 1),
            Memory(),
            self.budget,
            "",
            (Stand(),) * len(self.actors),
        )

    def moves(self, state: Attacked) -> Moves:
        """Let every actor take its next step."""
        for actor in self.actors:
            yield from actor.moves(self, state)

    def violation(self, state: Attacked) -> str | None:
        """Say which invariant a state breaks: those of keys when they are used, that of items always."""
        for place, item in enumerate(state.items):
            if item is not None and not item.junk and state.truth.rows[item.key].state == RETIRED:
                return f"item {place} is lost: its key was retired"
        return state.broken or None

    def is_done(self, state: Attacked) -> bool:
        """Whether everybody rests, no key waits for its retirement, and no row of a closed scope opens."""
        rows = state.tables.rows
        return (
            all(stand.at == IDLE for stand in state.stands)
            and not state.budget.shreds
            and not any(row.state in RETIRABLE for row in state.truth.rows)
            and not (is_closed(state.truth.mark) and any(row.sealed and row.state in OPENS for row in rows))
        )

    def parts(self, state: Attacked) -> tuple[Any, ...]:
        """Take a state apart."""
        return (*state[:3], state[3:7], state.process, state[8:10], *state.stands)

    def whole(self, parts: tuple[Any, ...]) -> Attacked:
        """Put a state together again."""
        return Attacked(*parts[:3], *parts[3], parts[4], *parts[5], parts[6:])

    # --- what the product believes ---

    def takes(self, mark: Mark, known: Mark | None) -> bool:
        """Whether a process that knows a mark takes another one, whose seal fits."""
        if mark.old and self.mistake is not AttackMistake.OLD_FORMAT_TAKEN:
            return False  # its settings say that the key tables were upgraded
        if known is None or self.mistake is AttackMistake.EARLIER_MARK_TAKEN:
            return True
        return mark.counter > known.counter or (mark.counter, mark.tree) == known[:2]

    def leaf(self, state: Attacked, known: Mark, number: int) -> Any:
        """Give what the tree says, to a process that knows a mark; ``None``: it is not proven."""
        leaf, mark = state.tables.leaves[number], state.tables.mark
        if self.mistake is AttackMistake.LEAVES_BELIEVED:
            return known.tree[number][:0] if leaf is None else leaf
        if known.old or not known.tree[number] or leaf == known.tree[number]:
            return known.tree[number]  # where there was nothing as of the last refresh, nothing is read
        return leaf if self.takes(mark, known) and leaf == mark.tree[number] else None

    def believes(self, state: Attacked, known: Mark, key: int) -> bool:
        """Whether a key's row is taken for what it is: its seal fits, and the tree shows no later state."""
        how, row = self.leaf(state, known, key), state.tables.rows[key]
        if self.mistake is AttackMistake.ROWS_BELIEVED:
            return row.sealed
        return row.sealed and how is not None and row.state in LATER[how]


def is_closed(mark: Mark) -> bool:
    """Whether the tree has the scope as closed."""
    return bool(mark.tree[SCOPE]) and mark.tree[SCOPE][0]


def holder_of(state: Attacked) -> int:
    """Give the key whose row holds the scope's slot, or ``NONE``."""
    return next((number for number, row in enumerate(state.tables.rows) if row.slot), NONE)


def is_being_taken(state: Attacked) -> bool:
    """Whether an INSERT that is not committed holds the slot: who wants it waits, the attacker too."""
    return any(stand.at in {"inserted", "looked again"} for stand in state.stands)


def with_stand(state: Attacked, index: int, stand: Stand) -> Attacked:
    """Move an actor."""
    return state._replace(stands=put(state.stands, index, stand))


def spent(state: Attacked, name: str) -> Attacked:
    """Take one from what may still happen."""
    left = max(0, getattr(state.budget, name) - 1)
    return state._replace(budget=state.budget._replace(**{name: left}))


def changed(
    state: Attacked,
    rows: Mapping[int, Row],
    *,
    entries: Mapping[int, str] | None = None,
    closed: bool | None = None,
) -> Attacked:
    """
    Commit what a keyring writes: rows, the tree's entries of keys and scope, and the next mark.

    Args:
        state: In which the leaves that are written are what the mark proves.
        rows: By key, a new one at the end.
        entries: By key.
        closed: Whether the scope is, if that changes.
    """
    tree, leaves, mark = list(state.tables.mark.tree), list(state.tables.leaves), state.tables.mark
    written: dict[int, Any] = dict(entries or {})
    if closed is not None:
        written[SCOPE] = (closed, (tree[SCOPE][1] if tree[SCOPE] else 0) + 1)
    for number, entry in written.items():
        tree[number] = leaves[number] = entry
    stored, true = list(state.tables.rows), list(state.truth.rows)
    ended, revoked = mark.ended, mark.revoked
    for number, row in rows.items():
        stored[number : number + 1] = true[number : number + 1] = [row]
        ended |= bit(number) if row.state in ENDED else 0
        revoked |= bit(number) if row.state in {COMPROMISED, *ENDED} else 0
    following = Mark(mark.counter + 1, tuple(tree), ended, revoked)
    return state._replace(
        tables=Tables(tuple(stored), tuple(leaves), following),
        truth=Tables(tuple(true), following.tree, following),
    )


if TYPE_CHECKING:
    _: type[Model] = AttackedWorld

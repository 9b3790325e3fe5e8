"""
A model of its own for the roll of the epoch: branch keys, KEK versions, and backups of the key tables.

A backup is not put back here: in every state is asked what all of them would open, with what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tests.protocol.state import ACTIVE, IDLE, NONE, RETIRED, SHREDDED, bit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.checker import Label, Model

    Moves = Iterator[tuple[Label, "Epochs"]]

KEK, BRANCH = "KEK version", "branch key"


class EpochMistake(Enum):
    """What the roll must not be."""

    OLD_BRANCHES_FIRST = "old branch keys are destroyed before what they have wrapped is moved"
    OLD_BRANCH_NOT_HELD = "a key made lazily does not hold the old branch key that has wrapped it"
    OLD_BRANCHES_LIVE = "the old branch keys are not destroyed"
    KEK_BEFORE_BRANCHES = "the KEK gets its version before the old branch keys are destroyed"
    VERSION_OF_BEFORE = "the KEK keeps the version that it had before the roll"
    ENDED_BEFORE_GUARD = "the KEK's versions end before anybody has counted what they have wrapped"
    ENDED_UNCLOSED = "the KEK's versions are counted and not closed before they end"
    LEDGER_LEFT_BEHIND = "the ledger's key stays under a version that ends"
    NOT_BEGUN_ANEW = "an interrupted roll goes on although a key was shredded since"
    NOTED_IN_ANOTHER_ROLL = "a version is noted in whatever roll is under way"
    BORN_BY_COLUMN = "a branch key counts as the roll's own by its created_at"


class Home(NamedTuple):
    """What has wrapped a key: a version of the KEK, or the branch key with this number."""

    kind: str
    number: int


class Row(NamedTuple):
    """A key with its wrappings; ``born`` and ``dated`` (created_at) are how many rolls had begun then."""

    is_branch: bool
    homes: tuple[Home, ...]
    state: str = ACTIVE
    born: int = 0
    dated: int = 0


class Roll(NamedTuple):
    """The row of a roll that is under way: which one it is, and the KEK's version that it has made."""

    number: int
    made: int = 0


class Backup(NamedTuple):
    """The wrappings of all keys, and how many rolls had begun when it was taken."""

    homes: tuple[tuple[Home, ...], ...]
    begun: int


class EpochBudget(NamedTuple):
    """How often what would otherwise go on for ever may still happen."""

    rolls: int = 1
    rotations: int = 0
    new_keys: int = 0
    shreds: int = 0
    backups: int = 0
    crashes: int = 0
    dates: int = 0


class Hand(NamedTuple):
    """
    Where an actor stands, and what it has in hand.

    Attributes:
        at: The point between two steps.
        roll: As it was read when the run began.
        key: The row that it works on, or from which on it looks.
        homes: Of that row, as they were read.
        target: Where the key is being wrapped.
        successor: The branch key under which data keys go.
        old: Branch keys that are to end.
        version: Of the KEK, the one that stays.
        gone: Keys that were shredded when the run began.
    """

    at: str = IDLE
    roll: Roll | None = None
    key: int = NONE
    homes: tuple[Home, ...] = ()
    target: Home | None = None
    successor: int = NONE
    old: tuple[int, ...] = ()
    version: int = 0
    gone: int = 0


class Epochs(NamedTuple):
    """
    Everything.

    Attributes:
        rows: Keys, in the order in which they were made.
        newest: The KEK's version that wraps.
        closed: Versions before this one take no more wrappings.
        ended: Versions before this one open nothing.
        ledger: The version that has wrapped the ledger's key.
        roll: The row of the one that is under way.
        begun: How many rolls have begun.
        shredded_since: Whether a key was shredded since the last one has.
        shredded: The keys that were. Nobody stores this, nor what follows.
        promised: Those that were shredded before a run that has finished.
        covered: Backups from before this roll began are useless.
        backups: All that were ever taken.
        budget: What may still happen.
        hands: Where the actors stand.
    """

    rows: tuple[Row, ...]
    newest: int
    closed: int
    ended: int
    ledger: int
    roll: Roll | None
    begun: int
    shredded_since: bool
    shredded: int
    promised: int
    covered: int
    backups: tuple[Backup, ...]
    budget: EpochBudget
    hands: tuple[Hand, ...]

    def __str__(self) -> str:
        rows = [
            f"{'branch' if row.is_branch else 'data'} key {number}: {row.state} under "
            + (", ".join(f"{home.kind} {home.number}" for home in row.homes) or "nothing")
            for number, row in enumerate(self.rows)
        ]
        ended = f"versions before {self.ended} have ended" if self.ended else "no version has ended"
        return "; ".join([*rows, ended, f"roll {self.roll}", f"backups {self.backups}"])


class EpochActor(Protocol):
    """Somebody who takes steps."""

    name: str
    index: int

    def moves(self, world: EpochWorld, state: Epochs) -> Moves:
        """Give what it can do next."""
        ...


@dataclass(frozen=True, kw_only=True)
class EpochWorld:
    """
    A set-up: one KEK, and at most one branch.

    Attributes:
        name: What it is about.
        actors: Who takes steps.
        budget: How often what would go on for ever may happen.
        first: The keys that are there already.
        mistake: Made on purpose.
    """

    name: str
    actors: tuple[EpochActor, ...]
    budget: EpochBudget
    first: tuple[Row, ...] = (Row(True, (Home(KEK, 1),)), Row(False, (Home(BRANCH, 0),)))
    mistake: EpochMistake | None = None

    def __post_init__(self) -> None:
        for index, actor in enumerate(self.actors):
            actor.index = index

    def initial(self) -> Epochs:
        """Begin before the first roll."""
        return Epochs(
            rows=self.first,
            newest=1,
            closed=0,
            ended=0,
            ledger=1,
            roll=None,
            begun=0,
            shredded_since=False,
            shredded=0,
            promised=0,
            covered=0,
            backups=(),
            budget=self.budget,
            hands=(Hand(),) * len(self.actors),
        )

    def moves(self, state: Epochs) -> Moves:
        """Let every actor take its next step."""
        for actor in self.actors:
            yield from actor.moves(self, state)

    def violation(self, state: Epochs) -> str | None:
        """Say which invariant a state breaks."""
        for number, row in enumerate(state.rows):
            if not lives(row):
                if row.homes:
                    return f"key {number} was destroyed and has a wrapping"
            elif not opens_now(state, number):
                return f"key {number} lives, and no wrapping opens it"
        if state.ledger < state.ended:
            return "nobody can read the ledger any more"
        return _backup_violation(state) if state.ended else None

    def is_done(self, state: Epochs) -> bool:
        """Whether everybody rests, and every roll was finished."""
        return not state.roll and not state.budget.rolls and all(hand.at == IDLE for hand in state.hands)

    def parts(self, state: Epochs) -> tuple[Any, ...]:
        """Take a state apart."""
        return (state.rows, state[1:11], state.backups, state.budget, *state.hands)

    def whole(self, parts: tuple[Any, ...]) -> Epochs:
        """Put a state together again."""
        rows, rest, backups, budget, *hands = parts
        return Epochs(rows, *rest, backups, budget, tuple(hands))


def lives(row: Row) -> bool:
    """Whether a key was not destroyed."""
    return row.state not in {RETIRED, SHREDDED}


def has_version(row: Row, state: Epochs) -> bool:
    """Whether a version of the KEK that is still there has wrapped a key."""
    return any(home.kind == KEK and home.number >= state.ended for home in row.homes)


def opens_now(state: Epochs, number: int) -> bool:
    """Whether a key opens, from the key tables as they are."""
    row = state.rows[number]
    if has_version(row, state):
        return True
    return any(
        home.kind == BRANCH and lives(state.rows[home.number]) and has_version(state.rows[home.number], state)
        for home in row.homes
    )


def _backup_violation(state: Epochs) -> str | None:
    """Look at what opens with all backups, the key tables as they are, and the versions that are left."""
    tables = [tuple(row.homes for row in state.rows), *(backup.homes for backup in state.backups)]

    def opens(home: Home) -> bool:
        if home.kind == KEK:
            return home.number >= state.ended
        branch = (homes for table in tables for homes in table[home.number : home.number + 1])
        return any(above.kind == KEK and above.number >= state.ended for homes in branch for above in homes)

    for backup in state.backups:
        is_covered = backup.begun < state.covered
        for number, homes in enumerate(backup.homes):
            if (is_covered or state.promised & bit(number)) and any(map(opens, homes)):
                what = "was shredded, and" if state.promised & bit(number) else "is in a useless backup, and"
                return f"key {number} {what} opens from it"
    return None


if TYPE_CHECKING:
    _: type[Model] = EpochWorld

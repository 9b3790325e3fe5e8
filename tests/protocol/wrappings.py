"""
A model of its own for wrappings: keys are made, rewrapped, verified, moved between branch keys, destroyed.

Items play no part in it: what a wrapping may lose is the key itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tests.protocol.state import IDLE, NONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.checker import Label, Model

    Moves = Iterator[tuple[Label, "Wrappings"]]


BRANCHES = ("branch 0", "branch 1")
"""Homes of wrappings that are branch keys; the others are KEKs."""


class WrappingMistake(Enum):
    """What the protocol must not be."""

    DROPPED_BEFORE_VERIFIED = "the old wrapping goes as soon as there is a new one, verified or not"
    DROPPED_WITHOUT_LOOKING = "the old wrapping goes without a look at whether the new one is still there"
    BRANCH_NOT_HELD = "a new key does not hold the branch key that has wrapped it while it is stored"
    GUARD_TAKES_UNVERIFIED = "the guard lets a KEK go because of wrappings that nobody has verified"
    DESTROYED_TAKES_WRAPPINGS = "a wrapping is added to a key that was destroyed meanwhile"


class Wrapping(NamedTuple):
    """A wrapping: where, which bytes (a number), whether they open, whether somebody saw them open."""

    home: str
    bytes: int
    opens: bool = True
    verified: bool = False


class WrappedKey(NamedTuple):
    """A key's row with its wrappings, in order."""

    lives: bool
    wrappings: tuple[Wrapping, ...]


class Hand(NamedTuple):
    """Where an actor stands, and what it has in hand."""

    at: str = IDLE
    key: int = NONE
    read: tuple[Wrapping, ...] = ()
    wrapping: Wrapping | None = None


class Wrappings(NamedTuple):
    """Everything: keys, states of branch keys, KEKs that were deleted, what may still happen, the actors."""

    keys: tuple[WrappedKey, ...]
    branches: tuple[str, ...]
    gone: frozenset[str]
    new_keys: int
    garbled: int
    broken: str
    hands: tuple[Hand, ...]

    def __str__(self) -> str:
        return f"keys {self.keys}, branch keys {self.branches}, deleted KEKs {set(self.gone) or 'none'}"


class WrappingActor(Protocol):
    """Somebody who takes steps."""

    name: str
    index: int

    def moves(self, world: WrappingWorld, state: Wrappings) -> Moves:
        """Give what it can do next."""
        ...


@dataclass(frozen=True, kw_only=True)
class WrappingWorld:
    """
    A set-up.

    Attributes:
        name: What it is about.
        actors: Who takes steps.
        first: The wrappings of the keys that are there already.
        target: Where every key is to be in the end.
        new_keys: How many may be made.
        garbled: How many wrappings may come back from the KMS as something that does not open.
        branches: Whether there are two branch keys, the first of which is rotated and retired.
        mistake: Made on purpose.
    """

    name: str
    actors: tuple[WrappingActor, ...]
    first: tuple[tuple[str, ...], ...] = (("A",),)
    target: str = "B"
    new_keys: int = 0
    garbled: int = 0
    branches: bool = False
    mistake: WrappingMistake | None = None

    def __post_init__(self) -> None:
        for index, actor in enumerate(self.actors):
            actor.index = index

    def initial(self) -> Wrappings:
        """Begin with verified wrappings."""
        keys = tuple(
            WrappedKey(True, tuple(Wrapping(home, n, verified=True) for n, home in enumerate(homes)))
            for homes in self.first
        )
        branches = ("active",) if self.branches else ()
        hands = (Hand(),) * len(self.actors)
        return Wrappings(keys, branches, frozenset(), self.new_keys, self.garbled, "", hands)

    def moves(self, state: Wrappings) -> Moves:
        """Let every actor take its next step."""
        for actor in self.actors:
            yield from actor.moves(self, state)

    def violation(self, state: Wrappings) -> str | None:
        """Say which invariant a state breaks."""
        for number, key in enumerate(state.keys):
            if not key.lives:
                if key.wrappings:
                    return f"key {number} was destroyed and has a wrapping"
            elif not any(
                wrapping.opens and self.is_there(state, wrapping.home) for wrapping in key.wrappings
            ):
                return f"key {number} lives, and no wrapping opens it"
        return state.broken or None

    def is_done(self, state: Wrappings) -> bool:
        """Whether everybody rests, and every key is where it should be, or awaits a wrapping that opens."""
        return (
            all(hand.at == IDLE for hand in state.hands)
            and all(
                not key.lives
                or {wrapping.home for wrapping in key.wrappings} == {self.target}
                or any(not wrapping.opens for wrapping in key.wrappings)
                for key in state.keys
            )
            and (not self.branches or state.branches[0] == "retired")
        )

    def parts(self, state: Wrappings) -> tuple[Any, ...]:
        """Take a state apart."""
        return (state.keys, state[1:6], *state.hands)

    def whole(self, parts: tuple[Any, ...]) -> Wrappings:
        """Put a state together again."""
        return Wrappings(parts[0], *parts[1], parts[2:])

    @staticmethod
    def is_there(state: Wrappings, home: str) -> bool:
        """Whether a KEK or branch key still unwraps."""
        if home in BRANCHES:
            number = BRANCHES.index(home)
            return number < len(state.branches) and state.branches[number] != "retired"
        return home not in state.gone


if TYPE_CHECKING:
    _: type[Model] = WrappingWorld

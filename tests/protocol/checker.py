"""
An explicit-state model checker: every state that a model can reach, breadth first.

A state is held as the numbers of its parts, each part being stored once ("collapse compression"): a few dozen
bytes a state, and exact, so no state is ever taken for another one. A violation comes with a shortest trace.
When all states are known, every one is asked whether the work can still be completed from it without a fault.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable


class Label(NamedTuple):
    """
    What happened between two states.

    Attributes:
        actor: Who did it.
        step: The dotted name of the function that does it in the code, or an event of the environment.
        note: What it was about.
        fault: Whether the work must also be able to end without it.
    """

    actor: str
    step: str
    note: str = ""
    fault: bool = False

    def __str__(self) -> str:
        return f"{self.actor}: {self.step}" + (f" ({self.note})" if self.note else "")


class Model(Protocol):
    """What is explored."""

    def initial(self) -> Any:
        """Give the state in which everything begins."""

    def moves(self, state: Any) -> Iterable[tuple[Label, Any]]:
        """Give what can happen next, and the state after it."""

    def violation(self, state: Any) -> str | None:
        """Say which invariant a state breaks."""

    def is_done(self, state: Any) -> bool:
        """Whether all work is complete."""

    def parts(self, state: Any) -> tuple[Hashable, ...]:
        """Take a state apart, always into as many parts."""

    def whole(self, parts: tuple[Any, ...]) -> Any:
        """Put a state together again."""


@dataclass(frozen=True)
class Violation:
    """
    A broken invariant, or a state from which the work cannot be completed.

    Attributes:
        what: The invariant.
        trace: The shortest way there.
        state: The state at its end.
    """

    what: str
    trace: tuple[Label, ...]
    state: Any

    def __str__(self) -> str:
        steps = "\n".join(f"  {number:2}. {label}" for number, label in enumerate(self.trace, 1))
        return f"{self.what}\n{steps}\n  then: {self.state}"


@dataclass
class Exploration:
    """
    What an exploration found.

    Attributes:
        states: How many there are, or were until the violation.
        transitions: Between them.
        depth: Steps to the farthest state.
        steps: The names of the steps that were taken anywhere.
        violation: The first one, if any.
    """

    states: int = 0
    transitions: int = 0
    depth: int = 0
    steps: set[str] = field(default_factory=set)
    violation: Violation | None = None


class TooManyStatesError(Exception):
    """The model is larger than it was meant to be."""


def explore(model: Model, *, most_states: int = 5_000_000) -> Exploration:
    """
    Visit every state that can be reached, until one breaks an invariant.

    Args:
        model: Finite.
        most_states: More raise :class:`TooManyStatesError`: a part of the states proves nothing.
    """
    return _Explorer(model, most_states).run()


class _Explorer:
    def __init__(self, model: Model, most_states: int) -> None:
        self._model = model
        self._most_states = most_states
        self._parts: dict[Any, int] = {}
        self._part: list[Any] = []
        self._labels: dict[Label, int] = {}
        self._seen: dict[bytes, int] = {}
        self._packed: list[bytes] = []  # in the order of their discovery: it is also the queue
        self._parents = array("I")
        self._reached_by = array("I")
        self._depths = array("H")
        self._done = bytearray()
        # Where each state leads without a fault: its own stretch of one array.
        self._targets = array("I")
        self._ends = array("Q")

    def run(self) -> Exploration:
        found = Exploration()
        model, labels = self._model, self._labels
        violation = self._visit(model.initial(), parent=0, label=0, depth=0)
        index = 0
        while violation is None and index < len(self._packed):
            state, depth = self._unpacked(index), self._depths[index]
            for label, following in model.moves(state):
                found.transitions += 1
                number = labels.setdefault(label, len(labels))
                target = self._seen.get(self._pack(following))
                if target is None:
                    target = len(self._packed)
                    violation = self._visit(following, parent=index, label=number, depth=depth + 1)
                    if violation is not None:
                        break
                if not label.fault:
                    self._targets.append(target)
            self._ends.append(len(self._targets))
            index += 1
        found.states, found.depth = len(self._packed), self._depths[-1]
        found.steps = {label.step for label in labels}
        found.violation = violation or self._dead_end()
        return found

    def _visit(self, state: Any, *, parent: int, label: int, depth: int) -> Violation | None:
        if len(self._packed) >= self._most_states:
            raise TooManyStatesError(f"more than {self._most_states} states")
        packed = self._pack(state)
        self._seen[packed] = len(self._packed)
        self._packed.append(packed)
        self._parents.append(parent)
        self._reached_by.append(label)
        self._depths.append(depth)
        self._done.append(self._model.is_done(state))
        what = self._model.violation(state)
        return None if what is None else self._violation(what, len(self._packed) - 1)

    def _pack(self, state: Any) -> bytes:
        numbers = []
        known = self._parts
        for part in self._model.parts(state):
            number = known.get(part)
            if number is None:
                number = known[part] = len(self._part)
                self._part.append(part)
            numbers.append(number)
        return array("I", numbers).tobytes()

    def _unpacked(self, index: int) -> Any:
        numbers = array("I")
        numbers.frombytes(self._packed[index])
        part = self._part
        return self._model.whole(tuple([part[number] for number in numbers]))

    def _violation(self, what: str, index: int) -> Violation:
        state, by_number = self._unpacked(index), list(self._labels)
        trace = []
        while index:
            trace.append(by_number[self._reached_by[index]])
            index = self._parents[index]
        return Violation(what, tuple(reversed(trace)), state)

    def _dead_end(self) -> Violation | None:
        """Find a state from which no path without a fault leads to the end of the work."""
        completes, targets, ends = self._done, self._targets, self._ends
        open_ended = [index for index in range(len(completes)) if not completes[index]]
        while open_ended:
            left = []
            # Backwards: most states lead to later ones, so that few passes are needed.
            for index in reversed(open_ended):
                start = ends[index - 1] if index else 0
                if any(completes[target] for target in targets[start : ends[index]]):
                    completes[index] = 1
                else:
                    left.append(index)
            left.reverse()
            if len(left) == len(open_ended):
                return self._violation("the work cannot be completed any more", left[0])
            open_ended = left
        return None


@cache
def explored(setup: Callable[[], Model]) -> Exploration:
    """Explore what a set-up makes, once, whoever asks; what has to hold and does not fails with the trace."""
    found = explore(setup())
    if found.violation is not None:
        raise AssertionError(str(found.violation))
    return found

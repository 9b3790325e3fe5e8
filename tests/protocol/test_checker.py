"""The explorer itself, on models that can be counted by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.protocol.checker import Label, TooManyStatesError, explore, explored


@dataclass
class Graph:
    """States are numbers; a fault leads where nobody has to go."""

    edges: dict[int, list[int]]
    done: set[int]
    bad: set[int] = field(default_factory=set)
    faults: set[tuple[int, int]] = field(default_factory=set)

    def initial(self) -> int:
        return 0

    def moves(self, state: int) -> Any:
        for target in self.edges.get(state, []):
            yield Label("walker", f"to {target}", fault=(state, target) in self.faults), target

    def violation(self, state: int) -> str | None:
        return "bad" if state in self.bad else None

    def is_done(self, state: int) -> bool:
        return state in self.done

    def parts(self, state: int) -> tuple[int, ...]:
        return (state // 10, state % 10)

    def whole(self, parts: tuple[int, ...]) -> int:
        return parts[0] * 10 + parts[1]


def _grid(size: int) -> Graph:
    """All ways from one corner to the other: as many states as fields."""
    edges = {}
    for field_ in range(size * size):
        row, column = divmod(field_, size)
        edges[field_] = [field_ + 1] * (column + 1 < size) + [field_ + size] * (row + 1 < size)
    return Graph(edges, {size * size - 1})


def test_every_state_is_counted_once_and_every_transition() -> None:
    found = explore(_grid(30))
    assert (found.states, found.transitions, found.depth) == (900, 2 * 30 * 29, 58)
    assert found.violation is None


def test_the_trace_to_a_violation_is_a_shortest_one() -> None:
    graph = Graph({0: [1, 4], 1: [2], 2: [3], 4: [3]}, {3}, bad={3})
    found = explore(graph).violation
    assert found is not None
    assert [label.step for label in found.trace] == ["to 4", "to 3"]
    assert found.state == 3


def test_the_first_state_may_be_the_bad_one() -> None:
    found = explore(Graph({}, {0}, bad={0})).violation
    assert found is not None
    assert found.trace == ()


def test_a_state_without_a_way_to_the_end_is_a_dead_end() -> None:
    found = explore(Graph({0: [1, 2], 1: [5], 2: [3], 3: [2]}, {5})).violation
    assert found is not None
    assert found.what == "the work cannot be completed any more"
    assert [label.step for label in found.trace] == ["to 2"]


def test_a_cycle_from_which_a_way_leads_out_is_none() -> None:
    assert explore(Graph({0: [1], 1: [2], 2: [0, 5], 5: []}, {5})).violation is None


def test_a_fault_is_no_way_out() -> None:
    edges = {0: [1, 5], 1: [5], 5: []}
    assert explore(Graph(edges, {5})).violation is None
    found = explore(Graph(edges, {5}, faults={(1, 5)})).violation
    assert found is not None
    assert [label.step for label in found.trace] == ["to 1"]


def test_work_has_to_be_completed_behind_a_fault_too() -> None:
    found = explore(Graph({0: [5, 7], 5: []}, {5}, faults={(0, 7)})).violation
    assert found is not None
    assert [label.step for label in found.trace] == ["to 7"]


def test_a_part_of_the_states_is_no_result() -> None:
    with pytest.raises(TooManyStatesError):
        explore(_grid(30), most_states=899)
    assert explore(_grid(30), most_states=900).states == 900


def test_what_has_to_hold_fails_with_the_trace() -> None:
    with pytest.raises(AssertionError, match=r"(?s)bad.*1\. walker: to 1"):
        explored(lambda: Graph({0: [1]}, {1}, bad={1}))

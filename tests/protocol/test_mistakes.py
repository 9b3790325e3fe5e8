"""The explorer finds every seeded mistake, and says how it came about."""

from __future__ import annotations

import pytest
from tests.protocol.attacked import AttackMistake
from tests.protocol.checker import explore, explored
from tests.protocol.epochs import EpochMistake
from tests.protocol.mistakes import SEEDED, Seeded
from tests.protocol.world import Mistake
from tests.protocol.wrappings import WrappingMistake

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seeded", SEEDED, ids=[seeded.mistake.name for seeded in SEEDED])
def test_a_mistake_is_found_with_a_trace_to_it(seeded: Seeded) -> None:
    found = explore(seeded.mistaken()).violation
    assert found is not None, f"nobody noticed that {seeded.mistake.value}"
    assert seeded.breaks in found.what
    assert found.trace
    assert [line.split(". ")[0].strip() for line in str(found).splitlines()[1:-1]] == [
        str(number) for number in range(1, len(found.trace) + 1)
    ]
    print(f"{seeded.mistake.value}:\n{found}")


RIGHT = {seeded.setup.__name__: seeded.setup for seeded in SEEDED}


@pytest.mark.slow
@pytest.mark.parametrize("setup", RIGHT)
def test_without_the_mistake_the_same_set_up_holds(setup: str) -> None:
    assert explored(RIGHT[setup]).violation is None


def test_every_mistake_is_tried() -> None:
    assert {seeded.mistake for seeded in SEEDED} == {
        *Mistake,
        *WrappingMistake,
        *EpochMistake,
        *AttackMistake,
    }

"""Millions of states of the protocol of keys, fences and wrappings, and none that breaks an invariant."""

from __future__ import annotations

import time

import pytest
from tests.protocol import attacks, configurations, erasures, rolls
from tests.protocol.checker import explore


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_a_million_states_break_no_invariant_and_the_work_completes_from_all_of_them(capsys) -> None:
    states = 0
    for setup in (*configurations.LONG, *erasures.LONG, *rolls.LONG, *attacks.LONG):
        began = time.perf_counter()
        found = explore(setup())
        assert found.violation is None, f"{setup.__name__}: {found.violation}"
        states += found.states
        with capsys.disabled():
            print(
                f"\n{setup.__name__}: {found.states:,} states, {found.transitions:,} transitions, depth "
                f"{found.depth}, {time.perf_counter() - began:.0f} s",
                end="",
            )
    with capsys.disabled():
        print(f"\n{states:,} states")
    assert states >= 1_000_000

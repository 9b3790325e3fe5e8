"""The protocol holds in every state that the small set-ups reach; `make soak` runs the large ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.protocol import attacks, configurations, erasures, rolls
from tests.protocol.checker import explored

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tests.protocol.checker import Model

pytestmark = pytest.mark.slow

SHORT = (*configurations.SHORT, *erasures.SHORT, *rolls.SHORT, *attacks.SHORT)


@pytest.mark.parametrize("setup", SHORT, ids=[setup.__name__ for setup in SHORT])
def test_no_state_breaks_an_invariant_and_the_work_completes_from_every_state(
    setup: Callable[[], Model],
) -> None:
    found = explored(setup)
    assert found.states > 200
    print(f"{found.states:,} states, {found.transitions:,} transitions, depth {found.depth}")


@pytest.mark.parametrize(
    "module",
    [configurations, erasures, rolls, attacks],
    ids=["keys", "erasures", "rolls", "attacks"],
)
def test_every_set_up_is_run_somewhere(module: ModuleType) -> None:
    setups = {
        name
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
    }
    assert setups == {setup.__name__ for setup in (*module.SHORT, *module.LONG)}
    assert len(module.SHORT) + len(module.LONG) == len(setups)

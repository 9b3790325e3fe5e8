"""The protocol holds in every state that the small set-ups reach; `make soak` runs the large ones."""

from __future__ import annotations

import pytest
from tests.protocol.checker import explored
from tests.protocol.configurations import LONG, SHORT


@pytest.mark.parametrize("setup", SHORT, ids=[setup.__name__ for setup in SHORT])
def test_no_state_breaks_an_invariant_and_the_work_completes_from_every_state(setup) -> None:
    found = explored(setup())
    assert found.states > 200


def test_every_set_up_is_run_somewhere() -> None:
    from tests.protocol import configurations

    setups = {
        name
        for name, value in vars(configurations).items()
        if callable(value) and getattr(value, "__module__", "") == configurations.__name__ and name[0] != "_"
    }
    assert setups == {setup.__name__ for setup in (*SHORT, *LONG)}
    assert len(SHORT) + len(LONG) == len(setups)

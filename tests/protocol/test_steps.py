"""The model's steps are the code's functions: the names are equal, and every step is taken somewhere."""

from __future__ import annotations

from pkgutil import resolve_name

import pytest
from tests.protocol import steps
from tests.protocol.checker import explored
from tests.protocol.configurations import (
    branch_keys,
    compromised_once,
    one_old_snapshot,
    small_shred,
    small_sqlite,
)
from tests.protocol.mistakes import SEEDED

pytestmark = pytest.mark.slow

NAMED = {name: value for name, value in vars(steps).items() if name.isupper() and isinstance(value, str)}
IN_THE_CODE = {name: value for name, value in NAMED.items() if value not in steps.ENVIRONMENT}


@pytest.mark.parametrize("name", sorted(IN_THE_CODE))
def test_a_step_is_named_after_a_function_of_the_code(name: str) -> None:
    path = IN_THE_CODE[name]
    function = resolve_name(path)
    assert callable(function)
    assert function.__name__ == path.rpartition(".")[2]


def test_every_step_is_taken_in_some_set_up_and_has_a_name() -> None:
    small = {branch_keys, compromised_once, one_old_snapshot, small_shred, small_sqlite}
    setups = small | {seeded.setup for seeded in SEEDED}
    taken = set().union(*(explored(setup).steps for setup in setups))
    assert taken == set(NAMED.values())


def test_no_two_steps_have_one_name() -> None:
    assert len(set(NAMED.values())) == len(NAMED)

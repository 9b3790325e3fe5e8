"""Shreds against everything else, at length: ten thousand orders of their steps, a thousand races."""

from __future__ import annotations

import pytest
from tests.erasure.interleavings import SCENARIOS, play_many
from tests.erasure.races import race
from tests.fixtures.profiles import LONG

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7_200)]

ORDERS = -(-LONG.interleavings // len(SCENARIOS))


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_comes_back_in_any_order(name: str) -> None:
    assert play_many(name, ORDERS) == ORDERS


def test_nothing_comes_back_in_a_race(store_url: str) -> None:
    race(store_url, LONG.races)

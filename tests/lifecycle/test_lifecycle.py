"""Clients do at random whatever they can, and all sorts of things fail: no item is ever lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.lifecycle.running import chosen_seed, run_lifecycle

if TYPE_CHECKING:
    from tests.lifecycle.site import Site

pytestmark = pytest.mark.slow

WORLDS = {True: 18, False: 6}
"""On SQLite, and on PostgreSQL, where each statement takes longer."""


@pytest.mark.parametrize("seed", [1])
def test_no_item_is_lost_whatever_clients_do_and_whatever_fails(site: Site, seed: int) -> None:
    run = run_lifecycle(site, seed=chosen_seed(seed), examples=WORLDS[site.is_sqlite])
    assert run.steps > 5 * WORLDS[site.is_sqlite]

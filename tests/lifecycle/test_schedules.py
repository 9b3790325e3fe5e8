"""One client stands still, fails or ends at its calls in turn, while another acts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.lifecycle.playing import places_of, some, sweep
from tests.lifecycle.schedules import SCHEDULES

if TYPE_CHECKING:
    from tests.lifecycle.site import Site

pytestmark = pytest.mark.slow

MOST = {True: 3, False: 1}
"""Places that are tried of each operation, on SQLite and on PostgreSQL; the soak tries all."""


@pytest.mark.parametrize("name", SCHEDULES)
def test_whatever_call_it_comes_at(site: Site, name: str) -> None:
    places = places_of(site, SCHEDULES[name])
    assert len(places) >= 2
    sweep(site, SCHEDULES[name], some(len(places), MOST[site.is_sqlite]))

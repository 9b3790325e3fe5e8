"""The checker is checked: each mistake in the real code comes out, and none without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.lifecycle.mistakes import MISTAKES, ON_POSTGRESQL, ON_SQLITE
from tests.lifecycle.playing import places_of, sweep
from tests.lifecycle.schedules import SCHEDULES

if TYPE_CHECKING:
    from tests.lifecycle.site import Site

pytestmark = pytest.mark.slow

CASES = [
    pytest.param(
        name, database, id=f"{name}, {database}", marks=[pytest.mark.postgres] * (database == "postgresql")
    )
    for name, mistake in MISTAKES.items()
    for database in mistake.databases
    if database == "sqlite" or mistake.databases == ON_POSTGRESQL
]


@pytest.mark.parametrize(("name", "database"), CASES)
def test_each_mistake_is_caught(request: pytest.FixtureRequest, name: str, database: str) -> None:
    mistake = MISTAKES[name]
    site: Site = request.getfixturevalue("sqlite_site" if (database,) == ON_SQLITE else "postgres_site")
    schedule = SCHEDULES[mistake.schedule]
    among = [number for number, place in enumerate(places_of(site, schedule)) if mistake.where in place]
    assert among
    sweep(site, schedule, among)
    with mistake.make(site), pytest.raises(AssertionError):
        sweep(site, schedule, among)

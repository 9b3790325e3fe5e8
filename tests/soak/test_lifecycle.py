"""The state machine at length, every place of every schedule, and mistakes that it must find by itself."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest
from tests.lifecycle.mistakes import MISTAKES
from tests.lifecycle.playing import places_of, sweep
from tests.lifecycle.running import chosen_seed, run_lifecycle
from tests.lifecycle.schedules import SCHEDULES
from tests.lifecycle.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.soak, pytest.mark.timeout(14_400)]

STEPS = {True: 50_000, False: 15_000}
"""On SQLite, and on PostgreSQL."""

WORLDS = 100
MOST_WORLDS_TO_A_MISTAKE = 3_000


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    yield from _site(request, request.param)


def _site(request: pytest.FixtureRequest, database: str) -> Iterator[Site]:
    new_database: Callable[[], str] = (
        (lambda: "") if database == "sqlite" else request.getfixturevalue("new_postgres_database")
    )
    site = Site(new_database() or None)
    yield site
    site.close()


def test_no_item_is_lost_in_tens_of_thousands_of_steps(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = first = chosen_seed(secrets.randbelow(2**32))
    steps = 0
    tally: dict[str, int] = {}
    while steps < STEPS[site.is_sqlite]:
        with capsys.disabled():
            print(f"\nseed {seed}: {steps} steps so far", end="", flush=True)
        run = run_lifecycle(site, seed=seed, examples=WORLDS)
        steps += run.steps
        for what, times in run.tally.items():
            tally[what] = tally.get(what, 0) + times
        seed += 1
    with capsys.disabled():
        print(f"\n{steps:,} steps from seed {first} on:")
        for what, times in sorted(tally.items()):
            print(f"  {times:7,} {what}")


@pytest.mark.parametrize("name", SCHEDULES)
def test_whatever_call_it_comes_at(site: Site, name: str) -> None:
    sweep(site, SCHEDULES[name], range(len(places_of(site, SCHEDULES[name]))))


@pytest.mark.parametrize("name", [name for name, mistake in MISTAKES.items() if mistake.shows_at_random])
def test_the_machine_finds_each_mistake_by_itself(request: pytest.FixtureRequest, name: str) -> None:
    mistake = MISTAKES[name]
    for site in _site(request, mistake.databases[0]):
        with mistake.make(site), pytest.raises(AssertionError):
            for seed in range(MOST_WORLDS_TO_A_MISTAKE // WORLDS):
                run_lifecycle(site, seed=seed, examples=WORLDS, shrink=False)

"""Databases for worlds; each is emptied for the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fixtures.quiet_postgres import stop_autovacuum
from tests.lifecycle.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def sqlite_site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture(scope="session")
def postgres_site(postgres_server: str, new_postgres_database: Callable[[], str]) -> Iterator[Site]:
    stop_autovacuum(postgres_server)  # the clients' lock_timeout is short
    site = Site(new_postgres_database())
    yield site
    site.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def site(request: pytest.FixtureRequest) -> Site:
    name = "sqlite_site" if request.param == "sqlite" else "postgres_site"
    found = request.getfixturevalue(name)
    assert isinstance(found, Site)
    return found

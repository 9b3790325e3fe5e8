"""The fixtures themselves: programs that may be missing, databases that are used again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from tests.fixtures import programs
from tests.fixtures.postgres_servers import (
    end_server,
    killable_server,
    new_folder,
    start_server,
    wait_until_ended,
)

if TYPE_CHECKING:
    from tests.fixtures.postgres_databases import PostgresDatabases


NO_PROCESS = 2**31 - 1
"""A process id beyond the largest that Linux gives."""


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a program that no machine has."""
    monkeypatch.setitem(programs.INSTALL, "no-such-program", "apt-get install nothing")
    monkeypatch.delenv(programs.REQUIRED, raising=False)
    return "no-such-program"


def test_without_a_program_a_test_skips_and_says_what_to_install(absent) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no-such-program.*apt-get install nothing"):
        programs.find_program(absent)


def test_without_a_program_that_is_required_a_test_fails(absent, monkeypatch) -> None:
    monkeypatch.setenv(programs.REQUIRED, f"bao,{absent}")
    with pytest.raises(pytest.fail.Exception, match=r"no-such-program.*apt-get install nothing"):
        programs.find_program(absent)


def test_a_required_program_that_no_test_knows_is_refused(absent, monkeypatch) -> None:
    monkeypatch.setenv(programs.REQUIRED, f"{absent},bao")
    programs.refuse_unknown_names()
    monkeypatch.setenv(programs.REQUIRED, f"{absent},ba0")
    with pytest.raises(pytest.UsageError, match="ba0"):
        programs.refuse_unknown_names()


@pytest.mark.postgres
def test_a_database_that_is_given_back_is_as_new(postgres_databases: PostgresDatabases) -> None:
    url = postgres_databases.new()
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    look = text(
        "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc),"
        " (SELECT array_agg((nspname, nspowner::regrole::text, nspacl)::text ORDER BY nspname)"
        " FROM pg_namespace WHERE nspname !~ '^pg_t'),"
        " (SELECT count(*) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase"
        " WHERE datname = current_database()), current_setting('jit')"
    )
    with engine.connect() as connection:
        before = connection.execute(look).one()
        for statement in (
            'CREATE SCHEMA "Archive"',
            'CREATE TABLE "Archive".ours (id serial PRIMARY KEY)',
            "CREATE TABLE ours (id serial PRIMARY KEY)",
            "CREATE FUNCTION one() RETURNS integer LANGUAGE sql RETURN 1",
            "REVOKE USAGE ON SCHEMA public FROM PUBLIC",
            f"ALTER DATABASE {engine.url.database} SET jit = off",
        ):
            connection.execute(text(statement))
        postgres_databases.give_back(url)
        with pytest.raises(Exception, match="terminat"):
            connection.execute(text("SELECT 1"))
    with pytest.raises(OperationalError, match="does not exist"):
        engine.connect()
    emptied = postgres_databases.take()
    with create_engine(emptied, poolclass=NullPool).connect() as connection:
        assert connection.execute(look).one() == before
    postgres_databases.give_back(emptied)


@pytest.mark.postgres
@pytest.mark.parametrize(
    "statement",
    [
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
        "ALTER ROLE CURRENT_USER IN DATABASE {} SET jit = off",
    ],
)
def test_a_database_that_cannot_be_emptied_is_not_used_again(
    postgres_databases: PostgresDatabases, statement
) -> None:
    url = postgres_databases.new()
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement.format(engine.url.database)))
    before = list(postgres_databases._emptied)
    postgres_databases.give_back(url)
    assert postgres_databases._emptied == before


@pytest.mark.postgres
@pytest.mark.slow
def test_nothing_is_left_of_a_server() -> None:
    folder = new_folder()
    server = start_server(folder)
    postmaster = server.get_postmaster_info().process
    end_server(folder)
    wait_until_ended(postmaster)
    assert not folder.exists()


@pytest.mark.postgres
@pytest.mark.slow
def test_a_run_that_was_killed_is_cleaned_up_by_the_next_one(monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: NO_PROCESS)
        left = new_folder()
    others = [left.with_name(f"eventseal-pg-x-{left.name}"), left.with_name(f"{left.name}-link")]
    try:
        postmaster = start_server(left).get_postmaster_info().process
        others[0].mkdir()
        others[1].symlink_to(left)
        with killable_server():
            wait_until_ended(postmaster)
            assert not left.exists()
            assert others[0].is_dir()
            assert others[1].is_symlink()
    finally:
        end_server(left)
        others[0].rmdir()
        others[1].unlink()

"""What the tests themselves rest on: programs that may be missing, databases that are used again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from tests.fixtures import programs
from tests.fixtures.postgres_servers import KillableServer, end_server, new_folder, start_server

if TYPE_CHECKING:
    from tests.fixtures.postgres_databases import PostgresDatabases


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
        " (SELECT count(*) FROM pg_db_role_setting), current_setting('jit')"
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
    assert postgres_databases.take() == url
    with engine.connect() as connection:
        assert connection.execute(look).one() == before
    postgres_databases.give_back(url)


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_nothing_is_left_of_a_server(killed: bool) -> None:
    folder = new_folder()
    server = start_server(folder)
    postmaster = server.get_postmaster_info().process
    if killed:
        KillableServer(server).kill()
        postmaster.wait(60)
    end_server(folder)
    assert not postmaster.is_running()
    assert not Path(folder).exists()

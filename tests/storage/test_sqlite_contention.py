"""Whether others write to an SQLite file is seen from a connection that does not write."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import QueuePool

from eventseal.errors import StoreError
from eventseal.storage.database.faults import SQLiteContention


@pytest.fixture
def open_engine(request):
    def connect(url, **options):
        engine = create_engine(url, **options)
        request.addfinalizer(engine.dispose)
        return engine

    return connect


@pytest.fixture
def watch(request):
    def of(engine):
        watching = SQLiteContention(engine)
        request.addfinalizer(watching.close)
        return watching

    return of


def test_a_commit_of_another_connection_is_seen_and_none_is_not(sqlite_url, open_engine, watch):
    engine = open_engine(sqlite_url)
    others = watch(engine)
    assert not others.wrote()
    others.begin()
    assert not others.wrote()
    with closing(sqlite3.connect(make_url(sqlite_url).database)) as other:
        other.execute("CREATE TABLE notes (note)")
        other.commit()
        assert others.wrote()
        others.begin()
        assert not others.wrote()
        other.execute("INSERT INTO notes VALUES ('not yet committed')")
        assert not others.wrote()
        other.commit()
        assert others.wrote()


def test_it_takes_no_place_in_the_pool_and_holds_nothing_up(sqlite_url, open_engine, watch):
    engine = open_engine(sqlite_url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=1)
    others = watch(engine)
    others.begin()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (note)"))
    assert others.wrote()


def test_it_says_no_where_writers_do_not_wait_for_each_other(postgres_url, open_engine, watch):
    for url in (postgres_url, "sqlite://"):
        engine = open_engine(url)
        others = watch(engine)
        others.begin()
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE notes (note int)"))
        assert not others.wrote()


def test_a_file_that_cannot_be_read_is_a_fault_of_the_store(tmp_path, open_engine, watch):
    with pytest.raises(StoreError):
        watch(open_engine(f"sqlite:///{tmp_path / 'no folder' / 'store.sqlite'}")).begin()

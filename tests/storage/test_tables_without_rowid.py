"""SQLite's tables without a rowid: told by the database's own answer, and by no other failure."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from eventseal.storage import IntegerSequencedItemRecord
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.rows import range_bounds
from eventseal.storage.items.tables import SealedTable

TABLE = "integer_sequenced_items"


@pytest.fixture
def database(sqlite_url, open_datastore):
    return open_datastore(sqlite_url)


@pytest.fixture
def table(database) -> SealedTable:
    return SealedTable.of(sealed_columns(IntegerSequencedItemRecord), None)


def remake_without_rowid(database) -> None:
    with database.engine.begin() as connection:
        made = connection.execute(text(f"SELECT sql FROM sqlite_master WHERE name = '{TABLE}'")).scalar_one()
        connection.execute(text(f"DROP TABLE {TABLE}"))
        connection.execute(text(f"{made} WITHOUT ROWID"))


def fail(database, words: str) -> None:
    """Have SQLite find the file locked when a statement has these words."""

    def refuse(_connection, _cursor, statement, *_) -> None:
        if words in statement:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise OperationalError(statement, None, error)

    event.listen(database.engine, "before_cursor_execute", refuse)


def test_a_table_without_rowid_is_one_range(database, table) -> None:
    remake_without_rowid(database)
    with database.engine.connect() as connection:
        assert range_bounds(connection, table, 4) == []


def test_ranges_are_not_cut_where_the_ends_cannot_be_read(database, table) -> None:
    fail(database, "min(rowid)")
    with database.engine.connect() as connection, pytest.raises(OperationalError):
        range_bounds(connection, table, 4)

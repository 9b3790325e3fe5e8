"""SQLite's tables without a rowid: told by the database's own answer, and by no other failure."""

from __future__ import annotations

import sqlite3
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from eventseal.storage import IntegerSequencedItemRecord
from eventseal.storage.fences import close_fence, fence_states
from eventseal.storage.item_columns import sealed_columns
from eventseal.storage.item_ranges import range_bounds
from eventseal.storage.marks import load_marks, record_mark
from eventseal.storage.registry import SealedTable

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


def test_a_mark_of_a_table_without_rowid_has_no_high_water(database, table) -> None:
    remake_without_rowid(database)
    key_id = uuid4()
    with database.engine.begin() as connection:
        close_fence(connection, key_id)
        record_mark(connection, table, key_id)
        assert load_marks(connection, TABLE)[key_id].high_water is None
        assert range_bounds(connection, table, 4) == []


def test_a_mark_is_not_recorded_where_the_high_water_cannot_be_read(database, table) -> None:
    key_id = uuid4()
    fail(database, "max(rowid)")
    with pytest.raises(OperationalError), database.engine.begin() as connection:
        close_fence(connection, key_id)
        record_mark(connection, table, key_id)
    with database.engine.connect() as connection:
        assert load_marks(connection, TABLE) == {}
        assert fence_states(connection, [key_id]) == {}


def test_ranges_are_not_cut_where_the_ends_cannot_be_read(database, table) -> None:
    fail(database, "min(rowid)")
    with database.engine.connect() as connection, pytest.raises(OperationalError):
        range_bounds(connection, table, 4)

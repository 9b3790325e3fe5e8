"""What a destruction goes by: counts by the key in the header, each through its index."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Uuid, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventseal.items.item import SequencedItem
from eventseal.storage import (
    IntegerSequencedColumns,
    IntegerSequencedItemRecord,
    SQLAlchemyActiveRecordStrategy,
)
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.key_counts import (
    count_by_key,
    count_differing,
    count_misnamed,
    count_under,
    differing_rows,
    rows_without_envelope,
)
from eventseal.storage.items.key_id_indexes import has_key_id_indexes
from eventseal.storage.items.tables import SealedTable

KEY, OTHER = uuid4(), uuid4()


class Base(DeclarativeBase):
    pass


class OrderRecord(IntegerSequencedColumns, Base):
    """Ids as SQLAlchemy keeps them: hexadecimal digits on SQLite; and an index that the class declares."""

    __tablename__ = "orders"
    __collection__ = "orders"

    key_id: Mapped[UUID | None] = mapped_column(Uuid, index=True)


RECORDS = [IntegerSequencedItemRecord, OrderRecord]


@pytest.fixture
def datastore(store_url, open_datastore):
    return open_datastore(store_url, RECORDS)


@pytest.fixture(params=RECORDS, ids=lambda record: record.__tablename__)
def record(request) -> Any:
    return request.param


@pytest.fixture
def table(record) -> SealedTable:
    return described(record)


def described(record: Any) -> SealedTable:
    columns = sealed_columns(record)
    assert columns is not None
    return SealedTable.of(columns, None)


def envelope(key_id: UUID) -> bytes:
    return b"\1\3\0" + key_id.bytes + bytes(40)


def append(datastore: Any, record: Any, *rows: tuple[bytes, UUID | None]) -> None:
    items = [SequencedItem(uuid4(), 0, "topic", data, key_id) for data, key_id in rows]
    SQLAlchemyActiveRecordStrategy(record, datastore.session).append(items)


def test_rows_are_told_apart_by_header_and_column(datastore, record, table):
    append(
        datastore,
        record,
        *[(envelope(KEY), KEY)] * 3,
        (envelope(KEY), OTHER),
        (envelope(KEY), None),
        (b"plain", None),
        (b"cut", OTHER),
    )
    with datastore.engine.connect() as connection:
        assert count_by_key(connection, table) == {KEY: 5, None: 2}
        assert count_under(connection, [table], [KEY, OTHER]) == {KEY: {table.table: 5}}
        assert count_misnamed(connection, [table], [KEY, OTHER]) == {OTHER: {table.table: 2}}
        assert count_differing(connection, table) == {KEY: 2, None: 1}
        count, rows = differing_rows(connection, table, limit=2)
        assert (count, len(rows)) == (3, 2)
        count, rows = rows_without_envelope(connection, table, limit=5)
        assert (count, sorted(row.data for row in rows)) == (2, [b"cut", b"plain"])


def test_a_destruction_reads_no_table(datastore, record, table):
    """Every query of a retire goes through an index; only a count of all keys reads the rows."""
    append(datastore, record, *[(envelope(KEY), KEY)] * 3)
    on_postgresql = datastore.engine.dialect.name == "postgresql"
    statements: list[tuple[str, Any]] = []

    @event.listens_for(datastore.engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, context, executemany) -> None:
        statements.append((statement, parameters))

    with datastore.engine.connect() as connection:
        count_under(connection, [table], [KEY])
        count_misnamed(connection, [table], [KEY])
        differing_rows(connection, table, limit=3)
        rows_without_envelope(connection, table, limit=3)
        event.remove(datastore.engine, "before_cursor_execute", note)
        assert len(statements) == 4
        if on_postgresql:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        wanted = ["eventseal_key_id", "eventseal_differ", "eventseal_differ", "eventseal_key_id"]
        for (statement, parameters), index in zip(statements, wanted, strict=True):
            explain = "EXPLAIN" if on_postgresql else "EXPLAIN QUERY PLAN"
            plan = connection.exec_driver_sql(f"{explain} {statement}", parameters)
            assert index in " ".join(str(row) for row in plan), statement


def test_a_sound_table_has_no_entry_in_the_index_of_differing_rows(datastore, record, table):
    append(datastore, record, *[(envelope(KEY), KEY)] * 3, (b"plain", None))
    with datastore.engine.connect() as connection:
        assert differing_rows(connection, table, limit=3) == (0, [])


# --- tables of an earlier release ---


def index_names(connection: Any, table: str) -> list[str]:
    query = "SELECT indexname FROM pg_indexes WHERE tablename = :table AND indexname NOT LIKE '%_pkey'"
    if connection.dialect.name == "sqlite":
        query = (
            "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = :table AND sql IS NOT NULL"
        )
    return list(connection.execute(text(query), {"table": table}).scalars())


def as_before(datastore: Any) -> None:
    """Give the tables the index that earlier releases made, and one on another expression."""
    with datastore.engine.begin() as connection:
        for record in RECORDS:
            name = record.__tablename__
            for index in index_names(connection, name):
                connection.execute(text(f"DROP INDEX {index}"))
            connection.execute(text(f"CREATE INDEX ix_{name}_key_id ON {name} (key_id)"))
            connection.execute(text(f"CREATE INDEX eventseal_key_id_0_{name} ON {name} (length(data))"))


def test_an_earlier_table_gets_its_indexes_and_loses_the_one_on_the_column(datastore):
    as_before(datastore)
    statements: list[str] = []

    @event.listens_for(datastore.engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, context, executemany) -> None:
        statements.append(statement)

    assert [table.table for table in datastore.unindexed_tables()] == ["integer_sequenced_items", "orders"]
    assert datastore.index_key_ids() == ["integer_sequenced_items", "orders"]
    changes = [statement for statement in statements if "INDEX" in statement.split("EXISTS")[0][:12]]
    assert len(changes) == 7
    if datastore.engine.dialect.name == "postgresql":
        assert all("INDEX CONCURRENTLY" in statement for statement in changes)
    assert (datastore.unindexed_tables(), datastore.index_key_ids()) == ({}, [])
    with datastore.engine.connect() as connection:
        for record, left in zip(RECORDS, ([], ["ix_orders_key_id"]), strict=True):
            assert has_key_id_indexes(connection, described(record))
            found = index_names(connection, record.__tablename__)
            assert [name for name in found if name.startswith("ix_")] == left
            assert not [name for name in found if name.startswith("eventseal_key_id_0")]


def test_tables_that_are_not_there_are_left_to_setup(store_url, open_datastore):
    datastore = open_datastore(store_url, RECORDS, setup=False)
    assert datastore.index_key_ids() == []


@pytest.mark.postgres
def test_a_partitioned_table_is_indexed_too(postgres_url, open_datastore):
    """PostgreSQL makes no index on one of those while others write."""
    datastore = open_datastore(postgres_url, [OrderRecord], setup=False)
    with datastore.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE orders (sequence_id uuid, position bigint, topic text, data bytea, "
                "key_id uuid, PRIMARY KEY (sequence_id, position)) PARTITION BY HASH (sequence_id)"
            )
        )
        connection.execute(
            text("CREATE TABLE part PARTITION OF orders FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
        )
    assert datastore.index_key_ids() == ["orders"]
    assert datastore.index_key_ids() == []

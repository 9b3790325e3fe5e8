"""The registry of tables with sealed items, and reading the rows of whatever stands in it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    insert,
    inspect,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.items.item import SequencedItem
from eventseal.storage import (
    BinaryUUID,
    ExactInteger,
    IntegerSequencedColumns,
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    TimestampSequencedItemRecord,
)
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.key_counts import count_by_key
from eventseal.storage.items.registry import Registry, read_registry, register
from eventseal.storage.items.rows import ItemRow, row_at
from eventseal.storage.items.tables import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.unregistered import unregistered_tables


class Base(DeclarativeBase):
    pass


class StoredEventRecord(Base):
    """Names of its own, a number for the row, and another type of UUID."""

    __tablename__ = "stored events"
    __collection__ = "orders"
    __table_args__ = (UniqueConstraint("aggregate", "version"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    aggregate: Mapped[UUID] = mapped_column(Uuid)
    version: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column("event type", String(255))
    state: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[UUID | None] = mapped_column(Uuid, index=True)


class PlainRecord(Base):
    __tablename__ = "plain"

    sequence_id: Mapped[UUID] = mapped_column(BinaryUUID, primary_key=True)
    position: Mapped[int] = mapped_column(ExactInteger, primary_key=True, autoincrement=False)
    topic: Mapped[str] = mapped_column(Text)
    data: Mapped[bytes] = mapped_column(LargeBinary)


OWN_TABLES = [IntegerSequencedItemRecord, TimestampSequencedItemRecord, SnapshotRecord]
TABLES = [*OWN_TABLES, StoredEventRecord, PlainRecord]


@pytest.fixture
def datastore(store_url, open_datastore):
    return open_datastore(store_url, TABLES)


def the_registry(datastore: Any, application: str | None = None) -> dict[str, SealedTable]:
    found = read_registry(datastore.key_engine, application).complete()
    return {table.table: table for table in found}


@pytest.mark.parametrize("columns", ["1.5", "{}x", "[1]", '{"data": ["data"]}'])
def test_a_row_of_the_registry_that_was_edited_is_told(open_datastore, sqlite_url, columns):
    datastore = open_datastore(sqlite_url, TABLES)
    with datastore.key_engine.begin() as connection:
        connection.exec_driver_sql("UPDATE eventseal_sealed_tables SET columns = ?", (columns,))
    with pytest.raises(IntegrityError, match="eventseal_sealed_tables"):
        the_registry(datastore)


def look_for_unregistered(datastore: Any, **options: Any) -> list[str]:
    known = the_registry(datastore).values()
    with datastore.engine.connect() as connection:
        return unregistered_tables(connection, known, **options)


class TestTheRegistry:
    def test_setup_registers_the_tables_that_may_hold_sealed_items(self, datastore):
        found = the_registry(datastore)
        assert set(found) == {
            "integer_sequenced_items",
            "timestamp_sequenced_items",
            "snapshots",
            "stored events",
        }
        assert {table.application for table in found.values()} == {None}
        assert found["snapshots"].collection == "snapshots"
        assert found["stored events"] == SealedTable(
            application=None,
            database="items",
            table="stored events",
            collection="orders",
            columns={
                "sequence_id": SealedColumn("aggregate", ColumnKind.GENERIC_UUID),
                "position": SealedColumn("version", ColumnKind.INTEGER),
                "topic": SealedColumn("event type", ColumnKind.TEXT),
                "data": SealedColumn("state", ColumnKind.BINARY),
                "key_id": SealedColumn("key_id", ColumnKind.GENERIC_UUID),
            },
        )

    def test_applications_register_apart_and_see_what_is_everyones(self, datastore):
        datastore.setup_tables(application="shop")
        datastore.setup_tables(application="shop")
        datastore.setup_tables(application="warehouse")
        with datastore.key_engine.connect() as connection:
            assert len(read_registry(connection).complete()) == 3 * 4
            assert {table.application for table in read_registry(connection, "shop").complete()} == {
                None,
                "shop",
            }
            assert {table.application for table in read_registry(connection, "other").complete()} == {None}

    def test_a_table_that_another_process_registers_meanwhile_is_registered(self, datastore, monkeypatch):
        from eventseal.storage.items import registry

        with datastore.key_engine.begin() as connection:
            there = read_registry(connection).complete()
            before = Registry([], [])  # as read a moment before
            with monkeypatch.context() as patch:
                patch.setattr(registry, "read_registry", lambda *_: before)
                register(connection, reversed(there))
        with datastore.key_engine.connect() as connection:
            assert read_registry(connection).complete() == there

    def test_registering_again_replaces_what_it_says(self, datastore):
        changed = SealedTable(
            table="stored events",
            collection="renamed",
            columns=the_registry(datastore)["stored events"].columns,
        )
        with datastore.key_engine.begin() as connection:
            register(connection, [changed])
        assert the_registry(datastore)["stored events"] == changed
        datastore.setup_tables()
        assert the_registry(datastore)["stored events"].collection == "orders"

    @pytest.mark.parametrize("record_class", TABLES[:4])
    def test_a_table_is_described_the_same_by_its_class_and_by_the_registry(self, datastore, record_class):
        columns = sealed_columns(record_class)
        assert columns is not None
        assert SealedTable.of(columns, None) == the_registry(datastore)[columns.table.name]

    def test_a_key_id_beside_too_few_columns_is_refused(self):
        class Attachment(Base):
            __tablename__ = "attachments"
            key_id: Mapped[UUID | None] = mapped_column(BinaryUUID)
            name: Mapped[str] = mapped_column(Text, primary_key=True)
            data: Mapped[bytes] = mapped_column(LargeBinary)

        with pytest.raises(ConfigurationError, match="Attachment"):
            sealed_columns(Attachment)


class SharingBase(DeclarativeBase):
    pass


class LogRecord(IntegerSequencedColumns, SharingBase):
    """Says no collection, so it has that of EventSeal's own events."""

    __tablename__ = "logs"


class TestCollections:
    def test_a_table_with_a_taken_collection_is_refused_and_nothing_is_written(
        self, store_url, open_datastore
    ):
        datastore = open_datastore(store_url, [IntegerSequencedItemRecord, LogRecord], setup=False)
        with pytest.raises(ConfigurationError, match="'items'") as caught:
            datastore.setup_tables(application="shop")
        assert "__collection__ = '" in caught.value.remedy
        assert inspect(datastore.engine).get_table_names() == []

    def test_a_collection_that_the_registry_has_is_taken_too(self, sqlite_url, open_datastore):
        open_datastore(sqlite_url, [IntegerSequencedItemRecord], setup=False).setup_tables(application="shop")
        later = open_datastore(sqlite_url, [LogRecord], setup=False)
        with pytest.raises(ConfigurationError, match="logs cannot be registered"):
            later.setup_tables(application="shop")
        assert not inspect(later.engine).has_table("logs")
        later.setup_tables(application="warehouse")  # whose items do not open as another application's
        with pytest.raises(ConfigurationError, match="logs cannot be registered"):
            later.setup_tables()  # for every application, so for that one too

    def test_two_that_register_at_once_do_not_both_get_it(self, datastore):
        later = SealedTable(
            table="logs", collection="items", columns={"key_id": SealedColumn("key_id", ColumnKind.UUID)}
        )
        with (
            datastore.key_engine.begin() as connection,
            pytest.raises(ConfigurationError, match="logs cannot be registered"),
        ):
            register(connection, [later])
        assert "logs" not in the_registry(datastore)

    def test_tables_that_share_one_already_are_registered_again(self, sqlite_url, open_datastore):
        datastore = open_datastore(sqlite_url, [IntegerSequencedItemRecord], setup=False)
        datastore.setup_tables(application="shop")
        with datastore.key_engine.begin() as connection:  # as earlier releases did
            connection.exec_driver_sql(
                "INSERT INTO eventseal_sealed_tables SELECT application, database_name, 'logs', "
                "collection, columns, "
                "old_formats FROM eventseal_sealed_tables"
            )
        open_datastore(sqlite_url, [IntegerSequencedItemRecord, LogRecord], setup=False).setup_tables(
            application="shop"
        )
        assert {table.collection for table in the_registry(datastore).values()} == {"items"}


class TestUnregisteredTables:
    def test_nothing_is_found_where_all_is_registered(self, datastore):
        assert look_for_unregistered(datastore) == []

    @pytest.mark.parametrize("kind", [BinaryUUID, Uuid])
    def test_a_table_that_looks_sealed_is_found_unless_it_is_listed(self, datastore, kind):
        forgotten = Table("forgotten", MetaData(), Column("key_id", kind), Column("body", LargeBinary))
        forgotten.create(datastore.engine)
        assert look_for_unregistered(datastore) == ["forgotten"]
        assert look_for_unregistered(datastore, unsealed_tables=["forgotten"]) == []

    @pytest.mark.parametrize(
        "columns",
        [
            "key_id INTEGER, data {binary}",
            "key_id {uuid}, data TEXT",
            "key_ids {uuid}, data {binary}",
        ],
    )
    def test_other_tables_are_left_alone(self, datastore, columns):
        kinds = {"uuid": "BLOB", "binary": "BLOB"}
        if datastore.engine.dialect.name == "postgresql":
            kinds = {"uuid": "UUID", "binary": "BYTEA"}
        with datastore.engine.begin() as connection:
            connection.execute(text(f"CREATE TABLE unrelated ({columns.format(**kinds)})"))
        assert look_for_unregistered(datastore) == []

    @pytest.mark.postgres
    def test_a_table_of_another_schema_is_found_too(self, postgres_url, open_datastore):
        datastore = open_datastore(postgres_url, TABLES)
        with datastore.engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA archive"))
            connection.execute(text("CREATE TABLE archive.snapshots (key_id UUID, data BYTEA)"))
        assert look_for_unregistered(datastore) == ["archive.snapshots"]
        assert look_for_unregistered(datastore, unsealed_tables=["archive.snapshots"]) == []

    @pytest.mark.postgres
    def test_a_registered_table_of_another_schema_is_read_and_is_not_found(
        self, postgres_url, open_datastore
    ):
        class ArchiveBase(DeclarativeBase):
            pass

        class Archived(IntegerSequencedColumns, ArchiveBase):
            __tablename__ = "archived"
            __table_args__ = {"schema": "archive"}  # noqa: RUF012

        datastore = open_datastore(postgres_url, [Archived], setup=False)
        with datastore.engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA archive"))
        datastore.setup_tables()
        datastore.setup_tables()
        assert look_for_unregistered(datastore) == []
        item = SequencedItem(uuid4(), 0, "t", b"d", uuid4())
        SQLAlchemyActiveRecordStrategy(Archived, datastore.session).append(item)
        with datastore.engine.connect() as connection:
            table = the_registry(datastore)["archive.archived"]
            assert row_at(connection, table, item.sequence_id, 0) == ItemRow(*item)


class TestItemRows:
    @pytest.fixture(params=TABLES[:4], ids=lambda record_class: record_class.__name__)
    def table(self, request, datastore) -> SealedTable:
        return the_registry(datastore)[request.param.__tablename__]

    @pytest.fixture
    def rows(self, table, datastore) -> list[ItemRow]:
        """Twelve items of two sequences under two keys and none, as the table has them."""
        keys = [UUID(int=1), UUID(int=2), None]
        half = Decimal("0.5") if table.table.startswith("timestamp") else 0
        heads = [b"\1\3\0" + key_id.bytes + bytes(40) if key_id else b"" for key_id in keys]
        rows = [
            ItemRow(
                UUID(int=number % 2 + 1),
                number // 2 + half,
                f"topic {number}",
                heads[number % 3] + b"%d" % number,
                keys[number % 3],
            )
            for number in range(12)
        ]
        self.insert(datastore, table, rows)
        return sorted(rows)

    @staticmethod
    def insert(datastore, table, rows):
        from sqlalchemy import Column, MetaData, Table

        described = Table(
            table.table, MetaData(), *(Column(c.name, c.kind.type) for c in table.columns.values())
        )
        names = [table.columns[role].name for role in ItemRow._fields]
        with datastore.engine.begin() as connection:
            connection.execute(insert(described), [dict(zip(names, row, strict=True)) for row in rows])

    def test_items_are_counted_by_key(self, table, rows, datastore):
        with datastore.engine.connect() as connection:
            assert count_by_key(connection, table) == {UUID(int=1): 4, UUID(int=2): 4, None: 4}

    def test_a_row_is_found_by_its_place(self, table, rows, datastore):
        with datastore.engine.connect() as connection:
            assert row_at(connection, table, rows[3].sequence_id, rows[3].position) == rows[3]
            assert row_at(connection, table, rows[3].sequence_id, 999) is None

    def test_of_an_empty_table_nothing_is_counted(self, table, datastore):
        with datastore.engine.connect() as connection:
            assert count_by_key(connection, table) == {}

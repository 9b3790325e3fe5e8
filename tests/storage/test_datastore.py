"""Connecting, making tables, and what a database that does not serve gets."""

from __future__ import annotations

import os
import sqlite3
import sys
import traceback
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import inspect, make_url, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import Text

from eventseal.errors import (
    ConfigurationError,
    MissingTableError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.items.item import SequencedItem
from eventseal.storage import (
    IntegerSequencedColumns,
    IntegerSequencedItemRecord,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyDatastore,
    SQLAlchemyKeyStore,
    SQLAlchemySettings,
    TimestampSequencedItemRecord,
)
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.key_id_indexes import has_key_id_indexes
from eventseal.storage.items.registry import read_registry
from eventseal.storage.items.tables import SealedTable
from eventseal.storage.keys.tables import key_metadata

PASSWORD = "correct-horse-battery"

BESIDE_ITEMS = {
    "eventseal_key_fences",
    "eventseal_compromised_marks",
    "eventseal_marked_envelopes",
    "eventseal_reencrypted_keys",
    "eventseal_reencryption_failures",
    "eventseal_reencryption_jobs",
    "eventseal_reencryption_shards",
    "eventseal_replaced_envelopes",
}
BESIDE_KEYS = set(key_metadata.tables)
OWN = BESIDE_ITEMS | BESIDE_KEYS


def assert_indexed(datastore, record):
    with datastore.engine.connect() as connection:
        assert has_key_id_indexes(connection, SealedTable.of(sealed_columns(record), None))


class Base(DeclarativeBase):
    pass


class OrderRecord(IntegerSequencedColumns, Base):
    __tablename__ = "order_items"
    __collection__ = "orders"


class OutboxRecord(Base):
    __tablename__ = "outbox_of_datastore"
    id: Mapped[int] = mapped_column(primary_key=True)
    message: Mapped[str] = mapped_column(Text)


def table_names(datastore: SQLAlchemyDatastore) -> set[str]:
    return {
        name
        for engine in (datastore.engine, datastore.key_engine)
        for name in inspect(engine).get_table_names()
    }


def new_item(key_id: UUID | None = None) -> SequencedItem:
    return SequencedItem(uuid4(), 0, "topic", b"data", key_id)


class TestSettings:
    @pytest.mark.parametrize(
        "uri",
        [
            f"postgresql://eve:{PASSWORD}@db.example/shop",
            f"postgresql://eve@db.example/shop?password={PASSWORD}",
            f"postgresql+psycopg://{PASSWORD}@db.example/shop?sslpassword={PASSWORD}",
        ],
    )
    def test_a_password_is_not_shown(self, uri):
        settings = SQLAlchemySettings(uri, connect_args={"passfile": PASSWORD})
        datastore = SQLAlchemyDatastore(settings)
        for shown in (repr(settings), str(settings), f"{settings}", repr(datastore), str(datastore)):
            assert PASSWORD not in shown
            assert "eve" not in shown
            assert "db.example/shop" in shown

    @pytest.mark.parametrize("uri", ["postgresql://x@h/d", "postgres://x@h/d", "postgresql+psycopg://x@h/d"])
    def test_postgresql_is_reached_over_psycopg(self, uri):
        assert SQLAlchemySettings(uri).url.drivername == "postgresql+psycopg"

    @pytest.mark.parametrize("uri", ["", "nonsense", f"postgresql://eve:{PASSWORD}@host:port/x", 7])
    def test_what_is_no_uri_is_refused_without_being_quoted(self, uri):
        with pytest.raises(ConfigurationError, match="URL cannot be read") as refused:
            SQLAlchemySettings(uri)
        assert PASSWORD not in "".join(traceback.format_exception(refused.value))

    @pytest.mark.parametrize("uri", ["mysql://root@host/shop", "oracle://x@host/shop"])
    def test_another_database_is_refused(self, uri):
        with pytest.raises(ConfigurationError, match="SQLite and PostgreSQL"):
            SQLAlchemySettings(uri)

    def test_an_engine_without_transactions_is_refused(self):
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            SQLAlchemySettings("sqlite://", isolation_level="AUTOCOMMIT")

    def test_an_unknown_engine_option_is_a_configuration_error(self):
        datastore = SQLAlchemyDatastore(SQLAlchemySettings("sqlite://", pool_sice=3))
        with pytest.raises(ConfigurationError, match="pool_sice"):
            datastore.setup_connection()

    def test_parameters_stay_out_of_logs_unless_asked_for(self):
        assert SQLAlchemyDatastore(SQLAlchemySettings("sqlite://")).engine.hide_parameters
        shown = SQLAlchemySettings("sqlite://", hide_parameters=False)
        assert not SQLAlchemyDatastore(shown).engine.hide_parameters


class TestSetup:
    def test_nothing_is_opened_before_it_is_used(self, tmp_path):
        path = tmp_path / "later.sqlite"
        datastore = SQLAlchemyDatastore(SQLAlchemySettings(f"sqlite:///{path}"), [IntegerSequencedItemRecord])
        SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        SQLAlchemyKeyStore(datastore)
        assert not path.exists()

    def test_the_listed_tables_are_made_and_those_beside_the_keys(self, store_url, open_datastore):
        datastore = open_datastore(store_url, [IntegerSequencedItemRecord])
        assert table_names(datastore) == OWN | {"integer_sequenced_items"}
        assert_indexed(datastore, IntegerSequencedItemRecord)

    def test_a_base_stands_for_all_its_tables(self, store_url, open_datastore):
        datastore = open_datastore(store_url, (), setup=False)
        datastore = SQLAlchemyDatastore(datastore.settings, base=Base)
        assert set(datastore.tables) == {OrderRecord, OutboxRecord}

    def test_setting_up_again_changes_nothing(self, store_url, open_datastore):
        datastore = open_datastore(store_url)
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        item = new_item(uuid4())
        strategy.append(item)
        datastore.setup_tables()
        open_datastore(store_url)
        assert list(strategy.all_items()) == [item]
        with datastore.key_engine.connect() as connection:
            assert len(read_registry(connection).complete()) == 3

    def test_processes_may_set_up_at_once(self, store_url, open_datastore):
        from concurrent.futures import ThreadPoolExecutor

        datastores = [open_datastore(store_url, setup=False) for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda datastore: datastore.setup_tables(), datastores))
        assert table_names(datastores[0]) >= OWN

    @pytest.mark.parametrize(("refusals", "patience"), [(1, 5.0), (3, 5.0), (10**9, 0.05)])
    def test_a_switch_to_the_write_ahead_log_waits_for_others(
        self, sqlite_url, open_datastore, refusals, patience
    ):
        class Beside(sqlite3.Connection):
            """Of two connections that switch together, SQLite refuses one, and does not let it wait."""

            left = refusals

            def execute(self, statement, *args):
                if statement == "PRAGMA journal_mode = WAL" and Beside.left:
                    Beside.left -= 1
                    error = sqlite3.OperationalError("database is locked")
                    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                    raise error
                return super().execute(statement, *args)

        options = {"connect_args": {"factory": Beside, "timeout": patience}}
        if refusals > 3:
            with pytest.raises(StoreUnavailableError, match="locked"):
                open_datastore(sqlite_url, **options)
            return
        datastore = open_datastore(sqlite_url, **options)
        with datastore.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"

    def test_dropping_leaves_nothing_and_can_be_repeated(self, store_url, open_datastore):
        datastore = open_datastore(store_url)
        datastore.drop_tables()
        datastore.drop_tables()
        assert table_names(datastore) == set()

    def test_sqlite_files_are_in_wal_mode_and_wait_half_a_minute(self, sqlite_url, open_datastore):
        datastore = open_datastore(sqlite_url)
        with datastore.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 30_000

    def test_a_closed_datastore_opens_again_when_it_is_used(self, store_url, open_datastore):
        datastore = open_datastore(store_url)
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        strategy.append(new_item())
        datastore.close()
        assert len(list(strategy.all_items())) == 1

    def test_in_memory_the_keys_are_reached_while_the_session_holds_the_items(self, open_datastore):
        datastore = open_datastore("sqlite:///:memory:")
        datastore.session.add(
            IntegerSequencedItemRecord(sequence_id=uuid4(), position=0, topic="t", data=b"d")
        )
        datastore.session.flush()
        assert SQLAlchemyKeyStore(datastore).reserve({uuid4(): 1}) == {}
        datastore.session.rollback()

    def test_in_memory_all_threads_see_the_same_tables(self, open_datastore):
        from concurrent.futures import ThreadPoolExecutor

        datastore = open_datastore("sqlite:///:memory:")
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(strategy.append, [new_item() for _ in range(40)]))
        assert len(list(strategy.all_items())) == 40

    def test_keys_may_have_a_database_of_their_own(self, store_url, tmp_path, open_datastore):
        keys = SQLAlchemySettings(f"sqlite:///{tmp_path / 'keys.sqlite'}")
        items = SQLAlchemySettings(store_url)
        datastore = SQLAlchemyDatastore(items, [IntegerSequencedItemRecord], key_settings=keys)
        try:
            datastore.setup_tables()
            beside_items = {"integer_sequenced_items", *BESIDE_ITEMS}
            assert set(inspect(datastore.engine).get_table_names()) == beside_items
            assert set(inspect(datastore.key_engine).get_table_names()) == BESIDE_KEYS
        finally:
            datastore.close()

    def test_the_same_database_twice_is_one(self, store_url):
        items, keys = SQLAlchemySettings(store_url), SQLAlchemySettings(store_url)
        datastore = SQLAlchemyDatastore(items, key_settings=keys)
        assert datastore.key_engine is datastore.engine


class TestOldTables:
    """A table of the same name that was made by something else."""

    @pytest.fixture
    def old_url(self, store_url, open_datastore):
        datastore = open_datastore(store_url, setup=False)
        with datastore.engine.begin() as connection:
            kind = "BYTEA" if connection.dialect.name == "postgresql" else "BLOB"
            ident = "UUID" if connection.dialect.name == "postgresql" else "BINARY(16)"
            connection.execute(
                text(
                    f"CREATE TABLE integer_sequenced_items (sequence_id {ident} NOT NULL,"
                    f" position BIGINT NOT NULL, topic VARCHAR(255), data {kind},"
                    " PRIMARY KEY (sequence_id, position))"
                )
            )
        return store_url

    def test_without_key_id_setup_names_the_column_and_the_remedy(self, old_url, open_datastore):
        datastore = open_datastore(
            old_url, [TimestampSequencedItemRecord, IntegerSequencedItemRecord], setup=False
        )
        with pytest.raises(ConfigurationError, match=r"integer_sequenced_items.*key_id") as refused:
            datastore.setup_tables()
        assert "eventseal upgrade" in refused.value.remedy
        assert table_names(datastore) == {"integer_sequenced_items"}

    @pytest.mark.parametrize("key_id", [None, uuid4()])
    def test_without_key_id_an_append_is_refused(self, old_url, open_datastore, key_id):
        datastore = open_datastore(old_url, [TimestampSequencedItemRecord])
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        with pytest.raises(ConfigurationError, match="key_id") as refused:
            strategy.append(new_item(key_id))
        assert "eventseal upgrade" in refused.value.remedy
        with pytest.raises(ConfigurationError, match="key_id"):
            strategy.get_items(uuid4())

    def test_a_missing_column_and_its_indexes_are_added_once(self, old_url, open_datastore):
        datastore = open_datastore(old_url, [IntegerSequencedItemRecord], setup=False)
        assert datastore.add_columns() == ["integer_sequenced_items"]
        assert datastore.add_columns() == []
        assert datastore.index_key_ids() == ["integer_sequenced_items"]
        assert datastore.index_key_ids() == []
        assert_indexed(datastore, IntegerSequencedItemRecord)
        datastore.setup_tables()
        item = new_item(uuid4())
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        strategy.append(item)
        assert list(strategy.all_items()) == [item]

    def test_a_table_of_another_program_is_named(self, store_url, open_datastore):
        datastore = open_datastore(store_url, [], setup=False)
        with datastore.engine.begin() as connection:
            connection.execute(text("CREATE TABLE eventseal_key_wrappings (key_id INTEGER PRIMARY KEY)"))
        with pytest.raises(ConfigurationError, match=r"eventseal_key_wrappings.*key_id is INTEGER"):
            datastore.setup_tables()


class TestADatabaseThatDoesNotServe:
    def test_a_missing_folder_is_a_wrong_setting(self, tmp_path, open_datastore):
        datastore = open_datastore(f"sqlite:///{tmp_path / 'nowhere' / 'x.sqlite'}", setup=False)
        with pytest.raises(ConfigurationError, match="there is no folder") as refused:
            datastore.setup_connection()
        assert "mkdir -p" in refused.value.remedy

    def test_a_missing_file_is_made(self, sqlite_url, open_datastore):
        open_datastore(sqlite_url, setup=False).setup_connection()
        assert Path(make_url(sqlite_url).database or "").exists()

    def test_a_file_that_is_no_database_is_a_wrong_setting(self, sqlite_url, open_datastore):
        Path(make_url(sqlite_url).database or "").write_bytes(b"no database" * 1000)
        with pytest.raises(ConfigurationError, match="not a database") as refused:
            open_datastore(sqlite_url, setup=False).setup_connection()
        assert "store_url" in refused.value.remedy

    @pytest.mark.parametrize("option", ["nosuch=1", "sslmode=nosuch", "connect_timeout=nosuch"])
    def test_an_option_of_the_url_that_the_driver_refuses_is_a_wrong_setting(self, open_datastore, option):
        url = f"postgresql://eve:{PASSWORD}@127.0.0.1:1/shop?{option}"
        with pytest.raises(ConfigurationError, match="nosuch") as refused:
            open_datastore(url, setup=False).setup_connection()
        assert "store_url" in refused.value.remedy
        assert PASSWORD not in "".join(traceback.format_exception(refused.value))

    @pytest.mark.postgres
    def test_a_missing_database_is_unavailable(self, postgres_url, open_datastore):
        missing = make_url(postgres_url).set(database="nowhere").render_as_string(hide_password=False)
        with pytest.raises(StoreUnavailableError, match="nowhere"):
            open_datastore(missing, setup=False).setup_connection()

    def test_a_refused_connection_is_unavailable_and_shows_no_password(self, open_datastore):
        url = f"postgresql://eve:{PASSWORD}@127.0.0.1:1/shop"
        datastore = open_datastore(url, setup=False)
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1") as refused:
            datastore.setup_connection()
        assert PASSWORD not in "".join(traceback.format_exception(refused.value))

    def test_a_missing_table_is_named(self, store_url, open_datastore):
        datastore = open_datastore(store_url, [])
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        for use in (lambda: strategy.append(new_item(uuid4())), lambda: strategy.get_items(uuid4())):
            with pytest.raises(MissingTableError, match="integer_sequenced_items") as missing:
                use()
            assert missing.value.table == "integer_sequenced_items"
            assert "setup_tables" in missing.value.remedy

    def test_missing_key_tables_are_named(self, store_url, open_datastore):
        key_store = SQLAlchemyKeyStore(open_datastore(store_url, setup=False))
        for use in (lambda: key_store.get([uuid4()]), lambda: key_store.reserve({uuid4(): 1})):
            with pytest.raises(MissingTableError, match="eventseal_encryption_keys"):
                use()

    def test_a_missing_fence_table_is_named(self, store_url, open_datastore):
        datastore = open_datastore(store_url)
        with datastore.engine.begin() as connection:
            connection.execute(text("DROP TABLE eventseal_key_fences"))
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        with pytest.raises(MissingTableError, match="eventseal_key_fences"):
            strategy.append(new_item(uuid4()))

    def test_a_read_only_file_can_be_read_and_not_written(self, sqlite_url, open_datastore):
        written = open_datastore(sqlite_url)
        item = new_item(uuid4())
        SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, written.session).append(item)
        path = make_url(sqlite_url).database
        datastore = open_datastore(f"sqlite:///file:{path}?mode=ro&uri=true", setup=False)
        datastore.setup_connection()
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        assert list(strategy.all_items()) == [item]
        assert SQLAlchemyKeyStore(datastore).get([uuid4()]) == {}
        writes = (
            lambda: strategy.append(new_item(uuid4())),
            lambda: SQLAlchemyKeyStore(datastore).reserve({uuid4(): 1}),
            datastore.drop_tables,
        )
        datastore.setup_tables()  # has nothing to do
        for write in writes:
            with pytest.raises(StoreReadOnlyError, match="readonly"):
                write()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
    def test_a_file_without_write_permission_is_read_only(self, sqlite_url, open_datastore):
        open_datastore(sqlite_url).close()
        Path(make_url(sqlite_url).database or "").chmod(0o444)
        with pytest.raises(StoreReadOnlyError):
            open_datastore(sqlite_url, setup=False).drop_tables()

    @pytest.mark.postgres
    def test_a_read_only_server_can_be_read_and_not_written(self, postgres_url, open_datastore):
        open_datastore(postgres_url)
        options = {"connect_args": {"options": "-c default_transaction_read_only=on"}}
        datastore = open_datastore(postgres_url, setup=False, **options)
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        assert list(strategy.all_items()) == []
        with pytest.raises(StoreReadOnlyError):
            strategy.append(new_item())
        with pytest.raises(StoreReadOnlyError):
            SQLAlchemyKeyStore(datastore).reserve({uuid4(): 1})

    def test_a_locked_file_is_unavailable_and_nothing_is_written(self, sqlite_url, open_datastore):
        open_datastore(sqlite_url)
        datastore = open_datastore(sqlite_url, setup=False, connect_args={"timeout": 0.1})
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        with closing(sqlite3.connect(make_url(sqlite_url).database or "")) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked") as refused:
                strategy.append(new_item(uuid4()))
            assert "Fork outside of transactions" in refused.value.remedy
            with pytest.raises(StoreUnavailableError, match="locked") as refused:
                SQLAlchemyKeyStore(datastore).reserve({uuid4(): 1})
            assert "keyring.prepare" in refused.value.remedy
            assert list(strategy.all_items()) == []  # readers go on
            other.rollback()
        strategy.append(new_item(uuid4()))

    def test_a_locked_file_that_is_not_in_wal_mode_is_unavailable(self, sqlite_url, open_datastore):
        datastore = open_datastore(sqlite_url, setup=False, connect_args={"timeout": 0.1})
        with closing(sqlite3.connect(make_url(sqlite_url).database or "")) as other:
            other.execute("CREATE TABLE t (id INTEGER)")
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreUnavailableError, match="locked"):
                datastore.setup_connection()
            other.rollback()
        datastore.setup_connection()

    def test_in_memory_a_second_connection_is_unavailable_while_the_first_is_used(self, open_datastore):
        datastore = open_datastore("sqlite://", pool_timeout=0.1, pool_size=1, max_overflow=0)
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        with datastore.engine.connect(), pytest.raises(StoreUnavailableError, match="in-memory"):
            strategy.get_items(uuid4())

    def test_a_missing_driver_is_named_with_its_install_command(self, monkeypatch):
        for module in [name for name in sys.modules if name.partition(".")[0] == "psycopg"]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, "psycopg", None)
        datastore = SQLAlchemyDatastore(SQLAlchemySettings("postgresql://host/shop"))
        with pytest.raises(ImportError, match=r"pip install 'eventseal\[postgres\]'"):
            datastore.setup_connection()

    @pytest.mark.slow
    @pytest.mark.postgres
    def test_a_server_that_restarted_is_used_again_without_an_error(self, postgres_url, open_datastore):
        datastore = open_datastore(postgres_url)
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        key_store = SQLAlchemyKeyStore(datastore)
        first, second = new_item(uuid4()), new_item(uuid4())
        strategy.append(first)
        for use in (
            lambda: strategy.append(second),
            lambda: strategy.get_items(first.sequence_id),
            lambda: key_store.get([uuid4()]),
            lambda: key_store.reserve({uuid4(): 1}),
        ):
            _end_all_connections(open_datastore(postgres_url, setup=False))
            use()
        assert {item.sequence_id for item in strategy.all_items()} == {first.sequence_id, second.sequence_id}


def _end_all_connections(admin: SQLAlchemyDatastore) -> None:
    with admin.engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    admin.close()

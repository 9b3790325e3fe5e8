"""Partitioned tables on PostgreSQL, by hash and by range: everything that works on a table works on them."""

from __future__ import annotations

from contextlib import closing
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import IntegrityError
from sqlalchemy import create_engine, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from tests.fixtures.eventsourcing_store import EVENTS, SNAPSHOTS, LibraryStore
from tests.fixtures.partitioned_tables import HASH, RANGE, OrderRecord, partitioned

from eventseal.configuration import EventSeal
from eventseal.configuration.diagnosis import diagnose
from eventseal.configuration.initialise import initialise
from eventseal.errors import SequencedItemConflictError
from eventseal.eventstore import EventStore
from eventseal.eventstore.events import EventWithOriginatorID, EventWithOriginatorVersion
from eventseal.items import SequencedItemMapper
from eventseal.items.sealed_places import Selection
from eventseal.rotation import reencrypt, retire, rotate_keys, verify
from eventseal.storage import SQLAlchemyActiveRecordStrategy, SQLAlchemyDatastore, SQLAlchemySettings
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.fences import has_fence_triggers
from eventseal.storage.items.key_id_indexes import has_key_id_indexes
from eventseal.storage.items.places import item_swaps
from eventseal.storage.items.rows import range_bounds
from eventseal.storage.items.tables import SealedTable
from eventseal.storage.unregistered import unregistered_tables
from eventseal_kms.local import LocalKmsAdapter

pytestmark = pytest.mark.postgres
kinds = pytest.mark.parametrize("kind", [HASH, RANGE])


class Placed(EventWithOriginatorVersion, EventWithOriginatorID):
    """An event of an order."""


@pytest.fixture
def sql(postgres_url):
    engine = create_engine(SQLAlchemySettings(postgres_url).url, poolclass=NullPool)

    def run(statement):
        with engine.begin() as connection:
            found = connection.exec_driver_sql(statement)
            return found.fetchall() if found.returns_rows else []

    return run


@pytest.fixture
def environment(postgres_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LocalKmsAdapter.create("dev.key")
    for name, value in {
        "KMS_KEY": "local://dev.key",
        "STORE_URL": postgres_url,
        "APPLICATION": "shop",
        "LEDGER": "erasures.jsonl",
    }.items():
        monkeypatch.setenv(f"EVENTSEAL_{name}", value)
    return monkeypatch


def amiss():
    found = [finding for finding in diagnose() if finding.severity.asks_for_action]
    return [finding for finding in found if "fsync is off" not in finding.text]


def opened_order(events, order):
    return [event.originator_version for event in events.get_domain_events(order)]


@pytest.mark.slow
@kinds
def test_a_table_of_ours(environment, sql, kind):
    sql(partitioned("orders", kind))
    environment.setenv("EVENTSEAL_TABLES", "tests.fixtures.partitioned_tables:OrderRecord")
    initialise()
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(OrderRecord, seal.datastore.session)
        mapper = SequencedItemMapper(cipher=seal.cipher, collection=strategy.collection)
        events = EventStore(strategy, mapper)
        orders = [uuid4() for _ in range(12)]
        for order in orders:
            events.append([Placed(originator_id=order, originator_version=n) for n in range(6)])
        with pytest.raises(SequencedItemConflictError):
            events.append([Placed(originator_id=orders[0], originator_version=n) for n in (6, 5)])
        assert amiss() == []
        assert min(row[0] for row in sql("SELECT count(*) FROM orders GROUP BY tableoid")) > 0

        late = mapper.to_sequenced_items([Placed(originator_id=orders[0], originator_version=6)])
        old_key = late[0].key_id
        rotate_keys(seal)
        assert reencrypt(seal).done == 72
        assert retire(seal).done == 1
        with pytest.raises(Exception, match=str(old_key)):
            strategy.append(late)

        result = verify(seal)
        assert (result.complete, result.failed, result.done) == (True, 0, 72), result.failures
        assert all(opened_order(events, order) == list(range(6)) for order in orders)
        assert {finding.area for finding in amiss()} <= {"jobs"}  # writers may use the old key for a while


@pytest.mark.slow
@kinds
def test_a_table_of_the_eventsourcing_library(environment, postgres_url, sql, kind):
    sql(partitioned(EVENTS, kind))
    environment.setenv("EVENTSEAL_EVENTSOURCING_TABLES", f"{EVENTS},{SNAPSHOTS}")
    with closing(LibraryStore(postgres_url, LocalKmsAdapter("dev.key"))) as library:
        library.snapshots.create_table()  # and the types of both; the library could not make the unique index
        initialise()
        with EventSeal.from_settings() as seal:
            streams = [library.append(5)[0].originator_id for _ in range(8)]
            with pytest.raises(IntegrityError):
                library.events.insert_events(library.states(streams[0], [5]))
            assert not [finding for finding in amiss() if EVENTS in finding.text]

            late = library.states(streams[0], [6, 2])
            update = f"UPDATE {EVENTS} SET state = '\\x{late[1].state.hex()}' WHERE originator_version = 2"
            rotate_keys(seal)
            assert reencrypt(seal).done == 40
            assert retire(seal).done == 1
            with pytest.raises(IntegrityError, match="is closed"):
                library.events.insert_events(late[:1])
            with pytest.raises(DBAPIError, match="is closed"):
                sql(update)
            if kind == RANGE:  # a partition that is attached later gets what the whole table has
                sql(f"CREATE TABLE {EVENTS}_2 (LIKE {EVENTS} INCLUDING DEFAULTS)")
                sql(f"ALTER TABLE {EVENTS} ATTACH PARTITION {EVENTS}_2 FOR VALUES FROM (1000) TO (2000)")
                later = library.states(streams[0], [1500], seal=seal)
                library.events.insert_events(later)
                with pytest.raises(DBAPIError, match="is closed"):
                    sql(update.replace("= 2", "= 1500"))
            assert verify(seal).done == 40 + (kind == RANGE)
            assert not [finding for finding in amiss() if EVENTS in finding.text]


@pytest.fixture
def datastore(postgres_url, sql):
    sql(partitioned("orders", HASH))
    with closing(SQLAlchemyDatastore(SQLAlchemySettings(postgres_url), [OrderRecord])) as datastore:
        datastore.setup_tables()
        datastore.index_key_ids()
        yield datastore


def test_equal_rows_in_the_same_place_of_two_partitions_are_not_mixed_up(datastore, sql):
    swaps = item_swaps(datastore.engine, SealedTable.of(sealed_columns(OrderRecord), None))
    rows = [
        {"sequence_id": UUID(int=n), "position": 0, "topic": "t", "data": b"{}", "key_id": None}
        for n in range(40)
    ]
    with datastore.engine.begin() as connection:
        connection.execute(insert(OrderRecord), rows)
        page = swaps.page(connection, Selection(keys=(), plain=True), after=None, upto=None, limit=100)
        envelopes = [bytes((1, 3, 0)) + bytes(16) + stream.bytes * 4 for stream in page.sequence_ids]
        assert sorted(swaps.swap(connection, swaps.prepare(page, envelopes, by_tag=False))) == list(range(40))
    places = sql("SELECT count(*), count(DISTINCT ctid), count(DISTINCT (tableoid, ctid)) FROM orders")
    assert places[0][1] < places[0][0] == places[0][2]
    stored = dict(sql("SELECT sequence_id, data FROM orders"))
    assert [stored[stream] for stream in page.sequence_ids] == envelopes


def test_partitions_are_no_tables_of_their_own(datastore, sql):
    with datastore.engine.connect() as connection:
        known = datastore.registry().tables
        assert unregistered_tables(connection, known) == []
        assert unregistered_tables(connection, []) == ["orders"]
    sql("CREATE SCHEMA archive; ALTER TABLE orders_0 SET SCHEMA archive")
    with datastore.engine.connect() as connection:
        assert unregistered_tables(connection, known) == []
    sql("ALTER TABLE orders DETACH PARTITION archive.orders_0")
    with datastore.engine.connect() as connection:
        assert unregistered_tables(connection, known) == ["archive.orders_0"]


def test_ranges_and_indexes_cover_all_partitions(datastore, sql):
    table = SealedTable.of(sealed_columns(OrderRecord), None)
    sql(
        "INSERT INTO orders SELECT gen_random_uuid(), n, 't', decode(repeat('00', 99), 'hex')"
        " FROM generate_series(1, 400) n"
    )
    with datastore.engine.connect() as connection:
        assert len(range_bounds(connection, table, 4)) == 3
        assert has_key_id_indexes(connection, table)
        indexed = sql(
            "SELECT inhparent::regclass::text, count(*) FROM pg_inherits JOIN pg_class ON oid = inhrelid"
            " WHERE relkind = 'i' GROUP BY 1"
        )
        assert {count for _, count in indexed} == {2}
        assert not has_fence_triggers(connection, table)

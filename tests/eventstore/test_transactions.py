"""Events and the caller's own rows in one transaction, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import pytest
from sqlalchemy import Text, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.fixtures.faulty_connection import FaultyConnection

from eventseal.cipher import AESCipher
from eventseal.errors import (
    ConfigurationError,
    SequencedItemConflictError,
    StoreError,
    StoreUnavailableError,
)
from eventseal.eventstore import (
    AggregateRoot,
    ApplicationWithPersistencePolicies,
    DomainEvent,
    EventSourcedRepository,
    EventSourcedSnapshotStrategy,
    EventStore,
    Logged,
    SnapshottingPolicy,
    publish,
)
from eventseal.items import SequencedItemMapper
from eventseal.keys import CachePolicy, Keyring
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyDatastore,
    SQLAlchemyKeyStore,
    SQLAlchemySettings,
    TimestampSequencedItemRecord,
)
from eventseal.storage.database.transactions import begin_writing
from eventseal.storage.items.fences import close_fence
from eventseal.testing import FakeKms


class Base(DeclarativeBase):
    pass


class Outbox(Base):
    __tablename__ = "outbox"

    message: Mapped[str] = mapped_column(Text, primary_key=True)


RECORDS = (IntegerSequencedItemRecord, TimestampSequencedItemRecord, SnapshotRecord)


class Happened(DomainEvent):
    pass


class Order(AggregateRoot):
    def __init__(self, **arguments):
        super().__init__(**arguments)


def happened(stream, *versions):
    return [Happened(originator_id=stream, originator_version=n) for n in versions]


def in_database(url, **options):
    return SQLAlchemyDatastore(SQLAlchemySettings(url, **options), (*RECORDS, Outbox))


@pytest.fixture
def datastore(store_url):
    datastore = in_database(store_url)
    datastore.setup_tables()
    yield datastore
    datastore.close()


@pytest.fixture
def kms():
    return FakeKms()


def make_app(datastore, kms):
    keyring = Keyring(
        kms, SQLAlchemyKeyStore(datastore), application="shop", cache=CachePolicy(refresh_interval=3600)
    )
    entities, logs, snapshots = [
        SQLAlchemyActiveRecordStrategy(record, datastore.session) for record in RECORDS
    ]
    app = ApplicationWithPersistencePolicies(
        entity_active_record_strategy=entities,
        log_active_record_strategy=logs,
        snapshot_active_record_strategy=snapshots,
        always_encrypt=True,
        cipher=AESCipher(keyring),
    )
    app.keyring = keyring
    return app


@pytest.fixture
def app(datastore, kms):
    with make_app(datastore, kms) as app, app.publishing():
        yield app


@pytest.fixture
def store(app):
    return app.entity_event_store


def stored(datastore, *records):
    """Count the committed rows, by way of another connection."""
    with datastore.engine.connect() as connection:
        return [
            connection.execute(select(func.count()).select_from(record)).scalar_one() for record in records
        ]


def test_events_logs_and_own_rows_are_committed_together(datastore, app, store):
    stream, log = uuid4(), Logged(originator_id=uuid4())
    with store.transaction() as session:
        store.append(happened(stream, 0))
        session.add(Outbox(message="paid"))
        store.append(happened(stream, 1))
        publish(log)
        assert len(store.get_domain_events(stream)) == 2
        assert session.scalars(select(Outbox.message)).all() == ["paid"]
        assert stored(datastore, *RECORDS, Outbox) == [0, 0, 0, 0]
    assert stored(datastore, *RECORDS, Outbox) == [2, 1, 0, 1]
    store.append(happened(stream, 2))
    assert stored(datastore, IntegerSequencedItemRecord) == [3]


def test_an_error_that_leaves_the_block_rolls_everything_back(datastore, store):
    with pytest.raises(KeyError), store.transaction() as session:
        session.add(Outbox(message="paid"))
        store.append(happened(uuid4(), 0))
        raise KeyError
    assert stored(datastore, *RECORDS, Outbox) == [0, 0, 0, 0]
    store.append(happened(uuid4(), 0))
    assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [1, 0]


def test_a_process_that_ends_before_the_commit_leaves_nothing(datastore, store):
    stream = uuid4()
    store.append(happened(stream, 0))
    datastore.close()
    child = os.fork()
    if child == 0:
        with store.transaction() as session:
            session.add(Outbox(message="paid"))
            store.append(happened(stream, 1))
            session.flush()
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [1, 0]
    store.append(happened(stream, 1))


def test_a_conflict_undoes_its_append_alone_and_says_so(datastore, store):
    stream = uuid4()
    store.append(happened(stream, 1))
    with store.transaction() as session:
        session.add(Outbox(message="tried"))
        store.append(happened(uuid4(), 0))
        with pytest.raises(SequencedItemConflictError, match="only this append was rolled back"):
            store.append(happened(stream, 0, 1, 2))
        assert len(store.get_domain_events(stream)) == 1
    assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [2, 1]


def test_a_conflict_outside_of_a_block_says_that_everything_was_rolled_back(datastore, store):
    stream = uuid4()
    store.append(happened(stream, 0))
    datastore.session.add(Outbox(message="paid"))
    with pytest.raises(SequencedItemConflictError, match="the whole transaction was rolled back"):
        store.append(happened(stream, 0))
    assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [1, 0]


def test_a_conflict_that_leaves_the_block_rolls_everything_back(datastore, store):
    stream = uuid4()
    store.append(happened(stream, 0))
    with pytest.raises(SequencedItemConflictError), store.transaction() as session:
        session.add(Outbox(message="paid"))
        store.append(happened(stream, 0))
    assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [1, 0]


@contextmanager
def breaking(datastore, session):
    """Let the next append of a session meet a fault that ends its transaction."""
    with datastore.engine.connect() as other:
        if other.dialect.name == "sqlite":
            begin_writing(other)
        else:  # PostgreSQL cannot serialize the append and a change of its fence
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            session.execute(text("SELECT 1 FROM outbox"))
            other.execute(text("UPDATE eventseal_key_fences SET state = state"))
            other.commit()
        yield


def test_after_a_fault_of_the_database_the_whole_transaction_must_be_run_again(store_url, datastore, kms):
    options = {"connect_args": {"timeout": 0.05}} if store_url.startswith("sqlite") else {}
    impatient = in_database(store_url, **options)
    with make_app(impatient, kms) as app, app.publishing():
        store, stream = app.entity_event_store, uuid4()
        store.append(happened(stream, 0))
        earlier = pytest.raises(StoreUnavailableError, match="an earlier error has rolled back the whole")
        whole = pytest.raises(StoreUnavailableError, match="the whole transaction was rolled back")
        with earlier, store.transaction() as session:
            with breaking(impatient, session), whole:
                store.append(happened(stream, 1))
            with pytest.raises(StoreUnavailableError, match="an earlier error"):
                store.append(happened(stream, 1))
        assert stored(impatient, IntegerSequencedItemRecord) == [1]
        with store.transaction():
            store.append(happened(stream, 1))
        assert stored(impatient, IntegerSequencedItemRecord) == [2]
    impatient.close()


@pytest.mark.postgres
def test_a_statement_that_failed_unnoticed_does_not_lose_the_events_silently(postgres_url, kms):
    datastore = in_database(postgres_url)
    datastore.setup_tables()
    lost = pytest.raises(StoreError, match="nothing was stored")
    with make_app(datastore, kms) as app, lost as error, app.entity_event_store.transaction() as session:
        app.entity_event_store.append(happened(uuid4(), 0))
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT 1 / 0"))
    assert "begin_nested" in error.value.remedy
    assert stored(datastore, IntegerSequencedItemRecord) == [0]
    datastore.close()


def test_no_key_is_retired_before_the_transaction_ends(store_url, datastore, store):
    """On PostgreSQL the transaction shares the fence; on SQLite it holds the write lock."""
    stream = uuid4()
    store.append(happened(stream, 0))
    key_id = store.active_record_strategy.get_item(stream, 0).key_id
    options = {"connect_args": {"timeout": 0}} if store_url.startswith("sqlite") else {}
    engine = create_engine(datastore.engine.url, **options)

    def close():
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = 20"))
            close_fence(begin_writing(connection), key_id)

    with store.transaction() as session:
        store.append(happened(stream, 1))
        with pytest.raises(SequencedItemConflictError):  # whose savepoint must not give up the fence
            store.append(happened(stream, 0))
        session.add(Outbox(message="paid"))
        with pytest.raises(DBAPIError):
            close()
    close()
    engine.dispose()


def test_events_whose_key_was_retired_meanwhile_are_sealed_again_in_the_same_transaction(
    datastore, kms, app, store
):
    stream = uuid4()
    store.append(happened(stream, 0))
    old = store.active_record_strategy.get_item(stream, 0).key_id
    with make_app(datastore, kms) as other:
        other.keyring.rotate()
    with datastore.engine.begin() as connection:
        close_fence(connection, old)
    with store.transaction() as session:
        session.add(Outbox(message="paid"))
        store.append(happened(stream, 1))
    items = store.active_record_strategy.get_items(stream)
    assert [item.key_id == old for item in items] == [True, False]
    assert stored(datastore, Outbox) == [1]


def test_a_snapshot_of_the_transaction_is_rolled_back_with_it(datastore, app):
    strategy = EventSourcedSnapshotStrategy(app.snapshot_event_store)
    repository = EventSourcedRepository(app.entity_event_store, snapshot_strategy=strategy)
    app.keyring.prepare(["application"])
    policy = SnapshottingPolicy(repository, period=1)
    try:
        with pytest.raises(KeyError), app.entity_event_store.transaction():
            order = Order.create()
            order.save()
            assert strategy.get_snapshot(order.id).originator_version == 0
            raise KeyError
        assert stored(datastore, *RECORDS) == [0, 0, 0]
        with app.entity_event_store.transaction():
            Order.create().save()
        assert stored(datastore, *RECORDS) == [1, 0, 1]
    finally:
        policy.close()


def test_blocks_are_not_nested_and_take_over_no_open_transaction(datastore, store):
    with store.transaction() as session:
        for inner in (store.transaction(), store.transaction(session)):
            with pytest.raises(ConfigurationError, match="cannot be nested"), inner:
                pass
        store.append(happened(uuid4(), 0))
    datastore.session.execute(select(Outbox))
    with pytest.raises(ConfigurationError, match="open transaction"), store.transaction():
        pass
    assert stored(datastore, IntegerSequencedItemRecord) == [1]


def test_each_thread_has_a_transaction_of_its_own(datastore, app, store):
    app.keyring.prepare(["application"])
    inside = threading.Barrier(2, timeout=60)

    def work(name):
        inside.wait()
        for n in range(5):
            with store.transaction() as session:
                session.add(Outbox(message=f"{name} {n}"))
                store.append(happened(uuid4(), 0, 1))
        datastore.session.remove()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, name) for name in "ab"]:
            done.result(60)
    assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [20, 10]


# --- a transaction that is ended inside its block ---


ENDS = {
    "commit": lambda datastore, session: session.commit(),
    "rollback": lambda datastore, session: session.rollback(),
    "close": lambda datastore, session: session.close(),
    "remove": lambda datastore, session: datastore.session.remove(),
}


@contextmanager
def block(store, datastore, *, joins):
    """A block, and a commit after it if the session is the caller's."""
    if not joins:
        with store.transaction() as session:
            yield session
        return
    with Session(datastore.engine) as session:
        with store.transaction(session):
            yield session
        session.commit()


@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_no_append_follows_the_end_of_the_transaction(datastore, app, store, end, joins):
    app.keyring.prepare(["application"])
    stream = uuid4()
    with (
        pytest.raises(ConfigurationError, match="was ended inside"),
        block(store, datastore, joins=joins) as session,
    ):
        store.append(happened(stream, 0))
        ENDS[end](datastore, session)
        with pytest.raises(ConfigurationError, match="was ended inside"):
            store.append(happened(stream, 1))
    datastore.session.remove()
    assert stored(datastore, IntegerSequencedItemRecord) == [1 if end == "commit" else 0]
    store.append(happened(uuid4(), 0))  # the next append is not in a block


@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize("end", ["rollback", "close", "remove"])
def test_events_that_the_block_has_lost_are_an_error_at_its_end(datastore, app, store, end, joins):
    app.keyring.prepare(["application"])
    with (
        pytest.raises(ConfigurationError, match="was ended inside"),
        block(store, datastore, joins=joins) as session,
    ):
        store.append(happened(uuid4(), 0))
        ENDS[end](datastore, session)
    datastore.session.remove()
    assert stored(datastore, IntegerSequencedItemRecord) == [0]


def test_a_block_without_events_may_end_its_transaction(datastore, store):
    with store.transaction() as session:
        session.add(Outbox(message="paid"))
        session.commit()
    with store.transaction() as session:
        session.add(Outbox(message="sent"))
        session.rollback()
    assert stored(datastore, Outbox) == [1]


def test_another_task_does_not_append_to_the_block(datastore, app, store):
    app.keyring.prepare(["application"])

    async def waits(begun, ended):
        with pytest.raises(ValueError, match="taken back"), store.transaction():
            store.append(happened(uuid4(), 0))
            begun.set()
            await ended.wait()
            raise ValueError("taken back")

    async def both():
        begun, ended = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(waits(begun, ended))
        await begun.wait()
        with pytest.raises(ConfigurationError, match="another task"):
            store.append(happened(uuid4(), 0))
        ended.set()
        await first

    asyncio.run(both())
    assert stored(datastore, IntegerSequencedItemRecord) == [0]


# --- a session of the caller ---


@pytest.mark.parametrize("by_connection", [False, True])
def test_the_callers_session_is_committed_by_the_caller(datastore, app, store, by_connection):
    app.keyring.prepare(["application"])
    engine = create_engine(datastore.engine.url)
    stream = uuid4()
    with engine.connect() as connection, Session(connection if by_connection else engine) as session:
        session.add(Outbox(message="paid"))
        session.flush()
        with store.transaction(session) as same:
            assert same is session
            session.info["of the block"] = 1
            store.append(happened(stream, 0))
            publish(Logged(originator_id=uuid4()))
            assert len(store.get_domain_events(stream)) == 1
        assert stored(datastore, *RECORDS, Outbox) == [0, 0, 0, 0]
        assert session.info == {"of the block": 1}
        session.commit()
        connection.commit()
    assert stored(datastore, *RECORDS, Outbox) == [1, 1, 0, 1]
    store.append(happened(stream, 1))
    assert stored(datastore, IntegerSequencedItemRecord) == [2]
    engine.dispose()


def test_the_callers_session_is_rolled_back_by_the_caller(datastore, app, store):
    app.keyring.prepare(["application"])
    with Session(datastore.engine) as session, store.transaction(session):
        session.add(Outbox(message="paid"))
        store.append(happened(uuid4(), 0))
    assert stored(datastore, *RECORDS, Outbox) == [0, 0, 0, 0]
    store.append(happened(uuid4(), 0))  # although the fence was rolled back on SQLite
    assert stored(datastore, IntegerSequencedItemRecord) == [1]


def test_the_datastores_own_session_can_be_passed_too(datastore, store):
    datastore.session.add(Outbox(message="paid"))
    with store.transaction(datastore.session):
        store.append(happened(uuid4(), 0))
    datastore.session.commit()
    assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [1, 1]


def test_a_session_of_another_database_is_refused(tmp_path, datastore, store):
    other = create_engine(f"sqlite:///{tmp_path / 'other.sqlite'}")
    refused = pytest.raises(ConfigurationError, match="another database")
    with Session(other) as session, refused, store.transaction(session):
        pass
    other.dispose()


def test_a_session_without_transactions_is_refused(store_url, kms):
    datastore = in_database(store_url)
    datastore.setup_tables()
    engine = create_engine(datastore.engine.url, isolation_level="AUTOCOMMIT")
    refused = pytest.raises(ConfigurationError, match="commits each statement")
    with (
        make_app(datastore, kms) as app,
        Session(engine) as session,
        refused,
        app.entity_event_store.transaction(session),
    ):
        pass
    engine.dispose()
    datastore.close()


def test_a_strategy_with_one_session_takes_no_other(datastore, cipher):
    with Session(datastore.engine) as one, Session(datastore.engine) as other:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, one)
        store = EventStore(strategy, SequencedItemMapper(cipher=cipher))
        with pytest.raises(ConfigurationError, match="has its own session"), store.transaction(other):
            pass
        with store.transaction(one):
            store.append(happened(uuid4(), 0))
        one.commit()
    assert stored(datastore, IntegerSequencedItemRecord) == [1]


def test_a_strategy_without_transactions_is_refused(memory, cipher):
    with pytest.raises(ConfigurationError, match="InMemoryStrategy has no transactions"):
        EventStore(memory, SequencedItemMapper(cipher=cipher)).transaction()


# --- SQLite alone ---


def test_on_sqlite_a_key_that_is_missing_inside_is_an_error_with_the_remedy(sqlite_url, kms):
    datastore = in_database(sqlite_url)
    datastore.setup_tables()
    with make_app(datastore, kms) as app, app.entity_event_store.transaction() as session:
        session.add(Outbox(message="paid"))
        session.flush()
        with pytest.raises(StoreUnavailableError) as error:
            app.entity_event_store.append(happened(uuid4(), 0))
        assert "keyring.prepare(scopes)" in error.value.remedy
        assert session.scalars(select(Outbox.message)).all() == ["paid"]
    assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [0, 1]
    datastore.close()


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_commit_without_an_answer_is_looked_for(sqlite_url, cipher, fault):
    datastore = in_database(sqlite_url, connect_args={"factory": FaultyConnection})
    datastore.setup_tables()
    strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
    store = EventStore(strategy, SequencedItemMapper(cipher=cipher))

    def run():
        with store.transaction() as session:
            store.append(happened(uuid4(), 0))
            session.add(Outbox(message="paid"))
            FaultyConnection.fail = fault

    if fault == "after":
        run()
        assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [1, 1]
    else:
        with pytest.raises(StoreUnavailableError, match="all of which was rolled back"):
            run()
        assert stored(datastore, IntegerSequencedItemRecord, Outbox) == [0, 0]
    datastore.close()

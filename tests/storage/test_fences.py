"""An item is never committed under a key that was destroyed meanwhile, whichever of the two is first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Integer, Text, event, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.fixtures.postgres_databases import wait_until_blocked

from eventseal.errors import KeyClosedError, SequencedItemConflictError, StoreUnavailableError
from eventseal.items.item import SequencedItem
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.storage.database.transactions import begin_writing
from eventseal.storage.items import appends
from eventseal.storage.items.fences import CLOSED, OPEN, close_fence, fence_states, open_fences

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage import SQLAlchemyDatastore

PATIENCE = 60  # s: how long a test waits for a step that comes at once if the code is right


class Base(DeclarativeBase):
    pass


class OutboxRecord(Base):
    __tablename__ = "outbox_of_fences"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    message: Mapped[str] = mapped_column(Text)


TABLES = [IntegerSequencedItemRecord, OutboxRecord]


@pytest.fixture
def datastore(store_url, open_datastore):
    return open_datastore(store_url, TABLES)


@pytest.fixture
def strategy(datastore):
    return SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def batch(*keys: UUID | None, stream: UUID | None = None) -> list[SequencedItem]:
    stream = stream or uuid4()
    return [SequencedItem(stream, position, "topic", b"data", key) for position, key in enumerate(keys)]


def count(connection: Connection, key_id: UUID) -> int:
    record = IntegerSequencedItemRecord
    query = select(func.count()).select_from(record).where(record.key_id == key_id)
    return connection.execute(query).scalar_one()


def state(datastore: SQLAlchemyDatastore, key_id: UUID) -> str | None:
    with datastore.engine.connect() as connection:
        return fence_states(connection, [key_id]).get(key_id)


def destroy(engine: Engine, key_id: UUID) -> bool:
    """What a destruction does: closes the fence, then counts in a new statement, and only then destroys."""
    with engine.connect() as connection:
        close_fence(begin_writing(connection), key_id)
        if count(connection, key_id):
            return False
        connection.commit()
        return True


class StalledAppend:
    """An append, in a thread of its own, that has written its items and waits before COMMIT."""

    def __init__(self, pool: ThreadPoolExecutor, engine: Engine, items: list[SequencedItem]) -> None:
        self._reached, self._go_on = threading.Event(), threading.Event()
        self._future = pool.submit(self._append, engine, items)
        assert self._reached.wait(PATIENCE)

    def finish(self) -> None:
        self._go_on.set()
        self._future.result(PATIENCE)

    def _append(self, engine: Engine, items: list[SequencedItem]) -> None:
        with Session(engine) as session:
            event.listen(session, "before_commit", self._stall)
            SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session).append(items)

    def _stall(self, _session: Session) -> None:
        self._reached.set()
        assert self._go_on.wait(PATIENCE)


def append_alone(engine: Engine, items: list[SequencedItem]) -> None:
    """Append in a transaction that is the strategy's own."""
    with Session(engine) as session:
        SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session).append(items)


def append(engine: Engine, items: list[SequencedItem], *, known: bool = False) -> None:
    """
    Append in a transaction that the caller has begun, so that a deadlock is told and not run again.

    Args:
        engine: Of the items' database.
        items: One batch.
        known: Whether the writer knows that the fences of the keys are there; else it looks for them first.
    """
    with Session(engine) as session:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session)
        if known:
            strategy._appends._fenced |= {KEY, OTHER}
        session.execute(text("SELECT 1"))
        strategy.append(items)


def see_blocked(engine: Engine) -> None:
    """Wait until a connection of this database waits for another; on SQLite, see that one would."""
    if engine.dialect.name == "postgresql":
        wait_until_blocked(engine)
        return
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        with pytest.raises(OperationalError, match="locked"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("PRAGMA busy_timeout = 5000")


KEY, OTHER = UUID(int=1), UUID(int=2)

BATCHES = pytest.mark.parametrize(
    "keys", [[KEY], [KEY] * 5, [OTHER, KEY, None, KEY]], ids=["one", "several", "several keys"]
)


KNOWN = pytest.mark.parametrize("known", [True, False], ids=["known keys", "new keys"])


@pytest.fixture
def fences(datastore):
    """Open fences of both keys."""
    with datastore.engine.connect() as connection:
        open_fences(begin_writing(connection), [KEY, OTHER])
        connection.commit()


class TestAWriterAndADestruction:
    @BATCHES
    def test_a_destruction_waits_for_a_writer_that_was_first_and_finds_its_items(
        self, strategy, datastore, pool, keys
    ):
        strategy.append(batch(KEY))  # the key is known and its fence is there
        writer = StalledAppend(pool, datastore.engine, batch(*keys))
        destruction = pool.submit(destroy, datastore.engine, KEY)
        see_blocked(datastore.engine)
        assert not destruction.done()
        writer.finish()
        assert destruction.result(PATIENCE) is False
        assert state(datastore, KEY) == OPEN
        assert len(list(strategy.all_items())) == 1 + len(keys)

    @BATCHES
    def test_a_writer_of_a_new_key_is_waited_for_too(self, strategy, datastore, pool, keys):
        writer = StalledAppend(pool, datastore.engine, batch(*keys))
        destruction = pool.submit(destroy, datastore.engine, KEY)
        see_blocked(datastore.engine)
        writer.finish()
        assert destruction.result(PATIENCE) is False

    @BATCHES
    @KNOWN
    def test_a_writer_waits_for_a_destruction_that_was_first_and_writes_nothing(
        self, fences, strategy, datastore, pool, keys, known
    ):
        with datastore.engine.connect() as destruction:
            close_fence(begin_writing(destruction), KEY)
            writer = pool.submit(append, datastore.engine, batch(*keys), known=known)
            see_blocked(datastore.engine)
            assert count(destruction, KEY) == 0
            assert not writer.done()
            destruction.commit()
        with pytest.raises(KeyClosedError) as closed:
            writer.result(PATIENCE)
        assert closed.value.key_ids == (KEY,)
        assert str(KEY) in str(closed.value)
        assert list(strategy.all_items()) == []

    @BATCHES
    @KNOWN
    def test_a_writer_goes_on_if_the_destruction_gives_up(
        self, fences, strategy, datastore, pool, keys, known
    ):
        with datastore.engine.connect() as destruction:
            close_fence(begin_writing(destruction), KEY)
            writer = pool.submit(append, datastore.engine, batch(*keys), known=known)
            see_blocked(datastore.engine)
            destruction.rollback()
        writer.result(PATIENCE)
        assert len(list(strategy.all_items())) == len(keys)

    @BATCHES
    @pytest.mark.parametrize("seen_before", [True, False])
    def test_a_closed_key_is_refused_and_nothing_of_the_batch_is_written(
        self, strategy, datastore, keys, seen_before
    ):
        if seen_before:
            strategy.append(batch(KEY))
            with datastore.engine.begin() as connection:
                connection.execute(text("DELETE FROM integer_sequenced_items"))
        assert destroy(datastore.engine, KEY)
        for _ in range(2):
            with pytest.raises(KeyClosedError):
                strategy.append(batch(*keys))
        assert list(strategy.all_items()) == []
        assert not datastore.session().in_transaction()

    def test_every_closed_key_of_a_batch_is_named(self, strategy, datastore):
        keys = [uuid4() for _ in range(3)]
        for key in keys[:2]:
            assert destroy(datastore.engine, key)
        with pytest.raises(KeyClosedError) as closed:
            strategy.append(batch(*keys))
        assert set(closed.value.key_ids) == set(keys[:2])

    def test_a_closed_fence_is_never_opened_again(self, strategy, datastore):
        assert destroy(datastore.engine, KEY)
        with datastore.engine.connect() as connection:
            open_fences(begin_writing(connection), [KEY, OTHER])
            connection.commit()
        assert (state(datastore, KEY), state(datastore, OTHER)) == (CLOSED, OPEN)

    def test_a_plain_item_has_no_fence(self, strategy, datastore):
        strategy.append(batch(None, None))
        with datastore.engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM eventseal_key_fences")).scalar_one() == 0

    def test_a_taken_position_under_a_closed_key_is_told_as_either(self, strategy, datastore):
        strategy.append(batch(None, stream=KEY))
        assert destroy(datastore.engine, KEY)
        with pytest.raises((KeyClosedError, SequencedItemConflictError)):
            strategy.append(batch(KEY, stream=KEY))

    def test_a_fence_that_was_removed_is_made_again(self, strategy, datastore):
        strategy.append(batch(KEY))
        for keys in ([KEY], [KEY, OTHER, KEY]):
            with datastore.engine.begin() as connection:
                connection.execute(text("DELETE FROM eventseal_key_fences"))
            strategy.append(batch(*keys))
            assert state(datastore, KEY) == OPEN

    def test_a_bounded_number_of_keys_is_remembered(self, strategy, monkeypatch):
        monkeypatch.setattr(appends, "MOST_REMEMBERED", 10)
        for number in range(25):
            strategy.append(batch(UUID(int=number), OTHER))
            assert len(strategy._appends._fenced) <= 10
        assert len(list(strategy.all_items())) == 50


class TestTheCallersRows:
    """After KeyClosedError the caller's own rows stay, and go with the items that are sealed again."""

    @pytest.mark.parametrize("flushed", [True, False])
    def test_they_are_committed_with_the_second_append(self, strategy, datastore, flushed):
        assert destroy(datastore.engine, KEY)
        datastore.session.add(OutboxRecord(message="placed"))
        if flushed:
            datastore.session.flush()
        with pytest.raises(KeyClosedError):
            strategy.append(batch(KEY, None))
        assert self.messages(datastore) == []
        strategy.append(batch(OTHER, None))
        assert self.messages(datastore) == ["placed"]
        assert len(list(strategy.all_items())) == 2

    def test_without_any_no_transaction_stays_open(self, strategy, datastore):
        assert destroy(datastore.engine, KEY)
        with pytest.raises(KeyClosedError):
            strategy.append(batch(KEY))
        assert not datastore.session().in_transaction()
        assert not datastore.holds_write_lock()

    @staticmethod
    def messages(datastore: SQLAlchemyDatastore) -> list[str]:
        with Session(datastore.engine) as session:
            return list(session.scalars(select(OutboxRecord.message)))


@pytest.mark.postgres
class TestOnPostgreSQL:
    @pytest.fixture
    def datastore(self, postgres_url, open_datastore):
        return open_datastore(postgres_url, TABLES)

    @pytest.fixture(params=["REPEATABLE READ", "SERIALIZABLE"])
    def snapshots(self, request, postgres_url, open_datastore):
        """A datastore whose transactions see one snapshot."""
        return open_datastore(postgres_url, TABLES, setup=False, isolation_level=request.param)

    def test_a_writer_with_a_snapshot_is_run_again_and_refused(
        self, fences, strategy, datastore, snapshots, pool
    ):
        late = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, snapshots.session)
        late._appends._fenced.add(KEY)
        with datastore.engine.connect() as destruction:
            close_fence(destruction, KEY)
            writer = pool.submit(late.append, batch(KEY))
            see_blocked(datastore.engine)
            assert count(destruction, KEY) == 0
            destruction.commit()
        with pytest.raises(KeyClosedError):
            writer.result(PATIENCE)
        assert list(strategy.all_items()) == []

    def test_a_callers_older_snapshot_is_told_to_run_again(self, strategy, datastore, snapshots):
        strategy.append(batch(OTHER))
        late = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, snapshots.session)
        for close, key in ((True, OTHER), (False, KEY)):
            assert snapshots.session.scalars(select(OutboxRecord.id)).all() == []
            with datastore.engine.begin() as connection:
                connection.execute(text("DELETE FROM integer_sequenced_items"))
            if close:
                assert destroy(datastore.engine, key)
            with pytest.raises(StoreUnavailableError):
                late.append(batch(key))
            assert not snapshots.session().in_transaction()
        assert list(strategy.all_items()) == []
        late.append(batch(KEY))  # in a new transaction

    def test_writers_of_snapshots_that_meet_are_run_again(self, datastore, snapshots, pool):
        """Serialization failures at COMMIT, too, are the strategy's own business."""
        streams = [uuid4() for _ in range(2)]

        def work(stream: UUID) -> None:
            with Session(snapshots.engine) as session:
                strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session)
                for position in range(20):
                    strategy.append(SequencedItem(stream, position, "topic", b"data", KEY))

        list(pool.map(work, streams))
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        assert len(list(strategy.all_items())) == 40

    def test_keys_in_opposite_orders_do_not_deadlock(self, fences, datastore, pool):
        """Were the keys taken as they come, the writer would hold the second while it waits for the first."""
        with datastore.engine.connect() as destruction:
            close_fence(destruction, KEY)
            writer = pool.submit(append, datastore.engine, batch(OTHER, KEY), known=True)
            see_blocked(datastore.engine)
            close_fence(destruction, OTHER)
            destruction.commit()
        with pytest.raises(KeyClosedError) as closed:
            writer.result(PATIENCE)
        assert closed.value.key_ids == (KEY, OTHER)

    def test_a_deadlock_over_positions_ends_with_one_writer_and_one_conflict(self, datastore, pool):
        """Two batches for the same two places, each holding the one that the other needs."""
        stream, first_inserts = uuid4(), threading.Barrier(2)
        batches = [
            [SequencedItem(stream, 0, "t", b"a", KEY), SequencedItem(stream, 1, "t", b"a", OTHER)],
            [SequencedItem(stream, 1, "t", b"b", KEY), SequencedItem(stream, 0, "t", b"b", OTHER)],
        ]
        met = threading.local()

        def meet(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            met.inserts = getattr(met, "inserts", 0) + statement.startswith("INSERT INTO integer_")
            if met.inserts == 1 and not hasattr(met, "passed"):
                met.passed = True
                first_inserts.wait(PATIENCE)

        event.listen(datastore.engine, "after_cursor_execute", meet)

        def work(items: list[SequencedItem]) -> str:
            try:
                append_alone(datastore.engine, items)
            except SequencedItemConflictError:
                return "conflict"
            return "written"

        outcomes = list(pool.map(work, batches))
        event.remove(datastore.engine, "after_cursor_execute", meet)
        assert sorted(outcomes) == ["conflict", "written"]
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        assert sorted(strategy.all_items()) == sorted(batches[outcomes.index("written")])

    def test_writers_under_one_key_do_not_wait_for_each_other(self, strategy, datastore, pool):
        strategy.append(batch(KEY))
        writer = StalledAppend(pool, datastore.engine, batch(KEY, KEY))
        strategy.append(batch(KEY))
        strategy.append(batch(KEY, OTHER, KEY))
        writer.finish()

    def test_a_new_keys_fence_does_not_wait_for_a_writer_that_is_open(self, strategy, datastore, pool):
        writer = StalledAppend(pool, datastore.engine, batch(KEY))
        other = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
        other.append(batch(KEY))  # has not seen the key
        writer.finish()

    def test_a_batch_is_one_statement_a_key(self, strategy, datastore):
        statements = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        strategy.append(batch(KEY, OTHER))
        event.listen(datastore.engine, "before_cursor_execute", note)
        strategy.append(batch(*[KEY, OTHER] * 50))
        event.remove(datastore.engine, "before_cursor_execute", note)
        assert [statement.split("(")[0].strip() for statement in statements] == [
            "WITH fence AS MATERIALIZED"
        ] * 2
        assert all("FOR SHARE" in statement for statement in statements)

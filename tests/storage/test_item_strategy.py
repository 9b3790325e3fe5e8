"""Appending and reading items, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections import namedtuple
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    Integer,
    Text,
    func,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from eventseal.errors import (
    ConfigurationError,
    ItemNotFoundError,
    SequencedItemConflictError,
    SerializationError,
    StoreError,
)
from eventseal.items.item import SequencedItem
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    TimestampSequencedItemRecord,
)

TOPIC = "shop:Order.Placed"


class Base(DeclarativeBase):
    pass


class OutboxRecord(Base):
    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    message: Mapped[str] = mapped_column(Text, unique=True)


@pytest.fixture
def strategy(datastore) -> SQLAlchemyActiveRecordStrategy:
    return SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)


def item(sequence_id: Any, position: Any, key_id: UUID | None = None, data: bytes = b"data") -> SequencedItem:
    return SequencedItem(sequence_id, position, TOPIC, data, key_id)


def test_an_item_comes_back_as_it_was_appended(strategy):
    sequence_id, key_id = uuid4(), uuid4()
    sealed, plain = item(sequence_id, 0, key_id, b"\x00\xff"), item(sequence_id, 1, None, b"{}")
    strategy.append(sealed)
    strategy.append([plain])
    assert strategy.get_item(sequence_id, eq=0) == sealed
    assert strategy.get_item(sequence_id, eq=1) == plain
    assert type(strategy.get_item(sequence_id, eq=0)) is SequencedItem


def test_a_batch_with_several_keys_and_plain_items_is_appended_whole(strategy):
    sequence_id, keys = uuid4(), [uuid4(), uuid4(), None]
    batch = [item(sequence_id, n, keys[n % 3], b"%d" % n) for n in range(100)]
    strategy.append(batch)
    assert strategy.get_items(sequence_id) == batch


def test_the_items_of_a_generator_are_appended(strategy):
    sequence_id = uuid4()
    strategy.append(item(sequence_id, n) for n in range(3))
    assert [found.position for found in strategy.get_items(sequence_id)] == [0, 1, 2]


def test_an_empty_batch_writes_nothing_and_commits_what_the_caller_added(strategy, datastore):
    datastore.session.add(IntegerSequencedItemRecord(sequence_id=uuid4(), position=0, topic="t", data=b"d"))
    strategy.append([])
    datastore.session.rollback()
    assert len(list(strategy.all_items())) == 1


def test_a_conflict_of_the_callers_own_row_is_told_too(strategy, datastore):
    taken = item(uuid4(), 0)
    strategy.append(taken)
    row = taken._asdict()
    for batch in ([], [item(uuid4(), 0)]):
        datastore.session.add(IntegerSequencedItemRecord(**row))
        with pytest.raises(SequencedItemConflictError):
            strategy.append(batch)
    assert list(strategy.all_items()) == [taken]


def test_a_missing_item_is_a_lookup_error(strategy):
    with pytest.raises(ItemNotFoundError, match="position 7"):
        strategy.get_item(uuid4(), eq=7)
    assert issubclass(ItemNotFoundError, LookupError)


@pytest.mark.parametrize(
    ("bounds", "positions"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"gt": 1}, [2, 3, 4]),
        ({"gte": 1}, [1, 2, 3, 4]),
        ({"lt": 3}, [0, 1, 2]),
        ({"lte": 3}, [0, 1, 2, 3]),
        ({"gt": 0, "lt": 4}, [1, 2, 3]),
        ({"gte": 0, "gt": 1, "lte": 4, "lt": 3}, [2]),
        ({"gt": 4}, []),
        ({"limit": 2}, [0, 1]),
        ({"limit": 2, "query_ascending": False}, [3, 4]),
        ({"limit": 2, "query_ascending": False, "results_ascending": False}, [4, 3]),
        ({"limit": 2, "results_ascending": False}, [1, 0]),
        ({"gte": 1, "limit": 3, "query_ascending": False, "results_ascending": False}, [4, 3, 2]),
        ({"limit": 0}, []),
    ],
)
def test_a_part_of_a_sequence_is_read(strategy, bounds, positions):
    sequence_id = uuid4()
    strategy.append([item(sequence_id, n) for n in range(5)] + [item(uuid4(), 2)])
    assert [found.position for found in strategy.get_items(sequence_id, **bounds)] == positions


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 1000])
def test_all_items_are_streamed_once_each_whatever_the_page(strategy, page_size):
    batch = [item(uuid4(), n, uuid4() if n % 2 else None) for n in range(3)]
    batch += [item(batch[0].sequence_id, n) for n in range(1, 4)]
    strategy.append(batch)
    found = list(strategy.all_items(page_size=page_size))
    assert len(found) == len(batch)
    assert {(each.sequence_id, each.position) for each in found} == {
        (i.sequence_id, i.position) for i in batch
    }


def test_timestamps_are_positions(datastore):
    strategy = SQLAlchemyActiveRecordStrategy(TimestampSequencedItemRecord, datastore.session)
    sequence_id = uuid4()
    times = [Decimal("1709249415.000001"), Decimal("1709249415.5"), Decimal(1709249416)]
    strategy.append([item(sequence_id, time, uuid4()) for time in times])
    assert [found.position for found in strategy.get_items(sequence_id)] == times
    assert strategy.get_item(sequence_id, eq=times[1]).position == times[1]
    later = strategy.get_items(sequence_id, gt=times[0], limit=1)
    assert [found.position for found in later] == times[1:2]


def test_snapshots_are_a_collection_of_their_own(datastore):
    strategy = SQLAlchemyActiveRecordStrategy(SnapshotRecord, datastore.session)
    assert (strategy.collection, SnapshotRecord.__tablename__) == ("snapshots", "snapshots")
    strategy.append(item(uuid4(), 3))
    assert len(list(strategy.all_items())) == 1


def test_a_taken_position_is_a_conflict_and_nothing_of_its_batch_is_written(strategy):
    sequence_id, key_id = uuid4(), uuid4()
    strategy.append(item(sequence_id, 1, key_id))
    batch = [item(sequence_id, 0, key_id), item(sequence_id, 1, key_id), item(sequence_id, 2, uuid4())]
    with pytest.raises(SequencedItemConflictError, match=str(sequence_id)):
        strategy.append(batch)
    assert [found.position for found in strategy.get_items(sequence_id)] == [1]


def test_a_position_twice_in_one_batch_is_a_conflict(strategy):
    sequence_id = uuid4()
    with pytest.raises(SequencedItemConflictError):
        strategy.append([item(sequence_id, 0), item(sequence_id, 0)])
    assert strategy.get_items(sequence_id) == []


def test_the_very_same_item_twice_is_a_conflict(strategy):
    sealed = item(uuid4(), 0, uuid4())
    strategy.append(sealed)
    with pytest.raises(SequencedItemConflictError):
        strategy.append(sealed)


@pytest.mark.parametrize("position", [1.5, True, "1", None, 2**63, Decimal("0.5")])
def test_a_position_that_does_not_fit_is_refused_and_nothing_of_its_batch_is_written(strategy, position):
    sequence_id = uuid4()
    keys = sorted([uuid4(), uuid4()])
    with pytest.raises((SerializationError, StoreError)):
        strategy.append([item(sequence_id, 0, keys[0]), item(sequence_id, position, keys[1])])
    assert strategy.get_items(sequence_id) == []


@pytest.mark.parametrize("wrong", [{"data": "text"}, {"key_id": "text"}, {"sequence_id": "no uuid"}])
def test_a_value_of_another_kind_is_refused(strategy, wrong):
    with pytest.raises(SerializationError):
        strategy.append(item(uuid4(), 0, uuid4())._replace(**wrong))
    assert list(strategy.all_items()) == []


def test_an_item_of_another_class_is_refused(strategy):
    with pytest.raises(ConfigurationError, match="position"):
        strategy.append([namedtuple("Odd", ["sequence_id", "topic"])(uuid4(), TOPIC)])  # noqa: PYI024


class TestTheCallersTransaction:
    """An append commits the session with whatever the caller had added to it, or rolls all of it back."""

    @pytest.fixture
    def datastore(self, store_url, open_datastore):
        return open_datastore(store_url, (IntegerSequencedItemRecord, OutboxRecord))

    @staticmethod
    def messages(datastore) -> list[str]:
        with Session(datastore.engine) as session:
            return list(session.scalars(select(OutboxRecord.message).order_by(OutboxRecord.id)))

    @pytest.mark.parametrize("flushed", [False, True])
    def test_an_outbox_row_lands_with_its_event(self, strategy, datastore, flushed):
        datastore.session.add(OutboxRecord(message="placed"))
        if flushed:
            datastore.session.flush()
        strategy.append(item(uuid4(), 0, uuid4()))
        assert self.messages(datastore) == ["placed"]
        assert not datastore.session().in_transaction()

    @pytest.mark.parametrize("flushed", [False, True])
    def test_a_conflict_rolls_the_outbox_row_back(self, strategy, datastore, flushed):
        taken = item(uuid4(), 0)
        strategy.append(taken)
        datastore.session.add(OutboxRecord(message="placed"))
        if flushed:
            datastore.session.flush()
        with pytest.raises(SequencedItemConflictError):
            strategy.append(taken)
        datastore.session.commit()
        assert self.messages(datastore) == []

    def test_a_refused_outbox_row_rolls_the_item_back_and_is_no_conflict(self, strategy, datastore):
        datastore.session.add(OutboxRecord(message="placed"))
        strategy.append(item(uuid4(), 0))
        datastore.session.add(OutboxRecord(message="placed"))
        sequence_id = uuid4()
        with pytest.raises(StoreError) as refused:
            strategy.append(item(sequence_id, 0, uuid4()))
        assert not isinstance(refused.value, SequencedItemConflictError)
        assert strategy.get_items(sequence_id) == []
        assert self.messages(datastore) == ["placed"]

    def test_a_refused_item_rolls_the_outbox_row_back(self, strategy, datastore):
        datastore.session.add(OutboxRecord(message="placed"))
        with pytest.raises(SerializationError):
            strategy.append(item(uuid4(), 1.5))
        datastore.session.commit()
        assert self.messages(datastore) == []

    def test_a_read_keeps_what_the_caller_has_added_and_does_not_write_it(self, strategy, datastore):
        datastore.session.add(OutboxRecord(message="placed"))
        assert strategy.get_items(uuid4()) == []
        assert datastore.session.new
        assert not datastore.holds_write_lock()
        strategy.append(item(uuid4(), 0))
        assert self.messages(datastore) == ["placed"]

    def test_a_read_ends_its_transaction(self, strategy, datastore):
        sequence_id = uuid4()
        strategy.append([item(sequence_id, n) for n in range(3)])
        strategy.get_items(sequence_id)
        assert not datastore.session().in_transaction()
        strategy.get_item(sequence_id, eq=0)
        assert not datastore.session().in_transaction()
        for _ in strategy.all_items(page_size=1):
            assert not datastore.session().in_transaction()

    def test_a_read_sees_what_the_open_transaction_wrote(self, strategy, datastore):
        sequence_id = uuid4()
        record = IntegerSequencedItemRecord(sequence_id=sequence_id, position=0, topic=TOPIC, data=b"d")
        datastore.session.add(record)
        datastore.session.flush()
        assert len(strategy.get_items(sequence_id)) == 1
        datastore.session.rollback()
        assert strategy.get_items(sequence_id) == []

    def test_a_session_that_is_not_scoped_works_too(self, datastore):
        with Session(datastore.engine) as session:
            strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session)
            session.add(OutboxRecord(message="placed"))
            strategy.append(item(uuid4(), 0, uuid4()))
        assert self.messages(datastore) == ["placed"]


def test_threads_append_side_by_side(strategy, datastore):
    from concurrent.futures import ThreadPoolExecutor

    key_id, streams = uuid4(), [uuid4() for _ in range(8)]

    def write(stream: UUID) -> None:
        for n in range(20):
            strategy.append(item(stream, n, key_id))
        datastore.session.remove()

    with ThreadPoolExecutor(len(streams)) as pool:
        list(pool.map(write, streams))
    with datastore.engine.connect() as connection:
        count = connection.execute(select(func.count()).select_from(IntegerSequencedItemRecord)).scalar_one()
    assert count == 160


def test_of_racing_writers_one_gets_the_place(strategy, datastore):
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    sequence_id, barrier = uuid4(), Barrier(6)

    def race(number: int) -> bool:
        barrier.wait(timeout=60)
        try:
            strategy.append(item(sequence_id, 0, uuid4(), b"%d" % number))
        except SequencedItemConflictError:
            return False
        finally:
            datastore.session.remove()
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(race, range(6)))
    assert sum(won) == 1
    assert strategy.get_item(sequence_id, eq=0).data == b"%d" % won.index(True)


@pytest.mark.parametrize("limit", [-1, -1000])
def test_a_negative_limit_is_refused(strategy, limit):
    with pytest.raises(ConfigurationError, match=f"limit is {limit}"):
        strategy.get_items(uuid4(), limit=limit)


@pytest.mark.parametrize("session", [None, "sqlite://"])
def test_what_is_no_session_is_refused_at_once(session):
    with pytest.raises(ConfigurationError, match=type(session).__name__):
        SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, session)

"""Appending and reading items, on SQLite and PostgreSQL."""

from __future__ import annotations

import dataclasses
from collections import Counter, namedtuple
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    CHAR,
    Boolean,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Text,
    UniqueConstraint,
    Uuid,
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
    BinaryUUID,
    ExactInteger,
    ExactText,
    IntegerSequencedColumns,
    IntegerSequencedItemRecord,
    SealedColumns,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    TimestampSequencedItemRecord,
)
from eventseal.suites.envelope import CompressionId, SuiteId, build_header

TOPIC = "shop:Order.Placed"


class Base(DeclarativeBase):
    pass


class StoredEvent(NamedTuple):
    aggregate_id: Any
    aggregate_version: Any
    event_type: str
    state: bytes
    causation: str
    urgent: bool


class StoredEventRecord(Base):
    """With a key of its own, names of its own, other attributes, and nothing of a mixin."""

    __tablename__ = "stored_events"
    __collection__ = "orders"
    __table_args__ = (UniqueConstraint("aggregate_id", "aggregate_version"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    aggregate_id: Mapped[str] = mapped_column(String(255))
    aggregate_version: Mapped[int] = mapped_column(Integer)
    event_type: Mapped[str] = mapped_column(String(12))
    state: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[UUID | None] = mapped_column(BinaryUUID, index=True)
    causation: Mapped[str] = mapped_column(Text, unique=True)
    urgent: Mapped[bool] = mapped_column(Boolean)


class PlainRecord(Base):
    __tablename__ = "plain_items"

    sequence_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    position: Mapped[int] = mapped_column(ExactInteger, primary_key=True, autoincrement=False)
    topic: Mapped[str] = mapped_column(ExactText)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class OutboxRecord(Base):
    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    message: Mapped[str] = mapped_column(Text, unique=True)


@pytest.fixture
def strategy(datastore) -> SQLAlchemyActiveRecordStrategy:
    return SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)


def item(sequence_id: Any, position: Any, key_id: UUID | None = None, data: bytes = b"data") -> SequencedItem:
    return SequencedItem(sequence_id, position, TOPIC, data, key_id)


def new_class(*mixins: type[Any], **columns: Any) -> type[Any]:
    """A record class of its own name and table."""
    name = f"record_{uuid4().hex}"
    return type(name, (*mixins, Base), {"__tablename__": name, **columns})


def header(key_id: UUID) -> bytes:
    """The smallest thing that is an envelope by its form."""
    return build_header(SuiteId.A256CBC_HS512, CompressionId.NONE, key_id) + bytes(16 + 16 + 32)


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


class TestCustomItemClasses:
    """The first four fields by place, the key id and the others by name."""

    @pytest.fixture
    def datastore(self, store_url, open_datastore):
        return open_datastore(store_url, (StoredEventRecord, PlainRecord))

    @pytest.fixture
    def strategy(self, datastore):
        return SQLAlchemyActiveRecordStrategy(
            StoredEventRecord, datastore.session, sequenced_item_class=StoredEvent
        )

    def test_items_keep_their_class_and_their_other_attributes(self, strategy):
        events = [
            StoredEvent("order-1", n, "Placed", b"{}", f"command {n}", urgent=bool(n % 2)) for n in range(4)
        ]
        strategy.append(events[0])
        strategy.append(events[1:])
        assert strategy.get_items("order-1") == events
        assert list(strategy.all_items(page_size=2)) == events
        assert strategy.collection == "orders"

    def test_the_key_id_is_read_from_the_envelope_if_the_item_class_has_no_field_for_it(
        self, strategy, datastore
    ):
        key_id = uuid4()
        sealed = [StoredEvent("a", n, "Placed", header(key_id), f"{n}", urgent=False) for n in range(2)]
        strategy.append([*sealed, StoredEvent("b", 0, "Placed", b"{}", "c", urgent=False)])
        with datastore.engine.connect() as connection:
            found = connection.execute(select(StoredEventRecord.key_id).order_by(StoredEventRecord.id))
            assert Counter(found.scalars()) == {key_id: 2, None: 1}
        assert strategy.get_items("a") == sealed

    def test_only_the_items_own_key_makes_a_conflict(self, strategy):
        strategy.append(StoredEvent("a", 0, "Placed", b"{}", "same", urgent=False))
        with pytest.raises(StoreError) as refused:
            strategy.append(StoredEvent("a", 1, "Placed", b"{}", "same", urgent=False))
        assert not isinstance(refused.value, SequencedItemConflictError)
        with pytest.raises(SequencedItemConflictError):
            strategy.append(StoredEvent("a", 0, "Placed", b"{}", "other", urgent=False))

    def test_a_dataclass_is_an_item_class(self, datastore):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Item:
            aggregate_id: str
            aggregate_version: int
            event_type: str
            state: bytes
            key_id: UUID | None = None
            causation: str = "none"
            urgent: bool = False

        strategy = SQLAlchemyActiveRecordStrategy(
            StoredEventRecord, datastore.session, sequenced_item_class=Item
        )
        event = Item(aggregate_id="a", aggregate_version=0, event_type="Placed", state=b"{}", key_id=uuid4())
        strategy.append(event)
        assert strategy.get_item("a", eq=0) == event

    def test_a_table_without_key_id_takes_plain_items_only(self, datastore):
        strategy = SQLAlchemyActiveRecordStrategy(PlainRecord, datastore.session)
        sequence_id = uuid4()
        strategy.append(item(sequence_id, 0))
        assert strategy.get_item(sequence_id, eq=0) == item(sequence_id, 0)
        with pytest.raises(ConfigurationError, match="key_id"):
            strategy.append(item(sequence_id, 1, uuid4()))

    def test_sealed_items_without_a_field_for_the_key_need_the_column_too(self, datastore):
        four = namedtuple("Four", ["sequence_id", "position", "topic", "data"])  # noqa: PYI024
        strategy = SQLAlchemyActiveRecordStrategy(PlainRecord, datastore.session, sequenced_item_class=four)
        with pytest.raises(ConfigurationError, match="key_id"):
            strategy.append(four(uuid4(), 0, TOPIC, header(uuid4())))


def test_a_column_for_every_field_is_needed():
    odd = namedtuple("Odd", ["sequence_id", "position", "topic", "data", "missing"])  # noqa: PYI024
    with pytest.raises(ConfigurationError, match="missing"):
        SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, Session(), sequenced_item_class=odd)


@pytest.mark.parametrize("item_class", [object, namedtuple("Three", ["a", "b", "c"]), int])  # noqa: PYI024
def test_what_is_no_item_class_is_refused(item_class):
    with pytest.raises(ConfigurationError, match="item class"):
        SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, Session(), sequenced_item_class=item_class)


@pytest.mark.parametrize("record_class", [object, "record", Base])
def test_what_is_no_record_class_is_refused(record_class):
    with pytest.raises(ConfigurationError, match="record class"):
        SQLAlchemyActiveRecordStrategy(record_class, Session())


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sequence_id", LargeBinary, {"primary_key": True}),
        ("sequence_id", String(collation="NOCASE"), {"primary_key": True}),
        ("sequence_id", CHAR(36), {"primary_key": True}),
        ("position", Text, {"primary_key": True}),
        ("position", Numeric(20, 6), {"primary_key": True}),
        ("topic", LargeBinary, {}),
        ("data", Text, {}),
        ("key_id", Text, {"nullable": True}),
        ("key_id", BinaryUUID, {"nullable": False}),
        ("position", ExactInteger, {}),
    ],
)
def test_a_column_that_cannot_hold_its_part_of_an_item_is_refused(name, kind, options):
    record_class = new_class(IntegerSequencedColumns, **{name: mapped_column(kind, **options)})
    with pytest.raises(ConfigurationError, match=name):
        SQLAlchemyActiveRecordStrategy(record_class, Session())


def test_text_ids_are_one_stream_with_their_uuid(store_url, open_datastore):
    orders = new_class(
        SealedColumns,
        sequence_id=mapped_column(ExactText, primary_key=True),
        position=mapped_column(ExactInteger, primary_key=True, autoincrement=False),
    )
    datastore = open_datastore(store_url, [orders])
    strategy = SQLAlchemyActiveRecordStrategy(orders, datastore.session)
    identifier = uuid4()
    strategy.append([item(identifier, 0, uuid4()), item(str(identifier), 1, uuid4()), item("other", 1)])
    assert [found.sequence_id for found in strategy.get_items(identifier)] == [str(identifier)] * 2
    with pytest.raises(SequencedItemConflictError):
        strategy.append(item(str(identifier), 0, uuid4()))


@pytest.mark.parametrize("count", [1, 3])
def test_a_key_id_may_be_of_sqlalchemys_own_type(store_url, open_datastore, count):
    record_class = new_class(IntegerSequencedColumns, key_id=mapped_column(Uuid, nullable=True))
    strategy = SQLAlchemyActiveRecordStrategy(record_class, open_datastore(store_url, [record_class]).session)
    batch = [item(UUID(int=number), 0, UUID(int=7)) for number in range(count)]
    strategy.append(batch)
    assert list(strategy.all_items()) == batch


@pytest.mark.postgres
@pytest.mark.parametrize("count", [1, 3])
def test_text_too_long_for_its_column_is_refused_and_not_cut(postgres_url, open_datastore, count):
    record_class = new_class(IntegerSequencedColumns, topic=mapped_column(String(3)))
    strategy = SQLAlchemyActiveRecordStrategy(
        record_class, open_datastore(postgres_url, [record_class]).session
    )
    with pytest.raises(StoreError, match="too long"):
        strategy.append([item(uuid4(), 0, UUID(int=7)) for _ in range(count)])
    assert list(strategy.all_items()) == []


@pytest.mark.postgres
def test_a_conflict_that_shows_only_at_commit_is_a_conflict(postgres_url, open_datastore):
    """Its outcome is known, so an equal item in the place is not taken for ours."""
    unique = UniqueConstraint("sequence_id", "position", deferrable=True, initially="DEFERRED")
    record_class = new_class(
        SealedColumns,
        id=mapped_column(Integer, primary_key=True),
        sequence_id=mapped_column(BinaryUUID),
        position=mapped_column(ExactInteger),
        __table_args__=(unique,),
    )
    strategy = SQLAlchemyActiveRecordStrategy(
        record_class, open_datastore(postgres_url, [record_class]).session
    )
    plain = item(uuid4(), 0)
    strategy.append(plain)
    with pytest.raises(SequencedItemConflictError):
        strategy.append(plain)
    assert list(strategy.all_items()) == [plain]


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
        barrier.wait(timeout=30)
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

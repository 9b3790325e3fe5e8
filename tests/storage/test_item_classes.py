"""Item classes and record classes of one's own, and what they may be made of."""

from __future__ import annotations

import dataclasses
from collections import Counter, namedtuple
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
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from eventseal.errors import ConfigurationError, SequencedItemConflictError, StoreError
from eventseal.items.item import SequencedItem
from eventseal.storage import (
    BinaryUUID,
    ExactInteger,
    ExactText,
    IntegerSequencedColumns,
    IntegerSequencedItemRecord,
    SealedColumns,
    SQLAlchemyActiveRecordStrategy,
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


def item(sequence_id: Any, position: Any, key_id: UUID | None = None) -> SequencedItem:
    return SequencedItem(sequence_id, position, TOPIC, b"data", key_id)


def new_class(*mixins: type[Any], **columns: Any) -> type[Any]:
    """A record class of its own name and table."""
    name = f"record_{uuid4().hex}"
    return type(name, (*mixins, Base), {"__tablename__": name, **columns})


def header(key_id: UUID) -> bytes:
    """The smallest thing that is an envelope by its form."""
    return build_header(SuiteId.A256CBC_HS512, CompressionId.NONE, key_id) + bytes(16 + 16 + 32)


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

"""The whole data path on SQLite and on PostgreSQL: the same events come back, the same edits are refused."""

from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest
from sqlalchemy import select, update

from eventseal.cipher import AESCipher
from eventseal.errors import IntegrityError, SequencedItemConflictError
from eventseal.eventstore import (
    AggregateRoot,
    ApplicationWithPersistencePolicies,
    EventSourcedRepository,
    EventSourcedSnapshotStrategy,
    Logged,
    SnapshottingPolicy,
    attribute,
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
from eventseal.storage.items.fences import close_fence
from eventseal.testing import FakeKms

RECORDS = (IntegerSequencedItemRecord, TimestampSequencedItemRecord, SnapshotRecord)


class Order(AggregateRoot):
    def __init__(self, tenant, content=None, **arguments):
        super().__init__(**arguments)
        self.tenant = tenant
        self._content = content

    @attribute
    def content(self):
        """What was ordered."""


def scope_of(event):
    """Each stream has a key of its own."""
    return f"stream:{event.originator_id}"


class Shop(ApplicationWithPersistencePolicies):
    def __init__(self, datastore, kms):
        self.keyring = Keyring(
            kms=kms,
            key_store=SQLAlchemyKeyStore(datastore),
            application="shop",
            cache=CachePolicy(refresh_interval=3600),
        )
        entities, log, snapshots = (
            SQLAlchemyActiveRecordStrategy(record, datastore.session) for record in RECORDS
        )
        super().__init__(
            entity_active_record_strategy=entities,
            log_active_record_strategy=log,
            snapshot_active_record_strategy=snapshots,
            always_encrypt=True,
            cipher=AESCipher(self.keyring),
        )
        strategy = EventSourcedSnapshotStrategy(self.snapshot_event_store)
        self.repository = EventSourcedRepository(self.entity_event_store, snapshot_strategy=strategy)
        self.snapshotting_policy = SnapshottingPolicy(self.repository, period=3)

    def construct_sequenced_item_mapper(self, strategy, position_attr_name):
        return SequencedItemMapper(
            strategy.sequenced_item_class,
            cipher=self.cipher,
            always_encrypt=True,
            sequence_id_attr_name="originator_id",
            position_attr_name=position_attr_name,
            collection=strategy.collection,
            key_scope=scope_of,
        )

    def close(self):
        self.snapshotting_policy.close()
        super().close()
        self.keyring.close()


@pytest.fixture
def datastore(store_url):
    datastore = SQLAlchemyDatastore(settings=SQLAlchemySettings(uri=store_url), tables=RECORDS)
    datastore.setup_connection()
    datastore.setup_tables()
    yield datastore
    datastore.close()


@pytest.fixture
def kms():
    return FakeKms()


@pytest.fixture
def shop(datastore, kms):
    with Shop(datastore, kms) as shop, shop.publishing():
        yield shop


CONTENT = {
    "when": datetime(2024, 2, 29, 12, tzinfo=UTC),
    "price": Decimal("1.50"),
    7: (b"\x00", {"a"}),
    "name": "é中",
}


def test_an_aggregate_comes_back_with_all_that_it_holds(shop, datastore, kms):
    order = Order.create(tenant="acme", content=CONTENT)
    for n in range(8):
        order.content = {**CONTENT, "n": n}
    order.save()

    assert shop.repository[order.id] == order
    assert shop.repository.snapshot_strategy.get_snapshot(order.id).originator_version == 8
    assert shop.repository.get_entity(order.id, lte=3).content["n"] == 2
    with Shop(datastore, kms) as later:
        assert later.repository[order.id] == order


def test_two_changes_of_one_version_are_a_conflict(shop):
    order = Order.create(tenant="acme")
    order.save()
    one, two = shop.repository[order.id], shop.repository[order.id]
    one.content = 1
    one.save()
    two.content = 2

    with pytest.raises(SequencedItemConflictError):
        two.save()
    assert shop.repository[order.id].content == 1


def test_events_in_order_of_time_come_back_to_the_microsecond(shop):
    stream = uuid4()
    times = [
        Decimal("1700000000.000001"),
        Decimal("1700000000.1"),
        Decimal(1700000001),
        Decimal("4102444800.999999"),
    ]
    for time in times:
        publish(Logged(originator_id=stream, timestamp=time, message=f"at {time}"))

    events = shop.log_event_store.get_domain_events(stream)
    assert [event.timestamp for event in events] == times
    assert [event.message for event in events] == [f"at {time}" for time in times]
    assert list(shop.log_event_store.iterate_domain_events(stream, page_size=1)) == events
    assert list(shop.log_event_store.all_domain_events(page_size=3)) == events


def test_each_stream_has_a_key_of_its_own_beside_its_items(shop, datastore):
    orders = [Order.create(tenant=tenant) for tenant in ("acme", "other")]
    for order in orders:
        order.save()

    with datastore.engine.connect() as connection:
        rows = connection.execute(select(IntegerSequencedItemRecord.__table__)).all()
    assert {row.sequence_id for row in rows} == {order.id for order in orders}
    assert len({row.key_id for row in rows}) == 2
    assert not any(b"acme" in row.data for row in rows)


@pytest.mark.parametrize("column", ["data", "key_id", "topic", "sequence_id", "position"])
def test_an_edited_row_is_refused(shop, datastore, column):
    order = Order.create(tenant="acme")
    order.save()
    item = shop.entity_event_store.active_record_strategy.get_item(order.id, eq=0)
    moved_to, at = (uuid4() if column == "sequence_id" else order.id), (1 if column == "position" else 0)
    value = {
        "data": item.data[:-1] + bytes([item.data[-1] ^ 1]),
        "key_id": uuid4(),
        "topic": item.topic.replace("Created", "Discarded"),
        "sequence_id": moved_to,
        "position": at,
    }[column]
    with datastore.engine.begin() as connection:
        connection.execute(update(IntegerSequencedItemRecord).values({column: value}))

    with pytest.raises(IntegrityError):
        shop.entity_event_store.get_domain_event(moved_to, at)


def test_a_key_that_was_closed_meanwhile_is_replaced_and_the_events_are_written(shop, datastore, kms):
    order = Order.create(tenant="acme")
    order.save()
    old = shop.entity_event_store.active_record_strategy.get_item(order.id, eq=0).key_id
    with Shop(datastore, kms) as other:
        other.keyring.rotate(f"stream:{order.id}")
    with datastore.engine.begin() as connection:
        close_fence(connection, old)

    order.content = "after"
    order.save()

    items = shop.entity_event_store.active_record_strategy.get_items(order.id)
    assert [item.key_id == old for item in items] == [True, False]
    assert shop.repository[order.id].content == "after"

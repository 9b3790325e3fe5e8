"""
The application walkthrough of the eventsourcing library's release 3, in today's terms.

Each test is one chapter, from nothing to an application that runs.
"""

import uuid
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from sqlalchemy import BigInteger, LargeBinary, String
from sqlalchemy.orm import DeclarativeBase, mapped_column

from eventseal import (
    AESCipher,
    SequencedItem,
    SequencedItemMapper,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyDatastore,
    SQLAlchemySettings,
)
from eventseal.errors import SequencedItemConflictError
from eventseal.eventstore import (
    AggregateRoot,
    ApplicationWithPersistencePolicies,
    AttributeChanged,
    Created,
    Discarded,
    DomainEvent,
    EventSourcedRepository,
    EventSourcedSnapshotStrategy,
    EventStore,
    EventWithTimestamp,
    PersistencePolicy,
    SnapshottingPolicy,
    attribute,
    publish,
    retry,
    subscribe,
    unsubscribe,
)
from eventseal.example import Example
from eventseal.storage import (
    BinaryUUID,
    IntegerSequencedItemRecord,
    SnapshotRecord,
    TimestampSequencedItemRecord,
)


def create_new_example(foo="", a="", b=""):
    """As release 3 made its entities: the event, the entity, the news."""
    event = Example.Created(originator_id=uuid.uuid4(), foo=foo, a=a, b=b)
    entity = Example._mutate(None, event)
    publish(event=event)
    return entity


@pytest.fixture
def datastore():
    datastore = SQLAlchemyDatastore(
        settings=SQLAlchemySettings(uri="sqlite:///:memory:"),
        tables=(IntegerSequencedItemRecord, TimestampSequencedItemRecord, SnapshotRecord),
    )
    datastore.setup_connection()
    datastore.setup_tables()
    yield datastore
    datastore.close()


@pytest.fixture
def cipher():
    return AESCipher(b"0123456789abcdef")


class Application:
    """An application made of parts, as one would write it oneself."""

    def __init__(self, datastore, cipher=None):
        self.event_store = EventStore(
            active_record_strategy=SQLAlchemyActiveRecordStrategy(
                active_record_class=IntegerSequencedItemRecord,
                session=datastore.session,
            ),
            sequenced_item_mapper=SequencedItemMapper(
                sequenced_item_class=SequencedItem,
                sequence_id_attr_name="originator_id",
                position_attr_name="originator_version",
                cipher=cipher,
                always_encrypt=cipher is not None,
            ),
        )
        self.example_repository = EventSourcedRepository(
            event_store=self.event_store, mutator=Example._mutate
        )
        self.persistence_policy = PersistencePolicy(event_store=self.event_store, event_type=Example.Event)

    def create_example(self, foo):
        return create_new_example(foo=foo)

    def close(self):
        self.persistence_policy.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


def test_events_are_published_and_heard():
    received = []

    def is_domain_event(event):
        return isinstance(event, DomainEvent)

    subscribe(handler=received.append, predicate=is_domain_event)
    try:
        publish(event=DomainEvent(a=1))
        publish(event="not one")
    finally:
        unsubscribe(handler=received.append, predicate=is_domain_event)
    assert received == [DomainEvent(a=1)]
    assert isinstance(EventWithTimestamp().timestamp, Decimal)


@pytest.mark.parametrize("encrypted", [True, False])
def test_an_application(datastore, cipher, encrypted):
    with Application(datastore, cipher if encrypted else None) as app:
        entity = app.create_example(foo="bar1")
        assert entity.id in app.example_repository
        assert app.example_repository[entity.id].foo == "bar1"

        entity.foo = "bar2"
        assert app.example_repository[entity.id].foo == "bar2"

        entity.discard()
        assert entity.id not in app.example_repository
        with pytest.raises(KeyError):
            app.example_repository[entity.id]

        events = app.event_store.get_domain_events(entity.id)
        assert [type(event) for event in events] == [
            Example.Created,
            Example.AttributeChanged,
            Example.Discarded,
        ]
        assert (isinstance(events[0], Created), isinstance(events[1], AttributeChanged)) == (True, True)
        assert isinstance(events[2], Discarded)


def test_encryption(datastore, cipher):
    def construct_example_application(always_encrypt=False, cipher=None):
        return ExampleApplication(
            entity_active_record_strategy=SQLAlchemyActiveRecordStrategy(
                active_record_class=IntegerSequencedItemRecord, session=datastore.session
            ),
            always_encrypt=always_encrypt,
            cipher=cipher,
        )

    with construct_example_application(always_encrypt=True, cipher=cipher) as app:
        secret_entity = app.create_new_example(foo="secret info")

        item = app.entity_event_store.active_record_strategy.get_item(secret_entity.id, eq=0)
        assert b"secret info" not in item.data
        assert item.key_id is not None
        assert app.example_repository[secret_entity.id].foo == "secret info"

    with construct_example_application() as app:
        entity = app.create_new_example(foo="bar")

        item = app.entity_event_store.active_record_strategy.get_item(entity.id, eq=0)
        assert b"bar" in item.data
        assert item.key_id is None


class ExampleApplication(ApplicationWithPersistencePolicies):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.example_repository = EventSourcedRepository(event_store=self.entity_event_store)

    def create_new_example(self, foo=""):
        with self.publishing():
            return Example.create(foo=foo)


def test_optimistic_concurrency_control(datastore):
    with Application(datastore) as app:
        entity = app.create_example(foo="bar1")
        a = app.example_repository[entity.id]
        b = app.example_repository[entity.id]
        a.foo = "bar2"

        with pytest.raises(SequencedItemConflictError):
            b.foo = "bar3"
        b = app.example_repository[entity.id]
        assert b.foo == "bar2"
        b.foo = "bar3"
        assert app.example_repository[entity.id].foo == "bar3"
        with pytest.raises(SequencedItemConflictError):
            a.foo = "bar4"

        tries = []

        @retry(SequencedItemConflictError, max_attempts=3)
        def command(value):
            example = app.example_repository[entity.id]
            tries.append(example.version)
            if len(tries) < 3:
                app.example_repository[entity.id].a = "somebody else was first"
            example.foo = value

        command("bar5")
        assert app.example_repository[entity.id].foo == "bar5"
        assert tries == [3, 4, 5]


class Base(DeclarativeBase):
    pass


class StoredEventRecord(Base):
    """A table that looks like stored events rather than sequenced items."""

    __tablename__ = "stored_events"

    originator_id = mapped_column(BinaryUUID(), primary_key=True)
    originator_version = mapped_column(BigInteger(), primary_key=True, autoincrement=False)
    event_type = mapped_column(String(255))
    state = mapped_column(LargeBinary())
    key_id = mapped_column(BinaryUUID(), nullable=True, index=True)
    foo = mapped_column(String(100), nullable=True)


class StoredEvent(NamedTuple):
    originator_id: Any
    originator_version: Any
    event_type: str
    state: bytes
    key_id: Any = None
    foo: Any = None


class Noted(DomainEvent):
    pass


def test_a_schema_of_ones_own(cipher):
    datastore = SQLAlchemyDatastore(
        base=Base, settings=SQLAlchemySettings(uri="sqlite:///:memory:"), tables=(StoredEventRecord,)
    )
    datastore.setup_connection()
    datastore.setup_tables()
    event_store = EventStore(
        SQLAlchemyActiveRecordStrategy(
            StoredEventRecord, datastore.session, sequenced_item_class=StoredEvent
        ),
        SequencedItemMapper(sequenced_item_class=StoredEvent, cipher=cipher),
    )
    aggregate = uuid.uuid4()
    event_store.append(Noted(originator_id=aggregate, originator_version=0, foo="shown", bar="secret info"))

    [stored] = event_store.active_record_strategy.get_items(aggregate)
    assert (stored.originator_id, stored.originator_version, stored.foo) == (aggregate, 0, "shown")
    assert b"secret" not in stored.state
    [event] = event_store.get_domain_events(aggregate)
    assert (event.foo, event.bar) == ("shown", "secret info")
    datastore.close()


class ExampleAggregateRoot(AggregateRoot):
    class Event(AggregateRoot.Event):
        """Of an example aggregate."""

    class ExampleCreated(Event):
        """An example in the aggregate came to be."""

    def __init__(self, foo="", **kwargs):
        super().__init__(**kwargs)
        self._foo = foo
        self.examples = []

    @attribute
    def foo(self):
        """What it holds."""

    def count_examples(self):
        return len(self.examples)

    def create_new_example(self):
        self._trigger_event(ExampleAggregateRoot.ExampleCreated, example_id=uuid.uuid4())

    @classmethod
    def _mutate(cls, initial, event):
        if isinstance(event, ExampleAggregateRoot.ExampleCreated):
            initial.examples.append(event.example_id)
            return initial
        return super()._mutate(initial, event)


class EverythingApplication(ApplicationWithPersistencePolicies):
    """Aggregates, encryption and snapshots together."""

    def __init__(self, datastore, **kwargs):
        def strategy(record_class):
            return SQLAlchemyActiveRecordStrategy(active_record_class=record_class, session=datastore.session)

        super().__init__(
            entity_active_record_strategy=strategy(IntegerSequencedItemRecord),
            snapshot_active_record_strategy=strategy(SnapshotRecord),
            **kwargs,
        )
        self.snapshot_strategy = EventSourcedSnapshotStrategy(event_store=self.snapshot_event_store)
        self.repository = EventSourcedRepository(
            event_store=self.entity_event_store, snapshot_strategy=self.snapshot_strategy
        )
        self.snapshotting_policy = SnapshottingPolicy(self.repository, period=2)

    def close(self):
        self.snapshotting_policy.close()
        super().close()


def test_an_aggregate_of_several_entities(datastore):
    with EverythingApplication(datastore) as app:
        aggregate = ExampleAggregateRoot.create()
        aggregate.save()
        assert aggregate.id in app.repository

        aggregate.create_new_example()
        assert aggregate.count_examples() == 1
        assert app.repository[aggregate.id].count_examples() == 0
        aggregate.save()
        assert app.repository[aggregate.id].count_examples() == 1

        aggregate.create_new_example()
        aggregate.create_new_example()
        aggregate.save()
        assert app.repository[aggregate.id].count_examples() == 3

        aggregate.discard()
        assert aggregate.id in app.repository
        aggregate.save()
        assert aggregate.id not in app.repository


def test_everything_in_one_application(datastore, cipher):
    with EverythingApplication(datastore, cipher=cipher, always_encrypt=True) as app:
        secret = ExampleAggregateRoot.create(foo="secret info")
        secret.save()
        item = app.entity_event_store.active_record_strategy.get_item(secret.id, eq=0)
        assert b"secret info" not in item.data
        assert app.repository[secret.id].foo == "secret info"

        aggregate = ExampleAggregateRoot.create(foo="bar1")
        aggregate.save()
        assert app.snapshot_strategy.get_snapshot(aggregate.id) is None

        aggregate.foo = "bar2"
        aggregate.save()
        assert app.snapshot_strategy.get_snapshot(aggregate.id).state["_foo"] == "bar2"
        assert app.repository[aggregate.id].foo == "bar2"

        for foo in ("bar3", "bar4", "bar5"):
            aggregate.foo = foo
        aggregate.save()
        assert app.snapshot_strategy.get_snapshot(aggregate.id).state["_foo"] == "bar4"

        for foo in ("bar6", "bar7"):
            aggregate.foo = foo
        aggregate.save()
        assert app.repository[aggregate.id].foo == "bar7"
        assert app.snapshot_strategy.get_snapshot(aggregate.id).state["_foo"] == "bar6"

        aggregate.discard()
        aggregate.save()
        assert aggregate.id not in app.repository
        assert app.snapshot_strategy.get_snapshot(aggregate.id).state is None

        snapshot = app.snapshot_strategy.get_snapshot(aggregate.id, lte=2)
        assert (snapshot.state["_version"], snapshot.state["_foo"]) == (2, "bar2")
        snapshot = app.snapshot_strategy.get_snapshot(aggregate.id, lte=3)
        assert (snapshot.state["_version"], snapshot.state["_foo"]) == (4, "bar4")

        for n, foo in enumerate(("bar1", "bar2", "bar3", "bar4")):
            historical = app.repository.get_entity(aggregate.id, lte=n)
            assert (historical.version, historical.foo) == (n + 1, foo)


class LogEntry(EventWithTimestamp):
    pass


def test_a_sequence_in_time(datastore, cipher):
    event_store = EventStore(
        SQLAlchemyActiveRecordStrategy(TimestampSequencedItemRecord, datastore.session),
        SequencedItemMapper(
            sequence_id_attr_name="log_id", position_attr_name="timestamp", cipher=cipher, always_encrypt=True
        ),
    )
    log_id = uuid.uuid4()
    entries = [LogEntry(log_id=log_id, message=f"message {n}") for n in range(10)]
    event_store.append(entries)

    assert event_store.get_domain_events(log_id) == entries
    assert event_store.get_domain_events(log_id, gt=entries[3].timestamp, limit=2) == entries[4:6]
    assert event_store.get_most_recent_event(log_id) == entries[9]

"""Policies: who stores what is published, and when snapshots are taken."""

import logging
from uuid import uuid4

import pytest

from eventseal.errors import (
    ConfigurationError,
    KmsUnavailableError,
    SerializationError,
    StoreUnavailableError,
)
from eventseal.eventstore import (
    AggregateRoot,
    ApplicationWithEventStores,
    ApplicationWithPersistencePolicies,
    DomainEvent,
    EventSourcedRepository,
    EventSourcedSnapshotStrategy,
    EventStore,
    Logged,
    PersistencePolicy,
    SnapshottingPolicy,
    VersionedEntity,
    attribute,
    publish,
    subscribe,
    unsubscribe,
)
from eventseal.items import SequencedItemMapper
from eventseal.storage import SnapshotRecord, TimestampSequencedItemRecord


class Example(VersionedEntity):
    def __init__(self, foo="", **arguments):
        super().__init__(**arguments)
        self._foo = foo

    @attribute
    def foo(self):
        pass


class Basket(AggregateRoot):
    pass


class Happened(DomainEvent):
    pass


class Opaque(Example):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.handle = object()


class Application(ApplicationWithPersistencePolicies):
    def __init__(self, strategy, **options):
        super().__init__(entity_active_record_strategy=strategy, **options)
        self.repository = EventSourcedRepository(self.entity_event_store)

    def create(self, foo):
        with self.publishing():
            return Example.create(foo=foo)


def all_events(store):
    return list(store.all_domain_events())


# --- persistence ---


def test_a_policy_stores_what_is_published_until_it_is_closed(store):
    policy = PersistencePolicy(store)
    events = [Happened(originator_id=uuid4(), originator_version=n) for n in range(4)]
    publish(events[0])
    publish(events[1:3])
    policy.close()
    policy.close()
    publish(events[3])

    assert {event.originator_version for event in all_events(store)} == {0, 1, 2}


def test_a_policy_stores_events_of_its_type_and_lists_of_nothing_else(store):
    policy = PersistencePolicy(store, event_type=(Happened, Example.Event))
    try:
        one = Happened(originator_id=uuid4(), originator_version=0)
        other = DomainEvent(originator_id=uuid4(), originator_version=0)
        for event in (other, [one, other], [], "text", one):
            publish(event)
        assert all_events(store) == [one]
        Example.create()
        assert len(all_events(store)) == 2
    finally:
        policy.close()


def test_an_application_stores_versioned_and_logged_events_each_in_its_table(strategy, cipher):
    app = ApplicationWithPersistencePolicies(
        entity_active_record_strategy=strategy(),
        log_active_record_strategy=strategy(TimestampSequencedItemRecord),
        snapshot_active_record_strategy=strategy(SnapshotRecord),
        cipher=cipher,
    )
    with app:
        Example.create(foo="bar")
        publish(Logged(originator_id=uuid4(), message="hello"))

        assert [type(event) for event in all_events(app.entity_event_store)] == [Example.Created]
        assert [event.message for event in all_events(app.log_event_store)] == ["hello"]
        assert app.snapshot_event_store.sequenced_item_mapper.collection == "snapshots"
        assert all(
            store.sequenced_item_mapper.always_encrypt
            for store in (app.entity_event_store, app.log_event_store)
        )
    Example.create(foo="nobody stores it")
    assert len(all_events(app.entity_event_store)) == 1


def test_what_is_logged_while_an_event_is_handled_is_stored_too(strategy, cipher):
    def is_example(event):
        return isinstance(event, Example.Event)

    def log(event):
        publish(Logged(originator_id=event.originator_id, message="noted"))

    app = ApplicationWithPersistencePolicies(
        entity_active_record_strategy=strategy(),
        log_active_record_strategy=strategy(TimestampSequencedItemRecord),
        cipher=cipher,
    )
    subscribe(log, is_example)
    try:
        with app, app.publishing():
            Example.create(foo="bar")
    finally:
        unsubscribe(log, is_example)
    assert [event.message for event in all_events(app.log_event_store)] == ["noted"]


def test_a_store_that_an_application_was_not_given_is_named(strategy):
    app = ApplicationWithEventStores(entity_active_record_strategy=strategy())

    app.entity_event_store  # noqa: B018 - it is there
    for name in ("log", "snapshot"):
        with pytest.raises(ConfigurationError, match=f"no {name}_event_store") as caught:
            getattr(app, f"{name}_event_store")
        assert f"{name}_active_record_strategy=" in caught.value.remedy


def test_an_application_that_must_encrypt_needs_a_cipher(strategy):
    with pytest.raises(ConfigurationError, match="needs a cipher"):
        Application(strategy(), always_encrypt=True)


# --- several applications in one process ---


@pytest.fixture
def two(strategy, memory, cipher):
    """An encrypted application and one in plain, both open, on tables of their own."""
    with Application(strategy(), cipher=cipher) as sealed, Application(memory) as plain:
        yield sealed, plain


def test_each_application_stores_the_events_of_its_own_entities(two):
    sealed, plain = two
    secret, known = sealed.create("secret info"), plain.create("known")
    secret.foo = "more secret info"
    sealed.repository[secret.id].foo = "other secret info"
    plain.repository[known.id].foo = "known to all"

    assert len(all_events(sealed.entity_event_store)) == 3
    assert len(all_events(plain.entity_event_store)) == 2
    assert secret.id not in plain.repository
    assert not any(b"secret" in item.data for item in plain.entity_event_store.active_record_strategy.items)


def test_the_events_of_an_entity_that_two_applications_would_store_are_refused(two):
    with pytest.raises(ConfigurationError, match="belongs to neither") as caught:
        Example.create(foo="whose?")

    assert "app.publishing()" in caught.value.remedy
    assert all(not all_events(app.entity_event_store) for app in two)


def test_an_entity_that_comes_from_a_snapshot_is_owned_too(two, strategy, cipher):
    sealed, plain = two
    secret = sealed.create("secret info")
    mapper = SequencedItemMapper(cipher=cipher, collection="snapshots")
    sealed.repository.snapshot_strategy = EventSourcedSnapshotStrategy(
        EventStore(strategy(SnapshotRecord), mapper)
    )
    sealed.repository.take_snapshot(secret.id)

    sealed.repository[secret.id].foo = "more secret info"

    assert len(all_events(sealed.entity_event_store)) == 2
    assert all_events(plain.entity_event_store) == []


def test_an_aggregate_is_saved_in_the_name_it_was_created_in(two):
    sealed, plain = two
    with sealed.publishing():
        basket = Basket.create()
    basket.change_attribute("a", "secret info")
    basket.save()

    assert len(all_events(sealed.entity_event_store)) == 2
    assert all_events(plain.entity_event_store) == []


def test_the_events_of_a_closed_applications_entity_are_not_stored_by_another(strategy, memory, cipher):
    with Application(strategy(), cipher=cipher) as sealed:
        secret = sealed.create("secret info")
    with Application(memory) as plain:
        with pytest.raises(ConfigurationError, match="the application that the entity belongs to is closed"):
            secret.foo = "more secret info"
        assert memory.items == []
        plain.create("known")
    assert len(memory.items) == 1


def test_one_open_application_stores_the_events_of_entities_that_nobody_owns(strategy, cipher):
    with Application(strategy(), cipher=cipher) as app:
        entity = Example.create(foo="bar")
        assert app.repository[entity.id] == entity


def test_two_policies_of_one_application_do_not_stand_in_each_others_way(store, strategy, cipher):
    other = EventStore(strategy(TimestampSequencedItemRecord), SequencedItemMapper(cipher=cipher))
    policies = [PersistencePolicy(store, Example.Event), PersistencePolicy(other, Logged)]
    try:
        Example.create()
        publish(Logged(originator_id=uuid4()))
    finally:
        for policy in policies:
            policy.close()
    assert len(all_events(store)) == len(all_events(other)) == 1


# --- snapshots ---


@pytest.fixture
def repository(store, strategy, cipher):
    mapper = SequencedItemMapper(cipher=cipher, collection="snapshots")
    snapshots = EventSourcedSnapshotStrategy(EventStore(strategy(SnapshotRecord), mapper))
    policy = PersistencePolicy(store)
    yield EventSourcedRepository(store, snapshot_strategy=snapshots)
    policy.close()


@pytest.fixture
def snapshotting(repository):
    policies = []

    def start(**options):
        policies.append(SnapshottingPolicy(repository, **options))
        return policies[-1]

    yield start
    for policy in policies:
        policy.close()


def version(repository, entity):
    snapshot = repository.snapshot_strategy.get_snapshot(entity.id)
    return None if snapshot is None else snapshot.originator_version


def test_a_snapshot_is_taken_every_so_many_events(repository, snapshotting):
    snapshotting(period=2)
    entity = Example.create(foo="bar0")
    taken = [version(repository, entity)]
    for n in range(1, 5):
        entity.foo = f"bar{n}"
        taken.append(version(repository, entity))

    assert taken == [None, 1, 1, 3, 3]
    assert repository.snapshot_strategy.get_snapshot(entity.id).state["_foo"] == "bar3"


def test_of_a_list_of_events_the_last_one_that_is_due_counts(repository, snapshotting):
    snapshotting(period=2)
    basket = Basket.create()
    for n in range(4):
        basket.change_attribute("n", n)
    basket.save()

    assert version(repository, basket) == 3
    assert repository.snapshot_strategy.get_snapshot(basket.id, lt=3) is None


def test_only_events_of_its_type_count(repository, snapshotting):
    snapshotting(period=1, event_type=Basket.Event)
    entity, basket = Example.create(), Basket.create()
    basket.save()
    publish(Happened(originator_id=uuid4(), originator_version=0))

    assert (version(repository, entity), version(repository, basket)) == (None, 0)


def test_after_closing_no_snapshot_is_taken(repository, snapshotting):
    snapshotting(period=1).close()

    assert version(repository, Example.create()) is None


@pytest.mark.parametrize("error", [KmsUnavailableError("away"), StoreUnavailableError("locked")])
def test_a_snapshot_that_cannot_be_taken_now_is_left_out_with_a_warning(
    repository, snapshotting, monkeypatch, caplog, error
):
    snapshotting(period=1)
    entity = Example.create(foo="bar0")

    def fail(*args):
        raise error

    monkeypatch.setattr(repository.snapshot_strategy.event_store, "append", fail)
    with caplog.at_level(logging.WARNING):
        entity.foo = "secret info"
    monkeypatch.undo()

    assert version(repository, entity) == 0
    assert str(entity.id) in caplog.text
    assert "secret" not in caplog.text
    entity.foo = "bar2"
    assert version(repository, entity) == 2


def test_a_snapshot_that_can_never_be_taken_is_told(snapshotting):
    snapshotting(period=1)
    with pytest.raises(SerializationError):
        Opaque.create()


def test_the_snapshots_of_another_applications_entities_are_not_taken(repository, snapshotting, memory):
    policy = snapshotting(period=1)
    with Application(memory) as other:
        entity = other.create("bar")
        assert version(repository, entity) is None
        with other.publishing():
            assert not policy.is_due(Example.Event(originator_id=1, originator_version=0))
        assert policy.is_due(Example.Event(originator_id=1, originator_version=0))


def test_a_period_is_one_event_or_more_and_a_snapshot_strategy_is_there(store, repository):
    with pytest.raises(ConfigurationError, match="not every 0"):
        SnapshottingPolicy(repository, period=0)
    with pytest.raises(ConfigurationError, match="no snapshot strategy"):
        SnapshottingPolicy(EventSourcedRepository(store))

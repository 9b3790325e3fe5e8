"""Repositories, and the snapshots that spare them events."""

from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from sqlalchemy import text

from eventseal.cipher import AESCipher
from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    ItemNotFoundError,
    SequencedItemConflictError,
    SerializationError,
)
from eventseal.eventstore import (
    AggregateRoot,
    DomainEvent,
    EventSourcedRepository,
    EventSourcedSnapshotStrategy,
    EventStore,
    PersistencePolicy,
    RepositoryKeyError,
    Snapshot,
    VersionedEntity,
    WithReflexiveMutator,
    attribute,
)
from eventseal.items import SequencedItemMapper, topic_of
from eventseal.storage import SnapshotRecord


class Example(VersionedEntity):
    def __init__(self, foo="", **arguments):
        super().__init__(**arguments)
        self._foo = foo

    @attribute
    def foo(self):
        pass


@dataclass
class Line:
    name: str
    tags: set = field(default_factory=set)


class Order(AggregateRoot):
    class LineAdded(AggregateRoot.Event):
        pass

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.lines = {}

    def add(self, name):
        self._trigger_event(Order.LineAdded, name=name)

    @classmethod
    def _mutate(cls, initial, event):
        if isinstance(event, Order.LineAdded):
            initial.lines[len(initial.lines)] = Line(event.name, {event.name})
            return initial
        return super()._mutate(initial, event)


class World(VersionedEntity, WithReflexiveMutator):
    class SomethingHappened(VersionedEntity.Event):
        def mutate(self, world):
            world.history.append(self.what)

    class Ended(VersionedEntity.Discarded):
        def mutate(self, world):
            world.history.append("the end")

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.history = []


class Opaque(Example):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.handle = object()


@pytest.fixture
def snapshots(strategy, cipher):
    mapper = SequencedItemMapper(cipher=cipher, collection="snapshots")
    return EventSourcedSnapshotStrategy(EventStore(strategy(SnapshotRecord), mapper))


@pytest.fixture
def repository(store):
    policy = PersistencePolicy(store)
    yield EventSourcedRepository(store)
    policy.close()


@pytest.fixture
def with_snapshots(repository, snapshots):
    return EventSourcedRepository(repository.event_store, snapshot_strategy=snapshots)


def test_an_entity_is_found_as_its_events_made_it(repository):
    entity = Example.create(foo="bar1")
    entity.foo = "bar2"

    found = repository[entity.id]

    assert type(found) is Example
    assert found == entity
    assert (found.foo, found.version) == ("bar2", 2)
    assert entity.id in repository


def test_what_is_not_there_is_a_key_error_and_an_item_that_is_not_found(repository):
    missing = uuid4()

    assert missing not in repository
    assert repository.get_entity(missing) is None
    for error in (RepositoryKeyError, KeyError, ItemNotFoundError, LookupError, EventSealError):
        with pytest.raises(error) as caught:
            repository[missing]
    assert str(caught.value) == f"there is no entity {missing}, or it was discarded"


def test_a_discarded_entity_is_not_found(repository):
    entity = Example.create(foo="bar")
    entity.discard()

    assert entity.id not in repository
    with pytest.raises(RepositoryKeyError):
        repository[entity.id]


def test_an_entity_is_found_as_it_was(repository):
    entity = Example.create(foo="bar0")
    for n in range(1, 4):
        entity.foo = f"bar{n}"
    entity.discard()

    assert [repository.get_entity(entity.id, lte=n).foo for n in range(4)] == ["bar0", "bar1", "bar2", "bar3"]
    assert repository.get_entity(entity.id, lt=3).version == 3
    assert repository.get_entity(entity.id, lte=4) is None
    assert repository.get_entity(entity.id, lt=0) is None


def test_one_of_two_changes_of_one_version_is_a_conflict(repository):
    entity = Example.create(foo="bar1")
    a, b = repository[entity.id], repository[entity.id]
    a.foo = "bar2"

    with pytest.raises(SequencedItemConflictError):
        b.foo = "bar3"
    with pytest.raises(SequencedItemConflictError):
        b.foo = "bar3"

    b = repository[entity.id]
    assert b.foo == "bar2"
    b.foo = "bar3"
    with pytest.raises(SequencedItemConflictError):
        a.foo = "bar4"
    assert repository[entity.id].foo == "bar3"


def test_of_an_aggregate_all_or_nothing_is_stored(repository):
    order = Order.create()
    order.save()
    a, b = repository[order.id], repository[order.id]
    a.add("apple")
    a.save()
    b.add("pear")
    b.add("plum")

    with pytest.raises(SequencedItemConflictError):
        b.save()
    assert list(repository[order.id].lines.values()) == [Line("apple", {"apple"})]


def test_a_missing_item_in_the_middle_of_a_stream_is_noticed(repository, datastore):
    entity = Example.create(foo="bar")
    entity.foo = "bar1"
    entity.foo = "bar2"
    with datastore.engine.begin() as connection:
        connection.execute(text("DELETE FROM integer_sequenced_items WHERE position = 1"))

    with pytest.raises(IntegrityError, match="does not follow") as caught:
        repository[entity.id]
    assert "missing" in caught.value.remedy


class Counted(DomainEvent):
    pass


def test_a_mutator_function_may_make_entities_of_any_kind(store):
    def mutate(total, event):
        return (total or 0) + event.amount

    stream = uuid4()
    store.append([Counted(originator_id=stream, originator_version=n, amount=n + 1) for n in range(4)])

    assert EventSourcedRepository(store, mutator=mutate)[stream] == 10
    assert EventSourcedRepository(store, mutate).get_entity(stream, lt=2) == 3


def test_an_entitys_own_mutator_function_can_be_given(store):
    stream = uuid4()
    store.append(
        [
            Example.Created(originator_id=stream, foo="bar"),
            Example.AttributeChanged(originator_id=stream, originator_version=1, name="_foo", value="baz"),
        ]
    )

    assert EventSourcedRepository(store, mutator=Example._mutate)[stream].foo == "baz"
    with pytest.raises(ConfigurationError, match="does not name its entity's class") as caught:
        EventSourcedRepository(store)[stream]
    assert "mutator=" in caught.value.remedy


def test_events_that_apply_themselves_are_replayed(repository):
    world = World.create()
    for what in ("dinosaurs", "internet"):
        world._trigger_event(World.SomethingHappened, what=what)
    assert repository[world.id].history == ["dinosaurs", "internet"]
    assert repository[world.id] == world

    world._trigger_event(World.Ended)
    assert world.id not in repository


def test_an_event_that_names_what_is_no_entity_is_refused(store):
    stream = uuid4()
    store.append(Example.Created(originator_id=stream, originator_topic=topic_of(Line)))

    with pytest.raises(ConfigurationError, match="does not name its entity's class"):
        EventSourcedRepository(store)[stream]


# --- snapshots ---


def test_a_snapshot_holds_the_state_of_the_last_event(with_snapshots):
    entity = Example.create(foo="bar0")
    entity.foo = "bar1"

    snapshot = with_snapshots.take_snapshot(entity.id)

    assert type(snapshot) is Snapshot
    assert (snapshot.originator_id, snapshot.originator_version) == (entity.id, 1)
    assert snapshot.topic == topic_of(Example)
    assert snapshot.state == {"_id": entity.id, "_version": 2, "_is_discarded": False, "_foo": "bar1"}
    assert with_snapshots.snapshot_strategy.get_snapshot(entity.id) == snapshot


def test_a_snapshot_is_sealed_like_an_event(with_snapshots, snapshots):
    entity = Example.create(foo="secret info")
    with_snapshots.take_snapshot(entity.id)

    item = snapshots.event_store.active_record_strategy.get_item(entity.id, eq=0)
    assert item.key_id is not None
    assert b"secret" not in item.data


def test_with_a_snapshot_only_later_events_are_read(with_snapshots, monkeypatch):
    entity = Example.create(foo="bar0")
    for n in range(1, 5):
        entity.foo = f"bar{n}"
    with_snapshots.take_snapshot(entity.id, lte=3)
    read = []
    mapper = with_snapshots.event_store.sequenced_item_mapper
    from_items = mapper.from_sequenced_items
    monkeypatch.setattr(mapper, "from_sequenced_items", lambda items: read.extend(items) or from_items(items))

    found = with_snapshots[entity.id]

    assert [item.position for item in read] == [4]
    assert found == entity
    found.foo = "bar5"
    assert with_snapshots[entity.id].foo == "bar5"


def test_the_last_snapshot_before_a_version_is_used(with_snapshots):
    entity = Example.create(foo="bar0")
    for n in range(1, 5):
        entity.foo = f"bar{n}"
        with_snapshots.take_snapshot(entity.id)

    strategy = with_snapshots.snapshot_strategy
    assert strategy.get_snapshot(entity.id, lte=2).originator_version == 2
    assert strategy.get_snapshot(entity.id, lt=2).originator_version == 1
    assert strategy.get_snapshot(entity.id, lt=1) is None
    assert [with_snapshots.get_entity(entity.id, lte=n).foo for n in range(5)] == [
        f"bar{n}" for n in range(5)
    ]
    assert with_snapshots.get_entity(entity.id, lt=2).foo == "bar1"


def test_an_aggregate_comes_back_from_a_snapshot_with_all_that_is_in_it_and_goes_on(with_snapshots):
    order = Order.create()
    order.add("apple")
    order.save()
    order.add("not saved")
    with_snapshots.take_snapshot(order.id)

    found = with_snapshots[order.id]

    assert found.lines == {0: Line("apple", {"apple"})}
    found.add("pear")
    found.save()
    assert with_snapshots[order.id].lines == {0: Line("apple", {"apple"}), 1: Line("pear", {"pear"})}
    assert found == with_snapshots[order.id]


def test_the_snapshot_of_a_discarded_entity_is_empty(with_snapshots):
    entity = Example.create(foo="bar")
    entity.discard()

    snapshot = with_snapshots.take_snapshot(entity.id)

    assert (snapshot.state, snapshot.topic, snapshot.originator_version) == (None, None, 1)
    assert entity.id not in with_snapshots
    assert with_snapshots.get_entity(entity.id, lte=0).foo == "bar"


def test_a_snapshot_is_taken_once_a_version(with_snapshots, snapshots, monkeypatch):
    entity = Example.create(foo="bar")
    first = with_snapshots.take_snapshot(entity.id)
    monkeypatch.setattr(snapshots.event_store, "append", lambda event: pytest.fail("taken twice"))

    assert with_snapshots.take_snapshot(entity.id) == first


def test_a_snapshot_that_another_process_took_meanwhile_is_taken_over(with_snapshots, snapshots):
    entity = Example.create(foo="bar")
    first = snapshots.take_snapshot(entity.id, entity, 0)

    assert snapshots.take_snapshot(entity.id, entity, 0) == first


def test_there_is_no_snapshot_of_what_is_not_there(with_snapshots, repository):
    assert with_snapshots.take_snapshot(uuid4()) is None
    with pytest.raises(ConfigurationError, match="no snapshot strategy"):
        repository.take_snapshot(uuid4())


def test_state_that_cannot_be_written_is_named(with_snapshots):
    entity = Opaque.create()

    with pytest.raises(SerializationError, match=r"Snapshot\.state\.handle is a builtins\.object"):
        with_snapshots.take_snapshot(entity.id)


@pytest.mark.parametrize(
    ("source", "target"),
    [("integer_sequenced_items", "snapshots"), ("snapshots", "integer_sequenced_items")],
)
def test_no_event_passes_for_a_snapshot_nor_a_snapshot_for_an_event(
    with_snapshots, datastore, source, target
):
    entity = Example.create(foo="bar")
    with_snapshots.take_snapshot(entity.id)
    columns = "topic, data, key_id"
    with datastore.engine.begin() as connection:
        connection.execute(text(f"UPDATE {target} SET ({columns}) = (SELECT {columns} FROM {source})"))

    with pytest.raises(IntegrityError):
        with_snapshots[entity.id]
        with_snapshots.event_store.get_domain_events(entity.id)


def test_snapshots_are_read_by_a_mapper_of_their_own_collection_only(strategy):
    mapper = SequencedItemMapper(cipher=AESCipher(bytes(32)))
    with pytest.raises(ConfigurationError):
        EventStore(strategy(SnapshotRecord), mapper)

"""Entities and aggregates: state from events, and events from changes."""

from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    ItemNotFoundError,
    SequencedItemConflictError,
    StoreUnavailableError,
)
from eventseal.eventstore import (
    AggregateRoot,
    EventSourcedEntity,
    TimestampedEntity,
    TimestampedVersionedEntity,
    VersionedEntity,
    WithReflexiveMutator,
    attribute,
    mutate_entity,
    mutator,
    subscribe,
    unsubscribe,
)


class User(VersionedEntity):
    def __init__(self, full_name="", **arguments):
        super().__init__(**arguments)
        self._full_name = full_name

    @attribute
    def full_name(self):
        """What the user is called."""


class World(VersionedEntity):
    class SomethingHappened(VersionedEntity.Event):
        pass

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.history = []

    def make_it_so(self, what):
        self._trigger_event(World.SomethingHappened, what=what)

    @classmethod
    def _mutate(cls, initial, event):
        return mutate_world(cls if initial is None else initial, event)


@mutator
def mutate_world(initial, event):
    """How events change the world."""
    return mutate_entity(initial, event)


@mutate_world.register(World.SomethingHappened)
def _(self, event):
    self.history.append(event.what)
    self._increment_version()
    return self


class ReflexiveWorld(VersionedEntity, WithReflexiveMutator):
    class SomethingHappened(VersionedEntity.Event):
        def mutate(self, world):
            world.history.append(self.what)

    class Ended(VersionedEntity.Discarded):
        def mutate(self, world):
            world.history.append("the end")

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.history = []


class Basket(AggregateRoot):
    class Filled(AggregateRoot.Event):
        pass

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.things = []

    def fill(self, *things):
        for thing in things:
            self._trigger_event(Basket.Filled, thing=thing)

    @classmethod
    def _mutate(cls, initial, event):
        if isinstance(event, Basket.Filled):
            initial.things.append(event.thing)
            return initial
        return super()._mutate(initial, event)


@pytest.fixture
def published():
    """What is published meanwhile."""
    published = []
    subscribe(published.append)
    yield published
    unsubscribe(published.append)


@pytest.fixture
def broken():
    """A store that takes nothing until it is mended."""
    errors = []

    def fail(event):
        if errors:
            raise errors[0]

    subscribe(fail)
    yield errors
    unsubscribe(fail)


def test_entities_are_constructed_with_what_their_kind_knows():
    stream, time = uuid4(), Decimal("1.5")

    entity = TimestampedVersionedEntity(id=stream, version=2, timestamp=time)

    assert (entity.id, entity.version, entity.created_on, entity.last_modified) == (stream, 2, time, time)
    assert VersionedEntity(id=stream).version == 0
    assert TimestampedEntity(id=stream, timestamp=time).created_on == time
    assert not hasattr(TimestampedEntity(id=stream, timestamp=time), "version")


def test_creating_an_entity_publishes_its_first_event(published):
    user = User.create(full_name="Mrs Boots")

    [event] = published
    assert type(event) is User.Created
    assert (event.originator_id, event.originator_version, event.full_name) == (user.id, 0, "Mrs Boots")
    assert (user.full_name, user.version) == ("Mrs Boots", 1)
    assert isinstance(user.id, UUID)
    assert not hasattr(user, "originator_topic")


def test_an_entity_can_be_created_under_an_id(published):
    assert User.create("user 1").id == "user 1"
    assert published[0].originator_id == "user 1"


def test_setting_an_attribute_publishes_that_it_changed(published):
    user = User.create(full_name="Mrs Boots")
    user.full_name = "Mr Boots"

    event = published[1]
    assert type(event) is VersionedEntity.AttributeChanged
    assert (event.name, event.value, event.originator_version) == ("_full_name", "Mr Boots", 1)
    assert (user.full_name, user.version) == ("Mr Boots", 2)
    assert User.full_name.__doc__ == "What the user is called."


def test_a_timestamped_entity_knows_when_it_changed(published):
    entity = TimestampedVersionedEntity.create()
    created_on = entity.created_on
    entity.change_attribute("a", 1)

    assert created_on == published[0].timestamp
    assert entity.created_on == created_on < entity.last_modified == published[1].timestamp


def test_an_entity_without_versions_or_times_counts_nothing(published):
    entity = EventSourcedEntity.create()
    entity.change_attribute("a", 1)
    entity.discard()

    assert [sorted(vars(event)) for event in published] == [
        ["originator_id", "originator_topic"],
        ["name", "originator_id", "value"],
        ["originator_id"],
    ]


def test_a_discarded_entity_does_not_change_any_more(published):
    user = User.create()
    user.discard()

    assert type(published[1]) is VersionedEntity.Discarded
    for change in (user.discard, lambda: user.change_attribute("a", 1)):
        with pytest.raises(ItemNotFoundError, match="is discarded"):
            change()
    assert len(published) == 2


def test_the_mutator_function_of_entities_applies_their_events():
    stream = uuid4()
    entity = mutate_entity(VersionedEntity, VersionedEntity.Created(originator_id=stream))
    assert (entity.id, entity.version) == (stream, 1)

    changed = VersionedEntity.AttributeChanged(name="a", value=1, originator_version=1, originator_id=stream)
    assert mutate_entity(entity, changed) is entity
    assert (entity.a, entity.version) == (1, 2)

    discarded = VersionedEntity.Discarded(originator_version=2, originator_id=stream)
    assert mutate_entity(entity, discarded) is None


def test_an_event_that_no_mutator_function_takes_is_refused():
    with pytest.raises(ConfigurationError, match=r"no mutator function takes a World\.SomethingHappened"):
        User.create()._trigger_event(World.SomethingHappened, what=1)


def test_an_event_of_another_entity_or_version_is_refused_and_changes_nothing():
    user = User.create(full_name="a")
    for place in (
        {"originator_id": uuid4(), "originator_version": 1},
        {"originator_id": user.id, "originator_version": 2},
    ):
        event = User.AttributeChanged(name="_full_name", value="b", **place)
        with pytest.raises(IntegrityError):
            user._apply_and_publish(event)
        with pytest.raises(IntegrityError):
            mutate_entity(user, event)
    assert (user.full_name, user.version) == ("a", 1)


def test_events_of_ones_own_are_applied_by_a_mutator_function(published):
    world = World.create()
    world.make_it_so("dinosaurs")
    world.make_it_so("internet")

    assert world.history == ["dinosaurs", "internet"]
    assert world.version == 3
    assert [event.originator_version for event in published] == [0, 1, 2]
    assert mutate_world.__doc__ == "How events change the world."


def test_events_of_ones_own_may_apply_themselves(published):
    world = ReflexiveWorld.create()
    world._trigger_event(ReflexiveWorld.SomethingHappened, what="dinosaurs")
    world.change_attribute("a", 1)
    world._trigger_event(ReflexiveWorld.Ended)

    assert world.history == ["dinosaurs", "the end"]
    assert world.version == 4
    with pytest.raises(ItemNotFoundError):
        world.change_attribute("a", 2)


def test_entities_are_equal_if_their_state_is():
    stream = uuid4()
    one, two = VersionedEntity(id=stream), VersionedEntity(id=stream)
    assert one == two
    two.change_attribute("a", 1)
    assert one != two
    assert one != EventSourcedEntity(id=stream)


def test_a_repr_tells_which_entity_it_is_and_not_what_it_holds():
    assert repr(User(id="u1", full_name="secret info")) == "<User u1>"


@pytest.mark.parametrize(
    "error", [SequencedItemConflictError("taken"), StoreUnavailableError("away"), KeyboardInterrupt()]
)
def test_an_entity_whose_event_was_not_stored_is_reloaded_before_it_changes_again(broken, error):
    """Its next event would leave a gap in the stream, or build on what others never saw."""
    user = User.create()
    broken.append(error)
    with pytest.raises(type(error)):
        user.full_name = "lost"
    broken.clear()

    with pytest.raises(SequencedItemConflictError, match="an event that was not stored") as caught:
        user.full_name = "next"
    assert "repository" in caught.value.remedy


# --- aggregates ---


def test_an_aggregate_publishes_when_it_is_saved_all_at_once(published):
    basket = Basket.create()
    basket.fill("apple", "pear")
    assert published == []

    basket.save()
    basket.save()

    [events] = published
    assert [event.originator_version for event in events] == [0, 1, 2]
    assert basket.things == ["apple", "pear"]


def test_an_aggregate_is_discarded_when_it_is_saved(published):
    basket = Basket.create()
    basket.discard()
    basket.save()

    assert [type(event) for event in published[0]] == [Basket.Created, Basket.Discarded]


def test_an_aggregate_that_was_not_saved_keeps_its_events(published, broken):
    basket = Basket.create()
    basket.fill("apple")
    broken.append(StoreUnavailableError("away"))
    with pytest.raises(StoreUnavailableError):
        basket.save()
    broken.clear()
    published.clear()

    basket.fill("pear")
    basket.save()

    assert [event.originator_version for event in published[0]] == [0, 1, 2]


def test_what_was_published_is_not_changed_by_what_follows(published):
    basket = Basket.create()
    basket.save()
    basket.fill("apple")
    basket.save()

    assert [len(events) for events in published] == [1, 1]

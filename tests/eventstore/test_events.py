"""Domain events, and who hears of them."""

from decimal import Decimal
from uuid import uuid4

import pytest

from eventseal.errors import SerializationError
from eventseal.eventstore import (
    AttributeChanged,
    Created,
    Discarded,
    DomainEvent,
    EventWithOriginatorID,
    EventWithOriginatorVersion,
    EventWithTimestamp,
    Logged,
    publish,
    subscribe,
    unsubscribe,
)
from eventseal.eventstore.events import current_owner, now, owned_by
from eventseal.items import SequencedItemMapper


def test_an_event_has_the_attributes_of_its_constructor():
    event = DomainEvent(a=1, b="two")

    assert (event.a, event.b) == (1, "two")
    with pytest.raises(AttributeError):
        event.c  # noqa: B018 - reading is the point


def test_an_event_does_not_change():
    event = DomainEvent(a=1)

    with pytest.raises(AttributeError, match="does not change"):
        event.a = 2
    with pytest.raises(AttributeError, match="does not change"):
        del event.a
    assert event.a == 1


def test_an_event_loses_no_attribute_where_a_class_lets_them_be_set():
    class Open(DomainEvent):
        __setattr__ = object.__setattr__

    event = Open(a=1)
    with pytest.raises(AttributeError, match="does not change"):
        del event.a
    assert event.a == 1


def test_events_are_equal_if_their_class_and_attributes_are():
    assert DomainEvent(a=1) == DomainEvent(a=1)
    assert DomainEvent(a=1) != DomainEvent(a=2)
    assert DomainEvent(a=1) != DomainEvent(b=1)
    assert DomainEvent(a=1) != Created(a=1)
    assert DomainEvent(a=1) != 1


def test_equal_events_have_equal_hashes_whatever_they_hold():
    stream = uuid4()
    one, two = (Created(originator_id=stream, originator_version=0, lines=[1]) for _ in range(2))

    assert hash(one) == hash(two)
    assert len({one, two, Created(originator_id=stream, originator_version=1)}) == 2


def test_a_repr_tells_which_event_it_is_and_not_what_it_holds():
    event = Created(originator_id="order 1", originator_version=3, customer="secret info")

    assert repr(event) == "<Created originator_id=order 1 originator_version=3>"


def test_what_an_event_needs_is_asked_for():
    with pytest.raises(TypeError):
        EventWithOriginatorID()
    with pytest.raises(TypeError):
        EventWithOriginatorVersion()
    assert EventWithOriginatorID(originator_id=1).originator_id == 1
    assert EventWithOriginatorVersion(originator_version=0).originator_version == 0


def test_a_timestamp_is_now_unless_it_is_given():
    before = now()
    event = EventWithTimestamp()

    assert before < event.timestamp < now()
    assert EventWithTimestamp(timestamp=Decimal("1.5")).timestamp == Decimal("1.5")


def test_no_two_timestamps_of_a_process_are_equal_and_all_have_six_places():
    times = [now() for _ in range(1000)]

    assert times == sorted(set(times))
    assert {time.as_tuple().exponent for time in times} == {-6}


def test_a_logged_event_is_positioned_by_its_time():
    event = Logged(originator_id=uuid4(), message="hello")
    mapper = SequencedItemMapper()

    assert mapper.to_sequenced_item(event).position == event.timestamp
    assert mapper.from_sequenced_item(mapper.to_sequenced_item(event)) == event
    with pytest.raises(SerializationError):
        mapper.to_sequenced_item(Logged(originator_id=uuid4(), timestamp=1.5))


def test_some_classes_tell_events_apart():
    assert isinstance(Created(), DomainEvent)
    assert not isinstance(Created(), Discarded)
    assert AttributeChanged(name="a", value=1).name == "a"


# --- publish and subscribe ---


@pytest.fixture
def heard():
    """Subscribed handlers, which are unsubscribed at the end, and what they heard."""
    heard: list = []
    handlers = []

    def listen(name, predicate=None):
        def handler(event):
            heard.append((name, event))

        subscribe(handler, predicate)
        handlers.append((handler, predicate))
        return handler

    yield listen, heard
    for handler, predicate in handlers:
        unsubscribe(handler, predicate)


def test_handlers_hear_in_the_order_of_their_subscription(heard):
    listen, heard_by = heard
    listen("first")
    listen("second")

    publish(1)

    assert heard_by == [("first", 1), ("second", 1)]


def test_a_predicate_decides_whether_a_handler_hears(heard):
    listen, heard_by = heard
    listen("strings", lambda event: isinstance(event, str))
    publish(1)
    publish("a")

    assert heard_by == [("strings", "a")]


def test_after_unsubscribing_a_handler_hears_nothing_more(heard):
    listen, heard_by = heard
    handler = listen("first")
    unsubscribe(handler, lambda event: True)
    publish(1)
    unsubscribe(handler)
    unsubscribe(handler)
    publish(2)

    assert heard_by == [("first", 1)]


def test_a_handler_may_unsubscribe_while_it_hears():
    heard = []

    def once(event):
        heard.append(event)
        unsubscribe(once)

    subscribe(once)
    subscribe(heard.append)
    try:
        publish(1)
        publish(2)
    finally:
        unsubscribe(heard.append)
    assert heard == [1, 1, 2]


def test_an_error_of_a_handler_reaches_who_published(heard):
    listen, heard_by = heard

    def fail(event):
        raise ValueError("no")

    subscribe(fail)
    listen("after")
    try:
        with pytest.raises(ValueError, match="no"):
            publish(1)
    finally:
        unsubscribe(fail)
    assert heard_by == []


def test_an_owner_holds_for_a_block_and_blocks_nest():
    assert current_owner() is None
    with owned_by("a"):
        with owned_by("b"):
            assert current_owner() == "b"
        assert current_owner() == "a"
    assert current_owner() is None

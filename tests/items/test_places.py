"""Which attributes of an event are its place."""

from decimal import Decimal
from uuid import uuid4

import pytest

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.items.item import PlaceNames

FIELDS = ("sequence_id", "position", "topic", "data")
ID = uuid4()


def names(sequence_id=None, position=None, fields=FIELDS):
    return PlaceNames(fields, sequence_id, position)


def there_and_back(place_names, attributes):
    taken = dict(attributes)
    sequence_id, position = place_names.take(taken, "owner")
    data = dict(taken)
    place_names.put(taken, sequence_id, position, "owner")
    assert taken == attributes
    return sequence_id, position, data


def test_the_default_is_the_originator_and_its_version_which_are_left_out_of_the_data():
    attributes = {"originator_id": ID, "originator_version": 3, "timestamp": Decimal(5), "a": 1}

    assert there_and_back(names(), attributes) == (ID, 3, {"timestamp": Decimal(5), "a": 1})


def test_the_first_two_fields_of_the_item_class_come_first_and_stay_in_the_data():
    attributes = {"sequence_id": ID, "position": 3, "originator_id": uuid4(), "originator_version": 4}

    assert there_and_back(names(), attributes) == (ID, 3, attributes)


def test_without_a_version_the_timestamp_is_the_position_and_stays_in_the_data():
    attributes = {"originator_id": ID, "timestamp": Decimal("5.25"), "a": 1}

    assert there_and_back(names(), attributes) == (ID, Decimal("5.25"), attributes)


def test_fields_that_are_named_like_the_default_are_left_out_too():
    fields = ("originator_id", "originator_version", "event_type", "state")

    assert there_and_back(names(fields=fields), {"originator_id": ID, "originator_version": 1}) == (ID, 1, {})
    attributes = {"originator_id": ID, "timestamp": Decimal(1)}
    assert there_and_back(names(fields=fields), attributes) == (ID, Decimal(1), attributes)


def test_given_names_are_left_out_of_the_data_and_nothing_is_guessed():
    attributes = {"order": ID, "line": 3, "originator_id": 1, "originator_version": 2}

    data = {"originator_id": 1, "originator_version": 2}
    assert there_and_back(names("order", "line"), attributes) == (ID, 3, data)
    with pytest.raises(SerializationError, match="owner has no attribute 'line', which is part of its place"):
        names("order", "line").take({"order": ID, "originator_id": ID, "originator_version": 1}, "owner")


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"a": 1},
        {"originator_id": 1},
        {"originator_version": 1},
        {"timestamp": 1},
        {"sequence_id": 1, "originator_version": 1},
        {"sequence_id": 1, "timestamp": 1},
    ],
)
def test_an_event_without_a_place_is_refused_with_the_names_that_it_could_have(attributes):
    with pytest.raises(SerializationError) as caught:
        names().take(dict(attributes), "shop:Placed")
    assert "shop:Placed has neither sequence_id with position, nor originator_id" in str(caught.value)
    assert "sequence_id_attr_name" in caught.value.remedy


def test_a_time_that_is_called_a_version_is_refused_since_it_would_not_come_back():
    with pytest.raises(SerializationError, match="which is not an originator_version"):
        names().take({"originator_id": ID, "originator_version": Decimal(1)}, "owner")


def test_an_item_in_time_of_a_mapper_that_was_given_the_names_is_not_read_without_them():
    attributes = {"originator_id": ID, "timestamp": Decimal(7), "a": 1}
    names("originator_id", "timestamp").take(attributes, "owner")

    with pytest.raises(SerializationError, match="which is not an originator_version"):
        names().put(attributes, ID, Decimal(7), "owner")


@pytest.mark.parametrize(("sequence_id", "position"), [("a", None), (None, "b"), ("a", "a")])
def test_names_are_given_together_and_differ(sequence_id, position):
    with pytest.raises(ConfigurationError):
        names(sequence_id, position)

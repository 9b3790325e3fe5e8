"""JSON of releases 1 to 7: each value comes back as it was, in the store's own form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from uuid import UUID, uuid4

import pytest

from eventseal.cipher import AESCipher
from eventseal.errors import SerializationError
from eventseal.items import JSONTranscoder, SequencedItem, SequencedItemMapper, register_alias, topic_of
from eventseal.items.acceptance import translated
from eventseal.items.formats import PlainJSON

STREAM = uuid4()


class Colour(Enum):
    RED = "r"


@dataclass
class Line:
    sku: str
    price: Decimal


class Bought:
    pass


def read(value):
    """What the store's own transcoder makes of an attribute that an old release wrote."""
    data = json.dumps({"value": value, "other": 1}).encode()
    return JSONTranscoder().decode(translated(data, STREAM, 0))["value"]


register_alias("old.shop#Colour", Colour)
register_alias("old.shop#Line", Line)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"UUID": UUID(int=5).hex}, UUID(int=5)),
        ({"ISO8601_datetime": "2018-03-01T10:00:00.000001+0000"}, datetime(2018, 3, 1, 10, 0, 0, 1, UTC)),
        ({"ISO8601_datetime": "2018-03-01T10:00:00.000000"}, datetime(2018, 3, 1, 10)),  # noqa: DTZ001
        ({"ISO8601_date": "2018-03-01"}, date(2018, 3, 1)),
        ({"ISO8601_time": "10:00:00.000005"}, time(10, 0, 0, 5)),
        ({"__decimal__": "1.50"}, Decimal("1.50")),
        ({"__bytes__": "AAE="}, b"\0\1"),
        ({"__set__": [1, {"UUID": UUID(int=5).hex}]}, {1, UUID(int=5)}),
        ({"__tuple__": {"topic": "builtins#tuple", "state": [1, {"__decimal__": "2"}]}}, (1, Decimal(2))),
        ({"__enum__": {"topic": "old.shop#Colour", "name": "RED"}}, Colour.RED),
        (
            {"__class__": {"topic": "old.shop#Line", "state": {"sku": "a", "price": {"__decimal__": "3"}}}},
            Line("a", Decimal(3)),
        ),
        ([1, "é", None, True, 1.5, {"a": [{"b": {}}]}], [1, "é", None, True, 1.5, {"a": [{"b": {}}]}]),
        ({"$uuid": "mine"}, {"$uuid": "mine"}),
        ({"$x": {"UUID": UUID(int=5).hex}}, {"$x": UUID(int=5)}),
        ({"UUID": 1, "more": 2}, {"UUID": 1, "more": 2}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else next(iter(value), "empty"),
)
def test_a_value_comes_back_as_it_was(written, meant):
    found = read(written)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    "written",
    [
        {"__type__": "old.shop#Line"},
        {"__deque__": {"topic": "collections#deque", "values": []}},
        {"__tuple__": {"topic": "old.shop#Point", "state": [1, 2]}},
        {"UUID": "secret"},
        {"__class__": "secret"},
        {"ISO8601_datetime": ["secret"]},
        float("nan"),
    ],
    ids=repr,
)
def test_what_has_no_form_is_refused_without_showing_it(written):
    with pytest.raises(SerializationError) as refused:
        read(written)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"no json", b"\xff{}", b'{"a":' * 100_000], ids=lambda d: repr(d[:8])
)
def test_what_is_no_object_is_refused(data):
    with pytest.raises(SerializationError):
        translated(data, STREAM, 0)


def test_the_place_stands_beside_the_data_once():
    written = {
        "originator_id": {"UUID": STREAM.hex},
        "originator_version": 3,
        "timestamp": 1.5,
        "__event_hash__": "x",
        "__previous_hash__": "y",
        "value": 1,
    }
    data = translated(json.dumps(written).encode(), STREAM, 3)
    assert json.loads(data) == {"timestamp": 1.5, "value": 1}
    item = SequencedItem(STREAM, 3, topic_of(Bought), data)
    event = SequencedItemMapper(cipher=AESCipher(b"k" * 32), accept=[PlainJSON()]).from_sequenced_item(item)
    assert vars(event) == {"originator_id": STREAM, "originator_version": 3, "timestamp": 1.5, "value": 1}


@pytest.mark.parametrize("stream", [STREAM, "a-stream"], ids=["uuid", "text"])
def test_a_time_as_position_is_the_events_timestamp(stream):
    position = Decimal("1234.500000")
    item = SequencedItem(stream, position, topic_of(Bought), translated(b'{"value":1}', stream, position))
    event = SequencedItemMapper(cipher=AESCipher(b"k" * 32), accept=[PlainJSON()]).from_sequenced_item(item)
    assert vars(event) == {"originator_id": stream, "timestamp": position, "value": 1}

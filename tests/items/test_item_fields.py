"""Sequenced item classes of users' own."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.items import SequencedItem
from eventseal.items.item import ItemFields, StoredItem, field_names

KEY_ID = uuid4()
STORED = StoredItem("s", 1, "t", b"d", KEY_ID)


class StoredEvent(NamedTuple):
    originator_id: Any
    originator_version: Any
    event_type: str
    state: bytes


class WithOthers(NamedTuple):
    a: Any
    b: Any
    c: str
    d: bytes
    customer: str
    key_id: Any
    amount: int


@dataclass(frozen=True, slots=True)
class Item:
    stream: Any
    number: Any
    name: str
    content: bytes
    key_id: Any = None
    amount: int = 0


def test_an_item_class_of_the_librarys_own():
    fields = ItemFields(SequencedItem)

    item = fields.make(STORED, b"sealed", KEY_ID, None)
    assert item == SequencedItem("s", 1, "t", b"sealed", KEY_ID)
    assert fields.read(item) == StoredItem("s", 1, "t", b"sealed", KEY_ID)
    assert fields.has_key_id


def test_an_item_class_without_a_key_id():
    fields = ItemFields(StoredEvent)

    item = fields.make(STORED, b"sealed", KEY_ID, None)
    assert item == StoredEvent("s", 1, "t", b"sealed")
    assert fields.read(item) == StoredItem("s", 1, "t", b"sealed", None)
    assert not fields.has_key_id


def test_other_fields_are_attributes_of_their_names_wherever_the_key_id_stands():
    fields = ItemFields(WithOthers)

    item = fields.make(STORED, b"x", KEY_ID, SimpleNamespace(customer="Ada", amount=5))
    assert item == WithOthers("s", 1, "t", b"x", "Ada", KEY_ID, 5)
    assert fields.read(item).key_id == KEY_ID


def test_other_fields_may_be_attributes_of_other_names():
    fields = ItemFields(WithOthers, ("who", "much"))

    assert fields.make(STORED, b"x", None, SimpleNamespace(who="Ada", much=5)).customer == "Ada"


def test_a_dataclass_is_an_item_class_too():
    fields = ItemFields(Item)

    item = fields.make(STORED, b"x", KEY_ID, SimpleNamespace(amount=5))
    assert item == Item("s", 1, "t", b"x", KEY_ID, 5)
    assert fields.read(item) == StoredItem("s", 1, "t", b"x", KEY_ID)


def test_an_event_without_an_attribute_that_the_item_class_asks_for_is_refused():
    with pytest.raises(SerializationError, match="t has no attribute 'amount', which the item class copies"):
        ItemFields(WithOthers).make(STORED, b"x", None, SimpleNamespace(customer="Ada"))


@pytest.mark.parametrize("names", [("one",), ("one", "two", "three")])
def test_other_names_are_as_many_as_other_fields(names):
    with pytest.raises(ConfigurationError, match=r"has 2 other fields \(customer, amount\)"):
        ItemFields(WithOthers, names)


class Short(NamedTuple):
    a: Any
    b: Any
    c: Any


class KeyTooSoon(NamedTuple):
    a: Any
    b: Any
    key_id: Any
    c: Any
    d: Any


@pytest.mark.parametrize("cls", [Short, KeyTooSoon, tuple, dict, SimpleNamespace])
def test_what_is_no_item_class_is_refused(cls):
    with pytest.raises(ConfigurationError):
        field_names(cls)


def test_bytes_of_any_kind_are_read():
    for kind in (bytearray, memoryview):
        read = ItemFields(SequencedItem).read(SequencedItem("s", 1, "t", kind(b"data")))
        assert read.data == b"data"
        assert type(read.data) is bytes


@pytest.mark.parametrize("data", ["text", None, 3])
def test_data_that_are_no_bytes_are_refused(data):
    with pytest.raises(SerializationError, match="data must be bytes") as refused:
        ItemFields(SequencedItem).read(SequencedItem("s", 1, "t", data))
    assert "as bytes" in refused.value.remedy


def test_a_topic_that_is_no_text_is_refused():
    with pytest.raises(SerializationError, match="topic must be text"):
        ItemFields(SequencedItem).read(SequencedItem("s", 1, None, b"data"))

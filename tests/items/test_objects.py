"""Objects come back with the attributes they had, whatever their class is made of."""

import uuid
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

import pytest

from eventseal.errors import SerializationError
from eventseal.items.objects import attributes_of, restore


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Strict(Plain):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Slots:
    __slots__ = ("__private", "a", "unset")

    def __init__(self) -> None:
        self.a = 1
        self.__private = 2

    @property
    def private(self) -> int:
        return self.__private


class SlotsAndMore(Slots):
    def __init__(self) -> None:
        super().__init__()
        self.b = 3


@dataclass(frozen=True)
class Frozen:
    a: int
    b: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    a: int
    b: Any = None


class NotADataclassOfItsOwn(Frozen):
    def __init__(self, extra: int) -> None:
        super().__init__(1, [2])
        self.__dict__["extra"] = extra


class Validated(Plain):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        if "forbidden" in attributes:
            raise ValueError


@pytest.mark.parametrize(
    "obj",
    [Plain(), Plain(a=1, b=[2]), Strict(a=1), Frozen(1), Frozen(1, [2]), FrozenSlots(1), FrozenSlots(1, "b")],
)
def test_an_object_comes_back_with_its_attributes(obj):
    found = restore(type(obj), attributes_of(obj))

    assert type(found) is type(obj)
    assert attributes_of(found) == attributes_of(obj)
    assert found == obj or type(obj).__eq__ is object.__eq__


def test_slots_come_back_with_private_names_and_beside_a_dict():
    found = restore(SlotsAndMore, attributes_of(SlotsAndMore()))

    assert (found.a, found.private, found.b) == (1, 2, 3)
    assert not hasattr(found, "unset")
    assert attributes_of(found) == {"a": 1, "_Slots__private": 2, "b": 3}


def test_attributes_that_are_no_fields_of_a_dataclass_are_kept():
    found = restore(NotADataclassOfItsOwn, attributes_of(NotADataclassOfItsOwn(7)))

    assert (found.a, found.b, found.extra) == (1, [2], 7)


def test_attributes_are_a_copy():
    obj = Plain(a=1)
    attributes_of(obj)["a"] = 2
    assert obj.a == 1


def test_the_constructor_is_not_called_since_what_was_stored_is_what_comes_back():
    assert restore(Validated, {"forbidden": 1}).forbidden == 1


class Point(NamedTuple):
    x: int


class NumberWithAttributes(int):
    pass


@pytest.mark.parametrize(
    "obj",
    [
        1,
        "text",
        None,
        object(),
        Point(1),
        NumberWithAttributes(3),
        date(2012, 1, 1),
        [1],
        ValueError("x"),
    ],
)
def test_what_does_not_keep_its_state_in_attributes_is_refused(obj):
    with pytest.raises(SerializationError, match="does not store its state in attributes"):
        attributes_of(obj)
    with pytest.raises(SerializationError, match="does not store its state in attributes"):
        restore(type(obj), {})


def test_a_uuid_is_an_object_with_slots_and_still_a_value_to_the_transcoder():
    assert set(attributes_of(uuid.UUID(int=1))) == {"int", "is_safe"}


@pytest.mark.parametrize("name", ["gone", "__class__"])
def test_an_attribute_that_a_class_with_slots_has_no_place_for_is_refused(name):
    with pytest.raises(SerializationError, match=f"no longer has the attribute '{name}'"):
        restore(Slots, {name: 1})

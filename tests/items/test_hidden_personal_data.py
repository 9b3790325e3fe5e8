"""What would hide personal data, or lose what an event holds, is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import uuid4

import annotated_types
import pytest

from eventseal.cipher import AESCipher
from eventseal.errors import ConfigurationError, SerializationError
from eventseal.eventstore import DomainEvent
from eventseal.items import JSONTranscoder, PersonalData, SequencedItemMapper
from eventseal.items.markers import chosen
from eventseal.items.objects import attributes_of, restore
from eventseal.items.personal import plan_of

OF_ID = PersonalData(subject="id")
Email = Annotated[str, OF_ID]
Other = Annotated[str, PersonalData(subject="other")]


class Grouped(annotated_types.GroupedMetadata):
    def __iter__(self):
        yield OF_ID


class Property(DomainEvent):
    email: Email

    @property
    def email(self) -> str:
        return self._email


class Converting:
    def __get__(self, obj, owner=None):
        return "" if obj is None else vars(obj)["_email"]

    def __set__(self, obj, value):
        vars(obj)["_email"] = value


@dataclass
class Described:
    email: Email = Converting()


class Factory(DomainEvent):
    @classmethod
    def of(cls, email: Email, **rest: Any) -> Factory:
        return cls(email=email, **rest)


class StaticFactory(DomainEvent):
    @staticmethod
    def of(email: Email) -> Any:
        return StaticFactory(email=email)


class OneLine:
    def __init__(self, email): self.size = 1; self.email: Email = email  # noqa: E702  # fmt: skip


class Conditional:
    if True:

        def __init__(self, email):
            self.email: Email = email


class OfAttrs:
    """As attrs leaves a class that it defines, with a field's metadata."""

    __attrs_attrs__ = (SimpleNamespace(name="email", metadata={"personal": OF_ID}),)
    email: str


@dataclass
class Nested:
    email: str = field(default="", metadata={"a": {"b": [OF_ID]}})


@dataclass
class Uncalled:
    email: str = field(default="", metadata={"a": PersonalData})


class Shadowed(DomainEvent):
    email: Email

    class Email:
        pass


HIDING = [
    Property,
    Described,
    Factory,
    StaticFactory,
    OneLine,
    Conditional,
    OfAttrs,
    Nested,
    Uncalled,
    Shadowed,
]


@pytest.mark.parametrize("cls", HIDING, ids=lambda cls: cls.__name__)
def test_a_marker_that_would_be_passed_by_is_refused(cls):
    with pytest.raises(ConfigurationError):
        plan_of(cls)


@pytest.mark.parametrize(
    "hint",
    [
        Annotated[str, (OF_ID,)],
        Annotated[str, [OF_ID]],
        Annotated[str, {"a": PersonalData}],
        Annotated[str, Grouped()],
        Annotated[str, Email],
        list[Email] | list[Other],
        list[Email] | tuple[Other, ...],
        tuple[Email, int] | tuple[int, Email],
        list[list[Email]] | list[dict[str, Email]],
        dict[str, list[Email]] | dict[str, dict[str, Email]],
    ],
)
def test_an_annotation_that_nothing_could_follow_is_refused(hint):
    with pytest.raises(ConfigurationError):
        plan_of(type("Made", (), {"__annotations__": {"field": hint}, "__module__": __name__}))


def test_a_method_of_the_name_of_a_type_hides_no_marker():
    class Later(DomainEvent):
        email: Email
        sizes: list[int]

        def Email(self):
            """Comes after the annotation."""

        def list(self):
            """Is no type either."""

    assert set(plan_of(Later).fields) == {"email"}


def test_a_value_of_no_member_of_a_union_is_not_plain():
    made = type("Made", (), {"__annotations__": {"x": list[Email] | int | None}, "__module__": __name__})
    shape = plan_of(made).fields["x"]
    assert chosen(shape, True) is chosen(shape, 7) is chosen(shape, None) is None
    assert chosen(shape, ["ann"]) == shape.among[0]
    for value in ({"ann"}, "ann", {"a": "ann"}):
        with pytest.raises(TypeError):
            chosen(shape, value)


# --- what an object stores ---


class Amount(DomainEvent):
    @property
    def amount(self) -> tuple[str, int]:
        return "EUR", vars(self)["amount"]


def test_an_attribute_behind_a_property_is_refused_on_writing_and_kept_on_reading():
    with pytest.raises(SerializationError, match="stores 'amount' under the name of a property") as caught:
        attributes_of(Amount(amount=5))
    assert "cached_property" in caught.value.remedy
    assert restore(Amount, {"amount": 5}).amount == ("EUR", 5)


class Slotted:
    __slots__ = ("a", "hidden")


class Hides(Slotted):
    __slots__ = ()
    hidden = property(lambda self: 1)


def test_a_slot_behind_a_property_is_refused_if_it_is_set():
    obj = Hides()
    obj.a = 1
    assert attributes_of(obj) == {"a": 1}
    Slotted.hidden.__set__(obj, 2)
    with pytest.raises(SerializationError, match="stores 'hidden'"):
        attributes_of(obj)


class Setting:
    __slots__ = ("a",)

    @property
    def other(self) -> int:
        return 1

    @other.setter
    def other(self, value: object) -> None:
        raise AssertionError


def test_no_setter_runs_on_reading():
    with pytest.raises(SerializationError, match="no longer has the attribute 'other'"):
        restore(Setting, {"a": 1, "other": 2})


@dataclass(init=False)
class Partly:
    a: int
    b: int

    def __init__(self, a: int) -> None:
        self.a = a


@dataclass
class Written:
    a: int
    b: int

    def __init__(self, a: int) -> None:
        self.a = a


@pytest.mark.parametrize("cls", [Partly, Written])
def test_a_field_that_the_constructor_leaves_unset_may_be_missing(cls):
    assert vars(restore(cls, attributes_of(cls(1)))) == {"a": 1}


@dataclass
class Returning:
    class_version = 2
    a: int

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> Any:
        return {"a": state["b"]}


def test_an_upcast_that_returns_something_is_refused():
    with pytest.raises(ConfigurationError, match=r"upcast_v1_v2\(\) returned a dict") as caught:
        restore(Returning, {"b": 1})
    assert "in place" in caught.value.remedy


# --- mappers ---


class ForeignNew(SequencedItemMapper):
    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def to_sequenced_items(self, domain_events):
        return list(domain_events)


class Swallowing(SequencedItemMapper):
    always_encrypt = property(lambda self: False, lambda self, value: None)


class Lying(SequencedItemMapper):
    def __getattribute__(self, name):
        return super().__getattribute__(name)


class Survey(SequencedItemMapper):
    @classmethod
    def protections(cls, event_class, *, always_encrypt=False):
        return []


@pytest.mark.parametrize("cls", [ForeignNew, Swallowing, Lying, Survey])
def test_a_mapper_that_could_store_plaintext_is_refused(cls):
    with pytest.raises(ConfigurationError, match="could store plaintext"):
        cls()


class Loud(JSONTranscoder):
    def encode_attributes(self, attributes, *, owner):
        return repr(attributes).encode()


class Named(JSONTranscoder):
    def __init__(self) -> None:
        super().__init__()
        self.register(complex, "complex", str, complex)


def test_a_transcoder_that_replaces_methods_is_refused(keyring):
    with pytest.raises(ConfigurationError, match="Loud replaces encode_attributes of JSONTranscoder"):
        SequencedItemMapper(cipher=AESCipher(keyring), json=Loud())
    mapper = SequencedItemMapper(cipher=AESCipher(keyring), json=Named())
    event = DomainEvent(originator_id=uuid4(), originator_version=0, x=1j)
    assert mapper.from_sequenced_item(mapper.to_sequenced_item(event)) == event

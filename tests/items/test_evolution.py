"""Event classes change: what was stored under an older form comes back in today's, or is refused by name."""

import functools
import json
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, ClassVar
from uuid import uuid4

import pytest

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.eventstore import DomainEvent
from eventseal.items import Masked, PersonalData, register_alias, register_topic
from eventseal.items.objects import attributes_of, restore

OF_ID = PersonalData(subject="customer_id", mask="somebody")


@dataclass(frozen=True)
class Line:
    sku: str
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Placed:
    originator_id: Any
    originator_version: int
    lines: list[Line] = field(default_factory=list)
    note: str = "none"


@dataclass(frozen=True, slots=True)
class Slotted:
    a: int
    b: str = "b"
    c: list[int] = field(default_factory=list)


@dataclass
class Derived:
    a: int
    b: int = field(init=False)


class Positive:
    """A descriptor that checks, and keeps the value under another name."""

    def __get__(self, obj, owner=None):
        return 1 if obj is None else vars(obj)["_amount"]

    def __set__(self, obj, value):
        vars(obj)["_amount"] = value


class InPlace(Positive):
    """The same under the field's own name."""

    def __get__(self, obj, owner=None):
        return 1 if obj is None else vars(obj)["amount"]

    def __set__(self, obj, value):
        vars(obj)["amount"] = value


class Caching:
    """A non-data descriptor that caches."""

    def __get__(self, obj, owner=None):
        if obj is None:
            return self
        return vars(obj).setdefault("size", len(obj.email))


@dataclass
class Checked:
    amount: Positive = Positive()


@dataclass
class CheckedInPlace:
    amount: InPlace = InPlace()


@dataclass
class Computing:
    email: str
    size: ClassVar = Caching()

    @functools.cached_property
    def domain(self):
        return self.email.partition("@")[2]

    @property
    def kept(self):
        return vars(self)["kept"]

    @kept.setter
    def kept(self, value):
        vars(self)["kept"] = value


class Undeclared(DomainEvent):
    def shown(self):
        """A method, which computes nothing in advance."""


class Base:
    __slots__ = ("email", "size")


class Overriding(Base):
    @property
    def size(self):
        return len(self.email)


for one in (Line, Placed):
    register_topic(f"tests.evolution:{one.__name__}", one)


# --- what is stored ---


def test_what_the_class_computes_is_not_stored_and_dropped_if_it_was():
    obj = Computing("ann@example.org")
    obj.kept = 7
    assert (obj.domain, obj.size) == ("example.org", 15)

    assert attributes_of(obj) == {"email": "ann@example.org", "kept": 7}
    stored = {"email": "bob@example.net", "domain": "example.org", "size": 15}
    assert vars(restore(Computing, stored)) == {"email": "bob@example.net"}


def test_a_slot_that_a_property_hides_is_computed():
    obj = Overriding()
    obj.email = "ann"
    assert attributes_of(obj) == {"email": "ann"}


@pytest.mark.parametrize("cls", [Checked, CheckedInPlace])
def test_what_a_descriptor_that_checks_keeps_is_stored(cls):
    obj = cls(5)
    found = restore(cls, attributes_of(obj))
    assert (found.amount, vars(found)) == (5, vars(obj))


def test_undeclared_attributes_are_stored_also_where_a_method_has_the_name():
    event = Undeclared(shown=1, other=2)
    assert attributes_of(event) == {"shown": 1, "other": 2}
    assert restore(Undeclared, attributes_of(event)) == event


# --- defaults ---


def stored_as(mapper, event, change):
    """An item of an event whose JSON was written otherwise; items in plain hold it as it is."""
    item = mapper.to_sequenced_item(event)
    attributes = json.loads(item.data)
    change(attributes)
    return item._replace(data=json.dumps(attributes, separators=(",", ":")).encode())


@pytest.fixture
def plain(make_mapper):
    return make_mapper(always_encrypt=False)


def test_fields_that_a_dataclass_got_since_have_their_defaults(plain):
    def older(attributes):
        del attributes["note"]
        del attributes["lines"][0]["$dataclass"][1]["tags"]

    event = Placed(uuid4(), 0, [Line("a")])
    found = plain.from_sequenced_item(stored_as(plain, event, older))
    assert found == event
    assert found.lines[0].tags == []
    assert vars(found)["note"] == "none"
    without = plain.from_sequenced_item(stored_as(plain, event, lambda attributes: attributes.pop("lines")))
    assert without.lines == []


def test_slots_have_their_defaults_each_with_a_list_of_its_own():
    first, second = restore(Slotted, {"a": 1}), restore(Slotted, {"a": 1})
    assert first == Slotted(1)
    assert first.c is not second.c


def test_a_missing_field_without_a_default_is_named():
    with pytest.raises(
        SerializationError, match=r"Slotted has no 'a', and this field has no default"
    ) as caught:
        restore(Slotted, {})
    assert "upcast" in caught.value.remedy
    assert not hasattr(restore(Derived, {"a": 1}), "b")


# --- versions ---


@dataclass
class Address:
    class_version: ClassVar[int] = 2
    street: str
    city: str

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        state["street"], _, state["city"] = state.pop("text").partition(", ")


@dataclass
class Moved:
    class_version: ClassVar[int] = 3
    originator_id: Any
    originator_version: int
    customer_id: str
    email: Annotated[str, OF_ID]
    address: Address | None = None
    reason: str = "unknown"

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        state["email"] = state.pop("mail")

    @staticmethod
    def upcast_v2_v3(state: dict[str, Any]) -> None:
        state["seen"] = [*state, state["originator_version"]]
        del state["seen"]


@dataclass
class MovedAtFirst:
    originator_id: Any
    originator_version: int
    customer_id: str
    mail: Annotated[str, OF_ID]


register_topic("tests.evolution:Address", Address)
register_topic("tests.evolution:Moved", Moved)
register_topic("tests.evolution:MovedAtFirst", MovedAtFirst)


def as_moved(mapper, monkeypatch, event):
    """Store an event of the first form of the class, and let its topic name today's."""
    item = mapper.to_sequenced_item(event)
    from eventseal.items import topics

    monkeypatch.setitem(topics._classes, "tests.evolution:MovedAtFirst", Moved)
    return item


def test_the_version_is_stored_above_one_and_comes_back(plain):
    event = Moved(uuid4(), 0, "c-1", "ann@example.org", Address("High Street", "Oxford"))
    item = plain.to_sequenced_item(event)
    assert item.data.count(b'"class_version":3') == item.data.count(b'"class_version":2') == 1
    assert plain.from_sequenced_item(item) == event
    assert not hasattr(vars(plain.from_sequenced_item(item)), "class_version")
    assert b"class_version" not in plain.to_sequenced_item(Placed(uuid4(), 0)).data


def test_personal_fields_and_their_masks_go_through_upcasts(make_mapper, keyring, monkeypatch):
    mapper = make_mapper(always_encrypt=False)
    event = MovedAtFirst(uuid4(), 0, "c-1", "ann@example.org")
    item = as_moved(mapper, monkeypatch, event)
    assert b"ann@" not in item.data

    found = mapper.from_sequenced_item(item)
    assert (type(found), found.email, found.reason) == (Moved, "ann@example.org", "unknown")
    assert b"ann@" not in mapper.to_sequenced_item(found).data

    keyring.shred("subject:c-1")
    assert mapper.from_sequenced_item(item).email == "somebody"


def test_an_object_inside_of_an_event_is_upcast(plain):
    event = Moved(uuid4(), 0, "c-1", "", Address("High Street", "Oxford"))

    def older(attributes):
        attributes["address"]["$dataclass"][1] = {"text": "High Street, Oxford"}

    assert plain.from_sequenced_item(stored_as(plain, event, older)) == event


@pytest.mark.parametrize("stored", [4, 0, "2", True, [2]], ids=repr)
def test_a_version_that_the_class_has_not_reached_is_refused(stored):
    with pytest.raises(SerializationError, match="but the class is of version 2") as caught:
        restore(Address, {"street": "a", "city": "b", "class_version": 3 if stored == 4 else stored})
    assert caught.value.remedy
    with pytest.raises(SerializationError, match="is of version 2, but the class is of version 1"):
        restore(Line, {"sku": "a", "class_version": 2})


def test_a_missing_or_failing_upcast_is_named_without_the_data():
    gap = make_dataclass("Gap", ["a"], namespace={"class_version": 2})
    with pytest.raises(ConfigurationError, match=r"has no upcast_v1_v2\(\)"):
        restore(gap, {"a": 1})
    with pytest.raises(SerializationError, match=r"upcast_v1_v2\(\) raised a KeyError") as caught:
        restore(Address, {"other": "High Street"})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("version", [0, "2", True, 1.5], ids=repr)
def test_a_class_version_is_a_whole_number(version):
    wrong = make_dataclass("Wrong", ["a"], namespace={"class_version": version})
    with pytest.raises(ConfigurationError, match="class_version of"):
        attributes_of(wrong(1))


def test_an_attribute_that_is_only_called_class_version_is_one_if_it_is_declared():
    @dataclass
    class Pupil:
        class_version: str

    assert vars(restore(Pupil, attributes_of(Pupil("2b")))) == {"class_version": "2b"}
    with pytest.raises(SerializationError, match="a reader would take for the version"):
        attributes_of(Undeclared(class_version=2))


def test_a_field_that_has_the_version_as_its_default_is_the_version():
    @dataclass
    class Counted:
        a: int
        class_version: int = 2

        @staticmethod
        def upcast_v1_v2(state):
            state["a"] += 1

    assert restore(Counted, {"a": 1}) == Counted(2)
    assert restore(Counted, attributes_of(Counted(2))) == Counted(2)


def test_an_erased_value_is_a_mask_in_an_upcast():
    assert (
        restore(
            Moved, {"originator_id": 1, "originator_version": 0, "customer_id": "c", "mail": Masked("s", "f")}
        ).email
        == "somebody"
    )


def test_an_alias_of_an_older_topic_is_upcast_too(plain):
    register_alias("tests.evolution:OlderAddress", Address)
    item = stored_as(
        plain,
        Moved(uuid4(), 0, "c-1", "", Address("a", "b")),
        lambda attributes: attributes.update(
            address={"$dataclass": ["tests.evolution:OlderAddress", {"text": "a, b"}]}
        ),
    )
    assert plain.from_sequenced_item(item).address == Address("a", "b")

"""Classes of other packages, and names that nobody can find, refuse no class that marks nothing."""

from __future__ import annotations

import sys
import types
from dataclasses import make_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import pytest
import sqlalchemy
from pydantic.dataclasses import dataclass as pydantic_dataclass
from sqlalchemy.orm import Session

from eventseal.errors import ConfigurationError
from eventseal.items import NotPersonal, PersonalData, register_topic  # noqa: F401 - in text
from eventseal.items.annotations import UnresolvedAnnotationError
from eventseal.items.json import JSONTranscoder
from eventseal.items.personal import plan_of, refuse_personal

if TYPE_CHECKING:
    import xml.sax.saxutils  # noqa: F401 - in text
    from json import NotThere  # noqa: F401 - in text

    from _typeshed import SupportsRead

Email = Annotated[str, PersonalData(subject="originator_id")]


class Model(pydantic.BaseModel):
    originator_id: str
    originator_version: int
    email: Email


@pydantic_dataclass
class Validated:
    originator_id: str
    originator_version: int
    email: Email


class Address(pydantic.BaseModel):
    city: str


def holding(hint: Any) -> type[Any]:
    return make_dataclass("Holding", [("held", hint)], namespace={"__module__": __name__})


@pytest.mark.parametrize("cls", [Model, Validated])
def test_classes_of_pydantic_are_sealed_and_come_back(mapper, cls):
    register_topic(f"tests.honest:{cls.__name__}", cls)
    event = cls(originator_id="c-1", originator_version=0, email="ann@example.org")
    item = mapper.to_sequenced_item(event)
    assert b"ann@example" not in item.data
    assert mapper.from_sequenced_item(item) == event


def test_a_private_attribute_of_pydantic_cannot_be_marked():
    class Private(pydantic.BaseModel):
        _email: Email = pydantic.PrivateAttr("")

    with pytest.raises(ConfigurationError, match="store the value under another name"):
        plan_of(Private)


@pytest.mark.parametrize(
    "hint",
    [pydantic.BaseModel, Address, Session, sqlalchemy.Engine, sqlalchemy.MetaData, pydantic.TypeAdapter[int]],
    ids=str,
)
def test_classes_of_other_packages_are_no_obstacle(hint):
    assert not plan_of(holding(hint)).fields


def test_a_model_can_be_registered_with_an_encoding():
    transcoder = JSONTranscoder()
    transcoder.register(Address, "address", lambda one: one.model_dump(), lambda raw: Address(**raw))
    assert transcoder.decode(transcoder.encode(Address(city="Rome"))) == Address(city="Rome")


def test_classes_that_name_each_other_are_read_once_each(monkeypatch):
    module = types.ModuleType("classes_in_a_ring")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = "".join(
        f"class K{i}:\n" + "".join(f"    a{j}: 'K{j}'\n" for j in range(25)) + f"    b: 'L{i}'\n"
        for i in range(25)
    ) + "".join(f"class L{i}:\n    a: 'L{i + 1}'\n" for i in range(3000))  # fmt: skip
    exec(text, vars(module))  # noqa: S102 - a module of its own
    assert not plan_of(holding(module.K0)).fields
    refuse_personal(module.L0, "", "", lenient=True)


class Lenient:
    """Its names are unknown only where nothing is stored."""

    size: int

    def __init__(self, source: SupportsRead[str] | Unknown | None = None) -> None:  # noqa: F821
        self.size = 1

    @property
    def reader(self) -> SupportsRead[Unknown]:  # noqa: F821
        raise NotImplementedError

    @classmethod
    def read(cls, source: Unknown) -> Lenient:  # noqa: F821
        return cls()


@pytest.mark.parametrize("hint", ["SupportsRead[str] | None", "xml.sax.saxutils.XMLGenerator", "free text"])
def test_names_of_type_checkers_and_text_mark_nothing(hint):
    assert not plan_of(holding(hint)).fields


def test_names_that_are_unknown_where_nothing_is_stored_are_no_obstacle():
    assert not plan_of(Lenient).fields


@pytest.mark.parametrize("hint", ["Unknown", "NotThere | None"])
def test_other_unknown_names_refuse_with_a_way_out(hint):
    with pytest.raises(UnresolvedAnnotationError, match="cannot be resolved") as caught:
        plan_of(holding(hint))
    assert "NotPersonal" in caught.value.remedy
    assert not plan_of(holding(f"Annotated[{hint}, NotPersonal('a size')]")).fields

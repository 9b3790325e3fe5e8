"""What annotations say of personal data, and what of it is refused when a class is first used."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NewType,
    Protocol,
    TypeVar,
)

import pytest
from tests.fixtures.personal_events import Noted, Registered

from eventseal.errors import ConfigurationError
from eventseal.items import NotPersonal, PersonalData
from eventseal.items.markers import Choice, Elements, Masked, Positions, Sealed, Values, with_masks
from eventseal.items.personal import plan_of

if TYPE_CHECKING:
    from datetime import date

    import nowhere_to_be_found as nowhere

OF_ID = PersonalData(subject="id")
T = TypeVar("T")
Name = NewType("Name", Annotated[str, OF_ID])
Plain = NewType("Plain", str)


def of(hint: Any) -> Any:
    """The shape of one annotation."""
    cls = type("Made", (), {"__annotations__": {"field": hint}, "__module__": __name__})
    return plan_of(cls).fields.get("field")


# --- what is said ---


def test_a_class_is_read_whose_module_imports_names_for_type_checkers_only():
    fields = plan_of(Registered).fields
    assert set(fields) == {
        "email", "age", "birth", "aliases", "pair", "many", "by_key", "extra",
    }  # fmt: skip
    assert fields["email"].data.subject == "customer_id"
    assert "date" not in plan_of(Dated).fields


class Dated:
    date: date
    unknown: Annotated[nowhere.Odd, NotPersonal("a library's own")]
    email: Annotated[str, OF_ID]


@pytest.mark.parametrize(
    ("hint", "shape"),
    [
        (Annotated[str, OF_ID], Sealed(OF_ID)),
        ("Annotated[str, OF_ID]", Sealed(OF_ID)),
        (Annotated[str, "a note", OF_ID], Sealed(OF_ID)),
        (Annotated[str | None, OF_ID], Sealed(OF_ID)),
        (Annotated[str, OF_ID] | None, Sealed(OF_ID)),
        (Annotated[Annotated[str, OF_ID], "a note"], Sealed(OF_ID)),
        (Final[Annotated[str, OF_ID]], Sealed(OF_ID)),
        (Name, Sealed(OF_ID)),
        (list[Annotated[str, OF_ID]], Elements(Sealed(OF_ID))),
        (list["Annotated[str, OF_ID]"], Elements(Sealed(OF_ID))),
        (Sequence[Name], Elements(Sealed(OF_ID))),
        (tuple[Annotated[str, OF_ID], ...], Elements(Sealed(OF_ID))),
        (tuple[str, Annotated[str, OF_ID]], Positions((None, Sealed(OF_ID)))),
        (dict[str, Annotated[str, OF_ID]], Values(Sealed(OF_ID))),
        (dict[str, list[Annotated[str, OF_ID]]], Values(Elements(Sealed(OF_ID)))),
        (list[Annotated[str, OF_ID]] | None, Choice((Elements(Sealed(OF_ID)),), ())),
        (list[Annotated[str, OF_ID]] | str, Choice((Elements(Sealed(OF_ID)),), (str,))),
        (ClassVar[str], None),
        ("ClassVar[Missing]", None),
        ("InitVar[str]", None),
        (InitVar[str], None),
        (list, None),
        (typing.List, None),  # noqa: UP006 - without an argument
        (typing.Dict, None),  # noqa: UP006
        (Literal["Annotated[str, OF_ID]"], None),
        (Annotated[str, NotPersonal("a product")], None),
        (list[str], None),
        (T, None),
        (Any, None),
    ],
    ids=str,
)
def test_each_form_of_annotation(hint, shape):
    assert of(hint) == shape


class Base:
    id: int
    email: Annotated[str, OF_ID]
    phone: Annotated[str, OF_ID]


class Inherits(Base):
    phone: Annotated[str, NotPersonal("the shop's own")]
    street: Annotated[str, OF_ID]


def test_annotations_are_inherited_and_withdrawn_by_saying_so():
    assert set(plan_of(Inherits).fields) == {"email", "street"}
    assert set(plan_of(Noted).fields) == {"text"}


def test_a_class_of_generics_and_protocols_is_read():
    class Box(Generic[T]):
        value: T

    class Held(Protocol):
        name: Annotated[str, OF_ID]

    assert not plan_of(Box).fields
    assert plan_of(Held).fields


# --- what is refused ---


def forgotten() -> type[Any]:
    class Sub(Base):
        email: str

    return Sub


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of(Annotated[Annotated[str, OF_ID], PersonalData("other")]), "data more than once"),
        (lambda: of(Annotated[str, OF_ID, NotPersonal("no")]), "both as personal and as not personal"),
        (lambda: of(Annotated[str, PersonalData]), "with its arguments"),
        (lambda: of(Annotated[list[Annotated[str, OF_ID]], OF_ID]), "inside personal data"),
        (lambda: of(Annotated[str, OF_ID] | list[Annotated[int, OF_ID]]), "several kinds"),
        (lambda: of(Annotated[str, OF_ID] | Annotated[int, PersonalData("other")]), "several kinds"),
        (lambda: of(set[Annotated[str, OF_ID]]), "personal data in a set"),
        (lambda: of(frozenset[Name]), "personal data in a frozenset"),
        (lambda: of(dict[Annotated[str, OF_ID], str]), "the keys of a dictionary"),
        (lambda: of(type[Annotated[str, OF_ID]]), "personal data in a type"),
        (lambda: of("Annotated[str, PersonalData(subject=MISSING)]"), "names an attribute"),
        (lambda: of("Gone[str, PersonalData('id')]"), "Gone in its annotation cannot be resolved"),
        (lambda: of("list[Missing.OfPersonal]"), "Missing in its annotation cannot be resolved"),
        (lambda: plan_of(forgotten()), "annotated again"),
        (lambda: PersonalData(subject="not a name"), "names an attribute"),
        (lambda: PersonalData(subject=7), "names an attribute"),
        (lambda: of("Annotated[str, PersonalData('')]"), "names an attribute"),
        (lambda: NotPersonal(" "), "needs a reason"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_cannot_be_carried_out_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_subject_is_no_personal_data_itself():
    @dataclass
    class Loop:
        email: Annotated[str, PersonalData(subject="email")]

    with pytest.raises(ConfigurationError, match="its subject, 'email', is personal data too"):
        plan_of(Loop)


class Unchecked(Protocol):
    """Nobody can tell at run time what is one."""


class OfMask:
    """Its annotation is text, and names what is imported for type checkers only."""

    good: Annotated[nowhere.Odd, PersonalData("id", mask=7)]
    date: Annotated[date | None, PersonalData("id", mask=None)]


class OfWrongMask:
    date: Annotated[date, PersonalData("id", mask="1815-12-10")]


@pytest.mark.parametrize(
    ("hint", "mask"),
    [
        (str, 0),
        (str, None),
        (int, "0"),
        (int, True),
        (float, False),
        (str | None, 0),
        (list[str], ["a", 1]),
        (list[str], ()),
        (dict[str, int], {"a": "b"}),
        (tuple[str, int], ("a",)),
        (tuple[int, ...], ("a",)),
        (Literal["a"], "b"),
        (bytes, ""),
        (Plain, 7),
        (Annotated[str, "a note"], 7),
    ],
    ids=str,
)
def test_a_mask_of_another_type_is_refused(hint, mask):
    with pytest.raises(ConfigurationError, match="which its type does not allow"):
        of(Annotated[hint, PersonalData("id", mask)])


@pytest.mark.parametrize(
    ("hint", "mask"),
    [
        (str, ""),
        (str | None, None),
        (int, -1),
        (float, 0),
        (float, 0.5),
        (list[str], []),
        (list[str], ["a"]),
        (dict[str, int], {"a": 1}),
        (tuple[str, int], ("a", 1)),
        (tuple[int, ...], (1, 2)),
        (set[str], {"a"}),
        (Literal["a", "b"], "b"),
        (Plain, "a"),
        (Any, object),
        (T, 7),
        (Sequence[str], ["a"]),
        (Unchecked, 7),
    ],
    ids=str,
)
def test_a_mask_of_the_fields_type_is_taken(hint, mask):
    assert of(Annotated[hint, PersonalData("id", mask)]).data.mask is mask


def test_masks_are_checked_against_types_that_are_text():
    assert plan_of(OfMask).fields["good"].data.mask == 7
    with pytest.raises(ConfigurationError, match="which its type does not allow"):
        plan_of(OfWrongMask)


# --- masks in shapes ---


@pytest.mark.parametrize(("mask", "value"), [(0, False), (1, True), (0, 0.0), ("", b"")], ids=repr)
def test_a_value_of_another_type_is_not_the_mask(mask, value):
    assert PersonalData("id", mask).masks(mask)
    assert not PersonalData("id", mask).masks(value)
    assert not PersonalData("id").masks(None)


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        (Sealed(PersonalData("id", "-")), Masked("s", "f"), "-"),
        (Sealed(PersonalData("id", "-")), "data", "data"),
        (Sealed(PersonalData("id")), Masked("s", "f"), Masked("s", "f")),
        (Elements(Sealed(PersonalData("id", "-"))), ["a", Masked("s", "f")], ["a", "-"]),
        (Elements(Sealed(PersonalData("id", "-"))), (Masked("s", "f"),), ("-",)),
        (Elements(Sealed(PersonalData("id", "-"))), "older", "older"),
        (Values(Sealed(PersonalData("id", "-"))), {"a": Masked("s", "f")}, {"a": "-"}),
        (Positions((None, Sealed(PersonalData("id", "-")))), ("a", Masked("s", "f")), ("a", "-")),
        (Choice((Elements(Sealed(PersonalData("id", "-"))),), ()), [Masked("s", "f")], ["-"]),
        (Choice((Elements(Sealed(PersonalData("id", "-"))),), ()), "older", "older"),
        (Choice((Elements(Sealed(PersonalData("id", "-"))),), (str,)), None, None),
    ],
    ids=str,
)
def test_masks_go_where_something_was_erased(shape, value, expected):
    assert with_masks(shape, value) == expected


def test_a_module_without_source_is_read_as_far_as_it_can_be():
    module = types.ModuleType("made_at_run_time")
    module.__dict__["Annotated"], module.__dict__["OF_ID"] = Annotated, OF_ID
    sys.modules[module.__name__] = module
    try:
        cls = type(
            "Made",
            (),
            {"__module__": module.__name__, "__annotations__": {"a": "Gone", "b": "Annotated[str, OF_ID]"}},
        )
        with pytest.raises(ConfigurationError, match="Gone in its annotation cannot be resolved"):
            plan_of(cls)
        del cls.__annotations__["a"]
        assert set(plan_of(cls).fields) == {"b"}
    finally:
        del sys.modules[module.__name__]

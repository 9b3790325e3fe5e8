"""A marker of personal data is honoured or refused in every form of annotation, and never ignored."""

import functools
import sys
import textwrap
import types
from collections import deque
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import (
    Annotated,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    ParamSpec,
    Protocol,
    Required,
    TypeVar,
)

import pytest
import typing_extensions
from typing_extensions import ReadOnly, TypeAliasType, TypedDict, Unpack

from eventseal.errors import ConfigurationError
from eventseal.eventstore import DomainEvent
from eventseal.items import JSONTranscoder, NotPersonal, PersonalData, SequencedItemMapper, register_topic
from eventseal.items.markers import Elements, Positions, Sealed, Values
from eventseal.items.personal import plan_of

OF_ID = PersonalData(subject="id")
Marked = Annotated[str, OF_ID]
T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")
Bound = TypeVar("Bound", bound=Marked)
Constrained = TypeVar("Constrained", int, Marked)
Defaulted = typing_extensions.TypeVar("Defaulted", default=Marked)
Email = TypeAliasType("Email", Marked)
Emails = TypeAliasType("Emails", list[Email])
Many = TypeAliasType("Many", list[T], type_params=(T,))
Swapped = TypeAliasType("Swapped", dict[U, T], type_params=(T, U))
Itself = TypeAliasType("Itself", T, type_params=(T,))
Phantom = TypeAliasType("Phantom", str, type_params=(T,))
Text = TypeAliasType("Text", "Marked")
Nested = TypeAliasType("Nested", Many[Many[T]], type_params=(T,))
Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | str")
Tree = TypeAliasType("Tree", "list[Tree] | list[Marked]")
Hidden = TypeAliasType("Hidden", "list[Hidden[Marked]] | int", type_params=(T,))
Mail = NewType("Mail", "Email")
Plainly = TypeAliasType("Plainly", Annotated[str, NotPersonal("of the shop")])


class Typed(TypedDict):
    email: Required[Marked]


class Partly(TypedDict, total=False):
    email: NotRequired[ReadOnly[Marked]]


class Pair(NamedTuple):
    first: str
    email: Marked


class Holder:
    email: Marked


class Deeply:
    inner: "list[Holder]"


class Says(Protocol):
    email: Marked


class Takes:
    def __init__(self, email: Marked) -> None:
        self.value = email


@dataclass
class Box(Generic[T]):
    value: T


def of(hint: Any) -> Any:
    """The shape of one annotation."""
    cls = type("Made", (), {"__annotations__": {"field": hint}, "__module__": __name__})
    return plan_of(cls).fields.get("field")


@pytest.mark.parametrize(
    ("hint", "shape"),
    [
        (Email, Sealed(OF_ID)),
        ("Email", Sealed(OF_ID)),
        (Text, Sealed(OF_ID)),
        (Mail, Sealed(OF_ID)),
        (list[Email], Elements(Sealed(OF_ID))),
        (Emails, Elements(Sealed(OF_ID))),
        (Optional[Email], Sealed(OF_ID)),  # noqa: UP045 - both forms
        (Email | None, Sealed(OF_ID)),
        (Many[Marked], Elements(Sealed(OF_ID))),
        (Many["Marked"], Elements(Sealed(OF_ID))),
        (Nested[Email], Elements(Elements(Sealed(OF_ID)))),
        (Swapped[Email, str], Values(Sealed(OF_ID))),
        (Itself[Email], Sealed(OF_ID)),
        (tuple[str, Email], Positions((None, Sealed(OF_ID)))),
        (dict[str, Email], Values(Sealed(OF_ID))),
        ("Annotated[tuple[Local, Marked], NotPersonal('why')]", Positions((None, Sealed(OF_ID)))),
    ],
    ids=str,
)
def test_aliases_and_their_arguments_are_followed(hint, shape):
    assert of(hint) == shape


@pytest.mark.parametrize(
    "hint", [Json, Many[str], Phantom[str], Swapped[str, int], T, Box[int], "Json", Plainly,
             Callable[[int], str], Callable[P, int], "Box[T]", "list[Box[T]]",
             tuple[int, *tuple[str, ...]], type[int], tuple, "an e-mail address", Deeply],
    ids=str,
)  # fmt: skip
def test_what_holds_none_is_plain(hint):
    assert of(hint) is None


REFUSED = {
    "recursive": Tree,
    "recursive argument": Hidden[int],
    "phantom": Phantom[Marked],
    "dict keys of an alias": Swapped[str, Email],
    "set of an alias": set[Email],
    "typed dictionary": Typed,
    "typed dictionary in a list": list[Typed],
    "partial typed dictionary": Partly,
    "named tuple": Pair,
    "plain class": Holder,
    "protocol": Says,
    "constructor of a class": Takes,
    "text": "Holder",
    "union": Holder | None,
    "bound": Bound,
    "constraint": list[Constrained],
    "default": Defaulted,
    "generic dataclass": Box[Email],
    "required": Required[Marked],
    "not required": NotRequired[Marked],
    "read only": ReadOnly[Marked],
    "unpacked": tuple[int, Unpack[tuple[Marked, ...]]],  # noqa: UP044 - this form too
    "unpacked beside": tuple[Marked, Unpack[tuple[int, ...]]],  # noqa: UP044
    "starred": tuple[(int, *tuple[Marked, ...])],
    "parameters": Callable[[Marked], int],
    "parameters deeply": Callable[[int, list[Email]], int],
    "result": Callable[[int], Marked],
    "concatenated": Callable[Concatenate[Marked, P], int],
    "type": type[Email],
    "deque": deque[Email],
    "class variable": ClassVar[Marked],
    "class variable as text": "ClassVar[Email]",
    "init variable": InitVar[Marked],
    "init variable as text": "InitVar[list[Email]]",
    "bare marker": OF_ID,
    "marker as the type": PersonalData,
    "unknown": "Local",
    "unknown inside": "list[Local]",
    "unknown metadata": "Annotated[str, Local('id')]",
}


@pytest.mark.parametrize("hint", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_sealed_is_refused_with_a_remedy(hint):
    with pytest.raises(ConfigurationError) as caught:
        of(hint)
    assert caught.value.remedy


def test_a_mask_is_checked_against_the_type_behind_an_alias():
    text = TypeAliasType("text", Many[str])
    assert of(Annotated[text, PersonalData("id", mask=[])]).data.mask == []
    with pytest.raises(ConfigurationError, match="which its type does not allow"):
        of(Annotated[text, PersonalData("id", mask=[1])])


# --- where else than in a class's body ---


def in_init():
    class Event(DomainEvent):
        def __init__(self, *, email: Marked, **rest: Any) -> None:
            super().__init__(email=email, **rest)

    return Event


def in_keywords():
    class Event(DomainEvent):
        def __init__(self, **rest: Unpack[Typed]) -> None:
            super().__init__(**rest)

    return Event


def in_new():
    class Event:
        def __new__(cls, email: "Marked"):
            return object.__new__(cls)

    return Event


def in_post_init():
    @dataclass
    class Event:
        raw: InitVar[str]

        def __post_init__(self, raw: Marked) -> None:
            self.email = raw

    return Event


def in_property():
    class Event(DomainEvent):
        @property
        def email(self) -> Marked:
            return "x"

    return Event


def in_setter():
    class Event(DomainEvent):
        @property
        def email(self) -> str:
            return "x"

        @email.setter
        def email(self, value: Marked) -> None:
            self.__dict__["email"] = value

    return Event


def in_cached_property():
    class Event(DomainEvent):
        @functools.cached_property
        def email(self) -> "Email":
            return "x"

    return Event


def in_method():
    class Event:
        def __init__(self, email: str) -> None:
            self.email: Annotated[str, OF_ID] = email

    return Event


def in_method_of_a_base():
    class Base:
        def name(self, value):
            if value:
                self.email: Email = value

    class Event(Base):
        pass

    return Event


def in_generic_base():
    class Event(Box[Email]):
        pass

    return Event


def in_metadata():
    @dataclass
    class Event:
        email: str = field(metadata={"personal": OF_ID})

    return Event


def in_subject_of_another():
    class Event(DomainEvent):
        email: Annotated[str, PersonalData("other")]

        def __init__(self, *, email: Marked, **rest: Any) -> None:
            super().__init__(email=email, **rest)

    return Event


ELSEWHERE = [in_init, in_keywords, in_new, in_post_init, in_property, in_setter, in_cached_property,
             in_method, in_method_of_a_base, in_generic_base, in_metadata, in_subject_of_another]  # fmt: skip


@pytest.mark.parametrize("make", ELSEWHERE, ids=lambda make: make.__name__)
def test_a_marker_outside_of_the_body_is_refused(make):
    with pytest.raises(ConfigurationError) as caught:
        plan_of(make())
    assert caught.value.remedy


class Repeats(DomainEvent):
    email: Marked
    _phone: Marked

    def __init__(self, *, email: Marked, phone: Email, **rest: Any) -> None:
        super().__init__(email=email, _phone=phone, **rest)
        self.size: int = 1

    @property
    def phone(self) -> Marked:
        return self._phone


def test_a_marker_outside_of_the_body_that_the_body_repeats_is_fine():
    assert plan_of(Repeats).fields == {"email": Sealed(OF_ID), "_phone": Sealed(OF_ID)}


def test_a_field_named_as_its_type_is_of_that_type(monkeypatch):
    module = types.ModuleType("lower_case_aliases")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(email=Marked, dataclass=dataclass)
    text = """
        from __future__ import annotations
        @dataclass(slots=True)
        class Slotted:
            email: email
        class Defaulted:
            email: email = ""
        """
    exec(textwrap.dedent(text), vars(module))  # noqa: S102 - a module of its own
    assert set(plan_of(module.Slotted).fields) == {"email"}
    assert set(plan_of(module.Defaulted).fields) == {"email"}


def test_a_text_that_means_two_things_is_refused(monkeypatch):
    module = types.ModuleType("module_of_an_alias")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(Marked=str, TypeAliasType=TypeAliasType)
    exec("Alias = TypeAliasType('Alias', list['Marked'])", vars(module))  # noqa: S102 - a module of its own
    alias = module.Alias
    with pytest.raises(ConfigurationError, match="Marked in its annotation cannot be resolved"):
        of(alias)


# --- objects that are found at run time ---


class Registered(DomainEvent):
    anything: Any


register_topic("tests.annotation_forms:Registered", Registered)


def test_a_generic_object_made_with_a_marker_is_refused():
    register_topic("tests.annotation_forms:Box", Box)
    mapper = SequencedItemMapper()
    held = Registered(originator_id="a", originator_version=0, anything=Box[Email]("ann@example.org"))
    with pytest.raises(ConfigurationError, match="personal data in its arguments"):
        mapper.to_sequenced_item(held)
    plain = Registered(originator_id="a", originator_version=0, anything=Box[str]("text"))
    assert mapper.from_sequenced_item(mapper.to_sequenced_item(plain)) == plain


@pytest.mark.parametrize("cls", [Pair, Holder, Deeply, Takes], ids=lambda cls: cls.__name__)
def test_an_encoding_of_ones_own_for_a_type_that_holds_personal_data_is_refused(cls):
    with pytest.raises(ConfigurationError, match="would write it as plaintext"):
        JSONTranscoder().register(cls, "own", lambda value: "", lambda value: None)


def test_an_encoding_that_was_registered_before_its_types_were_known_is_refused_when_it_is_used(monkeypatch):
    class Early:
        email: "NotYet"  # noqa: F821 - it comes later

    transcoder = JSONTranscoder()
    transcoder.register(Early, "early", lambda value: value.email, lambda value: None)
    monkeypatch.setitem(globals(), "NotYet", Marked)
    early = Early()
    early.email = "ann@example.org"
    with pytest.raises(ConfigurationError, match="would write it as plaintext"):
        transcoder.encode(early)


# --- newer releases of Python ---


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement is of Python 3.12")
def test_the_type_statement_and_type_parameters(monkeypatch):
    module = types.ModuleType("type_statements")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(Annotated=Annotated, OF_ID=OF_ID, dataclass=dataclass)
    text = """
        type Email = Annotated[str, OF_ID]
        type Many[T] = list[T]
        type Tree = list[Tree] | Email
        type Later = Undefined
        type Spiral[T] = list[Spiral[list[T]]] | int
        @dataclass
        class BadSpiral:
            spiral: Spiral[int]
        @dataclass
        class Good:
            one: Email
            many: Many[Email]
            text: "Many[Email]"
        @dataclass
        class Holder[T]:
            value: "T"
        @dataclass
        class BadTree:
            tree: Tree
        @dataclass
        class BadLater:
            later: Later
        @dataclass
        class BadBound[B: Email]:
            value: B
        @dataclass
        class BadUnused[B: Email]:
            value: int
        @dataclass
        class BadBase(Holder[Email]):
            pass
        """
    exec(textwrap.dedent(text), vars(module))  # noqa: S102 - a module of its own
    assert plan_of(module.Good).fields == {
        "one": Sealed(OF_ID), "many": Elements(Sealed(OF_ID)), "text": Elements(Sealed(OF_ID)),
    }  # fmt: skip
    assert not plan_of(module.Holder).fields
    for name in ("BadTree", "BadSpiral", "BadLater", "BadBound", "BadUnused", "BadBase"):
        with pytest.raises(ConfigurationError):
            plan_of(getattr(module, name))


def test_a_class_in_a_function_is_read_as_far_as_python_keeps_its_annotations():
    Local = Annotated[str, OF_ID]  # noqa: N806 - a type

    @dataclass
    class Event:
        email: Local
        later: "Local | None" = None

    with pytest.raises(ConfigurationError, match="Local in its annotation cannot be resolved"):
        plan_of(Event)

    @dataclass
    class Lazy:
        email: Local

    assert plan_of(Lazy).fields == {"email": Sealed(OF_ID)}

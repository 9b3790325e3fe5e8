"""Which attributes of a class hold personal data, and whose: what its annotations say."""

from __future__ import annotations

import collections.abc
import types
from copy import deepcopy
from dataclasses import InitVar, dataclass, field
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
    Union,
    get_args,
    get_origin,
)

from eventseal.errors import ConfigurationError
from eventseal.items.annotations import Annotation, annotations_of
from eventseal.items.masks import Masked
from eventseal.items.type_checks import conforms


class _NoMask:
    def __repr__(self) -> str:
        return "<no mask>"


NO_MASK: Final = _NoMask()


@dataclass(frozen=True, slots=True, eq=False)
class PersonalData:
    """
    Says in an annotation that an attribute holds personal data.

    ::

        email: Annotated[str, PersonalData(subject="customer_id")]

    Args:
        subject: The attribute that says whose they are, by a string, an integer or a UUID: one of the same
            object, or else of the nearest object around it that has it.
        mask: What stands in its place after the subject was erased, of the attribute's own type; if not
            given, a value that is falsy and equal to itself alone. A value that is equal to the mask is
            stored as the mask.

    Raises:
        ConfigurationError: *subject* is no attribute's name.
    """

    subject: str
    mask: Any = NO_MASK

    def __post_init__(self) -> None:
        subject: Any = self.subject
        if not isinstance(subject, str) or not subject.isidentifier():
            raise ConfigurationError(f"PersonalData(subject=) names an attribute; {subject!r} does not")

    def masks(self, value: object) -> bool:
        """Whether *value* is the mask, and nobody's data."""
        return self.mask is not NO_MASK and type(value) is type(self.mask) and bool(value == self.mask)


@dataclass(frozen=True, slots=True, eq=False)
class NotPersonal:
    """
    Says in an annotation that an attribute holds no personal data, although its name suggests it.

    Args:
        reason: Why; ``eventseal fields`` lists it.

    Raises:
        ConfigurationError: No reason is given.
    """

    reason: str

    def __post_init__(self) -> None:
        reason: Any = self.reason
        if not isinstance(reason, str) or not reason.strip():
            raise ConfigurationError("NotPersonal() needs a reason")


class Sealed(NamedTuple):
    """The value is personal data."""

    data: PersonalData


class Elements(NamedTuple):
    """The elements of the list, or of the tuple, hold personal data."""

    inner: Shape


class Positions(NamedTuple):
    """Some elements of the tuple do, by position."""

    inner: tuple[Shape | None, ...]


class Values(NamedTuple):
    """The values of the dictionary do."""

    inner: Shape


class Choice(NamedTuple):
    """The value is of one of several types, some of which do."""

    among: tuple[Shape, ...]
    may_be_plain: bool


Shape: TypeAlias = "Sealed | Elements | Positions | Values | Choice"


@dataclass(frozen=True, slots=True)
class Plan:
    """
    The personal data of a class.

    Attributes:
        fields: Where they are, by attribute.
        has_masks: Whether an attribute has a mask of its own.
    """

    fields: dict[str, Shape] = field(default_factory=dict)
    has_masks: bool = False

    def masked(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Put the masks of the class where something was erased, and give *attributes* back."""
        if self.has_masks:
            for name, shape in self.fields.items():
                if name in attributes:
                    attributes[name] = with_masks(shape, attributes[name])
        return attributes


_plans: dict[type[Any], Plan] = {}


def plan_of(cls: type[Any]) -> Plan:
    """
    Say where the objects of *cls* hold personal data.

    Raises:
        ConfigurationError: Its annotations contradict themselves, or cannot be carried out.
    """
    plan = _plans.get(cls)
    if plan is None:
        plan = _plans[cls] = read_plan(cls)
    return plan


def read_plan(cls: type[Any]) -> Plan:
    """Say the same, without remembering it: for a class whose module is still being imported."""
    fields: dict[str, Shape] = {}
    for name, annotation in annotations_of(cls):
        where = f"{annotation.owner.__module__}:{annotation.owner.__qualname__}.{name}"
        shape = _Reader(annotation, where).shape(annotation.hint)
        if shape is None and annotation.unknown and "Personal" in annotation.text:
            raise ConfigurationError(
                f"{where}: {', '.join(annotation.unknown)} in its annotation cannot be resolved, "
                "so nobody can tell which personal data it holds",
                remedy="Import the names at run time, at the top of the module.",
            )
        if shape is not None:
            fields[name] = shape
        elif name in fields and not _is_excepted(annotation):
            raise ConfigurationError(
                f"{where} is annotated anew, without the personal data that a base class says it holds",
                remedy="Repeat PersonalData in the annotation, or say NotPersonal.",
            )
        else:
            fields.pop(name, None)
    for name, shape in fields.items():
        for data in personal_data_in(shape):
            if data.subject in fields:
                raise ConfigurationError(
                    f"{cls.__module__}:{cls.__qualname__}.{name}: its subject, {data.subject!r}, is personal "
                    "data itself, so nobody could read whose they are after an erasure",
                    remedy="Name the subject by an id that says nothing by itself.",
                )
    has_masks = any(data.mask is not NO_MASK for shape in fields.values() for data in personal_data_in(shape))
    return Plan(fields, has_masks)


def personal_data_in(shape: Shape) -> list[PersonalData]:
    """List what a shape says of personal data."""
    if isinstance(shape, Sealed):
        return [shape.data]
    if isinstance(shape, Elements | Values):
        return personal_data_in(shape.inner)
    inner = shape.among if isinstance(shape, Choice) else shape.inner
    return [data for one in inner if one is not None for data in personal_data_in(one)]


def chosen(shape: Choice, value: object) -> Shape | None:
    """
    Choose the shape that fits a value; ``None`` if it is of a type that holds no personal data.

    Raises:
        TypeError: It is of none of the types.
    """
    for one in shape.among:
        if fits(one, value):
            return one
    if value is None or shape.may_be_plain:
        return None
    raise TypeError


def fits(shape: Shape, value: object) -> bool:
    """Whether *value* is of the type that the shape was made from."""
    if isinstance(shape, Elements):
        return type(value) in {list, tuple}
    if isinstance(shape, Positions):
        return type(value) is tuple and len(value) == len(shape.inner)
    if isinstance(shape, Values):
        return type(value) is dict
    return True


def with_masks(shape: Shape, value: Any) -> Any:
    """Put the shape's masks where something was erased."""
    if isinstance(shape, Sealed):
        erased = type(value) is Masked and shape.data.mask is not NO_MASK
        return deepcopy(shape.data.mask) if erased else value
    if isinstance(shape, Choice):
        try:
            one = chosen(shape, value)
        except TypeError:  # of an event from before the annotation
            return value
        return value if one is None else with_masks(one, value)
    if not fits(shape, value):
        return value
    if isinstance(shape, Values):
        return {key: with_masks(shape.inner, inner) for key, inner in value.items()}
    if isinstance(shape, Elements):
        return type(value)([with_masks(shape.inner, inner) for inner in value])
    return tuple(
        inner if one is None else with_masks(one, inner)
        for one, inner in zip(shape.inner, value, strict=True)
    )


_LISTS = {list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Iterable,
          collections.abc.Collection}  # fmt: skip
_DICTIONARIES = {dict, collections.abc.Mapping, collections.abc.MutableMapping}


class _Reader:
    """Reads one annotation."""

    def __init__(self, annotation: Annotation, where: str) -> None:
        self._annotation = annotation
        self._where = where

    def shape(self, hint: Any) -> Shape | None:
        """Say where a value of this type holds personal data; ``None``: nowhere."""
        hint = self._annotation.resolved(hint)
        hint = getattr(hint, "__supertype__", hint)  # of a NewType
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (ClassVar, Literal) or isinstance(hint, InitVar):
            return None  # no attribute of an object, or no types in it
        if origin is Annotated:
            return self._annotated(hint)
        if origin is Final:
            return self.shape(arguments[0])
        if origin in (Union, types.UnionType):
            return self._choice(arguments)
        if origin is tuple and Ellipsis not in arguments:
            return self._positions(arguments)
        if origin is tuple or origin in _LISTS:
            inner = self.shape(arguments[0])
            return None if inner is None else Elements(inner)
        if origin in _DICTIONARIES:
            self._refuse_inside(arguments[:1], "the keys of a dictionary")
            inner = self.shape(arguments[1])
            return None if inner is None else Values(inner)
        self._refuse_inside(arguments, f"a {getattr(origin, '__name__', origin)}")
        return None

    def _annotated(self, hint: Any) -> Shape | None:
        inner, metadata = hint.__origin__, hint.__metadata__
        named = [one for one in metadata if one is PersonalData or one is NotPersonal]
        if named:
            raise ConfigurationError(f"{self._where}: {named[0].__name__} is written with its arguments")
        said = [one for one in metadata if isinstance(one, PersonalData)]
        if not said:
            return self.shape(inner)
        if len(said) > 1 or any(isinstance(one, NotPersonal) for one in metadata):
            raise ConfigurationError(
                f"{self._where} is annotated as personal data more than once, or is and is not"
            )
        if self.shape(inner) is not None:
            raise ConfigurationError(
                f"{self._where}: there is personal data inside of personal data",
                remedy="Annotate the whole, or its parts; a value is sealed under one subject's key.",
            )
        data = said[0]
        if data.mask is not NO_MASK and not conforms(data.mask, inner, self._annotation.resolved):
            raise ConfigurationError(
                f"{self._where}: its mask is a {type(data.mask).__name__}, which its type does not allow"
            )
        return Sealed(data)

    def _choice(self, arguments: tuple[Any, ...]) -> Shape | None:
        shapes = [self.shape(argument) for argument in arguments]
        among = tuple(shape for shape in shapes if shape is not None)
        sealed = [shape for shape in among if isinstance(shape, Sealed)]
        if not among or (sealed and len(among) == 1):
            # Sealed whatever it is: also None, or whether there is any would show.
            return sealed[0] if sealed else None
        if sealed:
            raise ConfigurationError(
                f"{self._where} is personal data of several kinds",
                remedy="Annotate the whole union: Annotated[A | B, PersonalData(...)].",
            )
        plain = [argument for argument, shape in zip(arguments, shapes, strict=True) if shape is None]
        return Choice(among, may_be_plain=any(argument is not type(None) for argument in plain))

    def _positions(self, arguments: tuple[Any, ...]) -> Shape | None:
        inner = tuple(self.shape(argument) for argument in arguments)
        return None if all(one is None for one in inner) else Positions(inner)

    def _refuse_inside(self, arguments: tuple[Any, ...], what: str) -> None:
        if any(self.shape(one) is not None for one in arguments):
            raise ConfigurationError(
                f"{self._where}: personal data in {what} cannot be sealed one by one",
                remedy="Annotate the whole attribute, or use a list.",
            )


def _is_excepted(annotation: Annotation) -> bool:
    hint = annotation.hint
    return get_origin(hint) is Annotated and any(isinstance(one, NotPersonal) for one in hint.__metadata__)

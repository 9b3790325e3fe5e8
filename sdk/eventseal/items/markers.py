"""Markers of personal data in annotations, and their places in a value."""

from __future__ import annotations

import types
from copy import deepcopy
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    NewType,
    Self,
    TypeAlias,
    Union,
    get_args,
    get_origin,
)

from eventseal.errors import ConfigurationError
from eventseal.items.annotations import Unresolved, alias_of, alias_value

if TYPE_CHECKING:
    from collections.abc import Callable


def conforms(value: object, hint: Any, resolved: Callable[[Any], Any]) -> bool:
    """
    Return whether *value* is of the type that *hint* names.

    Args:
        value: Any value.
        hint: An annotation, or a part of one.
        resolved: Returns an object for a part that is text.

    Returns:
        Whether it is. It is ``True`` if that cannot be known, for example for a protocol.
    """
    hint = resolved(hint)
    if isinstance(hint, NewType):
        return conforms(value, hint.__supertype__, resolved)
    alias = alias_of(hint)
    if alias is not None:
        return conforms(value, alias_value(alias, hint)[0], resolved)
    if hint is None:
        hint = type(None)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return conforms(value, arguments[0], resolved)
    if origin in (Union, types.UnionType):
        return any(conforms(value, argument, resolved) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is not None:
        return _is_instance(value, origin) and _elements_conform(value, origin, arguments, resolved)
    return _is_instance(value, hint)


def _is_instance(value: object, cls: Any) -> bool:
    if not isinstance(cls, type) or isinstance(cls, Unresolved):
        return True
    if isinstance(value, bool) and cls in (int, float):
        return False
    if cls is float and isinstance(value, int):
        return True
    try:
        return isinstance(value, cls)
    except TypeError:  # a protocol without checks at run time
        return True


def _elements_conform(
    value: Any, origin: Any, arguments: tuple[Any, ...], resolved: Callable[[Any], Any]
) -> bool:
    if isinstance(value, dict) and arguments:
        keys, values = arguments
        return all(
            conforms(key, keys, resolved) and conforms(one, values, resolved) for key, one in value.items()
        )
    if origin is tuple and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(
            conforms(one, argument, resolved) for one, argument in zip(value, arguments, strict=True)
        )
    if isinstance(value, list | tuple | set | frozenset) and arguments:
        return all(conforms(one, arguments[0], resolved) for one in value)
    return True


class _NoMask:
    def __repr__(self) -> str:
        return "<no mask>"


NO_MASK: Final = _NoMask()


@dataclass(frozen=True, slots=True, eq=False)
class PersonalData:
    """
    Marks an attribute as personal data, in its annotation.

    ::

        email: Annotated[str, PersonalData(subject="customer_id")]

    Args:
        subject: The attribute that names the person, by a string, an integer or a UUID. It belongs to the
            same object, or otherwise to the nearest object around it that has it.
        mask: The value that replaces the data after the subject was erased. It has the attribute's type. By
            default it is a falsy value that equals only itself. A value that equals the mask is stored as the
            mask.

    Raises:
        ConfigurationError: *subject* is not the name of an attribute.
    """

    subject: str
    mask: Any = NO_MASK

    def __post_init__(self) -> None:
        subject: Any = self.subject
        if not isinstance(subject, str) or not subject.isidentifier():
            raise ConfigurationError(
                f"PersonalData(subject=) names an attribute, but {subject!r} is not a name"
            )

    def masks(self, value: object) -> bool:
        """Return whether *value* is the mask, and not someone's data."""
        return self.mask is not NO_MASK and type(value) is type(self.mask) and bool(value == self.mask)


@dataclass(frozen=True, slots=True, eq=False)
class NotPersonal:
    """
    Marks an attribute as not personal, although its name suggests it.

    Args:
        reason: The reason. ``eventseal fields`` lists it.

    Raises:
        ConfigurationError: The reason is missing.
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
    """Some elements of the tuple hold personal data, by position."""

    inner: tuple[Shape | None, ...]


class Values(NamedTuple):
    """The values of the dictionary hold personal data."""

    inner: Shape


class Choice(NamedTuple):
    """
    The value is of one of several types, some with personal data.

    Attributes:
        among: The shapes of these types.
        plain: The other types. ``None`` is always allowed.
    """

    among: tuple[Shape, ...]
    plain: tuple[Any, ...]


Shape: TypeAlias = "Sealed | Elements | Positions | Values | Choice"


def personal_data_in(shape: Shape) -> list[PersonalData]:
    """List the markers in a shape."""
    if isinstance(shape, Sealed):
        return [shape.data]
    if isinstance(shape, Elements | Values):
        return personal_data_in(shape.inner)
    inner = shape.among if isinstance(shape, Choice) else shape.inner
    return [data for one in inner if one is not None for data in personal_data_in(one)]


def meanings(shape: Shape | None) -> list[tuple[str, Any]]:
    """List, for each marker, the parts that equal markers share."""
    return [] if shape is None else [(data.subject, data.mask) for data in personal_data_in(shape)]


def chosen(shape: Choice, value: object) -> Shape | None:
    """
    Return the shape that fits a value, or ``None`` without personal data.

    Raises:
        TypeError: The value is of none of the types.
    """
    for one in shape.among:
        if fits(one, value):
            return one
    values = [value, int(value)] if type(value) is bool else [value]  # it may be used where a number may
    if value is None or any(conforms(one, hint, lambda part: part) for one in values for hint in shape.plain):
        return None
    raise TypeError


def overlap(one: Shape, other: Shape) -> bool:
    """Return whether a value may fit both shapes, which seal it differently."""
    if isinstance(one, Values) or isinstance(other, Values):
        fit_both = type(one) is type(other)
    else:
        lengths = {len(shape.inner) for shape in (one, other) if isinstance(shape, Positions)}
        fit_both = len(lengths) < 2  # noqa: PLR2004 - two tuples of different lengths
    if fit_both and (seals_all(one) or seals_all(other)):  # and that one comes first
        first, *rest = (*meanings(one), *meanings(other))
        return any(meaning != first for meaning in rest)
    return fit_both and _content(one) != _content(other)


def seals_all(shape: Shape) -> bool:
    """Return whether a shape seals each element of a list or tuple."""
    return isinstance(shape, Elements) and isinstance(shape.inner, Sealed)


def _content(shape: Shape | None) -> Any:
    """Return the parts that two shapes share if they seal the same."""
    if isinstance(shape, Sealed):
        return meanings(shape)
    if isinstance(shape, Elements | Values):
        return type(shape), _content(shape.inner)
    if isinstance(shape, Positions):
        return tuple(map(_content, shape.inner))
    return None if shape is None else (*map(_content, shape.among), *shape.plain)


def fits(shape: Shape, value: object) -> bool:
    """Return whether *value* is of the shape's type."""
    if isinstance(shape, Elements):
        return type(value) in {list, tuple}
    if isinstance(shape, Positions):
        return type(value) is tuple and len(value) == len(shape.inner)
    if isinstance(shape, Values):
        return type(value) is dict
    return True


def with_masks(shape: Shape, value: Any) -> Any:
    """Put the shape's masks into the places of erased data."""
    if isinstance(shape, Sealed):
        erased = type(value) is Masked and shape.data.mask is not NO_MASK
        return deepcopy(shape.data.mask) if erased else value
    if isinstance(shape, Choice):
        try:
            one = chosen(shape, value)
        except TypeError:  # an event from before the annotation
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


class Masked(str):
    """
    The mask of a personal-data field whose subject was erased.

    To anything that takes strings, such as JSON, it is an empty string, so it is falsy. But it equals no
    string. It equals only itself, which is the mask of the same field of the same subject.

    Attributes:
        scope: The scope of the subject.
        field: The name of the erased attribute.
    """

    __slots__ = ("field", "scope")

    field: str
    scope: str

    def __new__(cls, scope: str, field: str) -> Self:
        """
        Create an empty string that knows its field.

        Args:
            scope: The scope of the subject.
            field: The name of the erased attribute.
        """
        self = super().__new__(cls)
        self.scope = scope
        self.field = field
        return self

    def __eq__(self, other: object) -> bool:
        return type(other) is Masked and (other.scope, other.field) == (self.scope, self.field)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Masked, self.scope, self.field))

    def __repr__(self) -> str:
        return f"<erased {self.field}>"  # without the subject, so that logs do not name it

    def __reduce__(self) -> tuple[type[Masked], tuple[str, str]]:
        return Masked, (self.scope, self.field)

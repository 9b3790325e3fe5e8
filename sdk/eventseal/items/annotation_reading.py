"""Reads an annotation, and honours or refuses each marker of personal data."""

from __future__ import annotations

import collections.abc
import types
from copy import copy
from dataclasses import InitVar
from itertools import combinations, islice
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    NewType,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from eventseal.errors import ConfigurationError
from eventseal.items.annotations import (
    Absent,
    Unresolved,
    UnresolvedAnnotationError,
    alias_of,
    alias_value,
    unresolved,
)
from eventseal.items.markers import (
    NO_MASK,
    Choice,
    Elements,
    NotPersonal,
    PersonalData,
    Positions,
    Sealed,
    Values,
    conforms,
    meanings,
    overlap,
    seals_all,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventseal.items.annotations import Annotation, Names
    from eventseal.items.markers import Shape


_LISTS = {list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Iterable,
          collections.abc.Collection}  # fmt: skip
_DICTIONARIES = {dict, collections.abc.Mapping, collections.abc.MutableMapping}
_PARAMETERS = {"TypeVar", "TypeVarTuple", "ParamSpec"}
_ARGUMENTS = "the arguments of a function or of a generic class"
_RECURSIVE = "an alias that refers to itself"
_DEEPEST, _MOST, _MOST_NESTED = 100, 1000, 10
_UNPACKED = "a tuple with an unpacked part"


_GROUPED = "__is_annotated_types_grouped_metadata__"
_NO_EVALUATION = "Correct the annotation, or write Annotated[..., NotPersonal('why')]."


class NamedClass(NamedTuple):
    """
    A class that an annotation names.

    Attributes:
        cls: The class.
        lenient: Whether an unknown name in its body counts as not personal.
    """

    cls: type[Any]
    lenient: bool


class AnnotationReading(NamedTuple):
    """
    The content of an annotation.

    Attributes:
        shape: The places of personal data in a value, or ``None`` if there are none.
        classes: The classes that the annotation names.
        held: The classes whose objects the value may hold.
        is_complete: Whether all its names are known.
    """

    shape: Shape | None
    classes: tuple[type[Any], ...]
    held: tuple[NamedClass, ...]
    is_complete: bool


def read_annotation(said: Annotation, *, lenient: bool) -> AnnotationReading:
    """
    Read an annotation.

    Args:
        said: The annotation.
        lenient: Whether a part that cannot be read counts as not personal.

    Raises:
        ConfigurationError: The annotation marks personal data where EventSeal cannot seal it.
        UnresolvedAnnotationError: The annotation cannot be read.
    """
    reading = _read(said.hint, said, said.names, lenient=lenient)
    if said.names.is_shadowed:
        outside = said.names.outside()
        other = _read(outside.resolved(said.kept), said, outside, lenient=lenient)
        if meanings(reading.shape) != meanings(other.shape):
            raise ConfigurationError(
                f"{said.where}: a name in its annotation is personal data outside of the class, but another "
                "member of the class has the same name",
                remedy="Rename the member.",
            )
    return reading


def _read(hint: Any, said: Annotation, names: Names, *, lenient: bool) -> AnnotationReading:
    reader = AnnotationReader(names, said.where, lenient=lenient)
    try:
        shape = reader.shape(hint)
    except ConfigurationError:
        raise
    except Exception as error:  # code of other packages runs here
        if not lenient:
            raise UnresolvedAnnotationError(
                f"{said.where}: its annotation cannot be read: {type(error).__name__}", remedy=_NO_EVALUATION
            ) from error
        return AnnotationReading(None, (), (), is_complete=False)
    return AnnotationReading(shape, tuple(reader.classes), tuple(reader.held), not reader.unknown)


class AnnotationReader:
    """
    Reads one annotation, and collects the classes that it names.

    Args:
        names: Finds the meaning of the names in the annotation.
        where: The annotated place, for the start of messages.
        lenient: Whether an unknown name counts as not personal.
    """

    def __init__(self, names: Names, where: str, *, lenient: bool = False) -> None:
        self._names = names
        self._where = where
        self._lenient = lenient
        self._is_held = True
        self._entered: tuple[Any, ...] = ()
        self._read: list[tuple[Any, Shape | None]] = []
        self._again: list[Any] = []
        self._limited: list[Any] = []
        self.classes: list[type[Any]] = []
        self.held: list[NamedClass] = []
        self.unknown: list[str] = []

    def shape(self, hint: Any) -> Shape | None:
        """
        Return the places of personal data in a value of this type.

        It is ``None`` if there are none.

        Raises:
            ConfigurationError: The type marks personal data where EventSeal cannot seal it.
            UnresolvedAnnotationError: A name is unknown.
        """
        hint = self._names.resolved(hint)
        self._check(hint)
        alias = alias_of(hint)
        if alias is not None:
            return self._alias(alias, hint)
        if isinstance(hint, NewType):
            return self._with(_names=self._names.inside(hint)).shape(hint.__supertype__)
        if type(hint).__name__ in _PARAMETERS:
            self._type_parameter(hint)
            return None
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is None or not arguments:
            self._plain(hint if origin is None else origin)
            return None
        return self._generic(hint, origin, arguments)

    def _generic(self, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> Shape | None:
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
            self.refuse_inside(arguments[:1], "the keys of a dictionary")
            inner = self.shape(arguments[1])
            return None if inner is None else Values(inner)
        if origin is ClassVar:  # a class variable is not an attribute of an object
            self._with(_lenient=True, _is_held=False).refuse_inside(arguments, "a ClassVar")
        elif origin is not Literal:
            self._plain(origin)
            self.refuse_inside(arguments, f"a {getattr(origin, '__name__', origin)}")
        return None

    def _check(self, hint: Any) -> None:
        if isinstance(hint, Unresolved) and not isinstance(hint, Absent):
            self._miss(
                hint.__name__,
                f"{hint.__name__} in its annotation cannot be resolved, so it may hold personal data unseen",
                "Import or define the name at the top of the module, "
                "or write Annotated[..., NotPersonal('why')].",
            )
        if isinstance(hint, PersonalData | NotPersonal) or hint is PersonalData or hint is NotPersonal:
            raise ConfigurationError(
                f"{self._where}: PersonalData or NotPersonal is annotated instead of a type",
                remedy="Write Annotated[str, PersonalData(subject=...)].",
            )

    def _plain(self, hint: Any) -> None:
        """Read a part that is not generic: parameters, an InitVar, a class."""
        if isinstance(hint, list | tuple):
            self.refuse_inside(hint, _ARGUMENTS)
        elif isinstance(hint, InitVar):
            self.refuse_inside((hint.type,), "an InitVar")
        elif isinstance(hint, type):
            self.classes.append(hint)
            if self._is_held:
                self.held.append(NamedClass(hint, self._lenient))

    def _miss(self, name: str, why: str, remedy: str) -> None:
        self.unknown.append(name)
        if not self._lenient:
            raise UnresolvedAnnotationError(f"{self._where}: {why}", remedy=remedy)

    def _alias(self, alias: Any, hint: Any) -> Shape | None:
        if hint in self._entered:
            self._again.append(hint)
            self.refuse_inside(get_args(hint), _RECURSIVE)
            return None
        for known, shape in self._read:
            if known == hint:
                return shape
        # An alias that passes itself new arguments each time never ends. An unreadable part is refused, not
        # ignored, because an overlooked marker would store its data as plaintext (docs/decisions/0028).
        if len(self._entered) > _DEEPEST or len(self._read) > _MOST:
            self._miss(
                alias.__name__, f"{alias.__name__}, which refers to itself, never ends", _NO_EVALUATION
            )
            return None
        value, unused = alias_value(alias, hint)
        self.refuse_inside(unused, _ARGUMENTS)
        inside = self._names.inside(alias)
        shape = self._with(_entered=(*self._entered, hint), _names=inside).shape(value)
        self._read.append((hint, shape))
        if shape is not None and hint in self._again:
            raise ConfigurationError(
                f"{self._where}: personal data in {alias.__name__}, which refers to itself, "
                "cannot be sealed one by one",
                remedy="Annotate the whole attribute.",
            )
        return shape

    def _with(self, **changes: Any) -> AnnotationReader:
        reader = copy(self)  # with the same lists
        vars(reader).update(changes)
        return reader

    def _type_parameter(self, parameter: TypeVar | ParamSpec) -> None:
        if parameter in self._limited:
            return
        self._limited.append(parameter)
        inside = self._with(_names=self._names.inside(parameter))
        inside.refuse_inside(_limits(parameter), "the limits of a type variable")

    def _annotated(self, hint: Any) -> Shape | None:
        inner, metadata = hint.__origin__, hint.__metadata__
        for one in metadata:
            if one is PersonalData or one is NotPersonal:
                raise ConfigurationError(f"{self._where}: write {one.__name__} with its arguments")
            if not isinstance(one, PersonalData) and markers_in(one):
                raise ConfigurationError(
                    f"{self._where}: its PersonalData is inside other metadata",
                    remedy="Write Annotated[str, PersonalData(subject=...)].",
                )
        said = [one for one in metadata if isinstance(one, PersonalData)]
        is_excepted = any(isinstance(one, NotPersonal) for one in metadata)
        if not said:
            if is_excepted:
                return self._with(_lenient=True).shape(inner)
            for one in metadata:
                self._check(one)
            return self.shape(inner)
        if len(said) > 1 or is_excepted:
            raise ConfigurationError(
                f"{self._where} is annotated as personal data more than once, "
                "or both as personal and as not personal"
            )
        # Lenient, because the whole is sealed, with any unknown name in it.
        if self._with(_lenient=True, _is_held=False).shape(inner) is not None:
            raise ConfigurationError(
                f"{self._where}: there is personal data inside personal data",
                remedy="Annotate either the whole or its parts. A value is sealed under one subject's key.",
            )
        data = said[0]
        if data.mask is not NO_MASK and not conforms(data.mask, inner, self._names.resolved):
            raise ConfigurationError(
                f"{self._where}: its mask is a {type(data.mask).__name__}, which its type does not allow"
            )
        return Sealed(data)

    def _choice(self, arguments: tuple[Any, ...]) -> Shape | None:
        shapes = [self.shape(argument) for argument in arguments]
        among = tuple(shape for shape in shapes if shape is not None)
        sealed = [shape for shape in among if isinstance(shape, Sealed)]
        if not among or (sealed and len(among) == 1):
            # None is sealed too. Otherwise an item would show whether there is a value.
            return sealed[0] if sealed else None
        if sealed:
            raise ConfigurationError(
                f"{self._where} is personal data of several kinds",
                remedy="Annotate the whole union: Annotated[A | B, PersonalData(...)].",
            )
        plain = [argument for argument, shape in zip(arguments, shapes, strict=True) if shape is None]
        inner = [shape for shape in among if isinstance(shape, Choice)]
        among = tuple(
            one for shape in among for one in (shape.among if isinstance(shape, Choice) else [shape])
        )
        among = tuple(sorted(among, key=seals_all, reverse=True))
        if any(overlap(one, other) for one, other in combinations(among, 2)):
            raise ConfigurationError(
                f"{self._where}: a value may match several members of the union, which seal it differently",
                remedy="Give the members different types, such as a list and a dictionary, "
                "or annotate the whole union.",
            )
        types_ = [self._names.resolved(argument) for argument in plain if argument is not type(None)]
        return Choice(among, (*types_, *(one for shape in inner for one in shape.plain)))

    def _positions(self, arguments: tuple[Any, ...]) -> Shape | None:
        if any(_is_unpacked(one) for one in arguments):
            self.refuse_inside([get_args(one) if _is_unpacked(one) else one for one in arguments], _UNPACKED)
            return None
        inner = tuple(self.shape(one) for one in arguments)
        return None if all(one is None for one in inner) else Positions(inner)

    def refuse_inside(self, arguments: Iterable[Any], what: str) -> None:
        """
        Refuse personal data in parts of the annotation.

        Args:
            arguments: The parts.
            what: The place that holds the parts, for the message.

        Raises:
            ConfigurationError: A part holds personal data.
        """
        if any([self.shape(one) is not None for one in arguments]):  # noqa: C419 - reads all of them
            raise ConfigurationError(
                f"{self._where}: personal data in {what} cannot be sealed one by one",
                remedy="Annotate the whole attribute, or use a list.",
            )


def _is_unpacked(hint: Any) -> bool:
    return getattr(hint, "__unpacked__", False) or getattr(get_origin(hint), "_name", None) == "Unpack"


def _limits(parameter: Any) -> list[Any]:
    """List the types that a type variable may have."""
    try:
        bound = getattr(parameter, "__bound__", None)
        return [bound, *getattr(parameter, "__constraints__", ()), getattr(parameter, "__default__", None)]
    except Exception:  # noqa: BLE001 - Python evaluates them only now
        return [unresolved(parameter.__name__)]


def markers_in(value: Any, depth: int = 0) -> list[Any]:
    """List the markers in metadata, also a marker class without arguments."""
    if isinstance(value, PersonalData) or value is PersonalData:
        return [value]
    if depth > _MOST_NESTED:
        return []
    inner: Iterable[Any] = ()
    if isinstance(value, collections.abc.Mapping):
        inner = (*value.keys(), *value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif get_origin(value) is Annotated:
        inner = value.__metadata__
    elif getattr(value, _GROUPED, False) is True:
        inner = islice(value, _MOST)
    return [marker for one in inner for marker in markers_in(one, depth + 1)]

"""Reads an annotation. A marker of personal data in it is honoured or refused, never ignored."""

from __future__ import annotations

import collections.abc
import types
from copy import copy
from dataclasses import InitVar, is_dataclass
from enum import Enum
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NewType,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from eventseal.errors import ConfigurationError
from eventseal.items.annotations import (
    Unresolved,
    alias_of,
    alias_value,
    annotations_of,
    unresolved,
)
from eventseal.items.class_members import UNMARKED_PACKAGES, annotations_elsewhere
from eventseal.items.shapes import (
    NO_MASK,
    Choice,
    Elements,
    NotPersonal,
    PersonalData,
    Positions,
    Sealed,
    Values,
)
from eventseal.items.type_checks import conforms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventseal.items.annotations import Annotation, Names
    from eventseal.items.shapes import Shape

_LISTS = {list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Iterable,
          collections.abc.Collection}  # fmt: skip
_DICTIONARIES = {dict, collections.abc.Mapping, collections.abc.MutableMapping}
_PARAMETERS = {"TypeVar", "TypeVarTuple", "ParamSpec"}
_ARGUMENTS = "the arguments of a function or of a generic class"
_RECURSIVE = "an alias that refers to itself"
_DEEPEST = 100
_UNPACKED = "a tuple with an unpacked part"


class UnresolvedAnnotationError(ConfigurationError):
    """A name in an annotation cannot be found."""


class Reader:
    """
    Reads one annotation, and collects the classes that it names.

    Args:
        names: Finds what text in it means.
        where: The annotated place, with which messages begin.
        seen: Classes, aliases and type variables that are being read.
        through_dataclasses: Whether dataclasses in it are read too. It is not needed where their own
            annotations seal their objects.
        lenient: Whether an unknown name counts as not personal.
    """

    def __init__(
        self,
        names: Names,
        where: str,
        seen: tuple[Any, ...] = (),
        *,
        through_dataclasses: bool = False,
        lenient: bool = False,
    ) -> None:
        self._names = names
        self._where = where
        self._seen = seen
        self._through = through_dataclasses
        self._lenient = lenient
        self._again: list[Any] = []
        self.classes: list[type[Any]] = []

    def shape(self, hint: Any) -> Shape | None:
        """
        Say where a value of this type holds personal data; ``None``: nowhere.

        Raises:
            ConfigurationError: It holds some where it cannot be sealed, or a name is unknown.
        """
        hint = self._names.resolved(hint)
        self._check(hint)
        alias = alias_of(hint)
        if alias is not None:
            return self._alias(alias, hint)
        if isinstance(hint, NewType):
            return self._inside(hint, hint.__supertype__, entered=hint)
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
        if origin is ClassVar:  # it is no attribute of an object
            self._reader(hint, self._names, lenient=True).refuse_inside(arguments, "a ClassVar")
        elif origin is not Literal:
            self._plain(origin)
            self.refuse_inside(arguments, f"a {getattr(origin, '__name__', origin)}")
        return None

    def _check(self, hint: Any) -> None:
        if isinstance(hint, Unresolved) and not self._lenient:
            raise UnresolvedAnnotationError(
                f"{self._where}: {hint.__name__} in its annotation cannot be resolved, "
                "so it may hold personal data unseen",
                remedy="Import or define the name at the top of the module, "
                "or write Annotated[..., NotPersonal('why')].",
            )
        if isinstance(hint, PersonalData | NotPersonal) or hint is PersonalData or hint is NotPersonal:
            raise ConfigurationError(
                f"{self._where}: PersonalData or NotPersonal is annotated instead of a type",
                remedy="Write Annotated[str, PersonalData(subject=...)].",
            )

    def _plain(self, hint: Any) -> None:
        """Look into a part that is not generic: a list of parameters, an InitVar, a class."""
        if isinstance(hint, list | tuple):
            self.refuse_inside(hint, _ARGUMENTS)
        elif isinstance(hint, InitVar):
            self.refuse_inside((hint.type,), "an InitVar")
        elif isinstance(hint, type):
            self.classes.append(hint)
            if not is_dataclass(hint) or self._through:
                self._class(hint)

    def _class(self, cls: type[Any]) -> None:
        module = cls.__module__.partition(".")[0]
        if cls in self._seen or issubclass(cls, Enum) or module in UNMARKED_PACKAGES:
            return
        for said in annotations_of(cls):
            if self._reader(cls, said.names).shape(said.hint) is not None:
                raise self._unsealed(cls, said)
        for said in annotations_elsewhere(cls):
            if self._reader(cls, said.names, lenient=True).shape(said.hint) is not None:
                raise self._unsealed(cls, said)

    def _unsealed(self, cls: type[Any], said: Annotation) -> ConfigurationError:
        return ConfigurationError(
            f"{self._where} holds a {cls.__qualname__}, and {said.where} is personal data, "
            "which nothing would seal there",
            remedy=f"Make {cls.__qualname__} a dataclass, and store it with a SequencedItemMapper.",
        )

    def _alias(self, alias: Any, hint: Any) -> Shape | None:
        if hint in self._seen:
            self._again.append(hint)
            self.refuse_inside(get_args(hint), _RECURSIVE)
            return None
        # An alias that gives itself other arguments each time never ends.
        shape, is_endless = None, len(self._seen) > _DEEPEST
        if not is_endless:
            value, unused = alias_value(alias, hint)
            self.refuse_inside(unused, _ARGUMENTS)
            shape = self._inside(alias, value, entered=hint)
        if is_endless or (shape is not None and hint in self._again):
            raise ConfigurationError(
                f"{self._where}: personal data in {alias.__name__}, which refers to itself, "
                "cannot be sealed one by one",
                remedy="Annotate the whole attribute.",
            )
        return shape

    def _inside(self, alias: Any, value: Any, *, entered: Any) -> Shape | None:
        return self._reader(entered, self._names.inside(alias)).shape(value)

    def _reader(self, entered: Any, names: Names, *, lenient: bool = False) -> Reader:
        reader = copy(self)  # with the same lists
        vars(reader).update(_names=names, _seen=(*self._seen, entered), _lenient=lenient or self._lenient)
        return reader

    def _type_parameter(self, parameter: TypeVar | ParamSpec) -> None:
        if parameter in self._seen:
            return
        inside = self._reader(parameter, self._names.inside(parameter))
        inside.refuse_inside(_limits(parameter), "the limits of a type variable")

    def _annotated(self, hint: Any) -> Shape | None:
        inner, metadata = hint.__origin__, hint.__metadata__
        for one in metadata:
            if one is PersonalData or one is NotPersonal:
                raise ConfigurationError(f"{self._where}: {one.__name__} is written with its arguments")
        said = [one for one in metadata if isinstance(one, PersonalData)]
        is_excepted = any(isinstance(one, NotPersonal) for one in metadata)
        if not said:
            if is_excepted:
                return self._reader(hint, self._names, lenient=True).shape(inner)
            for one in metadata:
                self._check(one)
            return self.shape(inner)
        if len(said) > 1 or is_excepted:
            raise ConfigurationError(
                f"{self._where} is annotated as personal data more than once, or is and is not"
            )
        # Lenient: whatever an unknown name in it means is sealed with the whole.
        if self._reader(hint, self._names, lenient=True).shape(inner) is not None:
            raise ConfigurationError(
                f"{self._where}: there is personal data inside of personal data",
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
            # None is sealed too: otherwise an item would show whether there is a value.
            return sealed[0] if sealed else None
        if sealed:
            raise ConfigurationError(
                f"{self._where} is personal data of several kinds",
                remedy="Annotate the whole union: Annotated[A | B, PersonalData(...)].",
            )
        plain = [argument for argument, shape in zip(arguments, shapes, strict=True) if shape is None]
        return Choice(among, may_be_plain=any(argument is not type(None) for argument in plain))

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
            what: What holds them, for the message.

        Raises:
            ConfigurationError: A part holds personal data.
        """
        if any([self.shape(one) is not None for one in arguments]):  # noqa: C419 - all are looked at
            raise ConfigurationError(
                f"{self._where}: personal data in {what} cannot be sealed one by one",
                remedy="Annotate the whole attribute, or use a list.",
            )


def _is_unpacked(hint: Any) -> bool:
    return getattr(hint, "__unpacked__", False) or getattr(get_origin(hint), "_name", None) == "Unpack"


def _limits(parameter: Any) -> list[Any]:
    """List what a type variable may stand for."""
    try:
        bound = getattr(parameter, "__bound__", None)
        return [bound, *getattr(parameter, "__constraints__", ()), getattr(parameter, "__default__", None)]
    except Exception:  # noqa: BLE001 - they are evaluated only now
        return [unresolved(parameter.__name__)]

"""Personal data in annotations outside of a class body, and in the classes that annotations name."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import fields, is_dataclass
from enum import Enum
from inspect import unwrap
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args

from eventseal.errors import ConfigurationError
from eventseal.items.annotation_reading import Held, markers_in, read
from eventseal.items.annotations import (
    Names,
    UnresolvedAnnotationError,
    annotation,
    annotations_of,
    package_of,
    raw_annotations,
    source_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from eventseal.items.annotations import Annotation


UNMARKED_PACKAGES = sys.stdlib_module_names | {"eventseal"}
"""Packages whose classes annotate no personal data."""

_CONSTRUCTORS = ("__init__", "__new__", "__post_init__")
_PARTS = ("fget", "fset", "func", "__wrapped__")


def annotations_elsewhere(cls: type[Any]) -> Iterator[Annotation]:
    """
    Give what a class and its bases annotate outside of their bodies.

    A class can annotate the arguments of generic base classes, and the parameters of constructors, of class
    methods and of static methods. It can annotate what properties and other descriptors take and return, and
    ``self.name: ...`` in methods. The metadata of fields, of a dataclass or of attrs, may have markers too.
    """
    for base in reversed(cls.__mro__):
        if package_of(base) in UNMARKED_PACKAGES:
            continue
        for generic in vars(base).get("__orig_bases__", ()):
            for argument in get_args(generic):
                yield annotation(base, f"[{argument}]", "", argument, None)
        for name, member in list(vars(base).items()):
            yield from _of_member(base, name, member)
        yield from _of_source(base)
    attributes = [*(fields(cls) if is_dataclass(cls) else ()), *getattr(cls, "__attrs_attrs__", ())]
    for one in attributes:
        for marker in markers_in(one.metadata)[:1]:
            yield annotation(cls, f".{one.name}", "", Annotated[Any, marker], None)


def parameters_of(cls: type[Any], member: object) -> Iterator[Annotation]:
    """Give the annotated parameters of a function, a class method or a static method."""
    function = _function(member)
    if function is not None:
        names = Names(cls, function)
        # A function that ``dataclass`` wrote repeats the bodies, whose modules say what text means.
        bodies = [_annotations(base) for base in cls.__mro__] if is_generated(function) else []
        for name, kept in _annotations(function).items():
            if name != "return" and not any(name in body and body[name] == kept for body in bodies):
                yield annotation(cls, f".{function.__name__}({name})", name, kept, names)


def is_generated(function: FunctionType) -> bool:
    """Whether a function, such as a dataclass's constructor, was made from text."""
    return function.__code__.co_filename.startswith("<")


def _function(member: object) -> FunctionType | None:
    try:
        function = unwrap(getattr(member, "__func__", member))  # type: ignore[arg-type]  # it may be anything
    except Exception:  # noqa: BLE001 - an object of another package
        return None
    return function if isinstance(function, FunctionType) else None


def _annotations(holder: Any) -> Mapping[str, Any]:
    try:
        return raw_annotations(holder)
    except UnresolvedAnnotationError:
        return {}


def _of_member(cls: type[Any], name: str, member: object) -> Iterator[Annotation]:
    if name in _CONSTRUCTORS:
        yield from parameters_of(cls, member)
    elif name.startswith("__"):
        return
    elif isinstance(member, classmethod | staticmethod):
        yield from parameters_of(cls, member)
    elif not isinstance(member, FunctionType | type):
        for part in _PARTS:
            try:
                function = getattr(member, part, None)
            except Exception:  # noqa: BLE001, S112 - an object of another package
                continue
            if isinstance(function, FunctionType):
                names = Names(cls, function)
                for kept in _annotations(function).values():
                    yield annotation(cls, f".{name}", name, kept, names)


def _of_source(cls: type[Any]) -> Iterator[Annotation]:
    module = sys.modules.get(cls.__module__)
    if module is None:
        return
    for method, name, text in source_of(module).attributes.get(cls.__qualname__, ()):
        function = _function(vars(cls).get(method))
        names = None if function is None else Names(cls, function)
        yield annotation(cls, f".{method}: self.{name}", name, text, names)


class _Own(NamedTuple):
    """
    What a class annotates itself.

    Attributes:
        marked: The place of personal data.
        unread: The place in its body that cannot be read, and why.
        held: The classes that it names.
    """

    marked: str | None = None
    unread: str | None = None
    held: tuple[type[Any], ...] = ()


_owns: dict[type[Any], _Own] = {}


def refuse_held(where: str, held: Iterable[Held], *, in_dataclasses: bool) -> None:
    """
    Refuse personal data in classes whose objects a place may hold.

    A plain class is looked at and not followed: its objects need an encoding of their own, and whoever
    registers one has the type checked with all that it holds.

    Args:
        where: The place, for messages.
        held: The classes.
        in_dataclasses: Whether dataclasses are looked at, and every class is followed. Else the objects of
            dataclasses are sealed by their own annotations.

    Raises:
        ConfigurationError: One of them marks personal data.
        UnresolvedAnnotationError: The body of a dataclass, or of a typed dictionary, cannot be read.
    """
    wanted = deque(held)
    seen: set[Held] = set()
    while wanted:
        one = wanted.popleft()
        if one in seen or _is_unmarked(one.cls) or (is_dataclass(one.cls) and not in_dataclasses):
            continue
        seen.add(one)
        own = _owns.get(one.cls) or _read_own(one.cls)
        if own.marked is not None:
            raise ConfigurationError(
                f"{where} holds a {one.cls.__qualname__}, and {own.marked} is personal data, "
                "which nothing would seal there",
                remedy=f"Make {one.cls.__qualname__} a dataclass, and store it with a SequencedItemMapper.",
            )
        is_record = is_dataclass(one.cls) or hasattr(one.cls, "__required_keys__")
        if is_record and own.unread is not None and not one.lenient:
            raise UnresolvedAnnotationError(
                f"{where} holds a {one.cls.__qualname__}, and {own.unread}",
                remedy="Correct that annotation, or write Annotated[..., NotPersonal('why')] there or here.",
            )
        if in_dataclasses or is_record or hasattr(one.cls, "_fields"):
            lenient = one.lenient or not is_record
            wanted += (Held(cls, lenient) for cls in own.held)


def _is_unmarked(cls: type[Any]) -> bool:
    return package_of(cls) in UNMARKED_PACKAGES or issubclass(cls, Enum)


def _read_own(cls: type[Any]) -> _Own:
    held: dict[type[Any], None] = {}
    unread: str | None = None
    is_complete = True
    try:
        for is_body, annotations in ((True, annotations_of(cls)), (False, annotations_elsewhere(cls))):
            for said in annotations:
                try:
                    reading = read(said, lenient=True)
                except ConfigurationError:
                    return _Own(said.where)
                if reading.shape is not None:
                    return _Own(said.where)
                is_complete &= reading.is_complete
                if is_body and not reading.is_complete:
                    unread = f"{said.where} cannot be resolved"
                held.update(dict.fromkeys(one.cls for one in reading.held))
    except Exception as error:  # noqa: BLE001 - code of other packages runs here
        unread = f"its annotations cannot be read: {type(error).__name__}"
    own = _Own(None, unread, tuple(held))
    if is_complete and unread is None:  # else its module may still be being imported
        _owns[cls] = own
    return own

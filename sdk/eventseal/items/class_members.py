"""Annotations of a class outside of its body: in constructors, properties and methods."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from inspect import unwrap
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, get_args

from eventseal.items.annotation_reading import markers_in
from eventseal.items.annotations import (
    Names,
    UnresolvedAnnotationError,
    annotation,
    package_of,
    raw_annotations,
)
from eventseal.items.source_text import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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

"""Annotations of a class outside of its body: in constructors, properties and methods."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from inspect import unwrap
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, get_args

from eventseal.items.annotations import Names, annotation, raw_annotations
from eventseal.items.shapes import PersonalData
from eventseal.items.source_text import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventseal.items.annotations import Annotation

UNMARKED_PACKAGES = sys.stdlib_module_names | {"eventseal"}
"""Packages whose classes annotate no personal data."""

_CONSTRUCTORS = ("__init__", "__new__", "__post_init__")


def annotations_elsewhere(cls: type[Any]) -> Iterator[Annotation]:
    """
    Give what a class and its bases annotate outside of their bodies.

    A class can annotate the arguments of generic base classes, and the parameters of constructors. It can
    annotate what properties and other descriptors take and return, and ``self.name: ...`` in methods.
    The metadata of a dataclass's fields may have markers too.
    """
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] in UNMARKED_PACKAGES:
            continue
        for generic in vars(base).get("__orig_bases__", ()):
            for argument in get_args(generic):
                yield annotation(base, f"[{argument}]", "", argument, None)
        for name, member in list(vars(base).items()):
            yield from _of_member(base, name, member)
        yield from _of_source(base)
    if is_dataclass(cls):
        for field in fields(cls):
            marked = [one for one in field.metadata.values() if isinstance(one, PersonalData)]
            if marked:
                yield annotation(cls, f".{field.name}", "", Annotated[Any, marked[0]], None)


def parameters_of(cls: type[Any], member: object) -> Iterator[Annotation]:
    """Give the annotated parameters of a function, a class method or a static method."""
    function = unwrap(getattr(member, "__func__", member))  # type: ignore[arg-type]  # it may be anything
    if isinstance(function, FunctionType):
        names = Names(cls, function)
        # A function that ``dataclass`` wrote repeats the bodies, whose modules say what text means.
        bodies = [raw_annotations(base) for base in cls.__mro__] if _is_generated(function) else []
        for name, kept in raw_annotations(function).items():
            if name != "return" and not any(name in body and body[name] == kept for body in bodies):
                yield annotation(cls, f".{function.__name__}({name})", name, kept, names)


def _is_generated(function: FunctionType) -> bool:
    return function.__code__.co_filename.startswith("<")


def _of_member(cls: type[Any], name: str, member: object) -> Iterator[Annotation]:
    if name in _CONSTRUCTORS:
        yield from parameters_of(cls, member)
    elif not isinstance(member, FunctionType | classmethod | staticmethod | type):
        for part in ("fget", "fset", "func", "__wrapped__"):
            function = getattr(member, part, None)
            if isinstance(function, FunctionType):
                names = Names(cls, function)
                for kept in raw_annotations(function).values():
                    yield annotation(cls, f".{name}", name, kept, names)


def _of_source(cls: type[Any]) -> Iterator[Annotation]:
    module = sys.modules.get(cls.__module__)
    if module is None:
        return
    for method, name, text in source_of(module).attributes.get(cls.__qualname__, ()):
        function = unwrap(getattr(vars(cls).get(method), "__func__", vars(cls).get(method)))
        names = Names(cls, function) if isinstance(function, FunctionType) else None
        yield annotation(cls, f".{method}: self.{name}", name, text, names)

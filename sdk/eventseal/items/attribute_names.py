"""The names of attributes that an unauthenticated item may not use as it likes."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, NamedTuple

from eventseal.errors import SerializationError
from eventseal.items.annotations import raw_annotations
from eventseal.items.library import of_library
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES_CLASSES = "__names_classes__"
"""An event class lists here the attributes that name classes, besides ``originator_topic``."""


class AttributeNames(NamedTuple):
    """
    What the names of a class's attributes stand for.

    Attributes:
        methods: Names that the class calls something by: an attribute would be called in its place.
        topics: Attributes that name classes.
        watched: All of them.
    """

    methods: frozenset[str]
    topics: tuple[str, ...]
    watched: frozenset[str]


_watched: dict[type[Any], AttributeNames] = {}
known_names = _watched.get  # without a call of our own for each item


def read_names(cls: type[Any]) -> AttributeNames:
    """Say which attributes of *cls* are looked at before its objects are used."""
    names = {name for base in cls.__mro__ for name in vars(base)} - _declared(cls)
    methods = frozenset(name for name in names if _is_called(getattr_static(cls, name)))
    topics = ["originator_topic", *getattr(cls, NAMES_CLASSES, ())]
    if of_library("domain", "CanSnapshotAggregate") in cls.__mro__:
        topics.append("topic")
    known = _watched[cls] = AttributeNames(methods, tuple(topics), methods.union(topics))
    return known


def refuse_methods(cls: type[Any], attributes: Iterable[str]) -> None:
    """
    Refuse attributes that stand before a method of their object.

    Args:
        cls: Of the object, which an item names.
        attributes: Their names.

    Raises:
        SerializationError: There is one.
    """
    methods = (known_names(cls) or read_names(cls)).methods
    if not methods.isdisjoint(attributes):
        name = min(methods.intersection(attributes))
        raise SerializationError(
            f"an item sets the attribute {name!r}, which {class_name(cls)} defines as something to call",
            remedy="If it is a field, annotate it in the body of the class. If it was one before, give the "
            "method another name. Else find out who wrote the row.",
        )


def _declared(cls: type[Any]) -> set[str]:
    names = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    for base in cls.__mro__:
        names.update(name for name, kept in raw_annotations(base).items() if "ClassVar" not in str(kept))
    return names


def _is_called(member: object) -> bool:
    return callable(member) or isinstance(member, classmethod)

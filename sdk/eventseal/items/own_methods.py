"""Refuses classes of mappers and transcoders that replace EventSeal's methods."""

from __future__ import annotations

import dis
from functools import cache
from types import FunctionType

from eventseal.errors import ConfigurationError
from eventseal.items.topics import class_name

_ALLOWED = {"__init__", "__new__", "__init_subclass__", "__class_getitem__"}
_ALWAYS = frozenset({"__getattribute__", "__setattr__"})
_METHODS = (FunctionType, classmethod, staticmethod, property)


def refuse_replaced_methods(cls: type, own: type) -> None:
    """
    Refuse a class that replaces a method or an attribute of EventSeal's: it could store plaintext.

    Args:
        cls: The class of the object that is being created.
        own: EventSeal's class.

    Raises:
        ConfigurationError: It replaces one, by itself or by another base class that comes first.
    """
    first = cls.__mro__[: cls.__mro__.index(own)]
    replaced = _names(own).intersection(name for base in first for name in vars(base))
    if replaced:
        raise ConfigurationError(
            f"{class_name(cls)} replaces {', '.join(sorted(replaced))} "
            f"of {own.__qualname__}, so it could store plaintext",
            remedy=f"Use {own.__qualname__} as it is, or call it from a class of your own. "
            "A subclass may have a constructor and methods of other names.",
        )


@cache
def _names(own: type) -> frozenset[str]:
    """Name the methods of EventSeal's class, and the attributes that constructors of it and its bases set."""
    methods = {name for name, member in vars(own).items() if isinstance(member, _METHODS)}
    constructors = (vars(base).get("__init__") for base in own.__mro__)
    kept = {
        step.argval
        for one in constructors
        if isinstance(one, FunctionType)
        for step in dis.get_instructions(one)
        if step.opname == "STORE_ATTR"
    }
    return frozenset(methods - _ALLOWED | kept | _ALWAYS)

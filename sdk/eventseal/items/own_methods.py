"""Refuses mapper classes that replace EventSeal's methods."""

from __future__ import annotations

from inspect import getattr_static
from types import FunctionType

from eventseal.errors import ConfigurationError
from eventseal.items.topics import class_name

_ALLOWED = {"__init__", "__new__"}


def refuse_replaced_methods(cls: type, own: type) -> None:
    """
    Refuse a mapper class that replaces a method of EventSeal's: it could store plaintext.

    Args:
        cls: The class of the mapper that is being created.
        own: EventSeal's class.

    Raises:
        ConfigurationError: It replaces one, by itself or by another base class that comes first.
    """
    replaced = [
        name
        for name, member in vars(own).items()
        if isinstance(member, FunctionType) and name not in _ALLOWED
        if getattr_static(cls, name) is not member
    ]
    if replaced:
        raise ConfigurationError(
            f"{class_name(cls)} replaces {', '.join(sorted(replaced))} "
            f"of {own.__qualname__}, so it could store plaintext",
            remedy=f"Use {own.__qualname__} as it is, or call it from a class of your own. "
            "A subclass may have a constructor and methods of other names.",
        )

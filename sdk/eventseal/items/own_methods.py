"""A mapper seals only if its methods are EventSeal's own."""

from __future__ import annotations

from inspect import getattr_static
from types import FunctionType

from eventseal.errors import ConfigurationError

_ALLOWED = {"__init__", "__new__"}


def refuse_replaced_methods(cls: type, own: type) -> None:
    """
    Refuse a mapper class that replaces a method of EventSeal's, and so may store plaintext.

    Args:
        cls: The class of the mapper that is being made.
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
            f"{cls.__module__}:{cls.__qualname__} replaces {', '.join(sorted(replaced))} "
            f"of {own.__qualname__}, so nobody can tell whether it seals",
            remedy=f"Use {own.__qualname__} as it is, or call it from a class of your own. "
            "A subclass may have a constructor and methods of other names.",
        )

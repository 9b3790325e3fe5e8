"""What the eventsourcing library knows in this process, if the program has imported it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_NO_MODULE = ModuleType("none")
_BASES = ("DomainEvent", "HasOriginatorIDVersion", "Aggregate", "BaseAggregate")


def of_library(module: str, name: str) -> Any:
    """Give what a module of the library has under a name, or ``None``."""
    return vars(sys.modules.get(f"eventsourcing.{module}", _NO_MODULE)).get(name)


def library_bases() -> set[type[Any]]:
    """Give the base classes of the library's events and aggregates."""
    return {base for name in _BASES if (base := of_library("domain", name)) is not None}


def library_class(topic: str) -> type[Any] | None:
    """Give the class that the library has found under *topic* before, or that is registered with it."""
    found = _registered().get(topic)
    return found if isinstance(found, type) else None


def renamed(module: str, qualified_name: str) -> tuple[str, str]:
    """
    Give the names that a class has today, by what is registered with the library. Nothing is imported.

    Args:
        module: The module in a topic: it, or a package that it is in, may be registered.
        qualified_name: The class's name there: a class that it is defined in may be registered.
    """
    registered = _registered()
    parts = qualified_name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        outer = registered.get(f"{module}:{'.'.join(parts[:count])}")
        if isinstance(outer, type):
            return outer.__module__, ".".join([outer.__qualname__, *parts[count:]])
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        found = registered.get(".".join(parts[:count]))
        if isinstance(found, ModuleType):
            return ".".join([found.__name__, *parts[count:]]), qualified_name
    return module, qualified_name


def _registered() -> dict[str, Any]:
    return of_library("utils", "_topic_cache") or {}

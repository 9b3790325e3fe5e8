"""Public names of a package that are imported on first use."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    Return the functions ``__getattr__`` and ``__dir__`` of a package.

    The package imports the same names below ``if TYPE_CHECKING``, for type checkers and editors.

    Args:
        package: The package's full name.
        homes: By public name, the module or package below *package* that has it.

    Returns:
        A function that imports a name on first use, and a function that lists all names.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return list({*vars(sys.modules[package]), *homes})

    return get, names

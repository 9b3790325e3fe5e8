"""
The annotations of a class as objects, also where they are text and name what only type checkers import.

``typing.get_type_hints`` gives up on a whole class for one unknown name. Whether an attribute holds personal
data must not depend on that, so each annotation is resolved by itself, and a name that a module imports under
``TYPE_CHECKING`` is imported here.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from functools import lru_cache
from importlib import import_module
from importlib.util import resolve_name
from typing import TYPE_CHECKING, Any, ForwardRef, NamedTuple

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType


class Annotation(NamedTuple):
    """
    What a class says about one of its attributes.

    Attributes:
        owner: The class whose body says it.
        hint: The annotation as an object; parts of it may be text or :class:`Unresolved` still.
        names: Finds what the text in it means.
        unknown: The names that nothing is known by.
        text: As it is written, as far as that is known.
    """

    owner: type[Any]
    hint: Any
    names: Names
    unknown: list[str]
    text: str

    def resolved(self, part: Any) -> Any:
        """Give a part of the hint, which may be text, as an object."""
        if isinstance(part, ForwardRef):
            part = part.__forward_arg__
        return _evaluated(part, self.names, self.unknown) if isinstance(part, str) else part


class _UnresolvedType(type):
    def __getattr__(cls, name: str) -> type[Unresolved]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unresolved


class Unresolved(metaclass=_UnresolvedType):
    """Stands for a name that nothing is known by."""

    def __class_getitem__(cls, item: object) -> type[Unresolved]:
        return cls


class Names:
    """
    What names mean in the body of a class.

    Args:
        cls: The class.
    """

    def __init__(self, cls: type[Any]) -> None:
        module = sys.modules.get(cls.__module__)
        self._module = module
        self._scopes: tuple[Mapping[str, Any], ...] = (
            vars(cls),
            {} if module is None else vars(module),
            vars(builtins),
            {cls.__name__: cls},
        )

    def find(self, name: str) -> Any:
        """
        Find what *name* means.

        Raises:
            KeyError: Nothing.
        """
        for scope in self._scopes:
            if name in scope:
                return scope[name]
        if self._module is None:
            raise KeyError(name)
        return _imported(_for_type_checkers(self._module)[name])


def annotations_of(cls: type[Any]) -> Iterator[tuple[str, Annotation]]:
    """Give the annotations of a class and its bases, those of a base before those of its subclasses."""
    for base in reversed(cls.__mro__):
        texts = vars(base).get("__annotations__")
        if not isinstance(texts, dict):
            continue
        names = Names(base)
        for name, text in texts.items():
            unknown: list[str] = []
            hint = _evaluated(text, names, unknown) if isinstance(text, str) else text
            yield name, Annotation(base, hint, names, unknown, _text(text))


def _text(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if type(annotation) is type else str(annotation)


class _Lookup(dict[str, Any]):
    def __init__(self, names: Names, unknown: list[str]) -> None:
        super().__init__()
        self._names = names
        self._unknown = unknown

    def __missing__(self, name: str) -> Any:
        try:
            return self._names.find(name)
        except KeyError:
            self._unknown.append(name)
            return Unresolved


def _evaluated(text: str, names: Names, unknown: list[str]) -> Any:
    try:
        return eval(text, {"__builtins__": {}}, _Lookup(names, unknown))  # noqa: S307 - the program's own source
    except ConfigurationError:  # of what the annotation makes, such as PersonalData
        raise
    except Exception:  # noqa: BLE001 - whatever the text does, it is no type
        unknown.append(text)
        return Unresolved


@lru_cache(maxsize=1024)
def _for_type_checkers(module: ModuleType) -> dict[str, tuple[str, str | None]]:
    """Give what a module imports under ``TYPE_CHECKING``: by name the module, and the name in it."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.If) or not ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom):
                origin = "." * statement.level + (statement.module or "")
                if statement.level:
                    origin = resolve_name(origin, module.__package__ or "")
                found |= {alias.asname or alias.name: (origin, alias.name) for alias in statement.names}
            elif isinstance(statement, ast.Import):
                for alias in statement.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    found[name] = (alias.name if alias.asname else name, None)
    return found


def _imported(origin: tuple[str, str | None]) -> Any:
    module, name = origin
    try:
        found = import_module(module)
        return found if name is None else getattr(found, name)
    except Exception:  # noqa: BLE001 - a module for type checkers need not be there, nor be importable
        raise KeyError(name) from None

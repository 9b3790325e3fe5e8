"""Reads what only the source of a module has: imports for type checkers, and annotations in methods."""

from __future__ import annotations

import ast
import inspect
import re
from functools import lru_cache
from importlib.util import resolve_name
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_WORTH_PARSING = re.compile(r"TYPE_CHECKING|^\s+\w+\.\w+\s*:", re.MULTILINE)


class Source(NamedTuple):
    """
    What was found in a module's source.

    Attributes:
        imports: By name, the module and the name in it that ``if TYPE_CHECKING:`` imports.
        attributes: By qualified name of a class, the method, attribute and text of each ``self.x: text``.
    """

    imports: dict[str, tuple[str, str | None]]
    attributes: dict[str, list[tuple[str, str, str]]]


@lru_cache(maxsize=1024)
def source_of(module: ModuleType) -> Source:
    """Read the source of a module. Without a source, nothing is found."""
    found = Source({}, {})
    try:
        text = inspect.getsource(module)
        tree = ast.parse(text) if _WORTH_PARSING.search(text) else ast.Module([], [])
    except (OSError, TypeError, SyntaxError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            found.imports.update(_imports(node, module.__package__ or ""))
    _read_classes(tree, "", found.attributes)
    return found


def _imports(node: ast.If, package: str) -> Iterator[tuple[str, tuple[str, str | None]]]:
    for statement in node.body:
        if isinstance(statement, ast.ImportFrom):
            origin = "." * statement.level + (statement.module or "")
            if statement.level:
                origin = resolve_name(origin, package)
            for alias in statement.names:
                yield alias.asname or alias.name, (origin, alias.name)
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, (alias.name if alias.asname else name, None)


def _read_classes(node: ast.AST, prefix: str, found: dict[str, list[tuple[str, str, str]]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            name = f"{prefix}{child.name}"
            found.setdefault(name, []).extend(_attributes(child))
            _read_classes(child, f"{name}.", found)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            _read_classes(child, f"{prefix}{child.name}.<locals>.", found)
        else:
            _read_classes(child, prefix, found)


def _attributes(cls: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    for method in cls.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        arguments = [*method.args.posonlyargs, *method.args.args]
        if not arguments:
            continue
        for node in ast.walk(method):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Attribute):
                continue
            holder = node.target.value
            if isinstance(holder, ast.Name) and holder.id == arguments[0].arg:
                yield method.name, node.target.attr, ast.unparse(node.annotation)

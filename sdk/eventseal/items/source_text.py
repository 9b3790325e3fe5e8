"""Reads what only the source of a module has: imports for type checkers, and annotations in methods."""

from __future__ import annotations

import ast
import inspect
from functools import lru_cache
from importlib.util import resolve_name
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


class Import(NamedTuple):
    """
    An import for type checkers.

    Attributes:
        module: The module.
        attribute: The name in it; ``None``: the module itself.
        package: The package that ``import package.module`` gives instead.
    """

    module: str
    attribute: str | None = None
    package: str = ""


class Source(NamedTuple):
    """
    What was found in a module's source.

    Attributes:
        imports: By name, what ``if TYPE_CHECKING:`` imports.
        attributes: By qualified name of a class, the method, attribute and text of each ``self.x: text``.
    """

    imports: dict[str, list[Import]]
    attributes: dict[str, list[tuple[str, str, str]]]


@lru_cache(maxsize=1024)
def source_of(module: ModuleType) -> Source:
    """Read the source of a module. Without a source, nothing is found."""
    found = Source({}, {})
    try:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and _is_for_type_checkers(node.test):
                for name, said in _imports(node, module.__package__ or ""):
                    found.imports.setdefault(name, []).append(said)
        _read_classes(tree, "", found.attributes)
    except Exception:  # noqa: BLE001 - there is no source, or it is not Python's
        return found
    return found


def _is_for_type_checkers(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def _imports(node: ast.If, package: str) -> Iterator[tuple[str, Import]]:
    for statement in node.body:
        if isinstance(statement, ast.ImportFrom):
            origin = "." * statement.level + (statement.module or "")
            if statement.level:
                origin = resolve_name(origin, package)
            for alias in statement.names:
                yield alias.asname or alias.name, Import(origin, alias.name)
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield name, Import(alias.name, package="" if alias.asname else name)


def _read_classes(node: ast.AST, prefix: str, found: dict[str, list[tuple[str, str, str]]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            name = f"{prefix}{child.name}"
            found.setdefault(name, []).extend(_attributes(child))
            _read_classes(child, f"{name}.", found)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            _read_classes(child, f"{prefix}{child.name}.<locals>.", found)
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            _read_classes(child, prefix, found)


def _attributes(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Give what the methods of a class annotate, also where they are defined under a condition."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of_method(child)
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from () if isinstance(child, ast.ClassDef) else _attributes(child)


def _of_method(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, str, str]]:
    arguments = [*method.args.posonlyargs, *method.args.args]
    if not arguments:
        return
    for node in ast.walk(method):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Attribute):
            continue
        holder = node.target.value
        if isinstance(holder, ast.Name) and holder.id == arguments[0].arg:
            yield method.name, node.target.attr, ast.unparse(node.annotation)

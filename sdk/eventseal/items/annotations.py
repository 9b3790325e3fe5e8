"""The annotations of a class as objects, and what the names in them mean, also by the module's source."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
import typing
from contextlib import suppress
from copy import copy
from functools import lru_cache
from importlib import import_module
from importlib.util import resolve_name
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, ForwardRef, NamedTuple, get_args, get_origin

from eventseal.errors import ConfigurationError
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


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


_IS_LAZY = sys.version_info >= (3, 14)
"""Whether Python evaluates annotations only when they are asked for."""


_NAME = re.compile(r"\b[^\W\d]\w*")
_MEMBERS = (FunctionType, classmethod, staticmethod, property)


class UnresolvedAnnotationError(ConfigurationError):
    """An annotation cannot be read, or a name in it cannot be found."""


class Annotation(NamedTuple):
    """
    An annotation in a class.

    Attributes:
        owner: The class.
        where: The attribute, or the parameter, for messages.
        name: The attribute.
        kept: The annotation as Python keeps it: an object or text.
        hint: The annotation as an object; parts of it may still be text or :class:`Unresolved`.
        names: Finds what the text in it means.
    """

    owner: type[Any]
    where: str
    name: str
    kept: Any
    hint: Any
    names: Names

    @property
    def text(self) -> str:
        """The annotation as it is written, if Python kept that."""
        if isinstance(self.kept, str):
            return self.kept
        return self.kept.__name__ if type(self.kept) is type else str(self.kept)


class Unresolved(type):
    """The type of placeholders for names that cannot be found: each is a class of that name."""

    def __getattr__(cls, name: str) -> Unresolved:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: object) -> Unresolved:
        return cls

    def __call__(cls, *_: Any, **__: Any) -> Unresolved:
        """Stand for its objects too."""
        return cls


class Absent(Unresolved):
    """The type of placeholders for what marks no personal data: it is not installed, or is no expression."""


def unresolved(name: str, kind: type[Unresolved] = Unresolved) -> Unresolved:
    """Create the placeholder for *name*."""
    return type.__call__(kind, name, (), {"__module__": __name__})  # type: ignore[no-any-return]


class Names:
    """
    What names mean in the body of a class, or in one of its methods.

    Args:
        cls: The class.
        function: The method.
    """

    def __init__(self, cls: type[Any], function: FunctionType | None = None) -> None:
        self._module = sys.modules.get(cls.__module__)
        self._alias_module: ModuleType | None = None
        self.is_shadowed = False
        inner = dict(vars(cls))
        # A field's default, or its slot, is not what the name means outside of the class.
        fields = {name: inner.pop(name) for name in raw_annotations(cls) if name in inner}
        self._inner: Mapping[str, Any] = inner
        self._scopes: tuple[Mapping[str, Any], ...] = (
            {} if function is None else _closure(function),
            {parameter.__name__: parameter for parameter in getattr(cls, "__type_params__", ())},
            {} if function is None else function.__globals__,
            {} if self._module is None else vars(self._module),
            vars(builtins),
            {cls.__name__: cls, "typing": typing},  # ``make_dataclass`` writes typing.Any
            fields,
        )

    def inside(self, alias: Any) -> Names:
        """Give the names for the value of an alias, which another module may define."""
        module = sys.modules.get(getattr(alias, "__module__", None) or "")
        if module is None or module is self._module:
            return self
        names = copy(self)
        names._alias_module = module  # noqa: SLF001 - its own
        return names

    def outside(self) -> Names:
        """Give what the names mean outside of the body of the class."""
        names = copy(self)
        names._inner = {}  # noqa: SLF001 - its own
        return names

    def __getitem__(self, name: str) -> Any:
        """Find what *name* means; it is unresolved if the class's module and the alias's disagree."""
        found = _found(name, self._scopes, self._module)
        if name in self._inner:
            member = self._inner[name]
            is_type = not isinstance(member, _MEMBERS)
            # A method of that name came later, and is no type.
            if is_type or not found:
                self.is_shadowed |= bool(found) and found[0] is not member
                found = [member]
        if self._alias_module is not None:
            found += _found(name, (vars(self._alias_module),), self._alias_module)
        return found[0] if found and found[0] is found[-1] else unresolved(name)

    def resolved(self, part: Any) -> Any:
        """Give a part of an annotation as an object, also if it is text."""
        if isinstance(part, ForwardRef):
            part = part.__forward_arg__
        if not isinstance(part, str):
            return part
        text = f"({part},)[0]" if part.lstrip().startswith("*") else f"({part}\n)"
        try:
            return eval(text, {}, self)  # type: ignore[arg-type]  # noqa: S307 - the program's own source
        except ConfigurationError:  # of what the annotation makes, such as PersonalData
            raise
        except SyntaxError:
            return unresolved(part, Absent)
        except Exception:  # noqa: BLE001 - whatever the text does, it is no type
            return unresolved(part)


def _found(name: str, scopes: tuple[Mapping[str, Any], ...], module: ModuleType | None) -> list[Any]:
    found = next(([scope[name]] for scope in scopes if name in scope), [])
    if found and not isinstance(found[0], ModuleType):
        return found
    imports = () if module is None else source_of(module).imports.get(name, ())
    if found:  # a package, whose modules may be imported for type checkers only
        for one in imports:
            with suppress(Exception, SystemExit):
                import_module(one.module)
        return found
    imported = [_imported(name, one) for one in imports]
    return imported[-1:]


def _imported(name: str, said: Import) -> Any:
    """Import what a module imports for type checkers."""
    try:
        module = import_module(said.module)
        if said.attribute is None:
            return sys.modules[said.package] if said.package else module
        if not hasattr(module, said.attribute):
            return import_module(f"{said.module}.{said.attribute}")
        return getattr(module, said.attribute)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        is_absent = f"{said.module}.".startswith(f"{missing}.")
        return unresolved(name, Absent if is_absent else Unresolved)
    except (Exception, SystemExit):  # noqa: BLE001 - a module for type checkers need not be importable
        return unresolved(name)


def _closure(function: FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def raw_annotations(holder: Any) -> Mapping[str, Any]:
    """
    Give the annotations of a class's own body, or of a function, as Python keeps them.

    Raises:
        UnresolvedAnnotationError: Python cannot evaluate them.
    """
    if not _IS_LAZY:
        found = vars(holder).get("__annotations__") if isinstance(holder, type) else holder.__annotations__
        return found if isinstance(found, dict) else {}
    annotationlib: Any = import_module("annotationlib")
    try:
        found = annotationlib.get_annotations(holder, format=annotationlib.Format.FORWARDREF)
    except ConfigurationError:
        raise
    except Exception as error:
        raise UnresolvedAnnotationError(
            f"the annotations of {holder.__module__}:{holder.__qualname__} cannot be evaluated: "
            f"{type(error).__name__}",
            remedy="Correct them, or write them as text.",
        ) from error
    if not isinstance(holder, type) or not found:
        return found  # type: ignore[no-any-return]
    # Python would look for a name among the members of the class first, also those that came later.
    texts = annotationlib.get_annotations(holder, format=annotationlib.Format.STRING)
    members = vars(holder).keys() - found.keys()
    return {
        name: kept if members.isdisjoint(_NAME.findall(texts[name])) else texts[name]
        for name, kept in found.items()
    }


def package_of(cls: type[Any]) -> str:
    """Name the top-level package of a class."""
    return str(cls.__module__).partition(".")[0]


def annotations_of(cls: type[Any]) -> Iterator[Annotation]:
    """Give the annotations of a class and its bases, those of a base before those of its subclasses."""
    for base in reversed(cls.__mro__):
        try:
            annotations = raw_annotations(base)
        except UnresolvedAnnotationError:
            if package_of(base) == package_of(cls):
                raise
            continue
        names = Names(base) if annotations else None
        for name, kept in annotations.items():
            yield resolved_annotation(base, f".{name}", name, kept, names)


def resolved_annotation(
    owner: type[Any], where: str, name: str, kept: Any, names: Names | None
) -> Annotation:
    """
    Resolve an annotation.

    Args:
        owner: The class that has it.
        where: Its place in the class, for messages.
        name: The attribute.
        kept: The annotation as Python keeps it: an object or text.
        names: Finds what text means there; ``None``: as in the body of the class.
    """
    names = Names(owner) if names is None else names
    place = f"{class_name(owner)}{where}"
    return Annotation(owner, place, name, kept, names.resolved(kept), names)


def alias_of(hint: Any) -> Any:
    """Give the alias type that *hint* is, alone or with arguments; ``None`` if it is another type."""
    for one in (hint, get_origin(hint)):
        kind = type(one)
        if kind.__name__ == "TypeAliasType" and kind.__module__ in {"typing", "typing_extensions"}:
            return one
    return None


def alias_value(alias: Any, hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """
    Give what an alias type stands for.

    Args:
        alias: The alias type.
        hint: The alias type, alone or with arguments.

    Returns:
        Its value with the arguments put in, and the arguments that have no place in it.
    """
    try:
        value = alias.__value__
    except Exception:  # noqa: BLE001 - it is evaluated only now
        return unresolved(alias.__name__), ()
    arguments = () if hint is alias else get_args(hint)
    parameters = alias.__type_params__
    if len(arguments) > len(parameters):  # of a TypeVarTuple
        return value, arguments
    given = dict(zip(parameters, arguments, strict=False))
    for parameter, argument in given.items():
        if value is parameter:
            return argument, tuple(one for one in arguments if one is not argument)
    there = getattr(value, "__parameters__", ())
    try:
        filled = value[tuple(given.get(one, one) for one in there)] if given and there else value
    except (TypeError, KeyError):  # such as of a ParamSpec
        return value, arguments
    return filled, tuple(argument for parameter, argument in given.items() if parameter not in there)

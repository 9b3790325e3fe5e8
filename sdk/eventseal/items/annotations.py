"""The annotations of a class as objects, with their names resolved."""

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
        attribute: The name in the module, or ``None`` for the module itself.
        package: The package that ``import package.module`` binds instead.
    """

    module: str
    attribute: str | None = None
    package: str = ""


class Source(NamedTuple):
    """
    The facts in a module's source.

    Attributes:
        imports: The imports under ``if TYPE_CHECKING:``, by name.
        attributes: The method, attribute and text of each ``self.x: text``, by qualified name of the class.
    """

    imports: dict[str, list[Import]]
    attributes: dict[str, list[tuple[str, str, str]]]


@lru_cache(maxsize=1024)
def source_of(module: ModuleType) -> Source:
    """Read the source of a module. Without source, the result is empty."""
    found = Source({}, {})
    try:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and _is_for_type_checkers(node.test):
                for name, said in _imports(node, module.__package__ or ""):
                    found.imports.setdefault(name, []).append(said)
        _read_classes(tree, "", found.attributes)
    except Exception:  # noqa: BLE001 - there is no source, or it is not Python
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
    """Yield the annotations in methods of a class, also in conditional methods."""
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
"""Whether Python evaluates annotations only on access."""


_NAME = re.compile(r"\b[^\W\d]\w*")
_MEMBERS = (FunctionType, classmethod, staticmethod, property)


class UnresolvedAnnotationError(ConfigurationError):
    """An annotation cannot be read, or a name in it is unknown."""


class Annotation(NamedTuple):
    """
    An annotation in a class.

    Attributes:
        owner: The class.
        where: The attribute, or the parameter, for messages.
        name: The attribute.
        kept: The annotation as Python keeps it: an object or text.
        hint: The annotation as an object. Parts of it may still be text or :class:`Unresolved`.
        names: Finds the meaning of the text in it.
    """

    owner: type[Any]
    where: str
    name: str
    kept: Any
    hint: Any
    names: Names

    @property
    def text(self) -> str:
        """The source text of the annotation, if Python kept it."""
        if isinstance(self.kept, str):
            return self.kept
        return self.kept.__name__ if type(self.kept) is type else str(self.kept)


class Unresolved(type):
    """The type of placeholders for unknown names: each is a class."""

    def __getattr__(cls, name: str) -> Unresolved:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: object) -> Unresolved:
        return cls

    def __call__(cls, *_: Any, **__: Any) -> Unresolved:
        """Return the class itself, in place of its objects."""
        return cls


class Absent(Unresolved):
    """
    The type of placeholders for parts that mark no personal data.

    They are not installed, or are not expressions.
    """


def unresolved(name: str, kind: type[Unresolved] = Unresolved) -> Unresolved:
    """Create the placeholder for *name*."""
    return type.__call__(kind, name, (), {"__module__": __name__})  # type: ignore[no-any-return]


class Names:
    """
    The meaning of names in a class's body, or in a method.

    Args:
        function: The method.
    """

    def __init__(self, cls: type[Any], function: FunctionType | None = None) -> None:
        self._module = sys.modules.get(cls.__module__)
        self._alias_module: ModuleType | None = None
        self.is_shadowed = False
        inner = dict(vars(cls))
        # The default of a field, or its slot, is not the meaning of the name outside of the class.
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
        """Return the names for an alias's value, perhaps in another module."""
        module = sys.modules.get(getattr(alias, "__module__", None) or "")
        if module is None or module is self._module:
            return self
        names = copy(self)
        names._alias_module = module  # noqa: SLF001 - an object of this class
        return names

    def outside(self) -> Names:
        """Return the names without those of the class's body."""
        names = copy(self)
        names._inner = {}  # noqa: SLF001 - an object of this class
        return names

    def __getitem__(self, name: str) -> Any:
        """
        Return the meaning of *name*.

        It is unresolved if the class's module and the alias's module disagree.
        """
        found = _found(name, self._scopes, self._module)
        if name in self._inner:
            member = self._inner[name]
            is_type = not isinstance(member, _MEMBERS)
            # A method with that name was defined later, and is not a type.
            if is_type or not found:
                self.is_shadowed |= bool(found) and found[0] is not member
                found = [member]
        if self._alias_module is not None:
            found += _found(name, (vars(self._alias_module),), self._alias_module)
        return found[0] if found and found[0] is found[-1] else unresolved(name)

    def resolved(self, part: Any) -> Any:
        """Return a part of an annotation as an object, even from text."""
        if isinstance(part, ForwardRef):
            part = part.__forward_arg__
        if not isinstance(part, str):
            return part
        text = f"({part},)[0]" if part.lstrip().startswith("*") else f"({part}\n)"
        try:
            return eval(text, {}, self)  # type: ignore[arg-type]  # noqa: S307 - the program's own source
        except ConfigurationError:  # an object in the annotation raised it, such as PersonalData
            raise
        except SyntaxError:
            return unresolved(part, Absent)
        except Exception:  # noqa: BLE001 - text that fails in any way is not a type
            return unresolved(part)


def _found(name: str, scopes: tuple[Mapping[str, Any], ...], module: ModuleType | None) -> list[Any]:
    found = next(([scope[name]] for scope in scopes if name in scope), [])
    if found and not isinstance(found[0], ModuleType):
        return found
    imports = () if module is None else source_of(module).imports.get(name, ())
    if found:  # a package, whose modules may be imported only for type checkers
        for one in imports:
            with suppress(Exception, SystemExit):
                import_module(one.module)
        return found
    imported = [_imported(name, one) for one in imports]
    return imported[-1:]


def _imported(name: str, said: Import) -> Any:
    """Import a name that a module imports for type checkers."""
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
    except (Exception, SystemExit):  # noqa: BLE001 - an import for type checkers may fail at run time
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
    Return the annotations of a class's body or a function, as kept.

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
    # Python would search the members of the class first, also those that were defined later.
    texts = annotationlib.get_annotations(holder, format=annotationlib.Format.STRING)
    members = vars(holder).keys() - found.keys()
    return {
        name: kept if members.isdisjoint(_NAME.findall(texts[name])) else texts[name]
        for name, kept in found.items()
    }


def package_of(cls: type[Any]) -> str:
    """Return the top-level package of a class."""
    return str(cls.__module__).partition(".")[0]


def annotations_of(cls: type[Any]) -> Iterator[Annotation]:
    """Yield the annotations of a class, after those of its bases."""
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
        names: Finds the meaning of text there. ``None`` means the names in the body of the class.
    """
    names = Names(owner) if names is None else names
    place = f"{class_name(owner)}{where}"
    return Annotation(owner, place, name, kept, names.resolved(kept), names)


def alias_of(hint: Any) -> Any:
    """Return the alias type of *hint*, with or without arguments, or ``None``."""
    for one in (hint, get_origin(hint)):
        kind = type(one)
        if kind.__name__ == "TypeAliasType" and kind.__module__ in {"typing", "typing_extensions"}:
            return one
    return None


def alias_value(alias: Any, hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """
    Return the value of an alias type.

    Args:
        alias: The alias type.
        hint: The alias type, alone or with arguments.

    Returns:
        The value with the arguments inserted, and the arguments that have no place in it.
    """
    try:
        value = alias.__value__
    except Exception:  # noqa: BLE001 - Python evaluates it only now
        return unresolved(alias.__name__), ()
    arguments = () if hint is alias else get_args(hint)
    parameters = alias.__type_params__
    if len(arguments) > len(parameters):  # for a TypeVarTuple
        return value, arguments
    given = dict(zip(parameters, arguments, strict=False))
    for parameter, argument in given.items():
        if value is parameter:
            return argument, tuple(one for one in arguments if one is not argument)
    there = getattr(value, "__parameters__", ())
    try:
        filled = value[tuple(given.get(one, one) for one in there)] if given and there else value
    except (TypeError, KeyError):  # for example a ParamSpec
        return value, arguments
    return filled, tuple(argument for parameter, argument in given.items() if parameter not in there)

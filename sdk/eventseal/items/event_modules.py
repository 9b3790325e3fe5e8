"""Limits unauthenticated items: the classes they name, the attributes they set."""

from __future__ import annotations

import shlex
import sys
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from inspect import getattr_static
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.items.annotations import raw_annotations
from eventseal.items.topics import (
    ALIAS_REMEDY,
    answers_for,
    class_name,
    known_subclasses,
    registered_class,
    remember,
    run_import,
    split_topic,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


_NO_MODULE = ModuleType("none")
_BASES = ("DomainEvent", "HasOriginatorIDVersion", "Aggregate", "BaseAggregate")


def of_library(module: str, name: str) -> Any:
    """Return a name of a module of the library, or ``None``."""
    return vars(sys.modules.get(f"eventsourcing.{module}", _NO_MODULE)).get(name)


def renamed(module: str, qualified_name: str) -> tuple[str, str]:
    """
    Return the present names of a class, from the library's registrations.

    It imports nothing.

    Args:
        module: The module in a topic. The module, or a package that contains it, may be registered.
        qualified_name: The name of the class there. A class that contains it may be registered.
    """
    registered = _registered_by_library()
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


def _registered_by_library() -> dict[str, Any]:
    return of_library("utils", "_topic_cache") or {}


NAMES_CLASSES = "__names_classes__"
"""
In this list, an event class names its attributes that name classes.

``originator_topic`` is always one.
"""


class AttributeNames(NamedTuple):
    """
    The roles of the names of a class's attributes.

    Attributes:
        methods: Names that the class calls. An attribute with such a name would be called instead of the
            method.
        topics: Attributes that name classes.
        watched: Both of them.
    """

    methods: frozenset[str]
    topics: tuple[str, ...]
    watched: frozenset[str]


_watched: dict[type[Any], AttributeNames] = {}
known_names = _watched.get  # no Python call for each item


def read_names(cls: type[Any]) -> AttributeNames:
    """Return the attributes of *cls* that are checked before objects are used."""
    names = {name for base in cls.__mro__ for name in vars(base)} - _declared(cls)
    members = {name: getattr_static(cls, name) for name in names}
    methods = frozenset(
        name for name, member in members.items() if callable(member) or isinstance(member, classmethod)
    )
    topics = ["originator_topic", *getattr(cls, NAMES_CLASSES, ())]
    if of_library("domain", "CanSnapshotAggregate") in cls.__mro__:
        topics.append("topic")
    known = _watched[cls] = AttributeNames(methods, tuple(topics), methods.union(topics))
    return known


def refuse_methods(cls: type[Any], attributes: Iterable[str]) -> None:
    """
    Refuse attributes that would hide a method of their object.

    Args:
        cls: The class of the object, which an item names.
        attributes: The names of the attributes.

    Raises:
        SerializationError: An attribute has the name of a method.
    """
    methods = (known_names(cls) or read_names(cls)).methods
    if not methods.isdisjoint(attributes):
        name = min(methods.intersection(attributes))
        raise SerializationError(
            f"an item sets the attribute {name!r}, which {class_name(cls)} defines as something to call",
            remedy="If it is a field, annotate it in the body of the class. If it was a field before, rename "
            "the method. Otherwise find out who wrote the row.",
        )


def _declared(cls: type[Any]) -> set[str]:
    names = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    for base in cls.__mro__:
        names.update(name for name, kept in raw_annotations(base).items() if "ClassVar" not in str(kept))
    return names


class EventModules:
    """
    Looks up the classes that unauthenticated items name.

    The program decides which classes these are, and not the item. They are registered classes, classes that
    this process has stored, and imported events and entities. Any other class must be defined in one of the
    modules.

    Args:
        names: The modules. A package covers its submodules, which a topic may import.

    Raises:
        ConfigurationError: A name is not the name of a module.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        if isinstance(names, str) or not all(map(is_module_name, names)):
            raise ConfigurationError(
                "event_modules takes names of modules",
                remedy='Pass a list such as event_modules=["shop"], without the names of classes.',
            )
        self._names = tuple(names)
        self._is_loaded = False
        self._answers = answers_for(self._names)

    def load(self) -> None:
        """
        Import the modules once, so that their registrations count.

        Raises:
            ConfigurationError: A module is missing, or its import fails.
        """
        if self._is_loaded:
            return
        for name in self._names:
            import_listed(name, "event_modules")
        self._is_loaded = True

    def resolve(self, topic: str) -> type[Any]:
        """
        Find the class of *topic*, if an unauthenticated item may name it.

        Raises:
            ConfigurationError: A module is missing, or its import fails.
            SerializationError: The topic does not name an allowed class.
        """
        return self._answers.get(topic) or self._found(topic)

    def check_attributes(self, cls: type[Any], attributes: Mapping[str, Any]) -> None:
        """
        Check an event's attributes before anything uses the event.

        A replay imports the classes that attributes name. It also calls methods, which an attribute with the
        same name would hide.

        Args:
            cls: The class of the event.
            attributes: The attributes by name.

        Raises:
            ConfigurationError: A module is missing, or its import fails.
            SerializationError: An attribute names a class that it may not name, is not a name, or has the
                name of a method.
        """
        names = known_names(cls) or read_names(cls)
        if names.watched.isdisjoint(attributes):
            return
        refuse_methods(cls, attributes)
        for name in names.topics:
            named = attributes.get(name)
            for topic in named if type(named) is list else () if named is None else (named,):
                if type(topic) is not str:
                    raise SerializationError(f"{name} of {class_name(cls)} is not the name of a class")
                self.resolve(topic)
        topic, state = attributes.get("topic"), attributes.get("state")
        if "topic" in names.topics and topic is not None and type(state) is dict:  # a snapshot
            refuse_methods(self.resolve(topic), state)

    def _found(self, topic: str) -> type[Any]:
        if type(topic) is not str:
            raise SerializationError("a topic must be text", remedy="Find out who wrote the row.")
        found = _registered(topic)
        if found is None:
            self.load()
            found = _registered(topic) or self._defined(topic)
        return remember(self._answers, topic, found)

    def _defined(self, topic: str) -> type[Any]:
        module, qualified_name = renamed(*split_topic(topic))
        found = _loaded_class(module, qualified_name)
        # The topic decides which code runs, and nothing has authenticated it (docs/decisions/0027).
        if found is not None and not _known_bases().isdisjoint(found.__mro__):
            return found
        if not self._cover(module):
            raise _not_covered(topic, module)
        if module not in sys.modules and _may_be_imported(module):
            run_import(topic, partial(import_module, module))
            found = _loaded_class(module, qualified_name)
        if found is None:
            raise SerializationError(f"topic {topic!r} does not name an existing class", remedy=ALIAS_REMEDY)
        if not self._cover(found.__module__):
            raise _not_covered(topic, found.__module__)
        return found

    def _cover(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self._names)


def import_listed(name: str, setting: str) -> ModuleType:
    """
    Import a module that a setting or an option names.

    Raises:
        ConfigurationError: The module is missing, or its import fails. The message does not repeat the
            reason, because it may be a secret of the module.
        KeyboardInterrupt: The user interrupted the import.
    """
    try:
        return import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - also SystemExit, which would end the process
        failed = type(error).__name__
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None:
        raise ConfigurationError(
            f"{setting}: the import of module {name} raised {failed}",
            remedy=f"To see why, run: python -c {shlex.quote(f'import {name}')}",
        )
    is_listed = f"{name}.".startswith(f"{missing}.")
    raise ConfigurationError(
        f"{setting}: there is no module {missing}" + ("" if is_listed else f", which {name} imports"),
        remedy="Correct the setting, or put the module's folder on PYTHONPATH."
        if is_listed
        else "Install it, or put the module's folder on PYTHONPATH.",
    )


def is_module_name(name: object) -> bool:
    """Return whether *name* has the form of a module's name."""
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def _registered(topic: str) -> type[Any] | None:
    """Return the registered class of a topic, or the class found before."""
    found = registered_class(topic) or _registered_by_library().get(topic)
    return found if isinstance(found, type) else None


def _known_bases() -> frozenset[type[Any]]:
    """Return the base classes of events and entities, the library's too."""
    return known_subclasses().union(of_library("domain", name) for name in _BASES)


def _loaded_class(module: str, qualified_name: str) -> type[Any] | None:
    """Find an existing class without running its module's code."""
    # No import and no ``__getattr__``. Step by step through classes only, because shop:subprocess.Popen is
    # not a class of shop (docs/decisions/0027).
    found = sys.modules.get(module)
    if not issubclass(type(found), ModuleType):
        return None
    members = ModuleType.__getattribute__(found, "__dict__")  # vars() would load a lazy module
    cls = None
    for name in qualified_name.split("."):
        cls = members.get(name)
        if not issubclass(type(cls), type):
            return None
        members = type.__dict__["__dict__"].__get__(cls)
    return cls


def _may_be_imported(module: str) -> bool:
    """
    Return whether a topic may import a module.

    ``__main__`` does work, and ``__init__`` would run again.
    """
    return not any(part.startswith("__") and part.endswith("__") for part in module.split("."))


def _not_covered(topic: str, module: str) -> SerializationError:
    package = module.partition(".")[0]
    said = ""
    if is_module_name(package) and _is_there(package):
        said = (
            f'If your application stores this class, set event_modules = ["{package}"] in eventseal.toml, or '
            "event_modules= of the mapper. "
        )
    return SerializationError(
        f"topic {topic!r} is not authenticated, and names no class of event_modules",
        remedy=f"{said}{ALIAS_REMEDY} Otherwise find out who wrote the row.",
    )


def _is_there(package: str) -> bool:
    """Return whether a package can be imported, also from the working directory."""
    if package in sys.modules:  # find_spec() would load a lazy package
        return True
    try:
        return (find_spec(package) or PathFinder.find_spec(package, [str(Path.cwd())])) is not None
    except Exception:  # noqa: BLE001 - a foreign import hook failed, and this only decides the advice
        return False

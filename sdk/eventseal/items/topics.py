"""
Topics: the names under which classes are stored, ``module:Qualified.Name`` unless registered otherwise.

A renamed or moved class is a fact of the program, like its imports, so registrations hold for the process. A
topic in the database is never rewritten: it is part of what a sealed item authenticates. An attacker who can
write to a table chooses the topics of unauthenticated items: :class:`EventModules` looks those up.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from eventseal.errors import ConfigurationError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    Resolve = Callable[[str], type[Any]]

MAX_TOPIC_LENGTH = 255
NAMES_CLASSES = "__names_classes__"
"""An event class lists here the attributes that name classes, besides ``originator_topic``."""

_classes: dict[str, type[Any]] = {}
_stored_names: dict[type[Any], str] = {}
_names: dict[type[Any], str] = {}  # found to be importable
_stored: dict[str, type[Any]] = {}
_imported: dict[str, type[Any]] = {}
_bases: set[type[Any]] = set()

_Class = TypeVar("_Class", bound=type[Any])


def register_topic(topic: str, cls: type[Any]) -> None:
    """
    Store *cls* under *topic*, whatever its module and name are or become.

    Args:
        topic: 1 to 255 characters.
        cls: The class; it may be local to a function.

    Raises:
        ConfigurationError: *topic* is not such a name, or belongs to another class, or *cls* has another one.
    """
    stored = _stored_names.get(cls, topic)
    if stored != topic:
        raise ConfigurationError(
            f"{class_name(cls)} is stored under {stored!r}, so it cannot be stored under {topic!r} too",
            remedy="Register the older name with register_alias().",
        )
    register_alias(topic, cls)
    _stored_names[cls] = topic


def register_alias(topic: str, cls: type[Any]) -> None:
    """
    Read items that were stored under an older *topic* as *cls*; its own topic stays what it is.

    Args:
        topic: What the class was called, 1 to 255 characters of any form.
        cls: What it is today.

    Raises:
        ConfigurationError: *topic* is not such a name, or belongs to another class.
    """
    if not 0 < len(topic) <= MAX_TOPIC_LENGTH:
        raise ConfigurationError(f"a topic is a string of 1 to {MAX_TOPIC_LENGTH} characters")
    known = _classes.get(topic)
    # A class that its own name does not find, since its module was loaded again, gives way.
    if known is not None and known is not cls and _is_loaded(known):
        raise ConfigurationError(
            f"topic {topic!r} belongs to {class_name(known)}, so it cannot be {class_name(cls)} too"
        )
    _classes[topic] = cls


def class_name(cls: type[Any]) -> str:
    """Name a class as messages show it, and as its topic does unless another one is registered."""
    return f"{cls.__module__}:{cls.__qualname__}"


def topic_of(cls: type[Any]) -> str:
    """
    Name *cls* so that :func:`resolve_topic` finds it again.

    Returns:
        The registered topic, else ``module:Qualified.Name``.

    Raises:
        SerializationError: The class cannot be found by that name.
    """
    known = _stored_names.get(cls) or _names.get(cls)
    if known is not None:
        return known
    topic = class_name(cls)
    try:
        # Not from the known ones: a module that was loaded again has new classes.
        found = _import(topic) if len(topic) <= MAX_TOPIC_LENGTH else None
    except SerializationError:
        found = None
    if found is not cls:
        raise SerializationError(
            f"class {topic} cannot be found again by that name",
            remedy="Define it at the top of a module, or name it with register_topic().",
        )
    _names[cls] = topic
    _stored[topic] = _imported[topic] = cls
    return topic


def resolve_topic(topic: str) -> type[Any]:
    """
    Find the class that *topic* names, importing its module if need be.

    Args:
        topic: From an authenticated item, since it decides which module is imported. For other topics, call
            :meth:`EventModules.resolve`.

    Raises:
        SerializationError: It names no class.
    """
    known = _classes.get(topic) or _imported.get(topic)
    if known is None:
        known = _imported[topic] = _import(topic)
    return known


def with_known_subclasses(cls: _Class) -> _Class:
    """Let unauthenticated items name the class, and its subclasses that are imported."""
    _bases.add(cls)
    return cls


class EventModules:
    """
    Looks up the classes that unauthenticated items name.

    The program decides which classes these are, not the item: classes that are registered, that this process
    has stored, or that are imported events and entities. One of the modules must define any other class.

    Args:
        names: The modules. A package covers its submodules, which a topic may import.

    Raises:
        ConfigurationError: A name is not a module's.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        if isinstance(names, str) or not all(map(is_module_name, names)):
            raise ConfigurationError(
                "event_modules takes names of modules",
                remedy='Give a list such as event_modules=["shop"], without the names of classes.',
            )
        self._names = tuple(names)
        self._is_loaded = False
        self._known: dict[str, type[Any]] = {}

    def load(self) -> None:
        """
        Import the modules once, so that their registrations count.

        Raises:
            ConfigurationError: A module is not there.
        """
        if self._is_loaded:
            return
        for name in self._names:
            import_listed(name, "event_modules")
        self._is_loaded = True

    def resolve(self, topic: str) -> type[Any]:
        """
        Find the class that *topic* names, if an unauthenticated item may name it.

        Raises:
            ConfigurationError: A module is not there.
            SerializationError: It names no such class.
        """
        known = _classes.get(topic) or _stored.get(topic) or self._known.get(topic)
        if known is None:
            known = self._known[topic] = self._found(topic)
            _imported.setdefault(topic, known)  # so that resolve_topic() gives the class that was checked
        return known

    def check_attributes(self, cls: type[Any], attributes: Mapping[str, Any]) -> None:
        """
        Look up the classes that an event's attributes name, before a replay of the event imports them.

        Args:
            cls: The event's.
            attributes: By name.

        Raises:
            SerializationError: An attribute names a class that it may not name, or is not a name.
        """
        names = ["originator_topic", *getattr(cls, NAMES_CLASSES, ())]
        if _of_library("domain", "CanSnapshotAggregate") in cls.__mro__:
            names.append("topic")
        for name in names:
            named = attributes.get(name)
            for topic in named if type(named) is list else () if named is None else (named,):
                if type(topic) is not str:
                    raise SerializationError(f"{name} of {class_name(cls)} is not the name of a class")
                self.resolve(topic)

    def _found(self, topic: str) -> type[Any]:
        if type(topic) is not str:
            raise SerializationError("a topic is text", remedy="Find out who wrote the row.")
        found = _registered(topic)
        if found is None:
            self.load()
            found = _registered(topic) or self._defined(topic)
        return found

    def _defined(self, topic: str) -> type[Any]:
        module, _, qualified_name = topic.partition(":")
        found = _loaded_class(module, qualified_name)
        if found is not None and not _known_bases().isdisjoint(found.__mro__):
            return found
        if not self._cover(module):
            raise _not_covered(topic, module)
        if module not in sys.modules and "__main__" not in module.split("."):
            try:
                import_module(module)
            except (ImportError, AttributeError, TypeError, ValueError) as exc:
                raise _not_there(topic, exc) from exc
            found = _loaded_class(module, qualified_name)
        if found is None:
            raise SerializationError(f"topic {topic!r} names no class that is there", remedy=_ALIAS_REMEDY)
        if not self._cover(found.__module__):
            raise _not_covered(topic, found.__module__)
        return found

    def _cover(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self._names)


def import_listed(name: str, setting: str) -> ModuleType:
    """
    Import a module that a setting lists.

    Raises:
        ConfigurationError: It is not there.
        ModuleNotFoundError: A module that it imports is not there.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(
            f"{setting}: there is no module {error.name}",
            remedy="Correct the setting, or put the module's folder on PYTHONPATH.",
        ) from None


def is_module_name(name: object) -> bool:
    """Whether *name* has the form of a module's."""
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def _registered(topic: str) -> type[Any] | None:
    found = _classes.get(topic) or _stored.get(topic)
    if found is None:
        of_library = (_of_library("utils", "_topic_cache") or {}).get(topic)
        found = of_library if isinstance(of_library, type) else None
    return found


def _known_bases() -> set[type[Any]]:
    return _bases | {base for name in _LIBRARY_BASES if (base := _of_library("domain", name)) is not None}


_LIBRARY_BASES = ("DomainEvent", "HasOriginatorIDVersion", "Aggregate", "BaseAggregate")


def _of_library(module: str, name: str) -> Any:
    """Give what the eventsourcing library has under a name, if the program has imported it."""
    return vars(sys.modules.get(f"eventsourcing.{module}", _NO_MODULE)).get(name)


_NO_MODULE = ModuleType("none")


def _loaded_class(module: str, qualified_name: str) -> type[Any] | None:
    """Find a class that is there, without running code of its module: no import, no ``__getattr__``."""
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


def _not_covered(topic: str, module: str) -> SerializationError:
    package = module.partition(".")[0]
    remedy = _ALIAS_REMEDY
    if is_module_name(package):
        remedy = (
            f'If your application stores this class, set event_modules = ["{package}"] in eventseal.toml, or '
            f"event_modules= of the mapper. {_ALIAS_REMEDY} Else find out who wrote the row."
        )
    return SerializationError(
        f"topic {topic!r} is not authenticated, and names no class of event_modules", remedy=remedy
    )


def _import(topic: str) -> type[Any]:
    module, separator, qualified_name = topic.partition(":")
    if not (separator and module and qualified_name):
        raise SerializationError(
            f"topic {topic!r} is not of the form 'module:Qualified.Name'", remedy=_ALIAS_REMEDY
        )
    try:
        found = _member(import_module(module), qualified_name)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        raise _not_there(topic, exc) from exc
    if not isinstance(found, type):
        raise SerializationError(f"topic {topic!r} names something that is not a class", remedy=_ALIAS_REMEDY)
    return found


def _not_there(topic: str, exc: Exception) -> SerializationError:
    return SerializationError(f"topic {topic!r} is not there: {exc}", remedy=_ALIAS_REMEDY)


_ALIAS_REMEDY = "If the class was renamed or moved, call register_alias(topic, cls) with what it is today."


def _is_loaded(cls: type[Any]) -> bool:
    try:
        return _member(sys.modules.get(cls.__module__), cls.__qualname__) is cls
    except AttributeError:
        return False


def _member(module: object, qualified_name: str) -> Any:
    found = module
    for name in qualified_name.split("."):
        found = getattr(found, name)
    return found

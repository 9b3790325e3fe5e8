"""
Topics: the stored names of classes, ``module:Qualified.Name`` by default.

A renamed or moved class is a fact of the program, like its imports, so registrations apply to the process. A
topic in the database is never rewritten, because a sealed item authenticates it. An attacker who can write to
a table chooses the topics of unauthenticated items. ``EventModules`` checks those.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from eventseal.errors import ConfigurationError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

    Resolve = Callable[[str], type[Any]]

MAX_TOPIC_LENGTH = 255
MOST_PARTS = 100
"""The maximum number of names in a topic. Each package takes levels of the stack to import."""
ALIAS_REMEDY = "If the class was renamed or moved, call register_alias(topic, cls) with the class of today."

_classes: dict[str, type[Any]] = {}
_stored_names: dict[type[Any], str] = {}
_names: dict[type[Any], str] = {}  # found to be importable
_stored: dict[str, type[Any]] = {}
_imported: dict[str, type[Any]] = {}
_bases: set[type[Any]] = set()
_answers: dict[tuple[str, ...], dict[str, type[Any]]] = {}

_Class = TypeVar("_Class", bound=type[Any])
_T = TypeVar("_T")


def register_topic(topic: str, cls: type[Any]) -> None:
    """
    Store *cls* under *topic*, whatever its module and name become.

    Args:
        topic: 1 to 255 characters.
        cls: The class. It may be local to a function.

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
    Read items under an older *topic* as *cls*, whose own topic stays.

    Args:
        topic: The former name of the class, 1 to 255 characters of any form.
        cls: The class of today.

    Raises:
        ConfigurationError: *topic* is not such a name, or belongs to another class.
    """
    if not 0 < len(topic) <= MAX_TOPIC_LENGTH:
        raise ConfigurationError(f"a topic is a string of 1 to {MAX_TOPIC_LENGTH} characters")
    known = _classes.get(topic)
    # A class that its own name does not find, because its module was loaded again, gives way.
    if known is not None and known is not cls and _is_loaded(known):
        raise ConfigurationError(
            f"topic {topic!r} belongs to {class_name(known)}, so it cannot be {class_name(cls)} too"
        )
    _classes[topic] = cls
    _forget(topic)


def class_name(cls: type[Any]) -> str:
    """Return the name of a class, as in messages and default topics."""
    return f"{cls.__module__}:{cls.__qualname__}"


def topic_of(cls: type[Any]) -> str:
    """
    Return the name by which :func:`resolve_topic` finds *cls*.

    Returns:
        The registered topic, or otherwise ``module:Qualified.Name``.

    Raises:
        SerializationError: The class cannot be found by that name.
    """
    known = _stored_names.get(cls) or _names.get(cls)
    if known is not None:
        return known
    topic = class_name(cls)
    try:
        # Not from the known ones, because a module that was loaded again has new classes.
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
    _forget(topic)
    return topic


def resolve_topic(topic: str) -> type[Any]:
    """
    Find the class of *topic*, and import its module if necessary.

    Args:
        topic: A topic from an authenticated item, because it decides which module is imported. For other
            topics, call ``EventModules.resolve()``.

    Raises:
        SerializationError: The topic does not name a class.
    """
    known = _classes.get(topic) or _imported.get(topic)
    if known is None:
        known = _imported[topic] = _import(topic)
    return known


def with_known_subclasses(cls: _Class) -> _Class:
    """Let unauthenticated items name the class and its imported subclasses."""
    _bases.add(cls)
    return cls


def registered_class(topic: str) -> type[Any] | None:
    """Return the class that this process registered or stored under *topic*."""
    return _classes.get(topic) or _stored.get(topic)


def known_subclasses() -> frozenset[type[Any]]:
    """Return the classes that :func:`with_known_subclasses` was called for."""
    return frozenset(_bases)


def answers_for(modules: tuple[str, ...]) -> dict[str, type[Any]]:
    """
    Return the classes that unauthenticated items have named, by topic.

    They are kept for each set of modules. A topic that gets another class is removed, so a lookup here is the
    whole answer.
    """
    return _answers.setdefault(modules, {})


def remember(answers: dict[str, type[Any]], topic: str, cls: type[Any]) -> type[Any]:
    """Remember a class, unless another thread has just registered *topic*."""
    answers[topic] = cls
    current = registered_class(topic)
    if current is not None:
        cls = answers[topic] = current
    _imported.setdefault(topic, cls)  # so that resolve_topic() returns the class that was checked
    return cls


def split_topic(topic: str) -> tuple[str, str]:
    """
    Return the module and the qualified name in a topic.

    Raises:
        SerializationError: The topic has another form, or too many parts.
    """
    module, _, qualified_name = topic.partition(":")
    if not (module and qualified_name):
        raise SerializationError(
            f"topic {topic!r} is not of the form 'module:Qualified.Name'", remedy=ALIAS_REMEDY
        )
    if topic.count(".") >= MOST_PARTS:
        raise SerializationError(f"a topic has more than {MOST_PARTS} parts", remedy=ALIAS_REMEDY)
    return module, qualified_name


def run_import(topic: str, import_: Callable[[], _T]) -> _T:
    """
    Import a topic's module, whatever its code raises.

    No module ends the process, or stops the code that reads other items.

    Args:
        topic: The topic, for the message.
        import_: The import. It may raise anything.

    Raises:
        SerializationError: The import failed. The message does not repeat the reason, because it may be a
            secret of the module.
        KeyboardInterrupt: The user interrupted the import.
    """
    try:
        return import_()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - also SystemExit, and exceptions of test frameworks
        failed = type(error).__name__
    raise SerializationError(
        f"topic {topic!r} cannot be found: its import raised {failed}",
        remedy=f"{ALIAS_REMEDY} If the module exists, import it yourself to see why it fails. "
        "Otherwise find out who wrote the row.",
    )


def _import(topic: str) -> type[Any]:
    module, qualified_name = split_topic(topic)
    found = run_import(topic, lambda: _member(import_module(module), qualified_name))
    if not isinstance(found, type):
        raise SerializationError(f"topic {topic!r} names something that is not a class", remedy=ALIAS_REMEDY)
    return found


def _forget(topic: str) -> None:
    for answers in list(_answers.values()):
        answers.pop(topic, None)


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

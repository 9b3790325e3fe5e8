"""
Topics: the names under which classes are stored, ``module:Qualified.Name`` unless registered otherwise.

A renamed or moved class is a fact of the program, like its imports, so registrations hold for the process. A
topic in the database is never rewritten: it is part of what a sealed item authenticates.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from eventseal.errors import ConfigurationError, SerializationError

MAX_TOPIC_LENGTH = 255

_classes: dict[str, type[Any]] = {}
_stored_names: dict[type[Any], str] = {}
_names: dict[type[Any], str] = {}  # found to be importable
_imported: dict[str, type[Any]] = {}


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
            f"{_name(cls)} is stored under {stored!r}, so it cannot be stored under {topic!r} too",
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
            f"topic {topic!r} belongs to {_name(known)}, so it cannot be {_name(cls)} too"
        )
    _classes[topic] = cls


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
    topic = _name(cls)
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
    _imported[topic] = cls
    return topic


def resolve_topic(topic: str) -> type[Any]:
    """
    Find the class that *topic* names, importing its module if need be.

    Args:
        topic: From an item that was authenticated, where items are sealed.

    Raises:
        SerializationError: It names no class.
    """
    known = _classes.get(topic) or _imported.get(topic)
    if known is None:
        known = _imported[topic] = _import(topic)
    return known


def _import(topic: str) -> type[Any]:
    module, separator, qualified_name = topic.partition(":")
    if not (separator and module and qualified_name):
        raise SerializationError(
            f"topic {topic!r} is not of the form 'module:Qualified.Name'", remedy=_ALIAS_REMEDY
        )
    try:
        found = _member(import_module(module), qualified_name)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        raise SerializationError(f"topic {topic!r} is not there: {exc}", remedy=_ALIAS_REMEDY) from exc
    if not isinstance(found, type):
        raise SerializationError(f"topic {topic!r} names something that is not a class", remedy=_ALIAS_REMEDY)
    return found


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


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"

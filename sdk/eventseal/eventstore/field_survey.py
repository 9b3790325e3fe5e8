"""
Survey how the fields of event classes are protected.

The survey also finds unprotected fields that look like personal data.
"""

from __future__ import annotations

import pkgutil
import re
import shlex
from dataclasses import is_dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eventseal.errors import ConfigurationError
from eventseal.eventstore.entities import EventSourcedEntity
from eventseal.eventstore.events import DomainEvent
from eventseal.eventstore.personal_state import refuse_unmarked
from eventseal.items.mapper import SequencedItemMapper
from eventseal.items.personal import annotates_personal, marked_names
from eventseal.items.protection import parameters_of_constructors
from eventseal.items.scopes import CLASS_RULE
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from types import ModuleType

    from eventseal.items.protection import ProtectedField

PERSONAL_WORDS = frozenset({
    "address", "addresses", "age", "birth", "birthdate", "birthday", "birthplace", "born", "dob", "email",
    "emails", "ethnicity", "fax", "firstname", "forename", "fullname", "gender", "iban", "ip", "lastname",
    "latitude", "longitude", "maiden", "mail", "mobile", "name", "names", "nationality", "nickname",
    "passport", "phone", "phones", "photo", "portrait", "postal", "postcode", "religion", "salutation", "sex",
    "ssn", "street", "surname", "telephone", "username", "zip", "zipcode",
})  # fmt: skip
"""
Words that suggest personal data in a name.

For example, ``email`` is in ``work_email`` and ``EmailStr``.
"""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PLAIN_MODULES = frozenset({"builtins", "datetime", "decimal", "types", "typing", "uuid"})


class Mapper(Protocol):
    """A mapper class that lists the protection of fields."""

    @classmethod
    def protections(cls, event_class: type[Any], *, always_encrypt: bool = ...) -> list[ProtectedField]:
        """
        List the fields of a class.

        Raises:
            ConfigurationError: The mapper would refuse the class.
        """
        ...


class SurveyedClass(NamedTuple):
    """
    An event class, or a dataclass that events hold.

    Attributes:
        name: The name of the class, as ``module:Qualified.Name``.
        fields: The fields that annotations or the constructor declare. Empty if the class is refused.
        suspicions: Why an unprotected field looks like personal data, by field.
        refused: Why the mapper refuses the class, with the remedy. ``None`` if it does not.
    """

    name: str
    fields: Sequence[ProtectedField]
    suspicions: Mapping[str, str]
    refused: str | None = None


def survey(
    names: Collection[str],
    *,
    words: Collection[str] = (),
    always_encrypt: bool = False,
    mapper_of: Callable[[type[Any]], type[Mapper]],
) -> list[SurveyedClass]:
    """
    Survey the classes in modules.

    Args:
        names: Modules, packages with all their modules, or classes as ``module:Qualified.Name``.
        words: Words that suggest personal data, in addition to :data:`PERSONAL_WORDS`.
        always_encrypt: Whether the mapper encrypts every item, even if its class does not require it.
        mapper_of: Returns the mapper class that stores the objects of a class.

    Returns:
        The event classes and dataclasses that are defined there, and the dataclasses that these hold.

    Raises:
        ConfigurationError: A class does not exist, or a module raises an exception.
        ImportError: A module does not exist.
    """
    known = PERSONAL_WORDS | {word.lower() for word in words}
    wanted = [cls for name in names for cls in _classes(name, mapper_of)]
    surveyed: dict[type[Any], SurveyedClass] = {}
    while wanted:
        cls = wanted.pop()
        if cls not in surveyed:
            surveyed[cls] = _surveyed(cls, known, mapper_of(cls), always_encrypt=always_encrypt)
            objects = [field for field in surveyed[cls].fields if field.protection == "object"]
            wanted += [one for field in objects for one in field.declared.classes if is_dataclass(one)]
    return sorted(surveyed.values(), key=lambda one: one.name)


def _classes(name: str, mapper_of: Callable[[type[Any]], type[Mapper]]) -> Iterator[type[Any]]:
    module_name, _, qualified = name.partition(":")
    module = _imported(module_name)
    if qualified:
        found: Any = module
        for part in qualified.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, type):
            raise ConfigurationError(
                f"{name!r} does not name a class", remedy="Correct the name: module:Qualified.Name."
            )
        yield found
        return
    yield from _defined_in(module, mapper_of)
    for inner in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module_name}."):
        if not inner.name.endswith(".__main__"):
            yield from _defined_in(_imported(inner.name), mapper_of)


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise
    except Exception as error:  # the module's own code may raise anything
        raise ConfigurationError(
            f"module {name!r} cannot be imported: {type(error).__name__}: {error}",
            remedy="Pass its dotted name. Check that this succeeds here: python -c "
            + shlex.quote(f"import {name}"),
        ) from error


def _defined_in(
    holder: ModuleType | type[Any], mapper_of: Callable[[type[Any]], type[Mapper]]
) -> Iterator[type[Any]]:
    module = holder.__module__ if isinstance(holder, type) else holder.__name__
    for member in list(vars(holder).values()):
        if not isinstance(member, type) or member.__module__ != module or member is holder:
            continue
        if isinstance(holder, type) and not member.__qualname__.startswith(f"{holder.__qualname__}."):
            continue
        if _is_stored(member, mapper_of(member)):
            yield member
        yield from _defined_in(member, mapper_of)


def _is_stored(cls: type[Any], mapper: type[Mapper]) -> bool:
    if issubclass(cls, BaseException | Enum) or getattr(cls, "_is_protocol", False):
        return False
    says = any(hasattr(cls, name) for name in (CLASS_RULE, "__always_encrypt__"))
    return says or is_dataclass(cls) or issubclass(cls, DomainEvent) or _is_marked(cls, mapper)


def _is_marked(cls: type[Any], mapper: type[Mapper]) -> bool:
    """Whether a class marks personal data. Such a class is listed even if it may not be an event."""
    if mapper is SequencedItemMapper:
        return bool(marked_names(cls)) if issubclass(cls, EventSourcedEntity) else annotates_personal(cls)
    try:
        mapper.protections(cls)
    except ConfigurationError:
        return True
    return False


def _surveyed(
    cls: type[Any], words: frozenset[str], mapper: type[Mapper], *, always_encrypt: bool
) -> SurveyedClass:
    name = class_name(cls)
    try:
        fields = mapper.protections(cls, always_encrypt=always_encrypt)
        if issubclass(cls, EventSourcedEntity):
            refuse_unmarked(cls, parameters_of_constructors(cls))
    except ConfigurationError as error:
        return SurveyedClass(name, (), {}, f"{error}. {error.remedy}")
    found = {field.name: _suspicion(field, words) for field in fields}
    return SurveyedClass(name, fields, {field: why for field, why in found.items() if why is not None})


def _suspicion(field: ProtectedField, words: frozenset[str]) -> str | None:
    declared = field.declared
    if field.protection != "plain" or declared.not_personal is not None or set(declared.classes) == {bool}:
        return None
    said = _words(field.name) & words
    if said:
        return f"its name says {min(said)!r}"
    for one in declared.classes:
        said = set() if one.__module__ in _PLAIN_MODULES else _words(one.__name__) & words
        if said:
            return f"its type {one.__name__} says {min(said)!r}"
    return None


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(name)}

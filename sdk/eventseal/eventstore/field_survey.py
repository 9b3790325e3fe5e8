"""Which fields of event classes are protected how, and which plain ones look like personal data."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import dataclass, is_dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from eventseal.errors import ConfigurationError
from eventseal.eventstore.events import DomainEvent
from eventseal.items.mapper import SequencedItemMapper
from eventseal.items.personal import annotates_personal
from eventseal.items.scopes import CLASS_RULE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import ModuleType

    from eventseal.items.protection import ProtectedField, Protection

PERSONAL_WORDS = frozenset({
    "address", "addresses", "age", "birth", "birthdate", "birthday", "birthplace", "born", "dob", "email",
    "emails", "ethnicity", "fax", "firstname", "forename", "fullname", "gender", "iban", "ip", "lastname",
    "latitude", "longitude", "maiden", "mail", "mobile", "name", "names", "nationality", "nickname",
    "passport", "phone", "phones", "photo", "portrait", "postal", "postcode", "religion", "salutation", "sex",
    "ssn", "street", "surname", "telephone", "username", "zip", "zipcode",
})  # fmt: skip
"""Words that say personal data where a name has them: ``email`` in ``work_email`` and ``EmailStr``."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PLAIN_MODULES = frozenset({"builtins", "datetime", "decimal", "types", "typing", "uuid"})


class Mapper(Protocol):
    """A mapper class, that says what becomes of the fields of a class."""

    @classmethod
    def protections(cls, event_class: type[Any], *, always_encrypt: bool = ...) -> list[ProtectedField]:
        """Say it, or raise ``ConfigurationError`` if it refuses the class."""
        ...


def stored_by_default(_: type[Any]) -> type[Mapper]:
    """Give the mapper of EventSeal's own event store, for any class."""
    return SequencedItemMapper


@dataclass(frozen=True, slots=True)
class SurveyedField:
    """
    A field of an event class, or of an object in one.

    Attributes:
        name: The attribute.
        type: Its annotation, or nothing.
        protection: ``sealed field`` under its subject's key; ``object``, whose own fields are listed apart;
            ``sealed item`` as a part of the whole; or ``plain``.
        subjects: The attributes that name its subjects.
        suspicion: Why it looks like personal data, if it does and is plain.
        not_personal: The reason that ``NotPersonal`` gives.
    """

    name: str
    type: str
    protection: Protection
    subjects: tuple[str, ...] = ()
    suspicion: str | None = None
    not_personal: str | None = None


@dataclass(frozen=True, slots=True)
class SurveyedClass:
    """
    An event class, or a dataclass that events hold.

    Attributes:
        name: ``module:Qualified.Name``.
        fields: Those that it declares, by annotations or by its constructor; none if it is refused.
        refused: Why its mapper refuses it, and what to do about it, if it does.
    """

    name: str
    fields: tuple[SurveyedField, ...]
    refused: str | None = None

    @property
    def suspects(self) -> list[SurveyedField]:
        """The plain fields that look like personal data."""
        return [field for field in self.fields if field.suspicion is not None]


def survey(
    names: Collection[str],
    *,
    words: Collection[str] = (),
    always_encrypt: bool = False,
    mapper_of: Callable[[type[Any]], type[Mapper]] = stored_by_default,
) -> list[SurveyedClass]:
    """
    Survey modules.

    Args:
        names: Modules, packages with all their modules, or classes as ``module:Qualified.Name``.
        words: Further ones that say personal data, beside :data:`PERSONAL_WORDS`.
        always_encrypt: Whether the mapper seals every item, also those whose class does not ask for it.
        mapper_of: Gives the mapper class that stores the objects of a class.

    Returns:
        The event classes and dataclasses that are defined there, and the dataclasses that these hold.

    Raises:
        ConfigurationError: There is no such class, or a module raises something.
        ImportError: There is no such module.
    """
    known = PERSONAL_WORDS | {word.lower() for word in words}
    wanted = dict.fromkeys(cls for name in names for cls in _classes(name, mapper_of))
    surveyed: dict[type[Any], SurveyedClass] = {}
    while wanted:
        cls = next(iter(wanted))
        del wanted[cls]
        held: list[type[Any]] = []
        surveyed[cls] = _surveyed(cls, known, held, mapper_of(cls), always_encrypt=always_encrypt)
        wanted |= dict.fromkeys(one for one in held if one not in surveyed)
    return sorted(surveyed.values(), key=lambda one: one.name)


def _classes(name: str, mapper_of: Callable[[type[Any]], type[Mapper]]) -> Iterator[type[Any]]:
    module_name, _, qualified = name.partition(":")
    module = _imported(module_name)
    if qualified:
        found: Any = module
        for part in qualified.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, type):
            raise ConfigurationError(f"{name!r} names no class")
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
    except Exception as error:  # whatever the module's own code raises
        raise ConfigurationError(
            f"module {name!r} cannot be imported: {type(error).__name__}: {error}",
            remedy=f"Give its dotted name, and see that `python -c 'import {name}'` runs here.",
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
    """Whether a class that may be no event says personal data, so that it is listed all the same."""
    if mapper is SequencedItemMapper:
        return annotates_personal(cls)
    try:
        mapper.protections(cls)
    except ConfigurationError:
        return True
    return False


def _surveyed(
    cls: type[Any],
    words: frozenset[str],
    held: list[type[Any]],
    mapper: type[Mapper],
    *,
    always_encrypt: bool,
) -> SurveyedClass:
    name = f"{cls.__module__}:{cls.__qualname__}"
    try:
        protected = mapper.protections(cls, always_encrypt=always_encrypt)
    except ConfigurationError as error:
        return SurveyedClass(name, (), f"{error}. {error.remedy}")
    fields: list[SurveyedField] = []
    for field in protected:
        declared = field.declared
        held.extend(one for one in declared.classes if field.protection == "object" and is_dataclass(one))
        suspicion = None
        is_told = declared.not_personal is not None or set(declared.classes) == {bool}
        if field.protection == "plain" and not is_told:
            suspicion = _suspicion(field, words)
        fields.append(
            SurveyedField(
                field.name,
                _shown(declared.text),
                field.protection,
                field.subjects,
                suspicion,
                declared.not_personal,
            )
        )
    return SurveyedClass(name, tuple(fields))


def _suspicion(field: ProtectedField, words: frozenset[str]) -> str | None:
    said = _words(field.name) & words
    if said:
        return f"its name says {min(said)!r}"
    for one in field.declared.classes:
        said = set() if one.__module__ in _PLAIN_MODULES else _words(one.__name__) & words
        if said:
            return f"its type {one.__name__} says {min(said)!r}"
    return None


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(name)}


def _shown(text: str) -> str:
    return re.sub(r"^Annotated\[(.*?), *(?:\w+\.)*(?:PersonalData|NotPersonal)\(.*\)\]$", r"\1", text)

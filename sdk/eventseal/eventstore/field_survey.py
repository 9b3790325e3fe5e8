"""Which fields of event classes are protected how, and which plain ones look like personal data."""

from __future__ import annotations

import inspect
import pkgutil
import re
from dataclasses import dataclass, is_dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, get_args, get_origin

from eventseal.errors import ConfigurationError
from eventseal.eventstore.events import DomainEvent
from eventseal.items.annotations import annotations_of
from eventseal.items.personal import NotPersonal, personal_data_in, plan_of
from eventseal.items.scopes import CLASS_RULE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import ModuleType

    from eventseal.items.annotations import Annotation

Protection: TypeAlias = Literal["sealed field", "object", "sealed item", "plain"]

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
        fields: Those that it declares, by annotations or by its constructor.
    """

    name: str
    fields: tuple[SurveyedField, ...]

    @property
    def suspects(self) -> list[SurveyedField]:
        """The plain fields that look like personal data."""
        return [field for field in self.fields if field.suspicion is not None]


def survey(
    names: Collection[str], *, words: Collection[str] = (), always_encrypt: bool = False
) -> list[SurveyedClass]:
    """
    Survey modules.

    Args:
        names: Modules, packages with all their modules, or classes as ``module:Qualified.Name``.
        words: Further ones that say personal data, beside :data:`PERSONAL_WORDS`.
        always_encrypt: Whether the mapper seals every item, also those whose class does not ask for it.

    Returns:
        The event classes and dataclasses that are defined there, and the dataclasses that these hold.

    Raises:
        ConfigurationError: There is no such class, a module raises something, or an annotation contradicts
            itself.
        ImportError: There is no such module.
    """
    known = PERSONAL_WORDS | {word.lower() for word in words}
    wanted = dict.fromkeys(cls for name in names for cls in _classes(name))
    surveyed: dict[type[Any], SurveyedClass] = {}
    while wanted:
        cls = next(iter(wanted))
        del wanted[cls]
        held: list[type[Any]] = []
        surveyed[cls] = _surveyed(cls, known, held, always_encrypt=always_encrypt)
        wanted |= dict.fromkeys(one for one in held if one not in surveyed)
    return sorted(surveyed.values(), key=lambda one: one.name)


def _classes(name: str) -> Iterator[type[Any]]:
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
    yield from _defined_in(module)
    for inner in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module_name}."):
        if not inner.name.endswith(".__main__"):
            yield from _defined_in(_imported(inner.name))


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


def _defined_in(holder: ModuleType | type[Any]) -> Iterator[type[Any]]:
    module = holder.__module__ if isinstance(holder, type) else holder.__name__
    for member in list(vars(holder).values()):
        if not isinstance(member, type) or member.__module__ != module or member is holder:
            continue
        if isinstance(holder, type) and not member.__qualname__.startswith(f"{holder.__qualname__}."):
            continue
        if _is_stored(member):
            yield member
        yield from _defined_in(member)


def _is_stored(cls: type[Any]) -> bool:
    if issubclass(cls, BaseException | Enum) or getattr(cls, "_is_protocol", False):
        return False
    says = any(hasattr(cls, name) for name in (CLASS_RULE, "__always_encrypt__"))
    return says or is_dataclass(cls) or issubclass(cls, DomainEvent) or bool(plan_of(cls).fields)


def _surveyed(
    cls: type[Any], words: frozenset[str], held: list[type[Any]], *, always_encrypt: bool
) -> SurveyedClass:
    plan = plan_of(cls)
    sealed = always_encrypt or bool(getattr(cls, "__always_encrypt__", False))
    declared: dict[str, Annotation | None] = dict.fromkeys(_parameters(cls))
    declared |= {name: one for name, one in annotations_of(cls) if _origin(one) is not ClassVar}
    fields: list[SurveyedField] = []
    for name, annotation in declared.items():
        text = "" if annotation is None else _shown(annotation)
        if name in plan.fields:
            subjects = dict.fromkeys(data.subject for data in personal_data_in(plan.fields[name]))
            fields.append(SurveyedField(name, text, "sealed field", tuple(subjects)))
            continue
        types = [] if annotation is None else list(_types(annotation, annotation.hint))
        objects = [one for one in types if is_dataclass(one)]
        held.extend(objects)
        protection: Protection = "object" if objects else "sealed item" if sealed else "plain"
        reason = None if annotation is None else _exception(annotation)
        suspicion = None
        if protection == "plain" and reason is None and set(types) != {bool}:
            suspicion = _suspicion(name, annotation, types, words)
        fields.append(SurveyedField(name, text, protection, (), suspicion, reason))
    return SurveyedClass(f"{cls.__module__}:{cls.__qualname__}", tuple(fields))


def _parameters(cls: type[Any]) -> list[str]:
    """Name the arguments of constructors that event classes define: such a class need not annotate."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found: list[str] = []
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        is_own = not is_dataclass(base) and not base.__module__.startswith("eventseal.")
        if not is_own or not inspect.isfunction(constructor):
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        found += [one.name for one in parameters if one.kind in named]
    return found


def _suspicion(
    name: str, annotation: Annotation | None, types: list[type[Any]], words: frozenset[str]
) -> str | None:
    said = _words(name) & words
    if said:
        return f"its name says {min(said)!r}"
    for one in types:
        said = set() if one.__module__ in _PLAIN_MODULES else _words(one.__name__) & words
        if said:
            return f"its type {one.__name__} says {min(said)!r}"
    if annotation is not None and annotation.unknown:
        return f"nobody can tell what {annotation.unknown[0]!r} in its annotation is"
    return None


def _words(name: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(name)}


def _origin(annotation: Annotation) -> Any:
    hint = annotation.hint
    return ClassVar if hint is ClassVar else get_origin(hint)


def _exception(annotation: Annotation) -> str | None:
    if _origin(annotation) is not Annotated:
        return None
    return next((one.reason for one in annotation.hint.__metadata__ if isinstance(one, NotPersonal)), None)


def _types(annotation: Annotation, hint: Any) -> Iterator[type[Any]]:
    """Give the classes that an annotation is made of."""
    hint = annotation.resolved(hint)
    hint = getattr(hint, "__supertype__", hint)
    if get_origin(hint) is Literal:
        return
    arguments = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    for argument in arguments:
        yield from _types(annotation, argument)
    if not arguments and isinstance(hint, type):
        yield hint


def _shown(annotation: Annotation) -> str:
    text = annotation.text
    return re.sub(r"^Annotated\[(.*?), *(?:\w+\.)*(?:PersonalData|NotPersonal)\(.*\)\]$", r"\1", text)

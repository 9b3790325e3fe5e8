"""The protection of each field. No subclass of a mapper may undo it."""

from __future__ import annotations

import dis
import inspect
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import FunctionType
from typing import Any, Literal, TypeAlias

from eventseal.errors import ConfigurationError
from eventseal.items.markers import personal_data_in
from eventseal.items.objects import form_of
from eventseal.items.personal import Declared, plan_of
from eventseal.items.topics import class_name

_ALLOWED = {"__init__", "__new__", "__init_subclass__", "__class_getitem__"}
_ALWAYS = frozenset({"__getattribute__", "__setattr__"})
_METHODS = (FunctionType, classmethod, staticmethod, property)


def refuse_replaced_methods(cls: type, own: type) -> None:
    """
    Refuse a class that replaces a method or an attribute of EventSeal's.

    Such a class could store plaintext.

    Args:
        cls: The class of the object that is being created.
        own: EventSeal's class.

    Raises:
        ConfigurationError: The class, or a base class that comes first, replaces one.
    """
    # A mapper seals by its own methods, whatever its other base classes are (docs/decisions/0028).
    first = cls.__mro__[: cls.__mro__.index(own)]
    replaced = _names(own).intersection(name for base in first for name in vars(base))
    if replaced:
        raise ConfigurationError(
            f"{class_name(cls)} replaces {', '.join(sorted(replaced))} "
            f"of {own.__qualname__}, so it could store plaintext",
            remedy=f"Use {own.__qualname__} as it is, or call it from your own class. "
            "A subclass may have a constructor, and methods with other names.",
        )


@cache
def _names(own: type) -> frozenset[str]:
    """Return the methods of EventSeal's class, and the attributes that constructors set."""
    methods = {name for name, member in vars(own).items() if isinstance(member, _METHODS)}
    constructors = (vars(base).get("__init__") for base in own.__mro__)
    kept = {
        step.argval
        for one in constructors
        if isinstance(one, FunctionType)
        for step in dis.get_instructions(one)
        if step.opname == "STORE_ATTR"
    }
    return frozenset(methods - _ALLOWED | kept | _ALWAYS)


Protection: TypeAlias = Literal["sealed field", "object", "sealed item", "plain"]


_UNDECLARED = Declared("", (), None)


@dataclass(frozen=True, slots=True)
class ProtectedField:
    """
    A field, and its protection by a mapper.

    Attributes:
        name: The attribute.
        declared: Its annotation.
        protection: ``sealed field``: sealed under its subject's key. ``object``: its own fields are listed
            separately. ``sealed item``: sealed as a part of the whole item. ``plain``: stored as plaintext.
        subjects: The attributes that name its subjects.
    """

    name: str
    declared: Declared
    protection: Protection
    subjects: tuple[str, ...] = ()


def protected_fields(cls: type[Any], *, is_sealed: bool) -> list[ProtectedField]:
    """
    List the fields that a class declares, with their protection.

    A class declares fields by annotations or by its constructor.

    Args:
        cls: An event class, or a class whose objects events hold.
        is_sealed: Whether the item that holds the object is sealed as a whole.

    Raises:
        ConfigurationError: The mapper would refuse the class at its first use.
    """
    plan = plan_of(cls)
    form_of(cls)
    found: list[ProtectedField] = []
    for name, declared in {
        **dict.fromkeys(parameters_of_constructors(cls), _UNDECLARED),
        **plan.declared,
    }.items():
        if name in plan.fields:
            subjects = dict.fromkeys(data.subject for data in personal_data_in(plan.fields[name]))
            found.append(ProtectedField(name, declared, "sealed field", tuple(subjects)))
        elif any(is_dataclass(one) for one in declared.classes):
            found.append(ProtectedField(name, declared, "object"))
        else:
            found.append(ProtectedField(name, declared, "sealed item" if is_sealed else "plain"))
    return found


def parameters_of_constructors(cls: type[Any]) -> list[str]:
    """
    Return the parameters of the application's own constructors.

    Classes with such a constructor need no annotations.
    """
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

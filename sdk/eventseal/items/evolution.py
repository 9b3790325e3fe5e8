"""
Brings stored attributes into the form that their class has today.

A class counts its forms by ``class_version``, and has a static method ``upcast_v1_v2(state)`` for each step
between them. A new field of a dataclass needs neither if it has a default.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from inspect import getattr_static
from types import FunctionType, MemberDescriptorType
from typing import Any, NamedTuple

from eventseal.errors import ConfigurationError, EventSealError, SerializationError
from eventseal.items.annotations import raw_annotations
from eventseal.items.class_annotations import is_generated
from eventseal.items.topics import class_name

CLASS_VERSION = "class_version"


class Form(NamedTuple):
    """
    The form that a class has today.

    Attributes:
        version: Its ``class_version``.
        is_counted: Whether a stored ``class_version`` is the version, and not an attribute of its own.
        fields: The fields of a dataclass that objects keep under the same name.
        has_constructor: Whether the constructor of the dataclass sets all of them.
    """

    version: int
    is_counted: bool
    fields: frozenset[str]
    has_constructor: bool


_forms: dict[type[Any], Form] = {}


def form_of(cls: type[Any]) -> Form:
    """
    Give the form that a class has today.

    Raises:
        ConfigurationError: Its ``class_version`` is not a whole number from 1.
    """
    form = _forms.get(cls)
    if form is None:
        form = _forms[cls] = _read_form(cls)
    return form


def current(cls: type[Any], attributes: dict[str, Any]) -> dict[str, Any]:
    """
    Bring stored attributes into the form that their class has today.

    Args:
        cls: The class.
        attributes: The stored attributes. The dictionary is changed, and returned.

    Raises:
        SerializationError: They are of a later version than the class, an upcast fails, or a field is missing
            that has no default.
        ConfigurationError: The class has no upcast from their version, or an upcast returns something.
    """
    form = _forms.get(cls) or form_of(cls)
    if form.is_counted and (form.version > 1 or CLASS_VERSION in attributes):
        _upcast(cls, form.version, attributes)
    if form.fields and form.fields.difference(attributes):
        _fill(cls, form, attributes)
    return attributes


def _upcast(cls: type[Any], current_version: int, attributes: dict[str, Any]) -> None:
    stored: Any = attributes.pop(CLASS_VERSION, 1)
    name = class_name(cls)
    if type(stored) is not int or not 1 <= stored <= current_version:
        shown = stored if type(stored) is int else f"a {type(stored).__name__}"
        raise SerializationError(
            f"a stored {name} is of version {shown}, and the class is of version {current_version}",
            remedy="Read it with the release of your application that wrote it, or a later one.",
        )
    for version in range(stored, current_version):
        step = f"upcast_v{version}_v{version + 1}"
        function = getattr(cls, step, None)
        if function is None:
            raise ConfigurationError(
                f"{name} is of version {current_version}, and has no {step}()",
                remedy=f"Define the static method {step}(state), which changes the stored attributes.",
            )
        try:
            returned = function(attributes)
        except EventSealError:
            raise
        except Exception as error:  # noqa: BLE001 - the application's own code
            kind = type(error).__name__
        else:
            if returned is None:
                continue
            raise ConfigurationError(
                f"{name}.{step}() returned a {type(returned).__name__}, which would be lost",
                remedy=f"Let {step}(state) change state in place, and return nothing.",
            )
        # Raised here: the cause would hold the plaintext.
        raise SerializationError(
            f"{name}.{step}() raised a {kind} on a stored state of version {version}",
            remedy="Correct the function: personal data in the state may be masks.",
        )


def _fill(cls: type[Any], form: Form, attributes: dict[str, Any]) -> None:
    for field in fields(cls):
        if field.name not in form.fields or field.name in attributes:
            continue
        if field.default is not MISSING:
            attributes[field.name] = field.default
        elif field.default_factory is not MISSING:
            attributes[field.name] = field.default_factory()
        elif field.init and form.has_constructor:
            raise SerializationError(
                f"a stored {class_name(cls)} has no {field.name!r}, a field that has no default",
                remedy=f"Give {field.name!r} a default, or raise {CLASS_VERSION} and define an upcast.",
            )


def _read_form(cls: type[Any]) -> Form:
    said = getattr_static(cls, CLASS_VERSION, None)
    is_own = said is None or hasattr(type(said), "__get__")  # at most an attribute of its objects
    if not is_own and (type(said) is not int or said < 1):
        raise ConfigurationError(
            f"{CLASS_VERSION} of {class_name(cls)} is {said!r}",
            remedy="Set it to a whole number from 1.",
        )
    annotated = any(CLASS_VERSION in raw_annotations(base) for base in cls.__mro__)
    kept = (field.name for field in fields(cls)) if is_dataclass(cls) else ()
    return Form(
        1 if is_own else said,
        not (is_own and annotated),
        frozenset(name for name in kept if _is_kept(getattr_static(cls, name, None))),
        _has_constructor(cls),
    )


def _has_constructor(cls: type[Any]) -> bool:
    """Whether ``dataclass`` wrote the constructor. Another one may leave a field out."""
    constructor = getattr_static(cls, "__init__")
    return isinstance(constructor, FunctionType) and is_generated(constructor)


def _is_kept(member: object) -> bool:
    """Whether objects keep a field under its name: not where a property or another descriptor has it."""
    return isinstance(member, MemberDescriptorType) or not hasattr(type(member), "__set__")

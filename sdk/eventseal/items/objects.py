"""Objects as their attributes, and back without calling ``__init__``: what was stored is what comes back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from inspect import getattr_static
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any, NamedTuple, get_args

from eventseal.errors import SerializationError
from eventseal.items.annotation_reading import Reader
from eventseal.items.annotations import Names
from eventseal.items.evolution import CLASS_VERSION, Form, current, form_of
from eventseal.items.personal import plan_of
from eventseal.items.topics import class_name

_ARGUMENTS = "__orig_class__"
_METHODS = (FunctionType, MethodType, classmethod, staticmethod)


class _Layout(NamedTuple):
    """
    Where the objects of a class keep their state.

    Attributes:
        slots: The slots that hold some.
        computed: Attributes that the class computes, and that are not stored.
        form: The form that the class has today.
    """

    slots: tuple[str, ...]
    computed: tuple[str, ...]
    form: Form


_layouts: dict[type[Any], _Layout] = {}


def attributes_of(obj: object) -> dict[str, Any]:
    """
    Copy an object's attributes: its ``__dict__``, and its slots that are set.

    What a property or another descriptor of the class keeps there is computed, and left out.

    Args:
        obj: A domain event, or a dataclass inside one.

    Raises:
        SerializationError: Its class keeps state elsewhere, so that it could not come back whole, or it has
            an attribute ``class_version`` and its class has none.
        ConfigurationError: It was created as ``Class[Argument](...)``, and the argument is personal data.
    """
    cls = type(obj)
    layout = _layouts.get(cls) or _read_layout(cls)
    state = getattr(obj, "__dict__", None)
    attributes = {} if state is None else dict(state)
    for name in layout.slots:
        try:
            attributes[name] = getattr(obj, name)
        except AttributeError:  # a slot that was never set
            continue
    for name in layout.computed:
        attributes.pop(name, None)
    if _ARGUMENTS in attributes:
        arguments = get_args(attributes.pop(_ARGUMENTS))
        Reader(Names(cls), class_name(cls)).refuse_inside(arguments, "its arguments")
    if layout.form.version > 1:
        attributes[CLASS_VERSION] = layout.form.version
    elif CLASS_VERSION in attributes and layout.form.is_counted:
        raise SerializationError(
            f"a {class_name(cls)} has an attribute {CLASS_VERSION!r}, which would be taken "
            "for the version of its class",
            remedy=f"Annotate {CLASS_VERSION!r} in the body of the class, or give it another name.",
        )
    return attributes


def restore(cls: type[Any], attributes: dict[str, Any]) -> Any:
    """
    Make an object of *cls*, frozen or not, without calling its ``__init__``.

    Args:
        cls: The class.
        attributes: The stored attributes. The dictionary is changed: it gets today's form, and masks.

    Raises:
        SerializationError: *cls* keeps state elsewhere, has no place for an attribute, or has a form that
            they cannot be brought into.
        ConfigurationError: *cls* has no upcast for them, or its annotations are refused.
    """
    slots, computed, _ = _layouts.get(cls) or _read_layout(cls)
    current(cls, attributes)
    plan_of(cls).put_masks(attributes)
    for name in computed:  # an earlier release stored them
        attributes.pop(name, None)
    obj = object.__new__(cls)
    if not slots:
        obj.__dict__.update(attributes)
        return obj
    for name, value in attributes.items():
        try:
            object.__setattr__(obj, name, value)
        except (AttributeError, TypeError):
            raise SerializationError(
                f"{class_name(cls)} has no attribute {name!r} today",
                remedy="Give the class the attribute again, or remove it in an upcast.",
            ) from None
    return obj


def _read_layout(cls: type[Any]) -> _Layout:
    try:
        probe = object.__new__(cls)
    except TypeError:  # a class with a built-in base, such as a named tuple, or an abstract one
        probe = None
    # Descriptors have the names that private slots were mangled to.
    slots = tuple(
        name
        for base in reversed(cls.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    )
    if probe is None or not (slots or hasattr(probe, "__dict__")):
        raise SerializationError(
            f"{class_name(cls)} does not keep its state in attributes",
            remedy="Use a plain class or a dataclass, or register an encoding for the type.",
        )
    names = {name: None for base in cls.__mro__ for name in vars(base) if not name.startswith("__")}
    for field in fields(cls) if is_dataclass(cls) else ():
        names.pop(field.name, None)  # whatever stands there is its default
    computed = tuple(name for name in names if _is_computed(cls, name))
    stored = tuple(name for name in slots if name not in computed)
    layout = _layouts[cls] = _Layout(stored, computed, form_of(cls))
    return layout


def _is_computed(cls: type[Any], name: str) -> bool:
    """Whether the class computes what its objects keep under a name, such as a cached property."""
    member = getattr_static(cls, name)
    if isinstance(member, property):
        return member.fset is None
    kind = type(member)
    return hasattr(kind, "__get__") and not hasattr(kind, "__set__") and not isinstance(member, _METHODS)

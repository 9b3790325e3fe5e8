"""Objects as their attributes, and back without calling ``__init__``: what was stored is what comes back."""

from __future__ import annotations

from types import MemberDescriptorType
from typing import Any

from eventseal.errors import SerializationError

_known_slots: dict[type[Any], tuple[str, ...]] = {}


def attributes_of(obj: object) -> dict[str, Any]:
    """
    Copy an object's attributes: its ``__dict__``, and its slots that are set.

    Args:
        obj: A domain event, or a dataclass inside one.

    Raises:
        SerializationError: Its class keeps state elsewhere, so that it could not come back whole.
    """
    cls = type(obj)
    slots = _known_slots.get(cls)
    if slots is None:
        slots = _known_slots[cls] = _slots(cls)
    state = getattr(obj, "__dict__", None)
    attributes = {} if state is None else dict(state)
    for name in slots:
        try:
            attributes[name] = getattr(obj, name)
        except AttributeError:  # a slot that was never set
            continue
    return attributes


def restore(cls: type[Any], attributes: dict[str, Any]) -> Any:
    """
    Make an object of *cls* with these *attributes*, frozen or not, without calling its ``__init__``.

    Raises:
        SerializationError: *cls* keeps state elsewhere, or has no place for an attribute.
    """
    slots = _known_slots.get(cls)
    if slots is None:
        slots = _known_slots[cls] = _slots(cls)
    obj = object.__new__(cls)
    if not slots:
        obj.__dict__.update(attributes)
        return obj
    for name, value in attributes.items():
        try:
            object.__setattr__(obj, name, value)
        except (AttributeError, TypeError):
            raise SerializationError(
                f"{cls.__module__}.{cls.__qualname__} has no attribute {name!r} today"
            ) from None
    return obj


def _slots(cls: type[Any]) -> tuple[str, ...]:
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
            f"{cls.__module__}.{cls.__qualname__} does not keep its state in attributes",
            remedy="Use a plain class or a dataclass, or register an encoding for the type.",
        )
    return slots

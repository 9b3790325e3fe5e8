"""Subjects of personal data: an attribute's value as a key scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from eventseal.errors import ConfigurationError
from eventseal.items.field_values import ObjectState
from eventseal.items.json_types import Refused
from eventseal.items.pointers import joined
from eventseal.keys.records import checked_scope

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBJECT_KIND = "subject"
NAME_SUBJECT = (
    "Give the attribute that PersonalData(subject=...) names the id of whose data it is: a string, an "
    "integer or a UUID."
)


class Enclosing(NamedTuple):
    """
    An object around a field.

    Attributes:
        path: Where its attributes stand in the item.
        attributes: They were read once: a subject is one, whatever an object's properties say.
    """

    path: str
    attributes: dict[str, Any]


class Subject(NamedTuple):
    """
    Whose a field is.

    Attributes:
        path: Where the subject stands in the item: a JSON Pointer.
        value: An id.
    """

    path: str
    value: Any


def find_subject(name: str, enclosing: Sequence[Enclosing]) -> Subject | None:
    """Find the attribute *name* of the nearest object that has it; ``None`` if none has."""
    for path, attributes in reversed(enclosing):
        own = attributes.names.get(name, name) if isinstance(attributes, ObjectState) else name
        if own in attributes:
            return Subject(joined(path, own), attributes[own])
    return None


def subject_scope(value: object) -> str:
    """
    Give the key scope of a subject: ``subject:`` and its canonical text.

    Args:
        value: A string as it is, an integer in decimal, or a UUID.

    Raises:
        Refused: It is none of these, or no key scope can hold it. The message does not repeat it.
    """
    if type(value) is str or type(value) is int or isinstance(value, UUID):
        text = str(value)
    else:
        kind = type(value)
        raise Refused(
            f"is of a subject that is a {kind.__module__}.{kind.__qualname__}, "
            "neither a string nor an integer nor a UUID",
            remedy=NAME_SUBJECT,
        )
    if not text:
        raise Refused("is of a subject that is empty", remedy=NAME_SUBJECT)
    try:
        return checked_scope(f"{SUBJECT_KIND}:{text}")
    except ConfigurationError as exc:
        reason = str(exc)
    raise Refused(f"is of a subject that cannot be one: {reason}", remedy=NAME_SUBJECT)

"""Sealed fields in the JSON of items: their places and their subjects."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, ConfigurationError, IntegrityError
from eventseal.items.json_writer import SEALED_MARKER, STATE_MARKER, ObjectState, Refused, nested_too_deeply
from eventseal.keys.records import checked_scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def joined(path: str, step: str | int) -> str:
    """Return the pointer one step further, to a member or an element."""
    if isinstance(step, int):
        return f"{path}/{step}"
    if "~" in step or "/" in step:
        step = step.replace("~", "~0").replace("/", "~1")
    return f"{path}/{step}"


def found_at(root: Any, path: str) -> Any:
    """
    Return the value at a place.

    Args:
        root: Parsed JSON.
        path: A JSON Pointer.

    Raises:
        LookupError: There is no value, or the path is not a pointer.
    """
    if path and not path.startswith("/"):
        raise LookupError(path)
    value = root
    for step in path.split("/")[1:]:
        if isinstance(value, dict):
            value = value[step.replace("~1", "/").replace("~0", "~")]
        elif isinstance(value, list) and step.isdecimal() and step.isascii():
            value = value[int(step)]
        else:
            raise LookupError(path)
    return value


SUBJECT_KIND = "subject"
NAME_SUBJECT = (
    "Set the attribute that PersonalData(subject=...) names to the id of the person: a string, an "
    "integer or a UUID."
)


class Enclosing(NamedTuple):
    """
    An object around a field.

    Attributes:
        path: The place of its attributes in the item.
        attributes: Its attributes, read once. A subject is one of them, and never a property.
    """

    path: str
    attributes: dict[str, Any]


class Subject(NamedTuple):
    """
    The subject of a field.

    Attributes:
        path: The place of the subject in the item: a JSON Pointer.
        value: The id of the subject.
    """

    path: str
    value: Any


def find_subject(name: str, enclosing: Sequence[Enclosing]) -> Subject | None:
    """Return the attribute *name* of the nearest object with it, or ``None``."""
    for path, attributes in reversed(enclosing):
        own = attributes.names.get(name, name) if isinstance(attributes, ObjectState) else name
        if own in attributes:
            return Subject(joined(path, own), attributes[own])
    return None


def subject_scope(value: object) -> str:
    """
    Return the key scope of a subject: ``subject:`` and its canonical text.

    Args:
        value: The id: a string as it is, an integer in decimal, or a UUID in its canonical form.

    Raises:
        Refused: It is none of these, or is not valid in a key scope. The message does not repeat it.
    """
    if type(value) is str or type(value) is int or isinstance(value, UUID):
        text = str(value)
    else:
        kind = type(value)
        raise Refused(
            f"has a subject of type {kind.__module__}.{kind.__qualname__}, "
            "but a subject must be a string, an integer or a UUID",
            remedy=NAME_SUBJECT,
        )
    if not text:
        raise Refused("has an empty subject", remedy=NAME_SUBJECT)
    try:
        return checked_scope(f"{SUBJECT_KIND}:{text}")
    except ConfigurationError as exc:
        reason = str(exc)
    raise Refused(f"has an invalid subject: {reason}", remedy=NAME_SUBJECT)


SEALED_BYTES = f'{{"{SEALED_MARKER}":'.encode()
"""The bytes that only JSON with sealed fields holds. Strings would escape the quotation marks."""


class StoredField(NamedTuple):
    """
    A sealed field in an item's JSON.

    Attributes:
        holder: The object or array that contains it.
        key: Its key or index in the holder.
        path: Its place in the item: a JSON Pointer.
        name: The attribute that it is, or is in.
        scope: The scope of its subject, as the item says.
        envelope: The bytes of the field.
    """

    holder: Any
    key: Any
    path: str
    name: str
    scope: str
    envelope: bytes


def stored_fields(raw: dict[str, Any], whole: dict[str, Any]) -> list[StoredField]:
    """
    Find the sealed fields of an item.

    Args:
        raw: The parsed JSON of the item.
        whole: The same with the item's place, to find the subjects.

    Raises:
        IntegrityError: A field does not have the form that EventSeal writes.
        SerializationError: The JSON is nested too deeply to be read here.
    """
    try:
        return [_field(*found, whole) for found in _marked(raw, "", "", is_object=True)]
    except RecursionError:
        raise nested_too_deeply() from None
    except (LookupError, Refused, ValueError):
        raise IntegrityError(OPAQUE_INTEGRITY_MESSAGE) from None


def _marked(value: Any, path: str, name: str, *, is_object: bool) -> Iterator[tuple[Any, Any, Any, str, str]]:
    """Yield the content and place of each marker. Only attributes' keys are names."""
    steps: Iterable[tuple[Any, Any]]
    if type(value) is dict:
        steps = value.items()
    elif type(value) is list:
        steps = enumerate(value)
    else:
        return
    for key, inner in steps:
        there = joined(path, key)
        attribute: Any = key if is_object else name
        if type(inner) is dict and len(inner) == 1 and SEALED_MARKER in inner:
            yield inner[SEALED_MARKER], value, key, there, attribute
        else:
            holds_attributes = key == STATE_MARKER or (key == 1 and path.endswith("/$dataclass"))
            yield from _marked(inner, there, attribute, is_object=holds_attributes)


def _field(content: Any, holder: Any, key: Any, path: str, name: str, whole: dict[str, Any]) -> StoredField:
    if type(content) is not list or not all(type(part) is str for part in content):
        raise ValueError
    subject_path, text = content
    scope = subject_scope(_subject(found_at(whole, subject_path)))
    return StoredField(holder, key, path, name.lstrip("_"), scope, b64decode(text, validate=True))


def _subject(value: Any) -> Any:
    if type(value) is dict and len(value) == 1 and type(value.get("$uuid")) is str:
        return value["$uuid"]
    return value

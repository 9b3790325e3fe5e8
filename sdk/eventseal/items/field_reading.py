"""Finds the sealed fields in the JSON of items, and puts what was opened in their place."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any, NamedTuple

from eventseal.errors import OPAQUE_INTEGRITY_MESSAGE, IntegrityError
from eventseal.items.field_values import SEALED_MARKER, STATE_MARKER
from eventseal.items.json_types import Refused, nested_too_deeply
from eventseal.items.pointers import found_at, joined
from eventseal.items.subjects import subject_scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SEALED_BYTES = f'{{"{SEALED_MARKER}":'.encode()
"""What JSON of items with sealed fields holds. Inside of a string, its quotation marks would be escaped."""


class StoredField(NamedTuple):
    """
    A sealed field in an item's JSON.

    Attributes:
        holder: The object or array that it stands in.
        key: Where in that.
        path: Where in the item: a JSON Pointer.
        name: Of the attribute that it is, or is in.
        scope: Of its subject, as the item says.
        envelope: Its bytes.
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
        raw: Its JSON, as Python has it.
        whole: The same with the item's place: where the subjects are.

    Raises:
        IntegrityError: One of them is not in the form in which they are written.
        SerializationError: The JSON is nested too deeply to be read here.
    """
    try:
        return [_field(*found, whole) for found in _marked(raw, "", "", is_object=True)]
    except RecursionError:
        raise nested_too_deeply() from None
    except (LookupError, Refused, ValueError):
        raise IntegrityError(OPAQUE_INTEGRITY_MESSAGE) from None


def _marked(value: Any, path: str, name: str, *, is_object: bool) -> Iterator[tuple[Any, Any, Any, str, str]]:
    """Give each marker's content, with where it stands; keys are names only where they are attributes."""
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

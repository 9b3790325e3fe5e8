"""Swaps on both databases, and places and selections as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.items.sealed_places import Page, Selection
from eventseal.storage.database.column_types import INT64_MAX, INT64_MIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.items.sealed_places import Place


MOST_LISTED_KEYS = 1000
"""The maximum number of keys in a query. If there are more, the reader of the rows compares them."""

MOST_PAGE_BYTES = 2**23
"""
The bytes of data that fill a page.

A page may exceed them by its last item. The limit does not depend on the number of rows.
"""

TAG_SIZE = 32
"""
The size of an envelope's unique end, in bytes.

In every suite, it is the whole tag.
"""


@dataclass(frozen=True, slots=True)
class Swap:
    """
    Rows with their new envelopes, and the statement that swaps them.

    Attributes:
        page: The page as it was read.
        envelopes: The new envelopes.
        statement: The statement in the driver's SQL.
        parameters: The parameters as values of the driver.
    """

    page: Page
    envelopes: Sequence[bytes]
    statement: str
    parameters: Any


EMPTY_PAGE = Page(sequence_ids=(), positions=(), topics=(), envelopes=(), key_ids=())

_WRITERS: dict[type, str] = {UUID: "uuid", int: "int", Decimal: "decimal", str: "text", bytes: "bytes"}


def place_to_json(place: Place) -> list[list[str]]:
    """Return a place as JSON, whatever an edit put into it."""
    return [_value_to_json(value) for value in place]


def place_from_json(stored: Any) -> Place:
    """Return the place from the JSON that :func:`place_to_json` wrote."""
    first, second = (_value_from_json(kind, text) for kind, text in stored)
    return first, second


def selection_to_json(selection: Selection) -> dict[str, Any]:
    """Return a selection as JSON."""
    return {
        "keys": None if selection.keys is None else [str(key_id) for key_id in selection.keys],
        "few": selection.few,
        "fitting": [str(key_id) for key_id in selection.fitting],
        "heads": [head.hex() for head in selection.heads],
        "plain": selection.plain,
    }


def selection_from_json(stored: Any) -> Selection:
    """Return the selection from the JSON that :func:`selection_to_json` wrote."""
    return Selection(
        keys=None if stored["keys"] is None else tuple(UUID(key_id) for key_id in stored["keys"]),
        few=stored["few"],
        fitting=tuple(UUID(key_id) for key_id in stored["fitting"]),
        heads=tuple(bytes.fromhex(head) for head in stored["heads"]),
        plain=stored.get("plain", False),  # older releases did not select such rows
    )


def _value_to_json(value: Any) -> list[str]:
    kind = _WRITERS.get(type(value), "float")
    return [kind, value.hex() if kind in {"bytes", "float"} else str(value)]


def _value_from_json(kind: str, text: str) -> Any:
    readers: dict[str, Any] = {
        "uuid": UUID,
        "int": int,
        "decimal": Decimal,
        "text": str,
        "bytes": bytes.fromhex,
        "float": float.fromhex,
    }
    value = readers[kind](text)
    if kind == "int" and not INT64_MIN <= value <= INT64_MAX:
        raise ValueError(kind)
    return value

"""What reading and swapping rows has in common on both databases, and places and selections as JSON."""

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
"""Keys that a query names; more are told apart by whoever reads the rows."""

MOST_PAGE_BYTES = 2**23
"""Bytes of data in a page, but for the last item, whatever the number of its rows."""

TAG_SIZE = 32
"""Bytes at the end of an envelope that no other envelope has: in every suite its whole tag."""


@dataclass(frozen=True, slots=True)
class Swap:
    """
    Rows with their new envelopes, and the statement that swaps them.

    Attributes:
        page: As it was read.
        envelopes: The new ones.
        statement: In the driver's own words.
        parameters: In the driver's own values.
    """

    page: Page
    envelopes: Sequence[bytes]
    statement: str
    parameters: Any


EMPTY_PAGE = Page(sequence_ids=(), positions=(), topics=(), envelopes=(), key_ids=())

_WRITERS: dict[type, str] = {UUID: "uuid", int: "int", Decimal: "decimal", str: "text", bytes: "bytes"}


def place_to_json(place: Place) -> list[list[str]]:
    """Give a place, whatever an edit put into it, as JSON takes it."""
    return [_value_to_json(value) for value in place]


def place_from_json(stored: Any) -> Place:
    """Undo :func:`place_to_json`."""
    first, second = (_value_from_json(kind, text) for kind, text in stored)
    return first, second


def selection_to_json(selection: Selection) -> dict[str, Any]:
    """Give a selection as JSON takes it."""
    return {
        "keys": None if selection.keys is None else [str(key_id) for key_id in selection.keys],
        "few": selection.few,
        "fitting": [str(key_id) for key_id in selection.fitting],
        "heads": [head.hex() for head in selection.heads],
        "plain": selection.plain,
    }


def selection_from_json(stored: Any) -> Selection:
    """Undo :func:`selection_to_json`."""
    return Selection(
        keys=None if stored["keys"] is None else tuple(UUID(key_id) for key_id in stored["keys"]),
        few=stored["few"],
        fitting=tuple(UUID(key_id) for key_id in stored["fitting"]),
        heads=tuple(bytes.fromhex(head) for head in stored["heads"]),
        plain=stored.get("plain", False),  # older releases had no such rows
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

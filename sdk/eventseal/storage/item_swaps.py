"""Rows of a registered table by key range, and the compare-and-swap that gives one another envelope."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

Place: TypeAlias = "tuple[Any, Any]"
"""Sequence id and position."""

MOST_LISTED_KEYS = 1000
"""Keys that a query names; more are told apart by whoever reads the rows."""

MOST_PAGE_BYTES = 2**23
"""Bytes of data in a page, but for the last item, whatever the number of its rows."""

TAG_SIZE = 32
"""Bytes at the end of an envelope that no other envelope has: in every suite its whole tag."""


class StoredRow(NamedTuple):
    """
    An item as a page of a range gives it.

    Attributes:
        locator: Where the database finds the row quickly; ``None``: by its place.
        written: Rises from one written row to the next in the database's own order, as marks have it;
            ``None`` if it was not asked for, or the table has none.
    """

    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    key_id: UUID | None
    locator: Any
    written: int | None

    @property
    def place(self) -> Place:
        """Sequence id and position."""
        return self.sequence_id, self.position


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """
    Which rows a page gives.

    Attributes:
        keys: Rows under these; ``None``: under any key.
        fitting: Rows under these too, unless their data begins with one of *heads*.
        heads: Beginnings of envelopes, 3 bytes each.
    """

    keys: tuple[UUID, ...] | None
    fitting: tuple[UUID, ...] = ()
    heads: tuple[bytes, ...] = ()


class Swap(NamedTuple):
    """A row as it was read, and what it is to hold instead."""

    row: StoredRow
    data: bytes
    key_id: UUID


class ItemSwaps(Protocol):
    """Reads and swaps rows of one table, in the way that its database does best."""

    def page(
        self,
        connection: Connection,
        selection: Selection,
        *,
        after: Place | None,
        upto: Place | None,
        limit: int,
        written: bool = False,
    ) -> list[StoredRow]:
        """
        Read rows in order of their places; only an empty page says that there are no more.

        Args:
            connection: In a transaction.
            selection: Which rows.
            after: Behind this place.
            upto: Not behind this one.
            limit: Rows at most; a page also ends with the row that fills :data:`MOST_PAGE_BYTES`.
            written: Whether to say when each was written.
        """
        ...

    def swap(self, connection: Connection, swaps: Sequence[Swap]) -> list[int]:
        """
        Give rows their new data and key, each only if its data is still what was read.

        Returns:
            The indices of those that were changed.
        """
        ...


_WRITERS: dict[type, str] = {UUID: "uuid", int: "int", Decimal: "decimal", str: "text", bytes: "bytes"}


def place_to_json(place: Place) -> list[list[str]]:
    """Give a place, whatever an edit put into it, as JSON takes it."""
    return [_value_to_json(value) for value in place]


def place_from_json(stored: Any) -> Place:
    """Undo :func:`place_to_json`."""
    first, second = (_value_from_json(kind, text) for kind, text in stored)
    return first, second


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
    return readers[kind](text)

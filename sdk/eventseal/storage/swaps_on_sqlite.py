"""Pages and swaps on SQLite, through SQLAlchemy's types, which also carry what an edit put anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, func, literal, literal_column, null, or_, select, tuple_, update

from eventseal.storage.item_columns import KEY_ID, comes_after
from eventseal.storage.item_rows import described_columns
from eventseal.storage.item_swaps import MOST_PAGE_BYTES, StoredRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Update
    from sqlalchemy.engine import Connection

    from eventseal.storage.item_swaps import ItemSwaps, Place, Selection, Swap
    from eventseal.storage.registry import SealedTable

_HEAD_SIZE = 3


class SQLiteSwaps:
    """
    Reads and swaps rows of one table; a row is found by its place, and swapped if its data is the same.

    Args:
        table: From the registry.
    """

    def __init__(self, table: SealedTable) -> None:
        self._columns = described_columns(table)
        self._table = self._columns[KEY_ID].table
        self._swap = self._swap_statement()

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
        """Read a page of a range; see ``ItemSwaps``."""
        columns = self._columns
        place = columns["sequence_id"], columns["position"]
        size = func.length(columns["data"])
        page = (
            select(
                *(columns[role].label(role) for role in ("sequence_id", "position", "topic", "data", KEY_ID)),
                (literal_column("rowid") if written else null()).label("written"),
                (func.sum(size).over(order_by=place) - size).label("bytes_before"),
            )
            .where(self._selected(selection), *self._within(after, upto))
            .order_by(*place)
            .limit(limit)
            .subquery()
        )
        given = (page.c[role] for role in ("sequence_id", "position", "topic", "data", KEY_ID))
        query = (
            select(*given, null().label("locator"), page.c.written)
            .where(page.c.bytes_before < MOST_PAGE_BYTES)
            .order_by(page.c.sequence_id, page.c.position)
        )
        return [StoredRow._make(row) for row in connection.execute(query)]

    def swap(self, connection: Connection, swaps: Sequence[Swap]) -> list[int]:
        """Give rows new data and keys; see ``ItemSwaps``."""
        parameters = [
            {
                "at_id": swap.row.sequence_id,
                "at_position": swap.row.position,
                "old_data": swap.row.data,
                "new_data": swap.data,
                "new_key": swap.key_id,
            }
            for swap in swaps
        ]
        if connection.execute(self._swap, parameters).rowcount == len(swaps):
            return list(range(len(swaps)))
        return [number for number, swap in enumerate(swaps) if self._holds(connection, swap)]

    def _swap_statement(self) -> Update:
        columns = self._columns
        return (
            update(self._table)
            .where(
                columns["sequence_id"] == bindparam("at_id", type_=columns["sequence_id"].type),
                columns["position"] == bindparam("at_position", type_=columns["position"].type),
                columns["data"] == bindparam("old_data", type_=columns["data"].type),
            )
            .values(
                {
                    columns["data"]: bindparam("new_data", type_=columns["data"].type),
                    columns[KEY_ID]: bindparam("new_key", type_=columns[KEY_ID].type),
                }
            )
        )

    def _holds(self, connection: Connection, swap: Swap) -> bool:
        """Whether a row holds its new data: it was swapped a moment ago, in this transaction."""
        columns = self._columns
        query = select(columns["data"]).where(
            columns["sequence_id"] == swap.row.sequence_id, columns["position"] == swap.row.position
        )
        return connection.execute(query).scalar_one_or_none() == swap.data

    def _selected(self, selection: Selection) -> ColumnElement[bool]:
        key_id, data = self._columns[KEY_ID], self._columns["data"]
        if selection.keys is None:
            return key_id.is_not(None)
        wanted: list[ColumnElement[bool]] = [key_id.in_(selection.keys)]
        if selection.fitting:
            head = func.substr(data, 1, _HEAD_SIZE, type_=data.type)
            wanted.append(and_(key_id.in_(selection.fitting), head.not_in(selection.heads)))
        return or_(*wanted)

    def _within(self, after: Place | None, upto: Place | None) -> list[ColumnElement[bool]]:
        place = self._columns["sequence_id"], self._columns["position"]
        conditions = []
        if after is not None:
            conditions.append(comes_after(place, after))
        if upto is not None:
            bounds: list[Any] = [
                literal(value, column.type) for column, value in zip(place, upto, strict=True)
            ]
            conditions.append(tuple_(*place) <= tuple_(*bounds))
        return conditions


if TYPE_CHECKING:
    _: type[ItemSwaps] = SQLiteSwaps

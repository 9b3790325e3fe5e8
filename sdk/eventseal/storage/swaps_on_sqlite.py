"""Pages and swaps on SQLite, through SQLAlchemy's types, which also carry what an edit put anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import and_, bindparam, func, literal, literal_column, null, or_, select, tuple_, update

from eventseal.storage.item_columns import KEY_ID, comes_after
from eventseal.storage.item_rows import described_columns
from eventseal.storage.item_swaps import EMPTY_PAGE, KEY_ID_IN_HEADER, MOST_PAGE_BYTES, Page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Update
    from sqlalchemy.engine import Connection

    from eventseal.storage.item_swaps import ItemSwaps, Place, Selection
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
    ) -> Page:
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
        given = [page.c[role] for role in ("sequence_id", "position", "topic", "data", KEY_ID)]
        query = (
            select(*given, page.c.written)
            .where(page.c.bytes_before < MOST_PAGE_BYTES)
            .order_by(page.c.sequence_id, page.c.position)
        )
        rows = connection.execute(query).all()
        if not rows:
            return EMPTY_PAGE
        ids, positions, topics, envelopes, key_ids, rowids = zip(*rows, strict=True)
        return Page(
            sequence_ids=ids,
            positions=positions,
            topics=topics,
            envelopes=envelopes,
            key_ids=[None if key_id is None else key_id.bytes for key_id in key_ids],
            written=rowids if written else (),
        )

    def swap(self, connection: Connection, page: Page, envelopes: Sequence[bytes]) -> list[int]:
        """Give rows new data and keys; see ``ItemSwaps``."""
        parameters = [
            {
                "at_id": sequence_id,
                "at_position": position,
                "old_data": old,
                "new_data": new,
                "new_key": UUID(bytes=new[KEY_ID_IN_HEADER]),
            }
            for sequence_id, position, old, new in zip(
                page.sequence_ids, page.positions, page.envelopes, envelopes, strict=True
            )
        ]
        if connection.execute(self._swap, parameters).rowcount == len(page):
            return list(range(len(page)))
        return [number for number, row in enumerate(parameters) if self._holds(connection, row)]

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

    def _holds(self, connection: Connection, row: Mapping[str, Any]) -> bool:
        """Whether a row holds its new data: it was swapped a moment ago, in this transaction."""
        columns = self._columns
        query = select(columns["data"]).where(
            columns["sequence_id"] == row["at_id"], columns["position"] == row["at_position"]
        )
        return bool(connection.execute(query).scalar_one_or_none() == row["new_data"])

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

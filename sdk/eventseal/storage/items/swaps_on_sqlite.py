"""
Pages and swaps on SQLite.

They use SQLAlchemy's types, which also carry whatever an edit put into a column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import and_, func, literal, or_, select, true, tuple_
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression

from eventseal.items.sealed_places import Page
from eventseal.storage.database.column_types import NIL_KEY_ID
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.items.columns import comes_after
from eventseal.storage.items.swaps import EMPTY_PAGE, MOST_PAGE_BYTES, Swap
from eventseal.storage.items.table_queries import described
from eventseal.suites.envelope import KEY_ID_IN_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Column, ColumnElement
    from sqlalchemy.engine import Connection, Dialect

    from eventseal.items.sealed_places import Place, Selection
    from eventseal.storage.items.tables import SealedTable


_HEAD_SIZE = 3
_PLUS: Any = operators.custom_op("+")


class SQLiteSwaps:
    """
    Reads and swaps rows of one table.

    A row is found by its place, and swapped if its data is the same.

    Args:
        dialect: The dialect, which converts values for the driver and quotes names.
        table: The table, from the registry.
    """

    most_rows: int | None = 400
    """
    The maximum number of rows that a transaction should swap.

    An append must wait for the transaction, and can wait for so many rows.
    """

    def __init__(self, dialect: Dialect, table: SealedTable) -> None:
        self._columns = described(table)
        self._has_key_ids = table.has_key_ids
        preparer = dialect.identifier_preparer
        self._swap = self._swap_statement(preparer.quote, preparer.format_table(self._columns.table))
        self._senders = [
            _sender(self._columns[role], dialect) for role in ("sequence_id", "position", KEY_ID)
        ]

    def page(
        self,
        connection: Connection,
        selection: Selection,
        *,
        after: Place | None,
        upto: Place | None,
        limit: int,
        written: bool = False,  # noqa: ARG002 - SQLite's rows do not show when they were written
    ) -> Page:
        """
        Read rows in order of their places.

        Only an empty page means that there are no more rows.

        Args:
            connection: A connection in a transaction.
            selection: The rows to read.
            after: The place after which the page begins.
            upto: The last place that the page may contain.
            limit: The maximum number of rows. A page also ends with the row that fills
                :data:`MOST_PAGE_BYTES`.
            written: Whether to return when each row was written.
        """
        columns = self._columns
        query = (
            select(
                *(columns[role] for role in ("sequence_id", "position", "topic", "data")),
                columns.key_id,
                columns[KEY_ID],
                func.coalesce(func.length(columns["data"]), 0).label("size"),
            )
            .where(self._selected(selection), *self._within(after, upto))
            .order_by(*columns.place)
            .limit(limit)
        )
        rows: list[Any] = []
        size = 0
        with connection.execute(query) as result:
            # SQLite finds the rows as they are fetched. It does not read rows that are not fetched.
            while size < MOST_PAGE_BYTES and (row := result.fetchone()):
                rows.append(row[:-1])
                size += row.size
        if not rows:
            return EMPTY_PAGE
        ids, positions, topics, envelopes, key_ids, named = zip(*rows, strict=True)
        return Page(
            sequence_ids=ids,
            positions=positions,
            topics=topics,
            envelopes=envelopes,
            key_ids=[_bytes_of(key_id) for key_id in key_ids],
            named=[_bytes_of(key_id) for key_id in named] if self._has_key_ids else (),
        )

    def prepare(self, page: Page, envelopes: Sequence[bytes], *, by_tag: bool = True) -> Swap:  # noqa: ARG002
        """
        Prepare the parameters of :meth:`swap`, so that its transaction stays short.

        Args:
            page: The page, with at least one row.
            envelopes: The new envelope of each row.
            by_tag: Whether the rows hold envelopes. The tag of an envelope alone shows whether it is the
                same. Otherwise all data of a row is compared.
        """
        sent_id, sent_position, sent_key = self._senders
        named = {e[KEY_ID_IN_HEADER] for e in envelopes} if self._has_key_ids else set()
        key_ids = {raw: (sent_key(UUID(bytes=raw)),) for raw in named}
        parameters = [
            (new, *key_ids.get(new[KEY_ID_IN_HEADER], ()), sent_id(sequence_id), sent_position(position), old)
            for sequence_id, position, old, new in zip(
                page.sequence_ids, page.positions, page.envelopes, envelopes, strict=True
            )
        ]
        return Swap(page, envelopes, self._swap, parameters)

    def swap(self, connection: Connection, swap: Swap) -> list[int]:
        """
        Store new data in rows that have not changed.

        The data of a row must still be as it was read. The row also gets the key id that the new header
        names.

        Args:
            connection: A connection in a transaction that writes.
            swap: The prepared swap.

        Returns:
            The numbers of the changed rows.
        """
        if connection.exec_driver_sql(swap.statement, swap.parameters).rowcount == len(swap.page):
            return list(range(len(swap.page)))
        places = zip(swap.page.sequence_ids, swap.page.positions, swap.envelopes, strict=True)
        return [number for number, place in enumerate(places) if self._holds(connection, *place)]

    def _swap_statement(self, quote: Callable[[str], str], table: str) -> str:
        name = {column.key: quote(column.name) for column in self._columns.table.columns}
        set_key_id = f", {name[KEY_ID]} = ?" if self._has_key_ids else ""
        return (
            f"UPDATE {table} SET {name['data']} = ?{set_key_id} "  # noqa: S608 - quoted
            f"WHERE {name['sequence_id']} = ? AND {name['position']} = ? AND {name['data']} = ?"
        )

    def _holds(self, connection: Connection, sequence_id: Any, position: Any, envelope: bytes) -> bool:
        """Return whether a row holds its new data. Then this transaction has just swapped it."""
        columns = self._columns
        query = select(columns["data"]).where(
            columns["sequence_id"] == sequence_id, columns["position"] == position
        )
        return bool(connection.execute(query).scalar_one_or_none() == envelope)

    def _selected(self, selection: Selection) -> ColumnElement[bool]:
        data = self._columns["data"]
        if selection.keys is None:
            return true() if selection.plain else self._columns.key_id.is_not(None)
        key_id = self._columns.key_id
        if not selection.few:
            # After a plus, SQLite uses no index. With the index, it would sort the whole table for each page.
            key_id = UnaryExpression(key_id, operator=_PLUS, type_=key_id.type)
        wanted: list[ColumnElement[bool]] = [key_id.in_(selection.keys)]
        if selection.plain:
            wanted += [key_id.is_(None), self._columns.differs]
        if selection.fitting:
            head = func.substr(data, 1, _HEAD_SIZE, type_=data.type)
            wanted.append(and_(key_id.in_(selection.fitting), head.not_in(selection.heads)))
        return or_(*wanted)

    def _within(self, after: Place | None, upto: Place | None) -> list[ColumnElement[bool]]:
        place = self._columns.place
        conditions = []
        if after is not None:
            conditions.append(comes_after(place, after))
        if upto is not None:
            bounds: list[Any] = [
                literal(value, column.type) for column, value in zip(place, upto, strict=True)
            ]
            conditions.append(tuple_(*place) <= tuple_(*bounds))
        return conditions


def _bytes_of(key_id: Any) -> bytes | None:
    """Return the bytes of a key id. An edit may have put anything into the column."""
    return None if key_id is None else key_id.bytes if isinstance(key_id, UUID) else NIL_KEY_ID.bytes


def _sender(column: Column[Any], dialect: Dialect) -> Callable[[Any], Any]:
    return column.type.dialect_impl(dialect).bind_processor(dialect) or _as_it_is


def _as_it_is(value: Any) -> Any:
    return value

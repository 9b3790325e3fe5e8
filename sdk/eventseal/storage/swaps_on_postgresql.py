"""Pages and swaps on PostgreSQL: a page a statement, in binary, rows found again by where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from eventseal.storage.item_columns import KEY_ID
from eventseal.storage.item_swaps import MOST_PAGE_BYTES, TAG_SIZE, StoredRow
from eventseal.storage.registry import ColumnKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection, Dialect

    from eventseal.storage.item_swaps import ItemSwaps, Place, Selection, Swap
    from eventseal.storage.registry import SealedTable

_TYPES = {
    ColumnKind.UUID: "uuid",
    ColumnKind.GENERIC_UUID: "uuid",
    ColumnKind.TEXT: "text",
    ColumnKind.INTEGER: "bigint",
    ColumnKind.DECIMAL: "numeric",
}
_XIDS = 2**32
_BINARY = 1


class PostgreSQLSwaps:
    """
    Reads and swaps rows of one table through psycopg.

    A row is found again by its ctid, and swapped only if its tag is still there: a tag is authenticated,
    and no two envelopes have the same.

    Args:
        dialect: Quotes names.
        table: From the registry.
    """

    def __init__(self, dialect: Dialect, table: SealedTable) -> None:
        preparer = dialect.identifier_preparer
        quote = preparer.quote
        self._table = ".".join(quote(part) for part in table.table.rsplit(".", 1))
        self._names = {role: quote(column.name) for role, column in table.columns.items()}
        self._place_types = [_TYPES[table.columns[role].kind] for role in ("sequence_id", "position")]
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
        conditions, parameters = self._conditions(selection, after, upto)
        name = self._names
        place = f"{name['sequence_id']}, {name['position']}"
        size = f"octet_length({name['data']})"
        statement = f"""
            SELECT sequence_id, place, topic, data, key_id, ctid::text, xmin FROM (
                SELECT {name["sequence_id"]} AS sequence_id, {name["position"]} AS place,
                    {name["topic"]} AS topic, {name["data"]} AS data, {name[KEY_ID]} AS key_id, ctid,
                    {"xmin::text::bigint" if written else "NULL::bigint"} AS xmin,
                    sum({size}) OVER (ORDER BY {place}) - {size} AS bytes_before
                FROM {self._table} WHERE {" AND ".join(conditions)} ORDER BY {place} LIMIT {limit:d}
            ) AS page WHERE bytes_before < {MOST_PAGE_BYTES} ORDER BY sequence_id, place"""  # noqa: S608
        found = _binary(connection, statement, tuple(parameters))
        if not written:
            return [StoredRow._make(row) for row in found]
        horizon = snapshot_horizon(connection)
        return [StoredRow._make((*row[:-1], _full_xid(row[-1], horizon))) for row in found]

    def swap(self, connection: Connection, swaps: Sequence[Swap]) -> list[int]:
        """Give rows new data and keys; see ``ItemSwaps``."""
        keys = list(dict.fromkeys([swap.key_id for swap in swaps]))
        numbers = {key_id: number for number, key_id in enumerate(keys, start=1)}
        parameters = (
            keys,
            [swap.row.locator for swap in swaps],
            [swap.row.data[-TAG_SIZE:] for swap in swaps],
            [swap.data for swap in swaps],
            [numbers[swap.key_id] for swap in swaps],
        )
        return [number - 1 for (number,) in _binary(connection, self._swap, parameters)]

    def _swap_statement(self) -> str:
        data = self._names["data"]
        return f"""
            UPDATE {self._table} AS stored
            SET {data} = item.data, {self._names[KEY_ID]} = (%b::uuid[])[item.key]
            FROM unnest(%b::text[]::tid[], %b::bytea[], %b::bytea[], %b::int[])
                WITH ORDINALITY AS item (locator, tag, data, key, number)
            WHERE stored.ctid = item.locator
                AND substring(stored.{data} FROM greatest(octet_length(stored.{data}) - {TAG_SIZE - 1}, 1))
                    = item.tag
            RETURNING item.number"""  # noqa: S608 - names come from the registry, quoted

    def _conditions(
        self, selection: Selection, after: Place | None, upto: Place | None
    ) -> tuple[list[str], list[Any]]:
        key_id, data = self._names[KEY_ID], self._names["data"]
        parameters: list[Any] = []
        if selection.keys is None:
            conditions = [f"{key_id} IS NOT NULL"]
        else:
            wanted = [f"{key_id} = ANY(%b::uuid[])"]
            parameters.append(list(selection.keys))
            if selection.fitting:
                wanted.append(
                    f"{key_id} = ANY(%b::uuid[]) AND substring({data} FROM 1 FOR 3) <> ALL(%b::bytea[])"
                )
                parameters += [list(selection.fitting), list(selection.heads)]
            conditions = [f"({' OR '.join(wanted)})"]
        for operator, bound in ((">", after), ("<=", upto)):
            if bound is not None:
                names = f"{self._names['sequence_id']}, {self._names['position']}"
                conditions.append(
                    f"({names}) {operator} ({', '.join(f'%b::{t}' for t in self._place_types)})"
                )
                parameters += bound
        return conditions, parameters


def snapshot_horizon(connection: Connection) -> int:
    """Give the first transaction id that the statement's snapshot takes for not begun: 64 bits."""
    statement = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    return int(connection.exec_driver_sql(statement).scalar_one())


def _full_xid(xid: int, horizon: int) -> int:
    # A row has the low 32 bits only, and was written in the past.
    return horizon - (horizon - xid) % _XIDS


def _binary(connection: Connection, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Run a statement whose answer comes in binary, which takes half the bytes and no parsing."""
    event.listen(connection, "before_cursor_execute", _answer_in_binary)
    try:
        result = connection.exec_driver_sql(statement, parameters)
        return list(result.cursor.fetchall())
    finally:
        event.remove(connection, "before_cursor_execute", _answer_in_binary)


def _answer_in_binary(_connection: Connection, cursor: Any, *_: Any) -> None:
    cursor.format = type(cursor.format)(_BINARY)


if TYPE_CHECKING:
    _: type[ItemSwaps] = PostgreSQLSwaps

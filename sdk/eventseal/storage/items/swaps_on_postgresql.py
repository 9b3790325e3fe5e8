"""
Pages and swaps on PostgreSQL.

One statement reads a page in binary. Rows are found again by their location in the table.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy import event

from eventseal.items.sealed_places import Page
from eventseal.storage.database.layout import quoted_name
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.items.swaps import EMPTY_PAGE, MOST_PAGE_BYTES, TAG_SIZE, Swap
from eventseal.storage.items.table_queries import key_id_in_header, key_ids_differ
from eventseal.storage.items.tables import ColumnKind
from eventseal.suites.envelope import KEY_ID_IN_HEADER
from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import CursorResult
    from sqlalchemy.engine import Connection, Engine

    from eventseal.items.sealed_places import Place, Selection
    from eventseal.storage.items.tables import SealedTable


_TYPES = {
    ColumnKind.UUID: "uuid",
    ColumnKind.GENERIC_UUID: "uuid",
    ColumnKind.TEXT: "text",
    ColumnKind.DATABASE_TEXT: "text",
    ColumnKind.INTEGER: "bigint",
    ColumnKind.DECIMAL: "numeric",
}
_XIDS = 2**32
_BYTEA, _OID, _TID, _UUID = 17, 26, 27, 2950
"""PostgreSQL's types of array elements, by their object ids."""

_ARRAYS = {_BYTEA: 1001, _OID: 1028, _TID: 1010, _UUID: 2951}
_ARRAY_HEADER = Struct(">iiiii").pack
_PACK_SIZE = Struct(">i").pack


class PostgreSQLSwaps:
    """
    Reads and swaps rows of one table through psycopg.

    A row is found again by its ctid, and swapped only if its tag is still there. A tag is authenticated, and
    no two envelopes have the same tag (docs/decisions/0012). Rows of other formats may be equal, and the
    partitions of a table have the same ctids, so a locator also has the partition.

    Args:
        engine: The engine of the items' database, which quotes names.
        table: The table, from the registry.
    """

    most_rows: int | None = None

    def __init__(self, engine: Engine, table: SealedTable) -> None:
        dialect = engine.dialect
        quote = dialect.identifier_preparer.quote
        self._dialect = dialect
        self._table = quoted_name(engine, table.name, table.schema)
        self._names = {role: quote(column.name) for role, column in table.columns.items()}
        self._has_key_ids = table.has_key_ids
        self._key_id = key_id_in_header(dialect, self._names["data"])
        self._place_types = [_TYPES[table.columns[role].kind] for role in ("sequence_id", "position")]
        self._has_uuids = self._place_types[0] == "uuid"

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
        """Read a page of a range. See ``SQLiteSwaps``."""
        conditions, parameters = self._conditions(selection, after, upto)
        name = self._names
        place = f"{name['sequence_id']}, {name['position']}"
        size = f"coalesce(octet_length({name['data']}), 0)"
        sent_id = "uuid_send(sequence_id)" if self._has_uuids else "sequence_id"
        statement = f"""
            SELECT {sent_id}, place, topic, data, uuid_send(key_id), uuid_send(named),
                oidsend(partition), ctid, xmin
            FROM (
                SELECT {name["sequence_id"]} AS sequence_id, {name["position"]} AS place,
                    {name["topic"]} AS topic, {name["data"]} AS data, {self._key_id} AS key_id,
                    {self._names.get(KEY_ID, "NULL::uuid")} AS named, tableoid AS partition, ctid,
                    {"xmin::text::bigint" if written else "NULL::bigint"} AS xmin,
                    sum({size}) OVER (ORDER BY {place}) - {size} AS bytes_before
                FROM {self._table} WHERE {" AND ".join(conditions)} ORDER BY {place} LIMIT {limit:d}
            ) AS page WHERE bytes_before < {MOST_PAGE_BYTES} ORDER BY sequence_id, place"""  # noqa: S608
        if not selection.few:
            # Statistics do not know a new key. A plan based on them would sort the whole table for each page.
            # In the order of the places, nothing needs to be sorted.
            connection.exec_driver_sql("SET LOCAL enable_sort = off")
        rows = _binary(connection, statement, tuple(parameters)).cursor.fetchall()
        if not rows:
            return EMPTY_PAGE
        ids, positions, topics, envelopes, key_ids, named, parts, ctids, xmins = zip(*rows, strict=True)
        if self._has_uuids:
            known = {raw: UUID(bytes=raw) for raw in set(ids)}
            ids = tuple([known[raw] for raw in ids])
        horizon = snapshot_horizon(connection) if written else 0
        return Page(
            sequence_ids=ids,
            positions=positions,
            topics=topics,
            envelopes=envelopes,
            key_ids=key_ids,
            named=named if self._has_key_ids else (),
            locators=list(zip(parts, ctids, strict=True)),
            written=[_full_xid(xmin, horizon) for xmin in xmins] if written else (),
        )

    def prepare(self, page: Page, envelopes: Sequence[bytes], *, by_tag: bool = True) -> Swap:
        """Build the arrays of a swap. See ``SQLiteSwaps``."""
        old = [envelope[-TAG_SIZE:] for envelope in page.envelopes] if by_tag else page.envelopes
        parts, ctids = zip(*page.locators, strict=True)
        items = _Array(_OID, parts), _Array(_TID, ctids), _Array(_BYTEA, old), _Array(_BYTEA, envelopes)
        if not self._has_key_ids:
            return Swap(page, envelopes, self._swap_statement("", by_tag=by_tag), items)
        named = [envelope[KEY_ID_IN_HEADER] for envelope in envelopes]
        if len(set(named)) == 1:
            statement = self._swap_statement("%b::uuid", by_tag=by_tag)
            return Swap(page, envelopes, statement, (UUID(bytes=named[0]), *items))
        statement = self._swap_statement("item.key_id", by_tag=by_tag)
        return Swap(page, envelopes, statement, (_Array(_UUID, named), *items))

    def swap(self, connection: Connection, swap: Swap) -> list[int]:
        """Store new data and key ids in rows. See ``SQLiteSwaps``."""
        if _binary(connection, swap.statement, swap.parameters).rowcount == len(swap.page):
            return list(range(len(swap.page)))
        return self._swapped(connection, swap.page, swap.envelopes)

    def _swapped(self, connection: Connection, page: Page, envelopes: Sequence[bytes]) -> list[int]:
        """
        Return the numbers of the rows that hold their new envelope.

        It is for a swap that could not change all rows.
        """
        name = self._names
        id_type, position_type = self._place_types
        statement = f"""
            SELECT item.number FROM {self._table} AS stored
            JOIN unnest(%b::{id_type}[], %b::{position_type}[], %b::bytea[])
                WITH ORDINALITY AS item (sequence_id, place, data, number)
            ON stored.{name["sequence_id"]} = item.sequence_id AND stored.{name["position"]} = item.place
                AND stored.{name["data"]} = item.data ORDER BY item.number"""  # noqa: S608
        parameters = (list(page.sequence_ids), list(page.positions), list(envelopes))
        return [number - 1 for (number,) in connection.exec_driver_sql(statement, parameters)]

    def _swap_statement(self, key_id: str, *, by_tag: bool) -> str:
        """
        Return the UPDATE.

        *key_id* is the new value of the column of key ids, if there is one.
        """
        data = self._names["data"]
        arrays, columns = ("%b::uuid[], ", "key_id, ") if key_id == "item.key_id" else ("", "")
        set_key_id = f", {self._names[KEY_ID]} = {key_id}" if key_id else ""
        tag = f"substring(stored.{data} FROM greatest(octet_length(stored.{data}) - {TAG_SIZE - 1}, 1))"
        return f"""
            UPDATE {self._table} AS stored SET {data} = item.data{set_key_id}
            FROM unnest({arrays}%b::oid[], %b::tid[], %b::bytea[], %b::bytea[])
                AS item ({columns}partition, locator, old, data)
            WHERE stored.ctid = item.locator AND stored.tableoid = item.partition
                AND {tag if by_tag else f"stored.{data}"} = item.old"""  # noqa: S608 - names come from the registry, quoted

    def _conditions(
        self, selection: Selection, after: Place | None, upto: Place | None
    ) -> tuple[list[str], list[Any]]:
        key_id, data = self._key_id, self._names["data"]
        parameters: list[Any] = []
        if selection.keys is None:
            conditions = ["true" if selection.plain else f"({key_id}) IS NOT NULL"]
        else:
            wanted = [f"({key_id}) = ANY(%b::uuid[])"]
            parameters.append(list(selection.keys))
            if selection.fitting:
                wanted.append(
                    f"({key_id}) = ANY(%b::uuid[]) AND substring({data} FROM 1 FOR 3) <> ALL(%b::bytea[])"
                )
                parameters += [list(selection.fitting), list(selection.heads)]
            if selection.plain:
                wanted.append(f"({key_id}) IS NULL")
                if self._has_key_ids:
                    wanted.append(key_ids_differ(self._dialect, data, self._names[KEY_ID], as_text=False))
            conditions = [f"({' OR '.join(wanted)})"]
        for operator, bound in ((">", after), ("<=", upto)):
            if bound is not None:
                names = f"{self._names['sequence_id']}, {self._names['position']}"
                conditions.append(
                    f"({names}) {operator} ({', '.join(f'%b::{t}' for t in self._place_types)})"
                )
                parameters += bound
        return conditions, parameters


class _Array:
    """
    A parameter: an array of one dimension without NULLs.

    Its elements are in PostgreSQL's binary form already. Psycopg's own lists run Python code for each
    element, which takes longer than sealing it (docs/decisions/0012).
    """

    __slots__ = ("elements", "type")

    def __init__(self, element_type: int, elements: Sequence[bytes]) -> None:
        self.type = element_type
        self.elements = elements


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def get_key(self, obj: _Array, _format: Any) -> Any:
        return self.cls, obj.type

    def upgrade(self, obj: _Array, _format: Any) -> Dumper:
        dumper = _ArrayDumper(self.cls)
        dumper.oid = _ARRAYS[obj.type]
        return dumper

    def dump(self, obj: _Array) -> bytes:
        elements = obj.elements
        header = _ARRAY_HEADER(1, 0, obj.type, len(elements), 1)
        if len(sizes := set(map(len, elements))) == 1:
            size = _PACK_SIZE(sizes.pop())
            return b"".join((header, size, size.join(elements)))
        return header + length_prefixed(*elements)


def snapshot_horizon(connection: Connection) -> int:
    """
    Return the first transaction id that had not begun.

    The statement's snapshot decides what had begun. The id has 64 bits.
    """
    statement = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    return int(connection.exec_driver_sql(statement).scalar_one())


def _full_xid(xid: int, horizon: int) -> int:
    # A row has only the low 32 bits, and was written in the past.
    return horizon - (horizon - xid) % _XIDS


def _binary(connection: Connection, statement: str, parameters: tuple[Any, ...]) -> CursorResult[Any]:
    """
    Run a statement that transfers its result and arrays in binary.

    That takes half the bytes, and no parsing.
    """
    event.listen(connection, "before_cursor_execute", _in_binary)
    try:
        return connection.exec_driver_sql(statement, parameters)
    finally:
        event.remove(connection, "before_cursor_execute", _in_binary)


def _in_binary(_connection: Connection, cursor: Any, *_: Any) -> None:
    cursor.format = Format.BINARY
    cursor.adapters.register_dumper(_Array, _ArrayDumper)

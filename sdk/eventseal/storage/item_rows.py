"""Rows of any registered table: counted by key, and read in pages."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Column, MetaData, Table, func, select

from eventseal.storage.item_columns import comes_after
from eventseal.storage.transactions import read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.registry import SealedTable


class ItemRow(NamedTuple):
    """An item as its table has it, whatever its columns are called."""

    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    key_id: UUID | None


def count_by_key(connection: Connection, table: SealedTable) -> dict[UUID | None, int]:
    """
    Count a table's items by their key; plain ones stand under ``None``.

    Args:
        connection: To the database that the table is in.
        table: From the registry.
    """
    key_id = _columns(table)["key_id"]
    return {row[0]: row[1] for row in connection.execute(select(key_id, func.count()).group_by(key_id))}


def row_at(connection: Connection, table: SealedTable, sequence_id: Any, position: Any) -> ItemRow | None:
    """
    Read one item of a table, if it is there.

    Args:
        connection: To the database that the table is in.
        table: From the registry.
        sequence_id: In the column's own type, like *position*.
        position: In the sequence.
    """
    columns = _columns(table)
    query = select(*(columns[role] for role in ItemRow._fields)).where(
        columns["sequence_id"] == sequence_id, columns["position"] == position
    )
    return next(iter(_page(query, connection)), None)


def pages(
    engine: Engine, table: SealedTable, *, size: int = 1000, after: tuple[Any, Any] | None = None
) -> Iterator[list[ItemRow]]:
    """
    Read a table in order of sequence id and position, each page in a short transaction of its own.

    Args:
        engine: Of the database that the table is in.
        table: From the registry.
        size: Rows in a page.
        after: Begin behind this sequence id and position.
    """
    columns = _columns(table)
    place = columns["sequence_id"], columns["position"]
    query = select(*(columns[role] for role in ItemRow._fields)).order_by(*place).limit(size)
    while True:
        rest = query if after is None else query.where(comes_after(place, after))
        page = read(engine, partial(_page, rest), doing=f"reading {table.table}")
        if page:
            yield page
        if len(page) < size:
            return
        after = page[-1][:2]


def _page(query: Select[Any], connection: Connection) -> list[ItemRow]:
    return [ItemRow._make(row) for row in connection.execute(query)]


def _columns(table: SealedTable) -> dict[str, Column[Any]]:
    schema, _, name = table.table.rpartition(".")
    described = Table(
        name,
        MetaData(),
        *(Column(column.name, column.kind.type, key=role) for role, column in table.columns.items()),
        schema=schema or None,
    )
    return dict(described.c)

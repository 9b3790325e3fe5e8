"""Where to cut a table into ranges of about the same size, whatever its ids are: found on a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, literal_column, select, tablesample, text
from sqlalchemy.exc import OperationalError

from eventseal.storage.faults import has_no_such_column
from eventseal.storage.item_rows import described

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Place
    from eventseal.storage.sealed_table import SealedTable

_SAMPLE_PAGES = 200
_SAMPLE_ROWS = 1000


def range_bounds(connection: Connection, sealed_table: SealedTable, ranges: int) -> list[Place]:
    """
    Find the places that cut a table into *ranges* of about the same size.

    Args:
        connection: In a transaction.
        sealed_table: From the registry.
        ranges: At least 1.

    Returns:
        The last place of each range but the last, in the database's own order; fewer if the table is small.
    """
    if ranges == 1:
        return []
    sampled = _on_sqlite if connection.dialect.name == "sqlite" else _on_postgresql
    sample = sampled(connection, sealed_table)
    steps = [len(sample) * number // ranges for number in range(1, ranges)]
    return list(dict.fromkeys([sample[step] for step in steps])) if len(sample) > ranges else []


def _on_postgresql(connection: Connection, sealed_table: SealedTable) -> list[Place]:
    found = described(sealed_table).table
    name = connection.dialect.identifier_preparer.format_table(found)
    size = text(
        "SELECT coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(:name)), "
        "pg_relation_size(:name)) / current_setting('block_size')::bigint"
    )
    pages = int(connection.execute(size, {"name": name}).scalar_one())
    share = min(100.0, 100.0 * _SAMPLE_PAGES / max(pages, 1))
    sample = tablesample(found, func.system(literal_column(f"{share:f}")))
    place = [sample.c["sequence_id"], sample.c["position"]]
    return [(row[0], row[1]) for row in connection.execute(select(*place).order_by(*place))]


def _on_sqlite(connection: Connection, sealed_table: SealedTable) -> list[Place]:
    found = described(sealed_table)
    place = found.place
    rowid: ColumnElement[int] = literal_column("rowid")
    ends: Any = select(func.min(rowid), func.max(rowid)).select_from(found.table)
    try:
        first, last = connection.execute(ends).one()
    except OperationalError as error:
        if not has_no_such_column(error):
            raise
        return []  # made WITHOUT ROWID: one range then
    if last is None:
        return []
    step = max(1, (last - first) // _SAMPLE_ROWS)
    rows: Any = select(*place).where(rowid.in_(range(first, last + 1, step))).order_by(*place)
    return [(row[0], row[1]) for row in connection.execute(rows)]

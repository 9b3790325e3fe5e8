"""What became of an INSERT: was an item's place taken, did a COMMIT that was not answered take effect."""

from __future__ import annotations

import sqlite3
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql

from eventseal.errors import StoreUnavailableError
from eventseal.storage.faults import sqlstate, translated

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.exc import IntegrityError

    from eventseal.storage.item_columns import ItemColumns
    from eventseal.storage.item_inserts import ItemInserts, Row, RowsByKey

_UNIQUE_VIOLATION = "23505"
_SQLITE_UNIQUE = "UNIQUE constraint failed: "
_COLUMNS_OF_INDEX = text(
    "SELECT attname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " JOIN pg_attribute ON attrelid = indexrelid"
    " WHERE relname = :name AND coalesce(pg_partition_root(indrelid), indrelid) = to_regclass(:table)"
)


def violates_item_key(error: IntegrityError, engine: Engine, columns: ItemColumns) -> bool:
    """
    Whether a refused row's place was taken: not any other constraint, of this table or of another.

    Args:
        error: From the INSERT, the flush or the COMMIT; its transaction was rolled back.
        engine: Asked, on PostgreSQL, what the constraint stands for.
        columns: Of the items' table.
    """
    wanted = {column.name for column in columns.item_key}
    if isinstance(error.orig, sqlite3.Error):
        _, found, names = str(error.orig).partition(_SQLITE_UNIQUE)
        return bool(found) and set(names.split(", ")) == {f"{columns.table.name}.{name}" for name in wanted}
    diagnosis = getattr(error.orig, "diag", None)
    if sqlstate(error) != _UNIQUE_VIOLATION or diagnosis is None:
        return False
    table = engine.dialect.identifier_preparer.format_table(columns.table)
    with engine.connect() as connection:
        rows = connection.execute(_COLUMNS_OF_INDEX, {"name": diagnosis.constraint_name, "table": table})
        return set(rows.scalars()) == wanted


def was_committed(engine: Engine, columns: ItemColumns, inserts: ItemInserts, batch: RowsByKey) -> bool:
    """
    Find out, on a fresh connection, whether the batch is stored exactly as it was sent.

    A sealed item's random IV makes equal bytes a proof; of a plain item they say that an equal one is there.

    Args:
        engine: Of the items' database.
        columns: Of the items' table.
        inserts: Knows the order of a row's values.
        batch: What was sent.

    Raises:
        StoreUnavailableError: The database cannot be asked, so the outcome stays unknown.
    """
    rows = list(chain.from_iterable(batch.values()))
    if not rows:
        raise _unknown(columns, "it had no items to look for")
    try:
        with translated("asking what became of it"), engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                _wait_for_the_other(connection, inserts, rows[0])
            return all(_is_stored(connection, columns, row) for row in rows)
    except StoreUnavailableError as error:
        raise _unknown(columns, str(error)) from error


def _unknown(columns: ItemColumns, reason: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"it is not known whether an append to {columns.table} was committed: {reason}",
        remedy="Read the sequence before you append again: the items are all there, or none of them.",
    )


def _wait_for_the_other(connection: Connection, inserts: ItemInserts, row: Row) -> None:
    """Wait until the transaction whose COMMIT was not answered has ended: its server may still be at it."""
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    values = {column.name: value for column, value in zip(inserts.columns, row, strict=True)}
    # Meets the other's row in the unique index; where there is none, it must be gone before anybody looks.
    connection.execute(postgresql.insert(inserts.table).values(values).on_conflict_do_nothing())
    connection.rollback()


def _is_stored(connection: Connection, columns: ItemColumns, row: Row) -> bool:
    sequence_id, position, _, data = row[:4]
    query = select(columns.data).where(columns.sequence_id == sequence_id, columns.position == position)
    found: Any = connection.execute(query).scalar()
    return found is not None and bytes(found) == data

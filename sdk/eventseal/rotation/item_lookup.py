"""One item of a registered table, found by what a person types."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.errors import ConfigurationError, ItemNotFoundError
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.item_rows import ItemRow, row_at
from eventseal.storage.sealed_table import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.transactions import read

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Place
    from eventseal.storage import SQLAlchemyDatastore

_READERS: dict[ColumnKind, Callable[[str], Any]] = {
    ColumnKind.UUID: UUID,
    ColumnKind.GENERIC_UUID: UUID,
    ColumnKind.INTEGER: int,
    ColumnKind.DECIMAL: Decimal,
    ColumnKind.TEXT: str,
    ColumnKind.DATABASE_TEXT: str,
}


def find_item(
    datastore: SQLAlchemyDatastore, application: str, table: str, sequence_id: str, position: str
) -> ItemRow:
    """
    Read one row.

    Args:
        datastore: Has the items, and the registry of their tables.
        application: Whose item.
        table: A registered table.
        sequence_id: As text.
        position: As text.

    Returns:
        The row as it is stored.

    Raises:
        ConfigurationError: The table is not registered, or a text is not of the column's kind.
        ItemNotFoundError: There is no such row.
        StoreError: The database refused or failed.
    """
    (sealed_table,) = registered_tables(datastore, application, [table])
    place = typed_place(sealed_table, sequence_id, position)

    def look(connection: Connection) -> ItemRow | None:
        return row_at(connection, sealed_table, *place)

    row = read(datastore.engine, look, doing=f"reading {table}")
    if row is None:
        raise ItemNotFoundError(
            f"there is no item at position {position} of sequence {sequence_id} in {table}"
        )
    return row


def typed_place(table: SealedTable, sequence_id: str, position: str) -> Place:
    """
    Read a place as a person types it; ``1.5`` is ``1.500000``.

    Args:
        table: From the registry.
        sequence_id: As text.
        position: As text.

    Raises:
        ConfigurationError: A text is not of the column's kind.
    """
    return (
        _value(table.columns["sequence_id"], sequence_id),
        _value(table.columns["position"], position),
    )


def _value(column: SealedColumn, text: str) -> Any:
    try:
        return _READERS[column.kind](text)
    except (ValueError, InvalidOperation):
        raise ConfigurationError(
            f"{text!r} is not of the kind of column {column.name}: {column.kind}"
        ) from None

"""Chooses what reads and swaps the rows of a table: as its database does it best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError
from eventseal.storage.swaps_on_sqlite import SQLiteSwaps

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from eventseal.storage.item_swaps import ItemSwaps
    from eventseal.storage.sealed_table import SealedTable


def item_swaps(engine: Engine, table: SealedTable) -> ItemSwaps:
    """
    Give what reads and swaps the rows of *table*.

    Raises:
        ConfigurationError: PostgreSQL is reached by another driver than psycopg.
    """
    if engine.dialect.name == "sqlite":
        return SQLiteSwaps(engine.dialect, table)
    if engine.dialect.driver != "psycopg":
        raise ConfigurationError(
            f"the driver {engine.dialect.driver} cannot carry a page of items in binary",
            remedy="Use psycopg: begin the database's URL with postgresql:// or postgresql+psycopg://.",
        )
    # Not above: psycopg is an extra.
    from eventseal.storage.swaps_on_postgresql import PostgreSQLSwaps  # noqa: PLC0415

    return PostgreSQLSwaps(engine.dialect, table)

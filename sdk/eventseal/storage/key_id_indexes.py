"""The index on the key ids in headers, of tables that have no column of them."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import text

from eventseal.storage.faults import translated
from eventseal.storage.fence_triggers import fitting_name
from eventseal.storage.header_key_ids import key_id_in_header
from eventseal.storage.transactions import write

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect, Engine

    from eventseal.storage.registry import SealedTable

_IS_VALID = text(
    "SELECT indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table) AND relname = :name"
)
_IS_THERE = text("SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = :name AND tbl_name = :table")


def has_key_id_index(connection: Connection, table: SealedTable) -> bool:
    """
    Whether queries by key find an index: one on this release's expression, and whole.

    Args:
        connection: To the items' database.
        table: From the registry, without a column of key ids.
    """
    return bool(_found(connection, table))


def make_key_id_index(engine: Engine, table: SealedTable) -> bool:
    """
    Make the index, if it is not there. On PostgreSQL others write meanwhile; on SQLite they wait.

    Args:
        engine: Of the items' database.
        table: From the registry, without a column of key ids.

    Returns:
        Whether there was anything to make.

    Raises:
        StoreError: The database refused or failed; run it again.
    """
    doing = f"making the index on the key ids of {table.table}"
    if engine.dialect.name == "sqlite":
        return write(engine, lambda connection: _make_in_file(connection, table), doing=doing)
    # Not in a transaction: CONCURRENTLY is several of them.
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with translated(doing), autocommit.connect() as connection:
        found = _found(connection, table)
        if found:
            return False
        quote = engine.dialect.identifier_preparer.quote
        schema, _, _ = table.table.rpartition(".")
        name = quote(index_name(engine.dialect, table))
        if found is not None:  # what an interrupted attempt has left
            place = f"{quote(schema)}.{name}" if schema else name
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {place}")
        connection.exec_driver_sql(_create(engine.dialect, table, "INDEX CONCURRENTLY"))
        # The planner knows nothing of an expression before.
        connection.exec_driver_sql(f"ANALYZE {_quoted(engine.dialect, table)}")
    return True


def index_name(dialect: Dialect, table: SealedTable) -> str:
    """Name the index by its expression: a release with another one makes its own."""
    expression = _expression(dialect, table)
    _, _, name = table.table.rpartition(".")
    return fitting_name("eventseal_key_id", sha256(expression.encode()).hexdigest()[:8], name)


def _make_in_file(connection: Connection, table: SealedTable) -> bool:
    if _found(connection, table):
        return False
    connection.exec_driver_sql(_create(connection.dialect, table, "INDEX"))
    return True


def _found(connection: Connection, table: SealedTable) -> bool | None:
    """Whether the index is whole; ``None``: there is none."""
    named = {"name": index_name(connection.dialect, table)}
    if connection.dialect.name == "sqlite":
        found = connection.execute(_IS_THERE, {**named, "table": table.table}).scalar()
    else:
        found = connection.execute(_IS_VALID, {**named, "table": _quoted(connection.dialect, table)}).scalar()
    return None if found is None else bool(found)


def _create(dialect: Dialect, table: SealedTable, what: str) -> str:
    name = dialect.identifier_preparer.quote(index_name(dialect, table))
    return f"CREATE {what} {name} ON {_quoted(dialect, table)} (({_expression(dialect, table)}))"


def _expression(dialect: Dialect, table: SealedTable) -> str:
    return key_id_in_header(dialect, dialect.identifier_preparer.quote(table.columns["data"].name))


def _quoted(dialect: Dialect, table: SealedTable) -> str:
    return ".".join(dialect.identifier_preparer.quote(part) for part in table.table.rsplit(".", 1))

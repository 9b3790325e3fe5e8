"""
The statements that rename the tables of earlier releases.

The functions take a connection, so that other tools can run the statements in their own transaction.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqlalchemy import text

from eventseal.storage.database.layout import OLDER_NAMES, PREFIX, quoted_name, unchanged_names
from eventseal.storage.database.table_setup import ADDED, columns_of, fits, has_table, one_setup_at_a_time
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.items.fences import FENCE_PREFIX, PATIENCE
from eventseal.storage.keys.tables import key_fences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection

_INDEXES = text(
    "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table) ORDER BY relname"
)
_CONSTRAINTS = text(
    "SELECT conname FROM pg_constraint"
    " WHERE conrelid = to_regclass(:table) AND contype NOT IN ('p', 'u', 'x') ORDER BY conname"
)
_FUNCTIONS = text(
    "SELECT pg_get_functiondef(oid) FROM pg_proc"
    " WHERE starts_with(proname, :prefix) AND strpos(prosrc, :fences) > 0 ORDER BY oid"
)
_TABLE_IS_IN = text(
    "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE pg_class.oid = to_regclass(:table)"
)
_TRIGGERS = text(
    "SELECT name, sql FROM sqlite_master"
    " WHERE type = 'trigger' AND substr(name, 1, length(:prefix)) = :prefix ORDER BY name"
)


@reads("looking for tables of earlier releases")
def rename_statements(connection: Connection, tables: Iterable[Table]) -> list[str]:
    """
    Return the statements that rename EventSeal's own tables in one database.

    Run them in one transaction. They also create the triggers again that lock the fences: their text names
    the table of the fences. On PostgreSQL, indexes and constraints are renamed too. SQLite cannot rename
    them, and they keep their names.

    Args:
        connection: A connection to the database, in a transaction.
        tables: EventSeal's own tables.

    Returns:
        An empty list if no table has an older name. A table of such a name with other columns belongs to
        another program.
    """
    unchanged_names(connection)
    older = [table for table in tables if _is_older(connection, table)]
    if connection.dialect.name == "sqlite":
        return list(_on_sqlite(connection, older))
    return list(_on_postgresql(connection, older))


@writes("renaming tables")
def rename_tables(connection: Connection, tables: Iterable[Table]) -> bool:
    """
    Run the statements of :func:`rename_statements`.

    On PostgreSQL this waits for open transactions that use a table, for :data:`PATIENCE` seconds each.

    Returns:
        Whether anything was renamed.
    """
    if connection.dialect.name == "postgresql":
        # Whoever uses a table meanwhile waits for this lock, so it must not wait long itself.
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
    one_setup_at_a_time(connection)
    statements = rename_statements(connection, tables)
    for statement in statements:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    return bool(statements)


def _older_name(table: Table) -> str:
    return table.name.removeprefix(PREFIX)


def _is_older(connection: Connection, table: Table) -> bool:
    """Return whether a table has its older name, with its own columns."""
    name = _older_name(table)
    if name not in OLDER_NAMES or not has_table(connection, name):
        return False
    found = columns_of(connection, name)
    first = {column.name for column in table.columns if column.info != ADDED}
    return first <= found.keys() <= set(table.columns.keys()) and all(
        fits(connection, table.columns[column].type, kind) for column, kind in found.items()
    )


def _on_postgresql(connection: Connection, older: list[Table]) -> Iterator[str]:
    quote = connection.dialect.identifier_preparer.quote
    for table in older:
        there = {"table": quoted_name(connection, _older_name(table))}
        yield f"ALTER TABLE {there['table']} RENAME TO {quote(table.name)}"
        # This also renames the constraint that an index belongs to.
        for name in connection.execute(_INDEXES, there).scalars():
            yield f"ALTER INDEX {quoted_name(connection, name)} RENAME TO {quote(_renamed(name, table))}"
        for name in connection.execute(_CONSTRAINTS, there).scalars():
            change = f"RENAME CONSTRAINT {quote(name)} TO {quote(_renamed(name, table))}"
            yield f"ALTER TABLE {quoted_name(connection, table.name)} {change}"
    if key_fences in older:
        name = _older_name(key_fences)
        schema = connection.execute(_TABLE_IS_IN, {"table": quoted_name(connection, name)}).scalar_one()
        fences = f"{quote(schema)}.{name} "
        found = {"prefix": FENCE_PREFIX, "fences": fences}
        for definition in connection.execute(_FUNCTIONS, found).scalars():
            yield definition.replace(fences, f"{quote(schema)}.{key_fences.name} ")


def _renamed(name: str, table: Table) -> str:
    """Return the current name of an index or a constraint."""
    return name.replace(_older_name(table), table.name, 1)


def _on_sqlite(connection: Connection, older: list[Table]) -> Iterator[str]:
    quote = connection.dialect.identifier_preparer.quote
    triggers = {}
    if key_fences in older:
        fences = re.compile(rf"\bFROM {_older_name(key_fences)}\b")
        found = connection.execute(_TRIGGERS, {"prefix": FENCE_PREFIX})
        triggers = {name: sql for name, sql in found if fences.search(sql)}
        triggers = {name: fences.sub(f"FROM {key_fences.name}", sql) for name, sql in triggers.items()}
    # SQLite would rename the table in them too, but would quote its name.
    for name in triggers:
        yield f"DROP TRIGGER {quote(name)}"
    for table in older:
        yield f"ALTER TABLE {quote(_older_name(table))} RENAME TO {quote(table.name)}"
    yield from triggers.values()

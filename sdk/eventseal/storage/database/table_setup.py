"""Creating tables, and comparing existing tables with those that are needed."""

from __future__ import annotations

import sqlite3
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import CheckConstraint, Table, inspect, text
from sqlalchemy.engine.reflection import ObjectKind
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

from eventseal.errors import ConfigurationError
from eventseal.storage.database.column_types import (
    MOST_SECONDS,
    UUID_SIZE,
    BinaryUUID,
    Count,
    ExactBytes,
    Rate,
    Seconds,
)
from eventseal.storage.database.transactions import reads, writes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Column, MetaData
    from sqlalchemy.engine import Connection
    from sqlalchemy.schema import SchemaItem
    from sqlalchemy.types import TypeEngine


_SQLITE_INDEXES = text(
    'SELECT list.name, list."unique", info.name FROM pragma_index_list(:table) AS list, '
    "pragma_index_info(list.name) AS info WHERE NOT list.partial ORDER BY list.seq, info.seqno"
)
_STRICT = sqlite3.sqlite_version_info >= (3, 37)
"""Older SQLite does not know STRICT tables. There, ordinary tables are created."""

_SETUP_LOCK = 0x6576_7365_616C  # any number, the same for all processes that set tables up

KEY_ID = "key_id"
ADDED: dict[Any, Any] = {"eventseal": "added"}
"""Marks a column, as its ``info``, that tables of earlier releases lack. It may be NULL, and is added."""


def own_table(name: str, metadata: MetaData, *parts: SchemaItem, **options: Any) -> Table:
    """
    Declare one of EventSeal's own tables.

    On SQLite it is STRICT, with a CHECK for each column whose type has limits. Older stores have neither, and
    an attacker who can write to the database can drop both. So no check in Python relies on them
    (docs/decisions/0030).

    Args:
        name: The table's name.
        metadata: The metadata that lists the table.
        parts: The table's columns, constraints and indexes.
        options: Further arguments of SQLAlchemy's ``Table``.
    """
    table = Table(name, metadata, *parts, sqlite_strict=_STRICT, **options)
    for column in table.columns:
        check = _limits(column.name, column.type)
        if check is not None:
            constraint = CheckConstraint(check, name=f"ck_{name}_{column.name}")
            if isinstance(column.type, BinaryUUID):
                constraint = constraint.ddl_if(dialect="sqlite")
            table.append_constraint(constraint)
    return table


def _limits(name: str, kind: TypeEngine[Any]) -> str | None:
    """Return the limits of a column's values as SQL. No later release changes them."""
    if isinstance(kind, Count):
        return f"{name} >= 0"
    if isinstance(kind, Seconds):
        return f"{name} BETWEEN 0 AND {MOST_SECONDS}"
    if isinstance(kind, Rate):
        return f"{name} > 0"
    size = UUID_SIZE if isinstance(kind, BinaryUUID) else None
    if isinstance(kind, ExactBytes):
        size = kind.length
    return None if size is None else f"length({name}) = {size}"


@reads("looking for {name}")
def has_table(connection: Connection, name: str) -> bool:
    """
    Return whether a table, or a view, exists.

    If it is not in the default schema, the name is its schema, a dot and its own name.
    """
    schema, _, table = name.rpartition(".")
    return inspect(connection).has_table(table, schema=schema or None)


@reads("looking for tables")
def table_names(connection: Connection) -> list[str]:
    """Return the names of the tables in the default schema."""
    return inspect(connection).get_table_names()


class ColumnIndex(NamedTuple):
    """An index on columns of a table, or a unique constraint."""

    name: str
    columns: tuple[str, ...]
    unique: bool


def column_indexes(connection: Connection, table: str, schema: str | None = None) -> list[ColumnIndex]:
    """
    List the indexes on columns alone that cover all rows.

    On SQLite this does not ask SQLAlchemy, which would warn about the other indexes. Without a schema, the
    table is in the default schema.
    """
    if connection.dialect.name == "sqlite":
        parts: dict[tuple[str, bool], list[str | None]] = {}
        for name, unique, column in connection.execute(_SQLITE_INDEXES, {"table": table}):
            parts.setdefault((name, bool(unique)), []).append(column)
        found = [(name, columns, unique) for (name, unique), columns in parts.items()]
    else:
        found = [
            (str(index["name"]), index["column_names"], bool(index["unique"]))
            for index in inspect(connection).get_indexes(table, schema=schema)
            if "postgresql_where" not in index.get("dialect_options", {})
        ]
    return [
        ColumnIndex(name, tuple(map(str, columns)), unique)
        for name, columns, unique in found
        if None not in columns
    ]


@writes("creating tables")
def create_tables(connection: Connection, tables: Iterable[Table]) -> set[str]:
    """
    Create the missing tables with their indexes, and compare existing ones.

    Columns that an earlier release did not have are added.

    Args:
        connection: A connection in a transaction. On SQLite, it holds the write lock.
        tables: The tables, in an order in which they can be created.

    Returns:
        The full names of the created tables.

    Raises:
        ConfigurationError: A table exists without a required column. Then nothing is created.
    """
    one_setup_at_a_time(connection)
    inspector = inspect(connection)
    there: dict[Any, Any] = {}
    for schema, named in groupby(tables := list(tables), key=lambda table: table.schema):
        names = [table.name for table in named]
        there |= inspector.get_multi_columns(schema, filter_names=names, kind=ObjectKind.ANY)
    missing = []
    added: list[str] = []
    for table in tables:
        if (table.schema, table.name) not in there:
            missing.append(table)
            continue
        found = {column["name"] for column in there[table.schema, table.name]}
        for column in table.columns:
            if column.name not in found and column.info == ADDED:
                added.append(column_addition(connection, table, column))
            elif column.name not in found:
                raise _missing_column(connection, table, column)
    for statement in added:
        connection.execute(text(statement))
    for table in missing:
        connection.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            connection.execute(CreateIndex(index))
    return {table.fullname for table in missing}


@writes("adding key_id to {table}")
def add_key_id(connection: Connection, table: Table) -> bool:
    """
    Add the column ``key_id`` to a table that lacks it.

    The indexes that its class declares on the column are created too.

    Args:
        connection: A connection in a transaction. On SQLite, it holds the write lock.
        table: The table, declared with the column.

    Returns:
        Whether anything was added. If the table does not exist, nothing is.
    """
    one_setup_at_a_time(connection)
    if not has_table(connection, table.fullname):
        return False
    column = table.c[KEY_ID]
    added = False
    inspector = inspect(connection)
    if column.name not in {found["name"] for found in inspector.get_columns(table.name, schema=table.schema)}:
        connection.execute(text(column_addition(connection, table, column)))
        added = True
    indexed = {found.columns for found in column_indexes(connection, table.name, table.schema)}
    for index in table.indexes:
        names = tuple(part.name for part in index.columns)
        if column.name in names and names not in indexed:
            connection.execute(CreateIndex(index))
            added = True
    return added


@writes("dropping tables")
def drop_tables(connection: Connection, tables: Iterable[Table]) -> None:
    """Drop the tables that exist."""
    one_setup_at_a_time(connection)
    for table in tables:
        connection.execute(DropTable(table, if_exists=True))


def one_setup_at_a_time(connection: Connection) -> None:
    """
    Keep other processes from setting tables up before this transaction ends.

    On SQLite the write lock does that.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SETUP_LOCK})


def _missing_column(connection: Connection, table: Table, column: Column[Any]) -> ConfigurationError:
    add = column_addition(connection, table, column)
    return ConfigurationError(
        f"the table {table} exists, but has no column {column.name}",
        remedy=f"Run `eventseal init`, which adds the column, or add it yourself: {add}"
        if column.name == KEY_ID
        else f"If another program's table has this name, rename one of them. Otherwise add the column: {add}",
    )


def column_addition(connection: Connection, table: Table, column: Column[Any]) -> str:
    """Return the statement that adds a column which a table lacks."""
    name = connection.dialect.identifier_preparer.format_table(table)
    compiler = connection.dialect.ddl_compiler(connection.dialect, None)  # type: ignore[arg-type]
    return f"ALTER TABLE {name} ADD COLUMN {compiler.get_column_specification(column)}"

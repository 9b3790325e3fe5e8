"""Creating tables, and comparing existing tables with those that are needed."""

from __future__ import annotations

import sqlite3
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    BINARY,
    JSON,
    NUMERIC,
    VARBINARY,
    CheckConstraint,
    DateTime,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Table,
    Uuid,
    inspect,
    text,
)
from sqlalchemy.engine.reflection import ObjectKind
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable, ExecutableDDLElement
from sqlalchemy.types import TypeDecorator, TypeEngine

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
from eventseal.storage.database.layout import (
    UPGRADE,
    Layout,
    is_newer,
    layout_of,
    own_name,
    quoted_name,
    schema_of,
)
from eventseal.storage.database.transactions import reads, writes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Column, MetaData
    from sqlalchemy.engine import Connection
    from sqlalchemy.schema import SchemaItem


_SQLITE_INDEXES = text(
    'SELECT list.name, list."unique", info.name FROM pragma_index_list(:table) AS list, '
    "pragma_index_info(list.name) AS info WHERE NOT list.partial ORDER BY list.seq, info.seqno"
)
_STRICT = sqlite3.sqlite_version_info >= (3, 37)
"""Older SQLite does not know STRICT tables. There, ordinary tables are created."""

_SETUP_LOCK = 0x6576_7365_616C  # any number, the same for all processes that set tables up

KEY_ID = "key_id"
_ANOTHER_PROGRAM = (
    "If the table belongs to another program, rename it, or keep EventSeal's tables in another database or "
    "schema (the setting `database_schema`)."
)
_KINDS: dict[type[TypeEngine[Any]], tuple[type[TypeEngine[Any]], ...]] = {
    Uuid: (Uuid,),
    LargeBinary: (LargeBinary, BINARY, VARBINARY),
    Numeric: (Integer, Numeric),
    String: (String, JSON),
    DateTime: (DateTime,),
}
"""Kinds of column types, with the types that count as each."""

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
    found = schema_of(connection, schema or None)
    return inspect(connection).has_table(own_name(connection, table), schema=found)


@reads("looking for tables")
def table_names(connection: Connection) -> list[str]:
    """Return the names of the tables in the default or chosen schema."""
    return inspect(connection).get_table_names(schema=schema_of(connection, None))


def columns_of(connection: Connection, name: str) -> dict[str, TypeEngine[Any]]:
    """Return the types of a table's columns. The name is as for :func:`has_table`."""
    schema, _, table = name.rpartition(".")
    columns = inspect(connection).get_columns(
        own_name(connection, table), schema=schema_of(connection, schema or None)
    )
    return {column["name"]: column["type"] for column in columns}


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
    table = own_name(connection, table)
    if connection.dialect.name == "sqlite":
        parts: dict[tuple[str, bool], list[str | None]] = {}
        for name, unique, column in connection.execute(_SQLITE_INDEXES, {"table": table}):
            parts.setdefault((name, bool(unique)), []).append(column)
        found = [(name, columns, unique) for (name, unique), columns in parts.items()]
    else:
        found = [
            (str(index["name"]), index["column_names"], bool(index["unique"]))
            for index in inspect(connection).get_indexes(table, schema=schema_of(connection, schema))
            if "postgresql_where" not in index.get("dialect_options", {})
        ]
    return [
        ColumnIndex(name, tuple(map(str, columns)), unique)
        for name, columns, unique in found
        if None not in columns
    ]


class Comparison(NamedTuple):
    """
    How needed tables differ from those that exist.

    Attributes:
        missing: The tables that do not exist, in the given order.
        additions: The columns that tables of earlier releases lack.
    """

    missing: list[Table]
    additions: list[Column[Any]]

    def to_create(self, *, is_older: bool) -> list[Table]:
        """
        Return the missing tables.

        In an older store, none may be missing. ``eventseal upgrade`` creates those of later releases.

        Raises:
            ConfigurationError: A table is missing in an older store.
        """
        if is_older and not all(is_newer(table.name) for table in self.missing):
            raise older_store()
        return [] if is_older else self.missing

    def refuse_additions(self) -> None:
        """
        Refuse tables of an earlier release that lack columns.

        Raises:
            ConfigurationError: A table lacks a column.
        """
        for column in self.additions:
            raise ConfigurationError(
                f"the table {column.table} exists, but has no column {column.name}. Nothing was changed",
                remedy=f"Run `{UPGRADE}`, which adds the column.",
            )


@reads("comparing tables")
def compare_tables(connection: Connection, tables: Iterable[Table]) -> Comparison:
    """
    Compare needed tables with those that exist.

    Args:
        connection: A connection to the tables' database.
        tables: The needed tables.

    Raises:
        ConfigurationError: The chosen schema does not exist, or a table belongs to another program. Such a
            table lacks a column of every release, or one of its columns has a type of another kind.
    """
    inspector = inspect(connection)
    chosen = schema_of(connection, None)
    if chosen is not None and not inspector.has_schema(chosen):
        quoted = connection.dialect.identifier_preparer.quote(chosen)
        raise ConfigurationError(
            f"the database has no schema {chosen}. Nothing was changed",
            remedy=f"Create it: CREATE SCHEMA {quoted}",
        )
    there: dict[Any, Any] = {}
    views: set[Any] = set()
    for schema, named in groupby(tables := list(tables), key=lambda table: table.schema):
        names = [own_name(connection, table.name) for table in named]
        found = schema_of(connection, schema)
        there |= inspector.get_multi_columns(found, filter_names=names, kind=ObjectKind.ANY)
        views |= inspector.get_multi_columns(found, filter_names=names, kind=ObjectKind.ANY_VIEW).keys()
    compared = Comparison([], [])
    for table in tables:
        place = schema_of(connection, table.schema), own_name(connection, table.name)
        if place not in there:
            compared.missing.append(table)
            continue
        if place in views:
            raise ConfigurationError(
                f"{table} is a view, and not a table. Nothing was changed", remedy=_ANOTHER_PROGRAM
            )
        types = {column["name"]: column["type"] for column in there[place]}
        for column in table.columns:
            if column.name not in types:
                compared.additions.append(_addition(connection, table, column))
            elif not fits(connection, column.type, types[column.name]):
                raise _of_another_kind(table, column, types[column.name])
    return compared


@writes("creating tables")
def create_tables(connection: Connection, tables: Iterable[Table]) -> set[str]:
    """
    Create the missing tables with their indexes, and compare existing ones.

    Args:
        connection: A connection in a transaction. On SQLite, it holds the write lock.
        tables: The tables, in an order in which they can be created.

    Returns:
        The full names of the created tables.

    Raises:
        ConfigurationError: A table is another program's, or an earlier release created it. Then nothing is
            created.
    """
    one_setup_at_a_time(connection)
    compared = compare_tables(connection, tables)
    compared.refuse_additions()
    missing = compared.to_create(is_older=layout_of(connection) is Layout.OLDER)
    for table in missing:
        for element in creation(table):
            connection.execute(element)
    return {table.fullname for table in missing}


def creation(table: Table) -> list[ExecutableDDLElement]:
    """Return the statements that create a table and its indexes."""
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    return [CreateTable(table), *map(CreateIndex, indexes)]


def creation_sql(connection: Connection, table: Table) -> list[str]:
    """Return the statements that create a table and its indexes, as SQL."""
    chosen = schema_of(connection, None)
    options: dict[str, Any] = {"dialect": connection.dialect}
    if chosen is not None:
        options |= {"schema_translate_map": {None: chosen}, "render_schema_translate": True}
    return [str(element.compile(**options)).strip() for element in creation(table)]


def older_store() -> ConfigurationError:
    """Return the error for a store whose tables have older names."""
    return ConfigurationError(
        "an earlier release created the tables of this store. Nothing was changed",
        remedy=f"Run `{UPGRADE}`, which renames them. Earlier releases cannot use the store after that.",
    )


@reads("looking at the names of the tables")
def layout_of_database(connection: Connection) -> Layout:
    """Return which names the tables of a database have."""
    return layout_of(connection)


@reads("looking for the table {table}")
def is_ours(connection: Connection, table: Table) -> bool:
    """Return whether a table exists, and is not another program's."""
    try:
        return not compare_tables(connection, [table]).missing
    except ConfigurationError:
        return False


@writes("adding columns")
def add_columns(connection: Connection, tables: Iterable[Table]) -> list[str]:
    """
    Add the columns that tables of earlier releases lack.

    The indexes that a class declares on such a column are created too.

    Args:
        connection: A connection in a transaction. On SQLite, it holds the write lock.
        tables: The tables. A table that does not exist is not created.

    Returns:
        The names of the changed tables.

    Raises:
        ConfigurationError: A table is another program's. Then nothing is changed.
    """
    one_setup_at_a_time(connection)
    compared = compare_tables(connection, tables)
    for column in compared.additions:
        connection.execute(text(column_addition(connection, column.table, column)))
    changed = {column.table.fullname for column in compared.additions}
    there = [table for table in tables if table not in compared.missing]
    for table in there:
        indexed = {found.columns for found in column_indexes(connection, table.name, table.schema)}
        for index in table.indexes:
            names = tuple(part.name for part in index.columns)
            if KEY_ID in names and names not in indexed:
                connection.execute(CreateIndex(index))
                changed.add(table.fullname)
    return sorted(changed)


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


def _addition(connection: Connection, table: Table, column: Column[Any]) -> Column[Any]:
    """Return a missing column if it can be added."""
    if column.name == KEY_ID or column.info == ADDED:
        return column
    raise ConfigurationError(
        f"the table {table} exists, but has no column {column.name}. Nothing was changed",
        remedy=f"{_ANOTHER_PROGRAM} If the table is EventSeal's, add the column: "
        f"{column_addition(connection, table, column)}",
    )


def _of_another_kind(table: Table, column: Column[Any], found: TypeEngine[Any]) -> ConfigurationError:
    return ConfigurationError(
        f"the table {table} exists, but its column {column.name} is {found!r}. Nothing was changed",
        remedy=_ANOTHER_PROGRAM,
    )


def fits(connection: Connection, wanted: TypeEngine[Any], found: TypeEngine[Any]) -> bool:
    """Return whether a column's type is of the kind that is needed. Unknown kinds fit."""
    while isinstance(wanted, TypeDecorator):
        wanted = wanted.load_dialect_impl(connection.dialect)
    kinds = _kind(connection, wanted), _kind(connection, found)
    return None in kinds or kinds[0] == kinds[1]


def _kind(connection: Connection, of: TypeEngine[Any]) -> type[TypeEngine[Any]] | None:
    if connection.dialect.name == "sqlite":
        if type(of) is NUMERIC:  # SQLAlchemy's answer for every name that it does not know
            return None
        if isinstance(of, Uuid):
            return String
    return next((kind for kind, types in _KINDS.items() if isinstance(of, types)), None)


def column_addition(connection: Connection, table: Table, column: Column[Any]) -> str:
    """Return the statement that adds a column which a table lacks."""
    name = quoted_name(connection, table.name, table.schema)
    compiler = connection.dialect.ddl_compiler(connection.dialect, None)  # type: ignore[arg-type]
    return f"ALTER TABLE {name} ADD COLUMN {compiler.get_column_specification(column)}"

"""Checks of the tables: there, with their columns, keys and indexes, and with the rights that are needed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import Index, UniqueConstraint, inspect, text
from sqlalchemy.schema import CreateIndex

from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.errors import ConfigurationError, MissingTableError, StoreError
from eventseal.storage.database.table_setup import ADDED, KEY_ID, column_indexes
from eventseal.storage.database.transactions import read
from eventseal.storage.jobs.tables import job_metadata
from eventseal.storage.keys.tables import fence_metadata, key_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Column, Table
    from sqlalchemy.engine import Connection, Engine, Inspector

    from eventseal.storage import SQLAlchemyDatastore

AREA = "tables"
_INIT = "eventseal init"
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


def check_tables(datastore: SQLAlchemyDatastore) -> Iterator[Finding]:
    """
    Compare the tables that are there with those that are needed.

    Args:
        datastore: Lists the items' tables.
    """
    beside = [*fence_metadata.sorted_tables, *job_metadata.sorted_tables]
    items = [record.__table__ for record in datastore.tables] + beside
    keys = list(key_metadata.sorted_tables)
    if datastore.key_engine is datastore.engine:
        yield from _check(datastore.engine, "items and keys", items + keys)
    else:
        yield from _check(datastore.engine, "items", items)
        yield from _check(datastore.key_engine, "keys", keys)


def _check(engine: Engine, what: str, tables: Sequence[Table]) -> Iterator[Finding]:
    look = partial(_differences, tables=tables)
    found = read(engine, look, doing=f"comparing the tables of the {what}")
    yield from found
    if not any(finding.severity.asks_for_action for finding in found):
        names = ", ".join(sorted(table.fullname for table in tables))
        yield Finding(
            severity=Severity.OK, area=AREA, text=f"{what}: {len(tables)} tables as needed: {names}"
        )


def _differences(connection: Connection, tables: Sequence[Table]) -> list[Finding]:
    inspector = inspect(connection)
    found: list[Finding] = []
    for table in tables:
        if not inspector.has_table(table.name, schema=table.schema):
            error = MissingTableError(f"there is no table {table.fullname}", remedy=_INIT)
            found.append(Finding.of(error, AREA))
            continue
        found += _missing_columns(connection, inspector, table)
        found += _missing_keys(connection, inspector, table)
        found += _missing_indexes(connection, table)
        if connection.dialect.name == "postgresql":
            found += _missing_rights(connection, table)
    return found


def _missing_columns(connection: Connection, inspector: Inspector, table: Table) -> Iterator[Finding]:
    there = {column["name"] for column in inspector.get_columns(table.name, schema=table.schema)}
    for column in table.columns:
        if column.name not in there:
            is_added = column.name == KEY_ID or column.info == ADDED
            remedy = _INIT if is_added else _add_column(connection, table, column)
            error = ConfigurationError(f"table {table.fullname} has no column {column.name}", remedy=remedy)
            yield Finding.of(error, AREA)


def _missing_keys(connection: Connection, inspector: Inspector, table: Table) -> Iterator[Finding]:
    """That one of two writers loses, whatever both believe, rests on these alone."""
    unique = _unique_columns(connection, inspector, table)
    wanted = [table.primary_key, *(c for c in table.constraints if isinstance(c, UniqueConstraint))]
    for constraint in wanted:
        names = [column.name for column in constraint.columns]
        if names and frozenset(names) not in unique:
            error = ConfigurationError(
                f"table {table.fullname} does not keep {', '.join(names)} unique: two writers may both win",
                remedy=f"CREATE UNIQUE INDEX ON {table.fullname} ({', '.join(names)});",
            )
            yield Finding.of(error, AREA)


def _unique_columns(connection: Connection, inspector: Inspector, table: Table) -> set[frozenset[str | None]]:
    name, schema = table.name, table.schema
    found: list[Sequence[str | None]] = [
        inspector.get_pk_constraint(name, schema=schema)["constrained_columns"],
        *(index.columns for index in column_indexes(connection, name, schema) if index.unique),
    ]
    return {frozenset(names) for names in found}


def _missing_indexes(connection: Connection, table: Table) -> Iterator[Finding]:
    there = [index.columns for index in column_indexes(connection, table.name, table.schema)]
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        names = tuple(column.name for column in index.columns)
        if not any(found[: len(names)] == names for found in there):
            yield Finding(
                severity=Severity.WARNING,
                area=AREA,
                text=f"table {table.fullname} has no index on {', '.join(names)}: rotation reads all of it",
                remedy=_create_index(connection, index),
            )


def _create_index(connection: Connection, index: Index) -> str:
    statement = str(CreateIndex(index).compile(dialect=connection.dialect))
    if connection.dialect.name == "postgresql":  # while the application writes
        statement = statement.replace("INDEX", "INDEX CONCURRENTLY", 1)
    return f"{' '.join(statement.split())};"


def _missing_rights(connection: Connection, table: Table) -> Iterator[Finding]:
    name = connection.dialect.identifier_preparer.format_table(table)
    quote = connection.dialect.identifier_preparer.quote
    query = text("SELECT current_user, " + ", ".join(f"has_table_privilege(:t, '{r}')" for r in _RIGHTS))
    role, *granted = connection.execute(query, {"t": name}).one()
    denied = [right for right, is_granted in zip(_RIGHTS, granted, strict=True) if not is_granted]
    if denied:
        error = StoreError(
            f"role {role} has no {', '.join(denied)} on table {table.fullname}",
            remedy=f"GRANT {', '.join(denied)} ON {name} TO {quote(role)};",
        )
        # Only what is about to be done needs it: a service that appends deletes nothing.
        is_fatal = "SELECT" in denied
        yield Finding.of(error, AREA, severity=Severity.ERROR if is_fatal else Severity.NOTE)


def _add_column(connection: Connection, table: Table, column: Column[object]) -> str:
    compiler = connection.dialect.ddl_compiler(connection.dialect, None)  # type: ignore[arg-type]
    name = connection.dialect.identifier_preparer.format_table(table)
    return f"ALTER TABLE {name} ADD COLUMN {compiler.get_column_specification(column)};"

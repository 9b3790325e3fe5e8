"""Checks of the registry: every table of sealed items is in it, and every one in it can be reached."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import inspect

from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.errors import ConfigurationError, MissingTableError
from eventseal.rotation.sealed_store import refuse_unreachable_tables, tables_of
from eventseal.storage.item_columns import sealed_columns
from eventseal.storage.key_id_indexes import has_key_id_indexes
from eventseal.storage.registry import DEFAULT_DATABASE, SealedTable, forget_statement, registered
from eventseal.storage.transactions import read
from eventseal.storage.unregistered import (
    copies_of_items,
    unregistered_eventsourcing_tables,
    unregistered_tables,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.configuration.stores import Stores

AREA = "registry"


def check_registry(stores: Stores) -> Iterator[Finding]:
    """
    Compare the registry with the settings and with the tables that are there.

    Args:
        stores: The databases, and the settings.
    """
    settings, datastore = stores.settings, stores.datastore
    rows = read(datastore.key_engine, registered, doing="reading the registry of sealed tables")
    mine = [row for row in rows if row.application in {None, settings.application}]
    found = [
        *_check_listed(stores, mine),
        *read(datastore.engine, partial(_check_there, rows=mine), doing="looking for registered tables"),
        *_check_databases(mine),
        *_check_others(stores),
        *read(datastore.engine, partial(_check_indexes, rows=mine), doing="looking at indexes"),
    ]
    found += read(
        datastore.engine,
        partial(
            _unregistered,
            rows=rows,
            unsealed=settings.unsealed_tables,
            listed=datastore.eventsourcing_tables,
        ),
        doing="looking for tables that are not registered",
    )
    yield from found
    if not any(finding.severity.asks_for_action for finding in found):
        names = ", ".join(sorted({row.table for row in mine}))
        yield Finding(severity=Severity.OK, area=AREA, text=f"tables of sealed items: {names}")


def reachable_tables(stores: Stores) -> list[SealedTable]:
    """
    Give the registered tables that are in the items' database; what is amiss with others is found elsewhere.

    One that applications share has ``application=None``.

    Args:
        stores: The databases, and the settings.
    """
    registry = read(stores.datastore.key_engine, registered, doing="reading the registry of sealed tables")
    rows = tables_of(registry, stores.settings.application)
    by_name = {row.table: row for row in rows if row.database == DEFAULT_DATABASE}
    there = read(stores.datastore.engine, partial(_present, names=list(by_name)), doing="looking for tables")
    return [by_name[name] for name in there]


def _check_listed(stores: Stores, mine: Sequence[SealedTable]) -> Iterator[Finding]:
    """What is listed and not registered is passed over by retire and verify: they would not look there."""
    application = stores.settings.application
    listed = filter(None, map(sealed_columns, stores.datastore.tables))
    theirs = stores.datastore.described_eventsourcing_tables(application=application)
    for wanted in (*(SealedTable.of(columns, application) for columns in listed), *theirs):
        same = [row for row in mine if row.table == wanted.table]
        if not same:
            text = f"table {wanted.table} is listed in the settings and not registered"
        elif all(row.columns != wanted.columns or row.collection != wanted.collection for row in same):
            text = f"table {wanted.table} is registered with other columns, or another collection"
        else:
            continue
        yield Finding.of(ConfigurationError(text, remedy="eventseal init"), AREA)
    there = {table.table for table in theirs}
    absent = [name for name in stores.datastore.eventsourcing_tables if name not in there]
    if absent:
        yield Finding(
            severity=Severity.NOTE,
            area=AREA,
            text=f"listed in eventsourcing_tables, and not there yet: {', '.join(absent)}",
            remedy="When its application has made it: eventseal init",
        )


def _check_there(connection: Connection, rows: Sequence[SealedTable]) -> list[Finding]:
    by_name = {row.table: row for row in rows if row.database == DEFAULT_DATABASE}
    there = _present(connection, list(by_name))
    return [
        Finding.of(
            MissingTableError(
                f"table {name} is registered, and not there",
                remedy=f"Restore it; if it was dropped on purpose: {forget_statement(by_name[name])}",
                table=name,
            ),
            AREA,
        )
        for name in by_name
        if name not in there
    ]


def _present(connection: Connection, names: Sequence[str]) -> list[str]:
    inspector = inspect(connection)
    places = {name: name.rpartition(".") for name in names}
    return [name for name, (schema, _, table) in places.items() if inspector.has_table(table, schema or None)]


def _check_indexes(connection: Connection, rows: Sequence[SealedTable]) -> list[Finding]:
    by_name = {row.table: row for row in rows if row.database == DEFAULT_DATABASE}
    return [
        Finding(
            severity=Severity.WARNING,
            area=AREA,
            text=f"table {name} lacks an index on the key ids in its envelopes: every count reads all of it",
            remedy="eventseal init",
        )
        for name in _present(connection, list(by_name))
        if not has_key_id_indexes(connection, by_name[name])
    ]


def _check_databases(rows: Sequence[SealedTable]) -> Iterator[Finding]:
    for row in rows:
        if row.database != DEFAULT_DATABASE:
            error = ConfigurationError(
                f"table {row.table} is registered in database {row.database!r}, which is not configured",
                remedy="Run maintenance where that database is configured.",
            )
            yield Finding.of(error, AREA)


def _check_others(stores: Stores) -> Iterator[Finding]:
    try:
        refuse_unreachable_tables(stores.datastore, stores.settings.application)
    except ConfigurationError as error:  # no key can be retired
        yield Finding.of(error, AREA)


def _unregistered(
    connection: Connection,
    rows: Sequence[SealedTable],
    unsealed: Collection[str],
    listed: Collection[str],
) -> list[Finding]:
    found = []
    names = unregistered_tables(connection, rows, unsealed_tables=unsealed)
    if names:
        error = ConfigurationError(
            f"not registered, but with a key_id beside a binary column: {', '.join(names)}",
            remedy="If they hold sealed items, add their record classes to `tables`, then: eventseal init. "
            f"If they do not: unsealed_tables = [{_quoted({*names, *unsealed})}]",
        )
        found.append(Finding.of(error, AREA))
    copies = copies_of_items(connection, rows, unsealed_tables={*unsealed, *names})
    if copies:
        error = ConfigurationError(
            f"not registered, but with sealed items in it: {', '.join(copies)}",
            remedy="Drop the table; if what is in it need not open: "
            f"unsealed_tables = [{_quoted({*copies, *unsealed})}]",
        )
        found.append(Finding.of(error, AREA))
    # What is listed and not registered has been told already.
    theirs = unregistered_eventsourcing_tables(connection, rows, unsealed_tables={*unsealed, *listed})
    if theirs:
        error = ConfigurationError(
            f"not registered, but with the columns of the eventsourcing library: {', '.join(theirs)}",
            remedy="If they are to hold sealed items: "
            f"eventsourcing_tables = [{_quoted({*theirs, *listed})}], then: "
            f"eventseal init. If not: unsealed_tables = [{_quoted({*theirs, *unsealed})}]",
        )
        found.append(Finding.of(error, AREA))
    return found


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names))

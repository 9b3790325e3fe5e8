"""Checks of the registry: every table of sealed items is in it, and every one in it can be reached."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import inspect

from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.errors import ConfigurationError, IntegrityError, MissingTableError
from eventseal.rotation.sealed_store import as_listed, refuse_unreachable_tables, tables_of
from eventseal.storage.database.transactions import read
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.key_id_indexes import has_key_id_indexes
from eventseal.storage.items.registry import entry_of, forget_statement, read_registry
from eventseal.storage.items.tables import DEFAULT_DATABASE, OWN_RECORDS, SealedTable
from eventseal.storage.unregistered import (
    copies_of_items,
    tables_of_tagged_events,
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
    # As it stands, without what record classes say: that is compared below.
    registry = read(datastore.key_engine, read_registry, doing="reading the registry of sealed tables")
    rows = registry.tables
    unreadable = {row.table for row in registry.unreadable if row.table is not None}
    mine = [row for row in rows if row.application in {None, settings.application}]
    found = [
        *(Finding.of(row.problem, AREA) for row in registry.unreadable),
        *_check_listed(stores, mine, unreadable),
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
            unsealed={*settings.unsealed_tables, *unreadable},
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
    rows = tables_of(stores.datastore.registry().tables, stores.settings.application)
    rows = [as_listed(stores.datastore, row) for row in rows]
    by_name = {row.table: row for row in rows if row.database == DEFAULT_DATABASE}
    there = read(stores.datastore.engine, partial(_present, names=list(by_name)), doing="looking for tables")
    return [by_name[name] for name in there]


def _check_listed(
    stores: Stores, mine: Sequence[SealedTable], unreadable: Collection[str]
) -> Iterator[Finding]:
    """What is listed and not registered is passed over by retire and verify: they would not look there."""
    application = stores.settings.application
    listed = filter(None, map(sealed_columns, stores.datastore.tables))
    theirs = stores.datastore.described_eventsourcing_tables(application=application)
    for wanted in (*(SealedTable.of(columns, application) for columns in listed), *theirs):
        same = [row for row in mine if row.table == wanted.table]
        if wanted.table in unreadable:
            continue  # what is wrong with it has been told
        if not same:
            text = f"table {wanted.table} is listed in the settings and not registered"
        elif all(row.columns != wanted.columns for row in same):
            text = f"table {wanted.table} is registered with other columns"
        else:
            continue
        yield Finding.of(ConfigurationError(text, remedy="eventseal init"), AREA)
    yield from _check_collections(stores, mine)
    there = {table.table for table in theirs}
    absent = [name for name in stores.datastore.eventsourcing_tables if name not in there]
    if absent:
        yield Finding(
            severity=Severity.NOTE,
            area=AREA,
            text=f"listed in eventsourcing_tables, and not there yet: {', '.join(absent)}",
            remedy="When its application has made it: eventseal init",
        )


def _check_collections(stores: Stores, mine: Sequence[SealedTable]) -> Iterator[Finding]:
    """Two tables with one collection: a row that is copied from the one to the other opens there."""
    datastore, application = stores.datastore, stores.settings.application
    own = {record.__table__.fullname for record in OWN_RECORDS}
    tables = tables_of(datastore.registry().tables, application)
    # EventSeal's own come first: the class of another one can be given another name.
    tables.sort(key=lambda table: (table.table not in own, table.table))
    for number, table in enumerate(tables):
        entry = entry_of(mine, table.table, application)
        sharing = [other.table for other in tables[:number] if table.shares_collection_with(other)]
        if table.former_collection is not None:
            text = (
                f"items of {table.table} may be bound to {table.former_collection!r} still, and not to "
                f"{table.collection!r}: until they are moved, it accepts both"
            )
            remedy = ""
        elif entry is not None and entry.collection != table.collection:
            text = (
                f"items of {table.table} may be bound to {entry.collection!r}, and its record class says "
                f"{table.collection!r}: they do not open"
            )
            remedy = f"Set __former_collection__ = {entry.collection!r} in its record class"
        elif sharing:
            text = (
                f"table {table.table} has the collection {table.collection!r}, like {', '.join(sharing)}: "
                "a row that is copied from there opens"
            )
            remedy = (
                f"Set __collection__ = {table.table!r} and __former_collection__ = {table.collection!r} in "
                "its record class"
            )
        else:
            continue
        name = table.table if sharing else table.collection
        restart = f"{remedy}, and restart every process that uses it. Then: " if remedy else ""
        command = f"eventseal reencrypt --table {table.table} --to-collection {name}"
        yield Finding.of(ConfigurationError(text, remedy=f"{restart}{command}"), AREA)


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
    except IntegrityError:
        return  # rows that cannot be read are told apart


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
            remedy="If somebody needs the items, put them back into their table, or add the record class to "
            "`tables`, then: eventseal init. If not, drop the table; if what is in it need not open: "
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
    tagged = tables_of_tagged_events(connection, unsealed_tables=unsealed)
    if tagged:
        error = ConfigurationError(
            f"with events by tags, which verify cannot read: {', '.join(tagged)}",
            remedy=f"If they hold no encrypted events: unsealed_tables = [{_quoted({*tagged, *unsealed})}]. "
            "Else nothing is proved of them, and no key is retired.",
        )
        found.append(Finding.of(error, AREA, severity=Severity.WARNING))
    return found


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names))

"""Checks of the registry of tables, and of migrations and jobs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from eventseal.configuration.diagnosis.findings import JOBS, MIGRATION, REGISTRY, Severity
from eventseal.configuration.old_formats import configured_formats
from eventseal.errors import ConfigurationError, EncryptionRequiredError, IntegrityError, MissingTableError
from eventseal.rotation.sealed_store import as_listed, refuse_unreachable_tables, tables_of
from eventseal.rotation.status.advice import unfinished_job
from eventseal.rotation.status.application_status import job_statuses
from eventseal.storage.database.layout import UPGRADE
from eventseal.storage.database.table_setup import has_table
from eventseal.storage.database.transactions import read, reads
from eventseal.storage.items.key_counts import count_plain, count_unreadable
from eventseal.storage.items.key_id_indexes import has_key_id_indexes
from eventseal.storage.items.registry import entry_of, forget_statement, read_registry
from eventseal.storage.items.tables import DEFAULT_DATABASE, OWN_RECORDS, SealedTable
from eventseal.storage.unregistered import (
    copies_of_items,
    tables_of_tagged_events,
    unregistered_eventsourcing_tables,
    unregistered_tables,
)
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.configuration.assembly import Stores
    from eventseal.configuration.diagnosis.findings import Finding
    from eventseal.storage import SQLAlchemyDatastore


@REGISTRY.check
def check_registry(stores: Stores) -> Iterator[Finding]:
    """
    Compare the registry with the settings and with the existing tables.

    Args:
        stores: The databases, and the settings.
    """
    settings, datastore = stores.settings, stores.datastore
    # The rows alone, without the record classes: those are compared below.
    registry = read_registry(datastore.key_engine)
    rows = registry.tables
    unreadable = {row.table for row in registry.unreadable if row.table is not None}
    mine = [row for row in rows if row.application in {None, settings.application}]
    unsealed, listed = {*settings.unsealed_tables, *unreadable}, datastore.eventsourcing_tables
    found = [
        *(REGISTRY.raised(row.problem) for row in registry.unreadable),
        *_check_listed(stores, mine, unreadable),
        *_check_there(datastore.engine, mine, datastore),
        *_check_others(stores),
        *read(
            datastore.engine,
            lambda connection: list(_unregistered(connection, rows, unsealed, listed)),
            doing="looking for tables that are not registered",
        ),
    ]
    yield from found
    if not any(finding.severity.asks_for_action for finding in found):
        names = ", ".join(sorted({row.table for row in mine}))
        yield REGISTRY.ok(f"tables of sealed items: {names}")


def reachable_tables(stores: Stores) -> list[SealedTable]:
    """
    Return the registered tables that are in the items' database.

    Other checks report problems of the other tables. A table that applications share has
    ``application=None``.

    Args:
        stores: The databases, and the settings.
    """
    rows = tables_of(stores.datastore.registry().tables, stores.settings.application)
    rows = [as_listed(stores.datastore, row) for row in rows]
    by_name = {row.table: row for row in rows if row.database == DEFAULT_DATABASE}
    return [by_name[name] for name in _present(stores.datastore.engine, list(by_name))]


def _check_listed(
    stores: Stores, mine: Sequence[SealedTable], unreadable: Collection[str]
) -> Iterator[Finding]:
    """
    Check that the tables in the settings are registered.

    `retire` and `verify` read registered tables only, and would skip the others.
    """
    application = stores.settings.application
    listed = stores.datastore.needed_columns()
    theirs = stores.datastore.described_eventsourcing_tables(application=application)
    for wanted in (*(SealedTable.of(columns, application) for columns in listed), *theirs):
        same = [row for row in mine if row.table == wanted.table]
        if wanted.table in unreadable:
            continue  # its problem has been reported
        if not same:
            text = f"table {wanted.table} is not registered for application {application}"
        elif all(row.columns != wanted.columns for row in same):
            text = f"table {wanted.table} is registered with other columns"
        else:
            continue
        yield REGISTRY.problem(ConfigurationError, text, "eventseal init")
    yield from _check_collections(stores, mine)
    there = {table.table for table in theirs}
    absent = [name for name in stores.datastore.eventsourcing_tables if name not in there]
    if absent:
        yield REGISTRY.note(
            f"listed in eventsourcing_tables, but not in the database yet: {', '.join(absent)}",
            "After its application has created it, run: eventseal init",
        )


def _check_collections(stores: Stores, mine: Sequence[SealedTable]) -> Iterator[Finding]:
    """
    Check that no two tables share a collection.

    A row that is copied from one of them to the other would open there.
    """
    datastore, application = stores.datastore, stores.settings.application
    own = {record.__table__.fullname for record in OWN_RECORDS}
    tables = tables_of(datastore.registry().tables, application)
    # EventSeal's own tables come first (docs/decisions/0022): only the class of another table can change.
    tables.sort(key=lambda table: (table.table not in own, table.table))
    for number, table in enumerate(tables):
        entry = entry_of(mine, table.table, application)
        sharing = [other.table for other in tables[:number] if table.shares_collection_with(other)]
        if table.former_collection is not None:
            text = (
                f"items of {table.table} may still be bound to {table.former_collection!r}, not to "
                f"{table.collection!r}. Until they are moved, the table accepts both"
            )
            remedy = ""
        elif entry is not None and entry.collection != table.collection:
            text = (
                f"items of {table.table} may be bound to {entry.collection!r}, but its record class names "
                f"{table.collection!r}: such items do not open"
            )
            remedy = f"Set __former_collection__ = {entry.collection!r} in its record class"
        elif sharing:
            text = (
                f"table {table.table} has the collection {table.collection!r}, like {', '.join(sharing)}: "
                "a row that is copied from there opens here"
            )
            remedy = (
                f"Set __collection__ = {table.table!r} and __former_collection__ = {table.collection!r} in "
                "its record class"
            )
        else:
            continue
        name = table.table if sharing else table.collection
        restart = f"{remedy}, and restart every process that uses it. Then: " if remedy else ""
        command = (
            f"eventseal reencrypt --table {shlex.quote(table.table)} --to-collection {shlex.quote(name)}"
        )
        yield REGISTRY.problem(ConfigurationError, text, f"{restart}{command}")


@reads("looking for registered tables")
def _check_there(
    connection: Connection, rows: Sequence[SealedTable], datastore: SQLAlchemyDatastore
) -> list[Finding]:
    found = []
    keys = datastore.key_engine
    for (name, database), row in {(row.table, row.database): row for row in rows}.items():
        if database != DEFAULT_DATABASE:
            text = f"table {name} is registered in database {database!r}, which is not configured"
            remedy = "Run maintenance where that database is configured."
            found.append(REGISTRY.problem(ConfigurationError, text, remedy))
        elif not has_table(connection, name):
            text = f"table {name} is registered, but does not exist"
            remedy = f"Restore it. If it was dropped on purpose: {forget_statement(keys, row)}"
            found.append(REGISTRY.problem(MissingTableError, text, remedy))
        elif not has_key_id_indexes(connection, row):
            text = f"table {name} lacks an index on the key ids in its envelopes: counts read the whole table"
            found.append(REGISTRY.warning(text, UPGRADE))
    return found


@reads("looking for tables")
def _present(connection: Connection, names: Sequence[str]) -> list[str]:
    return [name for name in names if has_table(connection, name)]


def _check_others(stores: Stores) -> Iterator[Finding]:
    try:
        refuse_unreachable_tables(stores.datastore, stores.settings.application)
    except ConfigurationError as error:  # no key can be retired
        yield REGISTRY.raised(error)
    except IntegrityError:
        return  # the rows that cannot be read are reported on their own


def _unregistered(
    connection: Connection, rows: Sequence[SealedTable], unsealed: Collection[str], listed: Collection[str]
) -> Iterator[Finding]:
    names = unregistered_tables(connection, rows, unsealed_tables=unsealed)
    if names:
        yield REGISTRY.problem(
            ConfigurationError,
            f"not registered, but with a key_id next to a binary column: {', '.join(names)}",
            "If they hold encrypted items, add their record classes to `tables`, then run `eventseal init`. "
            f"If not, set {_setting('unsealed_tables', names, unsealed)}",
        )
    copies = copies_of_items(connection, rows, unsealed_tables={*unsealed, *names})
    if copies:
        yield REGISTRY.problem(
            ConfigurationError,
            f"not registered, but with encrypted items: {', '.join(copies)}",
            "If you need the items, move them back into their table, or add the record class to `tables` and "
            "run `eventseal init`. If you do not need the items, drop the table. If the items need not open, "
            f"set {_setting('unsealed_tables', copies, unsealed)}",
        )
    # Tables that are listed but not registered have been reported before.
    theirs = unregistered_eventsourcing_tables(connection, rows, unsealed_tables={*unsealed, *listed})
    if theirs:
        yield REGISTRY.problem(
            ConfigurationError,
            f"not registered, but with the columns of the eventsourcing library: {', '.join(theirs)}",
            f"If they must hold encrypted items, set {_setting('eventsourcing_tables', theirs, listed)}, "
            f"then run `eventseal init`. If not, set {_setting('unsealed_tables', theirs, unsealed)}",
        )
    tagged = tables_of_tagged_events(connection, unsealed_tables=unsealed)
    if tagged:
        yield REGISTRY.problem(
            ConfigurationError,
            f"tables with events by tags, which `eventseal verify` cannot read: {', '.join(tagged)}",
            f"If they hold no encrypted events, set {_setting('unsealed_tables', tagged, unsealed)}. "
            "If they do, EventSeal can prove nothing about them, and retires no key.",
            Severity.WARNING,
        )


def _setting(setting: str, found: Collection[str], given: Collection[str]) -> str:
    names = ", ".join(f'"{name}"' for name in sorted({*found, *given}))
    return f"{setting} = [{names}]"


@JOBS.check
def check_jobs(stores: Stores) -> Iterator[Finding]:
    """
    Find re-encryptions and migrations that are not finished.

    Args:
        stores: The databases, and the settings.
    """
    now = stores.key_store.now()
    found = job_statuses(stores.datastore.engine, stores.settings.application)
    problems = [job_status.problem for job_status in found if job_status.problem is not None]
    for problem in problems:
        yield JOBS.raised(problem)
    in_order = [job_status for job_status in found if job_status.problem is None]
    left = [step for job_status in in_order if (step := unfinished_job(job_status, now))]
    for step in left:
        yield JOBS.warning(step.reason, step.command)
    if not left and not problems:
        yield JOBS.ok("no re-encryption or migration is unfinished")


@MIGRATION.check
def check_migration(stores: Stores) -> Iterator[Finding]:
    """
    Compare the older formats in the settings with the registry.

    Args:
        stores: The databases, and the settings.

    Raises:
        ConfigurationError: The key of an older format is not in the place that the settings name.
    """
    tables = reachable_tables(stores)
    accepting = [table for table in tables if table.old_formats]
    named = [entry.split()[0] for entry in stores.settings.old_formats]
    if accepting:
        yield from _check_accepted(accepting, named)
        if not stores.settings.event_modules:
            yield MIGRATION.warning(
                "a migration has begun, but event_modules is not set: `eventseal migrate` skips every item "
                "whose classes no listed module defines or registers",
                "List the modules that define your events in eventseal.toml, such as: "
                'event_modules = ["shop"]',
            )
    elif named:
        yield from _check_named(tables, named)
    else:
        yield MIGRATION.ok("no older format is accepted, and old_formats is not set")
        return
    settings = stores.settings
    configured_formats(settings.old_formats, max_plaintext=settings.max_plaintext)  # reads the keys


@MIGRATION.check
def check_encrypted(stores: Stores) -> Iterator[Finding]:
    """
    Count the plaintext items that no reader accepts.

    `verify` opens the other items.

    Args:
        stores: The databases, and the settings.
    """
    for table in reachable_tables(stores):
        if table.is_others:
            continue
        accepts_plain = table.accepts_plain(always_encrypt=stores.settings.always_encrypt)
        engine = stores.datastore.engine
        items = count_unreadable(engine, table) if accepts_plain else count_plain(engine, table)
        if items:
            yield MIGRATION.problem(
                EncryptionRequiredError,
                f"{counted(items, f'item of {table.table} is', f'items of {table.table} are')} not "
                "encrypted, and no reader accepts such items",
                "If an older application wrote them, name their format in old_formats, then run `eventseal "
                "migrate begin`. If not, find out who wrote them: `eventseal verify` names each.",
            )


def _check_accepted(accepting: Sequence[SealedTable], named: Sequence[str]) -> Iterator[Finding]:
    formats = sorted({name for table in accepting for name in table.old_formats})
    unnamed = [name for name in formats if name not in named]
    if unnamed:
        tables = ", ".join(table.table for table in accepting if {*table.old_formats} & {*unnamed})
        yield MIGRATION.warning(
            f"the readers of {tables} must accept {', '.join(unnamed)}, but old_formats does not name it "
            "here: this process refuses such items",
            "Add it to old_formats, with the place of its key. If no such item is left: eventseal migrate "
            "finish",
        )
    tables = ", ".join(table.table for table in accepting)
    yield MIGRATION.note(
        f"a migration began and is not finished. In addition to envelopes, the readers of {tables} "
        f"accept {', '.join(formats)}",
        "To see the items that are left, run `eventseal status`. "
        "When none is left, run `eventseal migrate finish`.",
    )


def _check_named(tables: Sequence[SealedTable], named: Sequence[str]) -> Iterator[Finding]:
    formats = ", ".join(dict.fromkeys(named))
    if tables and all(table.is_migrated for table in tables):
        yield MIGRATION.warning(
            f"old_formats names {formats}, but the migration has ended: an edited row of the registry could "
            "make readers accept it again",
            "Remove old_formats from the settings, and destroy the keys of the older formats.",
        )
    else:
        yield MIGRATION.note(
            f"old_formats names {formats}, which no table accepts yet",
            "To migrate items in their rows: eventseal migrate begin",
        )

"""Checks of the registry: every table of sealed items is in it; and of migrations and other jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.configuration.diagnosis.findings import JOBS, MIGRATION, REGISTRY, Severity
from eventseal.configuration.old_formats import configured_formats
from eventseal.errors import ConfigurationError, EncryptionRequiredError, IntegrityError, MissingTableError
from eventseal.rotation.sealed_store import as_listed, refuse_unreachable_tables, tables_of
from eventseal.rotation.status.advice import unfinished_job
from eventseal.rotation.status.application_status import job_statuses
from eventseal.storage.database.table_setup import has_table
from eventseal.storage.database.transactions import read, reads
from eventseal.storage.items.columns import sealed_columns
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

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.configuration.assembly import Stores
    from eventseal.configuration.diagnosis.findings import Finding


@REGISTRY.check
def check_registry(stores: Stores) -> Iterator[Finding]:
    """
    Compare the registry with the settings and with the tables that are there.

    Args:
        stores: The databases, and the settings.
    """
    settings, datastore = stores.settings, stores.datastore
    # As it stands, without what record classes say: that is compared below.
    registry = read_registry(datastore.key_engine)
    rows = registry.tables
    unreadable = {row.table for row in registry.unreadable if row.table is not None}
    mine = [row for row in rows if row.application in {None, settings.application}]
    unsealed, listed = {*settings.unsealed_tables, *unreadable}, datastore.eventsourcing_tables
    found = [
        *(REGISTRY.raised(row.problem) for row in registry.unreadable),
        *_check_listed(stores, mine, unreadable),
        *_check_there(datastore.engine, mine),
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
    Give the registered tables that are in the items' database; what is amiss with others is found elsewhere.

    One that applications share has ``application=None``.

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
        yield REGISTRY.error(ConfigurationError, text, "eventseal init")
    yield from _check_collections(stores, mine)
    there = {table.table for table in theirs}
    absent = [name for name in stores.datastore.eventsourcing_tables if name not in there]
    if absent:
        yield REGISTRY.note(
            f"listed in eventsourcing_tables, and not there yet: {', '.join(absent)}",
            "When its application has made it: eventseal init",
        )


def _check_collections(stores: Stores, mine: Sequence[SealedTable]) -> Iterator[Finding]:
    """Two tables with one collection: a row that is copied from the one to the other opens there."""
    datastore, application = stores.datastore, stores.settings.application
    own = {record.__table__.fullname for record in OWN_RECORDS}
    tables = tables_of(datastore.registry().tables, application)
    # EventSeal's own come first (docs/decisions/0022): the class of another one can be given another name.
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
        yield REGISTRY.error(ConfigurationError, text, f"{restart}{command}")


@reads("looking for registered tables")
def _check_there(connection: Connection, rows: Sequence[SealedTable]) -> list[Finding]:
    found = []
    for (name, database), row in {(row.table, row.database): row for row in rows}.items():
        if database != DEFAULT_DATABASE:
            text = f"table {name} is registered in database {database!r}, which is not configured"
            remedy = "Run maintenance where that database is configured."
            found.append(REGISTRY.error(ConfigurationError, text, remedy))
        elif not has_table(connection, name):
            text = f"table {name} is registered, and not there"
            remedy = f"Restore it; if it was dropped on purpose: {forget_statement(row)}"
            found.append(REGISTRY.error(MissingTableError, text, remedy))
        elif not has_key_id_indexes(connection, row):
            text = f"table {name} lacks an index on the key ids in its envelopes: every count reads all of it"
            found.append(REGISTRY.warning(text, "eventseal init"))
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
        return  # rows that cannot be read are told apart


def _unregistered(
    connection: Connection, rows: Sequence[SealedTable], unsealed: Collection[str], listed: Collection[str]
) -> Iterator[Finding]:
    names = unregistered_tables(connection, rows, unsealed_tables=unsealed)
    if names:
        yield REGISTRY.error(
            ConfigurationError,
            f"not registered, but with a key_id beside a binary column: {', '.join(names)}",
            "If they hold sealed items, add their record classes to `tables`, then: eventseal init. "
            f"If they do not: {_setting('unsealed_tables', names, unsealed)}",
        )
    copies = copies_of_items(connection, rows, unsealed_tables={*unsealed, *names})
    if copies:
        yield REGISTRY.error(
            ConfigurationError,
            f"not registered, but with sealed items in it: {', '.join(copies)}",
            "If somebody needs the items, put them back into their table, or add the record class to "
            "`tables`, then: eventseal init. If not, drop the table; if what is in it need not open: "
            f"{_setting('unsealed_tables', copies, unsealed)}",
        )
    # What is listed and not registered has been told already.
    theirs = unregistered_eventsourcing_tables(connection, rows, unsealed_tables={*unsealed, *listed})
    if theirs:
        yield REGISTRY.error(
            ConfigurationError,
            f"not registered, but with the columns of the eventsourcing library: {', '.join(theirs)}",
            f"If they are to hold sealed items: {_setting('eventsourcing_tables', theirs, listed)}, then: "
            f"eventseal init. If not: {_setting('unsealed_tables', theirs, unsealed)}",
        )
    tagged = tables_of_tagged_events(connection, unsealed_tables=unsealed)
    if tagged:
        yield REGISTRY.error(
            ConfigurationError,
            f"with events by tags, which verify cannot read: {', '.join(tagged)}",
            f"If they hold no encrypted events: {_setting('unsealed_tables', tagged, unsealed)}. "
            "Else nothing is proved of them, and no key is retired.",
            Severity.WARNING,
        )


def _setting(setting: str, found: Collection[str], given: Collection[str]) -> str:
    names = ", ".join(f'"{name}"' for name in sorted({*found, *given}))
    return f"{setting} = [{names}]"


@JOBS.check
def check_jobs(stores: Stores) -> Iterator[Finding]:
    """
    Look for re-encryptions and migrations that did not end, and that nobody is at.

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
        yield JOBS.ok("no re-encryption or migration was left half done")


@MIGRATION.check
def check_migration(stores: Stores) -> Iterator[Finding]:
    """
    Compare the older formats that the settings name with those that the registry says are accepted.

    Args:
        stores: The databases, and the settings.

    Raises:
        ConfigurationError: A key of an older format is not where the settings say.
    """
    tables = reachable_tables(stores)
    accepting = [table for table in tables if table.old_formats]
    named = [entry.split()[0] for entry in stores.settings.old_formats]
    if accepting:
        yield from _check_accepted(accepting, named)
        if not stores.settings.event_modules:
            yield MIGRATION.warning(
                "a migration has begun, and event_modules is not set: `eventseal migrate` leaves "
                "every item whose classes no listed module defines or registers",
                "List the modules that define your events in eventseal.toml, such as: "
                'event_modules = ["shop"]',
            )
    elif named:
        yield from _check_named(tables, named)
    else:
        yield MIGRATION.ok("no older format is accepted, and none is named")
        return
    settings = stores.settings
    configured_formats(settings.old_formats, max_plaintext=settings.max_plaintext)  # have the keys read


@MIGRATION.check
def check_encrypted(stores: Stores) -> Iterator[Finding]:
    """
    Count the items that are not encrypted where no reader takes them; `verify` opens the others.

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
            yield MIGRATION.error(
                EncryptionRequiredError,
                f"{items:,} items of {table.table} are not encrypted, and no reader takes them",
                "If an older application wrote them, name their format in old_formats, then: "
                "eventseal migrate begin. Else find out who wrote them: eventseal verify names each.",
            )


def _check_accepted(accepting: Sequence[SealedTable], named: Sequence[str]) -> Iterator[Finding]:
    formats = sorted({name for table in accepting for name in table.old_formats})
    unnamed = [name for name in formats if name not in named]
    if unnamed:
        tables = ", ".join(table.table for table in accepting if {*table.old_formats} & {*unnamed})
        yield MIGRATION.warning(
            f"the readers of {tables} are to accept {', '.join(unnamed)}, which old_formats does not "
            "name here: this process refuses such items",
            "Name them in old_formats, with where their keys are; or, if none is left: "
            "eventseal migrate finish",
        )
    tables = ", ".join(table.table for table in accepting)
    yield MIGRATION.note(
        f"a migration was begun and is not finished: beside envelopes, {', '.join(formats)} is accepted "
        f"in {tables}",
        "eventseal status tells what is left; last: eventseal migrate finish",
    )


def _check_named(tables: Sequence[SealedTable], named: Sequence[str]) -> Iterator[Finding]:
    formats = ", ".join(dict.fromkeys(named))
    if tables and all(table.is_migrated for table in tables):
        yield MIGRATION.warning(
            f"old_formats names {formats}, and the migration has ended: a line in the registry "
            "would have it accepted again",
            "Take old_formats out of the settings, and destroy the old keys.",
        )
    else:
        yield MIGRATION.note(
            f"old_formats names {formats}, which no table accepts yet",
            "To migrate items in their rows: eventseal migrate begin",
        )

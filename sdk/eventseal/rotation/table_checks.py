"""What keeps a verb from running: tables that nobody named, copies, and indexes that do not agree."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError, IntegrityError, KmsError
from eventseal.keys.authentication.revocations import old_key_tables
from eventseal.rotation.sealed_store import NamesUnsealedTables, SealedStore
from eventseal.storage.database.transactions import read
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.fences import has_fence_triggers
from eventseal.storage.items.key_counts import count_differing, differing_rows
from eventseal.storage.items.key_id_indexes import damage, reindex_statement
from eventseal.storage.items.tables import OWN_RECORDS
from eventseal.storage.unregistered import (
    copies_of_items,
    tables_of_tagged_events,
    unregistered_eventsourcing_tables,
    unregistered_tables,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.store import KeyStore
    from eventseal.storage import SQLAlchemyDatastore
    from eventseal.storage.items.rows import ItemRow
    from eventseal.storage.items.tables import SealedTable


def differing_items(
    datastore: SQLAlchemyDatastore, key_store: KeyStore, table: SealedTable, *, limit: int
) -> tuple[int, list[ItemRow]]:
    """
    Find the items whose column and envelope name different keys: nobody knows which of them they need.

    Args:
        datastore: Has the items.
        key_store: Says which keys there are. While a migration lasts, an older item may begin like an
            envelope by chance; it names a key that there never was, and is left out.
        table: From the registry.
        limit: Items at most.

    Returns:
        How many there are, and some of them, with the key of their header.
    """
    engine, doing = datastore.engine, f"comparing the key ids of {table.table}"
    count, rows = read(engine, partial(differing_rows, table=table, limit=limit), doing=doing)
    if not count or not table.old_formats:
        return count, rows
    by_key = read(engine, partial(count_differing, table=table), doing=doing)
    named = {key_id for key_id in by_key if key_id is not None}
    by_chance = named - key_store.get(named).keys()
    found = count - sum(by_key[key_id] for key_id in by_chance)
    return found, [row for row in rows if row.key_id not in by_chance]


def refuse_damaged_indexes(store: SealedStore, tables: Sequence[SealedTable]) -> None:
    """
    Stop where an index on SQLite does not have every row of its table: the counts of items go by it.

    Args:
        store: Has the items' database.
        tables: From the registry.

    Raises:
        IntegrityError: There is such an index.
        StoreError: The database refused or failed.
    """
    engine = store.datastore.engine
    for table in tables:
        doing = f"comparing the indexes of {table.table} with its rows"
        found = read(engine, partial(damage, table=table), doing=doing)
        if found is not None:
            raise IntegrityError(
                f"table {table.table} and its indexes do not agree, so its items cannot be counted. SQLite "
                f"says: {found}",
                remedy="Find out who changed the file. To create the indexes anew, run "
                f"`{reindex_statement(engine.dialect, table)}` with sqlite3. Then run it again. If that does "
                "not help, restore the file from a backup.",
            )


def refuse_unregistered_tables(store: SealedStore) -> None:
    """
    Stop where a table looks as if it held sealed items, and nobody named it, or a listed one was not made.

    Args:
        store: Its items' database is looked at.

    Raises:
        ConfigurationError: A table has a ``key_id`` beside a binary column, or the columns of the
            eventsourcing library, but is neither registered nor among the store's ``unsealed_tables``, if it
            has any. Or the table of a record class of the store is not registered.
        IntegrityError: A row of the registry was edited so that not even its table's name can be read.
        StoreError: The database refused or failed.
    """
    registry = store.datastore.registry()
    unsealed = set(store.unsealed_tables if isinstance(store, NamesUnsealedTables) else ())
    edited: set[str] = set()
    for row in registry.unreadable:
        if row.table is None:  # it may be that of any table that looks unregistered
            raise row.problem
        edited.add(row.table)  # it is registered, and whoever needs its columns is told
    # Nobody need have made all of EventSeal's own; one that is there and not registered is found below.
    theirs_own = [record for record in store.datastore.tables if record not in OWN_RECORDS]
    listed = [columns.table.fullname for columns in map(sealed_columns, theirs_own) if columns]
    missing = sorted({*listed} - {table.table for table in registry.tables} - edited)
    if missing:
        raise ConfigurationError(
            f"tables of sealed items that are not registered: {', '.join(missing)}",
            remedy="Run `eventseal init`, which creates and registers the tables of all record classes.",
        )
    known: dict[str, Any] = {"registered": registry.tables, "unsealed_tables": unsealed | edited}
    engine, doing = store.datastore.engine, "looking for tables that are not registered"
    theirs = read(engine, partial(unregistered_eventsourcing_tables, **known), doing=doing)
    if theirs:
        raise ConfigurationError(
            f"not registered, but with the columns of the eventsourcing library: {', '.join(theirs)}",
            remedy="Add their names to `eventsourcing_tables` and run `eventseal init`; those that hold no "
            "sealed items, to `unsealed_tables`.",
        )
    found = read(engine, partial(unregistered_tables, **known), doing=doing)
    if found:
        raise ConfigurationError(
            f"not registered, but with a key_id beside a binary column: {', '.join(found)}",
            remedy="Add its record class to `tables` and run `eventseal init`; if it holds no sealed items, "
            "add its name to `unsealed_tables`.",
        )


def refuse_copies(store: SealedStore) -> None:
    """
    Stop where a table that nobody named holds envelopes, whatever its columns are called and declared.

    Only SQLite copies a table without the types of its columns. Its tables that nobody named are read up to
    the first envelope.

    Args:
        store: Its items' database is looked at.

    Raises:
        ConfigurationError: There is such a table, and it is not among the store's ``unsealed_tables``.
        StoreError: The database refused or failed.
    """
    look = partial(
        copies_of_items,
        registered=store.datastore.registry().complete(),
        unsealed_tables=store.unsealed_tables if isinstance(store, NamesUnsealedTables) else (),
    )
    found = read(store.datastore.engine, look, doing="looking for tables that hold envelopes")
    if found:
        raise ConfigurationError(
            f"not registered, but with sealed items in it: {', '.join(found)}; they might be lost with a key",
            remedy="If somebody needs the items, put them back into their table, or add the record class to "
            "`tables` and run `eventseal init`. If not, drop the table; or, if what is in it need not open, "
            "add its name to `unsealed_tables`.",
        )


def refuse_unfenced_tables(store: SealedStore, tables: Sequence[SealedTable]) -> None:
    """
    Stop where another program writes a table, and no trigger there takes the fences for it.

    Args:
        store: Has the items' database.
        tables: From the registry.

    Raises:
        ConfigurationError: A table without a column of key ids lacks its triggers, or one is disabled.
        StoreError: The database refused or failed.
    """
    for table in tables:
        look = partial(has_fence_triggers, table=table)
        if not table.has_key_ids and not read(store.datastore.engine, look, doing="looking for triggers"):
            raise ConfigurationError(
                f"table {table.table}, which another program writes, has no trigger that takes the fences: "
                "what it is writing now would be lost with its key",
                remedy="Run `eventseal init`, which makes the trigger.",
            )


def uncounted_tables(store: SealedStore) -> list[str]:
    """
    Name the tables that hold events by tags, which no verb reads.

    Args:
        store: Its items' database is looked at.

    Raises:
        StoreError: The database refused or failed.
    """
    unsealed = store.unsealed_tables if isinstance(store, NamesUnsealedTables) else ()
    look = partial(tables_of_tagged_events, unsealed_tables=unsealed)
    return read(store.datastore.engine, look, doing="looking for events by tags")


def refuse_tagged_events(store: SealedStore) -> None:
    """
    Stop where a table holds events by tags: nobody counts what is sealed in it.

    Args:
        store: Its items' database is looked at.

    Raises:
        ConfigurationError: There is such a table, and it is not among the store's ``unsealed_tables``.
        StoreError: The database refused or failed.
    """
    found = uncounted_tables(store)
    if found:
        raise ConfigurationError(
            f"{', '.join(found)} holds events by tags, whose keys nobody counts: they might go with one",
            remedy="Retire no key while it holds sealed events; if it holds none, add its name to "
            "`unsealed_tables`.",
        )


def refuse_absent_tables(store: SealedStore, *, every: bool = False) -> None:
    """
    Stop where none of the eventsourcing library's listed tables is there: its application writes elsewhere.

    Args:
        store: Its items' database is looked at. That some of the tables are absent is well, such as one for
            snapshots that nobody takes.
        every: Whether each of the listed tables must be there.

    Raises:
        ConfigurationError: Tables are listed, and none is in the database; or, with *every*, one is not.
        StoreError: The database refused or failed.
    """
    listed = store.datastore.eventsourcing_tables
    there = {table.table for table in store.datastore.described_eventsourcing_tables()} if listed else set()
    absent = [name for name in listed if name not in there]
    if every and there and absent:
        raise ConfigurationError(
            f"tables in eventsourcing_tables that are not there: {', '.join(absent)}; what is old in them, "
            "wherever they are, would never be read again",
            remedy="Let store_url name the database that has them, or take them out of eventsourcing_tables.",
        )
    if listed and not there:
        raise ConfigurationError(
            f"none of the tables in eventsourcing_tables is there: {', '.join(listed)}; what is sealed "
            "elsewhere is not counted, and its key might go",
            remedy="Let store_url name the database that the application writes to.",
        )


def has_old_key_tables(key_store: KeyStore, application: str) -> bool:
    """
    Say whether an application's change mark looks like one of the earlier release; its seal is not checked.

    Raises:
        IntegrityError: The mark was edited so that it cannot be read.
        StoreError: The key store refused or failed.
    """
    found = key_store.revocations(application, [])
    return found is not None and not found[0].has_tree


def refuse_old_key_tables(store: SealedStore) -> None:
    """
    Stop before anything is written while the key tables are of the earlier release.

    Raises:
        IntegrityError: The mark is not what a keyring sealed, or old tables were put back.
        StoreError: The key store refused or failed.
        StoreReadOnlyError: The tables are of the earlier release.
    """
    application = store.keyring.application
    if has_old_key_tables(store.key_store, application):
        with suppress(KmsError):  # a worker may lack the right to unwrap
            store.keyring.tables.age()  # an old mark that was put back is told as that
        raise old_key_tables(application)

"""What the maintenance verbs work on, and which of its tables hold sealed items."""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sqlalchemy import inspect

from eventseal.errors import ConfigurationError, MissingTableError
from eventseal.storage.fence_triggers import has_fence_triggers
from eventseal.storage.item_columns import sealed_columns
from eventseal.storage.registry import DEFAULT_DATABASE, Registry, SealedTable
from eventseal.storage.transactions import read
from eventseal.storage.unregistered import (
    tables_of_tagged_events,
    unregistered_eventsourcing_tables,
    unregistered_tables,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.cipher import AESCipher
    from eventseal.errors import IntegrityError
    from eventseal.keys import Keyring
    from eventseal.keys.store import KeyStore
    from eventseal.storage import SQLAlchemyDatastore


@runtime_checkable
class SealedStore(Protocol):
    """A store of sealed items; ``EventSeal`` is one, and so is any object with these four."""

    @property
    def keyring(self) -> Keyring:
        """Whose keys seal the items."""
        ...

    @property
    def cipher(self) -> AESCipher:
        """Opens the items, with the keyring's keys."""
        ...

    @property
    def key_store(self) -> KeyStore:
        """Where the keyring keeps its keys."""
        ...

    @property
    def datastore(self) -> SQLAlchemyDatastore:
        """Where the items are, and, beside the keys, the registry of their tables."""
        ...


@runtime_checkable
class NamesUnsealedTables(Protocol):
    """A store that also says which tables look as if they held sealed items, and do not."""

    @property
    def unsealed_tables(self) -> Collection[str]:
        """Names of tables."""
        ...


@runtime_checkable
class SaysWhatIsEncrypted(Protocol):
    """A store that also says whether every event is encrypted; any other one encrypts every event."""

    @property
    def always_encrypt(self) -> bool:
        """The setting."""
        ...


def encrypts_everything(store: SealedStore) -> bool:
    """Whether every event of a store is encrypted; one that does not say so is taken to do that."""
    return store.always_encrypt if isinstance(store, SaysWhatIsEncrypted) else True


def registered_tables(
    datastore: SQLAlchemyDatastore,
    application: str,
    tables: Collection[str] | None = None,
    *,
    unreadable: list[IntegrityError] | None = None,
) -> list[SealedTable]:
    """
    Give the registered tables that may hold items of an application.

    Args:
        datastore: Its registry is read.
        application: Whose items.
        tables: Only these, by name; ``None``: all.
        unreadable: For those who only look: gets what is wrong with rows of the registry that were edited,
            and their tables are left out. ``None``: one such row is raised, unless it is that of a table
            that *tables* does not name, since nobody knows what its table holds.

    Returns:
        One entry a table, in order of name; one that several applications share has ``application=None``.

    Raises:
        ConfigurationError: A name, or any table of the application, is not registered, or a registered table
            is in a database that is not configured.
        IntegrityError: A row of the registry was edited so that it cannot be read.
        MissingTableError: A registered table is not in the database, or there is no registry.
        StoreError: The database refused or failed.
    """
    found = _registry(datastore)
    if unreadable is not None:
        unreadable += [row.problem for row in found.unreadable]
    elif tables is None or any(row.table is None or row.table in tables for row in found.unreadable):
        found.complete()
    registry = found.tables
    mine = tables_of(registry, application)
    if not mine and not found.unreadable:
        raise _nothing_registered(registry, application)
    if tables is not None:
        _refuse_unknown(tables, mine)
        mine = [table for table in mine if table.table in tables]
    for table in mine:
        _refuse_unreachable(datastore, table)
    return mine


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
    registry = _registry(store.datastore)
    unsealed = set(store.unsealed_tables if isinstance(store, NamesUnsealedTables) else ())
    edited: set[str] = set()
    for row in registry.unreadable:
        if row.table is None:  # it may be that of any table that looks unregistered
            raise row.problem
        edited.add(row.table)  # it is registered, and whoever needs its columns is told
    listed = [columns.table.fullname for columns in map(sealed_columns, store.datastore.tables) if columns]
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


def _registry(datastore: SQLAlchemyDatastore) -> Registry:
    return datastore.registry()


def tables_of(registry: Sequence[SealedTable], application: str) -> list[SealedTable]:
    """
    Give one entry for each table that an application, or every one, registered.

    Args:
        registry: All of it.
        application: Whose items.

    Returns:
        In order of name; a table that several applications share has ``application=None``.
    """
    owners: dict[str, set[str | None]] = {}
    mine: dict[str, SealedTable] = {}
    for table in registry:
        owners.setdefault(table.table, set()).add(table.application)
        if table.application in {None, application}:
            mine[table.table] = table
    return [
        replace(table, application=application if owners[name] == {application} else None)
        for name, table in sorted(mine.items())
    ]


def _refuse_unknown(names: Collection[str], mine: list[SealedTable]) -> None:
    known = [table.table for table in mine]
    for name in names:
        if name not in known:
            (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ConfigurationError(
                f"there is no registered table {name}", remedy=f"Did you mean {nearest}?"
            )


def _nothing_registered(registry: list[SealedTable], application: str) -> ConfigurationError:
    others = sorted({str(table.application) for table in registry})
    found = f"; there are tables of {', '.join(others)}" if others else ""
    return ConfigurationError(
        f"no table is registered for application {application}{found}",
        remedy="Correct the application's name, or run `eventseal init`, which registers its tables.",
    )


def _refuse_unreachable(datastore: SQLAlchemyDatastore, table: SealedTable) -> None:
    if table.database != DEFAULT_DATABASE:
        raise ConfigurationError(
            f"the registered table {table.table} is in a database {table.database!r} that is not configured"
        )
    if not read(datastore.engine, partial(_has_table, table=table.table), doing=f"looking for {table.table}"):
        raise MissingTableError(
            f"the registered table {table.table} is not in the items' database",
            table=table.table,
            remedy="Make it with `eventseal init`, or point store_url to the database that has it.",
        )


def _has_table(connection: Connection, table: str) -> bool:
    schema, _, name = table.rpartition(".")
    return inspect(connection).has_table(name, schema=schema or None)

"""What the maintenance verbs work on, and which of its tables hold sealed items."""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sqlalchemy import inspect

from eventseal.errors import ConfigurationError, IntegrityError, MissingTableError
from eventseal.storage.fence_triggers import has_fence_triggers
from eventseal.storage.item_columns import sealed_columns
from eventseal.storage.item_tables import OWN_RECORDS
from eventseal.storage.key_counts import count_differing, differing_rows, rows_without_envelope
from eventseal.storage.registry import DEFAULT_DATABASE, SealedTable, forget_statement
from eventseal.storage.transactions import read
from eventseal.storage.unregistered import (
    copies_of_items,
    tables_of_tagged_events,
    unregistered_eventsourcing_tables,
    unregistered_tables,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.cipher import AESCipher
    from eventseal.errors import EventSealError
    from eventseal.items.acceptance import AcceptedFormats
    from eventseal.items.sealed_places import SealedPlace
    from eventseal.keys import Keyring
    from eventseal.keys.store import KeyStore
    from eventseal.storage import SQLAlchemyDatastore
    from eventseal.storage.item_rows import ItemRow


_SHOWN = 3


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
class HasPlaces(Protocol):
    """A store that keeps sealed items in places beside the registered tables, too."""

    @property
    def places(self) -> Collection[SealedPlace]:
        """The places."""
        ...


@runtime_checkable
class SaysWhatIsEncrypted(Protocol):
    """A store that also says whether every event is encrypted; any other one encrypts every event."""

    @property
    def always_encrypt(self) -> bool:
        """The setting."""
        ...


@runtime_checkable
class AcceptsOldFormats(Protocol):
    """A store that also says which older formats its readers accept; ``EventSeal`` does."""

    @property
    def accepted_formats(self) -> AcceptedFormats:
        """As they are configured, whether they are still accepted or not."""
        ...


def encrypts_everything(store: SealedStore) -> bool:
    """Whether every event of a store is encrypted; one that does not say so is taken to do that."""
    return store.always_encrypt if isinstance(store, SaysWhatIsEncrypted) else True


def accepts_plain(store: SealedStore, table: SealedTable) -> bool:
    """
    Whether a row of a table may be something else than an envelope.

    Args:
        store: May say that its items need not be encrypted, and which older formats its readers accept.
        table: From the registry. A format that it names, and the store does not, is accepted by no reader.
    """
    known = store.accepted_formats.formats if isinstance(store, AcceptsOldFormats) else ()
    named = {old.name for old in known}.intersection(table.old_formats)
    return replace(table, old_formats=tuple(named)).accepts_plain(always_encrypt=encrypts_everything(store))


def registered_tables(
    datastore: SQLAlchemyDatastore,
    application: str,
    tables: Collection[str] | None = None,
    *,
    unreadable: list[IntegrityError] | None = None,
) -> list[SealedTable]:
    """
    Give the registered tables that may hold items of an application: whoever registered them.

    Args:
        datastore: Its registry is read.
        application: Whose items.
        tables: Only these, by name; ``None``: all.
        unreadable: For those who only look: gets what is wrong with rows of the registry that were edited,
            and their tables are left out. ``None``: one such row is raised, unless it is that of a table
            that *tables* does not name, since nobody knows what its table holds.

    Returns:
        One entry a table, in order of name; one that other applications registered, too or alone, has
        ``application=None``. What others alone registered is left out if it cannot be reached:
        :func:`refuse_unreachable_tables` names it.

    Raises:
        ConfigurationError: A name, or any table of the application, is not registered, or a registered table
            is in a database that is not configured.
        IntegrityError: A row of the registry was edited so that it cannot be read.
        MissingTableError: A registered table is not in the database, or there is no registry.
        StoreError: The database refused or failed.
    """
    everything = datastore.registry()
    if unreadable is not None:
        unreadable += [row.problem for row in everything.unreadable]
    elif tables is None or any(row.table is None or row.table in tables for row in everything.unreadable):
        everything.complete()
    registry = everything.tables
    found = tables_of(registry, application)
    if all(table.is_others for table in found) and not everything.unreadable:
        raise _nothing_registered(registry, application)
    found = [as_listed(datastore, table) for table in found]
    if tables is not None:
        _refuse_unknown(tables, found)
        found = [table for table in found if table.table in tables]
    reachable = []
    for table in found:
        error = _unreachable(datastore, table)
        if error is None:
            reachable.append(table)
        elif not table.is_others:
            raise error
    return reachable


def own_tables(
    datastore: SQLAlchemyDatastore, application: str, tables: Collection[str] | None = None
) -> list[SealedTable]:
    """
    Give only the tables that an application registered, alone or beside others: what it may migrate.

    Arguments and errors are those of :func:`registered_tables`.
    """
    found = registered_tables(datastore, application, tables)
    mine = {table.table for table in datastore.registry().tables if table.application in {None, application}}
    for table in found:
        if not table.is_others and table.table not in mine:
            raise ConfigurationError(
                f"the listed table {table.table} is registered for other applications only",
                remedy="Run `eventseal init`, which registers it for this one.",
            )
    return [table for table in found if not table.is_others]


def as_listed(datastore: SQLAlchemyDatastore, table: SealedTable) -> SealedTable:
    """Take the table of a listed record class for the application's own, whoever the registry says it is."""
    return replace(table, is_others=False) if table.table in datastore.listed_tables else table


def refuse_unreachable_tables(datastore: SQLAlchemyDatastore, application: str) -> None:
    """
    Stop where a table of another application cannot be counted: this one may write there, too.

    Args:
        datastore: Its registry is read.
        application: Whose keys are to go; that its own tables are there is looked at elsewhere.

    Raises:
        ConfigurationError: A registered table is not in the items' database.
        IntegrityError: A row of the registry was edited so that it cannot be read.
        StoreError: The database refused or failed.
    """
    for table in tables_of(datastore.registry().complete(), application):
        error = _unreachable(datastore, table) if table.is_others else None
        if error is not None:
            raise ConfigurationError(
                f"{error}. Another application registered it, and what is sealed there cannot be counted. "
                "No key was destroyed",
                remedy="Run this where that table is; if it was dropped on purpose: "
                f"{forget_statement(table)}",
            )


def places_beside_tables(store: SealedStore) -> list[SealedPlace]:
    """
    Give the places of a store that are no tables of its items' database.

    Args:
        store: Its key store remembers every such place in which an item was sealed.

    Raises:
        ConfigurationError: The store does not have one that the key store remembers.
        StoreError: The key store refused or failed.
    """
    known = {place.name: place for place in store.places} if isinstance(store, HasPlaces) else {}
    missing = [name for name in store.key_store.places() if name not in known]
    if missing:
        raise ConfigurationError(
            f"items are sealed in {', '.join(missing)}, which this store lacks: they cannot be counted",
            remedy="Call it from a program whose EventSeal is made with them: places=[...].",
        )
    return list(known.values())


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


def refuse_damaged_rows(store: SealedStore, tables: Sequence[SealedTable]) -> None:
    """
    Stop where a row is neither an envelope nor what its table accepts: its key may be any that is to go.

    Args:
        store: Has the items' database, and may say that its items need not be sealed.
        tables: From the registry.

    Raises:
        IntegrityError: There are such rows; it names the first three of a table.
        StoreError: The database refused or failed.
    """
    damaged = []
    for table in tables:
        if accepts_plain(store, table):
            continue
        look = partial(rows_without_envelope, table=table, limit=_SHOWN)
        count, some = read(store.datastore.engine, look, doing=f"looking for damaged rows of {table.table}")
        if count:
            places = [f"{row.sequence_id}, {row.position}" for row in some] + ["..."] * (count > _SHOWN)
            damaged.append(f"{count:,} item{'s' * (count > 1)} of {table.table}: {'; '.join(places)}")
    if damaged:
        raise IntegrityError(
            f"{'. '.join(damaged)}. These rows are not sealed, or damaged: nobody knows which key they need",
            remedy="Restore them from a backup. Rows that are no items, delete. If they are in an "
            "older format, name it in the setting old_formats. Then run it again.",
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
            remedy="Drop the table; or add its name to `unsealed_tables`, if what is in it need not open.",
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


def tables_of(registry: Sequence[SealedTable], application: str) -> list[SealedTable]:
    """
    Give one entry for each registered table: a row of the registry adds a table, and hides none.

    Args:
        registry: All of it.
        application: Whose items.

    Returns:
        In order of name and database; a table that others registered, too or alone, has ``application=None``.
    """
    rows: dict[tuple[str, str], list[SealedTable]] = {}
    for table in registry:
        rows.setdefault((table.table, table.database), []).append(table)
    found = []
    for _, same in sorted(rows.items()):
        mine = [table for table in same if table.application in {None, application}]
        owners = {table.application for table in same}
        found.append(
            replace(
                (mine or same)[-1],
                application=application if owners == {application} else None,
                is_others=not mine,
            )
        )
    return found


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


def _unreachable(datastore: SQLAlchemyDatastore, table: SealedTable) -> EventSealError | None:
    """Say why the rows of a registered table cannot be read, if that is so."""
    if table.database != DEFAULT_DATABASE:
        return ConfigurationError(
            f"the registered table {table.table} is in a database {table.database!r} that is not configured"
        )
    if read(datastore.engine, partial(_has_table, table=table.table), doing=f"looking for {table.table}"):
        return None
    return MissingTableError(
        f"the registered table {table.table} is not in the items' database",
        table=table.table,
        remedy="Make it with `eventseal init`, or point store_url to the database that has it. "
        f"If it was dropped on purpose: {forget_statement(table)}",
    )


def _has_table(connection: Connection, table: str) -> bool:
    schema, _, name = table.rpartition(".")
    return inspect(connection).has_table(name, schema=schema or None)

"""Checks that stop a verb, such as unnamed tables and damaged indexes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from eventseal.errors import REPAIR_ROW, ConfigurationError, IntegrityError, JobError, KmsError
from eventseal.items.sealed_places import Selection
from eventseal.keys.authentication.revocations import old_key_tables
from eventseal.rotation.item_checks import ItemChecks
from eventseal.rotation.jobs.sources import FEW_ITEMS
from eventseal.rotation.results import MAX_FAILURES, Failure
from eventseal.rotation.sealed_store import SealedStore, StoreOptions, accepts_plain
from eventseal.rotation.set_aside_rows import SET_ASIDE
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.fences import has_fence_triggers
from eventseal.storage.items.key_counts import (
    count_differing,
    count_without_place,
    differing_rows,
    rows_without_envelope,
)
from eventseal.storage.items.key_id_indexes import damage, reindex_statement
from eventseal.storage.items.tables import OWN_RECORDS
from eventseal.storage.unregistered import (
    copies_of_items,
    tables_of_tagged_events,
    unregistered_eventsourcing_tables,
    unregistered_tables,
)
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.keys.store import KeyStore
    from eventseal.rotation.set_aside_rows import AsideHere, AsideRows
    from eventseal.storage import SQLAlchemyDatastore
    from eventseal.storage.items.rows import ItemRow
    from eventseal.storage.items.tables import SealedTable


def differing_items(
    datastore: SQLAlchemyDatastore, key_store: KeyStore, table: SealedTable, *, limit: int
) -> tuple[int, list[ItemRow]]:
    """
    Find the items whose column and envelope name different keys.

    Nobody knows which of the two keys they need.

    Args:
        datastore: The database of the items.
        key_store: Shows which keys exist. During a migration, an older item may begin like an envelope by
            chance. It names a key that never existed, and is left out.
        table: The registered table.
        limit: The most items to return.

    Returns:
        The number of such items, and some of them, with the key of their header.
    """
    count, rows = differing_rows(datastore.engine, table, limit=limit)
    if not count or not table.old_formats:
        return count, rows
    by_key = count_differing(datastore.engine, table)
    named = {key_id for key_id in by_key if key_id is not None}
    by_chance = named - key_store.get(named).keys()
    found = count - sum(by_key[key_id] for key_id in by_chance)
    return found, [row for row in rows if row.key_id not in by_chance]


def refuse_damaged_indexes(store: SealedStore, tables: Sequence[SealedTable]) -> None:
    """
    Stop if an index on SQLite does not have every table row.

    The items are counted by that index.

    Args:
        store: The store with the items' database.
        tables: Registered tables.

    Raises:
        IntegrityError: There is such an index.
        StoreError: The database refused or failed.
    """
    engine = store.datastore.engine
    for table in tables:
        found = damage(engine, table)
        if found is not None:
            raise IntegrityError(
                f"table {table.table} and its indexes do not agree, so its items cannot be counted. SQLite "
                f"reports: {found}",
                remedy="Find out who changed the file. To rebuild the indexes, run "
                f"`{reindex_statement(engine.dialect, table)}` with sqlite3. Then run this again. If that "
                "does not help, restore the file from a backup.",
            )


def refuse_unregistered_tables(store: SealedStore) -> None:
    """
    Stop if a table may hold sealed items but is not registered.

    Args:
        store: The store whose items' database is searched.

    Raises:
        ConfigurationError: A table has a ``key_id`` and a binary column, or the columns of the eventsourcing
            library, but is neither registered nor in the store's ``unsealed_tables``. Or the table of one of
            the store's record classes is not registered.
        IntegrityError: A row of the registry was edited, and not even its table's name can be read.
        StoreError: The database refused or failed.
    """
    registry = store.datastore.registry()
    unsealed = set(StoreOptions.of(store).unsealed_tables)
    edited: set[str] = set()
    for row in registry.unreadable:
        if row.table is None:  # it may be the row of any table that looks unregistered
            raise row.problem
        edited.add(row.table)  # it is registered, and a verb that needs its columns reports it
    # EventSeal's own tables need not all exist. If one exists but is not registered, it is found below.
    theirs_own = [record for record in store.datastore.tables if record not in OWN_RECORDS]
    listed = [columns.table.fullname for columns in map(sealed_columns, theirs_own) if columns]
    missing = sorted({*listed} - {table.table for table in registry.tables} - edited)
    if missing:
        raise ConfigurationError(
            f"tables of record classes are not registered: {', '.join(missing)}",
            remedy="Run `eventseal init`, which creates and registers the tables of all record classes.",
        )
    known: dict[str, Any] = {"registered": registry.tables, "unsealed_tables": unsealed | edited}
    engine = store.datastore.engine
    theirs = unregistered_eventsourcing_tables(engine, **known)
    if theirs:
        raise ConfigurationError(
            f"tables with the columns of the eventsourcing library are not registered: {', '.join(theirs)}",
            remedy="Add their names to `eventsourcing_tables` and run `eventseal init`. Add the names of "
            "tables without sealed items to `unsealed_tables` instead.",
        )
    found = unregistered_tables(engine, **known)
    if found:
        raise ConfigurationError(
            f"tables with a key_id and a binary column are not registered: {', '.join(found)}",
            remedy="Add the record class to `tables` and run `eventseal init`. If a table holds no sealed "
            "items, add its name to `unsealed_tables` instead.",
        )


def refuse_copies(store: SealedStore) -> None:
    """
    Stop if an unnamed table holds envelopes, whatever its columns are.

    Only SQLite copies a table without the types of its columns (docs/decisions/0020). Each of its unnamed
    tables is read up to the first envelope.

    Args:
        store: The store whose items' database is searched.

    Raises:
        ConfigurationError: There is such a table, and it is not in the store's ``unsealed_tables``.
        StoreError: The database refused or failed.
    """
    found = copies_of_items(
        store.datastore.engine,
        registered=store.datastore.registry().complete(),
        unsealed_tables=StoreOptions.of(store).unsealed_tables,
    )
    if found:
        raise ConfigurationError(
            f"tables with sealed items are not registered: {', '.join(found)}. Their items could lose their "
            "key",
            remedy="If the items are needed, put them back into their table, or add the record class to "
            "`tables` and run `eventseal init`. If not, drop the table. If its items need never open again, "
            "you can add it to `unsealed_tables` instead.",
        )


def refuse_unfenced_tables(store: SealedStore, tables: Sequence[SealedTable]) -> None:
    """
    Stop if another program writes a table that has no fencing trigger.

    Args:
        store: The store with the items' database.
        tables: Registered tables.

    Raises:
        ConfigurationError: A table without a column of key ids lacks its triggers, or one is disabled.
        StoreError: The database refused or failed.
    """
    for table in tables:
        if not table.has_key_ids and not has_fence_triggers(store.datastore.engine, table):
            raise ConfigurationError(
                f"table {table.table}, which another program writes, has no trigger that checks the fences. "
                "Items that it writes now would be lost with their key",
                remedy="Run `eventseal init`, which creates the trigger.",
            )


def uncounted_tables(store: SealedStore) -> list[str]:
    """
    Return the tables that hold events by tags, which no verb reads.

    Args:
        store: The store whose items' database is searched.

    Raises:
        StoreError: The database refused or failed.
    """
    unsealed = StoreOptions.of(store).unsealed_tables
    return tables_of_tagged_events(store.datastore.engine, unsealed_tables=unsealed)


def refuse_tagged_events(store: SealedStore) -> None:
    """
    Stop if a table holds events by tags, which nothing counts.

    Args:
        store: The store whose items' database is searched.

    Raises:
        ConfigurationError: There is such a table, and it is not in the store's ``unsealed_tables``.
        StoreError: The database refused or failed.
    """
    found = uncounted_tables(store)
    if found:
        raise ConfigurationError(
            f"{', '.join(found)} holds events by tags, which cannot be counted, so they could lose their key",
            remedy="Do not retire keys while such a table holds sealed events. If it holds none, add its "
            "name to `unsealed_tables`.",
        )


def refuse_absent_tables(store: SealedStore, *, every: bool = False) -> None:
    """
    Stop if none of the eventsourcing library's listed tables exists.

    Then the application writes to another database.

    Args:
        store: The store whose items' database is searched. Some of the tables may be missing, such as the
            table of snapshots if nothing takes any.
        every: Whether every listed table must exist.

    Raises:
        ConfigurationError: Tables are listed, but none is in the database. With *every*: one is not.
        StoreError: The database refused or failed.
    """
    listed = store.datastore.eventsourcing_tables
    there = {table.table for table in store.datastore.described_eventsourcing_tables()} if listed else set()
    absent = [name for name in listed if name not in there]
    if every and there and absent:
        raise ConfigurationError(
            f"tables in eventsourcing_tables do not exist here: {', '.join(absent)}. If they are elsewhere, "
            "their older items could never be read again",
            remedy="Set store_url to the database that has them, or remove them from eventsourcing_tables.",
        )
    if listed and not there:
        raise ConfigurationError(
            f"no table of eventsourcing_tables exists here: {', '.join(listed)}. Sealed items elsewhere are "
            "not counted, and could lose their key",
            remedy="Set store_url to the database that the application writes to.",
        )


def has_old_key_tables(key_store: KeyStore, application: str) -> bool:
    """
    Return whether an application's key tables look like an earlier release's.

    It reads the change mark, and does not check its MAC.

    Raises:
        IntegrityError: The mark cannot be read because it was edited.
        StoreError: The key store refused or failed.
    """
    found = key_store.revocations(application, [])
    return found is not None and not found[0].has_tree


def refuse_old_key_tables(store: SealedStore) -> None:
    """
    Stop before any write if an earlier release created the key tables.

    Raises:
        IntegrityError: The mark is not authentic, or old tables were restored.
        StoreError: The key store refused or failed.
        StoreReadOnlyError: An earlier release created the tables.
    """
    application = store.keyring.application
    if has_old_key_tables(store.key_store, application):
        with suppress(KmsError):  # a worker may not be allowed to unwrap
            store.keyring.tables.age()  # reports an old mark that was put back as such
        raise old_key_tables(application)


GIVE_UP = "To destroy keys although these rows need them, run `eventseal retire --give-up-set-aside`."

_KEY_ID = (
    "Run `eventseal repair`, which corrects the key id if the envelope opens. If it does not open, repair it "
    "from a backup: `eventseal repair --from-backup URL`."
)
_SHOWN = 3


def named_rows(rows: Sequence[AsideHere]) -> str:
    """Return the places of the first rows, for a message."""
    named = [f"{here.said.table} {', '.join(here.said.row.values())}" for here in rows[:_SHOWN]]
    return "; ".join([*named, *["..."] * (len(rows) > _SHOWN)])


def differing_failures(
    store: SealedStore, table: SealedTable, aside: AsideRows, *, give_up: bool
) -> tuple[int, list[Failure]]:
    """
    Find the rows whose column and envelope name different keys.

    Retire keeps both keys.

    Args:
        store: The store of the items and the keys.
        table: The registered table.
        aside: The rows that are set aside.
        give_up: Whether to leave those out.

    Returns:
        The number of such rows, and the first 1,000.
    """
    set_aside = {here.said.place for here in aside.of(table.table) if here.stored.differs}
    limit = MAX_FAILURES + len(set_aside)
    count, rows = differing_items(store.datastore, store.key_store, table, limit=limit)
    if give_up:
        count -= sum(row[:2] in set_aside for row in rows)
        rows = [row for row in rows if row[:2] not in set_aside]
    message = "the key id column names another key than the envelope. Both keys were kept"
    return count, [
        Failure.of_item(
            table.table,
            row[:2],
            row.key_id,
            IntegrityError(message, remedy=GIVE_UP if row[:2] in set_aside else _KEY_ID),
        )
        for row in rows[:MAX_FAILURES]
    ]


def refuse_damaged_rows(
    store: SealedStore, tables: Sequence[SealedTable], aside: AsideRows, *, give_up: bool
) -> None:
    """
    Stop if a row is no envelope and in no accepted format.

    Such a row may need any key, so no key can be destroyed.

    Args:
        store: The store with the items' database. It may allow plaintext items.
        tables: Registered tables.
        aside: The rows that are set aside.
        give_up: Whether those do not stop the verb.

    Raises:
        IntegrityError: There are such rows. The message names the first three of a table.
        JobError: There are such rows, and all of them are set aside.
        StoreError: The database refused or failed.
    """
    damaged, given_up = [], []
    for table in tables:
        count, some, set_aside = _damaged_rows(store, table, aside)
        if count:
            damaged.append(_places(table, count, some))
        if set_aside:
            rows = [", ".join(row.values()) for row in set_aside[:_SHOWN]]
            given_up.append(_places(table, len(set_aside), rows))
    if damaged:
        raise IntegrityError(
            "no key was destroyed, because nobody knows which key a damaged or unencrypted row needs: "
            f"{'. '.join(damaged)}",
            remedy=f"{REPAIR_ROW} Delete rows that are not items. If they are in an older format, name it in "
            "the setting old_formats. Then run this again.",
        )
    if given_up and not give_up:
        raise JobError(
            "no key was destroyed, because nobody knows which key a row that is set aside needs: "
            f"{'. '.join(given_up)}",
            remedy=GIVE_UP,
        )


def _places(table: SealedTable, count: int, some: Sequence[str]) -> str:
    places = "; ".join([*some, *["..."] * (count > len(some))])
    return f"{counted(count, 'item')} of {table.table}: {places}"


def _damaged_rows(
    store: SealedStore, table: SealedTable, aside: AsideRows
) -> tuple[int, list[str], list[dict[str, str]]]:
    """Return the number and places of unreadable rows, and those set aside."""
    engine = store.datastore.engine
    set_aside = {
        here.said.place: here.said.row for here in aside.of(table.table) if not here.stored.header_key
    }
    count, some = rows_without_envelope(engine, table, limit=_SHOWN + len(set_aside))
    if not count or not accepts_plain(store, table):
        places = [f"{row.sequence_id}, {row.position}" for row in some if row[:2] not in set_aside]
        return count - len(set_aside), places[:_SHOWN], list(set_aside.values())
    if table.is_others:  # the other application must judge its rows
        return 0, [], []
    plain = Selection(keys=(), few=count <= FEW_ITEMS, plain=True)
    found = ItemChecks(store, table, only=plain, aside=aside).run_all()
    # A row without a place is in no page.
    lost = count_without_place(engine, table)
    some_places = [", ".join(failure.row.values()) for failure in found.failures[:_SHOWN]]
    return (
        found.total("failed") + lost,
        some_places,
        list(set_aside.values()) if found.total(SET_ASIDE) else [],
    )

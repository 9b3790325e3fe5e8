"""What keeps a verb from running: tables that nobody named, damaged indexes, rows of unknown keys."""

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
        found = damage(engine, table)
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
    unsealed = set(StoreOptions.of(store).unsealed_tables)
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
    engine = store.datastore.engine
    theirs = unregistered_eventsourcing_tables(engine, **known)
    if theirs:
        raise ConfigurationError(
            f"not registered, but with the columns of the eventsourcing library: {', '.join(theirs)}",
            remedy="Add their names to `eventsourcing_tables` and run `eventseal init`; those that hold no "
            "sealed items, to `unsealed_tables`.",
        )
    found = unregistered_tables(engine, **known)
    if found:
        raise ConfigurationError(
            f"not registered, but with a key_id beside a binary column: {', '.join(found)}",
            remedy="Add its record class to `tables` and run `eventseal init`; if it holds no sealed items, "
            "add its name to `unsealed_tables`.",
        )


def refuse_copies(store: SealedStore) -> None:
    """
    Stop where a table that nobody named holds envelopes, whatever its columns are called and declared.

    Only SQLite copies a table without the types of its columns (docs/decisions/0020). Its tables that nobody
    named are read up to the first envelope.

    Args:
        store: Its items' database is looked at.

    Raises:
        ConfigurationError: There is such a table, and it is not among the store's ``unsealed_tables``.
        StoreError: The database refused or failed.
    """
    found = copies_of_items(
        store.datastore.engine,
        registered=store.datastore.registry().complete(),
        unsealed_tables=StoreOptions.of(store).unsealed_tables,
    )
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
        if not table.has_key_ids and not has_fence_triggers(store.datastore.engine, table):
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
    unsealed = StoreOptions.of(store).unsealed_tables
    return tables_of_tagged_events(store.datastore.engine, unsealed_tables=unsealed)


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


GIVE_UP = "To destroy keys although these rows need them: eventseal retire --give-up-set-aside"

_KEY_ID = (
    "Run `eventseal repair`: if the envelope opens, it puts the key id right. Else name a backup: "
    "`eventseal repair --from-backup URL`."
)
_SHOWN = 3


def named_rows(rows: Sequence[AsideHere]) -> str:
    """Name the first rows, for a message."""
    named = [f"{here.said.table} {', '.join(here.said.row.values())}" for here in rows[:_SHOWN]]
    return "; ".join([*named, *["..."] * (len(rows) > _SHOWN)])


def differing_failures(
    store: SealedStore, table: SealedTable, aside: AsideRows, *, give_up: bool
) -> tuple[int, list[Failure]]:
    """
    Find the rows whose column and envelope name different keys: they keep both.

    Args:
        store: Has the items and the keys.
        table: From the registry.
        aside: The rows that are set aside.
        give_up: Whether those are left out.

    Returns:
        How many there are, and the first 1,000.
    """
    set_aside = {here.said.place for here in aside.of(table.table) if here.stored.differs}
    limit = MAX_FAILURES + len(set_aside)
    count, rows = differing_items(store.datastore, store.key_store, table, limit=limit)
    if give_up:
        count -= sum(row[:2] in set_aside for row in rows)
        rows = [row for row in rows if row[:2] not in set_aside]
    message = "the key id beside the item is not the one in its envelope; both keys stay"
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
    Stop where a row is neither an envelope nor what its table accepts: its key may be any that is to go.

    Args:
        store: Has the items' database, and may say that its items need not be sealed.
        tables: From the registry.
        aside: The rows that are set aside.
        give_up: Whether those stop nothing.

    Raises:
        IntegrityError: There are such rows; it names the first three of a table.
        JobError: There are such rows, all of them set aside.
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
            f"{'. '.join(damaged)}. These rows are not sealed, or damaged: nobody knows which key they need",
            remedy=f"{REPAIR_ROW} Delete rows that are no items. If they are in an older format, name it in "
            "the setting old_formats. Then run it again.",
        )
    if given_up and not give_up:
        raise JobError(
            f"{'. '.join(given_up)}. These rows are set aside, and nobody knows which key they need: no key "
            "was destroyed",
            remedy="To destroy keys all the same: eventseal retire --give-up-set-aside",
        )


def _places(table: SealedTable, count: int, some: Sequence[str]) -> str:
    places = "; ".join([*some, *["..."] * (count > len(some))])
    return f"{count:,} item{'s' * (count > 1)} of {table.table}: {places}"


def _damaged_rows(
    store: SealedStore, table: SealedTable, aside: AsideRows
) -> tuple[int, list[str], list[dict[str, str]]]:
    """Count the rows that are no envelopes and that no reader takes, and say where; give those set aside."""
    engine = store.datastore.engine
    set_aside = {
        here.said.place: here.said.row for here in aside.of(table.table) if not here.stored.header_key
    }
    count, some = rows_without_envelope(engine, table, limit=_SHOWN + len(set_aside))
    if not count or not accepts_plain(store, table):
        places = [f"{row.sequence_id}, {row.position}" for row in some if row[:2] not in set_aside]
        return count - len(set_aside), places[:_SHOWN], list(set_aside.values())
    if table.is_others:  # theirs to judge
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

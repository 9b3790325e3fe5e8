"""The store that maintenance verbs work on: its options, tables and keys."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from eventseal.errors import ConfigurationError, IntegrityError, MissingTableError
from eventseal.items.acceptance import AcceptedFormats
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.table_setup import has_table
from eventseal.storage.items.registry import forget_statement
from eventseal.storage.items.tables import DEFAULT_DATABASE, SealedTable
from eventseal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from uuid import UUID

    from eventseal.cipher import AESCipher
    from eventseal.errors import EventSealError
    from eventseal.items.sealed_places import SealedPlace
    from eventseal.keys import Keyring
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.states import KeyState
    from eventseal.keys.store import KeyStore
    from eventseal.storage import SQLAlchemyDatastore


PAGE_SIZE = 1000
"""The number of keys to read in one page."""


@runtime_checkable
class SealedStore(Protocol):
    """A store of sealed items: any object with these attributes, like ``EventSeal``."""

    @property
    def keyring(self) -> Keyring:
        """The keyring whose keys seal the items."""
        ...

    @property
    def cipher(self) -> AESCipher:
        """The cipher that opens the items with the keyring's keys."""
        ...

    @property
    def key_store(self) -> KeyStore:
        """The key store of the keyring."""
        ...

    @property
    def datastore(self) -> SQLAlchemyDatastore:
        """The database of the items. The registry of tables is next to the keys."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """
    Options that a store may have. ``EventSeal`` has all of them.

    A store has an option if it has an attribute with its name.

    Attributes:
        unsealed_tables: Tables that look as if they held sealed items, but hold none.
        places: Places with sealed items that are no registered tables.
        always_encrypt: Whether every event is encrypted.
        event_modules: Modules whose classes an unauthenticated item may name.
        ledger: A ``Ledger`` of :mod:`eventseal.erasure`, which is a layer above this one.
    """

    unsealed_tables: Collection[str] = ()
    places: Collection[SealedPlace] = ()
    always_encrypt: bool = True
    event_modules: Collection[str] = ()
    ledger: Any = None

    @classmethod
    def of(cls, store: SealedStore) -> StoreOptions:
        """Read the options of a store. A missing option has its default."""
        said = [option.name for option in fields(cls) if hasattr(store, option.name)]
        return cls(**{name: getattr(store, name) for name in said})


def event_modules_of(store: SealedStore) -> tuple[str, ...]:
    """Return a store's event modules. Without this option, there are none."""
    return tuple(StoreOptions.of(store).event_modules)


def formats_of(store: SealedStore) -> AcceptedFormats:
    """
    Return the older formats in a store's ``accepted_formats``.

    They are returned whether readers still accept them or not.

    Raises:
        ConfigurationError: A key of a format is not where the settings say.
    """
    # The registry's accepted formats do not count here: a migration changes them, and each table has its own.
    return AcceptedFormats(getattr(store, "accepted_formats", AcceptedFormats()).formats)


def accepted_in(accepted: AcceptedFormats, table: SealedTable) -> AcceptedFormats:
    """Return the formats that the registry accepts in a table."""
    return AcceptedFormats([old for old in accepted.formats if old.name in table.old_formats])


def configured_formats(store: SealedStore) -> AcceptedFormats:
    """
    Return the older formats that a store is configured with.

    Raises:
        ConfigurationError: There are none.
    """
    if accepted := formats_of(store):
        return accepted
    raise ConfigurationError(
        "no older format is configured, so nothing can be migrated",
        remedy="List the formats of the older items in the settings, as in this example: "
        'old_formats = ["eventsourcing-cbc key=file:/etc/shop/old.key", "plain-json"]',
    )


def accepts_plain(store: SealedStore, table: SealedTable) -> bool:
    """
    Return whether a table's rows may be anything but envelopes.

    Args:
        store: The store, which may allow plaintext items, and whose readers may accept older formats.
        table: The registered table. Readers accept only those of its formats that the store also has.
    """
    named = tuple({old.name for old in accepted_in(formats_of(store), table).formats})
    return replace(table, old_formats=named).accepts_plain(
        always_encrypt=StoreOptions.of(store).always_encrypt
    )


def registered_tables(
    datastore: SQLAlchemyDatastore,
    application: str,
    tables: Collection[str] | None = None,
    *,
    unreadable: list[IntegrityError] | None = None,
) -> list[SealedTable]:
    """
    Return the registered tables that may hold an application's items.

    This includes tables that other applications registered.

    Args:
        datastore: The datastore whose registry is read.
        application: The application that owns the items.
        tables: Only these tables, by name. ``None``: all.
        unreadable: For read-only callers, a list. Errors of edited rows of the registry are added to it, and
            their tables are left out. If it is ``None``, such an error is raised, because nobody knows what
            the table holds. Rows of tables that *tables* does not name are then ignored.

    Returns:
        One entry for each table, in order of name. If another application registered a table, alone or also,
        its entry has ``application=None``. A table that only others registered is left out if it cannot be
        reached. :func:`refuse_unreachable_tables` names it.

    Raises:
        ConfigurationError: A named table is not registered, the application has no registered table, or a
            registered table is in a database that is not configured.
        IntegrityError: A row of the registry cannot be read because it was edited.
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
        others = sorted({str(table.application) for table in registry})
        tables_there = f". These applications have tables: {', '.join(others)}" if others else ""
        raise ConfigurationError(
            f"no table is registered for application {application}{tables_there}",
            remedy="Correct the application's name, or run `eventseal init`, which registers its tables.",
        )
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
    Return only the tables that an application registered, so may migrate.

    Others may have registered them too. Arguments and errors are those of :func:`registered_tables`.
    """
    found = registered_tables(datastore, application, tables)
    mine = {table.table for table in datastore.registry().tables if table.application in {None, application}}
    for table in found:
        if not table.is_others and table.table not in mine:
            raise ConfigurationError(
                f"the listed table {table.table} is registered only for other applications",
                remedy="Run `eventseal init`, which registers it for this application.",
            )
    return [table for table in found if not table.is_others]


def as_listed(datastore: SQLAlchemyDatastore, table: SealedTable) -> SealedTable:
    """Treat a listed record class's table as own, whatever the registry says."""
    return replace(table, is_others=False) if table.table in datastore.listed_tables else table


def refuse_unreachable_tables(datastore: SQLAlchemyDatastore, application: str) -> None:
    """
    Stop if a table of another application cannot be counted.

    This application may write to it too.

    Args:
        datastore: The datastore whose registry is read.
        application: The application whose keys will be destroyed. Its own tables are checked elsewhere.

    Raises:
        ConfigurationError: A registered table is not in the items' database.
        IntegrityError: A row of the registry cannot be read because it was edited.
        StoreError: The database refused or failed.
    """
    for table in tables_of(datastore.registry().complete(), application):
        error = _unreachable(datastore, table) if table.is_others else None
        if error is not None:
            raise ConfigurationError(
                f"{error}. Another application registered it, and its sealed items cannot be counted",
                remedy="Run this with the database that has the table. If it was dropped on purpose, run: "
                f"{forget_statement(datastore.key_engine, table)}",
            )


def places_beside_tables(store: SealedStore) -> list[SealedPlace]:
    """
    Return the places of a store outside its items' database.

    Args:
        store: The store. Its key store remembers every such place in which an item was sealed.

    Raises:
        ConfigurationError: The key store remembers a place that the store does not have.
        StoreError: The key store refused or failed.
    """
    known = {place.name: place for place in StoreOptions.of(store).places}
    missing = [name for name in store.key_store.places() if name not in known]
    if missing:
        raise ConfigurationError(
            f"items are sealed in {', '.join(missing)}, which this store lacks, so they cannot be counted",
            remedy="Call this from a program that creates its EventSeal with them: places=[...].",
        )
    return list(known.values())


def tables_of(registry: Sequence[SealedTable], application: str) -> list[SealedTable]:
    """
    Return one entry for each registered table.

    An additional row adds a table, and never hides one (docs/decisions/0020).

    Args:
        registry: The whole registry.
        application: The application that owns the items.

    Returns:
        The entries in order of name and database. If another application registered a table, alone or also,
        its entry has ``application=None``.
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


_FEW_TABLES = 12


def _refuse_unknown(names: Collection[str], mine: list[SealedTable]) -> None:
    known = [table.table for table in mine]
    listed = f"The registered tables are: {', '.join(known) or 'none'}."
    if len(known) > _FEW_TABLES:
        listed = "List the registered tables: eventseal doctor"
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"there is no registered table {name}", remedy=did_you_mean(name, known, listed)
            )


def _unreachable(datastore: SQLAlchemyDatastore, table: SealedTable) -> EventSealError | None:
    """Return an error if a registered table's rows cannot be read."""
    if table.database != DEFAULT_DATABASE:
        return ConfigurationError(
            f"the registered table {table.table} is in a database {table.database!r} that is not configured",
            remedy="Run this with the settings of an application that uses that database.",
        )
    if has_table(datastore.engine, table.table):
        return None
    return MissingTableError(
        f"the registered table {table.table} is not in the items' database",
        table=table.table,
        remedy="Create it with `eventseal init`, or set store_url to the database that has it. "
        f"If it was dropped on purpose, run: {forget_statement(datastore.key_engine, table)}",
    )


def key_pages(
    key_store: KeyStore, application: str, *, after: UUID | None = None, state: KeyState | None = None
) -> Iterator[list[KeyRecord]]:
    """
    Yield an application's keys in order of id, 1,000 at a time.

    Args:
        key_store: The store of the keys.
        application: The application that owns the keys.
        after: The key after which to begin.
        state: Only keys in this state.

    Raises:
        StoreError: The key store refused or failed.
    """
    while page := key_store.page(application, after=after, limit=PAGE_SIZE, state=state):
        yield page
        after = page[-1].key_id


def records_of(key_store: KeyStore, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
    """Return the records of those keys that exist, read in pages."""
    found = {}
    for some in chunks(sorted(key_ids), PAGE_SIZE):
        found.update(key_store.get(some))
    return found

"""What the maintenance verbs work on: its options, its tables of sealed items, and its keys, page by page."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from eventseal.errors import ConfigurationError, IntegrityError, MissingTableError
from eventseal.items.acceptance import AcceptedFormats
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.table_setup import has_table
from eventseal.storage.items.registry import forget_statement
from eventseal.storage.items.tables import DEFAULT_DATABASE, SealedTable

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
"""Keys that are read at a time."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """
    What a store may say beside its four attributes, in attributes of these names; ``EventSeal`` has all.

    Attributes:
        unsealed_tables: Tables that look as if they held sealed items, and do not.
        places: What holds sealed items beside the registered tables.
        always_encrypt: Whether every event is encrypted.
        event_modules: Modules whose classes an unauthenticated item may name.
        ledger: A ``Ledger`` of :mod:`eventseal.erasure`, a layer above this one.
    """

    unsealed_tables: Collection[str] = ()
    places: Collection[SealedPlace] = ()
    always_encrypt: bool = True
    event_modules: Collection[str] = ()
    ledger: Any = None

    @classmethod
    def of(cls, store: SealedStore) -> StoreOptions:
        """Read them from a store; what it does not say has its default."""
        said = [option.name for option in fields(cls) if hasattr(store, option.name)]
        return cls(**{name: getattr(store, name) for name in said})


def event_modules_of(store: SealedStore) -> tuple[str, ...]:
    """List a store's event modules; a store that names none has none."""
    return tuple(StoreOptions.of(store).event_modules)


def formats_of(store: SealedStore) -> AcceptedFormats:
    """
    Give the older formats in a store's ``accepted_formats``, whether they are still accepted or not.

    Raises:
        ConfigurationError: A key of theirs is not where the settings say.
    """
    # What the registry accepts now does not count: a migration changes that, and each table has its own.
    return AcceptedFormats(getattr(store, "accepted_formats", AcceptedFormats()).formats)


def accepted_in(accepted: AcceptedFormats, table: SealedTable) -> AcceptedFormats:
    """Give the formats that the registry says are accepted in a table."""
    return AcceptedFormats([old for old in accepted.formats if old.name in table.old_formats])


def configured_formats(store: SealedStore) -> AcceptedFormats:
    """
    Give the older formats that a store is configured with.

    Raises:
        ConfigurationError: There are none.
    """
    if accepted := formats_of(store):
        return accepted
    raise ConfigurationError(
        "no older format is named, so nothing can be migrated",
        remedy="Name the formats that the items are in, with their keys: the setting old_formats.",
    )


def accepts_plain(store: SealedStore, table: SealedTable) -> bool:
    """
    Whether a row of a table may be something else than an envelope.

    Args:
        store: May say that its items need not be encrypted, and which older formats its readers accept.
        table: From the registry. A format that it names, and the store does not, is accepted by no reader.
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
        others = sorted({str(table.application) for table in registry})
        tables_there = f"; there are tables of {', '.join(others)}" if others else ""
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
                f"{error}. Another application registered it, and what is sealed there cannot be counted",
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
    known = {place.name: place for place in StoreOptions.of(store).places}
    missing = [name for name in store.key_store.places() if name not in known]
    if missing:
        raise ConfigurationError(
            f"items are sealed in {', '.join(missing)}, which this store lacks: they cannot be counted",
            remedy="Call it from a program whose EventSeal is made with them: places=[...].",
        )
    return list(known.values())


def tables_of(registry: Sequence[SealedTable], application: str) -> list[SealedTable]:
    """
    Give one entry for each registered table: a row adds a table, and hides none (docs/decisions/0020).

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


def _unreachable(datastore: SQLAlchemyDatastore, table: SealedTable) -> EventSealError | None:
    """Say why the rows of a registered table cannot be read, if that is so."""
    if table.database != DEFAULT_DATABASE:
        return ConfigurationError(
            f"the registered table {table.table} is in a database {table.database!r} that is not configured"
        )
    if has_table(datastore.engine, table.table):
        return None
    return MissingTableError(
        f"the registered table {table.table} is not in the items' database",
        table=table.table,
        remedy="Make it with `eventseal init`, or point store_url to the database that has it. "
        f"If it was dropped on purpose: {forget_statement(table)}",
    )


def key_pages(
    key_store: KeyStore, application: str, *, after: UUID | None = None, state: KeyState | None = None
) -> Iterator[list[KeyRecord]]:
    """
    Give an application's keys in order of their ids, a thousand at a time.

    Args:
        key_store: Has the keys.
        application: Whose.
        after: Begin behind this key.
        state: Only keys in this state.

    Raises:
        StoreError: The key store refused or failed.
    """
    while page := key_store.page(application, after=after, limit=PAGE_SIZE, state=state):
        yield page
        after = page[-1].key_id


def records_of(key_store: KeyStore, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
    """Give those of the keys that a key store has, by id; as :func:`key_pages` a thousand at a time."""
    found = {}
    for some in chunks(sorted(key_ids), PAGE_SIZE):
        found.update(key_store.get(some))
    return found

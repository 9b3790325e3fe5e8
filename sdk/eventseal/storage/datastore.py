"""The datastore: one database's engine, session and tables."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, literal, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.util import ThreadLocalRegistry

from eventseal.errors import ConfigurationError
from eventseal.keys.concurrency import renew_in_children
from eventseal.storage.database.engines import SQLAlchemySettings, make_engine, redacted
from eventseal.storage.database.layout import Layout, StoreLayout
from eventseal.storage.database.table_setup import (
    Comparison,
    add_columns,
    compare_tables,
    create_tables,
    drop_tables,
    has_table,
    is_ours,
    layout_of_database,
)
from eventseal.storage.database.transactions import check_connection, holds_sqlite_lock, reads, writes
from eventseal.storage.foreign_tables import eventsourcing_table
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.fences import install_fence_triggers
from eventseal.storage.items.key_id_indexes import create_key_id_indexes, is_unindexed, make_key_id_indexes
from eventseal.storage.items.registry import (
    Registry,
    entry_of,
    other_columns,
    read_registry,
    read_visible_registry,
    refuse_taken_collections,
    register,
)
from eventseal.storage.items.tables import SealedTable
from eventseal.storage.jobs.tables import job_metadata
from eventseal.storage.keys.tables import fence_metadata, key_metadata, sealed_tables
from eventseal.storage.unregistered import EVENTSOURCING_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.foreign_tables import OriginatorIdType
    from eventseal.storage.items.columns import ItemColumns


class SQLAlchemyDatastore:
    """
    A database: its engines, its session and its tables.

    EventSeal creates the engines and the session on first use. :meth:`close` loses an in-memory database.

    A forked process gets its own connections. Fork while no other thread writes to a SQLite file. Otherwise
    the child inherits SQLite's lock of that moment, and finds the file locked permanently.

    Args:
        settings: The connection settings of the database.
        tables: The record classes whose tables the database holds, including your own.
        base: A declarative base. If *tables* is empty, all record classes of the base are used.
        key_settings: The connection settings of the key tables, if they have their own database.
        eventsourcing_tables: The names of tables in the items' database that the eventsourcing library
            creates and writes. For a table outside the default schema, write its schema and a dot first.
        originator_id_type: The ``ORIGINATOR_ID_TYPE`` that the library is configured with. Only SQLite needs
            it, because columns there do not show the type. The default on SQLite is ``uuid``.
        only_if_there: Those of *tables* that the store need not have. If one exists, it is used.
        reads_only: Whether nothing may be written, as in a backup.
    """

    def __init__(
        self,
        settings: SQLAlchemySettings,
        tables: Sequence[type[Any]] = (),
        *,
        base: Any = None,
        key_settings: SQLAlchemySettings | None = None,
        eventsourcing_tables: Sequence[str] = (),
        originator_id_type: OriginatorIdType | None = None,
        only_if_there: Collection[type[Any]] = (),
        reads_only: bool = False,
    ) -> None:
        self.settings = settings
        self._reads_only = reads_only
        # The session may hold an in-memory database's only connection: its keys are in a private one.
        shared = SQLAlchemySettings() if settings.in_memory else settings
        self.key_settings = (
            shared if key_settings is None or key_settings.url == settings.url else key_settings
        )
        self.tables: Sequence[type[Any]] = tuple(tables) or _classes_of(base)
        self.eventsourcing_tables = tuple(eventsourcing_tables)
        self._id_type = originator_id_type
        self.only_if_there = frozenset(only_if_there)
        self.layout = StoreLayout()
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._key_engine: Engine | None = None
        self._session: scoped_session[Session] | None = None
        renew_in_children(self)

    @property
    def engine(self) -> Engine:
        """The engine of the items and the fences."""
        with self._lock:
            if self._engine is None:
                self._engine = self._made(self.settings, holds_keys=self.key_settings is self.settings)
            return self._engine

    @property
    def key_engine(self) -> Engine:
        """The engine of the key tables. It is the items' engine, unless the keys have their own database."""
        with self._lock:
            if self.key_settings is self.settings:
                return self.engine
            if self._key_engine is None:
                self._key_engine = self._made(self.key_settings, holds_keys=True)
            return self._key_engine

    @property
    def session(self) -> scoped_session[Session]:
        """A session for each thread."""
        with self._lock:
            if self._session is None:
                # Through the session, a record strategy finds the registry, maybe in another database.
                self._session = scoped_session(sessionmaker(self.engine, info={DATASTORE: self}))
            return self._session

    @property
    def listed_tables(self) -> set[str]:
        """The names of the tables whose record classes are listed."""
        return {columns.table.fullname for columns in _sealed(self.tables)}

    def _made(self, settings: SQLAlchemySettings, *, holds_keys: bool) -> Engine:
        engine = make_engine(settings, holds_keys=holds_keys, reads_only=self._reads_only)
        # The items and the keys of a backup may be of different times.
        return engine if self._reads_only else self.layout.add(engine)

    def setup_connection(self) -> None:
        """
        Check that the database answers, and that of the keys.

        If a SQLite file is missing, it is created. Its folder is not.

        Raises:
            StoreUnavailableError: A database does not answer.
        """
        for engine in (self.engine, self.key_engine):
            check_connection(engine)

    def setup_tables(self, *, application: str | None = None) -> None:
        """
        Create all missing tables and register the listed tables.

        The tables are the listed ones, the fences, the jobs, the key tables and the registry. Existing tables
        stay as they are, but must have the required columns. Existing tables of the eventsourcing library get
        their triggers and index. Tables of an earlier release get their indexes by :meth:`index_key_ids`.

        Args:
            application: The application whose items the listed tables hold. With ``None``, they hold items of
                every application that writes there.

        Raises:
            ConfigurationError: A table belongs to another program, or an earlier release created the tables
                and they must be upgraded. Or two tables would have the same collection. The message names
                them, and nothing was written.
            StoreUnavailableError: The database does not answer.
            StoreReadOnlyError: The database cannot be written.
        """
        self.missing_tables(application)
        items, keys = self.needed_tables()
        sealed = self.tables_to_register(application)

        _create_tables(self.engine, items, sealed)
        create_tables(self.key_engine, keys)
        register(self.key_engine, sealed)
        self.setup_eventsourcing_tables(application=application)

    def needed_tables(self) -> tuple[list[Table], list[Table]]:
        """Return the tables of the items' database, and of the keys' database."""
        items = [_table_of(record_class) for record_class in self._needed_classes()]
        return [*items, *_BESIDE_ITEMS], list(key_metadata.sorted_tables)

    def missing_tables(self, application: str | None) -> list[str]:
        """
        Check all that :meth:`setup_tables` needs, and return the names of missing tables.

        Nothing is changed. The errors are those of :meth:`setup_tables`.
        """
        compared = self.compared_tables()
        compared.refuse_additions()
        missing = compared.to_create(is_older=self.is_older())
        self.tables_to_register(application)
        if self.settings.is_there:
            self.described_eventsourcing_tables(application=application)
        return [table.fullname for table in missing]

    def compared_tables(self) -> Comparison:
        """Compare the needed tables with those that exist, as ``compare_tables`` does."""
        items, keys = self.needed_tables()
        of_items, of_keys = Comparison(items, []), Comparison(keys, [])
        # Connecting would create a SQLite file.
        if self.settings.is_there:
            of_items = compare_tables(self.engine, items)
        if self.key_settings.is_there:
            of_keys = compare_tables(self.key_engine, keys)
        missing, additions = of_items.missing + of_keys.missing, of_items.additions + of_keys.additions
        return Comparison(missing, additions)

    def is_older(self) -> bool:
        """Return whether the tables have the names of earlier releases."""
        engines = {self.engine: self.settings, self.key_engine: self.key_settings}
        there = [engine for engine, settings in engines.items() if settings.is_there]
        return any(layout_of_database(engine) is Layout.OLDER for engine in there)

    def tables_to_register(self, application: str | None) -> list[SealedTable]:
        """
        Describe the listed tables as the registry should list them.

        If a table has items and the registry has another collection than its record class, the registry's
        collection stays. Items that were sealed under it are bound to it until they are re-encrypted.

        Args:
            application: The application whose items the tables hold. With ``None``, they hold items of every
                application that writes there.

        Raises:
            ConfigurationError: Two tables would have the same collection.
            StoreUnavailableError: The database does not answer.
        """
        known = _registered_if_there(self.key_engine) if self.key_settings.is_there else []
        tables = []
        for found in self.needed_columns():
            table = SealedTable.of(found, application)
            there = entry_of(known, table.table, application)
            kept = table.collection if there is None else there.collection
            holds_rows = kept != table.collection and self.settings.is_there
            if holds_rows and _holds_rows(self.engine, found.table):
                table = replace(table, collection=kept)
            tables.append(table)
        refuse_taken_collections(known, tables)
        return tables

    def registry(self, application: str | None = None) -> Registry:
        """
        Read the registry, with the collections that the listed record classes declare.

        If a row has other columns than the listed table, somebody edited the row.

        Args:
            application: Read only tables that may hold items of this application. With ``None``, read all.

        Raises:
            StoreError: The database refused or failed.
        """
        found = read_visible_registry(self.key_engine, application)
        said = {columns.table.fullname: columns for columns in _sealed(self.tables)}
        registry = Registry([], list(found.unreadable))
        for row in found.tables:
            if row.table in said:
                fits = row.columns == SealedTable.of(said[row.table], None).columns
            else:
                names = {role: column.name for role, column in row.columns.items()}
                fits = row.table not in self.eventsourcing_tables or names == EVENTSOURCING_COLUMNS
            if fits:
                registry.tables.append(row.bound_to(said[row.table]) if row.table in said else row)
            else:
                registry.unreadable.append(other_columns(self.key_engine, row))
        return registry

    def setup_eventsourcing_tables(self, *, application: str | None = None) -> None:
        """
        Fence, index and register the existing tables of the eventsourcing library.

        The applications that use them may run meanwhile. On PostgreSQL they can write while the index is
        created. On SQLite they wait for it.

        Args:
            application: The application whose items the tables hold. With ``None``, they hold items of every
                application that writes there.

        Raises:
            ConfigurationError: A table belongs to another program, or holds ids of another type.
            StoreUnavailableError: The database does not answer, or a transaction that writes a table takes
                more than 2 seconds. Run it again.
            StoreReadOnlyError: The database cannot be written.
        """
        found = self.described_eventsourcing_tables(application=application)
        # The triggers come first, because retire may destroy keys as soon as a table is registered.
        for table in found:
            install_fence_triggers(self.engine, table)
            make_key_id_indexes(self.engine, table)
        register(self.key_engine, found)

    def described_eventsourcing_tables(self, *, application: str | None = None) -> list[SealedTable]:
        """
        Describe the existing tables of the eventsourcing library.

        Raises:
            ConfigurationError: A table belongs to another program, or holds ids of another type.
            StoreUnavailableError: The database does not answer.
        """
        tables = [
            eventsourcing_table(self.engine, name, application=application, id_type=self._id_type)
            for name in self.eventsourcing_tables
        ]
        return [table for table in tables if table is not None]

    def add_columns(self) -> list[str]:
        """Add the columns that tables of earlier releases lack. Return the tables' names."""
        self.compared_tables()
        items, keys = self.needed_tables()
        return [*add_columns(self.engine, items), *add_columns(self.key_engine, keys)]

    def index_key_ids(self) -> list[str]:
        """
        Index the key ids in headers, in tables of earlier releases.

        The old index on the ``key_id`` column is dropped, unless the record class declares one. On
        PostgreSQL, applications can write meanwhile.

        Returns:
            The names of the changed tables.

        Raises:
            StoreError: The database refused or failed. Run it again.
        """
        return [
            table.table
            for table, keeps in self.unindexed_tables().items()
            if make_key_id_indexes(self.engine, table, keeps=keeps)
        ]

    def unindexed_tables(self) -> dict[SealedTable, bool]:
        """
        Find the listed tables that :meth:`index_key_ids` would change.

        Returns:
            By table, whether its record class declares an index on the column itself.
        """
        listed = {
            SealedTable.of(found, None): any(
                index.columns.keys() == [found.key_id.key] for index in found.table.indexes
            )
            for found in self.needed_columns()
            if found.key_id is not None
        }
        return {
            table: keeps for table, keeps in listed.items() if is_unindexed(self.engine, table, keeps=keeps)
        }

    def drop_tables(self) -> None:
        """Drop the tables that :meth:`setup_tables` creates, with all that they contain."""
        items, keys = self.needed_tables()
        drop_tables(self.engine, items[::-1])
        drop_tables(self.key_engine, keys[::-1])

    def holds_write_lock(self) -> bool:
        """Return whether the calling thread's session holds SQLite's write lock. Then no other can write."""
        if self._session is None or not self._session.registry.has():
            return False
        session = self._session()
        return session.in_transaction() and session.is_active and holds_sqlite_lock(session.connection())

    def close(self) -> None:
        """Close the calling thread's session and all idle connections. Later use opens new ones."""
        with self._lock:
            if self._session is not None:
                self._session.remove()
            for engine in (self._engine, self._key_engine):
                if engine is not None:
                    engine.dispose()

    def __repr__(self) -> str:
        return f"<SQLAlchemyDatastore {redacted(self.settings.url)}>"

    def renew_in_child(self) -> None:
        """Use no connection of the parent. Two processes would garble each other's answers."""
        self._lock = threading.RLock()
        if self._session is not None and not self.settings.in_memory:
            _left_to_parent.append(self._session.registry)
            self._session.registry = ThreadLocalRegistry(self._session.session_factory)
        for settings, engine in ((self.settings, self._engine), (self.key_settings, self._key_engine)):
            if engine is not None and not settings.in_memory:
                _left_to_parent.append(engine.pool)
                engine.dispose(close=False)

    def needed_columns(self) -> list[ItemColumns]:
        """Return the columns of the listed tables that must exist."""
        return _sealed(self._needed_classes())

    def _needed_classes(self) -> list[type[Any]]:
        return [
            record_class
            for record_class in self.tables
            if record_class not in self.only_if_there
            or (self.settings.is_there and is_ours(self.engine, _table_of(record_class)))
        ]


DATASTORE = "eventseal.datastore"
"""The key of the datastore in a session's ``info``."""

_BESIDE_ITEMS = (*fence_metadata.sorted_tables, *job_metadata.sorted_tables)
"""EventSeal's own tables in the database of the items."""

_left_to_parent: list[object] = []
"""Keeps the parent's connections alive. In a forked process, their destructors would use them."""


@writes("creating tables")
def _create_tables(connection: Connection, tables: Sequence[Table], sealed: Sequence[SealedTable]) -> None:
    made = create_tables(connection, tables)
    for table in sealed:
        if table.table in made:
            create_key_id_indexes(connection, table)


@reads("reading the registry of sealed tables")
def _registered_if_there(connection: Connection) -> list[SealedTable]:
    return read_registry(connection).tables if has_table(connection, sealed_tables.name) else []


@reads("looking for items in {table}")
def _holds_rows(connection: Connection, table: Table) -> bool:
    if not has_table(connection, table.fullname):
        return False
    return connection.execute(select(literal(1)).select_from(table).limit(1)).first() is not None


def _sealed(record_classes: Iterable[type[Any]]) -> list[ItemColumns]:
    return [columns for columns in map(sealed_columns, record_classes) if columns]


def _classes_of(base: Any) -> tuple[type[Any], ...]:
    return () if base is None else tuple(mapper.class_ for mapper in base.registry.mappers)


def _table_of(record_class: type[Any]) -> Table:
    table = getattr(record_class, "__table__", None)
    if not isinstance(table, Table):
        raise ConfigurationError(f"{record_class!r} is not a record class that is mapped to one table")
    return table

"""The datastore: one database's engine, session and tables."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, literal, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.util import ThreadLocalRegistry

from eventseal.errors import ConfigurationError
from eventseal.keys.concurrency import renew_in_children
from eventseal.storage.database.engines import SQLAlchemySettings, make_engine, redacted
from eventseal.storage.database.faults import translated
from eventseal.storage.database.table_setup import add_key_id, create_tables, drop_tables, has_table
from eventseal.storage.database.transactions import holds_sqlite_lock, reads, writes
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
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.foreign_tables import OriginatorIdType
    from eventseal.storage.items.columns import ItemColumns


class SQLAlchemyDatastore:
    """
    A database. Its engines and its session are made on first use.

    A forked process gets connections of its own. Fork while no other thread writes to a SQLite file: SQLite
    itself takes a lock held at that moment along, and the child finds the file locked for good. An in-memory
    database is lost with :meth:`close`.

    Args:
        settings: Where the database is.
        tables: The record classes whose tables it holds, the user's own among them.
        base: A declarative base; all its record classes are taken if *tables* is empty.
        key_settings: Where the tables beside the keys are, if they have a database of their own.
        eventsourcing_tables: Names of tables that the eventsourcing library makes and writes in the items'
            database; a schema that is not the default one stands before a dot.
        originator_id_type: What that library is told as ``ORIGINATOR_ID_TYPE``; only SQLite's columns do not
            say it: there ``uuid`` is taken for granted.
        reads_only: Whether nothing is ever written, as in a backup.
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
                self._engine = make_engine(
                    self.settings,
                    holds_keys=self.key_settings is self.settings,
                    reads_only=self._reads_only,
                )
            return self._engine

    @property
    def key_engine(self) -> Engine:
        """The engine of the tables beside the keys: the items' own, unless they have another database."""
        with self._lock:
            if self.key_settings is self.settings:
                return self.engine
            if self._key_engine is None:
                self._key_engine = make_engine(
                    self.key_settings, holds_keys=True, reads_only=self._reads_only
                )
            return self._key_engine

    @property
    def session(self) -> scoped_session[Session]:
        """A session for each thread."""
        with self._lock:
            if self._session is None:
                # By its session a record strategy finds the registry, which may be in another database.
                self._session = scoped_session(sessionmaker(self.engine, info={DATASTORE: self}))
            return self._session

    @property
    def listed_tables(self) -> set[str]:
        """The names of the tables whose record classes are listed."""
        return {columns.table.fullname for columns in self._sealed}

    def setup_connection(self) -> None:
        """
        Check that the database answers, and that of the keys.

        A SQLite file that is not there is made; its folder is not.

        Raises:
            StoreUnavailableError: It does not.
        """
        for settings, engine in ((self.settings, self.engine), (self.key_settings, self.key_engine)):
            with translated(f"connecting to {redacted(settings.url)}"), engine.connect() as connection:
                connection.execute(select(literal(1)))

    def setup_tables(self, *, application: str | None = None) -> None:
        """
        Make the listed tables, the fences, the jobs, the key tables and the registry; register the listed.

        What is there already is left as it is; its columns are compared with those that are needed. Those of
        the eventsourcing library's tables that are there get their triggers and index. An earlier release's
        tables get their indexes by :meth:`index_key_ids`.

        Args:
            application: Whose items the listed tables hold; ``None``: of every application that writes there.

        Raises:
            ConfigurationError: A table of the same name lacks a column that is needed, or two tables would
                have one collection; the message names them. Nothing was written.
            StoreUnavailableError: The database does not answer.
            StoreReadOnlyError: It cannot be written.
        """
        items, keys = [*self._listed(), *_BESIDE_ITEMS], key_metadata.sorted_tables
        sealed = self.tables_to_register(application)

        _create_tables(self.engine, items, sealed)
        create_tables(self.key_engine, keys)
        register(self.key_engine, sealed)
        self.setup_eventsourcing_tables(application=application)

    def tables_to_register(self, application: str | None) -> list[SealedTable]:
        """
        Describe the listed tables as the registry is to have them.

        Where a table has items and the registry another collection than its record class, the registry's
        stays: items that were sealed under it are bound to it until they are moved.

        Args:
            application: Whose items the tables hold; ``None``: of every application that writes there.

        Raises:
            ConfigurationError: Two tables would have one collection.
            StoreUnavailableError: The database does not answer.
        """
        known = _registered_if_there(self.key_engine)
        tables = []
        for found in self._sealed:
            table = SealedTable.of(found, application)
            there = entry_of(known, table.table, application)
            kept = table.collection if there is None else there.collection
            if kept != table.collection and _holds_rows(self.engine, found.table):
                table = replace(table, collection=kept)
            tables.append(table)
        refuse_taken_collections(known, tables)
        return tables

    def registry(self, application: str | None = None) -> Registry:
        """
        Read the registry, each table with the collection that its record class says, if that is listed.

        A row with other columns than a listed table has was edited.

        Args:
            application: Only what may hold its items; ``None``: everything.

        Raises:
            StoreError: The database refused or failed.
        """
        found = read_visible_registry(self.key_engine, application)
        said = {columns.table.fullname: columns for columns in self._sealed}
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
                registry.unreadable.append(other_columns(row))
        return registry

    def setup_eventsourcing_tables(self, *, application: str | None = None) -> None:
        """
        Fence, index and register those of the eventsourcing library's tables that are there.

        Their applications may run meanwhile. On PostgreSQL the index is made without keeping them from
        writing; on SQLite they wait for it.

        Args:
            application: Whose items the tables hold; ``None``: of every application that writes there.

        Raises:
            ConfigurationError: A table is another program's, or holds ids of another type.
            StoreUnavailableError: The database does not answer, or a transaction that writes a table goes on
                for more than 2 seconds; run it again.
            StoreReadOnlyError: It cannot be written.
        """
        found = self.described_eventsourcing_tables(application=application)
        # The triggers first: what is registered may be retired from.
        for table in found:
            install_fence_triggers(self.engine, table)
            make_key_id_indexes(self.engine, table)
        register(self.key_engine, found)

    def described_eventsourcing_tables(self, *, application: str | None = None) -> list[SealedTable]:
        """
        Describe those of the eventsourcing library's tables that are there.

        Raises:
            ConfigurationError: A table is another program's, or holds ids of another type.
            StoreUnavailableError: The database does not answer.
        """
        tables = [
            eventsourcing_table(self.engine, name, application=application, id_type=self._id_type)
            for name in self.eventsourcing_tables
        ]
        return [table for table in tables if table is not None]

    def add_key_id_columns(self) -> list[str]:
        """
        Add the column ``key_id`` to listed tables that were made without it.

        Returns:
            The names of the tables that were changed.
        """
        return [columns.table.fullname for columns in self._sealed if add_key_id(self.engine, columns.table)]

    def index_key_ids(self) -> list[str]:
        """
        Index the key ids in the headers of listed tables that an earlier release made.

        The index on their column goes, unless their record class declares one. On PostgreSQL applications
        write meanwhile.

        Returns:
            The names of the tables that were changed.

        Raises:
            StoreError: The database refused or failed; run it again.
        """
        return [
            table.table
            for table, keeps in self.unindexed_tables().items()
            if make_key_id_indexes(self.engine, table, keeps=keeps)
        ]

    def unindexed_tables(self) -> dict[SealedTable, bool]:
        """
        Find the listed tables that :meth:`index_key_ids` changes.

        Returns:
            Whether the record class of each declares an index on the column itself.
        """
        listed = {
            SealedTable.of(found, None): any(
                index.columns.keys() == [found.key_id.key] for index in found.table.indexes
            )
            for found in self._sealed
            if found.key_id is not None
        }
        return {
            table: keeps for table, keeps in listed.items() if is_unindexed(self.engine, table, keeps=keeps)
        }

    def drop_tables(self) -> None:
        """Drop the listed tables, the fences, the jobs, the key tables and the registry, with all in them."""
        items, keys = [*self._listed(), *_BESIDE_ITEMS], key_metadata.sorted_tables
        drop_tables(self.engine, items[::-1])
        drop_tables(self.key_engine, keys[::-1])

    def holds_write_lock(self) -> bool:
        """Whether the calling thread's session is in a SQLite transaction that has written: no other can."""
        if self._session is None or not self._session.registry.has():
            return False
        session = self._session()
        return session.in_transaction() and session.is_active and holds_sqlite_lock(session.connection())

    def close(self) -> None:
        """Give up the calling thread's session and all idle connections; what is used again opens others."""
        with self._lock:
            if self._session is not None:
                self._session.remove()
            for engine in (self._engine, self._key_engine):
                if engine is not None:
                    engine.dispose()

    def __repr__(self) -> str:
        return f"<SQLAlchemyDatastore {redacted(self.settings.url)}>"

    def renew_in_child(self) -> None:
        """Use no connection of the parent's: two processes on one would garble each other's answers."""
        self._lock = threading.RLock()
        if self._session is not None and not self.settings.in_memory:
            _left_to_parent.append(self._session.registry)
            self._session.registry = ThreadLocalRegistry(self._session.session_factory)
        for settings, engine in ((self.settings, self._engine), (self.key_settings, self._key_engine)):
            if engine is not None and not settings.in_memory:
                _left_to_parent.append(engine.pool)
                engine.dispose(close=False)

    @property
    def _sealed(self) -> list[ItemColumns]:
        return [columns for columns in map(sealed_columns, self.tables) if columns]

    def _listed(self) -> list[Table]:
        return [_table_of(record_class) for record_class in self.tables]


DATASTORE = "eventseal.datastore"
"""Where a session's ``info`` names its datastore."""

_BESIDE_ITEMS = (*fence_metadata.sorted_tables, *job_metadata.sorted_tables)
"""EventSeal's own tables in the database of the items."""

_left_to_parent: list[object] = []
"""Kept, in a forked process, so that no destructor speaks to the database on the parent's connections."""


@writes("making tables")
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


def _classes_of(base: Any) -> tuple[type[Any], ...]:
    return () if base is None else tuple(mapper.class_ for mapper in base.registry.mappers)


def _table_of(record_class: type[Any]) -> Table:
    table = getattr(record_class, "__table__", None)
    if not isinstance(table, Table):
        raise ConfigurationError(f"{record_class!r} is not a record class that is mapped to one table")
    return table


class AcceptedNow:
    """
    Gives the formats that are accepted in a collection, as of at most *interval* seconds ago.

    Args:
        datastore: Its registry is read.
        application: Whose tables.
        interval: Seconds for which an answer holds.
        clock: Seconds.
    """

    def __init__(
        self,
        datastore: SQLAlchemyDatastore,
        application: str,
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._datastore = datastore
        self._application = application
        self._interval = interval
        self._clock = clock
        self._known: tuple[float, dict[str, set[str]]] | None = None

    def __call__(self, collection: str) -> Collection[str]:
        """
        Name the formats.

        Args:
            collection: Of the item.

        Raises:
            StoreError: The database refused or failed, and what is known is too old.
        """
        known, now = self._known, self._clock()
        if known is None or now - known[0] >= self._interval:
            accepted: dict[str, set[str]] = {}
            # A table whose row was edited accepts no older format; its envelopes open all the same.
            for table in self._datastore.registry(self._application).tables:
                accepted.setdefault(table.collection, set()).update(table.old_formats)
            known = self._known = now, accepted
        return known[1].get(collection, frozenset())

"""Databases on which one world after another is built, and the clients' ways to them."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, MetaData, Text, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from tests.lifecycle.traffic import Traffic, watch_engine

from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyDatastore,
    SQLAlchemySettings,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

APPLICATION = "lifecycle"
CLIENTS = 3
LOCK_TIMEOUT = "20ms"
"""What a statement waits for on PostgreSQL: whoever is in its way is a client that stands still."""


class CallersBase(DeclarativeBase):
    """The tables of the application around the event store."""


class Outbox(CallersBase):
    """What a caller adds to the transaction of an append."""

    __tablename__ = "outbox"

    note: Mapped[str] = mapped_column(Text(), primary_key=True)


RECORDS: tuple[type[Any], ...] = (IntegerSequencedItemRecord, SnapshotRecord, Outbox)


class Site:
    """
    One database, emptied for each world; the engines, which are dear to make, stay.

    Args:
        url: Of a PostgreSQL database; ``None``: a SQLite file in the fastest folder there is.

    Attributes:
        folder: For the ledger and for backups.
        rewrite: Makes clients' statements wrong, to see whether that comes out.
    """

    def __init__(self, url: str | None = None) -> None:
        fast = Path("/dev/shm")  # noqa: S108 - the folder made in it is private
        self.folder = Path(
            tempfile.mkdtemp(prefix="eventseal-lifecycle-", dir=fast if fast.is_dir() else None)
        )
        self.url = url = url or f"sqlite:///{self.folder / 'store.sqlite'}"
        self.rewrite: Callable[[str], str] | None = None
        self._copies = 0
        self.is_sqlite = url.startswith("sqlite")
        self._traffic = [Traffic() for _ in range(CLIENTS)]
        self._engines: list[Engine | None] = [None] * CLIENTS
        self.auditor = SQLAlchemyDatastore(SQLAlchemySettings(self._url), RECORDS)
        self.auditor.setup_tables(application=APPLICATION)
        if self.is_sqlite:
            self.auditor.close()
            shutil.copyfile(self.folder / "store.sqlite", self.folder / "empty.sqlite")
        else:
            self._outside = create_engine(self._url, isolation_level="AUTOCOMMIT")
            found = MetaData()
            found.reflect(self._outside)
            self._tables = found.sorted_tables
            for column in (column for table in self._tables for column in table.columns):
                if isinstance(column.type, JSON):
                    column.type.none_as_null = True

    @property
    def _url(self) -> str:
        return self.url.replace("postgresql://", "postgresql+psycopg://")

    def empty(self) -> None:
        """Begin anew: as right after ``setup_tables``."""
        self.auditor.close()
        for engine in self._engines:
            if engine is not None:
                engine.dispose()
        for leftover in (*self.folder.glob("ledger*"), *self.folder.glob("backup*")):
            leftover.unlink()
        if self.is_sqlite:
            self._replace_file(self.folder / "empty.sqlite")
            return
        with self._outside.connect() as connection:
            connection.execute(text("SET lock_timeout = '5s'"))
            for table in reversed(self._tables):
                if table.name != "eventseal_sealed_tables":
                    connection.execute(table.delete())

    def copy(self) -> Any:
        """Take a backup of all that is committed."""
        if not self.is_sqlite:
            with self._outside.execution_options(isolation_level="REPEATABLE READ").begin() as connection:
                return {
                    table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
                    for table in self._tables
                }
        self._copies += 1
        backup = self.folder / f"backup-{self._copies}.sqlite"
        store, target = (sqlite3.connect(file) for file in (self.folder / "store.sqlite", backup))
        with closing(store), closing(target):
            store.backup(target)
        return backup

    def put_back(self, copy: Any) -> None:
        """Restore a backup; nobody has the database open."""
        for engine in (self.auditor.engine, *self._engines):
            if engine is not None:
                engine.dispose()
        if self.is_sqlite:
            self._replace_file(copy)
            return
        with self._outside.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            for table in reversed(self._tables):
                connection.execute(table.delete())
            for table in self._tables:
                if copy[table.name]:
                    connection.execute(table.insert(), copy[table.name])

    def _replace_file(self, file: Path) -> None:
        for leftover in self.folder.glob("store.sqlite*"):
            leftover.unlink()
        shutil.copyfile(file, self.folder / "store.sqlite")

    def datastore(self, slot: int, traffic: Traffic) -> SQLAlchemyDatastore:
        """A client's datastore, on connections of its own that pass *traffic*."""
        self._traffic[slot] = traffic
        # Nobody waits: whoever holds a lock stands still, and goes on only after the one who asks for it.
        options: dict[str, Any] = (
            {"connect_args": {"timeout": 0}}
            if self.is_sqlite
            else {"connect_args": {"options": f"-c lock_timeout={LOCK_TIMEOUT}"}}
        )
        datastore = SQLAlchemyDatastore(SQLAlchemySettings(self._url, **options), RECORDS)
        engine = self._engines[slot]
        if engine is None:
            engine = self._engines[slot] = datastore.engine
            with engine.connect():  # the first connection asks the server about itself
                pass
            watch_engine(engine, lambda: self._traffic[slot], self._rewritten)
        datastore._engine = engine
        return datastore

    def _rewritten(self, statement: str) -> str:
        return statement if self.rewrite is None else self.rewrite(statement)

    def close(self) -> None:
        self.empty()
        self.auditor.close()
        if not self.is_sqlite:
            self._outside.dispose()
        shutil.rmtree(self.folder)

"""Databases on which one world after another is built, and the clients' ways to them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, Text, create_engine, text
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
        rewrite: Makes clients' statements wrong, to see whether that comes out.
    """

    def __init__(self, url: str | None = None) -> None:
        self._folder: Path | None = None
        if url is None:
            fast = Path("/dev/shm")  # noqa: S108 - the folder made in it is private
            self._folder = Path(
                tempfile.mkdtemp(prefix="eventseal-lifecycle-", dir=fast if fast.is_dir() else None)
            )
            url = f"sqlite:///{self._folder / 'store.sqlite'}"
        self.url = url
        self.rewrite: Callable[[str], str] | None = None
        self.is_sqlite = url.startswith("sqlite")
        self._traffic = [Traffic() for _ in range(CLIENTS)]
        self._engines: list[Engine | None] = [None] * CLIENTS
        self.auditor = SQLAlchemyDatastore(SQLAlchemySettings(self._url), RECORDS)
        self.auditor.setup_tables(application=APPLICATION)
        if self._folder is not None:
            self.auditor.close()
            shutil.copyfile(self._folder / "store.sqlite", self._folder / "empty.sqlite")
        else:
            self._outside = create_engine(self._url, isolation_level="AUTOCOMMIT")
            found = MetaData()
            found.reflect(self._outside)
            self._tables = [table for table in found.sorted_tables if table.name != "sealed_tables"]

    @property
    def _url(self) -> str:
        return self.url.replace("postgresql://", "postgresql+psycopg://")

    def empty(self) -> None:
        """Begin anew: as right after ``setup_tables``."""
        self.auditor.close()
        for engine in self._engines:
            if engine is not None:
                engine.dispose()
        if self._folder is not None:
            for leftover in self._folder.glob("store.sqlite*"):
                leftover.unlink()
            shutil.copyfile(self._folder / "empty.sqlite", self._folder / "store.sqlite")
            return
        with self._outside.connect() as connection:
            connection.execute(text("SET lock_timeout = '5s'"))
            for table in reversed(self._tables):
                connection.execute(table.delete())

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
        if self._folder is not None:
            shutil.rmtree(self._folder)
        else:
            self._outside.dispose()

"""A ledger's lines in a database of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Column, MetaData, Table, func, insert, select, text
from sqlalchemy.pool import NullPool

from eventseal.errors import ConfigurationError, MissingTableError
from eventseal.storage.database.column_types import ExactBytes, ExactInteger
from eventseal.storage.database.edited_rows import StoredText
from eventseal.storage.database.engines import SQLAlchemySettings, make_engine, redacted
from eventseal.storage.database.table_setup import create_tables
from eventseal.storage.database.transactions import read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection


T = TypeVar("T")

_PAGE = 1000

ledger_metadata = MetaData()
erasure_ledger = Table(
    "erasure_ledger",
    ledger_metadata,
    Column("application", StoredText(), primary_key=True),
    Column("number", ExactInteger(), primary_key=True, autoincrement=False),
    Column("line", ExactBytes(), nullable=False),
)
_COLUMNS = erasure_ledger.c


class LedgerTable:
    """
    Ledgers as a table, ``erasure_ledger``, in which each application has its own lines.

    Args:
        uri: Of a database that is not restored together with the keys, as SQLAlchemy has it. A secret.

    Raises:
        ConfigurationError: The URL is none, or of no SQLite or PostgreSQL database that lasts.
    """

    def __init__(self, uri: str) -> None:
        self.settings = SQLAlchemySettings(uri)
        if self.settings.in_memory:
            raise ConfigurationError("a ledger in memory is lost with its process")
        # Two writes an erasure: a pool would only keep connections across forks and idle hours.
        self._engine = make_engine(SQLAlchemySettings(uri, poolclass=NullPool))

    @property
    def name(self) -> str:
        """For messages."""
        return f"ledger {redacted(self.settings.url)}"

    def last(self, application: str) -> bytes | None:
        """Give the last line; ``None`` if there is none, or no table."""
        return self._read(partial(_last, application=application))

    def line(self, application: str, number: int) -> bytes | None:
        """Give the line of an entry by its number."""
        return self._read(partial(_line, application=application, number=number))

    def read(self, application: str, *, after: int) -> Iterator[bytes]:
        """Give every line behind that of an entry, in order."""
        while True:
            rows = self._read(partial(_page, application=application, after=after)) or []
            for _, line in rows:
                yield line
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def append(
        self, application: str, make: Callable[[bytes | None], bytes | None], *, create: bool
    ) -> bytes | None:
        """
        Add a line, durably, while nobody else does.

        Args:
            application: Whose.
            make: Gets the last line and gives the one to add, or ``None`` to add none.
            create: Whether the table may be made.

        Returns:
            What *make* gave.

        Raises:
            StoreError: The database refused or failed.
        """
        made: list[tuple[int, bytes]] = []

        def work(connection: Connection) -> bytes | None:
            if create:
                create_tables(connection, [erasure_ledger])
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL synchronous_commit = on"))
                connection.execute(text("LOCK TABLE erasure_ledger IN SHARE ROW EXCLUSIVE MODE"))
            for stored_as, stored in made:  # whether the COMMIT that was not answered has succeeded
                if _line(connection, application, stored_as) == stored:
                    return stored
            number = _last_number(connection, application)
            line = make(_line(connection, application, number))
            if line is not None:
                made[:] = [(number + 1, line)]
                row = {"application": application, "number": number + 1, "line": line}
                connection.execute(insert(erasure_ledger).values(row))
            return line

        return write(self._engine, work, doing=f"writing {self.name}")

    def _read(self, work: Callable[[Connection], T]) -> T | None:
        if not self._is_there():
            return None
        try:
            return read(self._engine, work, doing=f"reading {self.name}")
        except MissingTableError:
            return None

    def _is_there(self) -> bool:
        """Whether there is something to connect to: connecting would make an empty SQLite file."""
        url = self.settings.url
        return url.get_backend_name() != "sqlite" or "uri" in url.query or Path(str(url.database)).exists()


def _last_number(connection: Connection, application: str) -> int:
    query = select(func.max(_COLUMNS.number)).where(_COLUMNS.application == application)
    return connection.execute(query).scalar_one() or 0


def _line(connection: Connection, application: str, number: int) -> bytes | None:
    query = select(_COLUMNS.line).where(_COLUMNS.application == application, _COLUMNS.number == number)
    return connection.execute(query).scalar_one_or_none()


def _last(connection: Connection, *, application: str) -> bytes | None:
    return _line(connection, application, _last_number(connection, application))


def _page(connection: Connection, *, application: str, after: int) -> list[tuple[int, bytes]]:
    query = (
        select(_COLUMNS.number, _COLUMNS.line)
        .where(_COLUMNS.application == application, _COLUMNS.number > after)
        .order_by(_COLUMNS.number)
        .limit(_PAGE)
    )
    return [(number, line) for number, line in connection.execute(query)]

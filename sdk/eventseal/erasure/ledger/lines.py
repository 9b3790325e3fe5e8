"""The storage of a ledger's lines: an append-only file, or a table."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Column, MetaData, func, insert, select, text
from sqlalchemy.pool import NullPool

from eventseal.erasure.ledger.entries import RESTORE_LEDGER
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    MissingTableError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.storage.database.column_types import Count, ExactBytes, StoredText
from eventseal.storage.database.engines import SQLAlchemySettings, make_engine, redacted
from eventseal.storage.database.layout import quoted_name
from eventseal.storage.database.sqlite_files import make_folder, opening_fault
from eventseal.storage.database.table_setup import compare_tables, create_tables, own_table
from eventseal.storage.database.transactions import read, write

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    _LOCKS_FILES = False
else:
    _LOCKS_FILES = True

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

    from sqlalchemy.engine import Connection


_BLOCK = 1 << 16
_PATIENCE = 10.0
"""Seconds to wait for another process that is writing."""

_PAUSE = 0.01
_CORRECT_PATH = "Correct the path of the ledger."
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_AWAY = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOLCK})


class LedgerFile:
    """
    One application's ledger as a file of JSON lines, mode 0600.

    Bytes after the last line end are a line that a crash interrupted. No operation relied on it, and the next
    writer removes it. Readers take no lock, because whole lines never change.

    Args:
        path: The path of the file, whose folder must exist. If several machines write the file, its file
            system must enforce locks between them.

    Raises:
        ConfigurationError: This system has no locks of POSIX.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not _LOCKS_FILES:
            raise ConfigurationError(
                "a ledger in a file needs the file locks of POSIX, which this system does not have",
                remedy="Set `ledger` to the URL of a database, or use Linux or macOS.",
            )
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The name of the ledger in messages."""
        return f"ledger {self.path}"

    def check_place(self) -> None:
        """Check that the folder of the file exists."""
        if not self.path.parent.is_dir():
            said = f"the folder of {self.name} does not exist. Nothing was changed"
            raise ConfigurationError(said, remedy=make_folder(self.path.parent))

    def last(self, application: str) -> bytes | None:  # noqa: ARG002 - a file is of one application
        """Return the last whole line, or ``None`` without a line or file."""
        with self._reading() as file:
            return None if file is None else _last_line(file, _end_of_lines(file))

    def line(self, application: str, number: int) -> bytes | None:  # noqa: ARG002
        """
        Return the line of an entry by its number.

        A binary search finds it, because the numbers only rise.
        """
        with self._reading() as file:
            found = None if file is None else self._find(file, number)
            return None if found is None else found[1]

    def read(self, application: str, *, after: int) -> Iterator[bytes]:  # noqa: ARG002
        """Yield every whole line after that of an entry, in order."""
        with self._reading() as file:
            if file is None:
                return
            end, start = _end_of_lines(file), 0
            if after:
                found = self._find(file, after)
                if found is None:
                    return
                start = found[0] + len(found[1]) + 1
            file.seek(start)
            while file.tell() < end:
                yield file.readline()[:-1]

    def append(
        self,
        application: str,  # noqa: ARG002
        make: Callable[[bytes | None], bytes | None],
        *,
        create: bool,
    ) -> bytes | None:
        """
        Add a line durably, while no other process adds one.

        Args:
            application: The application that owns the ledger.
            make: Receives the last line and returns the new one, or ``None`` to add none.
            create: Whether the file may be created.

        Returns:
            The result of *make*.

        Raises:
            StoreReadOnlyError: The file cannot be written.
            StoreUnavailableError: Another process locks the file, or the disk is full.
            StoreError: The operating system reports another error.
        """
        with self._translated("writing"), self._locked(create=create) as file:
            end = _end_of_lines(file)
            line = make(_last_line(file, end))
            if line is not None:
                self._write(file.fileno(), end, line + b"\n")
            return line

    def _write(self, descriptor: int, end: int, line: bytes) -> None:
        is_new = end == 0
        os.ftruncate(descriptor, end)  # no operation relied on a partial line (docs/decisions/0013)
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(descriptor, line[written:], end + written)
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, end)
            raise
        if is_new:
            _sync_folder(self.path.parent)

    def _find(self, file: BufferedReader, number: int) -> tuple[int, bytes] | None:
        """Return the offset and the line of an entry."""
        low, high = 0, _end_of_lines(file)
        while low < high:
            start = _start_of_line(file, (low + high) // 2)
            line = _line_at(file, start)
            found = self._number(line)
            if found == number:
                return start, line
            low, high = (start + len(line) + 1, high) if found < number else (low, start)
        return None

    def _number(self, line: bytes) -> int:
        try:
            return int(json.loads(line)["entry"]["number"])
        except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError):
            raise IntegrityError(
                f"{self.name} has a line that is not an entry of an erasure ledger", remedy=RESTORE_LEDGER
            ) from None

    @contextmanager
    def _reading(self) -> Iterator[BufferedReader | None]:
        with self._translated("reading"):
            try:
                descriptor = self._opened(os.O_RDONLY)
            except FileNotFoundError:
                if not self.path.parent.is_dir():  # an unmounted volume would look like an empty ledger
                    raise
                yield None
                return
            try:
                self._refuse_other_than_file(descriptor)
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    yield file
            finally:
                os.close(descriptor)

    @contextmanager
    def _locked(self, *, create: bool) -> Iterator[BufferedReader]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            descriptor = self._opened(os.O_RDWR | (os.O_CREAT if create else 0))
            try:
                self._refuse_other_than_file(descriptor)
                self._lock(descriptor, deadline)
                if self._is_still(descriptor):
                    with os.fdopen(descriptor, "rb", closefd=False) as file:
                        yield file
                    return
            finally:
                os.close(descriptor)  # with the lock

    def _opened(self, flags: int) -> int:
        # Without O_NONBLOCK, opening a pipe would wait until a process opens its other end.
        return os.open(self.path, flags | os.O_NONBLOCK, 0o600)

    def _refuse_other_than_file(self, descriptor: int) -> None:
        """Refuse a path that keeps nothing: a device or a pipe."""
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise ConfigurationError(
                f"{self.name} is not a regular file, so it would not keep entries", remedy=_CORRECT_PATH
            )

    def _lock(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"another process has locked {self.name} for {_PATIENCE:.0f} s",
                        remedy="Try again after that process ends.",
                    ) from None
                time.sleep(_PAUSE)
            else:
                return

    def _is_still(self, descriptor: int) -> bool:
        """Whether the path still names the locked file, and not a replacement."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            said = f"{doing} {self.name} failed: {error.strerror or type(error).__name__}"
            if error.errno in _READ_ONLY:
                raise StoreReadOnlyError(
                    said, remedy="Grant this user access to read and write the file."
                ) from error
            if error.errno in _AWAY:
                raise StoreUnavailableError(said) from error
            if error.errno == errno.ENOENT:
                raise ConfigurationError(said, remedy=make_folder(self.path.parent)) from error
            if error.errno in {errno.EISDIR, errno.ENOTDIR}:
                raise ConfigurationError(said, remedy=_CORRECT_PATH) from error
            raise StoreError(
                said, remedy="Check the path of the ledger, and the operating system's log."
            ) from error


def _end_of_lines(file: BufferedReader) -> int:
    """Return the offset after the last whole line."""
    # The line end is written last. No operation relies on a line without it (docs/decisions/0013).
    return _start_of_line(file, os.fstat(file.fileno()).st_size)


def _start_of_line(file: BufferedReader, offset: int) -> int:
    """Return the start of the line that has a byte at *offset*. The line end belongs to the line."""
    while offset > 0:
        start = max(0, offset - _BLOCK)
        file.seek(start)
        found = file.read(offset - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        offset = start
    return 0


def _line_at(file: BufferedReader, start: int) -> bytes:
    """Return the whole line that begins at *start*."""
    file.seek(start)
    return file.readline()[:-1]


def _last_line(file: BufferedReader, end: int) -> bytes | None:
    return None if end == 0 else _line_at(file, _start_of_line(file, end - 1))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


T = TypeVar("T")

_PAGE = 1000

ledger_metadata = MetaData()
erasure_ledger = own_table(
    "eventseal_erasure_ledger",
    ledger_metadata,
    Column("application", StoredText(), primary_key=True),
    Column("number", Count(), primary_key=True, autoincrement=False),
    Column("line", ExactBytes(), nullable=False),
)
_COLUMNS = erasure_ledger.c


class LedgerTable:
    """
    The table ``eventseal_erasure_ledger``, in which each application has its own lines.

    Args:
        uri: The SQLAlchemy URL of a database that is not restored together with the keys. A secret.
        schema: The PostgreSQL schema of the table.

    Raises:
        ConfigurationError: The URL is invalid, or is not of a persistent SQLite or PostgreSQL database.
    """

    def __init__(self, uri: str, *, schema: str | None = None) -> None:
        # An erasure needs only two writes: a pool would only keep connections across forks and idle hours. A
        # connection repeats no statement, so preparing one would only fail behind a pooler.
        self.settings = SQLAlchemySettings(uri, schema=schema, pooler="transaction", poolclass=NullPool)
        if self.settings.in_memory:
            raise ConfigurationError(
                "a ledger in memory is lost with its process",
                remedy="Set `ledger` to a file, or to a database in a file or on a server.",
            )
        self.engine = make_engine(self.settings)

    @property
    def name(self) -> str:
        """The name of the ledger in messages."""
        return f"ledger {redacted(self.settings.url)}"

    def check_place(self) -> None:
        """Check that the table exists as needed, or can be created."""
        if self.settings.is_there:
            compare_tables(self.engine, [erasure_ledger])

    def last(self, application: str) -> bytes | None:
        """Return the last line, or ``None`` without a line or table."""
        return self._read(lambda connection: _line(connection, application))

    def line(self, application: str, number: int) -> bytes | None:
        """Return the line of an entry by its number."""
        return self._read(lambda connection: _line(connection, application, number))

    def read(self, application: str, *, after: int) -> Iterator[bytes]:
        """Yield every line after that of an entry, in order."""
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
        Add a line durably, while no other process adds one.

        Args:
            application: The application that owns the line.
            make: Receives the last line and returns the new one, or ``None`` to add none.
            create: Whether the table may be created.

        Returns:
            The result of *make*.

        Raises:
            StoreError: The database rejects the request or fails.
        """
        made: list[tuple[int, bytes]] = []

        def work(connection: Connection) -> bytes | None:
            if create:
                create_tables(connection, [erasure_ledger])
            if connection.dialect.name == "postgresql":
                # Keys are destroyed because of a returned line, so no crash of the server may lose it
                # (docs/decisions/0013).
                connection.execute(text("SET LOCAL synchronous_commit = on"))
                named = quoted_name(connection, erasure_ledger.name)
                connection.execute(text(f"LOCK TABLE {named} IN SHARE ROW EXCLUSIVE MODE"))
            for stored_as, stored in made:  # on a retry: an earlier COMMIT may have succeeded unanswered
                if _line(connection, application, stored_as) == stored:
                    return stored
            number = _last_number(connection, application)
            line = make(_line(connection, application, number))
            if line is not None:
                made[:] = [(number + 1, line)]
                row = {"application": application, "number": number + 1, "line": line}
                connection.execute(insert(erasure_ledger).values(row))
            return line

        return write(self.engine, work, doing=f"writing {self.name}")

    def _read(self, work: Callable[[Connection], T]) -> T | None:
        file = self.settings.file
        if file is not None and not self.settings.is_there:  # connecting would create an empty file
            if fault := opening_fault(file):
                raise fault
            return None
        try:
            return read(self.engine, work, doing=f"reading {self.name}")
        except MissingTableError:
            return None


def _last_number(connection: Connection, application: str) -> int:
    query = select(func.max(_COLUMNS.number)).where(_COLUMNS.application == application)
    return connection.execute(query).scalar_one() or 0


def _line(connection: Connection, application: str, number: int | None = None) -> bytes | None:
    """Return the line of an entry by number, or the last line."""
    if number is None:
        number = _last_number(connection, application)
    query = select(_COLUMNS.line).where(_COLUMNS.application == application, _COLUMNS.number == number)
    return connection.execute(query).scalar_one_or_none()


def _page(connection: Connection, *, application: str, after: int) -> list[tuple[int, bytes]]:
    query = (
        select(_COLUMNS.number, _COLUMNS.line)
        .where(_COLUMNS.application == application, _COLUMNS.number > after)
        .order_by(_COLUMNS.number)
        .limit(_PAGE)
    )
    return [(number, line) for number, line in connection.execute(query)]

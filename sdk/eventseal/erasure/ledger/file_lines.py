"""A ledger's lines in a file that is only ever written at its end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_BLOCK = 1 << 16
_PATIENCE = 10.0
"""Seconds to wait for another process that is writing."""

_PAUSE = 0.01
_CORRECT_PATH = "Correct the path of the ledger; its folder must be there."
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_AWAY = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOLCK})


class LedgerFile:
    """
    One application's ledger as a file of JSON lines, mode 0600.

    What stands behind the last end of a line was never written as a whole: a crash left it, nobody acted by
    it, and the next one who writes takes it away. Readers take no lock, since whole lines never change.

    Args:
        path: Of the file; its folder must exist. On a file system whose locks hold between the machines that
            write it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """For messages."""
        return f"ledger {self.path}"

    def last(self, application: str) -> bytes | None:  # noqa: ARG002 - a file is of one application
        """Give the last whole line; ``None`` if there is none, or no file."""
        with self._reading() as descriptor:
            return None if descriptor is None else _last_line(descriptor, _end_of_lines(descriptor))

    def line(self, application: str, number: int) -> bytes | None:  # noqa: ARG002
        """Give the line of an entry by its number; it is looked for by halves, since numbers only rise."""
        with self._reading() as descriptor:
            if descriptor is None:
                return None
            found = self._find(descriptor, number)
            return None if found is None else found[1]

    def read(self, application: str, *, after: int) -> Iterator[bytes]:  # noqa: ARG002
        """Give every whole line behind that of an entry, in order."""
        with self._reading() as descriptor:
            if descriptor is None:
                return
            end, start = _end_of_lines(descriptor), 0
            if after:
                found = self._find(descriptor, after)
                if found is None:
                    return
                start = found[0] + len(found[1]) + 1
            with os.fdopen(os.dup(descriptor), "rb") as file:
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
        Add a line, durably, while nobody else does.

        Args:
            application: Whose.
            make: Gets the last line and gives the one to add, or ``None`` to add none.
            create: Whether the file may be made.

        Returns:
            What *make* gave.

        Raises:
            StoreReadOnlyError: The file cannot be written.
            StoreUnavailableError: Another process holds it, or the disk is full.
            StoreError: The operating system refused otherwise.
        """
        with self._translated("writing"), self._locked(create=create) as descriptor:
            end = _end_of_lines(descriptor)
            line = make(_last_line(descriptor, end))
            if line is not None:
                self._write(descriptor, end, line + b"\n")
            return line

    def _write(self, descriptor: int, end: int, line: bytes) -> None:
        is_new = end == 0
        os.ftruncate(descriptor, end)  # what a crash has left
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

    def _find(self, descriptor: int, number: int) -> tuple[int, bytes] | None:
        """Give the offset and the line of an entry."""
        low, high = 0, _end_of_lines(descriptor)
        while low < high:
            start = _start_of_line(descriptor, (low + high) // 2)
            line = _line_at(descriptor, start, high)
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
                f"{self.name} has a line that is no entry of an erasure ledger",
                remedy="Find out who changed the ledger, and put it back from its copy.",
            ) from None

    @contextmanager
    def _reading(self) -> Iterator[int | None]:
        with self._translated("reading"):
            try:
                descriptor = self._opened(os.O_RDONLY)
            except FileNotFoundError:
                yield None
                return
            try:
                self._refuse_other_than_file(descriptor)
                yield descriptor
            finally:
                os.close(descriptor)

    @contextmanager
    def _locked(self, *, create: bool) -> Iterator[int]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            descriptor = self._opened(os.O_RDWR | (os.O_CREAT if create else 0))
            try:
                self._refuse_other_than_file(descriptor)
                self._lock(descriptor, deadline)
                if self._is_still(descriptor):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)  # with the lock

    def _opened(self, flags: int) -> int:
        # Without O_NONBLOCK a pipe would be waited for until somebody opens its other end.
        return os.open(self.path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)

    def _refuse_other_than_file(self, descriptor: int) -> None:
        """Refuse what keeps nothing: a device, a pipe."""
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise ConfigurationError(
                f"{self.name} is no regular file: what is written there is not kept", remedy=_CORRECT_PATH
            )

    def _lock(self, descriptor: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"another process has held {self.name} for {_PATIENCE:.0f} s",
                        remedy="Try again when it has ended.",
                    ) from None
                time.sleep(_PAUSE)
            else:
                return

    def _is_still(self, descriptor: int) -> bool:
        """Whether the path names the locked file, and not one that was put in its place meanwhile."""
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
                raise StoreReadOnlyError(said, remedy="Let this user read and write the file.") from error
            if error.errno in _AWAY:
                raise StoreUnavailableError(said) from error
            if error.errno in {errno.ENOENT, errno.EISDIR, errno.ENOTDIR}:
                raise ConfigurationError(said, remedy=_CORRECT_PATH) from error
            raise StoreError(
                said, remedy="Look at the path of the ledger, and at the operating system's log."
            ) from error


def _end_of_lines(descriptor: int) -> int:
    """Give the offset behind the last whole line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _start_of_line(descriptor: int, offset: int) -> int:
    """Give where the line begins that has a byte at *offset*; its end belongs to it."""
    while offset > 0:
        start = max(0, offset - _BLOCK)
        found = os.pread(descriptor, offset - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        offset = start
    return 0


def _line_at(descriptor: int, start: int, end: int) -> bytes:
    """Give the line that begins at *start* and ends before *end*."""
    parts = []
    while start < end:
        part = os.pread(descriptor, min(_BLOCK, end - start), start)
        found = part.find(b"\n")
        if found >= 0:
            parts.append(part[:found])
            break
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _last_line(descriptor: int, end: int) -> bytes | None:
    if end == 0:
        return None
    return _line_at(descriptor, _start_of_line(descriptor, end - 1), end)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

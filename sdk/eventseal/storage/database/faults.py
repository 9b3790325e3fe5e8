"""Faults of databases: which error means what, and whether other programs write to an SQLite file."""

from __future__ import annotations

import re
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    MissingTableError,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.storage.database.engines import is_in_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Engine


_DOING = "looking whether others write"
_CORRECT_URL = (
    "Correct the URL of the database: store_url, or key_store_url if the keys have one of their own."
)
_MAKE_FOLDER = (
    "If the folder of the SQLite file is absent, make it: only the file is made by itself. "
    "Else see that the path is not a folder, and that this user may open it."
)
_END_TRANSACTION = (
    "Try again; end long transactions. A process that forked inside a write transaction locks out its own "
    "children until it ends the transaction: fork outside of transactions."
)
_NEWER_SQLITE = "Use a Python that is built with SQLite 3.37 or newer: the tables were created with one."
_MAKE_ROOM = "Make room on the disk that the database is on, then run it again: what was written is whole."
_LOOK_AT_DISK = (
    "See whether the disk that the SQLite file is on is full, or failing; then run it again: what was "
    "written is whole."
)
_GRANT = "Grant this user the privilege on the table that the message names."
_SHOW_EVERY_ROW = (
    "Run it as a role that sees every row: a superuser can give a role BYPASSRLS with ALTER ROLE. Or, as the "
    "table's owner, run ALTER TABLE ... NO FORCE ROW LEVEL SECURITY, then run it again. If you did not "
    "create the policy, find out who did: pg_policies lists it."
)

_PRIMARY_CODE = 0xFF
_SQLITE_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_SQLITE_REMEDIES = {
    sqlite3.SQLITE_BUSY: _END_TRANSACTION,
    sqlite3.SQLITE_LOCKED: _END_TRANSACTION,
    sqlite3.SQLITE_CANTOPEN: _MAKE_FOLDER,
    sqlite3.SQLITE_FULL: _MAKE_ROOM,
    sqlite3.SQLITE_IOERR: _LOOK_AT_DISK,  # a full disk is one, where SQLite makes a file beside its own
}
_SQLITE_MISSING_TABLE = re.compile(r"no such table: (?:\w+\.)?(.+)")
_SQLITE_TOO_OLD = re.compile(r"malformed database schema .*\bSTRICT\b")
_SQLITE_MISSING_COLUMN = re.compile(r"no such column: |has no column named ")
_QUOTED = re.compile(r'"([^"]+)"')

# The classes of SQLSTATE, PostgreSQL's appendix A.
_CONNECTION, _RESOURCES, _INTERVENTION = "08", "53", "57"
_RETRY = frozenset({"40001", "40P01"})
_UNAVAILABLE = _RETRY | {"55P03", "25P03", "3D000", "28000", "28P01"}
_OUTCOME_UNKNOWN = frozenset({"40003", "57P01", "57P02", "57P03"})
_SHOW_THE_ROW = frozenset({"22", "23"})
_READ_ONLY, _FORBIDDEN, _DISK_FULL = "25006", "42501", "53100"
_UNDEFINED_TABLE, _UNDEFINED_COLUMN = "42P01", "42703"
_HIDES_ROWS = "check_enable_rls"
"""The function of PostgreSQL that refuses a query because a policy would hide rows from it."""

_BAD_OPTION = re.compile(r"^(?:connection is bad: |invalid dsn: )*(?:invalid |bad value for )")
"""What libpq says before it connects: no server was asked, so asking again does not help."""

_ADD_COLUMN = (
    "Run `eventseal init`, which adds a missing key_id column, and what this release added to EventSeal's "
    "own tables; migrate the table for any other."
)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """
    Raise EventSeal's error for whatever the database answers inside the block.

    Args:
        doing: What was going on, as a message goes on with it: ``"appending to orders"``.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise store_error(error, doing) from _safe_cause(error)


def store_error(error: SQLAlchemyError, doing: str) -> EventSealError:
    """
    Give EventSeal's error for *error*. Its message holds no value of any row and no password.

    Args:
        error: From SQLAlchemy or, inside it, the driver.
        doing: What was going on.
    """
    if isinstance(error, StatementError) and isinstance(error.orig, EventSealError):
        return error.orig
    if isinstance(error, PoolTimeoutError):
        return StoreUnavailableError(
            f"no connection was free for {doing}; an in-memory SQLite database has one",
            remedy="End the transactions of other sessions and threads, or give the pool more connections.",
        )
    if not isinstance(error, DBAPIError) or error.orig is None:
        return StoreError(f"{doing} failed: {type(error).__name__}")
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_error(error.orig, doing)
    return _server_error(error, doing)


def has_no_such_column(error: DBAPIError) -> bool:
    """Whether SQLite refused a statement for a column that its table has not: nothing failed but that."""
    return isinstance(error.orig, sqlite3.Error) and bool(_SQLITE_MISSING_COLUMN.search(str(error.orig)))


def is_locked(error: BaseException | None) -> bool:
    """Whether SQLite refused a statement because another connection holds a lock."""
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE == sqlite3.SQLITE_BUSY


def is_transient(error: BaseException) -> bool:
    """Whether the transaction may succeed if run again: it met another one, or its connection was lost."""
    return isinstance(error, DBAPIError) and (error.connection_invalidated or sqlstate(error) in _RETRY)


def is_outcome_known(error: BaseException) -> bool:
    """Whether an error of COMMIT says for certain that nothing was committed."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    state = sqlstate(error)
    return state is not None and state[:2] != _CONNECTION and state not in _OUTCOME_UNKNOWN


def sqlstate(error: DBAPIError) -> str | None:
    """Give the five characters of SQLSTATE; ``None`` where the driver or the failure has none."""
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return state if isinstance(state, str) else None


def _safe_cause(error: SQLAlchemyError) -> BaseException | None:
    # A server's detail of a constraint or a bad value shows the row, which may be in plain: it is cut off.
    state = sqlstate(error) if isinstance(error, DBAPIError) else None
    shows_row = isinstance(error, PendingRollbackError) or (state or "")[:2] in _SHOW_THE_ROW
    return None if shows_row else error


def _sqlite_error(orig: sqlite3.Error, doing: str) -> EventSealError:
    code, text = getattr(orig, "sqlite_errorcode", 0) & _PRIMARY_CODE, str(orig)
    said = f"{doing} failed: SQLite says: {text}"
    if code in _SQLITE_UNAVAILABLE:
        return StoreUnavailableError(said, remedy=_SQLITE_REMEDIES.get(code))
    if code == sqlite3.SQLITE_READONLY:
        return StoreReadOnlyError(said)
    if found := _SQLITE_MISSING_TABLE.search(text):
        return MissingTableError(f"{doing} failed: there is no table {found[1]}", table=found[1])
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigurationError(said, remedy=_CORRECT_URL)
    if _SQLITE_TOO_OLD.search(text):
        return ConfigurationError(said, remedy=_NEWER_SQLITE)
    if _SQLITE_MISSING_COLUMN.search(text):
        return ConfigurationError(said, remedy=_ADD_COLUMN)
    return StoreError(said)


def _server_error(error: DBAPIError, doing: str) -> EventSealError:
    state, text = sqlstate(error), _primary_message(error)
    said = f"{doing} failed: the database says: {text}"
    if state is None:
        if _BAD_OPTION.search(text):
            return ConfigurationError(said, remedy=_CORRECT_URL)
        unreachable = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
        return StoreUnavailableError(said) if unreachable else StoreError(said)
    if state in _UNAVAILABLE or state[:2] in {_CONNECTION, _RESOURCES, _INTERVENTION}:
        return StoreUnavailableError(said, remedy=_MAKE_ROOM if state == _DISK_FULL else None)
    if state == _READ_ONLY:
        return StoreReadOnlyError(said)
    if state == _FORBIDDEN:
        diagnosis = getattr(error.orig, "diag", None)
        hides_rows = getattr(diagnosis, "source_function", None) == _HIDES_ROWS
        return StoreError(said, remedy=_SHOW_EVERY_ROW if hides_rows else _GRANT)
    if state == _UNDEFINED_TABLE:
        found = _QUOTED.search(text)
        return MissingTableError(said, table=found[1] if found else None)
    if state == _UNDEFINED_COLUMN:
        return ConfigurationError(said, remedy=_ADD_COLUMN)
    return StoreError(f"{said} (SQLSTATE {state})")


def _primary_message(error: DBAPIError) -> str:
    # Not str(): that goes on with the server's detail, which may show a row.
    diagnosis = getattr(error.orig, "diag", None)
    primary = getattr(diagnosis, "message_primary", None)
    return primary or " ".join(str(error.orig).split())


class SQLiteContention:
    """
    Tells whether another connection has committed since one's own last commit, at next to no cost.

    It follows SQLite's ``data_version``, on a connection of its own (docs/decisions/0012). Elsewhere
    writers do not wait for each other, and it says no.

    Args:
        engine: Of the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asks = engine.dialect.name == "sqlite" and not is_in_memory(engine.url)
        self._connection: Connection | None = None
        self._seen: int | None = None

    def begin(self) -> None:
        """Look from here on: one's own commit has just been made."""
        if self._asks:
            self._seen = self._version()

    def wrote(self) -> bool:
        """Say whether another connection has committed since ``begin``; no, if that was never called."""
        return self._seen is not None and self._version() != self._seen

    def close(self) -> None:
        """Give up the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _version(self) -> int:
        with translated(_DOING):
            if self._connection is None:
                self._connection = self._engine.connect()
                self._connection.detach()  # the pool may have room for one only
            version: int = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
            self._connection.rollback()
            return version

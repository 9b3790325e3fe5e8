"""Faults of databases, and whether others write to a SQLite file."""

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
    StoreForbiddenError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.storage.database.engines import is_in_memory
from eventseal.storage.database.layout import OLDER_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Engine


_DOING = "checking whether other programs write"
_CORRECT_URL = (
    "Correct the URL of the database: store_url, or key_store_url if the keys have their own database."
)
_LOOK_AT_FOLDER = (
    "Check that the folder of the SQLite file is mounted and writable, and that this process has not reached "
    "its limit of open files (ulimit -n). Then try again."
)
_END_TRANSACTION = (
    "End long transactions, then try again. Fork outside of transactions: a process that forks inside a "
    "write transaction locks out its own children until it ends the transaction."
)
_NEWER_SQLITE = "Use a Python that is built with SQLite 3.37 or newer. The tables were created with one."
_MAKE_ROOM = "Make room on the disk of the database, then try again. Everything that was written is complete."
_LOOK_AT_DISK = (
    "Check whether the disk of the SQLite file is full or failing, then try again. "
    "Everything that was written is complete."
)
_SET_POOLER = (
    'If you connect through a pooler in transaction mode, such as PgBouncer, set pooler = "transaction" in '
    "every program that uses this database. Then start the programs again."
)
_POOL_MODE = (
    "EventSeal needs transactions, so set pool_mode = transaction in PgBouncer, and pooler = "
    '"transaction" here.'
)
_NO_OPTIONS = (
    "Remove `options` from the URL of the database: the pooler does not pass it on. Give the role the "
    "setting: ALTER ROLE ... SET ..."
)
_SHOW_EVERY_ROW = (
    "Run the command as a role that sees every row: a superuser can give a role BYPASSRLS with ALTER ROLE. "
    "Or, as the table's owner, run ALTER TABLE ... NO FORCE ROW LEVEL SECURITY, then run the command again. "
    "If you did not create the policy, find out who did: pg_policies lists it."
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
    sqlite3.SQLITE_CANTOPEN: _LOOK_AT_FOLDER,  # a wrong path has its own error: sqlite_files
    sqlite3.SQLITE_FULL: _MAKE_ROOM,
    sqlite3.SQLITE_IOERR: _LOOK_AT_DISK,  # also for a full disk, if SQLite creates a file next to its own
}
_SQLITE_MISSING_TABLE = re.compile(r"no such table: (?:\w+\.)?(.+)")
_SQLITE_TOO_OLD = re.compile(r"malformed database schema .*\bSTRICT\b")
_SQLITE_MISSING_COLUMN = re.compile(r"no such column: |has no column named ")
_QUOTED = re.compile(r'"([^"]+)"')

# The classes of SQLSTATE, from PostgreSQL's appendix A.
_CONNECTION, _RESOURCES, _INTERVENTION = "08", "53", "57"
_RETRY = frozenset({"40001", "40P01"})
_UNAVAILABLE = _RETRY | {"55P03", "25P03", "3D000", "28000", "28P01"}
_OUTCOME_UNKNOWN = frozenset({"40003", "57P01", "57P02", "57P03"})
_SHOW_THE_ROW = frozenset({"22", "23"})
_READ_ONLY, _FORBIDDEN, _DISK_FULL = "25006", "42501", "53100"
_UNDEFINED_TABLE, _UNDEFINED_COLUMN = "42P01", "42703"
_HIDES_ROWS = "check_enable_rls"
"""
The PostgreSQL function that refuses queries with hidden rows.

A policy of row-level security would hide these rows.
"""

_BAD_OPTION = re.compile(r"^(?:connection is bad: |invalid dsn: )*(?:invalid |bad value for )")
"""An error of libpq before it connects. No server was asked, so a retry does not help."""

# Another process prepared a statement of this name on this server connection, or ours is on another one.
_PREPARED_STATEMENT = frozenset({"42P05", "26000"})
_OTHER_PARAMETERS = re.compile(r"bind message supplies \d+ parameters, but prepared statement")
_STATEMENT_MODE = "transaction blocks not allowed in statement pooling mode"
_UNSUPPORTED_OPTION = "unsupported startup parameter"

_ADD_COLUMN = (
    "Run `eventseal upgrade`. It adds a missing key_id column, and the columns that this release added to "
    "EventSeal's own tables. If any other column is missing, add it to the table."
)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """
    Raise EventSeal's error for any database error inside the block.

    Args:
        doing: The action that fails, as the beginning of a message: ``"appending to orders"``.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise store_error(error, doing) from _safe_cause(error)


def store_error(error: SQLAlchemyError, doing: str) -> EventSealError:
    """
    Return EventSeal's error for an error of SQLAlchemy.

    Its message contains no value of any row and no password.

    Args:
        error: The error of SQLAlchemy. It may contain an error of the driver.
        doing: The action that failed.
    """
    if isinstance(error, StatementError) and isinstance(error.orig, EventSealError):
        return error.orig
    if isinstance(error, PoolTimeoutError):
        return StoreUnavailableError(
            f"no connection was free for {doing}. An in-memory SQLite database has only one",
            remedy="End the transactions of other sessions and threads, or give the pool more connections.",
        )
    if not isinstance(error, DBAPIError) or error.orig is None:
        return StoreError(f"{doing} failed: {type(error).__name__}")
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_error(error.orig, doing)
    return _server_error(error, doing)


def has_no_such_column(error: DBAPIError) -> bool:
    """Return whether SQLite refused a statement for a missing column alone."""
    return isinstance(error.orig, sqlite3.Error) and bool(_SQLITE_MISSING_COLUMN.search(str(error.orig)))


def is_locked(error: BaseException | None) -> bool:
    """Return whether SQLite refused a statement because another connection holds a lock."""
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE == sqlite3.SQLITE_BUSY


def is_transient(error: BaseException) -> bool:
    """
    Return whether the transaction may succeed if it is run again.

    It may succeed if it conflicted with another transaction, or lost its connection. It also may if
    ``eventseal upgrade`` has just renamed a table.
    """
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated
        or sqlstate(error) in _RETRY
        or (missing_table(error) or "").rpartition(".")[2] in OLDER_NAMES
    )


def missing_table(error: DBAPIError) -> str | None:
    """Return the name of the table that a statement did not find."""
    if isinstance(error.orig, sqlite3.Error):
        found = _SQLITE_MISSING_TABLE.search(str(error.orig))
    else:
        found = _QUOTED.search(_primary_message(error)) if sqlstate(error) == _UNDEFINED_TABLE else None
    return found[1] if found else None


def is_outcome_known(error: BaseException) -> bool:
    """Return whether an error of COMMIT proves that nothing was committed."""
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    state = sqlstate(error)
    return state is not None and state[:2] != _CONNECTION and state not in _OUTCOME_UNKNOWN


def sqlstate(error: DBAPIError) -> str | None:
    """Return the SQLSTATE of five characters, or ``None``. SQLite and some failures have none."""
    state = getattr(error.orig, "sqlstate", None)
    return state if isinstance(state, str) else None


def _safe_cause(error: SQLAlchemyError) -> BaseException | None:
    # A server's detail of a constraint or a bad value shows the row, maybe plaintext. So it is cut off.
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
    if remedy := _setting_remedy(state, text):
        return ConfigurationError(said, remedy=remedy)
    if state is None:
        unreachable = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
        return StoreUnavailableError(said) if unreachable else StoreError(said)
    if state in _UNAVAILABLE or state[:2] in {_CONNECTION, _RESOURCES, _INTERVENTION}:
        return StoreUnavailableError(said, remedy=_MAKE_ROOM if state == _DISK_FULL else None)
    if state == _READ_ONLY:
        return StoreReadOnlyError(said)
    if state == _FORBIDDEN:
        diagnosis = getattr(error.orig, "diag", None)
        hides_rows = getattr(diagnosis, "source_function", None) == _HIDES_ROWS
        return StoreForbiddenError(said, remedy=_SHOW_EVERY_ROW if hides_rows else None)
    if state == _UNDEFINED_TABLE:
        return MissingTableError(said, table=missing_table(error))
    return StoreError(f"{said} (SQLSTATE {state})")


def _setting_remedy(state: str | None, text: str) -> str | None:
    """Return the remedy for an error that a wrong setting causes. Retrying does not help."""
    if state in _PREPARED_STATEMENT or _OTHER_PARAMETERS.search(text):
        return _SET_POOLER
    if _STATEMENT_MODE in text:
        return _POOL_MODE
    if _UNSUPPORTED_OPTION in text:
        return _NO_OPTIONS
    if state is None and _BAD_OPTION.search(text):
        return _CORRECT_URL
    return _ADD_COLUMN if state == _UNDEFINED_COLUMN else None


def _primary_message(error: DBAPIError) -> str:
    # Not str(), which also contains the server's detail. The detail may show a row.
    diagnosis = getattr(error.orig, "diag", None)
    primary = getattr(diagnosis, "message_primary", None)
    return primary or " ".join(str(error.orig).split())


class SQLiteContention:
    """
    Detects commits of other connections since the caller's last commit.

    It costs next to nothing: it follows SQLite's ``data_version`` on a separate connection
    (docs/decisions/0012). On other databases writers do not wait for each other, and it reports no commit.

    Args:
        engine: The engine of the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asks = engine.dialect.name == "sqlite" and not is_in_memory(engine.url)
        self._connection: Connection | None = None
        self._seen: int | None = None

    def begin(self) -> None:
        """Start to watch. Call this directly after your own commit."""
        if self._asks:
            self._seen = self._version()

    def wrote(self) -> bool:
        """Return whether another connection has committed since ``begin``. Without it: no."""
        return self._seen is not None and self._version() != self._seen

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _version(self) -> int:
        with translated(_DOING):
            if self._connection is None:
                self._connection = self._engine.connect()
                self._connection.detach()  # the pool may have room for only one connection
            version: int = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
            self._connection.rollback()
            return version

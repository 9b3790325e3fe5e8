"""EventSeal's own transactions: how they begin, and when they are run again."""

from __future__ import annotations

import inspect
import random
import sqlite3
import time
from functools import partial, wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from eventseal.storage.database.engines import redacted
from eventseal.storage.database.faults import is_locked, is_transient, translated

P = ParamSpec("P")
T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

    Step = Callable[Concatenate[Connection, P], T]
    StepOrTransaction = Callable[Concatenate[Connection | Engine, P], T]


ATTEMPTS = 5
_LONGEST_PAUSE = 0.05
_FIRST_POLL, _LONGEST_POLL = 0.005, 0.1
_POLLS_BY_WAIT = 1 / 20
"""The longest pause, as a share of the wait so far. A crowd must leave the CPU to the writer."""
_SHORT_WAIT = 100
"""Milliseconds that count as no wait. In a crowd, some process always has the lock for a moment."""
_BEGIN = "BEGIN IMMEDIATE"
_SEE_EVERY_ROW = text("SET LOCAL row_security = off")
"""After it, PostgreSQL raises an error if a policy hides a row."""


def begin_writing(connection: Connection) -> Connection:
    """
    Take SQLite's write lock before the transaction reads.

    So what the transaction reads stays true until it writes. If another connection holds the lock, this waits
    for at most the connection's busy timeout. On PostgreSQL it does nothing, because rows are locked as they
    are read.
    """
    if connection.dialect.name == "sqlite" and not holds_sqlite_lock(connection):
        raw = _raw(connection)
        (patience,) = raw.execute("PRAGMA busy_timeout").fetchone()
        try:
            # SQLite's own wait soon tries only every 100 ms. A writer in a loop keeps it out for seconds.
            raw.execute("PRAGMA busy_timeout = 0")
            _take_sqlite_lock(connection, patience / 1000)
        finally:
            if not connection.invalidated:  # an interrupt closes it
                raw.execute(f"PRAGMA busy_timeout = {patience}")
    return connection


def holds_sqlite_lock(connection: Connection) -> bool:
    """
    Return whether a SQLite connection has written in its transaction.

    A SELECT alone opens no transaction.
    """
    if connection.dialect.name != "sqlite":
        return False
    return _raw(connection).in_transaction


def write(
    engine: Engine, work: Callable[[Connection], T], *, doing: str, wait: bool = True, filtered: bool = False
) -> T:
    """
    Run *work* in its own transaction, and commit it.

    *work* may decide by the rows that it reads. It is run again after a deadlock, a serialization failure or
    a lost connection, even one that was lost in COMMIT. If an earlier run was committed, *work* must find and
    return its result.

    Args:
        engine: An engine of SQLite or PostgreSQL.
        work: The function to run. It gets the connection, and must not commit.
        doing: The action, for messages.
        wait: Whether to wait for the locks of another transaction. If not, SQLite still waits for 0.1 s.
        filtered: Whether a policy of row-level security may hide rows. See :func:`read`.

    Raises:
        StoreError: The database refused or failed. It may also be a subclass, or MissingTableError.
    """
    isolated = engine.execution_options(isolation_level="READ COMMITTED") if _is_server(engine) else engine

    def attempt() -> T:
        with isolated.connect() as connection:
            if _is_server(engine) and not filtered:
                connection.execute(_SEE_EVERY_ROW)
            if wait:
                return _committed(begin_writing(connection), work)
            return _without_waiting(connection, work)

    return _repeated(attempt, doing)


def read(engine: Engine, work: Callable[[Connection], T], *, doing: str, filtered: bool = False) -> T:
    """
    Run *work*, which only reads, in its own snapshot.

    Args:
        engine: An engine of SQLite or PostgreSQL.
        work: The function to run. It gets the connection.
        doing: The action, for messages.
        filtered: Whether a policy of row-level security may hide rows. An application reads and appends what
            its policies allow. Code that counts or proves must see every row: a hidden row is an error.

    Raises:
        StoreError: The database refused or failed. It may also be a subclass, or MissingTableError.
    """
    isolated = engine.execution_options(isolation_level="REPEATABLE READ") if _is_server(engine) else engine

    def attempt() -> T:
        with isolated.connect() as connection:
            if not _is_server(engine):
                connection.exec_driver_sql("BEGIN")
            elif not filtered:
                connection.execute(_SEE_EVERY_ROW)
            return work(connection)

    return _repeated(attempt, doing)


def reads(doing: str, *, filtered: bool = False) -> Callable[[Step[P, T]], StepOrTransaction[P, T]]:
    """
    Let a function that only reads accept a connection or an engine.

    With a connection, it is one step in the caller's transaction. With an engine, it runs in its own
    snapshot, like :func:`read`.

    Args:
        doing: The action of the function, for messages. It is a format string over the function's arguments,
            such as ``"counting {table.table}"``.
        filtered: As for :func:`read`.
    """
    return _runs(doing, partial(read, filtered=filtered))


def writes(doing: str, *, filtered: bool = False) -> Callable[[Step[P, T]], StepOrTransaction[P, T]]:
    """
    Let a function that writes accept a connection or an engine.

    With a connection, it is one step in the caller's transaction. With an engine, it runs in its own
    transaction, like :func:`write`.

    Args:
        doing: The action of the function, for messages. It is a format string over the function's arguments.
        filtered: As for :func:`write`.
    """
    return _runs(doing, partial(write, filtered=filtered))


def _runs(doing: str, run: Callable[..., T]) -> Callable[[Step[P, T]], StepOrTransaction[P, T]]:
    def decorate(step: Step[P, T]) -> StepOrTransaction[P, T]:
        signature = inspect.signature(step)

        @wraps(step)
        def run_step(where: Connection | Engine, /, *args: P.args, **kwargs: P.kwargs) -> T:
            if isinstance(where, Connection):
                return step(where, *args, **kwargs)
            what = doing.format_map(signature.bind(where, *args, **kwargs).arguments)
            return run(where, lambda connection: step(connection, *args, **kwargs), doing=what)

        return run_step

    return decorate


def check_connection(engine: Engine) -> None:
    """
    Check that a database answers.

    If a SQLite file is missing, it is created. Its folder is not.

    Raises:
        StoreUnavailableError: The database does not answer.
    """
    with translated(f"connecting to {redacted(engine.url)}"), engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def pause(attempt: int) -> None:
    """Wait a random moment before a retry. So two transactions do not conflict again."""
    time.sleep(random.uniform(0, _LONGEST_PAUSE) * attempt)  # noqa: S311 - jitter, not a secret


def _take_sqlite_lock(connection: Connection, patience: float) -> None:
    began = time.monotonic()
    try:
        connection.exec_driver_sql(_BEGIN)
    except DBAPIError as error:
        if not is_locked(error.orig):
            raise
    else:
        return
    while (waited := time.monotonic() - began) < patience:
        # Random, so that two waiters do not always try at the same time.
        longest = min(max(_FIRST_POLL, waited * _POLLS_BY_WAIT), _LONGEST_POLL, patience - waited)
        time.sleep(random.uniform(0, longest))  # noqa: S311 - jitter, not a secret
        try:
            # Not through SQLAlchemy, because its listeners would get hundreds of errors.
            _raw(connection).execute(_BEGIN)
        except sqlite3.Error as error:
            if not is_locked(error):
                break
        else:
            return
    connection.exec_driver_sql(_BEGIN)  # SQLAlchemy raises the error of this last attempt


def _raw(connection: Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.dbapi_connection)


def _repeated(attempt: Callable[[], T], doing: str) -> T:
    try:
        for number in range(1, ATTEMPTS):
            try:
                return attempt()
            except DBAPIError as error:
                if not is_transient(error):
                    raise
            pause(number)
        return attempt()
    except SQLAlchemyError:
        with translated(doing):
            raise


def _committed(connection: Connection, work: Callable[[Connection], T]) -> T:
    result = work(connection)
    try:
        connection.commit()
    except BaseException:
        # SQLAlchemy considers the transaction ended. Without this it would lend the connection again as it
        # is, on SQLite with the write lock.
        connection.rollback()
        raise
    return result


def _without_waiting(connection: Connection, work: Callable[[Connection], T]) -> T:
    if connection.dialect.name != "sqlite":
        # Unlike NOWAIT, this also covers an INSERT that meets another transaction's row of the same key
        # (docs/decisions/0007).
        connection.execute(text("SET LOCAL lock_timeout = 1"))
        return _committed(connection, work)
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {_SHORT_WAIT}")
    try:
        return _committed(begin_writing(connection), work)
    finally:
        connection.rollback()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(patience)}")


def _is_server(engine: Engine) -> bool:
    return engine.dialect.name != "sqlite"

"""
Transactions of several appends and the caller's rows, all or none.

Either the end of a block commits them, or the caller does (docs/decisions/0037).
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import contextmanager
from threading import local
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from eventseal.errors import ConfigurationError, StoreError, StoreUnavailableError
from eventseal.storage.database.engines import database_identity, is_in_memory
from eventseal.storage.database.faults import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection, Engine


Sessions: TypeAlias = "Session | scoped_session[Session]"

_in_thread = local()
"""The open blocks of each thread. A session does not name its block, because it may be replaced inside."""

RUN_AGAIN = "Run the whole transaction again, and decide with the data that it reads then."


class CallerTransaction:
    """
    A transaction to which appends add their items without a commit.

    Args:
        own: The session of the strategies.
        session: The session that has the transaction, which has begun.
    """

    def __init__(self, own: Sessions, session: Session) -> None:
        self._own = own
        self._session = session
        self._begun = session.get_transaction()
        self._task = _current_task()
        self._commit: Callable[[], None] | None = None
        self._connection: Connection | None = None
        self._is_rolled_back = False

    def belongs_to(self, *sessions: Sessions) -> bool:
        """Return whether this is the transaction of one of the sessions."""
        return self._own in sessions or self._session in sessions

    def note_append(self, connection: Connection, commit: Callable[[], None]) -> None:
        """
        Remember an append, whose items prove a commit.

        Args:
            connection: The connection that has the items.
            commit: Commits the session. If the COMMIT is not answered, it looks for the append's items.
        """
        # Items in a savepoint of the caller may be undone, and then prove nothing.
        if self._commit is None and not self._session.in_nested_transaction():
            self._commit = commit
        self._connection = connection

    def roll_back(self) -> None:
        """Roll everything back. The transaction then takes no more items."""
        self._is_rolled_back = True
        self._session.rollback()

    def check_append(self) -> None:
        """
        Check that an append may add its items.

        Raises:
            ConfigurationError: The caller has ended the transaction, or another task of the thread began it.
            StoreUnavailableError: An earlier append has rolled everything back.
        """
        if _current_task() is not self._task:
            raise ConfigurationError(
                "another task of this thread is in a transaction() block",
                remedy="Use no `await` and no `yield` inside the block.",
            )
        self._refuse_rolled_back()
        if self._is_ended():
            raise _ended()

    def check_end(self) -> None:
        """
        Check at the end that the transaction still has the items.

        Raises:
            ConfigurationError: The caller has ended the transaction.
            StoreUnavailableError: An earlier append has rolled everything back.
        """
        self._refuse_rolled_back()
        if self._connection is not None and self._is_ended():
            raise _ended()

    def commit(self) -> None:
        """
        Commit.

        Raises:
            ConfigurationError: The caller has ended the transaction, with items in it.
            StoreError: The transaction was not stored.
        """
        self.check_end()
        if self._is_ended():
            return
        self._session.flush()
        if self._connection is not None:
            _refuse_aborted(self._connection)
        with translated("committing the transaction, all of which was rolled back,"):
            (self._commit or self._session.commit)()

    def _refuse_rolled_back(self) -> None:
        if self._is_rolled_back:
            raise StoreUnavailableError(
                "nothing was stored: an earlier error has rolled back the whole transaction", remedy=RUN_AGAIN
            )

    def _is_ended(self) -> bool:
        return self._session.get_transaction() is not self._begun


def current_transaction(own: Sessions) -> CallerTransaction | None:
    """Return the transaction of this thread's block on a session, if any."""
    for transaction in _open_blocks():
        if transaction.belongs_to(own):
            return transaction
    return None


@contextmanager
def own_transaction(own: Sessions) -> Iterator[Session]:
    """
    Run a block in a new transaction, and commit it.

    Raises:
        ConfigurationError: The session has a transaction already.
    """
    session = _session_of(own)
    _refuse_nested(own, session)
    if session.in_transaction():
        raise ConfigurationError(
            "the session of this thread has an open transaction, which this block would commit",
            remedy="Commit it or roll it back before the block. To add events to it, pass the session: "
            "`with store.transaction(session)`. You then commit it yourself.",
        )
    with session.begin():
        transaction = CallerTransaction(own, session)
        with _open(transaction):
            yield session
            transaction.commit()


@contextmanager
def joined_transaction(own: Sessions, session: Session, record_class: type[Any]) -> Iterator[Session]:
    """
    Let a block use the caller's session. The caller commits it, or rolls it back.

    Args:
        own: The session of the strategies. If it is scoped, all strategies that share it use *session* in
            this thread while the block runs.
        session: The caller's session.
        record_class: The record class. It decides which of the session's databases is used.

    Raises:
        ConfigurationError: The session has another database, does not use transactions, or is in such a block
            already. Or *own* is another session that is not scoped, or has an open transaction.
    """
    usual = _session_of(own)
    _refuse_nested(own, usual, session)
    if session is not usual:
        _refuse_other(own, usual, session, record_class)
    connection = session.connection(bind_arguments={"mapper": record_class})
    if _commits_each_statement(connection.connection.dbapi_connection):
        # Without a transaction, no fence would be held until the items are stored.
        raise ConfigurationError(
            "the session commits each statement, so events and rows would not be stored together",
            remedy="Remove isolation_level='AUTOCOMMIT' from the session's engine or connection.",
        )
    transaction = CallerTransaction(own, session)
    before = {key: session.info.get(key) for key in usual.info}
    session.info.update(usual.info)
    if isinstance(own, scoped_session):
        own.registry.set(session)
    try:
        with _open(transaction):
            yield session
            transaction.check_end()
    finally:
        if isinstance(own, scoped_session):
            own.registry.set(usual)
        for key, value in before.items():
            if value is None:
                session.info.pop(key, None)
            else:
                session.info[key] = value


@contextmanager
def _open(transaction: CallerTransaction) -> Iterator[None]:
    blocks = _open_blocks()
    blocks.append(transaction)
    try:
        yield
    finally:
        blocks.remove(transaction)


def _open_blocks() -> list[CallerTransaction]:
    if not hasattr(_in_thread, "blocks"):
        _in_thread.blocks = []
    blocks: list[CallerTransaction] = _in_thread.blocks
    return blocks


def _current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def _session_of(own: Sessions) -> Session:
    return own() if isinstance(own, scoped_session) else own


def _commits_each_statement(driver: Any) -> bool:
    if isinstance(driver, sqlite3.Connection) and driver.isolation_level is None:
        return not driver.in_transaction  # a program may begin its transactions itself
    return getattr(driver, "autocommit", None) is True


def _ended() -> ConfigurationError:
    return ConfigurationError(
        "the transaction of the block was ended inside it. If it was committed, the rows before that are "
        "stored. Otherwise nothing is stored",
        remedy="Call no commit(), rollback(), close() or remove() inside the block. To undo a part, use a "
        "block `with session.begin_nested()`.",
    )


def _refuse_nested(*sessions: Sessions) -> None:
    if any(transaction.belongs_to(*sessions) for transaction in _open_blocks()):
        raise ConfigurationError(
            "this thread is in a transaction() block already, and blocks cannot be nested",
            remedy="Use one block. All event stores of the datastore write to its transaction.",
        )


def _refuse_other(own: Sessions, usual: Session, session: Session, record_class: type[Any]) -> None:
    if not isinstance(own, scoped_session):
        raise ConfigurationError(
            "the strategy has its own session, and cannot use another one",
            remedy="Create the strategy with datastore.session, or with the session that you pass.",
        )
    if usual.in_transaction():
        raise ConfigurationError(
            "the datastore's session of this thread has an open transaction, which the block would not see",
            remedy="Commit it or roll it back before the block.",
        )
    ours, theirs = (each.get_bind(mapper=record_class).engine for each in (usual, session))
    if not _is_same_database(ours, theirs):
        raise ConfigurationError(
            f"the session is connected to another database than {record_class.__table__}",
            remedy="Pass a session of the database that holds the events.",
        )


def _is_same_database(ours: Engine, theirs: Engine) -> bool:
    if ours is theirs:
        return True
    if is_in_memory(ours.url) or ours.dialect.name != theirs.dialect.name:
        return False
    if ours.dialect.name == "sqlite":
        return database_identity(ours.url) == database_identity(theirs.url)
    # The host may differ: one of them may connect by another name, or through a pooler.
    return ours.url.database == theirs.url.database


def _refuse_aborted(connection: Connection) -> None:
    """Refuse to commit a transaction that PostgreSQL has aborted. Its COMMIT would be a silent rollback."""
    if connection.dialect.name != "postgresql":
        return
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError:
        raise StoreError(
            "nothing was stored: a statement in the transaction had failed, and PostgreSQL then ignores the "
            "rest of the transaction",
            remedy="Let the error of a failed statement leave the block. If it may fail, run it in a block "
            "`with session.begin_nested()`.",
        ) from None

"""
Transactions of several appends and the caller's rows, all or none.

Either the end of a block commits them, or the caller does (docs/decisions/0037).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session

from eventseal.errors import ConfigurationError, StoreError, StoreUnavailableError
from eventseal.storage.database.engines import database_identity, is_in_memory
from eventseal.storage.database.faults import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Connection, Engine


TRANSACTION = "eventseal.transaction"
"""The key of the caller's transaction in a session's ``info``."""

RUN_AGAIN = "Run the whole transaction again, and decide with the data that it reads then."


class CallerTransaction:
    """
    A transaction to which appends add their items without a commit.

    Args:
        session: The session that has the transaction.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._commit: Callable[[], None] | None = None
        self._connection: Connection | None = None
        self._is_rolled_back = False

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

    def refuse_rolled_back(self) -> None:
        """Raise an error if an earlier append has rolled everything back."""
        if self._is_rolled_back:
            raise StoreUnavailableError(
                "nothing was stored: an earlier error has rolled back the whole transaction", remedy=RUN_AGAIN
            )

    def commit(self) -> None:
        """Commit, or raise an error if the transaction was not stored."""
        self.refuse_rolled_back()
        if not self._session.in_transaction():  # the caller has ended it
            return
        self._session.flush()
        if self._connection is not None:
            _refuse_aborted(self._connection)
        with translated("committing the transaction, all of which was rolled back,"):
            (self._commit or self._session.commit)()


@contextmanager
def own_transaction(session: Session) -> Iterator[Session]:
    """
    Run a block in a new transaction of *session*, and commit it.

    Raises:
        ConfigurationError: The session has a transaction already.
    """
    _refuse_nested(session)
    if session.in_transaction():
        raise ConfigurationError(
            "the session of this thread has an open transaction, which this block would commit",
            remedy="Commit it or roll it back before the block. To add events to it, pass the session: "
            "`with store.transaction(session)`. You then commit it yourself.",
        )
    with session.begin():
        transaction = session.info[TRANSACTION] = CallerTransaction(session)
        try:
            yield session
            transaction.commit()
        finally:
            del session.info[TRANSACTION]


@contextmanager
def joined_transaction(
    own: Session | scoped_session[Session], session: Session, record_class: type[Any]
) -> Iterator[Session]:
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
    _refuse_nested(session)
    usual = own() if isinstance(own, scoped_session) else own
    _refuse_nested(usual)
    if session is not usual:
        _refuse_other(own, usual, session, record_class)
    connection = session.connection(bind_arguments={"mapper": record_class})
    if getattr(connection.connection.dbapi_connection, "autocommit", None) is True:
        # Without a transaction, no fence would be held until the items are stored.
        raise ConfigurationError(
            "the session commits each statement, so events and rows would not be stored together",
            remedy="Remove isolation_level='AUTOCOMMIT' from the session's engine or connection.",
        )
    transaction = CallerTransaction(session)
    added = {**usual.info, TRANSACTION: transaction}
    before = dict(session.info)
    session.info.update(added)
    if isinstance(own, scoped_session):
        own.registry.set(session)
    try:
        yield session
        transaction.refuse_rolled_back()
    finally:
        if isinstance(own, scoped_session):
            own.registry.set(usual)
        session.info.clear()
        session.info.update(before)


def _refuse_nested(session: Session) -> None:
    if TRANSACTION in session.info:
        raise ConfigurationError(
            "this thread is in a transaction() block already, and blocks cannot be nested",
            remedy="Use one block. All event stores of the datastore write to its transaction.",
        )


def _refuse_other(
    own: Session | scoped_session[Session], usual: Session, session: Session, record_class: type[Any]
) -> None:
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

"""
Appends of items: fenced, and committed in the same call.

A block `transaction()` commits several appends together. After an unanswered COMMIT, an append looks for its
items on a fresh connection.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import nullcontext
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, SQLAlchemyError

from eventseal.errors import (
    ConfigurationError,
    KeyClosedError,
    SequencedItemConflictError,
    SerializationError,
    StoreUnavailableError,
    UnknownFormatError,
)
from eventseal.storage.database.faults import (
    is_outcome_known,
    is_transient,
    sqlstate,
    store_error,
    translated,
)
from eventseal.storage.database.layout import quoted_name
from eventseal.storage.database.rows import insert_unless_there
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.database.transactions import ATTEMPTS, begin_writing, pause, write
from eventseal.storage.items.fences import CLOSED, fence_states, open_fences, unreadable_fences
from eventseal.storage.items.inserts import ItemInserts
from eventseal.suites.envelope import parse_envelope
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.orm import Session

    from eventseal.storage.items.caller_transactions import CallerTransaction
    from eventseal.storage.items.columns import ItemColumns
    from eventseal.storage.items.inserts import Row, RowsByKey

logger = logging.getLogger(__name__)

MOST_REMEMBERED = 100_000
"""Keys whose fence is known to exist. If there are more, all are forgotten and looked up again."""
_UNIQUE_VIOLATION = "23505"
_SQLITE_UNIQUE = "UNIQUE constraint failed: "
_COLUMNS_OF_INDEX = text(
    "SELECT attname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " JOIN pg_attribute ON attrelid = indexrelid"
    " WHERE relname = :name AND coalesce(pg_partition_root(indrelid), indrelid) = to_regclass(:table)"
)


class ItemAppends:
    """
    Appends to one table.

    Args:
        columns: The table's columns as the item class sees them.
        record_class: The record class. It decides which of the session's databases is used.
    """

    def __init__(self, columns: ItemColumns, record_class: type[Any]) -> None:
        self._columns = columns
        self._record_class = record_class
        self._inserts = ItemInserts(columns)
        self._row_of = attrgetter(*(name for name in columns.fields if name != KEY_ID))
        self._fenced: set[UUID] = set()

    def append(self, session: Session, items: Sequence[Any], transaction: CallerTransaction | None) -> None:
        """
        Write *items* and commit the session, or roll all of it back. See the strategy's ``append``.

        In the caller's transaction, do not commit.
        """
        if transaction is not None:
            self._append_to(transaction, session, items)
            return
        owned = not session.in_transaction()
        with translated(f"appending to {self._columns.table}"):
            try:
                batch = self._rows_by_key(items)
                self._in_transaction(session, batch, owned=owned)
            except KeyClosedError:
                if owned:  # it holds only our rows, and on SQLite the lock that new keys need
                    session.rollback()
                raise
            except IntegrityError as error:
                session.rollback()
                if violates_item_key(error, self._engine(session), self._columns):
                    raise self._conflict(items, "the whole transaction was rolled back") from None
                raise
            except BaseException:
                session.rollback()
                raise

    def _append_to(self, transaction: CallerTransaction, session: Session, items: Sequence[Any]) -> None:
        """Write *items* in a savepoint, without a commit. After a conflict, only the savepoint is undone."""
        transaction.check_append()
        batch = self._rows_by_key(items)
        try:
            self._write(session, batch, owned=False)
        except IntegrityError as error:
            if violates_item_key(error, self._engine(session), self._columns):
                undone = "only this append was rolled back, and the transaction is still open"
                raise self._conflict(items, undone) from None
            raise store_error(error, f"appending to {self._columns.table}") from None
        except SQLAlchemyError:
            transaction.roll_back()
            doing = f"appending to {self._columns.table} (the whole transaction was rolled back)"
            with translated(doing):
                raise
        connection = session.connection(bind_arguments={"mapper": self._record_class})
        transaction.note_append(connection, partial(self._commit, session, batch))

    def _in_transaction(self, session: Session, batch: RowsByKey, *, owned: bool) -> None:
        """Write and commit. Retry if the transaction is all ours and only conflicted with another."""
        for number in range(1, ATTEMPTS):
            try:
                return self._once(session, batch, owned=owned)
            except DBAPIError as error:
                if not (owned and is_transient(error)):
                    raise
                session.rollback()
            pause(number)
        return self._once(session, batch, owned=owned)

    def _once(self, session: Session, batch: RowsByKey, *, owned: bool) -> None:
        self._write(session, batch, owned=owned)
        session.flush()
        self._commit(session, batch)

    def _write(self, session: Session, batch: RowsByKey, *, owned: bool) -> None:
        key_ids = {key_id for key_id in batch if key_id is not None}
        if not self._inserted(session, batch, key_ids, savepoint=not owned):
            # Remembered, but missing: the tables were created again, or an older backup was restored.
            self._fenced -= key_ids
            if owned:
                session.rollback()
            if not self._inserted(session, batch, key_ids, savepoint=not owned):
                # The snapshot is older than the fence, so only another transaction can see the fence
                # (docs/decisions/0007).
                raise StoreUnavailableError(
                    f"the transaction that appends to {self._columns.table} is older than a key's fence",
                    remedy="Roll back and run the transaction again, or use READ COMMITTED.",
                )
        self._remember(key_ids)

    def _inserted(self, session: Session, batch: RowsByKey, key_ids: set[UUID], *, savepoint: bool) -> bool:
        """Insert the batch. Return false, with nothing of it left, if a fence was missing."""
        unknown = key_ids - self._fenced
        on_postgresql = self._engine(session).dialect.name == "postgresql"
        if unknown and on_postgresql:
            # On a separate connection, or whoever waits for this row would wait for the caller's transaction.
            step = partial(open_fences, key_ids=unknown)
            write(self._engine(session), step, doing="creating the fences of keys", filtered=True)
        connection = begin_writing(session.connection(bind_arguments={"mapper": self._record_class}))
        if unknown and not on_postgresql:
            open_fences(connection, unknown)
        with connection.begin_nested() if savepoint else nullcontext() as nested:
            if self._inserts.execute(connection, batch):
                return True
            if nested is not None:
                nested.rollback()
        self._refuse_closed(connection, key_ids)
        return False

    def _refuse_closed(self, connection: Connection, key_ids: set[UUID]) -> None:
        closed = sorted(
            key_id for key_id, state in fence_states(connection, key_ids).items() if state == CLOSED
        )
        if closed:
            named = ", ".join(map(str, closed))
            raise KeyClosedError(
                f"nothing was appended to {self._columns.table}. Keys were retired meanwhile: {named}",
                key_ids=tuple(closed),
            )
        for edited in unreadable_fences(connection, key_ids).values():
            raise edited

    def _commit(self, session: Session, batch: RowsByKey) -> None:
        try:
            session.commit()
        except Exception as error:
            _leave(session)
            known = isinstance(error, SQLAlchemyError) and is_outcome_known(error)
            if known or not was_committed(self._engine(session), self._columns, self._inserts, batch):
                raise
            logger.warning(
                "an append to %s was committed, but the answer to its COMMIT was %s",
                self._columns.table,
                type(error).__name__,
            )

    def _remember(self, key_ids: set[UUID]) -> None:
        if len(self._fenced) + len(key_ids) > MOST_REMEMBERED:
            self._fenced.clear()
        self._fenced |= key_ids

    def _engine(self, session: Session) -> Engine:
        return session.get_bind(mapper=self._record_class).engine

    def _rows_by_key(self, items: Sequence[Any]) -> dict[UUID | None, list[Row]]:
        batch: dict[UUID | None, list[Row]] = {}
        for item in items:
            try:
                row = self._row_of(item)
            except AttributeError as error:
                raise ConfigurationError(
                    f"a {type(item).__name__} has no {error.name}, which {self._columns.table} needs",
                    remedy="Pass the same item class to the mapper and the strategy.",
                ) from None
            batch.setdefault(self._key_of(item, row), []).append(row)
        return batch

    def _key_of(self, item: Any, row: Row) -> UUID | None:
        data = row[3]
        if not isinstance(data, bytes):
            raise SerializationError(f"an item's data is bytes, not a {type(data).__name__}")
        # An item class may lack the field. Then the envelope's header names the key.
        key_id = getattr(item, KEY_ID) if hasattr(item, KEY_ID) else _key_in_header(data)
        if key_id is not None and not isinstance(key_id, UUID):
            raise SerializationError(f"an item's key_id is a UUID or None, not a {type(key_id).__name__}")
        if key_id is not None and self._columns.key_id is None:
            raise ConfigurationError(
                f"{self._record_class.__qualname__} has no column key_id, but its items are sealed",
                remedy="Add `key_id: Mapped[UUID | None] = mapped_column(BinaryUUID())` to it.",
            )
        return key_id

    def _conflict(self, items: Sequence[Any], undone: str) -> SequencedItemConflictError:
        sequence_id, position = self._columns.fields[:2]
        places = [f"{getattr(item, position)} of sequence {getattr(item, sequence_id)}" for item in items[:1]]
        others = f", or that of {counted(len(items) - 1, 'other item')}," if len(items) > 1 else ""
        return SequencedItemConflictError(
            f"position {places[0] if places else 'of a row of the caller'}{others} "
            f"is taken in {self._columns.table}: {undone}"
        )


def _leave(session: Session) -> None:
    try:
        session.rollback()
    except InvalidRequestError:  # a hook raised after the COMMIT, so there is nothing left to roll back
        session.close()


def _key_in_header(data: bytes) -> UUID | None:
    try:
        return parse_envelope(data).key_id
    except UnknownFormatError:
        return None


def violates_item_key(error: IntegrityError, engine: Engine, columns: ItemColumns) -> bool:
    """
    Return whether a refused row's place was taken.

    No other constraint counts, of this table or of another.

    Args:
        error: The error of the INSERT, the flush or the COMMIT. Its transaction was rolled back.
        engine: The engine of the items' database. PostgreSQL reports the constraint's columns through it.
        columns: The columns of the items' table.
    """
    wanted = {column.name for column in columns.place}
    if isinstance(error.orig, sqlite3.Error):
        _, found, names = str(error.orig).partition(_SQLITE_UNIQUE)
        return bool(found) and set(names.split(", ")) == {f"{columns.table.name}.{name}" for name in wanted}
    diagnosis = getattr(error.orig, "diag", None)
    if sqlstate(error) != _UNIQUE_VIOLATION or diagnosis is None:
        return False
    table = quoted_name(engine, columns.table.name, columns.table.schema)
    with engine.connect() as connection:
        rows = connection.execute(_COLUMNS_OF_INDEX, {"name": diagnosis.constraint_name, "table": table})
        return set(rows.scalars()) == wanted


def was_committed(engine: Engine, columns: ItemColumns, inserts: ItemInserts, batch: RowsByKey) -> bool:
    """
    Return whether the batch is stored exactly as it was sent.

    A fresh connection looks for it. Equal bytes of a sealed item prove it, because its IV is random. Those of
    a plaintext item only show that an equal item is there.

    Args:
        engine: The engine of the items' database.
        columns: The columns of the items' table.
        inserts: The object that knows the order of a row's values.
        batch: The rows that were sent.

    Raises:
        StoreUnavailableError: The database does not answer, so the outcome stays unknown.
    """
    rows = list(chain.from_iterable(batch.values()))
    if not rows:
        raise _unknown(columns, "it had no items to look for")
    try:
        with translated("checking whether the append was committed"), engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                _wait_for_the_other(connection, inserts, rows[0])
            return all(_is_stored(connection, columns, row) for row in rows)
    except StoreUnavailableError as error:
        raise _unknown(columns, str(error)) from error


def _unknown(columns: ItemColumns, reason: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"it is unknown whether an append to {columns.table} was committed: {reason}",
        remedy="Read the sequence before you append again. Either all items are there, or none of them.",
    )


def _wait_for_the_other(connection: Connection, inserts: ItemInserts, row: Row) -> None:
    """Wait until the transaction with the unanswered COMMIT has ended. The server may still run it."""
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    values = {column.name: value for column, value in zip(inserts.columns, row, strict=True)}
    # Meets the other transaction's row in the unique index. Without one, our own row must go before we look.
    connection.execute(insert_unless_there(connection, inserts.table).values(values))
    connection.rollback()


def _is_stored(connection: Connection, columns: ItemColumns, row: Row) -> bool:
    sequence_id, position, _, data = row[:4]
    query = select(columns.data).where(columns.sequence_id == sequence_id, columns.position == position)
    found: Any = connection.execute(query).scalar()
    return found is not None and bytes(found) == data

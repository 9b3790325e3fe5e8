"""Wrappings of stored keys: adding, verifying, deleting, counting and overwriting them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, func, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from eventseal.keys.records import KekUse
from eventseal.keys.states import KeyState
from eventseal.storage.database.column_types import DatabaseClock
from eventseal.storage.database.layout import quoted_name
from eventseal.storage.database.rows import UNREADABLE, chunks, insert_unless_there, read_rows
from eventseal.storage.database.transactions import reads
from eventseal.storage.keys.kek_fences import hold_branches, refuse_closed
from eventseal.storage.keys.rows import wrapping_row
from eventseal.storage.keys.tables import UNKNOWN_VERSION, encryption_keys, key_wrappings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection, Engine

    from eventseal.kms.adapter import WrappedKey


PATIENCE = 2000
"""Milliseconds to wait for other users of the database."""

_MAINTAIN_SINCE = 170000
"""
PostgreSQL 17 lets users other than the owner vacuum a table.

They need the privilege MAINTAIN.
"""

_AGAIN = (
    "Run the command again when nobody else uses the database, or clear the bytes as the page "
    "'Make old backups useless' describes."
)
_columns = key_wrappings.c

_IS_THE_ROW = and_(
    _columns.key_id == bindparam("its_key_id"),
    _columns.kek_uri == bindparam("its_kek_uri"),
    _columns.kek_version == bindparam("its_kek_version"),
)
_MARK = (
    update(key_wrappings)
    .where(_IS_THE_ROW, _columns.wrapped == bindparam("its_wrapped"), _columns.verified_at.is_(None))
    .values(verified_at=DatabaseClock())
)
_DROP = delete(key_wrappings).where(_IS_THE_ROW, _columns.wrapped == bindparam("its_wrapped"))
_GIVE_WAY = delete(key_wrappings).where(
    _IS_THE_ROW, _columns.wrapped != bindparam("its_wrapped"), _columns.verified_at.is_(None)
)


def add_wrappings(connection: Connection, add: Mapping[UUID, WrappedKey], *, verified: bool) -> set[UUID]:
    """
    Add a wrapping to each key that has no such wrapping.

    Such a wrapping has the same KEK and version. Destroyed keys are left out.

    Args:
        connection: A connection in the caller's transaction.
        add: The wrappings by key id.
        verified: Whether the wrappings were unwrapped. If so, they replace wrappings that never were.

    Returns:
        The ids of the keys that now have exactly this wrapping.

    Raises:
        KeyDestroyedError: A wrapping is under a branch key that was destroyed meanwhile, or under a KEK or
            KEK version that was closed.
    """
    held: set[UUID] = set()
    for chunk in chunks(sorted(add)):
        living = {key_id: add[key_id] for key_id in _locked_living(connection, chunk)}
        if verified:
            _execute_for_each(connection, _GIVE_WAY, living)
        hold_branches(connection, living.values())
        if living:
            statement = insert_unless_there(connection, key_wrappings).values(created_at=DatabaseClock())
            connection.execute(
                statement, [wrapping_row(key_id, wrapped) for key_id, wrapped in living.items()]
            )
            refuse_closed(connection, living.values())
        if verified:
            _execute_for_each(connection, _MARK, living)
        stored = select(_columns.key_id, _columns.wrapped).where(_columns.key_id.in_(chunk))
        held.update(
            row.key_id for row in connection.execute(stored) if row.wrapped == add[row.key_id].ciphertext
        )
    return held


def mark_verified(connection: Connection, opened: Mapping[UUID, WrappedKey]) -> None:
    """
    Store the time at which wrappings were verified.

    Wrappings that are verified already, or were replaced, are left out.
    """
    _execute_for_each(connection, _MARK, dict(sorted(opened.items())))


def drop_wrappings(
    connection: Connection, drop: Mapping[UUID, Collection[WrappedKey]], keep: Mapping[UUID, WrappedKey]
) -> set[UUID]:
    """
    Delete wrappings of keys that have a better one.

    The wrapping of the key in *keep* must be stored, byte for byte.

    Args:
        connection: A connection in the caller's transaction.
        drop: The wrappings to delete, by key id.
        keep: The better wrapping by key id. The caller has unwrapped it, because a row alone proves nothing.

    Returns:
        The ids of the keys that have the better wrapping.
    """
    better: set[UUID] = set()
    for chunk in chunks(sorted(drop)):
        # Read after the keys are locked, so that nobody else deletes the better wrapping meanwhile
        # (docs/decisions/0009).
        locked = set(_locked_living(connection, chunk))
        query = select(key_wrappings).where(_columns.key_id.in_(chunk))
        for row in connection.execute(query).all():
            kept = keep[row.key_id]
            wanted = (kept.kek_uri, kept.kek_version or UNKNOWN_VERSION, kept.ciphertext)
            if row.key_id in locked and (row.kek_uri, row.kek_version, row.wrapped) == wanted:
                better.add(row.key_id)
        gone = [
            _parameters_of(key_id, wrapped)
            for key_id in chunk
            for wrapped in drop[key_id]
            if key_id in better and wrapped != keep[key_id]
        ]
        if gone:
            connection.execute(_DROP, gone)
    return better


@reads("counting wrappings", filtered=True)
def count_uses(connection: Connection, application: str) -> list[KekUse]:
    """
    Count an application's wrappings by KEK and version.

    Edited wrappings are counted too. A destroyed key has none.
    """
    query = (
        select(
            _columns.kek_uri,
            _columns.kek_version,
            func.count().label("wrappings"),
            func.count(_columns.verified_at).label("verified"),
        )
        .join_from(key_wrappings, encryption_keys)
        .where(encryption_keys.c.application == application)
        .group_by(_columns.kek_uri, _columns.kek_version)
    )
    uses = [
        KekUse(
            kek_uri=row.get("kek_uri", UNREADABLE),
            kek_version=row.get("kek_version", UNREADABLE) or None,  # UNKNOWN_VERSION is empty
            wrappings=row["wrappings"],
            verified=row["verified"],
        )
        for row in (found.values for found in read_rows(connection, query))
    ]
    return sorted(uses, key=lambda use: (use.kek_uri, use.kek_version or ""))


@reads("counting keys", filtered=True)
def count_wrapped_keys(connection: Connection, application: str) -> int:
    """Count an application's keys that have a wrapping."""
    query = (
        select(func.count(_columns.key_id.distinct()))
        .join_from(key_wrappings, encryption_keys)
        .where(encryption_keys.c.application == application)
    )
    return connection.execute(query).scalar_one()


def _locked_living(connection: Connection, key_ids: Sequence[UUID]) -> Sequence[UUID]:
    # Locked, so that a key that is being destroyed has lost its wrappings before they are read.
    living = (
        select(encryption_keys.c.key_id)
        .where(encryption_keys.c.key_id.in_(key_ids), encryption_keys.c.state != KeyState.DESTROYED)
        .order_by(encryption_keys.c.key_id)
        .with_for_update()
    )
    return connection.execute(living).scalars().all()


def _execute_for_each(connection: Connection, statement: Any, wrappings: Mapping[UUID, WrappedKey]) -> None:
    if wrappings:
        connection.execute(
            statement, [_parameters_of(key_id, wrapped) for key_id, wrapped in wrappings.items()]
        )


def _parameters_of(key_id: UUID, wrapped: WrappedKey) -> dict[str, Any]:
    return {f"its_{name}": value for name, value in wrapping_row(key_id, wrapped).items()}


def overwrite_deleted(engine: Engine) -> str:
    """
    Overwrite the bytes of deleted wrappings, as far as possible.

    Call it after the transaction that deleted them. On SQLite, content is zeroed when it is deleted. The
    write-ahead log still has it, so the log is emptied into the file. On PostgreSQL the table is vacuumed.
    Copies elsewhere stay: archives of the log, replicas, backups, and blocks that the disk has set aside.

    Args:
        engine: The engine of the key tables. The calling thread has no transaction open there.

    Returns:
        The reason why bytes may be left in the files. It is empty if there is none.
    """
    try:
        return _empty_log(engine) if engine.dialect.name == "sqlite" else _vacuum(engine)
    except SQLAlchemyError as error:
        return f"the database refused to clear deleted wrappings: {type(error).__name__}. {_AGAIN}"


def _empty_log(engine: Engine) -> str:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {PATIENCE}")
        try:
            is_busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(patience)}")
    return f"the SQLite file is in use, so its log could not be emptied. {_AGAIN}" if is_busy else ""


def _vacuum(engine: Engine) -> str:
    with engine.begin() as connection:
        named = quoted_name(connection, key_wrappings.name)
        if not _may_vacuum(connection, named):
            return (
                f"the database user does not own {named}, so the table was not vacuumed. "
                f"Leave it to autovacuum, or run VACUUM {named} as its owner."
            )
        # VACUUM runs in no transaction, and a pooler would pass on a timeout of the session. So whether
        # others let us is tried before, with the lock that VACUUM takes.
        connection.execute(text(f"SET LOCAL lock_timeout = {PATIENCE}"))
        connection.execute(text(f"LOCK TABLE {named} IN SHARE UPDATE EXCLUSIVE MODE"))
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"VACUUM {named}"))
    return ""


def _may_vacuum(connection: Connection, table: str) -> bool:
    """Return whether VACUUM of a table has any effect. For users other than the owner it only warns."""
    owns = "pg_has_role(relowner, 'USAGE')"
    (version,) = connection.execute(text("SELECT current_setting('server_version_num')::int")).one()
    if version >= _MAINTAIN_SINCE:
        owns += " OR has_table_privilege(oid, 'MAINTAIN')"
    query = f"SELECT {owns} FROM pg_class WHERE oid = to_regclass(:table)"  # noqa: S608 - constants
    return bool(connection.execute(text(query), {"table": table}).scalar())

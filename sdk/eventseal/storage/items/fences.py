"""Fences: what keeps items from being committed, or moved, under a key that is being destroyed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select, text
from sqlalchemy.dialects import postgresql, sqlite

from eventseal.errors import IntegrityError
from eventseal.keys.states import KeyState
from eventseal.storage.database.column_types import BinaryUUID
from eventseal.storage.database.edited_rows import UNREADABLE, as_sql, deletion, read_rows
from eventseal.storage.database.engines import chunks
from eventseal.storage.keys.tables import encryption_keys, key_fences

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection


OPEN, CLOSED = _STATES = "open", "closed"
PATIENCE = 2
"""Seconds for which the closing of a fence waits for transactions that wrote under the key."""

HOLDS_FENCES = "eventseal.holds_fences"
"""A setting of PostgreSQL: ``on`` in a transaction that holds the fences of all that it changes, so that the
triggers need not take them again for each row."""

_CHUNK = 500


def open_fences(connection: Connection, key_ids: Collection[UUID]) -> None:
    """
    Make an open fence for each key that has none; a closed one stays closed.

    On PostgreSQL the caller commits before it writes items: other transactions wait for the row's insert.
    """
    rows = [{"key_id": key_id, "state": OPEN} for key_id in sorted(key_ids)]
    if rows:
        connection.execute(_insert(connection).on_conflict_do_nothing(), rows)


def close_fence(connection: Connection, key_id: UUID) -> None:
    """
    Close a key's fence, for good: no item is written under the key in this database once this has committed.

    Waits for every transaction that wrote under it (on PostgreSQL as long as ``lock_timeout`` allows). Count
    what is left in a later statement of the same transaction, and roll back if anything is.

    Args:
        connection: In a READ COMMITTED transaction; on SQLite one that holds the write lock.
        key_id: Also one that never had a fence here.
    """
    closing = _insert(connection).on_conflict_do_update(index_elements=["key_id"], set_={"state": CLOSED})
    connection.execute(closing, {"key_id": key_id, "state": CLOSED})


def close_fences(connection: Connection, key_ids: Collection[UUID]) -> None:
    """
    Close the fences of several keys as :func:`close_fence` does, in order of id, without waiting for long.

    Args:
        connection: As there. On SQLite it holds the write lock already, so that there is nothing to wait for.
        key_ids: Also of keys that never had a fence here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
    for key_id in sorted(key_ids):
        close_fence(connection, key_id)


def fence_states(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, str]:
    """Give ``open`` or ``closed`` for each key, or ``unreadable``; one without a fence is left out."""
    ids, states = sorted(key_ids), {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        rows = read_rows(connection, select(key_fences).where(key_fences.c.key_id.in_(chunk)))
        # One that was edited is not open, so nothing is written under its key.
        states.update({row.values["key_id"]: row.values.get("state", UNREADABLE) for row in rows})
    return states


def unreadable_fences(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, IntegrityError]:
    """Say of each fence that was edited so that it is neither open nor closed what to do."""
    edited = [key_id for key_id, state in fence_states(connection, key_ids).items() if state not in _STATES]
    return {
        key_id: IntegrityError(
            f"the fence of key {key_id} in {key_fences.name} was edited: its state cannot be read",
            remedy=f"Find out who changed {key_fences.name}. If `eventseal keys` shows the key as active "
            "or deactivated, delete the fence, so that the next append makes another: "
            f"{deletion(key_fences, f'key_id = {as_sql(connection, key_id)}')}",
            key_id=key_id,
        )
        for key_id in edited
    }


def _insert(connection: Connection) -> postgresql.Insert | sqlite.Insert:
    on_postgresql = connection.dialect.name == "postgresql"
    return postgresql.insert(key_fences) if on_postgresql else sqlite.insert(key_fences)


_KEY_IDS = bindparam("key_ids", expanding=True, type_=BinaryUUID())
# Built once: a batch runs both.
_OPEN_FENCES = (
    select(key_fences.c.key_id)
    .where(key_fences.c.key_id.in_(_KEY_IDS), key_fences.c.state == OPEN)
    .order_by(key_fences.c.key_id)
    .with_for_update(read=True)
)
_SAY_THAT_THEY_ARE_HELD = text(f"SELECT set_config('{HOLDS_FENCES}', 'on', true)")
_LIVE_KEYS = (
    select(encryption_keys.c.key_id)
    .where(encryption_keys.c.key_id.in_(_KEY_IDS), encryption_keys.c.state != KeyState.DESTROYED)
    .order_by(encryption_keys.c.key_id)
    .with_for_update(read=True)
)


def share_fences(connection: Connection, key_ids: Collection[UUID]) -> set[UUID]:
    """
    Share the open fences of keys until the transaction ends: none of them closes before.

    Args:
        connection: In a transaction; on SQLite one that holds the write lock, which is the fence.
        key_ids: Under which items are about to be written; locked in order.

    Returns:
        The keys whose fence is not open, or not there.
    """
    missing = _missing(connection, _OPEN_FENCES, key_ids)
    if not missing and connection.dialect.name == "postgresql":
        connection.execute(_SAY_THAT_THEY_ARE_HELD)
    return missing


def share_live_keys(connection: Connection, key_ids: Collection[UUID]) -> set[UUID]:
    """
    Share the rows of keys until the transaction ends: nobody destroys one of them before.

    Args:
        connection: To a database that holds the keys too; as late in the transaction as can be.
        key_ids: Locked in order.

    Returns:
        The keys that are destroyed, or not there.
    """
    return _missing(connection, _LIVE_KEYS, key_ids)


def _missing(connection: Connection, shared: Select[Any], key_ids: Collection[UUID]) -> set[UUID]:
    missing = set(key_ids)
    for chunk in chunks(sorted(missing)):
        missing.difference_update(connection.execute(shared, {"key_ids": chunk}).scalars())
    return missing

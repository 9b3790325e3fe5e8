"""Wrappings that are added to stored keys: one step inside the caller's transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from eventseal.keys.states import KeyState
from eventseal.storage.key_rows import chunks, insert_unless_there
from eventseal.storage.key_tables import UNKNOWN_VERSION, encryption_keys, key_wrappings
from eventseal.storage.types import DatabaseClock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.kms.adapter import WrappedKey


def add_wrappings(connection: Connection, add: Mapping[UUID, WrappedKey]) -> set[UUID]:
    """
    Add a wrapping to each key that lives and has none of that KEK and version.

    Args:
        connection: In the caller's transaction.
        add: By the key's id.

    Returns:
        The ids of the keys that have this very wrapping now.
    """
    held: set[UUID] = set()
    for chunk in chunks(sorted(add)):
        # Locked, so that a key that is being destroyed has lost its wrappings before it is looked at.
        living = (
            select(encryption_keys.c.key_id)
            .where(encryption_keys.c.key_id.in_(chunk), encryption_keys.c.state != KeyState.DESTROYED)
            .order_by(encryption_keys.c.key_id)
            .with_for_update()
        )
        values = [
            {
                "key_id": key_id,
                "kek_uri": add[key_id].kek_uri,
                "kek_version": add[key_id].kek_version or UNKNOWN_VERSION,
                "wrapped": add[key_id].ciphertext,
            }
            for key_id in connection.execute(living).scalars().all()
        ]
        if values:
            statement = insert_unless_there(connection, key_wrappings).values(created_at=DatabaseClock())
            connection.execute(statement, values)
        stored = select(key_wrappings.c.key_id, key_wrappings.c.wrapped).where(
            key_wrappings.c.key_id.in_(chunk)
        )
        held.update(
            row.key_id for row in connection.execute(stored) if row.wrapped == add[row.key_id].ciphertext
        )
    return held

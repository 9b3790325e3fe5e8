"""What a transaction that swaps items holds on to, so that no key goes while its items are on their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from eventseal.keys.states import KeyState
from eventseal.storage.fences import OPEN
from eventseal.storage.key_rows import chunks
from eventseal.storage.key_tables import encryption_keys, key_fences

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from sqlalchemy.engine import Connection


def share_fences(connection: Connection, key_ids: Collection[UUID]) -> set[UUID]:
    """
    Share the open fences of keys until the transaction ends: none of them closes before.

    Args:
        connection: In a transaction; on SQLite one that holds the write lock, which is the fence.
        key_ids: Under which items are about to be written; locked in order.

    Returns:
        The keys whose fence is not open, or not there.
    """
    missing = set(key_ids)
    for chunk in chunks(sorted(missing)):
        fences = (
            select(key_fences.c.key_id)
            .where(key_fences.c.key_id.in_(chunk), key_fences.c.state == OPEN)
            .order_by(key_fences.c.key_id)
            .with_for_update(read=True)
        )
        missing.difference_update(connection.execute(fences).scalars())
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
    gone = set(key_ids)
    for chunk in chunks(sorted(gone)):
        live = (
            select(encryption_keys.c.key_id)
            .where(encryption_keys.c.key_id.in_(chunk), encryption_keys.c.state != KeyState.DESTROYED)
            .order_by(encryption_keys.c.key_id)
            .with_for_update(read=True)
        )
        gone.difference_update(connection.execute(live).scalars())
    return gone

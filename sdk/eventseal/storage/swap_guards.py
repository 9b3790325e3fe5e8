"""What a transaction that swaps items holds on to, so that no key goes while its items are on their way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select, text

from eventseal.keys.states import KeyState
from eventseal.storage.engines import chunks
from eventseal.storage.fences import HOLDS_FENCES, OPEN
from eventseal.storage.key_tables import encryption_keys, key_fences
from eventseal.storage.types import BinaryUUID

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection


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

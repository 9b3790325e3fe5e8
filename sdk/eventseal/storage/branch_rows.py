"""Branch keys that have wrapped others: held while a wrapping is stored, so that none of them ends then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from eventseal.errors import KeyDestroyedError
from eventseal.keys.branch_wrapping import named_branch
from eventseal.keys.states import KeyState
from eventseal.storage.key_tables import encryption_keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import Connection

    from eventseal.kms.adapter import WrappedKey


def hold_branches(connection: Connection, wrappings: Iterable[WrappedKey]) -> None:
    """
    Share the rows of the branch keys that *wrappings* name until the transaction ends.

    Who destroys a branch key locks its row first and counts what it wraps then: so a wrapping is either
    counted, or refused here. On SQLite the write lock does it.

    Args:
        connection: In the caller's transaction, which is about to insert *wrappings*.
        wrappings: Under branch keys or KEKs.

    Raises:
        KeyDestroyedError: A branch key was destroyed since the caller had it. Nothing may be stored.
    """
    branch_ids = {named_branch(wrapped) for wrapped in wrappings} - {None}
    if not branch_ids:
        return
    ids, state = encryption_keys.c.key_id, encryption_keys.c.state
    # KEY SHARE: it stands in the way of the FOR UPDATE before every change of a state, and of nothing else.
    held = (
        select(ids, state).where(ids.in_(branch_ids)).order_by(ids).with_for_update(read=True, key_share=True)
    )
    for row in connection.execute(held):
        if row.state == KeyState.DESTROYED:
            raise KeyDestroyedError(
                f"branch key {row.key_id} was destroyed before what it has wrapped was stored",
                key_id=row.key_id,
                remedy="Try again: the branch has another key by now.",
            )

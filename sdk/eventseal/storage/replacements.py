"""Active keys that give their scopes' slots to others: one step in the caller's transaction, all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.storage.key_queries import locked_mark, locked_records, slot_holders
from eventseal.storage.key_rows import insert_records, insert_wrappings, move_records
from eventseal.storage.revocation_rows import store_next_mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from eventseal.keys.records import KeyRecord, NextMark, Replacement


def replace_active_keys(
    connection: Connection, replacements: Sequence[Replacement], *, next_mark: NextMark
) -> dict[str, KeyRecord]:
    """
    Close the active keys of scopes and make others; see ``KeyStore.replace_all_active``.

    Run again after an attempt whose COMMIT was not answered, it finds the new keys in their slots.

    Args:
        connection: In a READ COMMITTED transaction of its own; on SQLite one that holds the write lock.
        replacements: At least one.
        next_mark: Gives the mark to store.

    Returns:
        By scope the record that holds the slot.

    Raises:
        KeyDestroyedError: A wrapping is under a branch key that was destroyed meanwhile.
    """
    old, new = [each.old for each in replacements], [each.new for each in replacements]
    application, purpose = old[0].application, old[0].purpose
    mark = locked_mark(connection, application)
    stored = locked_records(connection, [record.key_id for record in old])
    if all(_is_active(each, stored.get(each.old.key_id)) for each in replacements):
        following = store_next_mark(connection, mark, next_mark)
        closed = [each.closed for each in replacements]
        move_records(connection, closed, change=following.counter, new_state=True)
        insert_records(connection, new, change=following.counter)
        insert_wrappings(connection, new)
    scopes = [record.scope for record in old]
    return slot_holders(connection, application=application, purpose=purpose, scopes=scopes)


def _is_active(replacement: Replacement, stored: KeyRecord | None) -> bool:
    """Whether the old key is as it was read, and holds its slot."""
    return (
        stored is not None
        and not stored.unreadable
        and stored.active_scope == replacement.old.scope
        and stored.row_version == replacement.closed.row_version - 1
    )

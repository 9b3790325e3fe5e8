"""Keys that change states together, and active keys that give way to new ones: all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError as ConstraintError

from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_uri
from eventseal.storage.database.engines import chunks
from eventseal.storage.keys.queries import (
    locked_mark,
    locked_records,
    others_live,
    records_in_order,
    slot_holders,
    store_next_mark,
)
from eventseal.storage.keys.rows import insert_records, insert_tombstones, insert_wrappings, move_records
from eventseal.storage.keys.tables import encryption_keys, key_wrappings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.keys.records import KeyRecord, NextMark, Replacement


def change_states(
    connection: Connection,
    *,
    application: str,
    records: Sequence[KeyRecord],
    tombstones: Sequence[KeyRecord],
    next_mark: NextMark,
    whole_scope: str | None,
    left_out: Collection[UUID],
    again: bool,
) -> list[KeyRecord]:
    """
    Move keys to the states that *records* carry, and insert *tombstones*; see ``KeyStore.set_states``.

    Args:
        connection: In a READ COMMITTED transaction of its own; on SQLite one that holds the write lock.
        application: Whose keys.
        records: Each with a version one above the stored one.
        tombstones: New rows that were never keys.
        next_mark: Gives the mark to store.
        whole_scope: The scope of which no live key may be left out.
        left_out: Keys that may be, whatever their rows say; they lose their slots.
        again: Whether an earlier attempt may have done it all, although its COMMIT was not answered.

    Returns:
        The records as stored; an empty list, with the transaction rolled back, if something was in the way.
    """
    wanted = [*records, *tombstones]
    key_ids = [record.key_id for record in wanted]
    mark = locked_mark(connection, application)
    stored = locked_records(connection, key_ids)
    if again and all(_is_same(record, stored.get(record.key_id)) for record in wanted):
        return records_in_order(connection, key_ids)
    if not all(_follows(record, stored.get(record.key_id)) for record in records):
        return []
    if whole_scope is not None and others_live(connection, application, whole_scope, [*key_ids, *left_out]):
        return []
    if _wraps_others(connection, records):
        return []
    following = store_next_mark(connection, mark, next_mark)
    for chunk in chunks(left_out):
        ids = encryption_keys.c.key_id
        connection.execute(update(encryption_keys).where(ids.in_(chunk)).values(active_scope=None))
    try:
        _write(connection, records, tombstones, stored, change=following.counter)
    except ConstraintError:  # another key has taken a slot that one of them was to keep
        connection.rollback()
        return []
    return records_in_order(connection, key_ids)


def _write(
    connection: Connection,
    records: Sequence[KeyRecord],
    tombstones: Sequence[KeyRecord],
    stored: Mapping[UUID, KeyRecord],
    *,
    change: int,
) -> None:
    for record in sorted(records, key=lambda record: record.key_id):
        new_state = stored[record.key_id].state is not record.state
        move_records(connection, [record], change=change, new_state=new_state)
    insert_tombstones(connection, tombstones, change=change)


def _wraps_others(connection: Connection, records: Sequence[KeyRecord]) -> bool:
    """Whether a branch key that is to end is needed; who wraps another key waits for its locked row."""
    uris = [
        branch_uri(record.key_id)
        for record in records
        if record.purpose is KeyPurpose.BRANCH and record.state is KeyState.DESTROYED
    ]
    return any(
        connection.execute(
            select(key_wrappings.c.key_id).where(key_wrappings.c.kek_uri.in_(chunk)).limit(1)
        ).first()
        for chunk in chunks(uris)
    )


def _follows(record: KeyRecord, stored: KeyRecord | None) -> bool:
    return stored is not None and not stored.unreadable and stored.row_version == record.row_version - 1


def _is_same(record: KeyRecord, stored: KeyRecord | None) -> bool:
    return stored is not None and (stored.row_version, stored.seal) == (record.row_version, record.seal)


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

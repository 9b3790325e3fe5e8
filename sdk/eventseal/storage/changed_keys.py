"""What a refresh reads of the key tables: one small row, and only if it moved, what changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from eventseal.keys.records import Changes, Revocation
from eventseal.keys.states import KeyState
from eventseal.storage.key_rows import chunks, load_records, mark_of, read_mark
from eventseal.storage.key_tables import encryption_keys, key_changes
from eventseal.storage.types import DatabaseClock, HoldsUUID

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from sqlalchemy.engine import Connection


def changes_since(
    connection: Connection, *, application: str, since: int, key_ids: Collection[UUID]
) -> Changes | None:
    """
    Read an application's mark and, unless its counter is *since*, what changed after that.

    Args:
        connection: In one snapshot.
        application: Whose keys.
        since: A counter; below 0 everything that is revoked is listed.
        key_ids: Whose records are given if they changed.

    Returns:
        ``None`` if the application has no mark, hence no store key.
    """
    query = select(key_changes, DatabaseClock().label("now")).where(key_changes.c.application == application)
    row = read_mark(connection, application, query)
    if row is None:
        return None
    found = Changes(mark=mark_of(row), refresh_interval=row["refresh_interval"], now=row["now"])
    if row["counter"] == since:
        return found
    revoked, retired = _ended(connection, application, since)
    moved = encryption_keys.c.application == application, encryption_keys.c.change > since
    records = [
        record
        for chunk in chunks(sorted(key_ids))
        for record in load_records(connection, *moved, encryption_keys.c.key_id.in_(chunk), wrappings=False)
    ]
    return replace(found, records=tuple(records), revoked=revoked, retired=retired)


def _ended(
    connection: Connection, application: str, since: int
) -> tuple[tuple[Revocation, ...], tuple[UUID, ...]]:
    """List the keys that were revoked after a counter, and those that were retired."""
    # Compared in the database: nothing need be readable, whatever somebody made of the row. One whose id is
    # none is no key's; if it was a revoked key's, the mark counts one more than are found.
    is_compromised = (encryption_keys.c.state == KeyState.COMPROMISED).label("is_compromised")
    is_shredded = (encryption_keys.c.destroyed_by == "shredded").label("is_shredded")
    wanted = [is_compromised, is_shredded]
    if since >= 0:
        wanted.append((encryption_keys.c.destroyed_by == "retired").label("is_retired"))
    query = (
        select(encryption_keys.c.key_id, is_compromised, is_shredded)
        .where(encryption_keys.c.application == application, encryption_keys.c.change > since, or_(*wanted))
        .where(HoldsUUID(encryption_keys.c.key_id))
    )
    revoked: list[Revocation] = []
    retired: list[UUID] = []
    for row in connection.execute(query):
        if row.is_shredded or row.is_compromised:
            revoked.append(Revocation(row.key_id, "shredded" if row.is_shredded else "compromised"))
        else:
            retired.append(row.key_id)
    return tuple(revoked), tuple(retired)

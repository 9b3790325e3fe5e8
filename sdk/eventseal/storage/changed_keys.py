"""What a refresh reads of the key tables: one small row, and only if it moved, what changed."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from eventseal.keys.records import Changes
from eventseal.keys.revocation_tree import ROOT
from eventseal.storage.engines import chunks
from eventseal.storage.key_rows import load_records, mark_of, read_mark
from eventseal.storage.key_tables import encryption_keys, key_changes
from eventseal.storage.revocation_rows import load_nodes
from eventseal.storage.types import DatabaseClock

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection


def changes_since(
    connection: Connection, *, application: str, since: int, key_ids: Collection[UUID]
) -> Changes | None:
    """
    Read an application's mark and, unless its counter is *since*, what changed after that.

    Args:
        connection: In one snapshot.
        application: Whose keys.
        since: A counter.
        key_ids: Whose records are given if they changed.

    Returns:
        ``None`` if the application has no mark, hence no store key.
    """
    row = read_mark(connection, application, _mark_of(application))
    if row is None:
        return None
    found = Changes(mark=mark_of(row), refresh_interval=row["refresh_interval"], now=row["now"])
    if row["counter"] == since:
        return found
    moved = encryption_keys.c.application == application, encryption_keys.c.change > since
    records = [
        record
        for chunk in chunks(sorted(key_ids))
        for record in load_records(connection, *moved, encryption_keys.c.key_id.in_(chunk), wrappings=False)
    ]
    # Tables of the release before the tree may lack its table.
    nodes = load_nodes(connection, application, [ROOT]) if found.mark.has_tree else {}
    return replace(found, records=tuple(records), root=nodes.get(ROOT, b""))


@lru_cache(maxsize=16)  # every refresh asks it
def _mark_of(application: str) -> Select[Any]:
    return select(key_changes, DatabaseClock().label("now")).where(key_changes.c.application == application)

"""What the registered tables hold under some keys, counted by the index on their ids."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from eventseal.storage.item_rows import described
from eventseal.storage.key_rows import chunks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.storage.registry import SealedTable


def count_under(
    connection: Connection, tables: Iterable[SealedTable], key_ids: Collection[UUID]
) -> dict[UUID, Counter[str]]:
    """
    Count the items under each of some keys.

    Args:
        connection: To the database that the tables are in. What each statement sees, it counts: in a READ
            COMMITTED transaction also what was committed since the one before.
        tables: From the registry.
        key_ids: Any number.

    Returns:
        By key its items in each table; a key without any is left out.
    """
    found: dict[UUID, Counter[str]] = {}
    for table in tables:
        key_id = described(table).key_id
        for chunk in chunks(sorted(key_ids)):
            query = select(key_id, func.count()).where(key_id.in_(chunk)).group_by(key_id)
            for named, items in connection.execute(query):
                found.setdefault(named, Counter())[table.table] += items
    return found

"""Damaged rows that give way to what a backup has in their place: one step in the caller's transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import update

from eventseal.storage.item_rows import described
from eventseal.storage.stored_rows import digest_of, stored_row
from eventseal.storage.table_setup import KEY_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Place
    from eventseal.storage.item_rows import ItemRow
    from eventseal.storage.sealed_table import SealedTable


class RowChange(NamedTuple):
    """
    A row that is to be replaced.

    Attributes:
        place: Its sequence id and position.
        old: Its digest as it was read; see ``StoredRow.digest``.
        new: What is to be in its place.
    """

    place: Place
    old: str
    new: ItemRow

    def new_digest(self, table: SealedTable) -> str:
        """Give the digest that the row is to have."""
        return digest_of(self.new.topic, self.new.data, self.new.key_id if table.has_key_ids else None)


def replace_rows(connection: Connection, table: SealedTable, changes: Sequence[RowChange]) -> list[int]:
    """
    Replace rows as a whole, each only if it is still exactly as it was read.

    Args:
        connection: In a transaction that holds the fences of the new keys; on SQLite also the write lock.
        table: From the registry.
        changes: At places that differ.

    Returns:
        The numbers of those that hold the new row now.
    """
    columns = described(table)
    replaced: list[int] = []
    for number, change in enumerate(changes):
        # Compared here and not in SQL: an edit may have put anything into the columns.
        found = stored_row(connection, table, change.place, lock=True)
        digest = None if found is None else found.digest
        if digest == change.old:
            values: dict[Any, Any] = {"topic": change.new.topic, "data": change.new.data}
            if table.has_key_ids:
                values[KEY_ID] = change.new.key_id
            at = [column == value for column, value in zip(columns.place, change.place, strict=True)]
            connection.execute(update(columns.table).where(*at).values(values))
        # It is there already if an earlier COMMIT of this transaction was not answered.
        if digest in {change.old, change.new_digest(table)}:
            replaced.append(number)
    return replaced

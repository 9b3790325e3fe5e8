"""Compromised keys: what was under them when they were marked, so that what comes later shows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import IntegrityError
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.fences import close_fences
from eventseal.storage.marks import count_below, count_replaced, load_marks, record_mark
from eventseal.storage.transactions import read, write

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.marks import Mark
    from eventseal.storage.registry import SealedTable


class Miscount(NamedTuple):
    """Items under a compromised key that came or went below its mark, behind the application's back."""

    table: str
    key_id: UUID
    expected: int
    found: int

    def error(self) -> IntegrityError:
        """Say what it may mean."""
        return IntegrityError(
            f"{self.found} items of {self.table} are left of those that were under key {self.key_id} when "
            f"it was marked as compromised; there should be {self.expected}",
            remedy="More: somebody wrote below the mark. Fewer: items were deleted, or written again by a "
            "restore or an UPDATE. Compare with a backup, and mark the key anew: "
            f"eventseal rotate --compromised --key {self.key_id}",
            key_id=self.key_id,
        )


def record_marks(store: SealedStore, key_ids: Collection[UUID]) -> None:
    """
    Close the fences of compromised keys, and record what each registered table holds under them.

    Nothing is appended under the keys any more: who still holds one seals again under the new key. Marks that
    are there are recorded anew: after a restore, or an UPDATE of the rows, call this once more.

    Args:
        store: Its items' database has the fences and the marks.
        key_ids: Compromised data keys.

    Raises:
        ConfigurationError: A registered table is not there, or no table is.
        StoreUnavailableError: A transaction that writes under a key goes on for more than 2 seconds.
        StoreError: The database refused or failed.
    """
    tables = registered_tables(store.datastore, store.cipher.application)
    for key_id in sorted(key_ids):
        mark = partial(_mark, key_id=key_id, tables=tables)
        write(store.datastore.engine, mark, doing=f"marking what is under the compromised key {key_id}")


def record_missing_marks(
    store: SealedStore, key_ids: Collection[UUID], tables: Sequence[SealedTable]
) -> None:
    """
    Record the marks of compromised keys in those of *tables* where they have none; others stay as they are.

    Raises:
        StoreError: As :func:`record_marks` does.
    """
    marks = {table.table: _marks_of(store, table.table) for table in tables}
    for key_id in sorted(key_ids):
        missing = [table for table in tables if key_id not in marks[table.table]]
        if missing:
            mark = partial(_mark, key_id=key_id, tables=missing)
            write(store.datastore.engine, mark, doing=f"marking what is under the compromised key {key_id}")


def miscounts(store: SealedStore, tables: Sequence[SealedTable]) -> list[Miscount]:
    """
    Compare what is left of what was there when keys were marked with what was replaced since.

    Args:
        store: Its items' database has the marks.
        tables: From the registry.

    Raises:
        StoreError: The database refused or failed.
    """

    def compare(connection: Connection, table: SealedTable) -> list[Miscount]:
        replaced = count_replaced(connection, table.table)
        found: list[Miscount] = []
        for key_id, mark in sorted(load_marks(connection, table.table).items()):
            expected = mark.items - (replaced.get(key_id, 0) - mark.replaced_before)
            there = count_below(connection, table, mark)
            if there != expected:
                found.append(Miscount(table.table, key_id, expected, there))
        return found

    engine = store.datastore.engine
    return [
        miscount
        for table in tables
        for miscount in read(engine, partial(compare, table=table), doing=f"counting {table.table}")
    ]


def _marks_of(store: SealedStore, table: str) -> dict[UUID, Mark]:
    return read(
        store.datastore.engine,
        partial(load_marks, table=table),
        doing="reading the marks of compromised keys",
    )


def _mark(connection: Connection, key_id: UUID, tables: Sequence[SealedTable]) -> None:
    close_fences(connection, [key_id])
    for table in tables:
        record_mark(connection, table, key_id)

"""Compromised keys: what was under them when they were marked, so that what comes later shows."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import IntegrityError, StoreUnavailableError
from eventseal.rotation.fence_closing import held_fence, is_lock_timeout
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.transactions import read, write
from eventseal.storage.items.fences import close_fences
from eventseal.storage.items.key_counts import count_under
from eventseal.storage.jobs.compromised_items import count_below, load_compromised_items
from eventseal.storage.jobs.compromised_items import record_compromised_items as mark_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.compromised_items import CompromisedItems


_BATCH_SIZE = 100
_BATCH_ITEMS = 50_000


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


def late_item(mark: CompromisedItems) -> IntegrityError:
    """Say what an item may be that was not there, as it is, when its key was marked as compromised."""
    if mark.unreadable:
        return IntegrityError(
            f"the mark of key {mark.key_id} for {mark.table} in compromised_marks was edited: "
            f"its {', '.join(mark.unreadable)} cannot be read, so nobody knows which items are forged",
            remedy="Find out who changed it. If you trust the items that are there now, mark the key anew: "
            f"eventseal rotate --compromised --key {mark.key_id}",
            key_id=mark.key_id,
        )
    return IntegrityError(
        f"suspected forgery: the item was written after its key {mark.key_id} was marked as compromised",
        remedy="Find out who wrote the row, and delete it; if a restore or an UPDATE wrote it, mark the key "
        f"anew: eventseal rotate --compromised --key {mark.key_id}",
        key_id=mark.key_id,
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
        StoreUnavailableError: A transaction that writes under a key goes on for more than 2 seconds; the
            others are marked.
        StoreError: The database refused or failed.
    """
    for error in record_free_marks(store, key_ids).values():
        raise error


def record_free_marks(store: SealedStore, key_ids: Collection[UUID]) -> dict[UUID, StoreUnavailableError]:
    """
    Do what :func:`record_marks` does, but go on where somebody holds the fence of a key.

    Returns:
        The keys that were not marked, with the error.

    Raises:
        ConfigurationError: As there.
        StoreError: As there.
    """
    return _mark_free(store, key_ids, registered_tables(store.datastore, store.cipher.application))


def record_missing_marks(
    store: SealedStore, key_ids: Collection[UUID], tables: Sequence[SealedTable]
) -> None:
    """
    Record the marks of compromised keys in those of *tables* where they have none; others stay as they are.

    Raises:
        StoreError: As :func:`record_marks` does.
    """
    for table in tables:
        marks = read(
            store.datastore.engine,
            partial(load_compromised_items, table=table.table),
            doing="reading the marks of compromised keys",
        )
        for error in _mark_free(store, set(key_ids) - marks.keys(), [table]).values():
            raise error


def miscounts(store: SealedStore, tables: Sequence[SealedTable]) -> list[Miscount]:
    """
    Compare what is left of what was there when keys were marked with what was replaced since.

    Args:
        store: Its items' database has the marks.
        tables: From the registry.

    Raises:
        StoreError: The database refused or failed.
    """
    engine = store.datastore.engine
    return [
        Miscount(table.table, key_id, counts.expected, counts.found)
        for table in tables
        for key_id, counts in sorted(
            read(engine, partial(count_below, table=table), doing=f"counting {table.table}").items()
        )
        if counts.expected != counts.found
    ]


def _mark_free(
    store: SealedStore, key_ids: Collection[UUID], tables: Sequence[SealedTable]
) -> dict[UUID, StoreUnavailableError]:
    held: dict[UUID, StoreUnavailableError] = {}
    for some in _batches(store, sorted(key_ids), tables):
        if not _is_marked(store, some, tables, held):
            for key_id in some:  # find out whose fence it is
                _is_marked(store, [key_id], tables, held)
    return held


def _batches(
    store: SealedStore, key_ids: Sequence[UUID], tables: Sequence[SealedTable]
) -> Iterator[list[UUID]]:
    """Cut keys into batches that are marked in a moment: on SQLite nobody else writes meanwhile."""
    for chunk in chunks(key_ids):
        count = partial(count_under, tables=tables, key_ids=chunk)
        counts = read(store.datastore.engine, count, doing="counting the items of keys")
        batch: list[UUID] = []
        items = 0
        for key_id in chunk:
            its_items = counts.get(key_id, Counter()).total()
            if batch and (len(batch) == _BATCH_SIZE or items + its_items > _BATCH_ITEMS):
                yield batch
                batch, items = [], 0
            batch.append(key_id)
            items += its_items
        yield batch


def _is_marked(
    store: SealedStore,
    key_ids: Sequence[UUID],
    tables: Sequence[SealedTable],
    held: dict[UUID, StoreUnavailableError],
) -> bool:
    """Mark keys in one transaction; note a single one whose fence somebody holds."""
    others = f" and {len(key_ids) - 1} more" * (len(key_ids) > 1)

    def mark(connection: Connection) -> None:
        close_fences(connection, key_ids)
        for table in tables:
            mark_table(connection, table, key_ids)

    try:
        write(
            store.datastore.engine,
            mark,
            doing=f"marking what is under the compromised key {key_ids[0]}{others}",
        )
    except StoreUnavailableError as error:
        if not is_lock_timeout(error):
            raise
        if len(key_ids) == 1:
            held[key_ids[0]] = held_fence(key_ids[0], error)
        return False
    return True

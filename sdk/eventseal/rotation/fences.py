"""Close the fences of keys, and count or record their items."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import DBAPIError

from eventseal.errors import IntegrityError, StoreUnavailableError
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.database.faults import sqlstate
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.transactions import write
from eventseal.storage.items.fences import PATIENCE, close_fences
from eventseal.storage.items.key_counts import count_needed, count_under
from eventseal.storage.jobs.compromised_items import (
    count_below,
    load_compromised_items,
    record_compromised_items,
)
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection, Engine

    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.compromised_items import CompromisedItems

    Excused = Callable[[Connection, Collection[UUID]], Mapping[UUID, Counter[str]]]

_LOCK_NOT_AVAILABLE = "55P03"


@dataclass(frozen=True, slots=True)
class ClosedFences:
    """
    The result of closing fences.

    Attributes:
        closed: The keys that nothing can be written under any more, with their items by table.
        needed: The keys that have items. Their fences stayed as they were.
        held: The keys whose fence another transaction held for too long, with the error.
    """

    closed: dict[UUID, Counter[str]] = field(default_factory=dict)
    needed: dict[UUID, Counter[str]] = field(default_factory=dict)
    held: dict[UUID, StoreUnavailableError] = field(default_factory=dict)


class _StillNeeded(Exception):  # noqa: N818 - rolls back the transaction, and its caller catches it
    def __init__(self, items: Mapping[UUID, Counter[str]]) -> None:
        super().__init__()
        self.items = items


def close_and_count(
    engine: Engine,
    tables: Sequence[SealedTable],
    key_ids: Collection[UUID],
    *,
    even_if_needed: bool,
    excused: Excused | None = None,
) -> ClosedFences:
    """
    Close the fences of keys, then count the keys' items.

    One transaction does both. It waits for every transaction that wrote under the keys.

    Args:
        engine: The engine of the items' database.
        tables: Every table that may hold items under the keys.
        key_ids: The keys, at most about a hundred, because their fences are held together.
        even_if_needed: Whether to close the fence of a key that has items.
        excused: Counts, in the same transaction, the items for which no key is kept.

    Raises:
        StoreError: The database refused or failed. If another transaction holds a lock, this is not raised:
            see ``held``.
    """
    result = ClosedFences()

    def close(some: Sequence[UUID]) -> None:
        while pending := [key_id for key_id in some if key_id not in result.needed]:
            work = partial(
                _close, key_ids=pending, tables=tables, even_if_needed=even_if_needed, excused=excused
            )
            try:
                items = write(engine, work, doing=f"closing the fence of key {_named(pending)}")
            except _StillNeeded as needed:  # rolled back, then done without these (docs/decisions/0010)
                result.needed.update(needed.items)
            else:
                result.closed.update({key_id: items.get(key_id, Counter()) for key_id in pending})
                return

    result.held.update(_each_if_held(sorted(key_ids), close))
    return result


def _close(
    connection: Connection,
    key_ids: Sequence[UUID],
    tables: Sequence[SealedTable],
    *,
    even_if_needed: bool,
    excused: Excused | None,
) -> dict[UUID, Counter[str]]:
    close_fences(connection, key_ids)
    # A new statement has a new snapshot, which shows what the closing waited for (docs/decisions/0020).
    if even_if_needed:
        return count_under(connection, tables, key_ids)
    items = count_needed(connection, tables, key_ids)
    if items and excused is not None:
        items = without(items, excused(connection, list(items)))
    if items:
        raise _StillNeeded(items)
    return {}


def without(
    items: Mapping[UUID, Counter[str]], excused: Mapping[UUID, Counter[str]]
) -> dict[UUID, Counter[str]]:
    """Subtract counts by key and table. Drop keys with no items left."""
    left = {key_id: counts - excused.get(key_id, Counter()) for key_id, counts in items.items()}
    return {key_id: counts for key_id, counts in left.items() if counts}


def _each_if_held(
    key_ids: Sequence[UUID], work: Callable[[Sequence[UUID]], None]
) -> dict[UUID, StoreUnavailableError]:
    """
    Do *work* with all keys. If a fence is held too long, do each alone.

    Return the keys whose fence another transaction held for too long.
    """
    try:
        work(key_ids)
    except StoreUnavailableError as error:
        cause = error.__cause__
        if not isinstance(cause, DBAPIError) or sqlstate(cause) != _LOCK_NOT_AVAILABLE:
            raise
        if len(key_ids) == 1:
            return {key_ids[0]: _held_fence(key_ids[0], error)}
        return {held: why for key_id in key_ids for held, why in _each_if_held([key_id], work).items()}
    return {}


def _held_fence(key_id: UUID, error: StoreUnavailableError) -> StoreUnavailableError:
    """Return an error for a key whose fence was held too long."""
    held = StoreUnavailableError(
        f"a transaction that wrote under key {key_id} is still open after {PATIENCE} s",
        remedy="Run the command again after the transaction has ended. On PostgreSQL, pg_stat_activity "
        "lists open transactions.",
        key_id=key_id,
    )
    held.__cause__ = error
    return held


def _named(key_ids: Sequence[UUID]) -> str:
    return f"{key_ids[0]}" + (f" and {len(key_ids) - 1} more" * (len(key_ids) > 1))


_BATCH_SIZE = 100
_BATCH_ITEMS = 50_000


class Miscount(NamedTuple):
    """
    Items under a compromised key that appeared or disappeared below its mark.

    EventSeal did not write or delete them.
    """

    table: str
    key_id: UUID
    expected: int
    found: int

    def error(self) -> IntegrityError:
        """Return an error that says what this may mean."""
        return IntegrityError(
            f"{self.table} holds {counted(self.found, 'item')} of those that were under key {self.key_id} "
            f"when it was marked as compromised. It should hold {self.expected:,}",
            remedy="More items mean that somebody wrote below the mark. Fewer mean that items were deleted, "
            "or written again by a restore or an UPDATE. Compare with a backup. Then mark the key again: "
            f"eventseal rotate --compromised --key {self.key_id}",
            key_id=self.key_id,
        )


def late_item(mark: CompromisedItems) -> IntegrityError:
    """Return an error for an item written after its key's mark."""
    if mark.unreadable:
        return IntegrityError(
            f"the mark of key {mark.key_id} for {mark.table} in eventseal_compromised_marks was edited: "
            f"its {', '.join(mark.unreadable)} cannot be read, so forged items cannot be identified",
            remedy="Find out who changed it. If you trust the current items, mark the key again: "
            f"eventseal rotate --compromised --key {mark.key_id}",
            key_id=mark.key_id,
        )
    return IntegrityError(
        f"suspected forgery: the item was written after its key {mark.key_id} was marked as compromised",
        remedy="Find out who wrote the row, and delete it. If a restore or an UPDATE wrote it, mark the key "
        f"again: eventseal rotate --compromised --key {mark.key_id}",
        key_id=mark.key_id,
    )


def record_compromised(
    store: SealedStore, key_ids: Collection[UUID], tables: Sequence[SealedTable] | None = None
) -> dict[UUID, StoreUnavailableError]:
    """
    Close the fences of compromised keys, and record the items under them.

    Nothing can be added under the keys any more. A process that still holds one encrypts again under the new
    key. Existing marks are recorded again, so call this once more after a restore or an UPDATE of the rows.

    Args:
        store: The store whose items' database has the fences and the marks.
        key_ids: Compromised data keys.
        tables: Registered tables. ``None``: all.

    Returns:
        The keys that were not marked, each with its error: a transaction that writes under the key is open
        for more than 2 seconds.

    Raises:
        ConfigurationError: A registered table does not exist, or no table does.
        StoreError: The database refused or failed.
    """
    if tables is None:
        tables = registered_tables(store.datastore, store.cipher.application)
    engine = store.datastore.engine

    def mark(some: Sequence[UUID]) -> None:
        def work(connection: Connection) -> None:
            close_fences(connection, some)
            for table in tables:
                record_compromised_items(connection, table, some)

        write(engine, work, doing=f"marking the items under the compromised key {_named(some)}")

    held: dict[UUID, StoreUnavailableError] = {}
    for some in _batches(engine, sorted(key_ids), tables):
        held |= _each_if_held(some, mark)
    return held


def record_missing_compromised(
    store: SealedStore, key_ids: Collection[UUID], tables: Sequence[SealedTable]
) -> None:
    """
    Record the items of *tables* under compromised keys, unless recorded.

    Raises:
        StoreUnavailableError: A transaction holds the fence of a key. The other keys are marked.
        StoreError: The database refused or failed.
    """
    for table in tables:
        marks = load_compromised_items(store.datastore.engine, table.table)
        for error in record_compromised(store, set(key_ids) - marks.keys(), [table]).values():
            raise error


def miscounts(store: SealedStore, tables: Sequence[SealedTable]) -> list[Miscount]:
    """
    Find keys whose items below the mark do not add up.

    Their number must be that of the items at the time of the mark, without those replaced since.

    Args:
        store: The store whose items' database has the marks.
        tables: Registered tables.

    Raises:
        StoreError: The database refused or failed.
    """
    return [
        Miscount(table.table, key_id, counts.expected, counts.found)
        for table in tables
        for key_id, counts in sorted(count_below(store.datastore.engine, table).items())
        if counts.expected != counts.found
    ]


def _batches(engine: Engine, key_ids: Sequence[UUID], tables: Sequence[SealedTable]) -> Iterator[list[UUID]]:
    """
    Cut keys into small batches.

    While a batch is marked, nothing else can write to SQLite (docs/decisions/0012).
    """
    for chunk in chunks(key_ids):
        counts = count_under(engine, tables, chunk)
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

"""A batch of a re-encryption: read, opened and sealed outside of any transaction, swapped in one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.cipher.resealing import Resealed
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsError,
    StoreError,
    StoreUnavailableError,
)
from eventseal.rotation.results import MAX_FAILURES
from eventseal.rotation.sources import Standing
from eventseal.storage import jobs
from eventseal.storage.fences import open_fences
from eventseal.storage.item_swaps import Selection, Swap, place_from_json, place_to_json
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.storage.marks import Replaced, add_replaced, load_marks
from eventseal.storage.swap_guards import share_fences, share_live_keys
from eventseal.storage.swapping import item_swaps
from eventseal.storage.transactions import read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.cipher.resealing import Outcome
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.rotation.sources import KeyStandings
    from eventseal.storage.item_swaps import StoredRow
    from eventseal.storage.jobs import Shard
    from eventseal.storage.registry import SealedTable

COMPROMISED_PHASE, OTHERS_PHASE = 0, 1
ATTEMPTS = 8
"""How often a batch is sealed anew because keys changed meanwhile."""


class ShardLostError(Exception):
    """Another worker took the range, since this one was silent for too long."""


class _KeysMovedError(Exception):
    """A key that the batch used was closed or destroyed meanwhile; nothing of it was written."""


@dataclass(slots=True)
class _Batch:
    """What is to be done with the rows of a page."""

    swaps: list[Swap]
    failures: list[dict[str, Any]]
    counts: Counter[str]


class TableMover:
    """
    Moves the items of one table, a page at a time.

    Args:
        store: Its cipher opens and seals.
        table: From the registry.
        standings: Tell which rows are meant where a query cannot name all keys.
    """

    def __init__(self, store: SealedStore, table: SealedTable, standings: KeyStandings) -> None:
        self._store = store
        self._engine = store.datastore.engine
        self._table = table
        self._standings = standings
        self._swaps = item_swaps(self._engine, table)
        self._marks = read(
            self._engine,
            partial(load_marks, table=table.table),
            doing="reading the marks of compromised keys",
        )
        self._fenced: set[UUID] = set()
        self._skipped_keys: set[UUID] = set()

    def page(self, shard: Shard, limit: int, also: Callable[[Connection], None]) -> list[StoredRow]:
        """
        Read the next rows of a range; only an empty page says that it is at its end.

        Args:
            shard: Its cursor says where.
            limit: Rows at most.
            also: Reads something else in the same transaction.
        """

        def look(connection: Connection) -> list[StoredRow]:
            also(connection)
            return self._swaps.page(
                connection,
                selection_from_json(shard.selection),
                after=None if shard.cursor is None else place_from_json(shard.cursor),
                upto=None if shard.upto is None else place_from_json(shard.upto),
                limit=limit,
                written=shard.phase == COMPROMISED_PHASE,
            )

        return read(self._engine, look, doing=f"reading {self._table.table}")

    def move(self, shard: Shard, page: Sequence[StoredRow], worker: str) -> Shard:
        """
        Seal the rows of a page again, and swap those that are still as they were read.

        Args:
            shard: To which the page belongs.
            page: At least one row.
            worker: That holds the range.

        Returns:
            The range behind the page, as it is stored.

        Raises:
            ShardLostError: Another worker holds the range; nothing was written.
            KmsError: The KMS refused or failed.
            StoreError: The database refused or failed.
        """
        wanted = self._wanted(shard, page)
        for _ in range(ATTEMPTS):
            try:
                batch = self._sealed(shard, wanted)
                return self._write(shard, page, batch, worker)
            except (_KeysMovedError, KeyDestroyedError, KeyNotFoundError):
                self._store.keyring.refresh()
        raise StoreUnavailableError(
            f"the keys of a batch of {self._table.table} changed {ATTEMPTS} times while it was sealed",
            remedy="Run the same command again; the job goes on from there.",
        )

    def _wanted(self, shard: Shard, page: Sequence[StoredRow]) -> Sequence[StoredRow]:
        """Leave out what a query that cannot name all keys found too much."""
        selection = selection_from_json(shard.selection)
        if selection.keys is not None:
            return page
        key_ids = {row.key_id for row in page if row.key_id is not None}
        standings = self._standings.of(key_ids, shared=self._table.application is None)
        compromised = shard.phase == COMPROMISED_PHASE
        return [
            row
            for row in page
            if row.key_id is not None
            and self._is_wanted(standings[row.key_id], row, selection, compromised=compromised)
        ]

    def _is_wanted(
        self, standing: Standing, row: StoredRow, selection: Selection, *, compromised: bool
    ) -> bool:
        if compromised:
            return standing is Standing.COMPROMISED
        if standing is Standing.FITTING:
            return bool(selection.heads) and row.data[:3] not in selection.heads
        return standing in {Standing.OLD, Standing.UNREADABLE}

    def _sealed(self, shard: Shard, rows: Sequence[StoredRow]) -> _Batch:
        batch = _Batch([], [], Counter())
        if shard.phase == COMPROMISED_PHASE:
            rows = self._below_marks(rows, batch)
        outcomes = self._store.cipher.reseal_many(rows, self._table.collection)
        self._sort(rows, outcomes, batch, fitting=frozenset(selection_from_json(shard.selection).fitting))
        return batch

    def _below_marks(self, rows: Sequence[StoredRow], batch: _Batch) -> list[StoredRow]:
        """Keep what was there when its key was marked; the rest is reported, and stays as it is."""
        kept: list[StoredRow] = []
        for row in rows:
            mark = self._marks.get(row.key_id) if row.key_id is not None else None
            if mark is None or mark.covers(row.written):
                kept.append(row)
            else:
                batch.counts["suspected"] += 1
                self._fail(batch, row, _suspected(row), stuck=True)
        return kept

    def _sort(
        self,
        rows: Sequence[StoredRow],
        outcomes: Sequence[Outcome],
        batch: _Batch,
        *,
        fitting: frozenset[UUID],
    ) -> None:
        swaps = batch.swaps
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, Resealed):
                # Of the envelope that was opened, the header names the key; the row must say the same.
                if row.key_id is not None and row.data[3:19] == row.key_id.bytes:
                    swaps.append(Swap(row, outcome.data, outcome.key_id))
                    continue
                outcome = IntegrityError(OPAQUE_INTEGRITY_MESSAGE)  # noqa: PLW2901
            stuck = row.key_id not in fitting
            if outcome is None:
                batch.counts["skipped"] += 1
                self._skip(batch, row, stuck=stuck)
            elif isinstance(outcome, KmsError | StoreError):
                raise outcome
            elif isinstance(outcome, KeyDestroyedError) and outcome.destroyed_by == "shredded":
                batch.counts["erased"] += 1  # shredded since it was counted
            else:
                self._fail(batch, row, outcome, stuck=stuck)

    def _fail(self, batch: _Batch, row: StoredRow, error: EventSealError, *, stuck: bool) -> None:
        batch.counts["failed"] += 1
        batch.counts["stuck"] += stuck
        batch.failures.append(
            {
                "table": self._table.table,
                "row": {"sequence_id": str(row.sequence_id), "position": str(row.position)},
                "key_id": None if row.key_id is None else str(row.key_id),
                "error": type(error).__name__,
                "message": str(error),
                "remedy": error.remedy,
            }
        )

    def _skip(self, batch: _Batch, row: StoredRow, *, stuck: bool) -> None:
        batch.counts["failed"] += 1
        batch.counts["stuck"] += stuck
        if row.key_id is None or row.key_id in self._skipped_keys:
            return
        self._skipped_keys.add(row.key_id)
        error = KeyNotFoundError(f"the scope of key {row.key_id} has no active key: its items stay under it")
        batch.failures.append(
            {
                "table": self._table.table,
                "row": {"key_id": str(row.key_id)},
                "key_id": str(row.key_id),
                "error": type(error).__name__,
                "message": str(error),
                "remedy": "Rotate the scope, which gives it an active key; then run this again.",
            }
        )

    # --- the transaction ---

    def _write(self, shard: Shard, page: Sequence[StoredRow], batch: _Batch, worker: str) -> Shard:
        """Swap the rows and move the cursor behind them, in one transaction."""
        targets = {swap.key_id for swap in batch.swaps}
        self._make_fences(targets)
        moved = replace(shard, cursor=place_to_json(page[-1].place))
        attempts = count()

        def work(connection: Connection) -> Shard:
            # An attempt whose COMMIT was not answered may have done it all.
            if next(attempts) and jobs.is_shard_at(connection, replace(moved, version=shard.version + 1)):
                return replace(attempt[0], version=shard.version + 1)
            closed = share_fences(connection, targets)
            if closed:
                self._fenced -= closed
                raise _KeysMovedError
            swapped = [batch.swaps[number] for number in self._swap(connection, batch.swaps)]
            by_key = Counter(swap.row.key_id for swap in swapped if swap.row.key_id is not None)
            attempt[0] = counted = self._counted(moved, batch, len(swapped))
            self._keep_digests(connection, shard, swapped)
            jobs.add_key_counts(connection, shard, by_key)
            listed = shard.counts.get("listed", 0)
            room = max(0, MAX_FAILURES - listed)
            jobs.add_failures(connection, shard, batch.failures[:room], first=listed)
            stored = jobs.advance_shard(connection, counted, worker)
            if stored is None:
                raise ShardLostError
            self._check_keys(connection, {*by_key, *targets})
            return stored

        attempt = [moved]
        return write(self._engine, work, doing=f"re-encrypting items of {self._table.table}")

    def _swap(self, connection: Connection, swaps: Sequence[Swap]) -> list[int]:
        return self._swaps.swap(connection, swaps) if swaps else []

    def _counted(self, shard: Shard, batch: _Batch, done: int) -> Shard:
        counts = Counter(shard.counts)
        counts.update(batch.counts)
        counts["done"] += done
        counts["changed"] += len(batch.swaps) - done
        counts["listed"] += len(batch.failures)
        return replace(shard, counts=dict(counts))

    def _make_fences(self, key_ids: Collection[UUID]) -> None:
        unknown = set(key_ids) - self._fenced
        if unknown:
            # Committed before the items: else whoever waits for this row waits for a whole batch.
            write(self._engine, partial(open_fences, key_ids=unknown), doing="making the fences of keys")
            self._fenced |= unknown

    def _keep_digests(self, connection: Connection, shard: Shard, swapped: Sequence[Swap]) -> None:
        if shard.phase != COMPROMISED_PHASE:
            return
        replaced = [
            Replaced(
                swap.row.key_id,
                self._table.table,
                sha256(swap.row.data).digest(),
                str(swap.row.sequence_id),
                str(swap.row.position),
            )
            for swap in swapped
            if swap.row.key_id is not None
        ]
        add_replaced(connection, replaced)

    def _check_keys(self, connection: Connection, key_ids: Collection[UUID]) -> None:
        """Roll back if a key was destroyed meanwhile: asked last, and held until COMMIT where that goes."""
        if self._keys_are_here():
            gone = share_live_keys(connection, key_ids)
        else:
            records = self._store.key_store.get(key_ids)
            gone = {key_id for key_id in key_ids if key_id not in records or _is_gone(records[key_id])}
        if gone:
            raise _KeysMovedError

    def _keys_are_here(self) -> bool:
        datastore = self._store.datastore
        return datastore.key_engine is datastore.engine and isinstance(
            self._store.key_store, SQLAlchemyKeyStore
        )


def selection_to_json(selection: Selection) -> dict[str, Any]:
    """Give a selection as JSON takes it."""
    return {
        "keys": None if selection.keys is None else [str(key_id) for key_id in selection.keys],
        "fitting": [str(key_id) for key_id in selection.fitting],
        "heads": [head.hex() for head in selection.heads],
    }


def selection_from_json(stored: Any) -> Selection:
    """Undo :func:`selection_to_json`."""
    return Selection(
        keys=None if stored["keys"] is None else tuple(UUID(key_id) for key_id in stored["keys"]),
        fitting=tuple(UUID(key_id) for key_id in stored["fitting"]),
        heads=tuple(bytes.fromhex(head) for head in stored["heads"]),
    )


def _is_gone(record: Any) -> bool:
    return bool(record.state == "destroyed")


def _suspected(row: StoredRow) -> IntegrityError:
    return IntegrityError(
        f"suspected forgery: the item was written after its key {row.key_id} was marked as compromised",
        remedy="Find out who wrote the row, and delete it; or, if a restore or VACUUM FULL wrote it, mark the "
        "key anew: eventseal rotate --compromised.",
        key_id=row.key_id,
    )

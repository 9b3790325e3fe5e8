"""
Resealers, which re-encrypt the items of a table in batches.

They read, open and seal each batch outside of any transaction, and swap its rows in one transaction.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

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
from eventseal.keys.states import KeyState
from eventseal.rotation.fences import late_item
from eventseal.rotation.jobs.collections import in_place, is_erased, moved
from eventseal.rotation.jobs.sources import KeyStatus
from eventseal.rotation.results import MAX_FAILURES, Failure
from eventseal.rotation.set_aside_rows import SET_ASIDE, AsideRows
from eventseal.storage.database.transactions import read, write
from eventseal.storage.items.fences import open_fences, share_fences, share_live_keys, unreadable_fences
from eventseal.storage.items.places import item_swaps
from eventseal.storage.items.swaps import place_from_json, place_to_json, selection_from_json
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.jobs.compromised_items import (
    Replaced,
    add_replaced,
    forget_replaced,
    load_compromised_items,
    were_there,
)
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.suites.envelope import KEY_ID_IN_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.cipher.aes import Outcome
    from eventseal.items.sealed_places import Page, Selection
    from eventseal.rotation.jobs.sources import KeyStatuses
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.shards import Shard


COMPROMISED_PHASE, OTHERS_PHASE = 0, 1
ATTEMPTS = 8
"""The most attempts to seal a batch whose keys change meanwhile."""


class ShardLostError(Exception):
    """Another worker took the range, because this one was silent too long."""


class _KeysMovedError(Exception):
    """A key of the batch was closed or destroyed. Nothing was written."""


@dataclass(slots=True)
class Batch:
    """The results of a page's rows: envelopes to swap, counts and failures."""

    page: Page
    envelopes: Sequence[bytes] = ()
    failures: list[Failure] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class TableResealer:
    """
    Re-encrypts the items of one table, a page at a time.

    Args:
        store: The store whose cipher opens and seals.
        table: The registered table.
        statuses: Selects the rows to re-encrypt where a query cannot name all keys.
    """

    by_tag: ClassVar[bool] = True
    """Whether rows hold envelopes, whose tags are compared (docs/decisions/0012)."""

    def __init__(self, store: SealedStore, table: SealedTable, statuses: KeyStatuses) -> None:
        self._store = store
        self._engine = store.datastore.engine
        self._table = table
        self._statuses = statuses
        self._swaps = item_swaps(self._engine, table)
        self._marks = load_compromised_items(self._engine, table.table)
        self._fenced: set[UUID] = set()
        self._selected: tuple[int, Selection] | None = None
        self._skipped_keys: set[UUID] = set()
        self._aside = AsideRows.of_store(store, [table])

    def most_rows(self, batch: int) -> int:
        """Return the most rows of a transaction, at most *batch*."""
        return batch if self._swaps.most_rows is None else min(batch, self._swaps.most_rows)

    def page(self, shard: Shard, limit: int, also: Callable[[Connection], None]) -> Page:
        """
        Read the next rows of a range. Only an empty page means its end.

        Args:
            shard: The range, whose cursor is the place to read from.
            limit: The most rows to read.
            also: Reads something else in the same transaction.
        """

        def look(connection: Connection) -> Page:
            also(connection)
            return self._swaps.page(
                connection,
                self._selection(shard),
                after=self._stored(shard, "cursor", place_from_json),
                upto=self._stored(shard, "upto", place_from_json),
                limit=limit,
                written=shard.phase == COMPROMISED_PHASE,
            )

        return read(self._engine, look, doing=f"reading {self._table.table}")

    def reseal(self, shard: Shard, page: Page, worker: str) -> Shard:
        """
        Re-encrypt the rows of a page, and swap unchanged ones.

        A row that has changed since it was read stays as it is.

        Args:
            shard: The range that the page belongs to.
            page: At least one row.
            worker: The worker that holds the range.

        Returns:
            The range after the page, as it is stored.

        Raises:
            IntegrityError: The range's row cannot be read because it was edited.
            ShardLostError: Another worker holds the range. Nothing was written.
            KmsError: The KMS refused or failed.
            StoreError: The database refused or failed.
        """
        selection = self._selection(shard)
        wanted = page.only(self._wanted(shard, page, selection))
        behind = replace(shard, cursor=place_to_json(page.last_place))
        for _ in range(ATTEMPTS):
            try:
                return self._write(shard, behind, self._sealed(shard, wanted, selection), worker)
            except (_KeysMovedError, KeyDestroyedError, KeyNotFoundError):
                self._store.keyring.refresh()
        raise StoreUnavailableError(
            f"while a batch of {self._table.table} was encrypted, its keys changed {ATTEMPTS} times",
            remedy="Run the same command again. The job continues where it stopped.",
        )

    def _selection(self, shard: Shard) -> Selection:
        """Parse a range's selection once, because it may name a thousand keys."""
        if self._selected is None or self._selected[0] != shard.number:
            selection = self._stored(shard, "selection", selection_from_json)
            self._selected = shard.number, selection
        return self._selected[1]

    def _stored(self, shard: Shard, column: str, parse: Callable[[Any], Any]) -> Any:
        """Parse a column of a range's row. If it was edited, raise an error that names it."""
        stored = getattr(shard, column)
        try:
            return None if stored is None else parse(stored)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise job_shards.unreadable_shard(self._engine, shard.job_id, shard.number, [column]) from None

    def _wanted(self, shard: Shard, page: Page, selection: Selection) -> Sequence[int]:
        """Drop rows that were read because the query cannot name all keys."""
        if selection.keys is not None:
            return range(len(page))
        compromised = shard.phase == COMPROMISED_PHASE
        return [
            number
            for number, status in self._row_statuses(page)
            if _is_wanted(status, page.envelopes[number], selection, compromised=compromised)
        ]

    def _row_statuses(self, page: Page) -> Iterator[tuple[int, KeyStatus]]:
        """Yield the numbers of rows that name a key, with its status."""
        named = {raw: UUID(bytes=raw) for raw in set(page.key_ids) if raw is not None}
        statuses = self._statuses.of(list(named.values()), self._table)
        for number, raw in enumerate(page.key_ids):
            if raw is not None:
                yield number, statuses[named[raw]]

    def _sealed(self, shard: Shard, page: Page, selection: Selection) -> Batch:
        batch = Batch(page)
        if shard.phase == COMPROMISED_PHASE:
            page = page.only(self._below_marks(batch))
        outcomes = self._resealed(page)
        envelopes = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
        # The header of the opened envelope names the key, and the row must name the same key.
        if len(envelopes) < len(page) or any(map(page.differs, range(len(page)))):
            numbers = self._sort(page, outcomes, batch, fitting=frozenset(selection.fitting))
            envelopes = [outcome for number in numbers if isinstance(outcome := outcomes[number], bytes)]
            page = page.only(numbers)
        batch.page, batch.envelopes = page, envelopes
        return batch

    def _resealed(self, page: Page) -> list[Outcome]:
        reseal_many, collection = self._store.cipher.reseal_many, self._table.collection
        if self._table.former_collection is None:
            return reseal_many(page, collection)
        return reseal_many(page, collection, moved=moved(self._store, self._table, page))

    def _below_marks(self, batch: Batch) -> list[int]:
        """Keep the rows that existed when their key was marked. Report the others."""
        there = were_there(self._engine, self._table.table, self._marks, batch.page)
        for number in sorted(set(range(len(batch.page))).difference(there)):
            key_id = batch.page.key_id(number)
            if key_id is not None:
                failed = self._fail(batch, batch.page, number, late_item(self._marks[key_id]), stuck=True)
                batch.counts["suspected"] += failed
        return there

    def _sort(
        self, page: Page, outcomes: Sequence[Outcome], batch: Batch, *, fitting: frozenset[UUID]
    ) -> list[int]:
        """Return the rows to swap. Count and list the others."""
        numbers: list[int] = []
        for number, outcome in enumerate(outcomes):
            key_id = page.key_id(number)
            problem = outcome
            if isinstance(outcome, bytes):
                if not page.differs(number):
                    numbers.append(number)
                    continue
                # The row names two keys, and nobody knows which one is right (docs/decisions/0020).
                problem = IntegrityError(OPAQUE_INTEGRITY_MESSAGE)
            stuck = key_id not in fitting
            if problem is None:
                self._skip(batch, key_id, stuck=stuck)
            elif isinstance(problem, KmsError | StoreError):
                raise problem  # an outage says nothing about the item (docs/decisions/0004)
            elif is_erased(problem):
                pass  # it was shredded after the count: nothing is left to do, and nothing is wrong
            elif isinstance(problem, EventSealError):
                self._fail(batch, page, number, problem, stuck=stuck)
        return numbers

    def _fail(self, batch: Batch, page: Page, number: int, error: EventSealError, *, stuck: bool) -> bool:
        """Count a row that stays as it is. Return whether it failed and is not set aside."""
        place = page.sequence_ids[number], page.positions[number]
        batch.counts["stuck"] += stuck
        if self._aside.at(self._table.table, place):
            batch.counts[SET_ASIDE] += 1
            return False
        batch.counts["failed"] += 1
        batch.failures.append(Failure.of_item(self._table.table, place, page.key_id(number), error))
        return True

    def _skip(self, batch: Batch, key_id: UUID | None, *, stuck: bool) -> None:
        batch.counts["skipped"] += 1
        batch.counts["failed"] += 1
        batch.counts["stuck"] += stuck
        if key_id is None or key_id in self._skipped_keys:
            return
        self._skipped_keys.add(key_id)
        # A re-encryption never creates a key, not even if the policy would (docs/decisions/0012).
        error = KeyNotFoundError(
            f"the scope of key {key_id} has no active key, so the key's items were not re-encrypted",
            remedy="`eventseal keys` shows the key's scope. Run `eventseal rotate --scope SCOPE` for it. "
            "Then run this again.",
        )
        batch.failures.append(Failure.of_key(self._table.table, key_id, error))

    # --- the transaction ---

    def _write(self, shard: Shard, behind: Shard, batch: Batch, worker: str) -> Shard:
        """Swap the rows and move the cursor past them, in one transaction."""
        targets = {UUID(bytes=raw) for raw in {sealed[KEY_ID_IN_HEADER] for sealed in batch.envelopes}}
        if edited := self._make_fences(targets):
            batch = self._without(edited, batch)
            targets -= edited.keys()
        swap = None
        if batch.envelopes:
            swap = self._swaps.prepare(batch.page, batch.envelopes, by_tag=self.by_tag)
        stored: list[Shard] = []

        def work(connection: Connection) -> Shard:
            # If an earlier attempt got no answer to its COMMIT, it may have done all of this.
            if stored and job_shards.is_shard_at(connection, stored[-1]):
                return stored[-1]
            closed = share_fences(connection, targets)
            if closed:
                self._fenced -= closed
                raise _KeysMovedError
            numbers = [] if swap is None else self._swaps.swap(connection, swap)
            swapped = batch.page.only(numbers)
            replaced = {
                UUID(bytes=raw): count for raw, count in Counter(swapped.key_ids).items() if raw is not None
            }
            if shard.phase == COMPROMISED_PHASE:
                add_replaced(connection, self._replaced(swapped))
                forget_replaced(connection, self._table.table, swapped)
            counted = _counted(behind, batch, len(numbers))
            job_shards.add_key_counts(connection, shard, replaced)
            listed = shard.counts.get("listed", 0)
            failures = [failure.to_record() for failure in batch.failures[: max(0, MAX_FAILURES - listed)]]
            job_shards.add_failures(connection, shard, failures, first=listed)
            advanced = job_shards.advance_shard(connection, counted, worker)
            if advanced is None:
                raise ShardLostError
            self._check_keys(connection, {*replaced, *targets})
            stored.append(advanced)
            return advanced

        return write(self._engine, work, doing=f"sealing items of {self._table.table} again")

    def _replaced(self, swapped: Page) -> list[Replaced]:
        return [
            Replaced(key_id, self._table.table, sha256(sealed).digest(), str(sequence_id), str(position))
            for number, (sealed, sequence_id, position) in enumerate(
                zip(swapped.envelopes, swapped.sequence_ids, swapped.positions, strict=True)
            )
            if (key_id := swapped.key_id(number)) is not None
        ]

    def _make_fences(self, key_ids: Collection[UUID]) -> Mapping[UUID, EventSealError]:
        """Create missing fences. Return the fences that were edited."""
        unknown = set(key_ids) - self._fenced
        if not unknown:
            return {}
        # Committed before the items, so that others who wait for this row do not wait for a whole batch.
        open_fences(self._engine, unknown)
        edited = unreadable_fences(self._engine, unknown)
        self._fenced |= unknown - edited.keys()
        return edited

    def _without(self, edited: Mapping[UUID, EventSealError], batch: Batch) -> Batch:
        """Leave rows as they are if their new key's fence was edited."""
        kept: list[int] = []
        for number, sealed in enumerate(batch.envelopes):
            error = edited.get(UUID(bytes=sealed[KEY_ID_IN_HEADER]))
            if error is None:
                kept.append(number)
            else:
                self._fail(batch, batch.page, number, error, stuck=True)
        batch.envelopes = [batch.envelopes[number] for number in kept]
        batch.page = batch.page.only(kept)
        return batch

    def _check_keys(self, connection: Connection, key_ids: Collection[UUID]) -> None:
        """
        Roll back if a key was destroyed meanwhile.

        This check comes last. If the keys are in the same database, they stay locked until COMMIT.
        """
        datastore, key_store = self._store.datastore, self._store.key_store
        if datastore.key_engine is datastore.engine and isinstance(key_store, SQLAlchemyKeyStore):
            gone = share_live_keys(connection, key_ids)
        else:
            records = key_store.get(key_ids)
            gone = {
                key_id
                for key_id in key_ids
                if key_id not in records or records[key_id].state is KeyState.DESTROYED
            }
        if gone:
            raise _KeysMovedError


def _is_wanted(status: KeyStatus, sealed: Any, selection: Selection, *, compromised: bool) -> bool:
    if compromised:
        return status is KeyStatus.COMPROMISED
    if status is KeyStatus.FITTING:
        return bool(selection.heads) and sealed[:3] not in selection.heads
    return status in {KeyStatus.OLD, KeyStatus.UNREADABLE}


def _counted(shard: Shard, batch: Batch, done: int) -> Shard:
    counts = Counter(shard.counts)
    counts.update(batch.counts)
    counts["done"] += done
    counts["changed"] += len(batch.page) - done
    counts["listed"] += len(batch.failures)
    return replace(shard, counts=dict(counts))


class CollectionResealer(TableResealer):
    """Re-encrypts items not yet bound to their table's collection, under any key."""

    def _wanted(self, shard: Shard, page: Page, selection: Selection) -> Sequence[int]:
        if shard.phase == COMPROMISED_PHASE:
            return super()._wanted(shard, page, selection)
        wanted = {KeyStatus.FITTING, KeyStatus.OLD, KeyStatus.UNREADABLE}
        numbers = [number for number, status in self._row_statuses(page) if status in wanted]
        there = in_place(self._store, self._table, page.only(numbers))
        return [number for index, number in enumerate(numbers) if index not in there]

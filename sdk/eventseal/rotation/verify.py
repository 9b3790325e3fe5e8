"""Verify: open every item of every registered table, count, and report what does not open."""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from eventseal.cipher import ItemContext, Opened
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsError,
    StoreError,
    UnknownFormatError,
    WrongApplicationError,
)
from eventseal.keys.seals import unreadable_row
from eventseal.keys.states import KeyPurpose
from eventseal.rotation.moved_collections import open_former
from eventseal.rotation.results import MAX_FAILURES, Failure, JobResult
from eventseal.rotation.sealed_store import refuse_unregistered_tables, registered_tables
from eventseal.storage.item_rows import count_by_key, pages, row_at
from eventseal.storage.transactions import read

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.item_rows import ItemRow
    from eventseal.storage.registry import SealedTable

KEY_TABLE, REGISTRY = "encryption_keys", "sealed_tables"
OUTCOMES = ("done", "failed", "plain", "foreign", "erased", "left")
"""
What ``by_table`` counts: opened; not opened; in plain; another application's; under a key that was shredded;
outside the sample. Where a table has such items, :data:`FORMER` counts those that opened, too.
"""
FORMER = "former"
"""Opened, and bound to the collection that the table is to be moved from."""

_PAGE_SIZE = 1000


def verify(
    store: SealedStore,
    *,
    tables: Collection[str] | None = None,
    sample: float = 1.0,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Check every data key of the application and open every item of its tables. Nothing is changed.

    Args:
        store: An ``EventSeal``, or any object with its four.
        tables: Only these, by name; ``None``: all that are registered.
        sample: The share of items to open, chosen at random, over 0 and up to 1. All keys are checked anyway.
        progress: Called after each page with what was found so far.

    Returns:
        ``done`` counts the items that opened, ``failed`` the items and keys that did not, ``left`` those
        outside the sample. ``by_table`` says the same for each table, and how many of its items are in plain,
        are of a key that was shredded, or, in a table that applications share, another's. ``by_key`` counts
        the items that opened.

    Raises:
        ConfigurationError: A table that looks sealed is not registered, or a registered one is not there.
        WrongApplicationError: There are items of another application and no keys of this one.
        KmsError: The KMS refused or failed: that says nothing about the items.
        StoreError: The database refused or failed.
    """
    if not 0 < sample <= 1:
        raise ConfigurationError(f"sample is {sample}; it must be over 0 and at most 1")
    run = _Verification(store, sample=sample, progress=progress)
    refuse_unregistered_tables(store)
    unreadable: list[IntegrityError] = []
    found = registered_tables(store.datastore, store.cipher.application, tables, unreadable=unreadable)
    run.count(found)
    run.fail_registry(unreadable)
    run.check_keys()
    for table in found:
        run.check_table(table)
    return run.result(complete=True)


class _Verification:
    """One run: what it has counted so far, and how it goes on."""

    def __init__(
        self, store: SealedStore, *, sample: float, progress: Callable[[JobResult], None] | None
    ) -> None:
        self._store = store
        self._sample = sample
        self._progress = progress
        self._random = random.Random()  # noqa: S311 - which items are in the sample is no secret
        self._started = time.monotonic()
        self._total = 0
        self._has_keys = False
        self._by_table: dict[str, Counter[str]] = {}
        self._by_key: Counter[UUID] = Counter()
        self._failures: list[Failure] = []

    def count(self, tables: list[SealedTable]) -> None:
        """Count the items, so that the progress has an end."""
        engine = self._store.datastore.engine
        for table in tables:
            counts = read(engine, partial(count_by_key, table=table), doing=f"counting {table.table}")
            self._total += sum(counts.values())
            self._by_table[table.table] = Counter()

    def fail_registry(self, unreadable: list[IntegrityError]) -> None:
        """Count rows of the registry that were edited: nobody knows what their tables hold."""
        for problem in unreadable:
            self._fail(REGISTRY, {"table_name": str(problem.__dict__["table"])}, None, problem)

    def check_keys(self) -> None:
        """Check the seal, the wrapping and the binding of every key of items, and of fields inside them."""
        for records in self._key_pages():
            self._has_keys = True
            outcomes: dict[UUID, object] = {}
            for record in records:
                if "key_id" in record.unreadable:  # no question for it by its id finds it
                    self._fail(KEY_TABLE, {}, None, unreadable_row(record))
            readable = [record for record in records if "key_id" not in record.unreadable]
            for purpose in (KeyPurpose.DATA, KeyPurpose.FIELD):
                wanted = [record.key_id for record in readable if record.purpose is purpose]
                outcomes |= self._store.keyring.opening_keys(wanted, purpose=purpose) if wanted else {}
            for key_id, outcome in outcomes.items():
                # A tombstone says that it is one, and its seal was checked before: nothing is wrong with it.
                if isinstance(outcome, EventSealError) and not isinstance(outcome, KeyDestroyedError):
                    _raise_outage(outcome)
                    self._fail(KEY_TABLE, {"key_id": str(key_id)}, key_id, outcome)

    def check_table(self, table: SealedTable) -> None:
        """Open a table's items, page by page."""
        for page in pages(self._store.datastore.engine, table, size=_PAGE_SIZE):
            rows = (
                page if self._sample == 1 else [row for row in page if self._random.random() < self._sample]
            )
            self._by_table[table.table]["left"] += len(page) - len(rows)
            self._check_rows(table, rows)
            if self._progress is not None:
                self._progress(self.result(complete=False))

    def result(self, *, complete: bool) -> JobResult:
        """Give what was found so far."""
        looked_at = sum(counts.total() - counts["left"] for counts in self._by_table.values())
        left_out = sum(counts["left"] for counts in self._by_table.values())
        return JobResult(
            verb="verify",
            complete=complete,
            done=sum(counts["done"] + counts[FORMER] for counts in self._by_table.values()),
            left=left_out if complete else max(0, self._total - looked_at),
            failed=sum(counts["failed"] for counts in self._by_table.values()),
            seconds=time.monotonic() - self._started,
            by_table={
                table: {
                    outcome: counts[outcome] for outcome in (*OUTCOMES, *([FORMER] * bool(counts[FORMER])))
                }
                for table, counts in self._by_table.items()
            },
            by_key=dict(self._by_key),
            failures=tuple(self._failures),
        )

    def _key_pages(self) -> Iterator[list[KeyRecord]]:
        last = None
        while page := self._store.key_store.page(
            self._store.cipher.application, after=last, limit=_PAGE_SIZE
        ):
            yield page
            last = page[-1].key_id

    def _check_rows(self, table: SealedTable, rows: list[ItemRow]) -> None:
        items = [
            (row.data, ItemContext(row.sequence_id, row.position, row.topic, table.collection))
            for row in rows
        ]
        counts = self._by_table[table.table]
        moved: list[ItemRow] = []
        outcomes = self._store.cipher.open_many(items)
        former = open_former(self._store, table, items, outcomes)
        for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
            if isinstance(outcome, Opened) and outcome.key_id == row.key_id:
                counts[FORMER if number in former else "done"] += 1
                self._by_key[outcome.key_id] += 1
            elif isinstance(outcome, Opened):
                self._fail_row(table, row, IntegrityError(OPAQUE_INTEGRITY_MESSAGE))
            elif self._is_plain(table, row, outcome):
                counts["plain"] += 1
            elif table.application is None and isinstance(outcome, WrongApplicationError):
                if not self._has_keys:  # then it is the configured name that is wrong, not the item
                    raise outcome
                counts["foreign"] += 1
            elif _is_shredded(outcome, row):
                counts["erased"] += 1
            elif _is_retired(outcome) and (now := self._read_again(table, row)) != row:
                moved += [now] if now is not None else []
            else:
                _raise_outage(outcome)
                self._fail_row(table, row, outcome)
        if moved:
            self._check_rows(table, moved)

    def _is_plain(self, table: SealedTable, row: ItemRow, error: EventSealError) -> bool:
        """Bytes are an envelope only if the key store knows the key that they name."""
        if row.key_id is None:
            return not table.is_migrated and isinstance(error, UnknownFormatError | KeyNotFoundError)
        if isinstance(error, UnknownFormatError):  # cut, if it is an envelope
            return table.may_mislead and not self._store.key_store.get([row.key_id])
        return table.may_mislead and isinstance(error, KeyNotFoundError)

    def _read_again(self, table: SealedTable, row: ItemRow) -> ItemRow | None:
        """Read a row whose key was retired after the page was read, perhaps since the item was moved."""
        look = partial(row_at, table=table, sequence_id=row.sequence_id, position=row.position)
        return read(self._store.datastore.engine, look, doing=f"reading {table.table}")

    def _fail_row(self, table: SealedTable, row: ItemRow, error: EventSealError) -> None:
        place = {"sequence_id": str(row.sequence_id), "position": str(row.position)}
        self._fail(table.table, place, row.key_id, error)

    def _fail(self, table: str, row: dict[str, str], key_id: UUID | None, error: EventSealError) -> None:
        self._by_table.setdefault(table, Counter())["failed"] += 1
        if len(self._failures) < MAX_FAILURES:
            self._failures.append(
                Failure(
                    table=table,
                    row=row,
                    key_id=key_id,
                    error=type(error).__name__,
                    message=str(error),
                    remedy=error.remedy,
                )
            )


def _is_shredded(error: EventSealError, row: ItemRow) -> bool:
    """Whether the key that the envelope and the row name was shredded: its tombstone's seal was checked."""
    return (
        isinstance(error, KeyDestroyedError)
        and error.destroyed_by == "shredded"
        and error.key_id == row.key_id
    )


def _is_retired(error: EventSealError) -> bool:
    return isinstance(error, KeyDestroyedError) and error.destroyed_by == "retired"


def _raise_outage(error: EventSealError) -> None:
    """Raise what says nothing about the item or the key: the KMS or the database was away, or said no."""
    if isinstance(error, KmsError | StoreError):
        raise error

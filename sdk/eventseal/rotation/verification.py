"""Verify: open every item of every registered table, and report failures."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KekNotConfiguredError,
    KeyDestroyedError,
    UnknownFormatError,
)
from eventseal.keys.authentication.row_macs import unreadable_row
from eventseal.keys.states import KeyPurpose
from eventseal.rotation.item_checks import FORMER, OUTCOMES, PAGE_SIZE, ItemChecks, Tally, raise_if_outage
from eventseal.rotation.jobs.workers import Workers, broken_pool_named, opened, ranges_of
from eventseal.rotation.key_rotation import KEY_TABLE
from eventseal.rotation.results import JobResult
from eventseal.rotation.sealed_store import StoreOptions, key_pages, registered_tables
from eventseal.rotation.set_aside_rows import SET_ASIDE, AsideRows, lapsed_rows, rows_set_aside
from eventseal.rotation.table_checks import refuse_absent_tables, refuse_unregistered_tables, uncounted_tables
from eventseal.rotation.verification_state import Range, VerifyState, covered
from eventseal.storage.items.key_counts import count_by_key, count_without_place
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from concurrent.futures import Executor, Future
    from datetime import datetime
    from uuid import UUID

    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.rotation.set_aside_rows import SetAside
    from eventseal.storage.items.tables import SealedTable


REGISTRY, LEDGER = "eventseal_sealed_tables", "eventseal_erasure_ledger"

_WHERE_THERE_ARE_SOME = (FORMER, SET_ASIDE)

RANGE_ITEMS = 50_000
"""
The items of one range.

A worker takes one range at a time. A resumed verification repeats the ranges that were not finished.
"""

_KEPT_EVERY = 5.0
"""The seconds between two states that the caller keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult(JobResult):
    """
    The result of a verification.

    Attributes:
        begun_at: The start of the first run, by the key store's clock, in UTC.
        ended_at: The time when everything was checked. ``None``: the verification is not finished.
        asked_tables: The tables to verify. ``None``: all.
        sample: The share of items that were opened, over 0 and up to 1.
    """

    begun_at: datetime
    ended_at: datetime | None = None
    asked_tables: Sequence[str] | None = None
    sample: float = 1.0


def verify(
    store: SealedStore,
    *,
    tables: Collection[str] | None = None,
    sample: float = 1.0,
    shards: int = 1,
    executor: Executor | None = None,
    open_store: Callable[[], SealedStore] | None = None,
    resume: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[VerifyResult], None] | None = None,
) -> VerifyResult:
    """
    Check all data keys of the application, and open all its items.

    Nothing is written, so a read-only database can be verified too. The progress is not in a table, where an
    attacker could change it. Instead, *keep* receives it.

    Args:
        store: An ``EventSeal``, or any other :class:`SealedStore`. A store without ``always_encrypt`` counts
            as one that encrypts every event.
        tables: Only these tables, by name. ``None``: all registered tables.
        sample: The share of items to open, chosen at random, over 0 and up to 1. All keys are always checked.
        shards: The number of ranges to give the *executor* at a time, 1 or more.
        executor: Checks ranges of tables. ``None``: this thread checks one after the other.
        open_store: Opens the store in a worker. Workers in other processes need it and must be able to import
            it.
        resume: The last state that *keep* received, to continue from.
        keep: Called every 5 seconds, and when the run is interrupted, with a state that JSON can store. The
            state is authenticated, and contains no key and no plaintext.
        progress: Called after each page or range with the counts so far, without the counts by key.

    Returns:
        The result's ``done`` counts the items that opened. Its ``failed`` counts the items, keys and tables
        that did not. Its ``left`` counts the items outside the sample. Its ``by_key`` counts the items that
        opened, for the first 100,000 keys.

        Its ``by_table`` has these counts for each table, and more:

        - ``plain`` counts plaintext items, where they are allowed.
        - ``unmigrated`` counts items in older formats, in a migration that has begun.
        - ``former`` counts items under a former collection.
        - ``erased`` counts items whose key was shredded.
        - ``set_aside`` counts damaged rows that are set aside.
        - ``foreign`` counts other applications' items in shared tables.

    Raises:
        ConfigurationError: A table that looks sealed is not registered, or a registered or listed table does
            not exist. Or *resume* belongs to another verification.
        IntegrityError: *resume* was edited.
        KekNotConfiguredError: Several keys are wrapped only under a KEK that this store lacks. If it is one
            key among others, it counts as failed.
        WrongApplicationError: There are items of another application and no keys of this one.
        JobError: A worker process ended before its work was done.
        KmsError: The KMS refused or failed, which says nothing about the items.
        StoreError: The database refused or failed.
    """
    if not 0 < sample <= 1:
        raise ConfigurationError(
            f"sample is {sample}. It must be over 0 and at most 1",
            remedy="Pass a share such as 0.01, which opens 1 % of the items.",
        )
    workers = Workers(shards=shards, executor=executor, open_store=open_store)
    refuse_unregistered_tables(store)
    refuse_absent_tables(store)
    unreadable: list[IntegrityError] = []
    found = registered_tables(store.datastore, store.cipher.application, tables, unreadable=unreadable)
    with suppress(IntegrityError):  # each key and item under an edited row is reported below
        store.keyring.refresh()  # an unavailable or unconfigured KEK is one error, not one for each item
    state = _begun(store, found, asked=tables, sample=sample, shards=shards)
    if resume is not None:
        state = VerifyState.resumed(store, resume, state)
    run = _Verification(store, state, {table.table: table for table in found}, keep, progress)
    run.fail_registry(unreadable)
    run.check_keys()
    run.check_rows_set_aside()
    if tables is None:
        run.name_uncounted_tables()
    return run.check_items(workers)


@dataclass(eq=False)
class _Verification:
    """One run of verify: its counts and its next steps."""

    store: SealedStore
    state: VerifyState
    tables: Mapping[str, SealedTable]
    keep: Callable[[dict[str, Any]], None] | None
    progress: Callable[[VerifyResult], None] | None

    def __post_init__(self) -> None:
        self._started = self._kept = time.monotonic()
        self._of_this_run = Tally()
        """Failures each run finds again: keys, unreadable tables, changed set-aside rows."""
        self._said: Sequence[SetAside] = ()

    def fail_registry(self, unreadable: Sequence[IntegrityError]) -> None:
        """Count edited rows of the registry as failed: their tables are unknown."""
        for problem in unreadable:
            row = {"table_name": str(problem.__dict__["table"])}
            self._of_this_run.fail(REGISTRY, row, None, problem)

    def check_keys(self) -> None:
        """Check the MAC, wrapping and binding of data keys and field keys."""
        missing: dict[str | None, list[tuple[UUID, KekNotConfiguredError]]] = {}
        opened = 0
        for records in key_pages(self.store.key_store, self.store.cipher.application):
            outcomes: dict[UUID, object] = {}
            for record in records:
                if "key_id" in record.unreadable:  # a query by its id would not find it
                    self._of_this_run.fail(KEY_TABLE, {}, None, unreadable_row(record))
            readable = [record for record in records if "key_id" not in record.unreadable]
            for purpose in (KeyPurpose.DATA, KeyPurpose.FIELD):
                wanted = [record.key_id for record in readable if record.purpose is purpose]
                outcomes |= self.store.keyring.opening_keys(wanted, purpose=purpose) if wanted else {}
            for record in readable:
                outcome = outcomes.get(record.key_id)
                # A tombstone is no failure. Its MAC was checked when it was read.
                if isinstance(outcome, KekNotConfiguredError):
                    missing.setdefault(outcome.kek_uri, []).append((record.key_id, outcome))
                elif isinstance(outcome, EventSealError) and not isinstance(outcome, KeyDestroyedError):
                    raise_if_outage(outcome)
                    self._fail_key(record.key_id, outcome)
                else:
                    opened += outcome is not None
        for refused in missing.values():
            # Several such keys mean that a KEK is not configured here, and not that a row was edited.
            if len(refused) > 1 or not opened:
                raise refused[0][1]
            self._fail_key(*refused[0])

    def _fail_key(self, key_id: UUID, error: EventSealError) -> None:
        self._of_this_run.fail(KEY_TABLE, {"key_id": str(key_id)}, key_id, error)

    def check_rows_set_aside(self) -> None:
        """Load the ledger's rows. Count missing or changed ones as failed."""
        try:
            self._said = rows_set_aside(self.store)
        except IntegrityError as changed:  # an edited ledger sets no row aside
            self._of_this_run.fail(LEDGER, {}, None, changed)
        asked = self.state.asked
        said = [row for row in self._said if asked is None or row.table in asked]
        for row, error in lapsed_rows(self.store.datastore.engine, self.tables, said):
            self._of_this_run.fail(row.table, row.row, None, error)

    def name_uncounted_tables(self) -> None:
        """Count tables whose items cannot be read here as one failure each."""
        for name in uncounted_tables(self.store):
            error = UnknownFormatError(
                f"{name} holds events by tags, which verify cannot read. Nothing is proved about them",
                remedy="If it holds no encrypted events, add its name to unsealed_tables.",
            )
            self._of_this_run.fail(name, {}, None, error)
        for table in self.tables.values():
            if items := count_without_place(self.store.datastore.engine, table):
                lost = IntegrityError(
                    f"no reader finds {counted(items, 'row')} of {table.table} without a sequence id or "
                    "position",
                    remedy="Find out who changed the table, and restore the rows from a backup.",
                )
                self._of_this_run.fail(table.table, {}, None, lost)

    def check_items(self, workers: Workers) -> VerifyResult:
        """Check the remaining ranges, and return the result."""
        try:
            if workers.executor is None:
                self._check_here()
            else:
                with broken_pool_named("Run the same command again."):
                    self._check_elsewhere(workers.executor, workers)
        except BaseException:
            self._keep_state()
            raise
        return self._result(self.state.tally, complete=True)

    def _check_here(self) -> None:
        for each in list(self.state.ranges):
            tally = Tally()
            checks = _checks(self.store, self.tables[each.table], **self._work(each))
            for page in checks.run(each.after, each.upto):
                tally.add(page)
                self._tell(tally)
            self._done(each, tally)

    def _check_elsewhere(self, executor: Executor, workers: Workers) -> None:
        waiting = list(self.state.ranges)
        working: dict[Future[Tally], Range] = {}
        try:
            while waiting or working:
                # Not all ranges together: a range that was submitted to a process cannot be taken back.
                while waiting and len(working) < 2 * workers.shards:
                    each = waiting.pop(0)
                    working[self._submitted(executor, each, workers.open_store)] = each
                for future in wait(working, return_when=FIRST_COMPLETED).done:
                    self._done(working.pop(future), future.result())
                    self._tell(Tally())
        finally:
            for future in working:
                future.cancel()

    def _submitted(
        self, executor: Executor, each: Range, open_store: Callable[[], SealedStore] | None
    ) -> Future[Tally]:
        if open_store is None:
            return executor.submit(_checked, self.store, self.tables[each.table], each, **self._work(each))
        return executor.submit(_checked_in_process, open_store, each, **self._work(each))

    def _work(self, each: Range) -> dict[str, Any]:
        said = [row for row in self._said if row.table == each.table]
        return {"sample": self.state.sample, "said": said}

    def _done(self, each: Range, tally: Tally) -> None:
        self.state.ranges.remove(each)
        self.state.tally.add(tally)
        if time.monotonic() - self._kept >= _KEPT_EVERY:
            self._keep_state()

    def _keep_state(self) -> None:
        if self.keep is not None:
            self._kept = time.monotonic()
            self.keep(self.state.to_json(self.store))

    def _tell(self, of_range: Tally) -> None:
        if self.progress is not None:
            so_far = Tally()
            for part in (self.state.tally, of_range):
                so_far.add(Tally(part.by_table))  # without the keys: each page would copy up to 100,000
            self.progress(self._result(so_far, complete=False))

    def _result(self, items: Tally, *, complete: bool) -> VerifyResult:
        found = Tally({table: Counter() for table in self.tables})
        found.add(self._of_this_run)
        found.add(items)
        left_out = items.total("left")
        looked_at = sum(counts.total() for counts in items.by_table.values()) - left_out
        return VerifyResult(
            verb="verify",
            complete=complete,
            done=found.total("done") + found.total(FORMER),
            left=left_out if complete else max(0, self.state.total - looked_at),
            failed=found.total("failed"),
            seconds=time.monotonic() - self._started,
            by_table={
                table: {
                    outcome: counts[outcome]
                    for outcome in (*OUTCOMES, *filter(counts.__getitem__, _WHERE_THERE_ARE_SOME))
                }
                for table, counts in found.by_table.items()
            },
            by_key=dict(found.by_key),
            failures=tuple(found.failures),
            begun_at=self.state.begun_at,
            ended_at=self.store.key_store.now() if complete else None,
            asked_tables=self.state.asked,
            sample=self.state.sample,
        )


def _begun(
    store: SealedStore,
    tables: Sequence[SealedTable],
    *,
    asked: Collection[str] | None,
    sample: float,
    shards: int,
) -> VerifyState:
    """Cut the tables into ranges."""
    engine, begun_at = store.datastore.engine, store.key_store.now()
    total = 0
    ranges: list[Range] = []
    for table in tables:
        items = sum(count_by_key(engine, table).values())
        total += items
        # A small table also gets several ranges for each worker. A range of few items takes almost no time.
        wanted = max(items // RANGE_ITEMS, min(4 * (shards - 1), items // PAGE_SIZE), 1)
        ranges += [Range(table.table, after, upto) for after, upto in ranges_of(engine, table, wanted)]
    return VerifyState(
        begun_at=begun_at,
        sample=sample,
        asked=None if asked is None else sorted(asked),
        covered=covered(tables, always_encrypt=StoreOptions.of(store).always_encrypt),
        total=total,
        ranges=ranges,
    )


def _checks(store: SealedStore, table: SealedTable, *, sample: float, said: Sequence[SetAside]) -> ItemChecks:
    aside = AsideRows(store.datastore.engine, [table], lambda: said)
    return ItemChecks(store, table, sample=sample, aside=aside)


def _checked(store: SealedStore, table: SealedTable, each: Range, **work: Any) -> Tally:
    return _checks(store, table, **work).run_all(each.after, each.upto)


def _checked_in_process(open_store: Callable[[], SealedStore], each: Range, **work: Any) -> Tally:
    with opened(open_store) as store:
        (table,) = registered_tables(store.datastore, store.cipher.application, [each.table])
        return _checked(store, table, each, **work)

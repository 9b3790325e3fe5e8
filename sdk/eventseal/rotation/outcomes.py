"""What a re-encryption has counted, and what it would do and how long that would take."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.cipher import ItemContext
from eventseal.errors import IntegrityError
from eventseal.keys.states import KeyState
from eventseal.rotation.compromised_items import miscounts
from eventseal.rotation.item_checks import ItemChecks, Tally
from eventseal.rotation.jobs.batches import failure_to_json
from eventseal.rotation.jobs.jobs import REENCRYPT, verb_of
from eventseal.rotation.jobs.sources import Standing
from eventseal.rotation.results import MAX_FAILURES, MAX_KEYS_LISTED, Failure, JobResult
from eventseal.rotation.rows_set_aside import SET_ASIDE, AsideRows, rows_set_aside
from eventseal.storage.database.transactions import read
from eventseal.storage.items.places import item_swaps
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.jobs.tables import reencryption_failures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Page
    from eventseal.rotation.jobs.sources import TableSources
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.jobs import Job
    from eventseal.storage.jobs.shards import Totals


OUTCOMES = ("done", "failed", "suspected", "skipped", "plain", "foreign", "erased", "left")
"""
What ``by_table`` counts: moved; not moved, for whatever reason, among them suspected forgeries and those
whose scope has no active key; in plain, where readers take that; another application's; shredded; still to
be moved. Rows that are set aside are counted only where there are some.
"""


class JobReport:
    """
    Makes the results of one call of ``reencrypt``.

    Args:
        store: What the job works on.
        tables: Those of the job.
        verb: Of the job.
    """

    def __init__(self, store: SealedStore, tables: Sequence[SealedTable], *, verb: str = REENCRYPT) -> None:
        self._verb = verb
        self._store = store
        self._tables = tables
        self._started = time.monotonic()
        self.sources: Sequence[TableSources] = ()
        """What the tables held at the last look; empty before one."""
        self._done_then = 0

    def counted(self, sources: Sequence[TableSources], totals: Totals) -> int:
        """
        Note what the tables hold now.

        Returns:
            How many items a pass could move.
        """
        self.sources = sources
        self._done_then = _sum(totals, "done")
        return sum(left_of(totals.by_table, source) for source in sources)

    def result(self, job: Job, *, complete: bool = False, settled: datetime | None = None) -> JobResult:
        """
        Say how far a job is.

        Args:
            job: As it was read.
            complete: Whether a last look found nothing more to move, when all had noticed the new keys.
            settled: When they will have.
        """
        engine = self._store.datastore.engine
        totals = read(engine, partial(job_shards.load_totals, job=job), doing="reading how far a job is")
        failures = self._failures(job)
        done, failed = _sum(totals, "done"), _sum(totals, "failed")
        aside = _sum(totals, SET_ASIDE)
        if self.sources:
            left = sum(left_of(totals.by_table, source) for source in self.sources) - (done - self._done_then)
        else:  # it has only gone on with a pass that was begun before
            left = job.total - done - failed - aside
        miscounted: list[Failure] = []
        if not totals.open_shards and self._verb == REENCRYPT:
            miscounted = self._miscounted()
        return JobResult(
            verb=self._verb,
            complete=complete,
            done=done,
            left=max(0, left),
            failed=failed + len(miscounted),
            seconds=time.monotonic() - self._started,
            job_id=job.job_id,
            by_table=by_table(totals.by_table, self._tables, self.sources),
            by_key=dict(islice(totals.by_key.items(), MAX_KEYS_LISTED)),
            failures=tuple([*miscounted, *failures][:MAX_FAILURES]),
            settles_at=settled,
        )

    def _failures(self, job: Job) -> list[Failure]:
        load = partial(job_shards.load_failures, job=job, limit=MAX_FAILURES)
        listed = read(self._store.datastore.engine, load, doing="reading the failures of a job")
        return [_failure(said, job) for said in listed]

    def _miscounted(self) -> list[Failure]:
        """Compare the marks of keys that are compromised still with what is left of their items."""
        found = miscounts(self._store, self._tables)
        records = self._store.key_store.get({miscount.key_id for miscount in found})
        return [
            failure_from_json(
                failure_to_json(
                    miscount.table, {"key_id": str(miscount.key_id)}, miscount.key_id, miscount.error()
                )
            )
            for miscount in found
            if miscount.key_id in records and records[miscount.key_id].state is KeyState.COMPROMISED
        ]


def by_table(
    counted: Mapping[str, Counter[str]], tables: Sequence[SealedTable], sources: Sequence[TableSources]
) -> dict[str, dict[str, int]]:
    """
    Put together what was counted while moving, and what is in the tables.

    Args:
        counted: By table and outcome, as the job has it.
        tables: Those of the job.
        sources: What each of them holds, if that was counted.
    """
    shown = {table.table: Counter(counted.get(table.table, {})) for table in tables}
    for source in sources:
        counts = shown[source.table.table]
        counts["left"] = left_of(counted, source)
        counts["plain"] = source.items.get(None, 0) + source.items.get(Standing.CHANCE, 0)
        counts["foreign"] = source.items.get(Standing.FOREIGN, 0)
        counts["erased"] = source.items.get(Standing.ERASED, 0)
    return {
        table: {outcome: counts[outcome] for outcome in (*OUTCOMES, *[SET_ASIDE] * bool(counts[SET_ASIDE]))}
        for table, counts in shown.items()
    }


def with_unsealed(store: SealedStore, sources: Sequence[TableSources], result: JobResult) -> JobResult:
    """
    Count rows of a result that were counted as plain as ``verify`` does: they may fail, or be set aside.

    Args:
        store: Whose readers they are.
        sources: What each table held at the last look.
        result: Of a re-encryption, or of its dry run.

    Raises:
        StoreError: The database refused or failed.
    """
    found = Tally()
    tables = [source.table for source in sources]
    aside = AsideRows(store.datastore.engine, tables, partial(rows_set_aside, store))
    for source in sources:
        for selection in source.unsealed():
            for page in ItemChecks(store, source.table, only=selection, aside=aside).run(None, None):
                found.add(page)
    shown = {table: dict(counts) for table, counts in result.by_table.items()}
    for name, counts in found.by_table.items():
        for outcome in ("failed", SET_ASIDE):
            if items := counts[outcome]:
                shown[name][outcome] = shown[name].get(outcome, 0) + items
                shown[name]["plain"] = max(0, shown[name]["plain"] - items)
    return replace(
        result,
        failed=result.failed + sum(counts["failed"] for counts in found.by_table.values()),
        by_table=shown,
        failures=tuple([*result.failures, *found.failures][:MAX_FAILURES]),
    )


def left_of(counted: Mapping[str, Counter[str]], source: TableSources) -> int:
    """Say how many items of a table are to be moved still, without those that no pass can move."""
    return max(0, source.moving - counted.get(source.table.table, Counter())["stuck"])


def _failure(said: Any, job: Job) -> Failure:
    """Give a failure as a job keeps it; an edited one says so, and costs no other."""
    try:
        return failure_from_json(said)
    except (AttributeError, TypeError, ValueError, LookupError):
        error = IntegrityError(
            f"an entry of reencryption_failures for job {job.job_id} was edited and cannot be read",
            remedy=f"Run `eventseal {verb_of(job.options)}` again: it finds what still fails.",
        )
        return Failure(
            table=reencryption_failures.name,
            row={"job_id": str(job.job_id)},
            key_id=None,
            error=type(error).__name__,
            message=str(error),
            remedy=error.remedy,
        )


def failure_from_json(said: Mapping[str, Any]) -> Failure:
    """Give a failure as a job keeps it, for people."""
    key_id = said["key_id"]
    texts = {name: str(said[name]) for name in ("table", "error", "message", "remedy")}
    row = {str(name): str(value) for name, value in said["row"].items()}
    return Failure(**texts, row=row, key_id=None if key_id is None else UUID(key_id))


def _sum(totals: Totals, outcome: str) -> int:
    return sum(counts[outcome] for counts in totals.by_table.values())


_SAMPLE = 1000
_WHOLE = 4
"""How often opening a page, and how often reading it, stands for all of the work: an item is opened, sealed,
opened again; its row is read, found again, written, and indexed twice. Cautious on the machines measured."""


def estimate(
    store: SealedStore, sources: Sequence[TableSources], *, workers: int, items_per_second: float | None
) -> JobResult:
    """
    Count what would be moved, and open a sample of it; nothing is changed.

    Args:
        store: Its items and keys.
        sources: What each table holds.
        workers: That would share the work.
        items_per_second: The throttle.
    """
    started = time.monotonic()
    items = sum(source.moving for source in sources)
    seconds = sum(_seconds_each(store, source) * source.moving for source in sources if source.moving)
    seconds /= min(workers, os.cpu_count() or 1)
    if items_per_second is not None:
        seconds = max(seconds, items / items_per_second)
    by_key: Counter[UUID] = Counter()
    for source in sources:
        by_key.update(source.by_key)
    return JobResult(
        verb="reencrypt",
        complete=True,
        done=0,
        left=items,
        failed=0,
        seconds=time.monotonic() - started,
        by_table=by_table({}, [source.table for source in sources], sources),
        by_key=dict(by_key),
        estimated_seconds=seconds,
    )


def _seconds_each(store: SealedStore, source: TableSources) -> float:
    swaps = item_swaps(store.datastore.engine, source.table)
    selection = next(iter(source.selections(())))[1]

    def look(connection: Connection) -> Page:
        return swaps.page(connection, selection, after=None, upto=None, limit=_SAMPLE)

    store.keyring.opening_keys(list(source.by_key)[:_SAMPLE])  # the KMS is asked once, not for each item
    started = time.perf_counter()
    page = read(store.datastore.engine, look, doing=f"reading a sample of {source.table.table}")
    if not page:
        return 0.0
    collection = source.table.collection
    places = zip(page.sequence_ids, page.positions, page.topics, strict=True)
    contexts = [ItemContext(*place, collection) for place in places]
    store.cipher.open_many(list(zip(page.envelopes, contexts, strict=True)))
    return _WHOLE * (time.perf_counter() - started) / len(page)

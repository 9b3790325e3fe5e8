"""The passes of a job over its tables, until nothing is left."""

from __future__ import annotations

import time
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from eventseal.errors import JobError
from eventseal.rotation.fences import record_missing_compromised
from eventseal.rotation.jobs.jobs import JobReport, verb_of
from eventseal.rotation.jobs.sources import KeyStatus
from eventseal.rotation.jobs.workers import ShardWorker, Workers, broken_pool_named, opened, ranges_of
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.database.transactions import write
from eventseal.storage.items.swaps import place_to_json, selection_to_json
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Place
    from eventseal.rotation.jobs.older_formats import ScopeOf
    from eventseal.rotation.jobs.sources import TableSources
    from eventseal.rotation.results import JobResult
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.jobs import Job
    from eventseal.storage.jobs.shards import Totals


MOST_PASSES = 4
"""
The most passes in one call.

A look also counts as a pass if another run joined the job after it. If keys are rotated again and again, the
next call continues (docs/decisions/0012).
"""

SMALL_TABLE = 10_000
"""A table with fewer items than this is one range."""

_RANGE_ITEMS = 250_000
_RANGES_PER_WORKER = 4
_TOLD_EVERY = 0.2
_WAIT = 0.1


@dataclass(eq=False)
class Passes:
    """
    One call of ``reencrypt`` or ``migrate`` on its job.

    Attributes:
        store: The store that the job works on.
        job: A job that is running or finished.
        tables: The tables of the job.
        workers: The workers of this call.
        look: Counts the items in the tables that need work.
        settles: Returns until when other processes may add items that need work. ``None``: none does.
        scope_of: For a migration, returns the scope of an item. Other processes must be able to import it.
        heads: The first bytes of envelopes that the first pass leaves as they are. Empty: only keys decide.
        progress: Called from time to time.
    """

    store: SealedStore
    job: Job
    tables: Sequence[SealedTable]
    workers: Workers
    _: KW_ONLY
    look: Callable[[], Sequence[TableSources]]
    settles: Callable[[], datetime | None] = lambda: None
    scope_of: ScopeOf | None = None
    heads: tuple[bytes, ...] = ()
    progress: Callable[[JobResult], None] | None

    def __post_init__(self) -> None:
        self.report = JobReport(self.store, self.tables, verb_of(self.job.options))
        self._engine = self.store.datastore.engine
        self._told = time.monotonic()
        self._telling = Lock()

    def run(self) -> JobResult:
        """Do the job's work, as described in ``reencrypt``."""
        begun = 0
        while self._reread().state != jobs.PAUSED:
            totals = self._totals()
            if totals.open_shards and self.job.state == jobs.RUNNING:
                self._work()
                continue
            # Read this time before the look: the look proves that nothing is left only if all processes had
            # noticed the rotation when it began (docs/decisions/0012).
            settled = self.settles()
            sources = self.look()
            left = self.report.counted(sources, totals)
            if self.job.state == jobs.FINISHED:
                complete = settled is None and not left
                result = self.report.result(self.job, complete=complete, settled=settled)
                return replace(result, job_id=None) if left else result  # only a new job does the rest
            over = self.job.pass_number > 0 and not left
            if over and self._end(settled):
                return self.report.result(self.job, complete=settled is None, settled=settled)
            if begun == MOST_PASSES:
                return self.report.result(self.job, settled=settled)
            begun += over or self._begin_pass(sources)
        return self.report.result(self.job)

    # --- passes ---

    def _begin_pass(self, sources: Sequence[TableSources]) -> bool:
        """Cut the tables into ranges, unless another run has just done so."""
        compromised = [key_id for source in sources for key_id in source.keys.get(KeyStatus.COMPROMISED, ())]
        record_missing_compromised(self.store, set(compromised), self.tables)
        heads = () if self.job.pass_number else self.heads
        planned = [
            (source, phase, selection, after, upto)
            for source in sources
            for phase, selection in source.selections(heads)
            for after, upto in self._ranges_of(source)
        ]

        def begin(connection: Connection) -> bool:
            job = jobs.lock_job(connection, self.job.job_id)
            if job.pass_number != self.job.pass_number or job.state in {jobs.PAUSED, jobs.FINISHED}:
                return False
            number = job_shards.next_shard_number(connection, job.job_id)
            job_shards.insert_shards(
                connection,
                [
                    job_shards.Shard(
                        job_id=job.job_id,
                        number=number + index,
                        pass_number=job.pass_number + 1,
                        phase=phase,
                        table_name=source.table.table,
                        selection=selection_to_json(selection),
                        upto=None if upto is None else place_to_json(upto),
                        cursor=None if after is None else place_to_json(after),
                        counts={},
                    )
                    for index, (source, phase, selection, after, upto) in enumerate(planned)
                ],
            )
            job_shards.drop_old_failures(connection, job.job_id, job.pass_number + 1)
            # After an older look, another run may have set the job to settling.
            jobs.update_job(connection, job.job_id, pass_number=job.pass_number + 1, state=jobs.RUNNING)
            return True

        return write(self._engine, begin, doing="beginning a pass over the tables")

    def _ranges_of(self, source: TableSources) -> list[tuple[Place | None, Place | None]]:
        items = sum(source.items.values())
        ranges = max(_RANGES_PER_WORKER * self.workers.shards, items // _RANGE_ITEMS)
        return ranges_of(self._engine, source.table, ranges if items >= SMALL_TABLE else 1)

    def _end(self, settled: datetime | None) -> bool:
        """
        End the job after a look that found nothing more to do.

        Returns:
            False if another run joined or changed the job after that look began. The caller must look again.
        """

        def end(connection: Connection) -> bool:
            job = jobs.lock_job(connection, self.job.job_id)
            if job != self.job:
                return False
            if settled is None:
                jobs.finish_job(connection, job.job_id)
            elif job.state == jobs.RUNNING:  # an attempt after a lost COMMIT must find the row unchanged
                jobs.update_job(connection, job.job_id, state=jobs.SETTLING)
            return True

        return write(self._engine, end, doing="ending a job")

    # --- workers ---

    def _work(self) -> None:
        """Work until no range is free. If others hold some, wait a moment."""
        if self.workers.executor is None:
            self._worker().work()
        else:
            with broken_pool_named("Run the same command again. The job continues where it stopped."):
                self._work_elsewhere(self.workers.executor)
        if self._totals().open_shards:
            time.sleep(_WAIT)
        self._tell()

    def _worker(self) -> ShardWorker:
        return ShardWorker(
            self.store,
            self.job,
            {table.table: table for table in self.tables},
            batch=self.workers.batch,
            run=self.workers.run,
            scope_of=self.scope_of,
            on_batch=self._tell,
        )

    def _work_elsewhere(self, executor: Executor) -> None:
        own = self.workers
        if own.open_store is None:
            work: Callable[[], None] = lambda: self._worker().work()  # noqa: E731
        else:
            work = partial(
                work_in_process, own.open_store, self.job.job_id, own.batch, own.run, self.scope_of
            )
        workers: set[Future[None]] = set()
        try:
            workers |= {executor.submit(work) for _ in range(own.shards)}
            pending = set(workers)
            while pending:
                done, pending = wait(pending, timeout=_TOLD_EVERY)
                for future in done:
                    future.result()
                self._tell()
        except BaseException as error:
            if not isinstance(error, BrokenProcessPool):
                self._stop_workers(workers)
            raise

    def _stop_workers(self, workers: set[Future[None]]) -> None:
        """Stop this run's workers after their batches, and wait for them."""
        for future in workers:
            future.cancel()

        def stop(connection: Connection) -> None:
            job = jobs.lock_job(connection, self.job.job_id)
            jobs.update_job(connection, job.job_id, stopped_runs=[*job.stopped_runs, self.workers.run])

        write(self._engine, stop, doing="stopping the workers of a job")
        wait(workers)

    # --- results ---

    def _reread(self) -> Job:
        self.job = _job_of(self.store, self.job.job_id)
        return self.job

    def _totals(self) -> Totals:
        return job_shards.load_totals(self._engine, self.job)

    def _tell(self) -> None:
        """
        Report progress from time to time.

        One thread reports at a time, so that no older count comes after a newer one.
        """
        if self.progress is None or not self._telling.acquire(blocking=False):
            return
        try:
            if (now := time.monotonic()) - self._told >= _TOLD_EVERY:
                self._told = now
                self.progress(self.report.result(self.job))
        finally:
            self._telling.release()


def work_in_process(
    open_store: Callable[[], SealedStore], job_id: UUID, batch: int, run: str, scope_of: ScopeOf | None
) -> None:
    """
    Run one worker of a job, with its own store.

    Args:
        open_store: Opens the worker's store.
        job_id: A running job.
        batch: The most items in one transaction.
        run: The call of the verb that the worker belongs to.
        scope_of: For a migration, returns the scope of an item.
    """
    with opened(open_store) as store:
        job = _job_of(store, job_id)
        tables = registered_tables(store.datastore, store.cipher.application, job.options["tables"])
        by_name = {table.table: table for table in tables}
        ShardWorker(store, job, by_name, batch=batch, run=run, scope_of=scope_of).work()


def _job_of(store: SealedStore, job_id: UUID) -> Job:
    job = jobs.load_job(store.datastore.engine, store.cipher.application, job_id)
    if job is not None:
        return job
    raise JobError(
        f"job {job_id} was deleted while it ran",
        remedy="Run the command again without the job's id. Finished items stay done.",
    )

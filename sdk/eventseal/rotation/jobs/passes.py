"""The passes of a job over its tables, until a look at the key ids finds nothing more to move."""

from __future__ import annotations

import time
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from eventseal.errors import JobError
from eventseal.rotation.compromised_items import record_missing_marks
from eventseal.rotation.jobs.sources import Standing
from eventseal.rotation.jobs.workers import ShardWorker
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.database.transactions import read, write
from eventseal.storage.items.rows import range_bounds
from eventseal.storage.items.swaps import place_to_json, selection_to_json
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.rotation.jobs.old_items import ScopeOf
    from eventseal.rotation.jobs.sources import TableSources
    from eventseal.rotation.outcomes import JobReport
    from eventseal.rotation.results import JobResult
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.jobs import Job
    from eventseal.storage.jobs.shards import Totals


MOST_PASSES = 4
"""
Passes in one call. A look after which another run had joined the job counts as one.

If keys are rotated again and again, the next call continues.
"""

SMALL_TABLE = 10_000
"""Items of a table that is one range."""

_RANGE_ITEMS = 250_000
_RANGES_PER_WORKER = 4
_MOST_RANGES = 4096
_TOLD_EVERY = 0.2
_WAIT = 0.1


class Passes:
    """
    One call of ``reencrypt``, or of ``migrate``, on its job.

    Args:
        store: What the job works on.
        job: Running, or finished.
        tables: Those of the job.
        look: Counts what the tables hold to move.
        settles: Says until when others may still append what the job is to move; ``None``: nobody does.
        scope_of: Gives an item's scope where the job is a migration; must be importable in other processes.
        heads: How envelopes begin that its first pass leaves where they are; none: only their keys decide.
        batch: Items in a transaction at most.
        shards: Workers to give the executor.
        executor: Runs the workers; ``None``: one in this thread.
        open_store: Opens the store in a worker; ``None``: it is given this one.
        run: Names this call.
        progress: Called now and then.
        report: Makes the results.
    """

    def __init__(
        self,
        store: SealedStore,
        job: Job,
        tables: Sequence[SealedTable],
        *,
        look: Callable[[], Sequence[TableSources]],
        settles: Callable[[], datetime | None] = lambda: None,
        scope_of: ScopeOf | None = None,
        heads: tuple[bytes, ...] = (),
        batch: int,
        shards: int,
        executor: Executor | None,
        open_store: Callable[[], SealedStore] | None,
        run: str,
        progress: Callable[[JobResult], None] | None,
        report: JobReport,
    ) -> None:
        self._store = store
        self._engine = store.datastore.engine
        self._job = job
        self._tables = tables
        self._look = look
        self._settles = settles
        self._scope_of = scope_of
        self._heads = heads
        self._batch = batch
        self._shards = shards
        self._executor = executor
        self._open_store = open_store
        self._run = run
        self._progress = progress
        self._told = time.monotonic()
        self._telling = Lock()
        self._report = report

    def run(self) -> JobResult:
        """Move what there is to move; see ``reencrypt``."""
        begun = 0
        while self._reread().state != jobs.PAUSED:
            totals = self._totals()
            if totals.open_shards and self._job.state == jobs.RUNNING:
                self._work()
                continue
            settled = self._settles()
            sources = self._look()
            left = self._report.counted(sources, totals)
            if self._job.state == jobs.FINISHED:
                complete = settled is None and not left
                result = self._report.result(self._job, complete=complete, settled=settled)
                return replace(result, job_id=None) if left else result  # only a new job moves what is left
            over = self._job.pass_number > 0 and not left
            if over and self._end(settled):
                return self._report.result(self._job, complete=settled is None, settled=settled)
            if begun == MOST_PASSES:
                return self._report.result(self._job, settled=settled)
            begun += over or self._begin_pass(sources)
        return self._report.result(self._job)

    # --- passes ---

    def _begin_pass(self, sources: Sequence[TableSources]) -> bool:
        """Cut the tables into ranges, unless another rotator has just done so."""
        compromised = [key_id for source in sources for key_id in source.keys.get(Standing.COMPROMISED, ())]
        record_missing_marks(self._store, set(compromised), self._tables)
        heads = () if self._job.pass_number else self._heads
        planned = [
            (source, phase, selection, read(self._engine, self._bounds_of(source), doing="sampling a table"))
            for source in sources
            for phase, selection in source.selections(heads)
        ]

        def begin(connection: Connection) -> bool:
            job = jobs.lock_job(connection, self._job.job_id)
            if job.pass_number != self._job.pass_number or job.state in {jobs.PAUSED, jobs.FINISHED}:
                return False
            number = job_shards.next_shard_number(connection, job.job_id)
            ranges = (
                (source, phase, selection, after, upto)
                for source, phase, selection, bounds in planned
                for after, upto in zip([None, *bounds], [*bounds, None], strict=True)
            )
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
                    for index, (source, phase, selection, after, upto) in enumerate(ranges)
                ],
            )
            job_shards.drop_old_failures(connection, job.job_id, job.pass_number + 1)
            # Another run may have set the job to settling after an older look.
            jobs.update_job(connection, job.job_id, pass_number=job.pass_number + 1, state=jobs.RUNNING)
            return True

        return write(self._engine, begin, doing="beginning a pass over the tables")

    def _bounds_of(self, source: TableSources) -> Callable[[Connection], list[tuple[Any, Any]]]:
        items = sum(source.items.values())
        ranges = 1
        if items >= SMALL_TABLE:
            ranges = max(_RANGES_PER_WORKER * self._shards, items // _RANGE_ITEMS)
        return lambda connection: range_bounds(connection, source.table, min(ranges, _MOST_RANGES))

    def _end(self, settled: datetime | None) -> bool:
        """
        End the job after a look that found nothing more to move.

        Returns:
            False if another run joined the job, or changed it, after that look began. The caller looks again.
        """

        def end(connection: Connection) -> bool:
            job = jobs.lock_job(connection, self._job.job_id)
            if job != self._job:
                return False
            if settled is None:
                jobs.finish_job(connection, job.job_id)
            elif job.state == jobs.RUNNING:  # an attempt after a lost COMMIT must find the row unchanged
                jobs.update_job(connection, job.job_id, state=jobs.SETTLING)
            return True

        return write(self._engine, end, doing="ending a job")

    # --- workers ---

    def _work(self) -> None:
        """Work on the pass until nothing of it is free; wait a moment if others hold the rest."""
        if self._executor is None:
            self._worker().work()
        else:
            self._work_elsewhere(self._executor)
        if self._totals().open_shards:
            time.sleep(_WAIT)
        self._tell()

    def _worker(self) -> ShardWorker:
        return ShardWorker(
            self._store,
            self._job,
            {table.table: table for table in self._tables},
            batch=self._batch,
            run=self._run,
            scope_of=self._scope_of,
            on_batch=self._tell,
        )

    def _work_elsewhere(self, executor: Executor) -> None:
        if self._open_store is None:
            work: Callable[[], None] = lambda: self._worker().work()  # noqa: E731
        else:
            work = partial(
                work_in_process, self._open_store, self._job.job_id, self._batch, self._run, self._scope_of
            )
        workers: set[Future[None]] = set()
        try:
            workers |= {executor.submit(work) for _ in range(self._shards)}
            pending = set(workers)
            while pending:
                done, pending = wait(pending, timeout=_TOLD_EVERY)
                for future in done:
                    future.result()
                self._tell()
        except BrokenProcessPool:
            raise JobError(
                "a worker process ended in the middle of its work",
                remedy="Run the same command again; the job goes on from there.",
            ) from None
        except BaseException:
            self._stop_workers(workers)
            raise

    def _stop_workers(self, workers: set[Future[None]]) -> None:
        """End this run's workers behind their batches, and wait for them."""
        for future in workers:
            future.cancel()

        def stop(connection: Connection) -> None:
            job = jobs.lock_job(connection, self._job.job_id)
            jobs.update_job(connection, job.job_id, stopped_runs=[*job.stopped_runs, self._run])

        write(self._engine, stop, doing="stopping the workers of a job")
        wait(workers)

    # --- results ---

    def _reread(self) -> Job:
        load = partial(jobs.load_job, application=self._job.application, job_id=self._job.job_id)
        job = read(self._engine, load, doing="reading a job")
        if job is None:
            raise _deleted(self._job.job_id)
        self._job = job
        return job

    def _totals(self) -> Totals:
        return read(
            self._engine, partial(job_shards.load_totals, job=self._job), doing="reading how far a job is"
        )

    def _tell(self) -> None:
        """Tell how far the job is, now and then: one thread at a time, so that no older count comes after."""
        if self._progress is None or not self._telling.acquire(blocking=False):
            return
        try:
            if (now := time.monotonic()) - self._told >= _TOLD_EVERY:
                self._told = now
                self._progress(self._report.result(self._job))
        finally:
            self._telling.release()


def work_in_process(
    open_store: Callable[[], SealedStore], job_id: UUID, batch: int, run: str, scope_of: ScopeOf | None
) -> None:
    """
    Be one worker of a job, with a store of its own.

    Args:
        open_store: Opens it.
        job_id: Of a running job.
        batch: Items in a transaction at most.
        run: Which call of the verb it belongs to.
        scope_of: Gives an item's scope where the job is a migration.
    """
    store = open_store()
    try:
        load = partial(jobs.load_job, application=store.cipher.application, job_id=job_id)
        job = read(store.datastore.engine, load, doing="reading a job")
        if job is None:
            raise _deleted(job_id)
        tables = registered_tables(store.datastore, store.cipher.application, job.options["tables"])
        by_name = {table.table: table for table in tables}
        ShardWorker(store, job, by_name, batch=batch, run=run, scope_of=scope_of).work()
    finally:
        close = getattr(store, "close", None)
        if close is not None:
            close()


def _deleted(job_id: UUID) -> JobError:
    return JobError(
        f"somebody deleted job {job_id} while it ran",
        remedy="Run the command again, without the job's id: what was moved stays moved.",
    )

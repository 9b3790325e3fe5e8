"""A worker: takes ranges of a job, one after the other, and moves their items until no range is free."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from eventseal.errors import StoreError
from eventseal.rotation.batches import ShardLostError
from eventseal.rotation.movers import table_movers
from eventseal.rotation.pacing import Pacer
from eventseal.rotation.workers import end_worker, is_dead, new_worker
from eventseal.storage import jobs
from eventseal.storage.other_writers import OtherWriters
from eventseal.storage.transactions import read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Connection

    from eventseal.rotation.batches import TableMover
    from eventseal.rotation.old_items import ScopeOf
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.jobs import Job, Shard
    from eventseal.storage.sealed_table import SealedTable

LEASE = timedelta(seconds=10)
"""How long a worker whose process cannot be looked at may be silent before others take its range."""
STEP_ASIDE = 0.25
"""
Seconds for which a worker leaves SQLite's one write lock to others between two batches, while they write.

An append that meets the lock waits for milliseconds; so long a pause keeps those under one in a hundred,
however fast they come.
"""


class _Stopped(Exception):  # noqa: N818 - no error: the job was paused, or the run is to end
    pass


class ShardWorker:
    """
    Works on the ranges of a job's current pass.

    Args:
        store: What the job works on.
        job: As it was read.
        tables: The registered tables, by name.
        batch: Items in a transaction at most.
        run: Which call of the verb it belongs to.
        scope_of: Gives an item's scope where the job is a migration: from the caller, never from the row.
        on_batch: Called after each batch.
        sleep: Waits for seconds, where the job is throttled.
        now: The throttle's clock; ``None``: the database's.
    """

    def __init__(
        self,
        store: SealedStore,
        job: Job,
        tables: Mapping[str, SealedTable],
        *,
        batch: int,
        run: str,
        scope_of: ScopeOf | None = None,
        on_batch: Callable[[], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._store = store
        self._engine = store.datastore.engine
        self._job = job
        self._tables = tables
        self._batch = batch
        self._run = run
        self._on_batch = on_batch
        self._pacer = Pacer(self._engine, job, sleep=sleep, now=now)
        self._others = OtherWriters(self._engine)
        self._sleep = sleep
        self._new_mover = table_movers(store, job, scope_of)
        self._movers: dict[str, TableMover] = {}
        self._worker = new_worker()

    def work(self) -> None:
        """
        Work until no range is free, or until the job is paused or the run is ended.

        Raises:
            IntegrityError: The job's row, or one of its ranges', was edited so that it cannot be read.
            KmsError: The KMS refused or failed; what was moved stays so.
            StoreError: The database refused or failed.
        """
        try:
            with suppress(_Stopped):
                self._work()
        finally:
            end_worker(self._worker)
            self._others.close()
            with suppress(StoreError):  # others see that this worker has ended
                release = partial(jobs.release_shards, worker=self._worker)
                write(self._engine, release, doing="giving up a range of a job")

    def _work(self) -> None:
        claim = partial(jobs.claim_shard, job=self._job, worker=self._worker, lease=LEASE, is_dead=is_dead)
        while True:
            read(self._engine, self._check_running, doing="reading a job")
            shard = write(self._engine, claim, doing="taking a range of a job")
            if shard is None:
                return
            # What was rotated a moment ago must be a source here, and not the target any more.
            self._store.keyring.refresh()
            with suppress(ShardLostError):
                self._finish(shard)

    def _finish(self, shard: Shard) -> None:
        """Move a range's items, batch by batch, to its end."""
        mover = self._mover(shard)
        limit = self._pacer.most(mover.most_rows(self._batch))
        others_write = False
        while page := mover.page(shard, limit, self._check_running):
            self._pacer.wait(len(page), self._show_life)
            if others_write or self._others.wrote():
                self._sleep(STEP_ASIDE)
                others_write = self._others.wrote()
            shard = mover.move(shard, page, self._worker)
            self._others.begin()
            if self._on_batch is not None:
                self._on_batch()
        end = partial(jobs.advance_shard, shard=shard, worker=self._worker, done=True)
        write(self._engine, end, doing="ending a range of a job")

    def _mover(self, shard: Shard) -> TableMover:
        table = shard.table_name
        if table not in self._tables:
            raise jobs.unreadable_shard(self._engine, shard.job_id, shard.number, ["table_name"])
        if table not in self._movers:
            self._movers[table] = self._new_mover(self._tables[table])
        return self._movers[table]

    def _show_life(self) -> None:
        write(
            self._engine, partial(jobs.see_worker, worker=self._worker), doing="showing that a worker lives"
        )
        read(self._engine, self._check_running, doing="reading a job")

    def _check_running(self, connection: Connection) -> None:
        if not jobs.may_run(connection, self._job.job_id, self._run):
            raise _Stopped

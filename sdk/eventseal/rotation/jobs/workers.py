"""Workers: each takes ranges of a job, one after the other, at the pace that the job allows."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from eventseal.errors import StoreError
from eventseal.rotation.jobs.batches import ShardLostError
from eventseal.rotation.jobs.resealers import table_movers
from eventseal.storage.database.faults import SQLiteContention
from eventseal.storage.database.transactions import read, write
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.jobs.jobs import lock_job_pace, store_job_pace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Connection, Engine

    from eventseal.rotation.jobs.batches import TableMover
    from eventseal.rotation.jobs.old_items import ScopeOf
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.jobs import Job
    from eventseal.storage.jobs.shards import Shard


_PARTS = 3
_live: set[str] = set()
"""The workers of this process that work."""


def new_worker() -> str:
    """Name a worker of this process: machine, process, when that began, and a number of its own."""
    worker = f"{_machine()}|{os.getpid()}|{_start_of(os.getpid())}|{uuid4().hex}"
    _live.add(worker)
    return worker


def end_worker(worker: str) -> None:
    """Forget a worker: what it still holds is free."""
    _live.discard(worker)


def is_dead(worker: str) -> bool:
    """
    Whether a worker is known to have ended: its process did, or, within this process, it did itself.

    Of another machine's, where processes cannot be told apart, or of an edited name, nothing is known.
    """
    machine, *rest = worker.split("|")
    if machine != _machine() or len(rest) != _PARTS or not (rest[0].isdecimal() and rest[0].isascii()):
        return False
    pid, start, _ = rest
    if not start:
        return False
    if pid == str(os.getpid()) and start == _start_of(os.getpid()):
        return worker not in _live
    return _start_of(pid) != start


@lru_cache(maxsize=1)
def _machine() -> str:
    """Name what process ids are unique in: a container's are its own."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        booted = namespace = ""
    return f"{socket.gethostname()}/{booted}/{namespace}".replace("|", "")


def _start_of(pid: int | str) -> str:
    """Say when a process began, in the kernel's ticks; empty if there is none, or nothing tells."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The second field is the program's name, in parentheses, and may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in {"Z", "X"} else fields[18]


_SLICE = 0.5
"""Seconds that a worker sleeps at most before it shows that it lives, and looks whether it is to stop."""


class Pacer:
    """
    Holds a job's workers back, so that all together move no more items a second than they may.

    Each batch takes its time out of the job's row before it begins; who comes while others have taken more
    than has passed waits for the difference.

    Args:
        engine: Of the items' database.
        job: As it was read.
        sleep: Waits for seconds.
        now: Seconds by one clock for all workers; ``None``: the database's.
    """

    def __init__(
        self,
        engine: Engine,
        job: Job,
        *,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._engine = engine
        self._job_id = job.job_id
        self._rate = job.items_per_second
        self._sleep = sleep
        self._now = now

    def most(self, batch: int) -> int:
        """Say how many items a batch may have: at most about a second's worth, and at least one."""
        return batch if self._rate is None else max(1, min(batch, int(self._rate)))

    def wait(self, items: int, between: Callable[[], None]) -> None:
        """
        Take the time of *items*, and wait until it has come.

        Args:
            items: That are about to be moved.
            between: Called again and again while waiting.
        """
        rate = self._rate
        if rate is None or not items:
            return

        def take(connection: Connection) -> float:
            paced_until, stored_now = lock_job_pace(connection, self._job_id)
            now = stored_now if self._now is None else self._now()
            begins = max(now, paced_until or now)
            store_job_pace(connection, self._job_id, begins + items / rate)
            return begins - now

        left = write(self._engine, take, doing="taking a job's pace")
        while left > 0:
            self._sleep(min(left, _SLICE))
            left -= _SLICE
            between()


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
        self._others = SQLiteContention(self._engine)
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
                release = partial(job_shards.release_shards, worker=self._worker)
                write(self._engine, release, doing="giving up a range of a job")

    def _work(self) -> None:
        claim = partial(
            job_shards.claim_shard, job=self._job, worker=self._worker, lease=LEASE, is_dead=is_dead
        )
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
        end = partial(job_shards.advance_shard, shard=shard, worker=self._worker, done=True)
        write(self._engine, end, doing="ending a range of a job")

    def _mover(self, shard: Shard) -> TableMover:
        table = shard.table_name
        if table not in self._tables:
            raise job_shards.unreadable_shard(self._engine, shard.job_id, shard.number, ["table_name"])
        if table not in self._movers:
            self._movers[table] = self._new_mover(self._tables[table])
        return self._movers[table]

    def _show_life(self) -> None:
        job_shards.see_worker(self._engine, self._worker)
        read(self._engine, self._check_running, doing="reading a job")

    def _check_running(self, connection: Connection) -> None:
        if not jobs.may_run(connection, self._job.job_id, self._run):
            raise _Stopped

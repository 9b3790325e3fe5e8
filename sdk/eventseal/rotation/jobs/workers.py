"""Workers. Each takes one range of a job after another, at the job's rate."""

from __future__ import annotations

import math
import os
import socket
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from eventseal.errors import ConfigurationError, JobError, StoreError
from eventseal.rotation.jobs.jobs import collection_of, keys_of
from eventseal.rotation.jobs.older_formats import OldItemResealer
from eventseal.rotation.jobs.resealers import CollectionResealer, ShardLostError, TableResealer
from eventseal.rotation.jobs.sources import KeyStatuses
from eventseal.rotation.sealed_store import accepted_in, configured_formats
from eventseal.storage.database.column_types import LEAST_RATE
from eventseal.storage.database.faults import SQLiteContention
from eventseal.storage.database.transactions import write
from eventseal.storage.items.rows import range_bounds
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.jobs.jobs import lock_job_pace, store_job_pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import Connection, Engine

    from eventseal.items.sealed_places import Place
    from eventseal.rotation.jobs.older_formats import ScopeOf
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.jobs import Job
    from eventseal.storage.jobs.shards import Shard


_MOST_RANGES = 4096
MOST_IN_A_BATCH = 100_000
"""An upper bound only. The size of a page in bytes usually limits a batch first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """
    The workers of one call of a verb, and their speed.

    Attributes:
        batch: The most items in one transaction, from 1 to 100,000.
        shards: The number of workers to run in the *executor*, 1 or more.
        items_per_second: The highest rate of all workers together. ``None``: no limit.
        executor: Runs the workers. ``None``: one worker runs in this thread.
        open_store: Opens the store in a worker. Workers in other processes need it and must be able to import
            it.
        run: The name of this call.

    Raises:
        ConfigurationError: A number is out of its range, or workers in other processes lack *open_store*.
    """

    batch: int = 1
    shards: int = 1
    items_per_second: float | None = None
    executor: Executor | None = None
    open_store: Callable[[], SealedStore] | None = None
    run: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MOST_IN_A_BATCH:
            raise ConfigurationError(f"batch is {self.batch}. It must be from 1 to {MOST_IN_A_BATCH:,}")
        if self.shards < 1:
            raise ConfigurationError(f"shards is {self.shards}. It must be at least 1")
        rate = self.items_per_second
        if rate is not None and not LEAST_RATE <= rate < math.inf:
            raise ConfigurationError(
                f"items_per_second is {rate}. It must be {LEAST_RATE} or more, and a finite number",
                remedy="Omit it to work without a limit.",
            )
        if isinstance(self.executor, ProcessPoolExecutor) and self.open_store is None:
            raise ConfigurationError(
                "workers in other processes cannot use this store, because keys never leave their process",
                remedy="Pass open_store=, a function that they can import, such as EventSeal.from_settings.",
            )

    def in_time(self, items: int, seconds: float) -> float:
        """Estimate the time for *items* that take one worker *seconds*."""
        seconds /= min(self.shards, os.cpu_count() or 1)
        return seconds if self.items_per_second is None else max(seconds, items / self.items_per_second)


def ranges_of(engine: Engine, table: SealedTable, ranges: int) -> list[tuple[Place | None, Place | None]]:
    """
    Cut a table into ranges of about equal size.

    Each begins after its first place, and ends with its second. ``None``: the start or the end of the table.
    """
    bounds = range_bounds(engine, table, min(ranges, _MOST_RANGES))
    return list(zip([None, *bounds], [*bounds, None], strict=True))


@contextmanager
def opened(open_store: Callable[[], SealedStore]) -> Iterator[SealedStore]:
    """Open a store in a worker. At the end, close it if it has ``close``."""
    store = open_store()
    try:
        yield store
    finally:
        getattr(store, "close", lambda: None)()


@contextmanager
def broken_pool_named(remedy: str) -> Iterator[None]:
    """If a process of an executor ends, raise an error with *remedy*."""
    try:
        yield
    except BrokenProcessPool:
        raise JobError("a worker process ended before its work was done", remedy=remedy) from None


_PARTS = 3
_live: set[str] = set()
"""The workers of this process that are working."""


def new_worker() -> str:
    """Create a worker's name: its machine, process, process start and a number."""
    worker = f"{_machine()}|{os.getpid()}|{_start_of(os.getpid())}|{uuid4().hex}"
    _live.add(worker)
    return worker


def end_worker(worker: str) -> None:
    """Forget a worker, so that its ranges become free."""
    _live.discard(worker)


def is_dead(worker: str) -> bool:
    """
    Return whether a worker is known to have ended.

    It has ended if its process has. A worker of this process has also ended if :func:`end_worker` was called.
    Nothing is known of a worker on another machine, or of one whose name was edited. The same applies on a
    machine that does not show when a process began.
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
    """Return the name of the machine or container that numbers the processes."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        booted = namespace = ""
    return f"{socket.gethostname()}/{booted}/{namespace}".replace("|", "")


def _start_of(pid: int | str) -> str:
    """Return when a process began, in kernel ticks. Empty: it ended or is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The second field is the program's name, in parentheses, and may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in {"Z", "X"} else fields[18]


_SLICE = 0.5
"""
The most seconds that a worker sleeps before it checks for stops.

It also shows then that it is alive.
"""


@dataclass(eq=False)
class Pacer:
    """
    Limits the items per second of all workers of a job together.

    Before a batch begins, it reserves its time in the job's row. If other workers have reserved more time
    than has passed, it waits for the difference.

    Attributes:
        engine: The engine of the items' database.
        job: The job as it was read.
        sleep: Waits for a number of seconds.
        now: A clock in seconds that all workers share. ``None``: the database's clock.
    """

    engine: Engine
    job: Job
    _: KW_ONLY
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] | None = None

    def most(self, batch: int) -> int:
        """
        Return the most items of a batch.

        At the job's rate, they take at most about a second. It is at least one item.
        """
        rate = self.job.items_per_second
        return batch if rate is None else max(1, min(batch, int(rate)))

    def wait(self, items: int, between: Callable[[], None]) -> None:
        """
        Reserve time for *items*, and wait until it has come.

        Args:
            items: The number of items in the next batch.
            between: Called repeatedly while waiting.
        """
        rate = self.job.items_per_second
        if rate is None or not items:
            return

        def take(connection: Connection) -> float:
            paced_until, stored_now = lock_job_pace(connection, self.job.job_id)
            now = stored_now if self.now is None else self.now()
            begins = max(now, paced_until or now)
            store_job_pace(connection, self.job.job_id, begins + items / rate)
            return begins - now

        left = write(self.engine, take, doing="reserving time for a job's batch")
        while left > 0:
            self.sleep(min(left, _SLICE))
            left -= _SLICE
            between()


LEASE = timedelta(seconds=10)
"""
How long a worker may be silent before another takes its range.

It counts only for workers whose process cannot be checked.
"""
STEP_ASIDE = 0.25
"""
Seconds between two batches on SQLite while other processes write.

SQLite has one write lock, which stays free for that time.
An append that finds the lock taken waits for milliseconds. A pause of this length keeps such appends under
one in a hundred, however fast they come (docs/decisions/0012).
"""


class _Stopped(Exception):  # noqa: N818 - not an error: the job was paused, or the run must end
    pass


@dataclass(eq=False)
class ShardWorker:
    """
    Works on the ranges of a job's current pass.

    Attributes:
        store: The store that the job works on.
        job: The job as it was read.
        tables: The registered tables, by name.
        batch: The most items in one transaction.
        run: The call of the verb that the worker belongs to.
        scope_of: For a migration, returns the scope of an item. It comes from the caller, never from the
            job's row.
        on_batch: Called after each batch.
        sleep: Waits for a number of seconds, if the job has a rate.
        now: The clock of the rate. ``None``: the database's clock.
    """

    store: SealedStore
    job: Job
    tables: Mapping[str, SealedTable]
    _: KW_ONLY
    batch: int
    run: str
    scope_of: ScopeOf | None = None
    on_batch: Callable[[], None] | None = None
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        self._engine = self.store.datastore.engine
        self._pacer = Pacer(self._engine, self.job, sleep=self.sleep, now=self.now)
        self._others = SQLiteContention(self._engine)
        self._new_resealer = table_resealers(self.store, self.job, self.scope_of)
        self._resealers: dict[str, TableResealer] = {}
        self._worker = new_worker()

    def work(self) -> None:
        """
        Work until no range is free or the job must stop.

        It must stop when it is paused, or when the run ends.

        Raises:
            IntegrityError: The row of the job or of one of its ranges cannot be read because it was edited.
            KmsError: The KMS refused or failed. The finished batches stay done.
            StoreError: The database refused or failed.
        """
        try:
            with suppress(_Stopped):
                self._work()
        finally:
            end_worker(self._worker)
            self._others.close()
            with suppress(StoreError):  # other workers also notice that this worker has ended
                job_shards.release_shards(self._engine, self._worker)

    def _work(self) -> None:
        while True:
            self._check_running(self._engine)
            shard = job_shards.claim_shard(
                self._engine, self.job, worker=self._worker, lease=LEASE, is_dead=is_dead
            )
            if shard is None:
                return
            # Items of a key that was rotated a moment ago need work, and no item may get that key any more.
            self.store.keyring.refresh()
            with suppress(ShardLostError):
                self._finish(shard)

    def _finish(self, shard: Shard) -> None:
        """Process a range's items batch by batch, until its end."""
        resealer = self._resealer(shard)
        limit = self._pacer.most(resealer.most_rows(self.batch))
        others_write = False
        while page := resealer.page(shard, limit, self._check_running):
            self._pacer.wait(len(page), self._show_life)
            if others_write or self._others.wrote():
                self.sleep(STEP_ASIDE)
                others_write = self._others.wrote()
            shard = resealer.reseal(shard, page, self._worker)
            self._others.begin()
            if self.on_batch is not None:
                self.on_batch()
        job_shards.advance_shard(self._engine, shard, self._worker, done=True)

    def _resealer(self, shard: Shard) -> TableResealer:
        table = shard.table_name
        if table not in self.tables:
            raise job_shards.unreadable_shard(self._engine, shard.job_id, shard.number, ["table_name"])
        if table not in self._resealers:
            self._resealers[table] = self._new_resealer(self.tables[table])
        return self._resealers[table]

    def _show_life(self) -> None:
        job_shards.see_worker(self._engine, self._worker)
        self._check_running(self._engine)

    def _check_running(self, connection: Connection | Engine) -> None:
        if not jobs.may_run(connection, self.job.job_id, self.run):
            raise _Stopped


def table_resealers(
    store: SealedStore, job: Job, scope_of: ScopeOf | None
) -> Callable[[SealedTable], TableResealer]:
    """
    Return a function that creates the resealer of a table.

    Args:
        store: The store that the job works on.
        job: The job as it was read.
        scope_of: The rule for scopes, if the job is a migration.

    Raises:
        ConfigurationError: The job is a migration, and its formats are not configured here or its event
            modules cannot be imported.
    """
    if scope_of is not None:
        # The rule comes from the caller: a job's row must not choose which code runs (docs/decisions/0027).
        accepted = configured_formats(store)
        return lambda table: OldItemResealer(
            store, table, accepted=accepted_in(accepted, table), scope_of=scope_of
        )
    statuses = KeyStatuses(store, keys_of(job))
    resealer = TableResealer if collection_of(job) is None else CollectionResealer
    return lambda table: resealer(store, table, statuses)

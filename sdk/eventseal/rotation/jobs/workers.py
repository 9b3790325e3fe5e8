"""Workers of a call: each takes ranges of a job, one after the other, at the pace that the job allows."""

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
"""A page is cut by its bytes long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """
    The workers of one call of a verb, and how fast they may be.

    Attributes:
        batch: Items in a transaction at most, from 1 to 100,000.
        shards: Workers to give the *executor*.
        items_per_second: Over all workers; ``None``: as fast as they can.
        executor: Runs the workers; ``None``: one in this thread.
        open_store: Opens the store in a worker; must be importable there. Other processes need it.
        run: Names this call.

    Raises:
        ConfigurationError: A number is out of its range, or other processes lack *open_store*.
    """

    batch: int = 1
    shards: int = 1
    items_per_second: float | None = None
    executor: Executor | None = None
    open_store: Callable[[], SealedStore] | None = None
    run: str = field(default_factory=lambda: uuid4().hex)

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MOST_IN_A_BATCH:
            raise ConfigurationError(f"batch is {self.batch}; it must be from 1 to {MOST_IN_A_BATCH:,}")
        if self.shards < 1:
            raise ConfigurationError(f"shards is {self.shards}; it must be at least 1")
        rate = self.items_per_second
        if rate is not None and not LEAST_RATE <= rate < math.inf:
            raise ConfigurationError(
                f"items_per_second is {rate}; it must be {LEAST_RATE} or more, and a finite number",
                remedy="Leave it out to go as fast as the workers can.",
            )
        if isinstance(self.executor, ProcessPoolExecutor) and self.open_store is None:
            raise ConfigurationError(
                "workers in other processes cannot be given this store: no key travels",
                remedy="Give open_store=, a function that they can import, such as EventSeal.from_settings.",
            )

    def in_time(self, items: int, seconds: float) -> float:
        """Guess how long they take for *items* that one of them would do in *seconds*."""
        seconds /= min(self.shards, os.cpu_count() or 1)
        return seconds if self.items_per_second is None else max(seconds, items / self.items_per_second)


def ranges_of(engine: Engine, table: SealedTable, ranges: int) -> list[tuple[Place | None, Place | None]]:
    """Cut a table into ranges of about equal size: behind the first place, up to the second one."""
    bounds = range_bounds(engine, table, min(ranges, _MOST_RANGES))
    return list(zip([None, *bounds], [*bounds, None], strict=True))


@contextmanager
def opened(open_store: Callable[[], SealedStore]) -> Iterator[SealedStore]:
    """Open a store in a worker, and close it at the end if it can be."""
    store = open_store()
    try:
        yield store
    finally:
        getattr(store, "close", lambda: None)()


@contextmanager
def broken_pool_named(remedy: str) -> Iterator[None]:
    """Say what to do when a process of an executor ended."""
    try:
        yield
    except BrokenProcessPool:
        raise JobError("a worker process ended in the middle of its work", remedy=remedy) from None


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


@dataclass(eq=False)
class Pacer:
    """
    Holds a job's workers back, so that all together move no more items a second than they may.

    Each batch takes its time out of the job's row before it begins; who comes while others have taken more
    than has passed waits for the difference.

    Attributes:
        engine: Of the items' database.
        job: As it was read.
        sleep: Waits for seconds.
        now: Seconds by one clock for all workers; ``None``: the database's.
    """

    engine: Engine
    job: Job
    _: KW_ONLY
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] | None = None

    def most(self, batch: int) -> int:
        """Say how many items a batch may have: at most about a second's worth, and at least one."""
        rate = self.job.items_per_second
        return batch if rate is None else max(1, min(batch, int(rate)))

    def wait(self, items: int, between: Callable[[], None]) -> None:
        """
        Take the time of *items*, and wait until it has come.

        Args:
            items: That are about to be moved.
            between: Called again and again while waiting.
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

        left = write(self.engine, take, doing="taking a job's pace")
        while left > 0:
            self.sleep(min(left, _SLICE))
            left -= _SLICE
            between()


LEASE = timedelta(seconds=10)
"""How long a worker whose process cannot be looked at may be silent before others take its range."""
STEP_ASIDE = 0.25
"""
Seconds for which a worker leaves SQLite's one write lock to others between two batches, while they write.

An append that meets the lock waits for milliseconds; so long a pause keeps those under one in a hundred,
however fast they come (docs/decisions/0012).
"""


class _Stopped(Exception):  # noqa: N818 - no error: the job was paused, or the run is to end
    pass


@dataclass(eq=False)
class ShardWorker:
    """
    Works on the ranges of a job's current pass.

    Attributes:
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
                job_shards.release_shards(self._engine, self._worker)

    def _work(self) -> None:
        while True:
            self._check_running(self._engine)
            shard = job_shards.claim_shard(
                self._engine, self.job, worker=self._worker, lease=LEASE, is_dead=is_dead
            )
            if shard is None:
                return
            # What was rotated a moment ago must be a source here, and not the target any more.
            self.store.keyring.refresh()
            with suppress(ShardLostError):
                self._finish(shard)

    def _finish(self, shard: Shard) -> None:
        """Move a range's items, batch by batch, to its end."""
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
    Give a function that creates the resealer of a table.

    Args:
        store: What the job works on.
        job: As it was read.
        scope_of: The rule for scopes, if the job is a migration.

    Raises:
        ConfigurationError: The job is a migration, and its formats or its event modules are not here.
    """
    if scope_of is not None:
        # The rule is the caller's: a job's row names no code to run (docs/decisions/0027).
        accepted = configured_formats(store)
        return lambda table: OldItemResealer(
            store, table, accepted=accepted_in(accepted, table), scope_of=scope_of
        )
    statuses = KeyStatuses(store, keys_of(job))
    resealer = TableResealer if collection_of(job) is None else CollectionResealer
    return lambda table: resealer(store, table, statuses)

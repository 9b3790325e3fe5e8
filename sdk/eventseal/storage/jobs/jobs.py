"""Jobs of re-encryption as their tables have them: each function is one step in the caller's transaction."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update

from eventseal.storage.database.column_types import DatabaseClock, HoldsUUID
from eventseal.storage.database.edited_rows import UNREADABLE, read_rows
from eventseal.storage.jobs.rows import (
    DONE,
    FINISHED,
    OPEN,
    PAUSED,
    RUNNING,
    SETTLING,
    Job,
    Shard,
    read_jobs,
    read_shards,
    refuse_unreadable,
    shard_of,
    unreadable_job,
    unreadable_shard,
)
from eventseal.storage.jobs.tables import (
    JOB_LAYOUT,
    reencrypted_keys,
    reencryption_failures,
    reencryption_jobs,
    reencryption_shards,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta
    from uuid import UUID

    from sqlalchemy.engine import Connection


_CANDIDATES = 16
_BEGIN_LOCK = 0x6A6F_6273_6561  # any number, the same for all who begin jobs

_STATE = select(reencryption_jobs.c.state, reencryption_jobs.c.stopped_runs)

_MOST_AHEAD = 86_400
"""Seconds that workers take in advance at most: a batch each, which at the slowest rate is one item."""


def one_at_a_time(connection: Connection) -> None:
    """Let no other process begin a job before this transaction ends; on SQLite the write lock does."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_BEGIN_LOCK)))


def insert_job(connection: Connection, job: Mapping[str, Any]) -> None:
    """Insert a job; its times are set here."""
    now = DatabaseClock()
    connection.execute(
        insert(reencryption_jobs).values(created_at=now, updated_at=now, stopped_runs=[], **job)
    )


def load_jobs(
    connection: Connection, application: str, *, job_id: UUID | None = None, locked: bool = False
) -> list[Job]:
    """
    Read the jobs of an application, or one of them; lock them if asked. The oldest comes first.

    One that was edited is among them, see ``Job.unreadable``: :func:`load_job` refuses it.
    """
    query = (
        select(reencryption_jobs)
        .where(reencryption_jobs.c.application == application)
        .order_by(reencryption_jobs.c.created_at, reencryption_jobs.c.job_id)
    )
    if job_id is not None:
        query = query.where(reencryption_jobs.c.job_id == job_id)
    if locked:
        query = query.with_for_update()
    return read_jobs(connection, query)


def load_job(connection: Connection, application: str, job_id: UUID, *, locked: bool = False) -> Job | None:
    """
    Read a job of an application, if it is there; lock it if asked.

    Raises:
        IntegrityError: Its row was edited so that it cannot be read.
    """
    for job in load_jobs(connection, application, job_id=job_id, locked=locked):
        return refuse_unreadable(connection, job)
    return None


def may_run(connection: Connection, job_id: UUID, run: str) -> bool:
    """Whether a job goes on, and this run of it too: asked with each batch."""
    rows = read_rows(connection, _STATE.where(reencryption_jobs.c.job_id == job_id))
    for row in rows:
        stopped_runs = row.values.get("stopped_runs")
        if row.unreadable or type(stopped_runs) is not list:
            raise unreadable_job(connection, job_id, row.unreadable or ["stopped_runs"])
        return row.values["state"] == RUNNING and run not in stopped_runs
    return False  # somebody deleted the job


def update_job(connection: Connection, job_id: UUID, **values: Any) -> None:
    """Change a job's columns, and the time at which it last moved on."""
    connection.execute(
        update(reencryption_jobs)
        .where(reencryption_jobs.c.job_id == job_id)
        .values(updated_at=DatabaseClock(), **values)
    )


def lock_job(connection: Connection, job_id: UUID) -> Job:
    """
    Lock a job's row until the transaction ends, and read it.

    Raises:
        IntegrityError: It was edited so that it cannot be read.
    """
    query = select(reencryption_jobs).where(reencryption_jobs.c.job_id == job_id).with_for_update()
    (job,) = read_jobs(connection, query)
    return refuse_unreadable(connection, job)


def lock_job_pace(connection: Connection, job_id: UUID) -> tuple[float | None, float]:
    """
    Lock a job's row; give until when its workers have taken time, and the database's clock, in seconds.

    Raises:
        IntegrityError: Until when was edited: it cannot be read, or is over a day away.
    """
    columns = reencryption_jobs.c
    query = select(columns.paced_until, DatabaseClock().label("now")).where(columns.job_id == job_id)
    (row,) = read_rows(connection, query.with_for_update())
    now = row.values["now"].timestamp()
    paced_until = row.values.get("paced_until")
    if row.unreadable or (paced_until is not None and paced_until > now + _MOST_AHEAD):
        raise unreadable_job(connection, job_id, ["paced_until"])
    return paced_until, now


def store_job_pace(connection: Connection, job_id: UUID, paced_until: float) -> None:
    """Store until when a job's workers have taken time."""
    columns = reencryption_jobs.c
    connection.execute(
        update(reencryption_jobs).where(columns.job_id == job_id).values(paced_until=paced_until)
    )


def insert_shards(connection: Connection, shards: Iterable[Shard]) -> None:
    """Insert ranges that nobody works on yet."""
    rows = [
        {
            "job_id": shard.job_id,
            "number": shard.number,
            "pass_number": shard.pass_number,
            "phase": shard.phase,
            "table_name": shard.table_name,
            "selection": shard.selection,
            "upto": shard.upto,
            "cursor": shard.cursor,
            "state": OPEN,
            "version": shard.version,
            "counts": dict(shard.counts),
        }
        for shard in shards
    ]
    if rows:
        connection.execute(insert(reencryption_shards), rows)


def next_shard_number(connection: Connection, job_id: UUID) -> int:
    """Give the first number that no range of the job has."""
    query = select(func.max(reencryption_shards.c.number)).where(reencryption_shards.c.job_id == job_id)
    last = connection.execute(query).scalar_one()
    return 0 if last is None else last + 1


def claim_shard(
    connection: Connection,
    job: Job,
    worker: str,
    *,
    lease: timedelta,
    is_dead: Callable[[str], bool],
) -> Shard | None:
    """
    Take a range that nobody works on, or whose worker is dead or has not been seen for a while.

    One that the worker itself has taken is given again: an attempt whose COMMIT was not answered did that.

    Args:
        connection: In a transaction that writes.
        job: As it was read.
        worker: Who takes it; works on no range now.
        lease: How long a worker may be silent.
        is_dead: Whether a worker is known to have ended.

    Returns:
        ``None`` if there is none now.

    Raises:
        IntegrityError: One was edited so that it cannot be read.
    """
    mine = (
        reencryption_shards.c.job_id == job.job_id,
        reencryption_shards.c.pass_number == job.pass_number,
        reencryption_shards.c.state == OPEN,
    )
    ordered = (
        select(reencryption_shards, DatabaseClock().label("now"))
        .where(*mine)
        .order_by(reencryption_shards.c.phase, reencryption_shards.c.number)
    )
    free = ordered.where(reencryption_shards.c.worker.is_(None)).limit(_CANDIDATES)
    taken = ordered.where(reencryption_shards.c.worker.is_not(None))
    for row in read_shards(connection, taken, job.job_id):
        is_free = row["worker"] == worker or _is_silent(row, lease) or is_dead(row["worker"])
        if is_free and (shard := _claimed(connection, row, worker)):
            return shard
    for row in read_shards(connection, free, job.job_id):
        if shard := _claimed(connection, row, worker):
            return shard
    return None


def advance_shard(connection: Connection, shard: Shard, worker: str, *, done: bool = False) -> Shard | None:
    """
    Store how far a range is.

    Args:
        connection: In a transaction that writes.
        shard: With its new cursor and counts, and the version that was read.
        worker: Who works on it.
        done: Whether the range is at its end.

    Returns:
        The range with its new version; ``None`` if another worker has taken it.
    """
    changed = connection.execute(
        _versioned(shard.job_id, shard.number, shard.version)
        .where(reencryption_shards.c.worker == worker)
        .values(
            cursor=shard.cursor,
            counts=dict(shard.counts),
            version=shard.version + 1,
            seen_at=DatabaseClock(),
            state=DONE if done else OPEN,
            worker=None if done else worker,
        )
    )
    return replace(shard, version=shard.version + 1) if changed.rowcount else None


def is_shard_at(connection: Connection, shard: Shard) -> bool:
    """Whether a range is exactly at *shard*: its version and its cursor."""
    columns = reencryption_shards.c
    query = select(columns.version, columns.cursor).where(
        columns.job_id == shard.job_id, columns.number == shard.number
    )
    found = connection.execute(query).one_or_none()
    return found is not None and (found.version, found.cursor) == (shard.version, shard.cursor)


def see_worker(connection: Connection, worker: str) -> None:
    """Note that a worker lives, while it has nothing else to write."""
    connection.execute(
        update(reencryption_shards)
        .where(reencryption_shards.c.worker == worker)
        .values(seen_at=DatabaseClock())
    )


def release_shards(connection: Connection, worker: str) -> None:
    """Give up what a worker has taken: it stops."""
    connection.execute(
        update(reencryption_shards)
        .where(reencryption_shards.c.worker == worker)
        .values(worker=None, seen_at=None)
    )


def finish_job(connection: Connection, job_id: UUID) -> None:
    """Say that a last look found nothing more to do."""
    update_job(connection, job_id, state=FINISHED, finished_at=DatabaseClock())


def drop_finished_jobs(connection: Connection, application: str, *, but: int) -> None:
    """Forget finished jobs of an application, with all that belongs to them, but the *but* newest."""
    columns = reencryption_jobs.c
    finished = (
        select(columns.job_id)
        .where(columns.application == application, columns.state == FINISHED, HoldsUUID(columns.job_id))
        .order_by(columns.finished_at.desc(), columns.job_id.desc())
    )
    for job_id in list(connection.execute(finished).scalars())[but:]:
        for table in (reencryption_shards, reencrypted_keys, reencryption_failures, reencryption_jobs):
            connection.execute(delete(table).where(table.c.job_id == job_id))


def _is_silent(row: Mapping[str, Any], lease: timedelta) -> bool:
    """Whether a worker was not seen for a while; one that was seen in the future was never seen then."""
    return row["seen_at"] is None or abs(row["now"] - row["seen_at"]) > lease


def _claimed(connection: Connection, row: Mapping[str, Any], worker: str) -> Shard | None:
    shard = shard_of(row, version=row["version"] + 1)
    changed = connection.execute(
        _versioned(shard.job_id, shard.number, row["version"]).values(
            worker=worker, version=shard.version, seen_at=DatabaseClock()
        )
    )
    return shard if changed.rowcount else None


def _versioned(job_id: UUID, number: int, version: int) -> Any:
    columns = reencryption_shards.c
    return update(reencryption_shards).where(
        columns.job_id == job_id, columns.number == number, columns.version == version, columns.state == OPEN
    )


__all__ = [
    "DONE",
    "FINISHED",
    "JOB_LAYOUT",
    "OPEN",
    "PAUSED",
    "RUNNING",
    "SETTLING",
    "UNREADABLE",
    "Job",
    "Shard",
    "advance_shard",
    "claim_shard",
    "drop_finished_jobs",
    "finish_job",
    "insert_job",
    "insert_shards",
    "is_shard_at",
    "load_job",
    "load_jobs",
    "lock_job",
    "lock_job_pace",
    "may_run",
    "next_shard_number",
    "one_at_a_time",
    "refuse_unreadable",
    "release_shards",
    "see_worker",
    "store_job_pace",
    "unreadable_shard",
    "update_job",
]

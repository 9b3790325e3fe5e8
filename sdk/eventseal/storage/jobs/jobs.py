"""
Re-encryption jobs: reading, checking and changing them.

Each function is one step in a transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update

from eventseal.errors import IntegrityError
from eventseal.storage.database.column_types import NIL_KEY_ID, DatabaseClock, HoldsUUID
from eventseal.storage.database.layout import own_name
from eventseal.storage.database.rows import UNREADABLE, are_texts, as_sql, deletion, is_count, read_rows
from eventseal.storage.database.transactions import reads
from eventseal.storage.jobs.tables import (
    reencrypted_keys,
    reencryption_failures,
    reencryption_jobs,
    reencryption_shards,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.database.rows import Checks, ReadRow

_BEGIN_LOCK = 0x6A6F_6273_6561  # any number, the same for all processes that begin jobs
_STATE = select(reencryption_jobs.c.state, reencryption_jobs.c.stopped_runs)
_MOST_AHEAD = 86_400
"""
Seconds that workers reserve in advance at most.

Each worker reserves a batch, which is one item at the slowest rate.
"""

JOB_LAYOUT = 1
"""Raised whenever these tables change their meaning. A job of another layout cannot be resumed."""

RUNNING, PAUSED, SETTLING, FINISHED = "running", "paused", "settling", "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    A job as it was read.

    Attributes:
        job_id: The id with which the job resumes.
        application: The application that owns the items.
        layout: The layout of these tables when the job was created.
        release: The release that created the job.
        state: ``running`` (also after the process was killed), ``paused``, ``settling`` (all items are
            re-encrypted, but other processes may not know the new keys yet) or ``finished``.
        options: ``keys``, ``tables`` and ``heads``, each a list of text or ``None``. A migration has more.
        items_per_second: The limit for all workers together. ``None`` means no limit.
        pass_number: The number of the current pass over the tables, from 1.
        total: The items to encrypt again, counted when the job was created.
        stopped_runs: The runs whose workers must stop.
        created_at: The time of the creation by the database's clock, in UTC like the other times.
        updated_at: The time of the last change of the job's row.
        finished_at: The time when a last check found nothing more, or another job took over.
        unreadable: The columns that hold a value of another kind than their own. If there are any, the state
            is ``unreadable``. The other fields then hold the values that can be read, or placeholders.
    """

    job_id: UUID
    application: str
    layout: int
    release: str
    state: str
    options: Mapping[str, Any]
    items_per_second: float | None
    pass_number: int
    total: int
    stopped_runs: Sequence[str]
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    unreadable: tuple[str, ...] = ()


def read_jobs(connection: Connection, query: Select[Any]) -> list[Job]:
    """
    Read jobs, including those that an edit has damaged.

    *query* selects all columns of ``eventseal_reencryption_jobs``.
    """
    return [_job(row) for row in read_rows(connection, query, _JOB_CHECKS)]


def refuse_unreadable(connection: Connection, job: Job) -> Job:
    """
    Return a job whose row can be read.

    Raises:
        IntegrityError: The row cannot be read. The message names the job and its columns.
    """
    if job.unreadable:
        raise unreadable_job(connection, job.job_id, job.unreadable)
    return job


def unreadable_job(database: Engine | Connection, job_id: UUID, columns: Collection[str]) -> IntegrityError:
    """
    Return the error for a job that cannot be read.

    Its remedy deletes the job. Deleting is safe, because the row holds only the job's progress.
    """
    return IntegrityError(
        f"job {job_id} was edited: its {', '.join(columns)} cannot be read",
        remedy=f"Find out who changed {own_name(database, reencryption_jobs.name)}, then delete the job: "
        f"{deletion(database, reencryption_jobs, is_job(database, job_id))} Then run the job's command again "
        "without the job id. Items that it has processed keep their new envelopes.",
        job_id=job_id,
    )


def _job(row: ReadRow) -> Job:
    values = {name: row.values[name] for name in Job.__slots__ if name in row.values}
    if not row.unreadable:
        return Job(**values)
    readable = {name: value for name, value in values.items() if name not in row.unreadable}
    return Job(**{**_STAND_INS, **readable, "state": UNREADABLE}, unreadable=row.unreadable)


def is_job(database: Engine | Connection, job_id: UUID) -> str:
    """Return the SQL condition with which a person names a job's rows."""
    if job_id == NIL_KEY_ID:  # it replaces an id that is not a UUID
        return "(typeof(job_id) <> 'blob' OR length(job_id) <> 16)"
    return f"job_id = {as_sql(database, job_id)}"


_VERB = "migrate"


def _are_options(value: Any) -> bool:
    """
    Return whether a value holds valid options of a job.

    ``keys`` are ids, ``tables`` names, ``heads`` bytes in hex, each in a list or ``None``. A migration has
    its ``verb``, and ``formats``: each a name, and the id of its key or ``None``. Its ``key_scope`` is a
    ``scope`` or the name of a ``function``.
    """
    # `status` advises a command with this verb, so an edited row must not name another, such as a shred.
    if type(value) is not dict or value.get("verb", _VERB) != _VERB:
        return False
    lists = [value.get(name, 0) for name in ("keys", "tables", "heads")]
    if not all(each is None or are_texts(each) for each in lists):
        return False
    try:
        _ = [UUID(key_id) for key_id in lists[0] or ()], [bytes.fromhex(head) for head in lists[2] or ()]
    except ValueError:
        return False
    if "verb" not in value:
        return True
    rule, formats = value.get("key_scope"), value.get("formats")
    return (
        type(rule) is dict
        and [type(each) for each in rule.values()] == [str]
        and rule.keys() <= {"scope", "function"}
        and type(formats) is list
        and all(type(each) is list and len(each) == 2 for each in formats)  # noqa: PLR2004 - a pair
    )


_JOB_CHECKS: Checks = {
    "state": lambda value: value in {RUNNING, PAUSED, SETTLING, FINISHED},
    "options": _are_options,
    "pass_number": is_count,
    "total": is_count,
    "stopped_runs": are_texts,
}

_STAND_INS: Mapping[str, Any] = {
    "job_id": NIL_KEY_ID,
    "application": "",
    "layout": 0,
    "release": "",
    "options": {"keys": None, "tables": None, "heads": None},
    "items_per_second": None,
    "pass_number": 0,
    "total": 0,
    "stopped_runs": (),
    "created_at": datetime(1970, 1, 1, tzinfo=UTC),
    "updated_at": datetime(1970, 1, 1, tzinfo=UTC),
    "finished_at": None,
}


def one_at_a_time(connection: Connection) -> None:
    """
    Keep other processes from beginning a job before this transaction ends.

    On SQLite the write lock does that.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_BEGIN_LOCK)))


def insert_job(connection: Connection, job: Mapping[str, Any]) -> None:
    """Insert a job with its times."""
    now = DatabaseClock()
    connection.execute(
        insert(reencryption_jobs).values(created_at=now, updated_at=now, stopped_runs=[], **job)
    )


@reads("listing jobs")
def load_jobs(
    connection: Connection, application: str, *, job_id: UUID | None = None, locked: bool = False
) -> list[Job]:
    """
    Read an application's jobs, or one of them, oldest first.

    With *locked*, the rows are locked. Edited jobs are included, with ``Job.unreadable``. :func:`load_job`
    refuses them.
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


@reads("reading a job")
def load_job(connection: Connection, application: str, job_id: UUID, *, locked: bool = False) -> Job | None:
    """
    Read a job of an application, if it exists. With *locked*, its row is locked.

    Raises:
        IntegrityError: The row was edited so that it cannot be read.
    """
    for job in load_jobs(connection, application, job_id=job_id, locked=locked):
        return refuse_unreadable(connection, job)
    return None


@reads("reading a job")
def may_run(connection: Connection, job_id: UUID, run: str) -> bool:
    """Return whether a job and this run of it may continue. Each batch calls it."""
    for row in read_rows(connection, _STATE.where(reencryption_jobs.c.job_id == job_id), _JOB_CHECKS):
        if row.unreadable:
            raise unreadable_job(connection, job_id, row.unreadable)
        return row.values["state"] == RUNNING and run not in row.values["stopped_runs"]
    return False  # somebody deleted the job


def update_job(connection: Connection, job_id: UUID, **values: Any) -> None:
    """Change a job's columns, and the time of its last change."""
    connection.execute(
        update(reencryption_jobs)
        .where(reencryption_jobs.c.job_id == job_id)
        .values(updated_at=DatabaseClock(), **values)
    )


def lock_job(connection: Connection, job_id: UUID) -> Job:
    """
    Lock a job's row until the transaction ends, and read it.

    Raises:
        IntegrityError: The row was edited so that it cannot be read.
    """
    query = select(reencryption_jobs).where(reencryption_jobs.c.job_id == job_id).with_for_update()
    (job,) = read_jobs(connection, query)
    return refuse_unreadable(connection, job)


def lock_job_pace(connection: Connection, job_id: UUID) -> tuple[float | None, float]:
    """
    Lock a job's row and return its pace.

    The pace is the end of the time that its workers have reserved, and the current time. Both are in seconds,
    by the database's clock.

    Raises:
        IntegrityError: The end was edited: it cannot be read, or is more than a day ahead.
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
    """Store the end of the time that a job's workers have reserved."""
    columns = reencryption_jobs.c
    connection.execute(
        update(reencryption_jobs).where(columns.job_id == job_id).values(paced_until=paced_until)
    )


def finish_job(connection: Connection, job_id: UUID) -> None:
    """Store that a last check found nothing more to do."""
    update_job(connection, job_id, state=FINISHED, finished_at=DatabaseClock())


def drop_finished_jobs(connection: Connection, application: str, *, but: int) -> None:
    """
    Delete all finished jobs but the newest, with their rows.

    The *but* newest jobs of the application stay.
    """
    columns = reencryption_jobs.c
    finished = (
        select(columns.job_id)
        .where(columns.application == application, columns.state == FINISHED, HoldsUUID(columns.job_id))
        .order_by(columns.finished_at.desc(), columns.job_id.desc())
    )
    for job_id in list(connection.execute(finished).scalars())[but:]:
        for table in (reencryption_shards, reencrypted_keys, reencryption_failures, reencryption_jobs):
            connection.execute(delete(table).where(table.c.job_id == job_id))

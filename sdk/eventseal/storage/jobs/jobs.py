"""Jobs of re-encryption: read, checked and changed. Each function is one step in a transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, update

from eventseal.errors import IntegrityError
from eventseal.storage.database.column_types import NIL_KEY_ID, DatabaseClock, HoldsUUID
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

_BEGIN_LOCK = 0x6A6F_6273_6561  # any number, the same for all who begin jobs
_STATE = select(reencryption_jobs.c.state, reencryption_jobs.c.stopped_runs)
_MOST_AHEAD = 86_400
"""Seconds that workers take in advance at most: a batch each, which at the slowest rate is one item."""

JOB_LAYOUT = 1
"""Raised whenever these tables mean something else: a job of another layout is not gone on with."""

RUNNING, PAUSED, SETTLING, FINISHED = "running", "paused", "settling", "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    A job as it was read.

    Attributes:
        job_id: Under which it resumes.
        application: Whose items.
        layout: Of these tables, when the job was made.
        release: That made it.
        state: ``running`` (a killed one says so too), ``paused``, ``settling`` (all was moved, but others may
            not have noticed the new keys yet) or ``finished``.
        options: ``keys``, ``tables`` and ``heads``, each a list of text or ``None``; a migration has more.
        items_per_second: Over all its workers; ``None``: as fast as they can.
        pass_number: Of the pass over the tables that is going on, from 1.
        total: Items that were to be encrypted again when the job was made.
        stopped_runs: Runs whose workers are to stop.
        created_at: By the database's clock, UTC, like the other times.
        updated_at: When it last moved on.
        finished_at: When a last look found nothing more, or another job took over.
        unreadable: The columns that hold what none of their kind does. Then the state is ``unreadable``, and
            the other fields are what could be read, or stand-ins.
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
    Read jobs; one whose row was edited so that it cannot be read is a job too.

    Args:
        connection: In the caller's transaction.
        query: Selects all columns of ``reencryption_jobs``.
    """
    return [_job(row) for row in read_rows(connection, query, _JOB_CHECKS)]


def refuse_unreadable(connection: Connection, job: Job) -> Job:
    """
    Give a job whose row can be read.

    Raises:
        IntegrityError: It cannot be: the message names the job and its columns.
    """
    if job.unreadable:
        raise unreadable_job(connection, job.job_id, job.unreadable)
    return job


def unreadable_job(database: Engine | Connection, job_id: UUID, columns: Collection[str]) -> IntegrityError:
    """Say what of a job's row cannot be read, and how to be rid of it: it holds only how far the job was."""
    return IntegrityError(
        f"job {job_id} was edited: its {', '.join(columns)} cannot be read",
        remedy=f"Find out who changed {reencryption_jobs.name}, then delete the job: "
        f"{deletion(reencryption_jobs, is_job(database, job_id))} Then run its command again, without the "
        "job's id: what was moved stays moved.",
        job_id=job_id,
    )


def _job(row: ReadRow) -> Job:
    values = {name: row.values[name] for name in Job.__slots__ if name in row.values}
    if not row.unreadable:
        return Job(**values)
    readable = {name: value for name, value in values.items() if name not in row.unreadable}
    return Job(**{**_STAND_INS, **readable, "state": UNREADABLE}, unreadable=row.unreadable)


def is_job(database: Engine | Connection, job_id: UUID) -> str:
    """Write the condition by which a person names a job's rows."""
    if job_id == NIL_KEY_ID:  # it stands for what is no UUID
        return "(typeof(job_id) <> 'blob' OR length(job_id) <> 16)"
    return f"job_id = {as_sql(database, job_id)}"


def _are_options(value: Any) -> bool:
    """
    Whether a job's options are some.

    ``keys`` are ids, ``tables`` names, ``heads`` bytes in hex, each in a list or ``None``. A migration has
    its ``verb``, ``formats`` (each a name and the id of its key or ``None``), and as its ``key_scope`` a
    ``scope`` or the name of a ``function``.
    """
    if type(value) is not dict or type(value.get("verb", "")) is not str:
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
    """Let no other process begin a job before this transaction ends; on SQLite the write lock does."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_BEGIN_LOCK)))


def insert_job(connection: Connection, job: Mapping[str, Any]) -> None:
    """Insert a job; its times are set here."""
    now = DatabaseClock()
    connection.execute(
        insert(reencryption_jobs).values(created_at=now, updated_at=now, stopped_runs=[], **job)
    )


@reads("listing jobs")
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


@reads("reading a job")
def load_job(connection: Connection, application: str, job_id: UUID, *, locked: bool = False) -> Job | None:
    """
    Read a job of an application, if it is there; lock it if asked.

    Raises:
        IntegrityError: Its row was edited so that it cannot be read.
    """
    for job in load_jobs(connection, application, job_id=job_id, locked=locked):
        return refuse_unreadable(connection, job)
    return None


@reads("reading a job")
def may_run(connection: Connection, job_id: UUID, run: str) -> bool:
    """Whether a job goes on, and this run of it too: asked with each batch."""
    for row in read_rows(connection, _STATE.where(reencryption_jobs.c.job_id == job_id), _JOB_CHECKS):
        if row.unreadable:
            raise unreadable_job(connection, job_id, row.unreadable)
        return row.values["state"] == RUNNING and run not in row.values["stopped_runs"]
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

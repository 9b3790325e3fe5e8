"""Rows of jobs and of their ranges as values: checked when read, since anybody may have edited them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.errors import IntegrityError
from eventseal.storage.database.column_types import NIL_KEY_ID
from eventseal.storage.database.edited_rows import UNREADABLE, as_sql, deletion, read_rows
from eventseal.storage.jobs.tables import reencryption_jobs, reencryption_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.database.edited_rows import ReadRow


RUNNING, PAUSED, SETTLING, FINISHED = "running", "paused", "settling", "finished"
OPEN, DONE = "open", "done"
_MOST = 2**62
"""Room to count on in 64 bits."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """
    A range of one table in one pass, and how far it is.

    Attributes:
        job_id: Of its job.
        number: In the job.
        pass_number: Of the job.
        phase: Lower ones first.
        table_name: The registered table.
        selection: Which rows, as JSON.
        upto: The last place of the range as JSON; ``None``: the table's end.
        cursor: The place behind which the rest begins, as JSON; ``None``: the table's beginning.
        version: Moves with every change.
        counts: Of its items, by outcome.
    """

    job_id: UUID
    number: int
    pass_number: int
    phase: int
    table_name: str
    selection: Mapping[str, Any]
    upto: Any
    cursor: Any
    version: int = 0
    counts: Mapping[str, int]


def read_jobs(connection: Connection, query: Select[Any]) -> list[Job]:
    """
    Read jobs; one whose row was edited so that it cannot be read is a job too.

    Args:
        connection: In the caller's transaction.
        query: Selects all columns of ``reencryption_jobs``.
    """
    return [_job(row) for row in read_rows(connection, query)]


def refuse_unreadable(connection: Connection, job: Job) -> Job:
    """
    Give a job whose row can be read.

    Raises:
        IntegrityError: It cannot be: the message names the job and its columns.
    """
    if job.unreadable:
        raise unreadable_job(connection, job.job_id, job.unreadable)
    return job


def unreadable_job(place: Engine | Connection, job_id: UUID, columns: Collection[str]) -> IntegrityError:
    """Say what of a job's row cannot be read, and how to be rid of it: it holds only how far the job was."""
    return IntegrityError(
        f"job {job_id} was edited: its {', '.join(columns)} cannot be read",
        remedy=f"Find out who changed {reencryption_jobs.name}, then delete the job: "
        f"{deletion(reencryption_jobs, _is(place, job_id))} Then run its command again, without the job's "
        "id: what was moved stays moved.",
        job_id=job_id,
    )


def read_shards(connection: Connection, query: Select[Any], job_id: UUID) -> Iterator[Mapping[str, Any]]:
    """
    Read columns of a job's ranges.

    Args:
        connection: In the caller's transaction.
        query: Selects columns of ``reencryption_shards``.
        job_id: Of the job.

    Raises:
        IntegrityError: A range was edited so that it cannot be read: the message names it and its columns.
    """
    for row in read_rows(connection, query):
        unreadable = _unfit(row, _SHARD_CHECKS)
        if unreadable:
            raise unreadable_shard(connection, job_id, row.values.get("number"), unreadable)
        yield row.values


def unreadable_shard(
    place: Engine | Connection, job_id: UUID, number: int | None, columns: Collection[str]
) -> IntegrityError:
    """Say which range of a job cannot be read, and how to be rid of it: others look for what it has left."""
    where = "typeof(number) <> 'integer'" if number is None else f"number = {number}"
    return IntegrityError(
        f"range {'?' if number is None else number} of job {job_id} was edited: "
        f"its {', '.join(columns)} cannot be read",
        remedy=f"Find out who changed {reencryption_shards.name}, then delete the range: "
        f"{deletion(reencryption_shards, f'{_is(place, job_id)} AND {where}')} Then run the job's command "
        "again: it looks for what is left.",
        job_id=job_id,
    )


def shard_of(values: Mapping[str, Any], *, version: int) -> Shard:
    """Make a range of its row, with another version."""
    return Shard(**{name: values[name] for name in Shard.__slots__ if name != "version"}, version=version)


def _job(row: ReadRow) -> Job:
    unreadable = _unfit(row, _JOB_CHECKS)
    values = {name: row.values[name] for name in Job.__slots__ if name in row.values}
    if not unreadable:
        return Job(**values)
    readable = {name: value for name, value in values.items() if name not in unreadable}
    return Job(**{**_STAND_INS, **readable, "state": UNREADABLE}, unreadable=unreadable)


def _unfit(row: ReadRow, checks: Mapping[str, Callable[[Any], bool]]) -> tuple[str, ...]:
    """Name the columns that cannot be read, and those whose value means nothing."""
    return (
        *row.unreadable,
        *(name for name, fits in checks.items() if name in row.values and not fits(row.values[name])),
    )


def _is(place: Engine | Connection, job_id: UUID) -> str:
    if job_id == NIL_KEY_ID:  # it stands for what is no UUID
        return "(typeof(job_id) <> 'blob' OR length(job_id) <> 16)"
    return f"job_id = {as_sql(place, job_id)}"


def _is_count(value: Any) -> bool:
    return bool(0 <= value < _MOST)


def _are_texts(value: Any) -> bool:
    return type(value) is list and all(type(each) is str for each in value)


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
    if not all(each is None or _are_texts(each) for each in lists):
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


_JOB_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "state": lambda value: value in {RUNNING, PAUSED, SETTLING, FINISHED},
    "options": _are_options,
    "pass_number": _is_count,
    "total": _is_count,
    "stopped_runs": _are_texts,
}
_SHARD_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "number": _is_count,
    "pass_number": _is_count,
    "selection": lambda value: type(value) is dict,
    "state": lambda value: value in {OPEN, DONE},
    "version": _is_count,
    "counts": lambda value: (
        type(value) is dict and all(type(each) is int and _is_count(each) for each in value.values())
    ),
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

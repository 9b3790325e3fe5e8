"""Ranges of jobs: who works on them, what they have counted and what failed. Each function is a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Numeric, delete, func, insert, select, update

from eventseal.errors import IntegrityError
from eventseal.storage.database.column_types import DatabaseClock, HoldsUUID
from eventseal.storage.database.rows import deletion, insertion, is_count, read_rows
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.jobs.jobs import is_job
from eventseal.storage.jobs.tables import reencrypted_keys, reencryption_failures, reencryption_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import timedelta
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.database.rows import Checks
    from eventseal.storage.jobs.jobs import Job

OPEN, DONE = "open", "done"
_CANDIDATES = 16
_MOST_COUNTED = 2**40
"""Items of a key in a range: many of these fit into 64 bits."""


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
    for row in read_rows(connection, query, _SHARD_CHECKS):
        if row.unreadable:
            raise unreadable_shard(connection, job_id, row.values.get("number"), row.unreadable)
        yield row.values


def unreadable_shard(
    database: Engine | Connection, job_id: UUID, number: int | None, columns: Collection[str]
) -> IntegrityError:
    """Say which range of a job cannot be read, and how to be rid of it: others look for what it has left."""
    where = "typeof(number) <> 'integer'" if number is None else f"number = {number}"
    return IntegrityError(
        f"range {'?' if number is None else number} of job {job_id} was edited: "
        f"its {', '.join(columns)} cannot be read",
        remedy=f"Find out who changed {reencryption_shards.name}, then delete the range: "
        f"{deletion(reencryption_shards, f'{is_job(database, job_id)} AND {where}')} Then run the job's "
        "command again: it looks for what is left.",
        job_id=job_id,
    )


def shard_of(values: Mapping[str, Any], *, version: int) -> Shard:
    """Make a range of its row, with another version."""
    return Shard(**{name: values[name] for name in Shard.__slots__ if name != "version"}, version=version)


_SHARD_CHECKS: Checks = {
    "number": is_count,
    "pass_number": is_count,
    "selection": lambda value: type(value) is dict,
    "state": lambda value: value in {OPEN, DONE},
    "version": is_count,
    "counts": lambda value: (
        type(value) is dict and all(type(each) is int and is_count(each) for each in value.values())
    ),
}


def insert_shards(connection: Connection, shards: Iterable[Shard]) -> None:
    """Insert ranges that nobody works on yet."""
    rows = [
        {
            **{name: getattr(shard, name) for name in Shard.__slots__},
            "state": OPEN,
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


@writes("taking a range of a job")
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


@writes("ending a range of a job")
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


@writes("showing that a worker lives")
def see_worker(connection: Connection, worker: str) -> None:
    """Note that a worker lives, while it has nothing else to write."""
    connection.execute(
        update(reencryption_shards)
        .where(reencryption_shards.c.worker == worker)
        .values(seen_at=DatabaseClock())
    )


@writes("giving up a range of a job")
def release_shards(connection: Connection, worker: str) -> None:
    """Give up what a worker has taken: it stops."""
    connection.execute(
        update(reencryption_shards)
        .where(reencryption_shards.c.worker == worker)
        .values(worker=None, seen_at=None)
    )


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


@dataclass(frozen=True, slots=True)
class Totals:
    """
    What a job has counted so far.

    Attributes:
        by_table: By table and outcome; what failed or was left alone counts as of the last pass.
        by_key: Items that were encrypted again, by the key that they had.
        open_shards: Ranges that are not done.
    """

    by_table: Mapping[str, Counter[str]]
    by_key: Mapping[UUID, int]
    open_shards: int


def add_key_counts(connection: Connection, shard: Shard, counts: Mapping[UUID, int]) -> None:
    """Add to the items that a range moved, by the key that they had."""
    rows = [
        {"job_id": shard.job_id, "number": shard.number, "key_id": key_id, "moved": items}
        for key_id, items in sorted(counts.items())
    ]
    if not rows:
        return
    inserting = insertion(connection, reencrypted_keys)
    connection.execute(
        inserting.on_conflict_do_update(
            index_elements=["job_id", "number", "key_id"],
            set_={"moved": reencrypted_keys.c.moved + inserting.excluded.moved},
        ),
        rows[0] if len(rows) == 1 else rows,
    )


def add_failures(
    connection: Connection, shard: Shard, failures: Sequence[Mapping[str, Any]], *, first: int
) -> None:
    """List failures of a range, as JSON, behind the *first* ones that it has."""
    rows = [
        {
            "job_id": shard.job_id,
            "number": shard.number,
            "failure": number,
            "pass_number": shard.pass_number,
            "said": said,
        }
        for number, said in enumerate(failures, start=first)
    ]
    if rows:
        connection.execute(insert(reencryption_failures), rows)


@reads("reading the failures of a job")
def load_failures(connection: Connection, job: Job, *, limit: int) -> list[Any]:
    """Read the failures of a job's last pass, in order; what cannot be read is no mapping."""
    columns = reencryption_failures.c
    query = (
        select(columns.said)
        .where(columns.job_id == job.job_id, columns.pass_number == job.pass_number)
        .order_by(columns.number, columns.failure)
        .limit(limit)
    )
    return [row.values.get("said") for row in read_rows(connection, query)]


def drop_old_failures(connection: Connection, job_id: UUID, pass_number: int) -> None:
    """Forget what failed before a pass: what still does is found again."""
    columns = reencryption_failures.c
    connection.execute(
        delete(reencryption_failures).where(columns.job_id == job_id, columns.pass_number < pass_number)
    )


@reads("reading how far a job is")
def load_totals(connection: Connection, job: Job) -> Totals:
    """
    Add up what a job's ranges have counted.

    Raises:
        IntegrityError: A range was edited so that it cannot be read.
    """
    columns = reencryption_shards.c
    by_table: dict[str, Counter[str]] = {}
    open_shards = 0
    query = select(columns.number, columns.table_name, columns.pass_number, columns.state, columns.counts)
    for row in read_shards(connection, query.where(columns.job_id == job.job_id), job.job_id):
        counts, table_counts = row["counts"], by_table.setdefault(row["table_name"], Counter())
        last = row["pass_number"] == job.pass_number
        table_counts.update(counts if last else {"done": counts.get("done", 0)})
        open_shards += last and row["state"] == OPEN
    keys = reencrypted_keys.c
    by_key = (
        select(keys.key_id, func.sum(keys.moved, type_=Numeric()))
        # An edited row counts for nothing: these counts are shown, and nothing rests on them.
        .where(keys.job_id == job.job_id, HoldsUUID(keys.key_id), keys.moved.between(0, _MOST_COUNTED))
        .group_by(keys.key_id)
    )
    moved = {key_id: int(count) for key_id, count in connection.execute(by_key)}
    return Totals(by_table, moved, open_shards)

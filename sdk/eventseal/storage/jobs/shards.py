"""
Ranges of jobs: their workers, counts and failures.

Each function is one step in a transaction.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Numeric, delete, func, insert, select, update

from eventseal.errors import IntegrityError
from eventseal.storage.database.column_types import DatabaseClock, HoldsUUID
from eventseal.storage.database.layout import own_name
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
"""The maximum number of items of a key in a range. The sum of many fits into 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """
    A range of one table in one pass, with its progress.

    Attributes:
        job_id: The job.
        number: The number of the range in the job.
        pass_number: The number of the pass.
        phase: The phase. Ranges with lower phases come first.
        table_name: The registered table.
        selection: The rows to read, as JSON.
        upto: The last place of the range as JSON. ``None`` means the end of the table.
        cursor: The last finished place as JSON. ``None`` means the beginning of the table.
        version: A number that changes with every change of the range.
        counts: The number of items by outcome.
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
        connection: A connection in the caller's transaction.
        query: The query, which selects columns of ``eventseal_reencryption_shards``.
        job_id: The job.

    Raises:
        IntegrityError: A range was edited so that it cannot be read. The message names it and its columns.
    """
    for row in read_rows(connection, query, _SHARD_CHECKS):
        if row.unreadable:
            raise unreadable_shard(connection, job_id, row.values.get("number"), row.unreadable)
        yield row.values


def unreadable_shard(
    database: Engine | Connection, job_id: UUID, number: int | None, columns: Collection[str]
) -> IntegrityError:
    """
    Return the error for a range that cannot be read.

    Its remedy deletes the range. Deleting is safe, because the job's command looks for the remaining items.
    """
    which = "typeof(number) <> 'integer'" if number is None else f"number = {number}"
    where = f"{is_job(database, job_id)} AND {which}"
    return IntegrityError(
        f"range {'?' if number is None else number} of job {job_id} was edited: "
        f"its {', '.join(columns)} cannot be read",
        remedy=f"Find out who changed {own_name(database, reencryption_shards.name)}, then delete the range: "
        f"{deletion(database, reencryption_shards, where)} Then run the job's "
        "command again. It looks for the remaining items.",
        job_id=job_id,
    )


def shard_of(values: Mapping[str, Any], *, version: int) -> Shard:
    """Return the range in a row, with another version."""
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
    """Insert ranges without a worker."""
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
    """Return the first number that no range of the job has."""
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
    Take a range without a worker, or of a lost worker.

    A worker is lost if it is dead or silent for too long. A range that the calling worker has taken already
    is returned again: an attempt whose COMMIT was not answered may have taken it.

    Args:
        connection: A connection in a transaction that writes.
        job: The job as it was read.
        worker: The worker that takes the range. It has no other range now.
        lease: The time for which a worker may be silent.
        is_dead: A function that returns whether a worker is known to have ended.

    Returns:
        ``None`` if there is no such range now.

    Raises:
        IntegrityError: A range was edited so that it cannot be read.
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


@writes("storing the progress of a range")
def advance_shard(connection: Connection, shard: Shard, worker: str, *, done: bool = False) -> Shard | None:
    """
    Store the progress of a range.

    Args:
        connection: A connection in a transaction that writes.
        shard: The range with its new cursor and counts, and the version that was read.
        worker: The worker of the range.
        done: Whether the range is done.

    Returns:
        The range with its new version, or ``None`` if another worker has taken it.
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
    """Return whether a range has the version and the cursor of *shard*."""
    columns = reencryption_shards.c
    query = select(columns.version, columns.cursor).where(
        columns.job_id == shard.job_id, columns.number == shard.number
    )
    found = connection.execute(query).one_or_none()
    return found is not None and (found.version, found.cursor) == (shard.version, shard.cursor)


@writes("recording that a worker is alive")
def see_worker(connection: Connection, worker: str) -> None:
    """Record that a worker with nothing else to write is alive."""
    connection.execute(
        update(reencryption_shards)
        .where(reencryption_shards.c.worker == worker)
        .values(seen_at=DatabaseClock())
    )


@writes("releasing a range of a job")
def release_shards(connection: Connection, worker: str) -> None:
    """Release all ranges of a worker that stops."""
    connection.execute(
        update(reencryption_shards)
        .where(reencryption_shards.c.worker == worker)
        .values(worker=None, seen_at=None)
    )


def _is_silent(row: Mapping[str, Any], lease: timedelta) -> bool:
    """Return whether a worker was silent for too long. A time in the future counts as silent."""
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
    The counts of a job so far.

    Attributes:
        by_table: The counts by table and outcome. Failed and skipped items are those of the last pass.
        by_key: The number of items that were encrypted again, by their old key.
        open_shards: The number of ranges that are not done.
    """

    by_table: Mapping[str, Counter[str]]
    by_key: Mapping[UUID, int]
    open_shards: int


def add_key_counts(connection: Connection, shard: Shard, counts: Mapping[UUID, int]) -> None:
    """Add to a range's counts of re-encrypted items by old key."""
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
    """
    Add failures to a range, as JSON.

    *first* is the number of failures that the range has already.
    """
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
    """Read the failures of a job's last pass, in order. A failure that cannot be read is not a mapping."""
    columns = reencryption_failures.c
    query = (
        select(columns.said)
        .where(columns.job_id == job.job_id, columns.pass_number == job.pass_number)
        .order_by(columns.number, columns.failure)
        .limit(limit)
    )
    return [row.values.get("said") for row in read_rows(connection, query)]


def drop_old_failures(connection: Connection, job_id: UUID, pass_number: int) -> None:
    """Delete the failures of earlier passes. An item that still fails is found again."""
    columns = reencryption_failures.c
    connection.execute(
        delete(reencryption_failures).where(columns.job_id == job_id, columns.pass_number < pass_number)
    )


@reads("reading the progress of a job")
def load_totals(connection: Connection, job: Job) -> Totals:
    """
    Return the sums of the counts in a job's ranges.

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
        # Edited rows do not count. These counts are only shown, and nothing depends on them.
        .where(keys.job_id == job.job_id, HoldsUUID(keys.key_id), keys.moved.between(0, _MOST_COUNTED))
        .group_by(keys.key_id)
    )
    moved = {key_id: int(count) for key_id, count in connection.execute(by_key)}
    return Totals(by_table, moved, open_shards)

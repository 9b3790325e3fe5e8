"""What a job of re-encryption has counted and what failed: each function is one step in a transaction."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Numeric, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from eventseal.storage.database.column_types import HoldsUUID
from eventseal.storage.database.edited_rows import read_rows
from eventseal.storage.jobs.rows import OPEN, read_shards
from eventseal.storage.jobs.tables import reencrypted_keys, reencryption_failures, reencryption_shards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.storage.jobs.jobs import Job, Shard


_MOST_COUNTED = 2**40
"""Items of a key in a range: many of these fit into 64 bits."""


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
    on_postgresql = connection.dialect.name == "postgresql"
    insertion: Any = (postgresql if on_postgresql else sqlite).insert(reencrypted_keys)
    connection.execute(
        insertion.on_conflict_do_update(
            index_elements=["job_id", "number", "key_id"],
            set_={"moved": reencrypted_keys.c.moved + insertion.excluded.moved},
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

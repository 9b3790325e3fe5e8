"""Who gets which range of a job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import pytest

from eventseal.rotation.jobs.workers import is_dead, new_worker
from eventseal.storage.database.transactions import read, write
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.jobs.tables import reencryption_shards

LEASE = timedelta(hours=1)


@pytest.fixture
def job(datastore) -> jobs.Job:
    """One with two ranges, in its first pass."""
    job_id = uuid4()

    def begin(connection) -> None:
        jobs.insert_job(
            connection,
            {
                "job_id": job_id,
                "application": "shop",
                "layout": jobs.JOB_LAYOUT,
                "release": "0",
                "state": jobs.RUNNING,
                "options": {"keys": None, "tables": None, "heads": None},
                "items_per_second": None,
                "pass_number": 1,
                "total": 2,
            },
        )
        job_shards.insert_shards(
            connection,
            [
                job_shards.Shard(
                    job_id=job_id,
                    number=number,
                    pass_number=1,
                    phase=1,
                    table_name="integer_sequenced_items",
                    selection={},
                    upto=None,
                    cursor=None,
                    counts={},
                )
                for number in range(2)
            ],
        )

    write(datastore.engine, begin, doing="beginning")
    (made,) = read(datastore.engine, partial(jobs.load_jobs, application="shop"), doing="reading")
    return made


@pytest.fixture
def claim(datastore, job):
    def claim(worker: str) -> int | None:
        take = partial(job_shards.claim_shard, job=job, worker=worker, lease=LEASE, is_dead=lambda _: False)
        shard = write(datastore.engine, take, doing="taking a range")
        return None if shard is None else shard.number

    return claim


def test_each_worker_gets_a_range_of_its_own(claim) -> None:
    assert (claim("one"), claim("two"), claim("three")) == (0, 1, None)


def test_a_worker_that_never_heard_of_its_range_is_given_it_again(claim) -> None:
    """As after a COMMIT without an answer: else it would take a second one, and nobody the first."""
    assert (claim("one"), claim("one"), claim("two"), claim("one")) == (0, 0, 1, 0)


@pytest.mark.parametrize("seen_at", ["2900-01-01 00:00:00.000000", None])
def test_a_range_whose_worker_was_seen_at_no_time_that_can_be_is_free(datastore, claim, seen_at) -> None:
    """Somebody edited it: else the job would wait for that worker for ever."""
    assert claim("one") == 0
    with datastore.engine.begin() as connection:
        shards = reencryption_shards
        moment = None if seen_at is None else datetime.fromisoformat(seen_at).replace(tzinfo=UTC)
        connection.execute(shards.update().where(shards.c.number == 0).values(seen_at=moment))
    assert claim("two") == 0


@pytest.mark.parametrize("worker", ["", "one", "a|b", "a|b|c|d", "a|1|2|3|4", "a|\u0661|2|3", "a|-1|2|3"])
def test_of_a_worker_whose_name_was_edited_nothing_is_known(worker) -> None:
    machine = new_worker().partition("|")[0]
    assert not is_dead(worker)
    assert not is_dead(f"{machine}{worker.removeprefix('a')}") or worker == "a|1|2|3"

"""One bad row costs one row: each cell of the tables of jobs, with junk of every kind in it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from tests.faults.edited_cells import BESIDE, ITEMS, Cell, cells, doctor, fill, typed
from tests.fixtures.sealed_shops import APPLICATION, SealedShop, scope_of

from eventseal.errors import EventSealError, IntegrityError
from eventseal.rotation import list_jobs, reencrypt, rotate_keys, status
from eventseal.rotation.jobs.jobs import resumed_job
from eventseal.rotation.jobs.workers import ShardWorker
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.jobs.tables import (
    reencrypted_keys,
    reencryption_failures,
    reencryption_jobs,
    reencryption_shards,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Table

pytestmark = pytest.mark.slow


@pytest.fixture
def paused(shop: SealedShop) -> Callable[[], UUID]:
    """Gives what makes a paused job with one range, both without any item to move."""
    fill(shop, [BESIDE])
    key_id = shop.active_keys()[scope_of(BESIDE)]
    rotate_keys(shop)

    def make() -> UUID:
        job_id = uuid4()
        values = {
            "job_id": job_id,
            "application": APPLICATION,
            "layout": jobs.JOB_LAYOUT,
            "release": "1",
            "state": jobs.PAUSED,
            "options": {"keys": [str(key_id)], "tables": [ITEMS], "heads": None},
            "items_per_second": 1e6,
            "pass_number": 1,
            "total": 1,
        }
        shard = job_shards.Shard(
            job_id=job_id,
            number=0,
            pass_number=1,
            phase=1,
            table_name=ITEMS,
            selection={"keys": [str(key_id)], "few": True, "fitting": [], "heads": [], "plain": False},
            upto=None,
            cursor=None,
            counts={},
        )
        with shop.datastore.engine.begin() as connection:
            jobs.insert_job(connection, values)
            job_shards.insert_shards(connection, [shard])
        return job_id

    return make


def test_a_jobs_row_costs_the_job(shop, again, store_url, kms, paused):
    engine = shop.datastore.engine
    edited = {paused(): cell for cell in cells(reencryption_jobs, engine)}
    sound = paused()
    for job_id, cell in edited.items():
        cell.put(engine, "job_id = :job_id", job_id=job_id)

    listed = {job.job_id: job for job in list_jobs(again)}
    assert listed[sound].unreadable == ()
    unreadable = {job_id for job_id, job in listed.items() if job.unreadable}
    standings = {each.job.job_id: each for each in status(again.key_store, again.datastore, APPLICATION).jobs}
    assert {job_id for job_id, each in standings.items() if each.problem} == unreadable
    doctor(store_url, kms)
    for job_id, cell in edited.items():
        found = typed(partial(resumed_job, again, job_id, items_per_second=None))
        if job_id in unreadable:
            assert isinstance(found, IntegrityError)
            assert f"job {job_id} was edited: its {cell.column}" in str(found)
    slow = [job_id for job_id, cell in edited.items() if cell.junk == "1e-300"]
    far = [job_id for job_id, cell in edited.items() if (cell.column, cell.junk) == ("paced_until", "1e300")]
    assert {*slow, *far} <= unreadable
    moved = reencrypt(again, resume=sound)
    assert (moved.done, moved.failed, moved.complete) == (1, 0, moved.complete)
    assert reencrypt(again).left == 0
    with engine.begin() as connection:  # the remedy, as it stands
        remedy = str(typed(partial(resumed_job, again, slow[0], items_per_second=None)).remedy)
        connection.exec_driver_sql(remedy[remedy.index("DELETE") : remedy.index(";")])
    assert slow[0] not in {job.job_id for job in list_jobs(again)}


def test_a_pace_that_is_taken_far_ahead_does_not_make_a_job_wait(shop, again, paused):
    job_id = paused()
    Cell("eventseal_reencryption_jobs", "paced_until", "9e9").put(
        shop.datastore.engine, "job_id = :job_id", job_id=job_id
    )
    with pytest.raises(IntegrityError, match=f"job {job_id} was edited: its paced_until"):
        reencrypt(again, resume=job_id)


def test_a_ranges_row_costs_its_job(shop, again, paused):
    engine = shop.datastore.engine
    edited = {paused(): cell for cell in cells(reencryption_shards, engine)}
    for job_id, cell in edited.items():
        cell.put(engine, "job_id = :job_id", job_id=job_id)
    sound = paused()
    found = status(again.key_store, again.datastore, APPLICATION)
    assert len(found.jobs) == len(edited) + 1
    tables = {table.table: table for table in registered_tables(again.datastore, APPLICATION)}
    for job_id, cell in edited.items():
        job = resumed_job(again, job_id, items_per_second=None)
        worked = typed(ShardWorker(again, job, tables, batch=10, run="run").work)
        if isinstance(worked, EventSealError):
            assert isinstance(worked, IntegrityError)
            assert f"of job {job_id} was edited: its {cell.column}" in str(worked)
    for column, junk in (("counts", "'[]'"), ("selection", "'{}'"), ("cursor", "'7'"), ("table_name", "''")):
        (job_id,) = [job_id for job_id, cell in edited.items() if (cell.column, cell.junk) == (column, junk)]
        with pytest.raises(IntegrityError, match=f"range 0 of job {job_id} was edited: its {column}"):
            reencrypt(again, resume=job_id)
    assert reencrypt(again, resume=sound).done + reencrypt(again).done <= 1
    assert reencrypt(again).left == 0


@pytest.mark.parametrize("table", [reencrypted_keys, reencryption_failures], ids=str)
def test_what_a_job_has_counted_costs_no_job(shop, again, table: Table):
    engine = shop.datastore.engine
    fill(shop, [BESIDE])
    rotate_keys(shop)
    job_id = reencrypt(shop).job_id
    said: dict[str, Any] = dict.fromkeys(("table", "error", "message", "remedy"), "t")
    said |= {"row": {}, "key_id": None}
    edited = cells(table, engine)
    for number, cell in enumerate(edited, start=1000):
        row: dict[str, Any] = {"job_id": job_id, "number": number}
        if table is reencrypted_keys:
            row |= {"key_id": uuid4(), "moved": 1}
        else:
            row |= {"failure": 0, "pass_number": 1, "said": said}
        with engine.begin() as connection:
            connection.execute(table.insert().values(row))
        cell.put(engine, "job_id = :job_id AND number = :number", job_id=job_id, number=number)
    result = reencrypt(again, resume=job_id)
    if table is reencryption_failures:
        assert any(failure.table == "t" for failure in result.failures)  # such as one of an odd number
        assert any("was edited and cannot be read" in failure.message for failure in result.failures)
    assert status(again.key_store, again.datastore, APPLICATION).jobs

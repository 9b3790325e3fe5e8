"""A process that re-encrypts need not be the one that rotated, and others may rotate while it works."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from sqlalchemy import text
from tests.fixtures.postgres_databases import wait_until_blocked

from eventseal.errors import JobError
from eventseal.rotation import pause_job, reencrypt, reencryption, rotate_keys
from eventseal.rotation.jobs.jobs import list_jobs
from eventseal.rotation.jobs.passes import Passes

LAST_LOOK = 3
"""Before it are the count with which a job is begun, and the look that begins its first pass."""
MOST_WAITS = 50


@pytest.mark.slow
def test_items_go_to_the_key_that_another_process_has_just_made(shop) -> None:
    other = shop.again()
    items = shop.append(3)
    other.append(1)  # it seals under the key, and has leased items with it
    rotate_keys(shop.seal)
    result = reencrypt(other.seal)
    assert (result.done, result.left) == (4, 0)
    active = shop.seal.keyring.sealing_keys({"application": 0})["application"].key_id
    stored = shop.strategy().get_items(items[0].sequence_id)
    assert {item.key_id for item in stored} == {active}


@pytest.mark.slow
@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("until", ["run", "_work"], ids=["joins", "begins a pass"])
def test_a_run_that_comes_after_the_last_look_of_another_moves_its_own_items(
    shop, monkeypatch, until, settled
) -> None:
    """It joins the job, or begins a pass of it, between the other's look and the end of the job."""
    other = shop.again()
    shop.append(5)
    rotate_keys(shop.seal)
    if settled:
        shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")
    arrived, ended = threading.Event(), threading.Event()
    looks, waits, runs = [], [], []
    look, method = reencryption.table_sources, getattr(Passes, until)

    def hooked_look(store, tables, keys):
        found = look(store, tables, keys)
        if store is shop.seal:
            looks.append(found)
            if len(looks) == LAST_LOOK:
                rotate_keys(other.seal)
                runs.append(pool.submit(reencrypt, other.seal))
                assert arrived.wait(60)
        return found

    def hooked_method(self):
        if self.store is other.seal and not arrived.is_set():
            arrived.set()
            assert ended.wait(60)
        return method(self)

    def waited(seconds):
        waits.append(seconds)
        assert len(waits) < MOST_WAITS, "it waits for what nobody does"

    monkeypatch.setattr(
        "eventseal.rotation.jobs.passes.time", SimpleNamespace(sleep=waited, monotonic=time.monotonic)
    )
    monkeypatch.setattr(reencryption, "table_sources", hooked_look)
    monkeypatch.setattr(Passes, until, hooked_method)
    with ThreadPoolExecutor(1) as pool:
        try:
            first = reencrypt(shop.seal)
        finally:
            ended.set()
        second = runs[0].result(60)
    assert len(shop.execute("SELECT DISTINCT key_id FROM integer_sequenced_items")) == 1
    assert (first.left, first.complete) == (second.left, second.complete) == (0, settled)


def test_a_run_whose_job_another_ends_in_the_middle_of_a_pass_says_what_is_left(shop, monkeypatch) -> None:
    shop.append(5)
    rotate_keys(shop.seal)
    begin_pass, works = Passes._begin_pass, []

    def ended_by_another(self, sources):
        begun = begin_pass(self, sources)
        shop.execute("UPDATE eventseal_reencryption_jobs SET state = 'finished'")
        return begun

    def counted(self):
        works.append(self)
        assert len(works) < MOST_WAITS, "it waits for what nobody does"

    with monkeypatch.context() as patch:
        patch.setattr(Passes, "_begin_pass", ended_by_another)
        patch.setattr(Passes, "_work", counted)
        result = reencrypt(shop.seal)
    assert (result.complete, result.left, result.job_id) == (False, 5, None)
    assert reencrypt(shop.seal).left == 0


def before(monkeypatch, method, action) -> None:
    """Do something each time before a method of ``Passes``."""
    original = getattr(Passes, method)

    def hooked(self, argument):
        action()
        return original(self, argument)

    monkeypatch.setattr(Passes, method, hooked)


@pytest.mark.parametrize("state", ["paused", "finished"])
def test_a_job_that_another_stops_after_the_look_gets_no_pass(shop, monkeypatch, state) -> None:
    shop.append(5)
    rotate_keys(shop.seal)
    before(
        monkeypatch,
        "_begin_pass",
        lambda: shop.execute(f"UPDATE eventseal_reencryption_jobs SET state = '{state}'"),
    )
    result = reencrypt(shop.seal)
    assert (result.complete, result.left) == (False, 5)
    (job,) = list_jobs(shop.seal)
    assert (job.state, job.pass_number) == (state, 0)
    assert result.job_id == (job.job_id if state == "paused" else None)


def test_a_pass_runs_although_another_run_has_just_called_the_job_settling(shop, monkeypatch) -> None:
    """The other run looked before the rotation; this one looked after it."""
    shop.append(5)
    rotate_keys(shop.seal)
    before(
        monkeypatch,
        "_begin_pass",
        lambda: shop.execute("UPDATE eventseal_reencryption_jobs SET state = 'settling'"),
    )
    assert reencrypt(shop.seal).left == 0
    assert list_jobs(shop.seal)[0].state == "settling"
    assert len(shop.execute("SELECT DISTINCT key_id FROM integer_sequenced_items")) == 1


def test_a_run_ends_although_others_join_the_job_after_its_every_look(shop, monkeypatch) -> None:
    shop.append(5)
    rotate_keys(shop.seal)
    paces = iter(range(1_000_000, 1_000_000 + MOST_WAITS))
    before(
        monkeypatch,
        "_end",
        lambda: shop.execute(f"UPDATE eventseal_reencryption_jobs SET items_per_second = {next(paces)}"),
    )
    result = reencrypt(shop.seal)
    assert (result.complete, result.left) == (False, 0)
    assert list_jobs(shop.seal)[0].pass_number == 1  # another pass would forget the failures of this one
    monkeypatch.undo()
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")
    assert reencrypt(shop.seal, resume=result.job_id).complete


def test_a_run_whose_job_another_ends_before_its_first_look_looks_all_the_same(shop, monkeypatch) -> None:
    shop.append(5)
    rotate_keys(shop.seal)
    run = Passes.run

    def ended_by_another(self):
        shop.execute("UPDATE eventseal_reencryption_jobs SET state = 'finished'")
        return run(self)

    monkeypatch.setattr(Passes, "run", ended_by_another)
    result = reencrypt(shop.seal)
    assert (result.complete, result.left, result.job_id) == (False, 5, None)
    with pytest.raises(JobError, match="finished"):
        pause_job(shop.seal, list_jobs(shop.seal)[0].job_id)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("does", ["joins", "resumes", "pauses"])
def test_a_job_that_is_just_being_ended_stays_ended(postgres_shop, does) -> None:
    """Its row is read again under its lock, after the transaction that ends it."""
    shop = postgres_shop
    shop.append(5)
    rotate_keys(shop.seal)
    first = reencrypt(shop.seal)
    shop.execute("UPDATE eventseal_reencryption_jobs SET state = 'running'")
    verbs = {
        "joins": lambda: reencrypt(shop.seal),
        "resumes": lambda: reencrypt(shop.seal, resume=first.job_id),
        "pauses": lambda: pause_job(shop.seal, first.job_id),
    }
    with ThreadPoolExecutor(1) as pool, shop.seal.datastore.engine.connect() as ending:
        ending.execute(text("UPDATE eventseal_reencryption_jobs SET state = 'finished'"))
        waiting = pool.submit(verbs[does])
        wait_until_blocked(shop.seal.datastore.engine)
        ending.commit()
        if does == "pauses":
            with pytest.raises(JobError, match="finished"):
                waiting.result(60)
        else:
            assert (waiting.result(60).job_id == first.job_id) == (does == "resumes")
    assert {job.state for job in list_jobs(shop.seal) if job.job_id == first.job_id} == {"finished"}

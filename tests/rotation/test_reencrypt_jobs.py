"""Jobs: resumed after whatever ended them, paused, throttled, shared, run in other threads and processes."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from eventseal.configuration import EventSeal
from eventseal.errors import ConfigurationError, JobError, KmsUnavailableError, MissingTableError
from eventseal.rotation import list_jobs, pause_job, reencrypt, retire, rotate_keys, verify
from eventseal.rotation.jobs import passes
from eventseal.rotation.jobs.workers import STEP_ASIDE, Pacer, ShardWorker, end_worker, is_dead, new_worker
from eventseal.storage.database.faults import SQLiteContention
from eventseal.testing import ManualClock
from eventseal_kms.local import LocalKmsAdapter

CHILD = Path(__file__).with_name("reencrypt_child.py")
ITEMS = "integer_sequenced_items"


def settle(shop):
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")


def active(shop, scope="application"):
    return shop.seal.key_store.active("shop", [scope])[scope].key_id


def filled(shop, streams=20, items=25):
    """Fill a store and rotate; 500 items are to be moved."""
    for _ in range(streams):
        shop.append(items)
    shop.seal.keyring.rotate()
    settle(shop)
    return shop


def stop_behind(shop, monkeypatch, batches):
    reseal_many, calls = shop.seal.cipher.reseal_many, []

    def hooked(page, collection):
        calls.append(page)
        if len(calls) > batches:
            raise KmsUnavailableError("the KMS went away")
        return reseal_many(page, collection)

    monkeypatch.setattr(shop.seal.cipher, "reseal_many", hooked)


@pytest.fixture(autouse=True)
def small_tables_are_cut(monkeypatch):
    """Cut tables into ranges that are small enough to be filled by a test."""
    monkeypatch.setattr(passes, "SMALL_TABLE", 600)


@pytest.fixture
def kms(tmp_path):
    return LocalKmsAdapter.create(tmp_path / "dev.key")


# --- going on ---


@pytest.mark.slow
def test_the_same_call_goes_on_where_an_outage_stopped_it(shop, monkeypatch):
    filled(shop)
    stop_behind(shop, monkeypatch, 3)
    with pytest.raises(KmsUnavailableError):
        reencrypt(shop.seal, batch=50)
    (job,) = list_jobs(shop.seal)
    assert job.state == "running"
    monkeypatch.undo()
    result = reencrypt(shop.seal, batch=50)
    assert (result.complete, result.done, result.job_id) == (True, 500, job.job_id)
    assert verify(shop.seal).done == 500


def test_a_job_resumes_by_its_id_with_the_keys_and_tables_it_has(shop, monkeypatch):
    filled(shop)
    shop.append(2)
    (old,) = {item.key_id for item in shop.strategy().all_items()} - {active(shop)}
    stop_behind(shop, monkeypatch, 3)
    with pytest.raises(KmsUnavailableError):
        reencrypt(shop.seal, keys=[old], tables=[ITEMS], batch=50)
    monkeypatch.undo()
    (job,) = list_jobs(shop.seal)
    assert job.options == {"keys": [str(old)], "tables": [ITEMS], "heads": None}
    result = reencrypt(shop.seal, resume=job.job_id)
    assert (result.complete, result.done, result.by_key) == (True, 500, {old: 500})


@pytest.mark.slow
def test_a_resumed_job_moves_to_the_key_that_is_active_by_then(shop, monkeypatch):
    filled(shop)
    stop_behind(shop, monkeypatch, 3)
    with pytest.raises(KmsUnavailableError):
        reencrypt(shop.seal, batch=50)
    monkeypatch.undo()
    rotate_keys(shop.seal)
    (job,) = list_jobs(shop.seal)
    result = reencrypt(shop.seal, resume=job.job_id)
    assert result.complete
    assert {item.key_id for item in shop.strategy().all_items()} == {active(shop)}


@pytest.mark.slow
def test_another_selection_is_another_job(shop, monkeypatch):
    filled(shop)
    stop_behind(shop, monkeypatch, 0)
    for tables in (None, [ITEMS], ["snapshots"]):
        try:
            reencrypt(shop.seal, tables=tables)
        except KmsUnavailableError:
            continue
    assert len({job.job_id for job in list_jobs(shop.seal)}) == 3


def begun(shop, monkeypatch, **selection):
    """Begin a job that an outage stops before its first batch."""
    with monkeypatch.context() as patched:
        stop_behind(shop, patched, 0)
        with pytest.raises(KmsUnavailableError):
            reencrypt(shop.seal, **selection)
    return list_jobs(shop.seal)[-1].job_id


def unfinished(shop):
    return {job.job_id for job in list_jobs(shop.seal) if job.state != "finished"}


@pytest.mark.slow
def test_a_job_takes_over_those_whose_items_are_all_its_own(shop, monkeypatch):
    (old,) = {item.key_id for item in shop.append(5)}
    (other,) = {item.key_id for item in shop.append(5, scope="tenant:a")}
    rotate_keys(shop.seal)
    settle(shop)
    both = begun(shop, monkeypatch, keys=[old, other])
    one = begun(shop, monkeypatch, keys=[old])
    assert unfinished(shop) == {both, one}
    here = begun(shop, monkeypatch, tables=[ITEMS])
    assert unfinished(shop) == {both, one, here}
    begun(shop, monkeypatch, keys=[old, other])
    assert unfinished(shop) == {both, here}
    assert reencrypt(shop.seal).done == 10
    assert unfinished(shop) == set()


@pytest.mark.slow
def test_what_a_job_has_left_under_destroyed_keys_is_nothing(shop, monkeypatch):
    (old,) = {item.key_id for item in shop.append(5)}
    rotate_keys(shop.seal)
    settle(shop)
    begun(shop, monkeypatch, keys=[old])
    shop.execute(f"DELETE FROM {ITEMS}")
    assert retire(shop.seal, keys=[old]).done == 1
    newer = active(shop)
    shop.append(5)
    rotate_keys(shop.seal)
    assert reencrypt(shop.seal, keys=[newer]).done == 5
    assert unfinished(shop) == set()


@pytest.mark.slow
def test_a_finished_job_that_is_resumed_looks_again_and_moves_nothing(shop):
    filled(shop)
    first = reencrypt(shop.seal)
    again = reencrypt(shop.seal, resume=first.job_id)
    assert (again.complete, again.done, again.left, again.job_id) == (True, 500, 0, first.job_id)
    shop.append(1)
    rotate_keys(shop.seal)
    later = reencrypt(shop.seal, resume=first.job_id)
    assert (later.complete, later.done, later.left, later.job_id) == (False, 500, 501, None)
    assert reencrypt(shop.seal).left == 0


def test_an_unknown_job_is_refused(shop):
    with pytest.raises(JobError, match="there is no job"):
        reencrypt(shop.seal, resume=uuid4())
    with pytest.raises(JobError, match="there is no job"):
        pause_job(shop.seal, uuid4())


@pytest.mark.slow
def test_a_job_of_another_application_is_unknown(open_shop, store_url, monkeypatch):
    ours, theirs = open_shop(store_url), open_shop(store_url, application="bank")
    filled(ours)
    result = reencrypt(ours.seal)
    with pytest.raises(JobError, match="there is no job"):
        reencrypt(theirs.seal, resume=result.job_id)
    assert list_jobs(theirs.seal) == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", [0, 2], ids=["older", "newer"])
def test_a_job_that_another_release_keeps_otherwise_is_refused_and_a_new_one_finishes(
    shop, monkeypatch, layout
):
    filled(shop)
    stop_behind(shop, monkeypatch, 3)
    with pytest.raises(KmsUnavailableError):
        reencrypt(shop.seal, batch=50)
    monkeypatch.undo()
    shop.execute(f"UPDATE eventseal_reencryption_jobs SET layout = {layout}, release = '0.0.{layout}'")
    (job,) = list_jobs(shop.seal)
    with pytest.raises(JobError, match=rf"release 0\.0\.{layout}") as caught:
        reencrypt(shop.seal, resume=job.job_id)
    assert "starts a new job" in caught.value.remedy
    result = reencrypt(shop.seal)
    assert (result.complete, result.done) == (True, 350)
    assert result.job_id != job.job_id


def test_a_store_without_the_tables_of_jobs_says_what_makes_them(shop):
    filled(shop)
    shop.execute("DROP TABLE eventseal_reencryption_jobs")
    with pytest.raises(MissingTableError, match="eventseal_reencryption_jobs") as caught:
        reencrypt(shop.seal)
    assert "eventseal init" in caught.value.remedy


# --- ended by a signal ---


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed in a transaction", "killed behind a commit", "interrupted"])
def test_a_process_that_ends_in_the_middle_leaves_a_job_that_another_one_finishes(
    open_shop, store_url, kms, tmp_path, monkeypatch, how
):
    # A dead worker's range is free at once: a run that waits for the lease hangs here.
    monkeypatch.setattr("eventseal.rotation.jobs.workers.LEASE", timedelta(days=1))
    shop = filled(open_shop(store_url, kms))
    command = [sys.executable, str(CHILD), store_url, str(tmp_path / "dev.key"), how]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == (130 if how == "interrupted" else -9), child.stderr
    (job,) = list_jobs(shop.seal)
    assert job.state == "running"
    moved = shop.execute(f"SELECT count(*) FROM {ITEMS} WHERE key_id = :k", k=shop.raw(active(shop)))[0][0]
    assert moved == (200 if how == "killed behind a commit" else 150)
    assert verify(shop.seal).done == 500
    waits = []
    result = reencrypt(shop.seal, batch=50, progress=waits.append)
    assert (result.complete, result.done, result.job_id) == (True, 500, job.job_id)
    assert verify(shop.seal).done == 500


@pytest.mark.slow
def test_who_works_on_a_range_is_known_to_be_dead_when_its_process_is():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        theirs = executor.submit(new_worker).result()
        assert not is_dead(theirs)
    assert is_dead(theirs)
    ours = new_worker()
    assert not is_dead(ours)
    end_worker(ours)
    assert is_dead(ours)
    machine, _, rest = ours.partition("|")
    assert not is_dead(f"{machine}-elsewhere|{rest}")


def test_the_range_of_a_silent_worker_elsewhere_is_taken_when_its_lease_ends(shop, monkeypatch):
    filled(shop)
    stop_behind(shop, monkeypatch, 3)
    with pytest.raises(KmsUnavailableError):
        reencrypt(shop.seal, batch=50)
    monkeypatch.undo()
    seen = "2000-01-01 00:00:00.000000" if shop.url.startswith("sqlite") else "2000-01-01T00:00:00Z"
    shop.execute(f"UPDATE eventseal_reencryption_shards SET worker = 'elsewhere|1|2|3', seen_at = '{seen}'")
    assert reencrypt(shop.seal).done == 500


# --- pausing ---


@pytest.mark.slow
def test_a_job_is_paused_by_another_process_and_resumes(shop, monkeypatch):
    filled(shop)
    other = shop.again()
    reseal_many, calls = shop.seal.cipher.reseal_many, []

    def hooked(page, collection):
        calls.append(page)
        if len(calls) == 3:
            pause_job(other.seal, list_jobs(other.seal)[0].job_id)
        return reseal_many(page, collection)

    monkeypatch.setattr(shop.seal.cipher, "reseal_many", hooked)
    paused = reencrypt(shop.seal, batch=50)
    assert (paused.complete, paused.done, paused.left) == (False, 150, 350)
    assert list_jobs(shop.seal)[0].state == "paused"
    result = reencrypt(shop.seal, resume=paused.job_id, batch=50)
    assert (result.complete, result.done, result.job_id) == (True, 500, paused.job_id)
    with pytest.raises(JobError, match="finished"):
        pause_job(shop.seal, paused.job_id)


# --- the throttle ---


class Waits:
    """A clock that moves on while somebody sleeps."""

    def __init__(self):
        self.clock = ManualClock()
        self.slept = 0.0

    def sleep(self, seconds):
        self.slept += seconds
        self.clock.advance(seconds)


def test_batches_take_their_time_at_the_pace_of_the_job(shop):
    filled(shop)
    reencrypt(shop.seal, items_per_second=100_000)
    (job,) = list_jobs(shop.seal)
    waits = Waits()
    pacers = [
        Pacer(
            shop.seal.datastore.engine,
            replace(job, items_per_second=100),
            sleep=waits.sleep,
            now=waits.clock.now,
        )
        for _ in range(2)
    ]
    shop.execute("UPDATE eventseal_reencryption_jobs SET paced_until = NULL")
    lives = []
    assert pacers[0].most(1_000) == 100
    for pacer in [*pacers, *pacers]:  # two workers, as if each were in a process of its own
        pacer.wait(100, lambda: lives.append(1))
    assert waits.slept == pytest.approx(3.0)  # the first batch goes at once, each other waits a second
    assert len(lives) == 6  # a waiting worker shows twice a second that it lives


@pytest.mark.slow
def test_the_throttle_holds_for_the_whole_job(shop, monkeypatch):
    filled(shop, streams=2)
    waits = Waits()
    monkeypatch.setattr(
        "eventseal.rotation.jobs.workers.Pacer",
        lambda engine, job, **_: Pacer(engine, job, sleep=waits.sleep, now=waits.clock.now),
    )
    sizes = []
    reseal_many = shop.seal.cipher.reseal_many
    monkeypatch.setattr(
        shop.seal.cipher, "reseal_many", lambda page, c: (sizes.append(len(page)), reseal_many(page, c))[1]
    )
    result = reencrypt(shop.seal, items_per_second=10)
    assert (result.complete, result.done) == (True, 50)
    assert sizes == [10] * 5
    assert waits.slept == pytest.approx(4.0)
    assert list_jobs(shop.seal)[0].items_per_second == 10


@pytest.mark.slow
def test_a_job_that_is_resumed_at_another_pace_does_not_wait_out_the_old_one(shop, monkeypatch):
    filled(shop, streams=2)
    stop_behind(shop, monkeypatch, 1)
    with pytest.raises(KmsUnavailableError):
        reencrypt(shop.seal, items_per_second=100_000, batch=10)
    monkeypatch.undo()
    shop.execute("UPDATE eventseal_reencryption_jobs SET paced_until = 9e9")
    result = reencrypt(shop.seal, items_per_second=200_000)
    assert (result.complete, result.done) == (True, 50)


@pytest.mark.slow
def test_who_goes_on_with_a_job_keeps_its_pace_unless_he_gives_another(shop, monkeypatch):
    """Else a second terminal would undo what spares the applications."""
    filled(shop, streams=2)
    stop_behind(shop, monkeypatch, 1)
    for given, kept in ((100_000, 100_000), (None, 100_000), (200_000, 200_000)):
        with pytest.raises(KmsUnavailableError):
            reencrypt(shop.seal, items_per_second=given, batch=10)
        assert [job.items_per_second for job in list_jobs(shop.seal)] == [kept]


@pytest.mark.slow
def test_only_the_newest_finished_jobs_are_kept_with_what_belongs_to_them(shop, monkeypatch):
    monkeypatch.setattr("eventseal.rotation.jobs.jobs.KEPT_JOBS", 2)
    shop.append(2)
    settle(shop)
    made = []
    for _ in range(4):
        shop.seal.keyring.rotate()
        made.append(reencrypt(shop.seal).job_id)
    assert [job.job_id for job in list_jobs(shop.seal)] == made[1:]
    for table in ("eventseal_reencryption_shards", "eventseal_reencrypted_keys"):
        assert shop.execute(f"SELECT count(DISTINCT job_id) FROM {table}") == [(3,)]
    with pytest.raises(JobError, match="there is no job"):
        reencrypt(shop.seal, resume=made[0])


def test_unfinished_jobs_are_never_forgotten(shop, monkeypatch):
    monkeypatch.setattr("eventseal.rotation.jobs.jobs.KEPT_JOBS", 0)
    filled(shop, streams=2)
    stop_behind(shop, monkeypatch, 1)
    with pytest.raises(KmsUnavailableError):
        reencrypt(shop.seal, batch=10)
    (unfinished,) = list_jobs(shop.seal)
    monkeypatch.undo()
    monkeypatch.setattr("eventseal.rotation.jobs.jobs.KEPT_JOBS", 0)
    assert reencrypt(shop.seal, tables=[ITEMS]).complete
    assert reencrypt(shop.seal, tables=["snapshots"]).complete
    kept = [job.job_id for job in list_jobs(shop.seal)]
    assert kept[0] == unfinished.job_id
    assert len(kept) == 2


# --- beside others who write ---


@pytest.mark.parametrize("others_write", [True, False], ids=["while others write", "alone"])
def test_on_sqlite_a_worker_leaves_the_lock_to_others(open_shop, sqlite_url, kms, monkeypatch, others_write):
    shop = filled(open_shop(sqlite_url, kms), streams=4)
    waits = Waits()
    monkeypatch.setattr(
        "eventseal.rotation.jobs.passes.ShardWorker", functools.partial(ShardWorker, sleep=waits.sleep)
    )
    begin = SQLiteContention.begin

    def begin_and_write(others):
        begin(others)
        shop.append(1)

    if others_write:
        monkeypatch.setattr(SQLiteContention, "begin", begin_and_write)
    assert reencrypt(shop.seal, batch=20).complete
    assert waits.slept == pytest.approx(STEP_ASIDE * 4 if others_write else 0.0)


# --- several workers ---


@pytest.mark.slow
def test_two_rotators_share_one_job(shop):
    filled(shop, streams=40)  # enough to be cut into ranges
    other = shop.again()
    barrier = threading.Barrier(2)

    def run(seal):
        barrier.wait()
        return reencrypt(seal, batch=100)

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(run, [shop.seal, other.seal]))
    assert len(list_jobs(shop.seal)) == 1
    assert {result.done for result in results} == {1_000}
    assert all(result.complete for result in results)
    assert verify(shop.seal).failed == 0


@pytest.mark.slow
def test_threads_of_an_executor_work_on_the_store_they_are_given(shop, monkeypatch):
    monkeypatch.setattr("eventseal.rotation.jobs.passes._TOLD_EVERY", 0.01)  # however fast the machine is
    filled(shop, streams=40)
    told, telling = [], threading.Lock()

    def progress(result):
        assert telling.acquire(blocking=False), "two threads tell at once"
        time.sleep(0.02)  # so that the others have something to tell meanwhile
        told.append(result)
        telling.release()

    with ThreadPoolExecutor(3) as executor:
        result = reencrypt(shop.seal, shards=3, executor=executor, batch=20, progress=progress)
    assert (result.complete, result.done) == (True, 1_000)
    assert told
    lefts = [each.left for each in told]
    assert lefts == sorted(lefts, reverse=True)


@pytest.mark.slow
def test_processes_open_the_store_themselves(open_shop, store_url, kms, tmp_path):
    shop = filled(open_shop(store_url, kms), streams=40)
    open_store = functools.partial(
        EventSeal.from_settings,
        store_url=store_url,
        kms_key=f"local://{tmp_path / 'dev.key'}",
        application="shop",
    )
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        result = reencrypt(shop.seal, shards=2, executor=executor, open_store=open_store, batch=200)
    assert (result.complete, result.done) == (True, 1_000)
    assert {item.key_id for item in shop.strategy().all_items()} == {active(shop)}


def test_processes_without_a_way_to_open_the_store_are_refused(sqlite_shop):
    with (
        ProcessPoolExecutor(1) as executor,
        pytest.raises(ConfigurationError, match="keys never leave their process"),
    ):
        reencrypt(sqlite_shop.seal, executor=executor)


@pytest.mark.slow
def test_a_worker_process_that_is_killed_ends_the_call_but_not_the_job(open_shop, store_url, kms):
    shop = filled(open_shop(store_url, kms))
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor,
        pytest.raises(JobError, match="worker process ended"),
    ):
        reencrypt(shop.seal, executor=executor, open_store=_die)
    assert reencrypt(shop.seal).done == 500


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_an_interruption_stops_the_workers_of_this_call_alone(shop, monkeypatch):
    filled(shop, streams=40)
    seen = []

    def progress(result):
        seen.append(result)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(KeyboardInterrupt):
            reencrypt(shop.seal, shards=2, executor=executor, batch=5, progress=progress)
        (job,) = list_jobs(shop.seal)
        assert job.state == "running"  # another rotator may be at it
        free = shop.execute("SELECT count(*) FROM eventseal_reencryption_shards WHERE worker IS NOT NULL")
        assert free == [(0,)]
    assert seen[0].done < 1_000
    result = reencrypt(shop.seal)
    assert (result.complete, result.done) == (True, 1_000)


@pytest.mark.slow
def test_an_error_in_a_worker_reaches_the_caller_and_stops_the_others(shop, monkeypatch):
    filled(shop, streams=40)
    stop_behind(shop, monkeypatch, 3)
    with ThreadPoolExecutor(2) as executor, pytest.raises(KmsUnavailableError):
        reencrypt(shop.seal, shards=2, executor=executor, batch=10)
    monkeypatch.undo()
    assert reencrypt(shop.seal).done == 1_000

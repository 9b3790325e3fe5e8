"""Rewrap over real databases: what is verified and dropped, also side by side, and in whose transactions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import text
from tests.fixtures.versioned_kms import VersionedKms

from eventseal.errors import KmsUnavailableError
from eventseal.keys import DataKey, KeyPurpose, KeyState
from eventseal.rotation import JobResult, kek_report, rewrap, verify
from eventseal.storage import IntegerSequencedItemRecord
from eventseal.testing import FakeBatchKms, FakeKms

KEYS = 30


def fill(shop, count: int = KEYS) -> list:
    keys = shop.seal.keyring.sealing_keys({f"tenant:{n}": 1 for n in range(count)})
    return [key.key_id for key in keys.values()]


def opened(shop, key_ids) -> bool:
    return all(isinstance(key, DataKey) for key in shop.seal.keyring.opening_keys(key_ids).values())


@pytest.fixture
def kek() -> VersionedKms:
    return VersionedKms("kek")


@pytest.fixture
def under(open_shop, store_url):
    """Open the same store under other KEKs, as other processes do."""

    def under(*keks, **settings):
        return open_shop(store_url, list(keks), **settings)

    return under


@pytest.mark.slow
def test_wrappings_move_to_the_newest_version_in_two_runs(under, kek) -> None:
    key_ids = fill(under(kek))
    kek.rotate()
    worker = under(kek).seal
    first = rewrap(worker, batch=7)
    assert (first.verb, first.complete, first.done, first.left, first.failed) == ("rewrap", True, 0, 31, 0)
    counts = {"done": 0, "to_move": 0, "awaiting": 31, "failed": 0, "added": 31, "dropped": 0}
    assert first.by_table == {"eventseal_key_wrappings": counts}
    assert first.by_kek == {"fake://kek": 62}
    assert opened(under(kek), key_ids)
    second = rewrap(worker, batch=7)
    assert (second.done, second.left) == (31, 0)
    assert second.by_table["eventseal_key_wrappings"]["dropped"] == 31
    assert second.by_kek == {"fake://kek": 31}
    assert [(use.kek_version, use.wrappings) for use in kek_report(worker).uses] == [("2", 31)]
    assert opened(under(kek), key_ids)


@pytest.mark.slow
def test_verify_opens_what_nobody_reads(under, kek) -> None:
    fill(under(kek))
    kek.rotate()
    rewrap(under(kek).seal)
    assert verify(under(kek).seal).complete
    assert rewrap(under(kek).seal).left == 0


def test_a_store_moves_to_another_kek_in_one_run(under, kek) -> None:
    old = FakeBatchKms("old")
    key_ids = fill(under(old))
    result = rewrap(under(old, kek).seal, to=kek)
    assert (result.done, result.left, result.by_kek) == (31, 0, {"fake://kek": 31})
    old.fail_always()
    assert opened(under(kek), key_ids)


def test_a_dry_run_tells_what_would_move_and_writes_nothing(under, kek) -> None:
    shop = under(kek)
    fill(shop)
    kek.rotate(), kek.calls.clear()
    result = rewrap(under(kek, FakeKms("other")).seal, dry_run=True)
    assert (result.done, result.left, result.by_kek) == (0, 31, {"fake://kek": 31})
    assert result.by_table["eventseal_key_wrappings"]["to_move"] == 31
    assert kek.count() == kek.count("current_version") == 1


def test_progress_counts_down(under, kek) -> None:
    fill(under(kek))
    kek.rotate()
    seen: list[JobResult] = []
    rewrap(under(kek).seal, batch=10, progress=seen.append)
    assert [(told.complete, told.done + told.left) for told in seen] == [(False, 31)] * 4
    assert [told.by_table["eventseal_key_wrappings"]["awaiting"] for told in seen] == [10, 20, 30, 31]


def test_a_key_that_does_not_move_is_told_with_its_row(under, kek) -> None:
    shop = under(kek)
    key_ids = fill(shop)
    shop.execute(
        "UPDATE eventseal_key_wrappings SET wrapped = :x WHERE key_id = :k", x=b"1|x", k=shop.raw(key_ids[3])
    )
    kek.rotate()
    result = rewrap(under(kek).seal)
    assert (result.failed, result.left) == (1, 30)
    (failure,) = result.failures
    assert (failure.key_id, failure.error, failure.table) == (
        key_ids[3],
        "IntegrityError",
        "eventseal_key_wrappings",
    )
    assert failure.row == {"key_id": str(key_ids[3])}
    assert "x" not in failure.to_json()


@pytest.mark.slow
def test_rewraps_at_once_with_readers_lose_no_key(under, kek) -> None:
    old = FakeBatchKms("old")
    key_ids = fill(under(old), 60)
    workers = [under(old, kek) for _ in range(3)]
    readers = [under(old, kek) for _ in range(2)]

    def work(shop) -> None:
        for _ in range(3):
            kek.rotate()
            rewrap(shop.seal, to=kek, batch=9)

    def read(shop) -> None:
        for _ in range(6):
            shop.seal.keyring._held_keys._caches[KeyPurpose.DATA].keys.clear()
            assert opened(shop, key_ids)

    with ThreadPoolExecutor(5) as pool:
        done = [pool.submit(work, shop) for shop in workers] + [pool.submit(read, shop) for shop in readers]
        for future in done:
            future.result(60)
    for _ in range(2):
        assert opened(under(kek), key_ids)
        last = rewrap(under(old, kek).seal, to=kek)
    assert (last.left, last.failed, last.by_kek) == (0, 0, {"fake://kek": 61})


@pytest.mark.slow
def test_many_data_keys_under_branch_keys_cost_a_handful_of_calls(under, kek) -> None:
    shop = under(kek, branches=2)
    key_ids = fill(shop, 1_000)
    kek.rotate()
    rotated = {record.key_id for record in shop.seal.keyring.rotate_branches(compromised=True)}
    kek.calls.clear()
    result = rewrap(under(kek).seal, batch=250)
    assert kek.count() <= 12
    assert result.by_table["eventseal_key_wrappings"]["dropped"] == 1_000
    store = shop.seal.key_store
    old = [r for r in store.page("shop", limit=5_000) if r.state is KeyState.COMPROMISED]
    assert {f"branch:{record.key_id}" for record in old}.isdisjoint(result.by_kek)
    assert {f"branch:{key_id}" for key_id in rotated} < set(result.by_kek)
    assert opened(under(kek), key_ids)


# --- verification in passing, beside the caller's transaction ---


def append(session, position: int) -> None:
    session.add(
        IntegerSequencedItemRecord(
            sequence_id=uuid4(), position=position, topic="t", data=b"plain", key_id=None
        )
    )
    session.flush()


def verified(shop) -> int:
    return shop.execute("SELECT count(*) FROM eventseal_key_wrappings WHERE verified_at IS NOT NULL")[0][0]


@pytest.mark.slow
def test_inside_the_callers_open_write_transaction_keys_open_and_the_mark_comes_later(under, kek) -> None:
    key_ids = fill(under(kek))
    kek.rotate()
    rewrap(under(kek).seal)
    shop = under(kek)
    session = shop.seal.datastore.session()
    append(session, 0)
    assert opened(shop, key_ids[:20])
    in_time = 0 if shop.url.startswith("sqlite") else 21
    session.rollback()
    assert verified(shop) == in_time
    assert opened(shop, key_ids[20:])
    assert verified(shop) == 31


@pytest.mark.slow
def test_another_processs_lock_is_not_waited_for(under, kek) -> None:
    key_ids = fill(under(kek))
    kek.rotate()
    rewrap(under(kek).seal)
    shop, other = under(kek), under(kek)
    with other.seal.datastore.key_engine.connect() as connection:
        if shop.url.startswith("sqlite"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("LOCK TABLE eventseal_key_wrappings IN EXCLUSIVE MODE"))
        assert opened(shop, key_ids[:20])
        connection.rollback()
    assert verified(shop) == 0
    assert opened(shop, key_ids[20:])
    assert verified(shop) == 31


def test_one_wrapping_a_key_costs_a_reader_no_write(under, kek) -> None:
    key_ids = fill(under(kek))
    shop = under(kek)
    shop.seal.keyring.refresh()
    before = shop.seal.keyring.counters.store_queries
    assert opened(shop, key_ids)
    assert shop.seal.keyring.counters.store_queries == before + 1
    assert verified(shop) == 0


@pytest.mark.slow
def test_a_kek_that_is_away_ends_a_rewrap_and_the_next_one_goes_on(under, kek) -> None:
    key_ids = fill(under(kek))
    kek.rotate()

    def fail(so_far: JobResult) -> None:
        if so_far.left <= 31 and so_far.by_table["eventseal_key_wrappings"]["awaiting"] == 10:
            kek.fail_always()

    with pytest.raises(KmsUnavailableError):
        rewrap(under(kek).seal, batch=10, progress=fail)
    kek.recover()
    assert rewrap(under(kek).seal, batch=10).by_table["eventseal_key_wrappings"]["added"] == 21
    assert opened(under(kek), key_ids)


def test_items_are_not_touched(under, kek) -> None:
    shop = under(kek)
    items = shop.append(5)
    before = shop.execute("SELECT * FROM integer_sequenced_items ORDER BY position")
    kek.rotate()
    rewrap(under(kek, FakeKms("other")).seal)
    assert shop.execute("SELECT * FROM integer_sequenced_items ORDER BY position") == before
    assert len(items) == len(before) == 5

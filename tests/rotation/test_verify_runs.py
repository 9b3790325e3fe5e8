"""Verify: ranges, workers, and runs that were interrupted and go on; nothing of it stands in the database."""

from __future__ import annotations

import copy
import json
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from uuid import uuid4

import pytest
from sqlalchemy import event

from eventseal.cipher import ItemContext
from eventseal.configuration import EventSeal
from eventseal.errors import ConfigurationError, IntegrityError, JobError, KmsUnavailableError
from eventseal.rotation import mark_compromised, reencrypt, verification, verify
from eventseal.rotation.item_checks import ItemChecks
from eventseal.storage import SnapshotRecord
from eventseal_kms.local import LocalKmsAdapter

ITEMS = "integer_sequenced_items"


class StopError(Exception):
    pass


@pytest.fixture
def _small_ranges(monkeypatch):
    monkeypatch.setattr(verification, "RANGE_ITEMS", 10)
    monkeypatch.setattr("eventseal.rotation.item_checks.PAGE_SIZE", 4)


def filled(shop):
    for number in range(10):
        shop.append(10, scope=f"tenant:{number % 3}")
    shop.append(7, record=SnapshotRecord)
    shop.edit(shop.append(2)[1], topic="changed")
    return shop


def facts(result):
    return (result.done, result.failed, result.left, result.by_table, result.by_key)


def interrupted(shop, after: int, **options):
    """Run until so many pages were told of; give the state that was kept last, as its file has it."""
    kept, told = [], []

    def stop(result):
        told.append(result)
        if len(told) == after:
            raise StopError

    with pytest.raises(StopError):
        verify(shop.seal, progress=stop, keep=kept.append, **options)
    return json.loads(json.dumps(kept[-1]))


@pytest.mark.usefixtures("_small_ranges")
def test_ranges_cover_every_row_once(shop):
    filled(shop)
    result = verify(shop.seal)
    assert facts(result)[:3] == (108, 1, 0)
    assert sum(result.by_key.values()) == 108


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ranges")
def test_an_interrupted_run_goes_on_where_it_was(shop, monkeypatch):
    whole = verify(filled(shop).seal)
    state = interrupted(shop, 17)
    ranges = []
    run = ItemChecks.run

    def seen(checks, after, upto):
        ranges.append((after, upto))
        return run(checks, after, upto)

    monkeypatch.setattr(ItemChecks, "run", seen)
    other = shop.again()
    result = verify(other.seal, resume=state)
    assert facts(result) == facts(whole)
    assert [failure.row for failure in result.failures] == [failure.row for failure in whole.failures]
    assert result.begun_at.isoformat() == state["begun_at"]
    assert len(ranges) == len(state["ranges"]) < len(verify_ranges(shop))


def verify_ranges(shop):
    return interrupted(shop, 1)["ranges"]


@pytest.mark.usefixtures("_small_ranges")
@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["ranges"].clear(),
        lambda state: state["by_table"][ITEMS].update(failed=0),
        lambda state: state["failures"].clear(),
        lambda state: state.update(total=1),
        lambda state: state.update(mac="0" * 64),
        lambda state: state.pop("mac"),
    ],
    ids=["ranges", "counts", "failures", "total", "mac", "no mac"],
)
def test_a_state_that_was_changed_is_refused(sqlite_shop, change):
    sqlite_shop.edit(sqlite_shop.append(20)[0], topic="changed")
    state = interrupted(sqlite_shop, 4)
    state["failures"] = state["failures"] or [None]
    change(state)
    with pytest.raises(IntegrityError, match="was edited or forged"):
        verify(sqlite_shop.seal, resume=state)


def test_a_state_is_of_one_verification(sqlite_shop):
    sqlite_shop.append(3)
    state = interrupted(sqlite_shop, 1)
    for options in ({"sample": 0.5}, {"tables": [ITEMS]}):
        with pytest.raises(ConfigurationError, match="other tables or another sample"):
            verify(sqlite_shop.seal, resume=state, **options)
    for settings in ({"always_encrypt": False}, {"application": "billing"}):
        other = sqlite_shop.again(**settings)
        other.seal.datastore.setup_tables(application=other.seal.cipher.application)
        other.seal.keyring.prepare(["application"])
        with pytest.raises(ConfigurationError, match="verification began"):
            verify(other.seal, resume=state)
    with pytest.raises(ConfigurationError, match="is not the state of a verification"):
        verify(sqlite_shop.seal, resume={"receipt": "eventseal erasure"})


def test_a_table_that_was_registered_meanwhile_is_not_passed_over(sqlite_shop):
    sqlite_shop.append(3)
    row = sqlite_shop.execute("SELECT * FROM eventseal_sealed_tables WHERE table_name = 'snapshots'")[
        0
    ]._mapping
    sqlite_shop.execute("DELETE FROM eventseal_sealed_tables WHERE table_name = 'snapshots'")
    records = [record for record in sqlite_shop.seal.datastore.tables if record is not SnapshotRecord]
    sqlite_shop.seal.datastore.tables = records
    with pytest.raises(ConfigurationError, match="snapshots"):  # it looks sealed, and nobody named it
        verify(sqlite_shop.seal)
    sqlite_shop.execute("ALTER TABLE snapshots RENAME COLUMN key_id TO kid")
    state = interrupted(sqlite_shop, 1)
    sqlite_shop.execute("ALTER TABLE snapshots RENAME COLUMN kid TO key_id")
    names = ", ".join(f":{name}" for name in row)
    sqlite_shop.execute(f"INSERT INTO eventseal_sealed_tables ({', '.join(row)}) VALUES ({names})", **row)
    with pytest.raises(ConfigurationError, match="other tables"):
        verify(sqlite_shop.seal, resume=state)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ranges")
def test_threads_find_what_one_finds(shop):
    whole = verify(filled(shop).seal)
    told = []
    with ThreadPoolExecutor(3) as pool:
        result = verify(shop.seal, executor=pool, shards=3, progress=told.append)
    assert facts(result) == facts(whole)
    assert told[-1].left == 0
    assert not any(part.complete for part in told)


@pytest.mark.slow
@pytest.mark.usefixtures("_small_ranges")
def test_processes_find_what_one_finds(open_shop, store_url, tmp_path, monkeypatch):
    LocalKmsAdapter.create(tmp_path / "dev.key")
    named = {"kms_key": f"local://{tmp_path}/dev.key", "store_url": store_url, "application": "shop"}
    shop = open_shop(store_url, kms=LocalKmsAdapter(tmp_path / "dev.key"))
    whole = verify(filled(shop).seal)
    for name, value in named.items():
        monkeypatch.setenv(f"EVENTSEAL_{name.upper()}", value)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        with pytest.raises(ConfigurationError, match="keys never leave their process"):
            verify(shop.seal, executor=pool, shards=2)
        result = verify(shop.seal, executor=pool, shards=2, open_store=EventSeal.from_settings)
        assert facts(result) == facts(whole)
        with pytest.raises(JobError, match="a worker process ended"):
            verify(shop.seal, executor=pool, shards=2, open_store=partial(os._exit, 1))


@pytest.mark.usefixtures("_small_ranges")
def test_an_outage_in_a_worker_ends_the_run_which_goes_on_afterwards(sqlite_shop):
    whole = verify(filled(sqlite_shop).seal)
    other, kept = sqlite_shop.again(), []
    other.seal.keyring.prepare(["application"])
    opened = other.seal.cipher.open_many

    def away(items):
        if len(kept_pages) > 8:
            raise KmsUnavailableError("the KMS did not answer")
        kept_pages.append(len(items))
        return opened(items)

    kept_pages: list[int] = []
    other.seal.cipher.open_many = away
    with ThreadPoolExecutor(2) as pool, pytest.raises(KmsUnavailableError):
        verify(other.seal, executor=pool, shards=2, keep=kept.append)
    del other.seal.cipher.open_many
    assert facts(verify(other.seal, resume=kept[-1])) == facts(whole)


@pytest.mark.parametrize("branches", [None, 2])
def test_no_key_that_the_kms_does_not_unwrap_is_a_failed_item(open_shop, sqlite_url, monkeypatch, branches):
    shop = open_shop(sqlite_url, branches=branches)
    for number in range(3):
        shop.append(1, scope=f"tenant:{number}")
    opened, asked = shop.kms._opened, []

    def fail_once(wrapped, context):
        asked.append(context)
        if len(asked) == fails:
            raise KmsUnavailableError("the KMS did not answer")
        return opened(wrapped, context)

    monkeypatch.setattr(shop.kms, "_opened", fail_once)
    fails = 0
    assert verify(shop.again().seal).failed == 0
    for number in range(1, len(asked) + 1):
        fails = number
        asked.clear()
        with pytest.raises(KmsUnavailableError):
            verify(shop.again().seal)
    assert fails > 1


@pytest.mark.usefixtures("_small_ranges")
def test_a_state_is_kept_now_and_then(sqlite_shop, monkeypatch):
    monkeypatch.setattr(verification, "_KEPT_EVERY", 0.0)
    kept = []
    result = verify(filled(sqlite_shop).seal, keep=lambda state: kept.append(copy.deepcopy(state)))
    left = [len(state["ranges"]) for state in kept]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    assert "tenant:" not in json.dumps(kept)
    assert verify(sqlite_shop.seal, resume=kept[3]).by_table == result.by_table


def read_only(shop):
    """A connection that is refused every write, as that of a replica is."""
    statement = "SET default_transaction_read_only = on"
    if shop.url.startswith("sqlite"):
        statement = "PRAGMA query_only = 1"

    @event.listens_for(shop.seal.datastore.engine, "connect")
    def refuse_writes(connection, _record):
        connection.execute(statement)
        connection.commit()

    return shop


@pytest.mark.slow
def test_a_database_that_takes_no_writes_is_verified(shop):
    filled(shop)
    result = verify(read_only(shop.again()).seal)
    assert facts(result)[:3] == (108, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("pages", [1, 1000])
def test_a_forgery_that_a_reencryption_names_fails_here_too(shop, monkeypatch, pages):
    monkeypatch.setattr("eventseal.rotation.item_checks.PAGE_SIZE", pages)
    shop.append(3)
    thief = shop.again()
    key_id = thief.append(1)[0].key_id
    mark_compromised(shop.seal, [key_id])
    assert verify(shop.seal).failed == 0
    items = thief.seal.cipher.encrypt_many  # it seals under the old key until it notices
    forged = forge(shop, items, key_id)
    assert [failure.row["sequence_id"] for failure in verify(shop.seal).failures] == [forged]
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")
    moved = reencrypt(shop.seal)
    assert (moved.done, moved.failed) == (4, 1)
    (failure,) = verify(shop.seal).failures
    assert (failure.row["sequence_id"], failure.error) == (forged, "IntegrityError")
    assert "suspected forgery" in failure.message


def forge(shop, encrypt_many, key_id):
    stream = uuid4()
    (data,) = encrypt_many([(b'{"amount":1000000}', ItemContext(stream, 0, "shop:Placed"))])
    columns = "sequence_id, position, topic, data, key_id"
    shop.execute(
        f"INSERT INTO {ITEMS} ({columns}) VALUES (:s, 0, 'shop:Placed', :d, :k)",
        s=shop.raw(stream),
        d=data,
        k=shop.raw(key_id),
    )
    return str(stream)


def test_rows_without_a_place_are_a_failure(sqlite_shop):
    sqlite_shop.append(2, record=SnapshotRecord)
    sqlite_shop.execute("ALTER TABLE snapshots RENAME TO before")
    sqlite_shop.execute("CREATE TABLE snapshots AS SELECT * FROM before")
    sqlite_shop.execute("DROP TABLE before")
    assert verify(sqlite_shop.seal).failed == 0
    sqlite_shop.execute("UPDATE snapshots SET sequence_id = NULL WHERE position = 0")
    result = verify(sqlite_shop.seal)
    assert result.failed >= 1
    assert any("without a sequence id" in failure.message for failure in result.failures)


def test_the_keys_that_are_listed_have_a_bound(sqlite_shop, monkeypatch):
    monkeypatch.setattr("eventseal.rotation.item_checks.MAX_KEYS_LISTED", 2)
    for number in range(4):
        sqlite_shop.append(2, scope=f"tenant:{number}")
    result = verify(sqlite_shop.seal)
    assert (result.done, len(result.by_key)) == (8, 2)

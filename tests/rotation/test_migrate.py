"""Migration in place: what is old becomes envelopes, whatever it was; then nothing old is read any more."""

from __future__ import annotations

import base64
import json
import tracemalloc
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import pytest
from tests.fixtures.old_formats import OLD_KEY, WRONG_KEY, cbc, gcm, gcm_text

from eventseal.cipher import AESCipher, ItemContext, Opened, inspect
from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    JobError,
    KeyNotFoundError,
)
from eventseal.items import SequencedItem
from eventseal.keys.source import StaticKey
from eventseal.rotation import (
    abandon_migration,
    begin_migration,
    finish_migration,
    migrate,
    reencrypt,
    retire,
    rotate_keys,
    verify,
)
from eventseal.rotation import migrate as verb
from eventseal.storage import SnapshotRecord, TimestampSequencedItemRecord
from eventseal.storage.jobs import jobs

ITEMS = "integer_sequenced_items"
TOPIC = "tests.rotation.test_migrate:Placed"
MODULES = ["tests.rotation.test_migrate"]
KEY_64 = base64.b64encode(OLD_KEY).decode()
EVERY_FORMAT = (
    "eventsourcing-cbc key=env:OLD",
    "eventsourcing-gcm-base64 key=env:OLD",
    "eventsourcing-gcm+zlib key=env:OLD",
    "eventsourcing-gcm key=env:OLD",
    "plain-json",
    "plain-json+zlib",
    "static-key key=env:OLD",
)
WRITERS = [
    lambda data, place: cbc(data),
    lambda data, place: gcm_text(data),
    lambda data, place: gcm(data, zipped=True),
    lambda data, place: gcm(data),
    lambda data, place: data,
    lambda data, place: __import__("zlib").compress(data),
    lambda data, place: AESCipher(OLD_KEY).encrypt(data, place),
]


class Placed:
    def __init__(self, originator_id, originator_version, name, tenant="acme"):
        self.originator_id = originator_id
        self.originator_version = originator_version
        self.name = name
        self.tenant = tenant


def tenant_of(context: ItemContext, plaintext: bytes) -> str:
    return f"tenant:{json.loads(plaintext)['tenant']}"


@pytest.fixture(autouse=True)
def _old_key(monkeypatch):
    monkeypatch.setenv("OLD", KEY_64)


def plaintext(number: int, tenant: str = "acme") -> bytes:
    return json.dumps({"name": f"name {number}", "tenant": tenant}).encode()


def fill(shop, writers=WRITERS, count=None, record=None, decimal=False):
    """Append old items, in every format in turn, to one stream."""
    stream = uuid4()
    items = []
    named = {} if record is None else {"record": record}
    collection = "items" if record is None else record.__collection__
    for number in range(count or 3 * len(writers)):
        position = Decimal(f"{number}.5") if decimal else number
        place = ItemContext(stream, position, TOPIC, collection)
        write = writers[number % len(writers)]
        key_id = StaticKey(OLD_KEY).key_id if write is WRITERS[-1] else None
        items.append(SequencedItem(stream, position, TOPIC, write(plaintext(number), place), key_id))
    shop.strategy(**named).append(items)
    return items


@pytest.fixture
def old_shop(open_shop, store_url):
    """A store that accepts everything old."""
    return open_shop(store_url, event_modules=MODULES, old_formats=EVERY_FORMAT)


def rows(shop, table=ITEMS):
    return shop.execute(f"SELECT data, key_id FROM {table} ORDER BY position")


def names(shop, stream):
    return [event.name for event in shop.seal.mapper.from_sequenced_items(shop.strategy().get_items(stream))]


@pytest.mark.slow
def test_every_format_becomes_an_envelope_and_nothing_old_is_read_afterwards(old_shop):
    items = fill(old_shop)
    stream = items[0].sequence_id
    expected = [f"name {number}" for number in range(len(items))]
    begun = begin_migration(old_shop.seal)
    assert (begun.left, begun.failed) == (len(items), 0)
    assert begun.by_table[ITEMS]["eventsourcing-cbc"] == begun.by_table[ITEMS]["static-key"] == 3
    assert names(old_shop, stream) == expected
    sealed = old_shop.append(2)

    result = migrate(old_shop.seal)

    assert (result.verb, result.complete, result.done, result.left, result.failed) == (
        "migrate",
        True,
        21,
        0,
        0,
    )
    assert result.by_table[ITEMS]["done"] == 21
    assert names(old_shop, stream) == expected
    assert all(row.key_id is not None for row in rows(old_shop))
    for item in items:
        stored = old_shop.strategy().get_item(stream, item.position)
        (outcome,) = old_shop.seal.cipher.open_many([(stored.data, ItemContext(*stored[:3]))])
        assert isinstance(outcome, Opened)
        assert outcome.plaintext == plaintext(item.position)
        assert stored.key_id == outcome.key_id == sealed[0].key_id
        with pytest.raises(KeyNotFoundError):
            AESCipher(OLD_KEY).decrypt(stored.data, ItemContext(*stored[:3]))
    assert verify(old_shop.seal).failed == 0

    finish_migration(old_shop.seal)
    late = fill(old_shop, WRITERS[4:5], count=1)[0]
    fresh = old_shop.again(event_modules=MODULES, old_formats=EVERY_FORMAT)
    with pytest.raises(EncryptionRequiredError):
        names(fresh, late.sequence_id)
    checked = verify(fresh.seal)
    assert (checked.failed, checked.failures[0].row["sequence_id"]) == (1, str(late.sequence_id))
    assert names(fresh, stream) == expected


def test_nothing_is_moved_and_nothing_old_is_read_before_it_has_begun(old_shop):
    (item, *_) = fill(old_shop)
    with pytest.raises(JobError, match="no migration has begun"):
        migrate(old_shop.seal)
    with pytest.raises(EncryptionRequiredError):
        names(old_shop, item.sequence_id)
    looked = begin_migration(old_shop.seal, dry_run=True)
    assert looked.left == 21
    with pytest.raises(JobError):
        migrate(old_shop.seal)


@pytest.mark.slow
def test_every_table_and_collection_is_migrated(open_shop, store_url):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=EVERY_FORMAT)
    fill(shop, count=7)
    fill(shop, count=7, record=SnapshotRecord)
    fill(shop, count=7, record=TimestampSequencedItemRecord, decimal=True)
    begin_migration(shop.seal)
    result = migrate(shop.seal)
    assert {table: counts["done"] for table, counts in result.by_table.items()} == {
        ITEMS: 7,
        "snapshots": 7,
        "timestamp_sequenced_items": 7,
    }
    assert verify(shop.seal).done == 21
    finish_migration(shop.seal)


def test_the_scope_of_each_item_is_worked_out_from_it(open_shop, store_url):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=["plain-json"])
    stream = uuid4()
    tenants = ["acme", "globex", "acme"]
    shop.strategy().append(
        [SequencedItem(stream, n, TOPIC, plaintext(n, tenant)) for n, tenant in enumerate(tenants)]
    )
    begin_migration(shop.seal)
    with pytest.raises(ConfigurationError, match="cannot be imported by that name"):
        migrate(shop.seal, key_scope=lambda context, data: "tenant:acme")
    assert migrate(shop.seal, key_scope=tenant_of).done == 3
    scopes = {
        opened.scope
        for item in shop.strategy().get_items(stream)
        for opened in shop.seal.cipher.open_many([(item.data, ItemContext(*item[:3]))])
    }
    assert scopes == {"tenant:acme", "tenant:globex"}


def test_no_scope_is_guessed_where_the_application_has_its_own(open_shop, store_url):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=["plain-json"])
    stream = uuid4()
    sealed = shop.seal.cipher.encrypt(plaintext(0), ItemContext(stream, 0, TOPIC), scope="tenant:acme")
    key_id = inspect(sealed).key_id
    shop.strategy().append(
        [
            SequencedItem(stream, 0, TOPIC, sealed, key_id),
            SequencedItem(stream, 1, TOPIC, plaintext(1)),
        ]
    )
    begin_migration(shop.seal)
    for dry_run in (True, False):
        with pytest.raises(ConfigurationError, match="you must choose the scope") as refused:
            migrate(shop.seal, dry_run=dry_run)
    assert "--key-scope-function" in refused.value.remedy
    assert shop.strategy().get_items(stream)[1].data == plaintext(1)
    assert migrate(shop.seal, key_scope="application").done == 1
    assert migrate(shop.seal).complete  # there is nothing left to guess for


@pytest.mark.slow
def test_an_item_whose_scope_cannot_be_worked_out_stops_no_others(open_shop, store_url):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=["plain-json"])
    written = [plaintext(0), b'{"name":"no tenant"}', plaintext(2, ""), plaintext(3, "n" * 200), plaintext(4)]
    stream = uuid4()
    shop.strategy().append([SequencedItem(stream, n, TOPIC, data) for n, data in enumerate(written)])
    begin_migration(shop.seal)
    moved = migrate(shop.seal, key_scope=tenant_of)
    assert (moved.done, moved.failed, moved.complete) == (3, 2, True)
    assert {(failure.row["position"], failure.error) for failure in moved.failures} == {
        ("1", "SerializationError"),
        ("3", "ConfigurationError"),
    }
    assert "tenant" not in next(
        failure.message for failure in moved.failures if failure.row["position"] == "1"
    )


def test_items_of_a_shredded_scope_stay_and_are_named(open_shop, store_url):
    from eventseal.erasure import shred

    shop = open_shop(store_url, event_modules=MODULES, old_formats=["plain-json"])
    stream = uuid4()
    shop.strategy().append(
        [SequencedItem(stream, n, TOPIC, plaintext(n, tenant)) for n, tenant in enumerate(["acme", "gone"])]
    )
    shop.seal.keyring.prepare(["tenant:gone"])
    shred(shop.seal, "tenant:gone")
    begin_migration(shop.seal)
    result = migrate(shop.seal, key_scope=tenant_of)
    assert (result.complete, result.done, result.failed) == (True, 1, 1)
    assert result.failures[0].error == "KeyDestroyedError"
    with pytest.raises(JobError, match="1 item in integer_sequenced_items"):
        finish_migration(shop.seal)


# --- bad input ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eventsourcing-cbc", "eventsourcing-gcm", "eventsourcing-gcm-base64"])
def test_a_wrong_old_key_is_named_and_nothing_is_written(open_shop, store_url, monkeypatch, name):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=[f"{name} key=env:OLD", "plain-json"])
    write = {"eventsourcing-cbc": cbc, "eventsourcing-gcm": gcm, "eventsourcing-gcm-base64": gcm_text}[name]
    stream = uuid4()
    data = [write(plaintext(n)) if n % 3 else plaintext(n) for n in range(9)]
    shop.strategy().append([SequencedItem(stream, n, TOPIC, each) for n, each in enumerate(data)])
    assert shop.seal.accepted_formats
    monkeypatch.setenv("OLD", base64.b64encode(WRONG_KEY).decode())
    wrong = shop.again(event_modules=MODULES, old_formats=[f"{name} key=env:OLD", "plain-json"])
    with pytest.raises(ConfigurationError, match=f"key of {name}.*{StaticKey(WRONG_KEY).key_id}") as refused:
        begin_migration(wrong.seal)
    assert base64.b64encode(WRONG_KEY).decode() not in str(refused.value)
    begin_migration(shop.seal)
    with pytest.raises(ConfigurationError, match=f"key of {name}"):
        migrate(wrong.seal)
    assert [row.data for row in rows(shop)] == data
    assert all(row.key_id is None for row in rows(shop))
    assert shop.execute("SELECT count(*) FROM eventseal_reencryption_jobs")[0][0] == 0
    assert migrate(shop.seal).done == 9


def test_formats_that_nothing_is_in_are_refused(open_shop, store_url):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=["plain-json"])
    fill(shop, WRITERS[:1])
    with pytest.raises(ConfigurationError, match="none is in one of the formats plain-json"):
        begin_migration(shop.seal)


@pytest.mark.slow
def test_what_is_in_no_format_stays_and_is_named_while_the_rest_moves(old_shop):
    items = fill(old_shop)
    stray = uuid4()
    damaged = [
        b"no json",
        b"",
        gcm(plaintext(0), WRONG_KEY),
        cbc(plaintext(0))[:-4],
        b"\x01\x03\x02" + bytes(200),
    ]
    old_shop.strategy().append([SequencedItem(stray, n, TOPIC, data) for n, data in enumerate(damaged)])
    begin_migration(old_shop.seal)
    result = migrate(old_shop.seal)
    assert (result.complete, result.done, result.failed) == (True, len(items), len(damaged))
    assert {(f.row["sequence_id"], f.row["position"]) for f in result.failures} == {
        (str(stray), str(n)) for n in range(len(damaged))
    }
    again = migrate(old_shop.seal)
    assert (again.done, again.failed) == (0, len(damaged))
    with pytest.raises(JobError, match=f"{len(damaged)} items in {ITEMS}"):
        finish_migration(old_shop.seal)
    assert names(old_shop, items[0].sequence_id)[0] == "name 0"


@pytest.mark.slow
def test_envelopes_of_another_application_are_named(open_shop, store_url):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=["plain-json"])
    bank = shop.again(application="bank")
    bank.append(2)
    fill(shop, WRITERS[4:5])
    begun = begin_migration(shop.seal)
    assert "bank" in begun.failures[0].message
    result = migrate(shop.seal)
    assert (result.done, result.failed, result.failures[0].error) == (3, 2, "WrongApplicationError")
    with pytest.raises(JobError, match=r"integer_sequenced_items holds 2 envelopes .*'bank'"):
        finish_migration(shop.seal)


def test_envelopes_of_another_key_store_are_named(open_shop, store_url, tmp_path):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=["plain-json"])
    elsewhere = open_shop(f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    strange = elsewhere.append(1)[0]
    shop.strategy().append([strange])
    fill(shop, WRITERS[4:5])
    begin_migration(shop.seal)
    result = migrate(shop.seal)
    assert (result.done, result.failed) == (3, 1)
    assert (result.failures[0].error, result.failures[0].key_id) == ("KeyNotFoundError", strange.key_id)


@pytest.mark.parametrize("listed", [True, False])
def test_an_envelope_without_its_key_id_is_no_old_item(old_shop, monkeypatch, listed):
    if not listed:  # as where rows name more keys than a query can
        monkeypatch.setattr("eventseal.rotation.jobs.sources.MOST_LISTED_KEYS", -1)
    fill(old_shop)
    item = old_shop.append(1)[0]
    old_shop.edit(item, key_id=None)
    begin_migration(old_shop.seal)
    result = migrate(old_shop.seal)
    assert (result.failed, result.failures[0].error) == (1, "IntegrityError")


def test_positions_behind_the_migration_are_not_migrated(open_shop, store_url):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=["plain-json before=10"])
    stream = uuid4()
    shop.strategy().append([SequencedItem(stream, n, TOPIC, plaintext(n)) for n in range(12)])
    begin_migration(shop.seal)
    result = migrate(shop.seal)
    assert (result.done, result.failed) == (10, 2)
    assert {failure.error for failure in result.failures} == {"EncryptionRequiredError"}
    with pytest.raises(EncryptionRequiredError):
        names(shop, stream)


def test_a_process_that_is_configured_otherwise_does_not_go_on(open_shop, store_url):
    shop = open_shop(store_url, event_modules=MODULES, old_formats=EVERY_FORMAT)
    fill(shop)
    begin_migration(shop.seal)
    with pytest.raises(ConfigurationError, match="old_formats does not name"):
        migrate(shop.again(event_modules=MODULES, old_formats=["plain-json"]).seal)
    with pytest.raises(ConfigurationError, match="no older format is configured"):
        migrate(shop.again().seal)


# --- while all goes on ---


@pytest.mark.slow
def test_a_row_that_is_written_meanwhile_is_not_overwritten(old_shop, monkeypatch):
    items = fill(old_shop, WRITERS[4:5], count=3)
    begin_migration(old_shop.seal)
    newer = b'{"name":"newer","tenant":"acme"}'
    from eventseal.rotation.jobs.older_formats import OldItemResealer

    real, edits = OldItemResealer._sealed, [items[1]]

    def and_edit(self, shard, page, selection):
        batch = real(self, shard, page, selection)
        if edits:
            old_shop.edit(edits.pop(), data=newer)
        return batch

    monkeypatch.setattr(OldItemResealer, "_sealed", and_edit)
    result = migrate(old_shop.seal)
    assert (result.done, result.left, result.complete) == (3, 0, True)
    assert names(old_shop, items[0].sequence_id) == ["name 0", "newer", "name 2"]


def test_equal_ends_are_no_reason_to_overwrite_a_row(old_shop, monkeypatch):
    from eventseal.rotation.jobs.older_formats import OldItemResealer

    items = fill(old_shop, WRITERS[4:5], count=1)
    begin_migration(old_shop.seal)
    changed = items[0].data.replace(b"name 0", b"NAME 0") + b" " * 40
    old_shop.edit(items[0], data=items[0].data + b" " * 40)
    real, edits = OldItemResealer._sealed, [items[0]]

    def and_edit(self, shard, page, selection):
        batch = real(self, shard, page, selection)
        if edits:
            old_shop.edit(edits.pop(), data=changed)
        return batch

    monkeypatch.setattr(OldItemResealer, "_sealed", and_edit)
    migrate(old_shop.seal)
    assert names(old_shop, items[0].sequence_id) == ["NAME 0"]


@pytest.mark.slow
def test_a_migration_that_stops_goes_on_and_is_no_other_verbs_job(old_shop, monkeypatch):
    fill(old_shop, count=60)
    begin_migration(old_shop.seal)
    told = []

    class StopError(Exception):
        pass

    def stop(result):
        told.append(result)
        raise StopError

    monkeypatch.setattr("eventseal.rotation.jobs.passes._TOLD_EVERY", 0.0)
    with pytest.raises(StopError):
        migrate(old_shop.seal, batch=10, progress=stop)
    job_id = told[0].job_id
    assert told[0].verb == "migrate"
    with pytest.raises(JobError, match="is not a job of reencrypt"):
        reencrypt(old_shop.seal, resume=job_id)
    reencrypt(old_shop.seal)
    result = migrate(old_shop.seal, batch=10, resume=job_id)
    assert (result.job_id, result.complete, result.done) == (job_id, True, 60)


@pytest.mark.slow
def test_what_stopped_and_others_have_done_is_no_job_any_more_at_the_end(old_shop, monkeypatch):
    fill(old_shop)
    begin_migration(old_shop.seal)

    class StopError(Exception):
        pass

    def stop(_):
        raise StopError

    monkeypatch.setattr("eventseal.rotation.jobs.passes._TOLD_EVERY", 0.0)
    with pytest.raises(StopError):
        migrate(old_shop.seal, batch=10, progress=stop)
    migrate(old_shop.seal, tables=[ITEMS])
    finish_migration(old_shop.seal, dry_run=True)
    finish_migration(old_shop.seal, tables=["snapshots"])
    assert unfinished_jobs(old_shop) == 1
    finish_migration(old_shop.seal)
    assert unfinished_jobs(old_shop) == 0


def unfinished_jobs(shop) -> int:
    with shop.seal.datastore.engine.connect() as connection:
        return sum(job.state != jobs.FINISHED for job in jobs.load_jobs(connection, "shop"))


@pytest.mark.slow
def test_an_abandoned_migration_ends_its_job_and_is_begun_again(old_shop):
    with pytest.raises(JobError, match="no migration has begun"):
        abandon_migration(old_shop.seal)
    fill(old_shop)
    begin_migration(old_shop.seal)
    migrate(old_shop.seal)
    old_shop.execute("UPDATE eventseal_reencryption_jobs SET state = 'running'")
    fill(old_shop, WRITERS[4:5], count=1)
    assert abandon_migration(old_shop.seal, dry_run=True).left == 1
    assert unfinished_jobs(old_shop) == 1
    assert abandon_migration(old_shop.seal).by_table[ITEMS] == {"left": 1}
    assert unfinished_jobs(old_shop) == 0
    assert verify(old_shop.seal).failed == 1
    begin_migration(old_shop.seal)
    assert migrate(old_shop.seal).done == 1
    finish_migration(old_shop.seal)
    assert verify(old_shop.seal).failed == 0


@pytest.mark.slow
def test_rotation_goes_on_beside_it(old_shop):
    fill(old_shop)
    old_shop.append(5)
    begin_migration(old_shop.seal)
    migrate(old_shop.seal)
    old_shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")
    rotate_keys(old_shop.seal)
    assert reencrypt(old_shop.seal).done == 26
    assert retire(old_shop.seal).failed == 0
    finish_migration(old_shop.seal)
    assert verify(old_shop.seal).done == 26


@pytest.mark.slow
def test_what_is_written_between_the_looks_keeps_the_formats_accepted(old_shop, monkeypatch):
    fill(old_shop)
    begin_migration(old_shop.seal)
    migrate(old_shop.seal)
    real, looks = verb.__globals__["old_sources"], []

    def look(store, tables):
        looks.append(1)
        if len(looks) == 2:
            fill(old_shop, WRITERS[4:5], count=1)
        return real(store, tables)

    monkeypatch.setitem(verb.__globals__, "old_sources", look)
    with pytest.raises(JobError, match=f"1 item in {ITEMS}"):
        finish_migration(old_shop.seal)
    assert len(looks) == 2
    fresh = old_shop.again(event_modules=MODULES, old_formats=EVERY_FORMAT)
    late = fill(fresh, WRITERS[4:5], count=1)[0]
    assert names(fresh, late.sequence_id) == ["name 0"]
    assert migrate(old_shop.seal).done == 2
    finish_migration(old_shop.seal)
    assert verify(old_shop.seal).failed == 0


@pytest.mark.slow
def test_a_key_for_each_stream_is_not_kept_in_memory(open_shop, sqlite_url, monkeypatch):
    shop = open_shop(sqlite_url, event_modules=MODULES, old_formats=["plain-json"])
    shop.seal.cipher.encrypt(plaintext(0), ItemContext(uuid4(), 0, TOPIC))
    record = next(iter(shop.seal.key_store.active("shop", ["application"]).values()))
    keys = 20_000
    monkeypatch.setattr(
        "eventseal.rotation.jobs.sources.count_by_key",
        lambda connection, table: {uuid4(): 1 for _ in range(keys if table.table == ITEMS else 0)},
    )
    monkeypatch.setattr(
        type(shop.seal.key_store),
        "get",
        lambda self, key_ids: {key_id: replace(record, seal=bytes(2000)) for key_id in key_ids},
    )
    begin_migration(shop.seal, dry_run=True)  # what is imported once
    tracemalloc.start()
    try:
        assert begin_migration(shop.seal, dry_run=True).left == 0
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < keys * 1000  # bytes: half of what their records take


@pytest.mark.slow
def test_a_dry_run_counts_estimates_and_writes_nothing(old_shop):
    fill(old_shop)
    begin_migration(old_shop.seal)
    before = rows(old_shop)
    looked = migrate(old_shop.seal, dry_run=True, items_per_second=1)
    assert (looked.left, looked.done) == (21, 0)
    assert looked.estimated_seconds == pytest.approx(21)
    assert looked.by_table[ITEMS]["sampled"] == 21
    assert rows(old_shop) == before
    migrate(old_shop.seal)
    assert finish_migration(old_shop.seal, dry_run=True).complete
    late = fill(old_shop, WRITERS[4:5], count=1)[0]
    assert names(old_shop, late.sequence_id) == ["name 0"]

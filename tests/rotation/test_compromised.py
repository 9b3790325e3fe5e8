"""Compromised keys: what was there when they were marked is moved, what came later is reported."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from tests.fixtures.postgres_databases import wait_until_blocked

from eventseal.cipher import ItemContext
from eventseal.errors import IntegrityError, KeyClosedError, StoreUnavailableError
from eventseal.items import SequencedItem
from eventseal.rotation import fences, reencrypt, retire, rotate_keys, verify
from eventseal.rotation.fences import miscounts, record_compromised
from eventseal.rotation.sealed_store import registered_tables

ITEMS = "integer_sequenced_items"


def settle(shop):
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")


def active(shop, scope="application"):
    return shop.seal.key_store.active("shop", [scope])[scope].key_id


class Thief:
    """Has a copy of the data key, and writes to the database behind everybody's back."""

    def __init__(self, shop):
        self.shop = shop
        self.key_id = active(shop)
        self.cipher = shop.again().seal.cipher  # within refresh_interval it seals under the old key
        self.cipher.encrypt(b"", ItemContext(uuid4(), 0, "shop:Placed"))

    def forge(self, rowid=None):
        place = ItemContext(uuid4(), 0, "shop:Placed")
        sealed = self.cipher.encrypt(b'{"amount":1000000}', place)
        columns = "sequence_id, position, topic, data, key_id"
        values = ":sequence_id, 0, 'shop:Placed', :data, :key_id"
        if rowid is not None:
            columns, values = f"rowid, {columns}", f"{rowid}, {values}"
        self.shop.execute(
            f"INSERT INTO {ITEMS} ({columns}) VALUES ({values})",
            sequence_id=self.shop.raw(place.sequence_id),
            data=sealed,
            key_id=self.shop.raw(self.key_id),
        )
        return place.sequence_id


@pytest.mark.slow
def test_what_was_there_moves_and_what_came_later_is_reported_and_stays(shop):
    shop.append(20)
    thief = Thief(shop)
    rotate_keys(shop.seal, compromised=True)
    forged = [thief.forge(), thief.forge()]
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed, result.left) == (True, 20, 2, 0)
    assert result.by_table[ITEMS]["suspected"] == 2
    assert {failure.row["sequence_id"] for failure in result.failures} == set(map(str, forged))
    assert {failure.error for failure in result.failures} == {"IntegrityError"}
    assert all("suspected forgery" in failure.message for failure in result.failures)
    # Without the key, the command would mark the new ones, of every scope.
    assert all(failure.remedy.endswith(f"--compromised --key {thief.key_id}") for failure in result.failures)
    rows = shop.execute(f"SELECT count(*) FROM {ITEMS} WHERE key_id = :k", k=shop.raw(thief.key_id))
    assert rows == [(2,)]


@pytest.mark.slow
def test_an_edited_row_is_reported_although_it_opens(shop):
    _, victim, _ = shop.append(3)
    thief = Thief(shop)
    rotate_keys(shop.seal, compromised=True)
    place = ItemContext(victim.sequence_id, victim.position, victim.topic)
    forged = thief.cipher.encrypt(b"forged", place)
    shop.edit(victim, data=forged)
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.done, result.by_table[ITEMS]["suspected"]) == (2, 1)
    assert result.failed == 2  # and one of those that were there is missing
    assert shop.strategy().get_item(victim.sequence_id, victim.position).data == forged


def test_a_replaced_envelope_that_is_put_back_is_reported(shop):
    items = shop.append(3)
    thief = Thief(shop)
    rotate_keys(shop.seal, compromised=True)
    settle(shop)
    assert reencrypt(shop.seal).failed == 0
    shop.edit(items[1], data=items[1].data, key_id=thief.key_id)
    result = reencrypt(shop.seal)
    assert result.by_table[ITEMS]["suspected"] == 1
    assert result.done == 0


def test_a_row_of_unreadable_bytes_under_a_marked_key_is_reported(shop):
    items = shop.append(2)
    rotate_keys(shop.seal, compromised=True)
    shop.edit(items[0], data=b"")
    if shop.url.startswith("sqlite"):
        shop.edit(items[1], data="text")
    settle(shop)
    result = reencrypt(shop.seal)
    assert result.done == (0 if shop.url.startswith("sqlite") else 1)
    missing, *damaged = result.failures  # they name no key any more, and are missing below the mark
    assert f"{ITEMS} holds 0 items of those" in missing.message
    assert len(damaged) == 2 - result.done
    with pytest.raises(IntegrityError, match=f"{2 - result.done} items? of {ITEMS}"):
        retire(shop.seal)


def test_on_sqlite_rows_that_were_numbered_anew_are_as_honest_as_before(sqlite_shop):
    shop = sqlite_shop
    shop.append(6)
    shop.execute(f"DELETE FROM {ITEMS} WHERE position IN (0, 3)")
    rotate_keys(shop.seal, compromised=True)
    shop.execute(f"CREATE TABLE copied AS SELECT * FROM {ITEMS} ORDER BY position DESC")
    shop.execute(f"DELETE FROM {ITEMS}")
    shop.execute(
        f"INSERT INTO {ITEMS} (rowid, sequence_id, position, topic, data, key_id) "
        "SELECT rowid + 100, sequence_id, position, topic, data, key_id FROM copied"
    )
    shop.execute("DROP TABLE copied")
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 4, 0)


def test_on_sqlite_a_table_without_rowid_has_its_forgeries_reported_too(sqlite_shop):
    shop = sqlite_shop
    ((made,),) = shop.execute(f"SELECT sql FROM sqlite_master WHERE name = '{ITEMS}'")
    shop.execute(f"DROP TABLE {ITEMS}")
    shop.execute(f"{made} WITHOUT ROWID")
    shop.append(3)
    thief = Thief(shop)
    rotate_keys(shop.seal, compromised=True)
    thief.forge()
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.done, result.failed, result.by_table[ITEMS]["suspected"]) == (3, 1, 1)


@pytest.mark.slow
def test_nothing_is_kept_of_the_marks_of_a_key_that_was_retired(shop):
    shop.append(3)
    rotate_keys(shop.seal, compromised=True)
    kept = shop.execute("SELECT count(*) FROM eventseal_marked_envelopes")
    assert kept == [(3 if shop.url.startswith("sqlite") else 0,)]
    settle(shop)
    reencrypt(shop.seal)
    assert shop.execute("SELECT count(*) FROM eventseal_marked_envelopes") == [(0,)]
    assert retire(shop.seal).done == 1
    assert shop.execute("SELECT count(*) FROM eventseal_compromised_marks") == [(0,)]


def test_honest_appends_that_come_late_are_refused_and_sealed_again(shop):
    shop.append(1)
    thief = Thief(shop)
    late = SequencedItem(uuid4(), 0, "shop:Placed", b"", thief.key_id)
    rotate_keys(shop.seal, compromised=True)
    with pytest.raises(KeyClosedError):
        shop.strategy().append([late])


def test_the_items_of_compromised_keys_come_first(shop, monkeypatch):
    shop.append(3)
    shop.append(3, scope="tenant:a")
    bad = active(shop, "tenant:a")
    shop.seal.keyring.rotate()
    rotate_keys(shop.seal, scopes=["tenant:a"], compromised=True)
    moved = []
    reseal_many = shop.seal.cipher.reseal_many

    def noting(page, collection):
        moved.extend(UUID(bytes=raw) for raw in page.key_ids)
        return reseal_many(page, collection)

    monkeypatch.setattr(shop.seal.cipher, "reseal_many", noting)
    reencrypt(shop.seal)
    assert moved[:3] == [bad] * 3
    assert len(moved) == 6


def test_the_digest_of_each_replaced_envelope_is_kept(shop):
    items = shop.append(3)
    others = shop.append(2, scope="tenant:a")
    rotate_keys(shop.seal, scopes=["application"], compromised=True)
    shop.seal.keyring.rotate("tenant:a")
    reencrypt(shop.seal)
    kept = shop.execute("SELECT sha256, sequence_id, position FROM eventseal_replaced_envelopes")
    assert {(bytes(digest), name, position) for digest, name, position in kept} == {
        (hashlib.sha256(item.data).digest(), str(item.sequence_id), str(item.position)) for item in items
    }
    assert others


@pytest.mark.slow
def test_items_that_went_below_the_mark_show_as_a_miscount(shop):
    items = shop.append(5)
    bad = active(shop)
    rotate_keys(shop.seal, compromised=True)
    shop.execute(
        f"DELETE FROM {ITEMS} WHERE sequence_id = :s AND position = 4", s=shop.raw(items[0].sequence_id)
    )
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 4, 1)
    (failure,) = result.failures
    assert failure.row == {"key_id": str(bad)}
    assert "It should hold 1" in failure.message
    assert failure.remedy.endswith(f"--compromised --key {bad}")


def test_on_sqlite_a_forgery_with_the_number_of_a_deleted_row_is_reported(sqlite_shop):
    shop = sqlite_shop
    shop.append(5)
    shop.execute(f"DELETE FROM {ITEMS} WHERE position = 2")
    thief = Thief(shop)
    rotate_keys(shop.seal, compromised=True)
    forged = thief.forge(rowid=3)
    result = reencrypt(shop.seal)
    assert (result.done, result.failed) == (4, 1)
    assert result.failures[0].row["sequence_id"] == str(forged)


@pytest.mark.slow
def test_a_mark_that_was_recorded_is_kept_by_a_re_encryption(shop):
    shop.append(2)
    thief = Thief(shop)
    rotate_keys(shop.seal, compromised=True)
    thief.forge()
    shop.execute("DELETE FROM eventseal_compromised_marks WHERE table_name = 'snapshots'")
    assert reencrypt(shop.seal).by_table[ITEMS]["suspected"] == 1


def test_a_compromised_key_without_marks_gets_them_before_anything_is_moved(shop):
    shop.append(4)
    bad = active(shop)
    shop.seal.keyring.rotate(compromised=True)  # without the verb: nobody recorded anything
    result = reencrypt(shop.seal)
    assert (result.done, result.failed) == (4, 0)
    marks = shop.execute(
        "SELECT items_found, high_water FROM eventseal_compromised_marks WHERE items_found > 0"
    )
    assert marks[0][0] == 4
    assert shop.execute("SELECT state FROM eventseal_key_fences WHERE key_id = :k", k=shop.raw(bad)) == [
        ("closed",)
    ]


def test_recorded_anew_the_marks_take_in_what_is_there_now(shop):
    shop.append(2)
    thief = Thief(shop)
    rotate_keys(shop.seal, compromised=True)
    thief.forge()
    record_compromised(shop.seal, [thief.key_id])
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 3, 0)
    assert miscounts(shop.seal, registered_tables(shop.seal.datastore, "shop")) == []
    assert verify(shop.seal).failed == 0


@pytest.mark.slow
def test_marking_waits_for_writers_but_not_for_long(open_shop, postgres_url):
    shop = open_shop(postgres_url)
    shop.append(1)
    key_id = active(shop)
    with shop.seal.datastore.engine.begin() as writer:
        writer.exec_driver_sql("SELECT 1 FROM eventseal_key_fences FOR SHARE")
        (held,) = record_compromised(shop.seal, [key_id]).values()
        assert isinstance(held, StoreUnavailableError)
    assert not record_compromised(shop.seal, [key_id])


@pytest.mark.slow
def test_a_writer_that_commits_while_the_key_is_marked_is_honest(open_shop, postgres_url):
    shop = open_shop(postgres_url)
    shop.append(1)
    key_id = active(shop)
    place = ItemContext(uuid4(), 0, "shop:Placed")
    sealed = shop.seal.cipher.encrypt(b"late but honest", place)
    shop.seal.keyring.rotate(compromised=True)
    with shop.seal.datastore.engine.connect() as writer, ThreadPoolExecutor(1) as marker:
        writer.execute(text("SELECT 1 FROM eventseal_key_fences WHERE key_id = :k FOR SHARE"), {"k": key_id})
        marking = marker.submit(record_compromised, shop.seal, [key_id])
        wait_until_blocked(shop.seal.datastore.engine)
        writer.execute(
            text(f"INSERT INTO {ITEMS} VALUES (:s, 0, 'shop:Placed', :d, :k)"),
            {"s": place.sequence_id, "d": sealed, "k": key_id},
        )
        writer.commit()
        marking.result()
    result = reencrypt(shop.seal)
    assert (result.done, result.failed) == (2, 0)


def test_many_keys_are_marked_in_batches_that_take_a_moment(shop, monkeypatch):
    monkeypatch.setattr(fences, "_BATCH_SIZE", 3)
    monkeypatch.setattr(fences, "_BATCH_ITEMS", 4)
    sizes = {"a": 1, "b": 5, "c": 2, "d": 2, "e": 0, "f": 0, "g": 0}
    keys = [shop.seal.keyring.sealing_keys({scope: 0})[scope].key_id for scope in sizes]
    for scope, size in sizes.items():
        if size:
            shop.append(size, scope=scope)
    batches = []
    record_marks = fences.record_compromised_items

    def noting(connection, table, key_ids):
        if table.table == ITEMS:
            batches.append(list(key_ids))
        record_marks(connection, table, key_ids)

    monkeypatch.setattr(fences, "record_compromised_items", noting)
    record_compromised(shop.seal, keys)
    a, b, c, d, e, f, g = keys
    assert batches == [[a], [b], [c, d, e], [f, g]]
    marks = shop.execute(
        f"SELECT key_id, items_found FROM eventseal_compromised_marks WHERE table_name = '{ITEMS}'"
    )
    assert {shop.raw(key_id): size for key_id, size in zip(keys, sizes.values(), strict=True)} == dict(marks)

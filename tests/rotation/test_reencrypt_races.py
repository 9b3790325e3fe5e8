"""What others do while a batch is between its read and its write."""

from __future__ import annotations

from uuid import UUID

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from eventseal.cipher import ItemContext, aes
from eventseal.erasure import shred
from eventseal.errors import IntegrityError, KmsUnavailableError, StoreUnavailableError
from eventseal.rotation import reencrypt, retire, rotate_keys, verify
from eventseal.storage.database import transactions
from eventseal.storage.items.fences import close_fence
from eventseal.storage.jobs import shards as job_shards

ITEMS = "integer_sequenced_items"


def settle(shop):
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")


def active(shop, scope="application"):
    return shop.seal.key_store.active("shop", [scope])[scope].key_id


def keys_of_items(shop):
    found = shop.execute(f"SELECT DISTINCT key_id FROM {ITEMS}")
    return {UUID(bytes=bytes(k)) if isinstance(k, bytes) else k for (k,) in found}


@pytest.fixture
def meanwhile(shop, monkeypatch):
    """Does something once, when a batch has been sealed and is about to be written."""

    def arrange(action, *, batch=1):
        reseal_many = shop.seal.cipher.reseal_many
        calls = []

        def hooked(page, collection):
            outcomes = reseal_many(page, collection)
            calls.append(len(page))
            if len(calls) == batch:
                action()
            return outcomes

        monkeypatch.setattr(shop.seal.cipher, "reseal_many", hooked)
        return calls

    return arrange


def test_a_row_that_changed_meanwhile_keeps_what_it_was_given(shop, meanwhile):
    items = shop.append(5)
    shop.seal.keyring.rotate()
    changed = items[2]
    place = ItemContext(changed.sequence_id, changed.position, changed.topic)
    newer = shop.seal.cipher.encrypt(b"newer", place)
    meanwhile(lambda: shop.edit(changed, data=newer, key_id=active(shop)))
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 4, 0)
    (stored,) = [i for i in shop.strategy().get_items(changed.sequence_id) if i.position == changed.position]
    assert stored.data == newer


@pytest.mark.slow
def test_a_row_that_was_sealed_again_under_the_old_key_meanwhile_is_moved_in_the_next_pass(shop, meanwhile):
    items = shop.append(5)
    late = shop.again()
    changed = items[2]
    place = ItemContext(changed.sequence_id, changed.position, changed.topic)
    newer = late.seal.cipher.encrypt(b"newer", place)
    shop.seal.keyring.rotate()
    meanwhile(lambda: shop.edit(changed, data=newer))
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done) == (True, 5)
    (stored,) = [i for i in shop.strategy().get_items(changed.sequence_id) if i.position == changed.position]
    assert stored.key_id == active(shop)
    assert shop.seal.cipher.decrypt(stored.data, place) == b"newer"


def test_a_row_that_was_deleted_meanwhile_stays_deleted(shop, meanwhile):
    items = shop.append(5)
    shop.seal.keyring.rotate()
    gone = items[1]
    meanwhile(
        lambda: shop.execute(
            f"DELETE FROM {ITEMS} WHERE sequence_id = :s AND position = 1", s=shop.raw(gone.sequence_id)
        )
    )
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 4, 0)
    assert shop.execute(f"SELECT count(*) FROM {ITEMS}") == [(4,)]


@pytest.mark.slow
def test_appends_and_reads_go_on_meanwhile(shop, meanwhile):
    items = shop.append(50)
    other = shop.again()
    shop.seal.keyring.rotate()

    def act():
        other.append(20)
        for item in other.strategy().get_items(items[0].sequence_id):
            other.seal.cipher.decrypt(item.data, ItemContext(item.sequence_id, item.position, item.topic))

    meanwhile(act, batch=3)
    settle(shop)
    result = reencrypt(shop.seal, batch=10)
    assert (result.complete, result.failed) == (True, 0)
    assert keys_of_items(shop) == {active(shop)}
    assert verify(shop.seal).done == 70


@pytest.mark.slow
def test_a_target_that_was_rotated_meanwhile_is_followed(shop, meanwhile):
    shop.append(30)
    other = shop.again()
    shop.seal.keyring.rotate()
    meanwhile(lambda: rotate_keys(other.seal), batch=2)
    settle(shop)
    result = reencrypt(shop.seal, batch=10)
    assert result.complete
    assert keys_of_items(shop) == {active(shop)}
    assert verify(shop.seal).done == 30


@pytest.mark.slow
def test_a_target_that_was_retired_meanwhile_takes_nothing(shop, meanwhile):
    shop.append(5)
    other = shop.again()
    shop.seal.keyring.rotate()
    target = active(shop)

    def retire_target():
        rotate_keys(other.seal)
        settle(shop)
        assert retire(other.seal, keys=[target]).done == 1

    meanwhile(retire_target)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 5, 0)
    assert keys_of_items(shop) == {active(shop)}
    assert verify(shop.seal).failed == 0


@pytest.mark.slow
def test_a_scope_that_was_shredded_meanwhile_takes_nothing(shop, meanwhile):
    shop.append(5, scope="subject:1")
    shop.append(3)
    other = shop.again()
    before = active(shop, "subject:1")
    rotate_keys(shop.seal)
    meanwhile(lambda: shred(other.seal, "subject:1"))
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 3, 0)
    assert result.by_table[ITEMS]["erased"] == 5
    assert keys_of_items(shop) == {before, active(shop)}


def test_nothing_is_written_behind_a_fence_that_closed_meanwhile(shop, meanwhile):
    """A retire of the target that has come as far as its fence."""
    shop.append(5)
    other = shop.again()
    shop.seal.keyring.rotate()
    target = active(shop)

    def close():
        rotate_keys(other.seal)
        with other.seal.datastore.engine.begin() as connection:
            close_fence(connection, target)

    meanwhile(close)
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done) == (True, 5)  # once each: none went to the old target first
    assert keys_of_items(shop) == {active(shop)}


@pytest.mark.slow
def test_nothing_is_written_of_keys_that_were_destroyed_while_their_fences_are_open(shop, meanwhile):
    """A shred that has not come to the fences."""
    shop.append(5, scope="subject:1")
    other = shop.again()
    before = active(shop, "subject:1")
    rotate_keys(shop.seal)
    meanwhile(lambda: other.seal.keyring.shred("subject:1"))
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 0, 0)
    assert keys_of_items(shop) == {before}


@pytest.mark.slow
def test_a_worker_that_was_too_slow_writes_nothing_of_a_range_that_another_one_took(shop, meanwhile):
    shop.append(40)
    shop.seal.keyring.rotate()
    settle(shop)
    long_ago = "2000-01-01 00:00:00.000000" if shop.url.startswith("sqlite") else "2000-01-01T00:00:00Z"
    take = (
        "UPDATE eventseal_reencryption_shards SET worker = 'elsewhere|1|2|3', version = version + 1, "
        f"seen_at = '{long_ago}' WHERE state = 'open'"
    )
    meanwhile(lambda: shop.execute(take), batch=2)
    result = reencrypt(shop.seal, batch=10)
    assert (result.complete, result.done, sum(result.by_key.values())) == (True, 40, 40)


@pytest.mark.slow
def test_two_that_move_the_same_rows_do_not_move_them_twice(shop, meanwhile):
    shop.append(30)
    other = shop.again()
    first = active(shop)
    shop.seal.keyring.rotate()
    settle(shop)
    others = []
    meanwhile(lambda: others.append(reencrypt(other.seal, keys=[first])))  # a job of its own
    result = reencrypt(shop.seal)
    assert (result.complete, result.done) == (True, 0)
    assert others[0].done == 30
    assert verify(shop.seal).done == 30


def test_what_does_not_open_to_the_same_bytes_is_not_written(shop, monkeypatch):
    shop.append(3)
    shop.seal.keyring.rotate()
    before = shop.execute(f"SELECT * FROM {ITEMS}")
    seal_many = aes.seal_many

    def miscarrying(pool, items):
        sealed = seal_many(pool, items)
        other = seal_many(pool, [(b"something else", items[0][1])])
        return [*sealed[:-1], other[0]]

    monkeypatch.setattr(aes, "seal_many", miscarrying)
    with pytest.raises(IntegrityError, match="do not open to the same bytes"):
        reencrypt(shop.seal)
    assert shop.execute(f"SELECT * FROM {ITEMS}") == before


@pytest.mark.slow
def test_an_outage_of_the_kms_is_no_failure_of_items(open_shop, store_url):
    shop = open_shop(store_url)
    shop.append(3)
    shop.seal.keyring.rotate()
    cold = shop.again()
    shop.kms.fail_always()
    with pytest.raises(KmsUnavailableError):
        reencrypt(cold.seal)
    shop.kms.recover()
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 3, 0)


@pytest.mark.slow
def test_connections_that_are_lost_are_made_again(open_shop, postgres_url, monkeypatch):
    shop = open_shop(postgres_url)
    shop.append(60)
    shop.seal.keyring.rotate()
    settle(shop)
    killer = shop.again()
    reseal_many = shop.seal.cipher.reseal_many

    def hooked(page, collection):
        killer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return reseal_many(page, collection)

    monkeypatch.setattr(shop.seal.cipher, "reseal_many", hooked)
    result = reencrypt(shop.seal, batch=10)
    assert (result.complete, result.done, result.failed) == (True, 60, 0)


@pytest.mark.slow
def test_a_commit_whose_answer_was_lost_counts_once(shop, monkeypatch):
    broken, *_ = shop.append(41)
    shop.edit(broken, data=broken.data[:-1] + bytes([broken.data[-1] ^ 1]))
    shop.seal.keyring.rotate()
    settle(shop)
    committed, lost = transactions._committed, []

    def losing(connection, work):
        result = committed(connection, work)
        if isinstance(result, job_shards.Shard) and result.cursor and len(lost) < 2:
            lost.append(result)
            raise OperationalError("COMMIT", {}, ConnectionError("gone"), connection_invalidated=True)
        return result

    monkeypatch.setattr(transactions, "_committed", losing)
    result = reencrypt(shop.seal, batch=10)
    assert len(lost) == 2
    assert (result.complete, result.done, sum(result.by_key.values())) == (True, 40, 40)
    assert (result.failed, len(result.failures)) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("settled", [True, False])
def test_a_job_ends_although_answers_to_its_commits_are_lost(shop, monkeypatch, settled):
    shop.append(3)
    shop.seal.keyring.rotate()
    if settled:
        settle(shop)
    committed, answers = transactions._committed, []

    def losing(connection, work):
        result = committed(connection, work)
        answers.append(result is not True or answers[-1] is False)  # never twice in a row
        assert answers.count(False) < 10, "it does not end"
        if not answers[-1]:
            raise OperationalError("COMMIT", {}, ConnectionError("gone"), connection_invalidated=True)
        return result

    monkeypatch.setattr(transactions, "_committed", losing)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.left) == (settled, 3, 0)
    assert answers.count(False) >= 2


@pytest.mark.slow
def test_a_full_disk_stops_it_and_it_resumes(open_shop, sqlite_url):
    shop = open_shop(sqlite_url)
    for _ in range(20):
        shop.append(50)
    rotate_keys(shop.seal, compromised=True)  # the digests of what is replaced take room
    settle(shop)
    engine = shop.seal.datastore.engine
    ((pages,),) = shop.execute("PRAGMA page_count")

    def limit(connection, _record):
        connection.execute(f"PRAGMA max_page_count = {pages + 12}")

    engine.dispose()
    event.listen(engine, "connect", limit)
    with pytest.raises(StoreUnavailableError, match="full"):
        reencrypt(shop.seal, batch=50)
    assert verify(shop.seal).done == 1_000
    event.remove(engine, "connect", limit)
    engine.dispose()
    result = reencrypt(shop.seal, batch=50)
    assert (result.complete, result.done, result.failed) == (True, 1_000, 0)
    assert verify(shop.seal).done == 1_000

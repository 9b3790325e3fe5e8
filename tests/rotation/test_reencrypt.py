"""Re-encryption on the plain path: what is moved, what is left alone, what is reported."""

from __future__ import annotations

import json
import math
from uuid import UUID, uuid4

import pytest
from sqlalchemy import LargeBinary, UniqueConstraint, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventseal.cipher import AESCipher, EventZstd, ItemContext, NoCompression, Zlib, Zstd, inspect
from eventseal.errors import ConfigurationError
from eventseal.items import SequencedItem
from eventseal.rotation import begin_migration, list_jobs, reencrypt, rotate_keys, verify
from eventseal.rotation.jobs import resealers, sources
from eventseal.storage import (
    BinaryUUID,
    ExactInteger,
    ExactText,
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    TimestampSequencedItemRecord,
)
from eventseal.suites.envelope import CompressionId

ITEMS = "integer_sequenced_items"


class Base(DeclarativeBase):
    pass


class Ledger(Base):
    """Columns of other names, ids of text, and a number of its own for each row."""

    __tablename__ = "ledger"
    __collection__ = "ledger"
    row: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(ExactText())
    entry: Mapped[int] = mapped_column(ExactInteger())
    kind: Mapped[str] = mapped_column(ExactText())
    sealed: Mapped[bytes] = mapped_column(LargeBinary())
    key_id: Mapped[UUID | None] = mapped_column(BinaryUUID(), index=True)
    __table_args__ = (UniqueConstraint("account", "entry"),)


def settle(shop):
    """Let every process have noticed all changes of keys."""
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")


def active(shop, scope="application"):
    return shop.seal.key_store.active(shop.seal.cipher.application, [scope])[scope].key_id


def keys_of_items(shop, table=ITEMS):
    return {
        None if key_id is None else UUID(bytes=bytes(key_id)) if isinstance(key_id, bytes) else key_id
        for (key_id,) in shop.execute(f"SELECT DISTINCT key_id FROM {table}")
    }


def assert_all_opens(shop, done):
    result = verify(shop.seal)
    assert (result.done, result.failed) == (done, 0)


@pytest.mark.slow
def test_items_of_every_table_and_scope_move_to_the_active_keys(shop):
    shop.append(2_500)
    shop.append(3, record=SnapshotRecord)
    shop.append(4, record=TimestampSequencedItemRecord, scope="tenant:a")
    old = [active(shop), active(shop, "tenant:a")]
    shop.seal.keyring.rotate()
    shop.seal.keyring.rotate("tenant:a")
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.verb, result.complete, result.done) == ("reencrypt", True, 2_507)
    assert (result.left, result.failed, result.failures, result.settles_at) == (0, 0, (), None)
    assert {table: counts["done"] for table, counts in result.by_table.items()} == {
        ITEMS: 2_500,
        "snapshots": 3,
        "timestamp_sequenced_items": 4,
    }
    assert result.by_key == {old[0]: 2_503, old[1]: 4}
    assert keys_of_items(shop) == keys_of_items(shop, "snapshots") == {active(shop)}
    assert keys_of_items(shop, "timestamp_sequenced_items") == {active(shop, "tenant:a")}
    assert_all_opens(shop, 2_507)
    json.dumps(result.to_json())


def test_a_second_run_finds_nothing_and_writes_nothing(shop):
    shop.append(10)
    shop.seal.keyring.rotate()
    settle(shop)
    reencrypt(shop.seal)
    before = shop.execute(f"SELECT * FROM {ITEMS} ORDER BY sequence_id, position")
    result = reencrypt(shop.seal)
    assert (result.complete, result.done) == (True, 0)
    assert shop.execute(f"SELECT * FROM {ITEMS} ORDER BY sequence_id, position") == before


def test_it_is_complete_when_every_process_has_noticed_the_rotation(shop):
    shop.append(5)
    shop.seal.keyring.rotate()
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.left) == (False, 5, 0)
    record = shop.seal.key_store.get(result.by_key)[next(iter(result.by_key))]
    assert (result.settles_at - record.deactivated_at).total_seconds() == 60
    assert result.to_json()["settles_at"] == result.settles_at.isoformat()
    (job,) = list_jobs(shop.seal)
    assert (job.state, job.finished_at) == ("settling", None)
    settle(shop)
    again = reencrypt(shop.seal)
    assert (again.complete, again.job_id, again.done, again.settles_at) == (True, job.job_id, 5, None)
    (job,) = list_jobs(shop.seal)
    assert job.state == "finished"
    assert job.finished_at is not None


def test_what_came_late_under_the_old_key_is_moved_by_the_next_run(shop):
    other = shop.again()
    other.append(1)
    shop.seal.keyring.rotate()
    assert reencrypt(shop.seal).done == 1
    late = other.append(2)  # within refresh_interval this process seals on under the old key
    assert late[0].key_id != active(shop)
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done) == (True, 2)
    assert keys_of_items(shop) == {active(shop)}


def test_only_the_named_keys_and_tables_are_moved(shop):
    shop.append(3)
    shop.append(2, record=SnapshotRecord)
    first = active(shop)
    shop.seal.keyring.rotate()
    second = active(shop)
    shop.append(4)
    shop.seal.keyring.rotate()
    settle(shop)
    result = reencrypt(shop.seal, keys=[first], tables=[ITEMS])
    assert (result.complete, result.done, result.by_key) == (True, 3, {first: 3})
    assert keys_of_items(shop) == {second, active(shop)}
    assert keys_of_items(shop, "snapshots") == {first}


@pytest.mark.slow
def test_plain_items_are_counted_and_left_alone_where_they_may_be(open_shop, store_url):
    shop = open_shop(store_url, always_encrypt=False)
    shop.append(1)
    shop.append_plain(3)
    shop.append_plain(1, data=b"[5]")
    shop.seal.keyring.rotate()
    result = reencrypt(shop.seal)
    assert (result.done, result.failed, result.by_table[ITEMS]["plain"]) == (1, 1, 3)
    assert [failure.error for failure in result.failures] == ["SerializationError"]
    assert shop.execute(f"SELECT count(*) FROM {ITEMS} WHERE key_id IS NULL") == [(4,)]
    assert reencrypt(shop.again(always_encrypt=True).seal).failed == 4


@pytest.mark.slow
@pytest.mark.parametrize("always_encrypt", [True, False])
def test_damaged_rows_fail_as_they_fail_verify_and_the_others_go_on(open_shop, store_url, always_encrypt):
    shop = open_shop(store_url, always_encrypt=always_encrypt)
    emptied, changed, text, unnamed, misnamed, *_ = shop.append(7)
    other = shop.append(1, scope="tenant:a")[0]
    shop.edit(emptied, data=b"")
    shop.edit(changed, data=b"\xff" + changed.data[1:])
    shop.edit(text, data=text.data.decode("latin-1") if shop.url.startswith("sqlite") else b"text")
    shop.edit(unnamed, data=b"\xff" + unnamed.data[1:], key_id=None)
    shop.edit(misnamed, key_id=other.key_id)  # a pass fails it, and it is not counted once more
    would = reencrypt(shop.seal, dry_run=True)
    assert (would.failed, would.by_table[ITEMS]["plain"]) == (4, 0)
    shop.seal.keyring.rotate()
    settle(shop)
    result = reencrypt(shop.seal, keys=[emptied.key_id])
    assert (result.complete, result.done, result.left, result.failed) == (True, 2, 0, 5)
    assert {name: result.by_table[ITEMS][name] for name in ("failed", "plain")} == {"failed": 5, "plain": 0}
    assert said_of(result) == said_of(verify(shop.seal))


def said_of(result):
    return {(each.row["position"], each.error, each.message, each.remedy) for each in result.failures}


def test_what_readers_accept_while_a_migration_lasts_is_no_failure(open_shop, store_url):
    shop = open_shop(store_url, old_formats=("plain-json",))
    begin_migration(shop.seal)
    shop.append_plain(3)
    shop.append_plain(1, data=b"\x01\x03\x00" + bytes(80))  # like an envelope, whose key there never was
    shop.append_plain(1, data=b"")
    result = reencrypt(shop.seal)
    assert (result.failed, result.by_table[ITEMS]["plain"]) == (2, 3)
    assert said_of(result) == said_of(verify(shop.seal))
    shop.execute(f"DELETE FROM {ITEMS} WHERE data != :json", json=b'{"amount":5}')
    assert reencrypt(shop.seal).failed == 0
    assert reencrypt(shop.again(old_formats=()).seal).failed == 3  # its readers take none of them


@pytest.mark.slow
def test_another_applications_items_in_a_shared_table_are_left_alone(open_shop, store_url):
    ours = open_shop(store_url)
    theirs = open_shop(store_url, ours.kms, application="bank")
    ours.seal.datastore.setup_tables()  # of every application
    ours.append(2)
    theirs.append(3)
    for shop in (ours, theirs):
        shop.seal.keyring.rotate()
    settle(ours)
    result = reencrypt(ours.seal)
    assert (result.complete, result.done, result.failed) == (True, 2, 0)
    assert result.by_table[ITEMS]["foreign"] == 3
    assert keys_of_items(ours) == {active(ours), *theirs_old(theirs)}


def theirs_old(shop):
    return {record.key_id for record in shop.seal.key_store.page("bank", state="deactivated")}


@pytest.mark.slow
def test_a_custom_table_with_other_names_and_text_ids(open_shop, store_url):
    shop = open_shop(store_url)
    shop.seal.datastore.tables = (Ledger,)
    shop.seal.datastore.setup_tables(application="shop")
    contexts = [ItemContext(f"account-{n:03}", n % 7, "shop:Booked", "ledger") for n in range(60)]
    contexts.append(ItemContext(str(UUID(int=5)), 1, "shop:Booked", "ledger"))
    sealed = shop.seal.cipher.encrypt_many([(b"x" * 40, context) for context in contexts])
    with shop.seal.datastore.session() as session:
        for context, data in zip(contexts, sealed, strict=True):
            session.add(
                Ledger(
                    account=context.sequence_id,
                    entry=context.position,
                    kind=context.topic,
                    sealed=data,
                    key_id=active(shop),
                )
            )
        session.commit()
    shop.seal.keyring.rotate()
    settle(shop)
    result = reencrypt(shop.seal, tables=["ledger"], batch=7)
    assert (result.complete, result.done, result.failed) == (True, 61, 0)
    with shop.seal.datastore.session() as session:
        for row in session.scalars(select(Ledger)):
            place = ItemContext(row.account, row.entry, row.kind, "ledger")
            assert shop.seal.cipher.decrypt(row.sealed, place) == b"x" * 40
            assert row.key_id == active(shop)


def test_a_scope_without_an_active_key_is_skipped_and_reported_and_gets_none(shop, monkeypatch):
    shop.append(3, scope="tenant:gone")
    shop.append(2)
    shop.seal.keyring.rotate("tenant:gone")
    shop.seal.keyring.rotate()
    sealing_keys = shop.seal.keyring.sealing_keys

    def without(items, *, make=True):
        assert not make
        return sealing_keys({s: n for s, n in items.items() if s != "tenant:gone"}, make=make)

    monkeypatch.setattr(shop.seal.keyring, "sealing_keys", without)
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.done, result.failed, result.left) == (2, 3, 0)
    assert result.by_table[ITEMS]["skipped"] == 3
    (failure,) = result.failures
    assert "no active key" in failure.message
    assert "`eventseal rotate --scope SCOPE`" in failure.remedy


@pytest.mark.slow
def test_a_key_that_is_due_by_policy_is_not_replaced_by_a_re_encryption(open_shop, store_url):
    shop = open_shop(store_url)
    shop.append(30)
    shop.seal.keyring.rotate()
    settle(shop)
    other = shop.again(rotation_max_items=10)
    result = reencrypt(other.seal)
    assert (result.complete, result.done) == (True, 30)
    assert len(shop.seal.key_store.page("shop")) == 3  # the store key, the old one, the new one


@pytest.mark.slow
def test_one_corrupt_row_among_many_is_named_and_the_others_move(shop):
    items = [item for _ in range(10) for item in shop.append(1_000)]
    broken = items[4_321]
    shop.edit(broken, data=broken.data[:-1] + bytes([broken.data[-1] ^ 1]))
    shop.seal.keyring.rotate()
    settle(shop)
    result = reencrypt(shop.seal)
    assert (result.complete, result.done, result.failed, result.left) == (True, 9_999, 1, 0)
    (failure,) = result.failures
    assert failure.table == ITEMS
    assert failure.row == {"sequence_id": str(broken.sequence_id), "position": str(broken.position)}
    assert (failure.key_id, failure.error) == (broken.key_id, "IntegrityError")
    assert keys_of_items(shop) == {broken.key_id, active(shop)}
    again = reencrypt(shop.seal)
    assert (again.complete, again.done, again.failed) == (True, 0, 1)


def test_rows_that_name_another_key_or_none_that_is_known_are_reported(shop):
    wrong, unknown, _ = shop.append(3)
    (other,) = shop.append(1, scope="tenant:a")
    shop.edit(wrong, key_id=other.key_id)
    shop.edit(unknown, key_id=uuid4())
    shop.seal.keyring.rotate()
    shop.seal.keyring.rotate("tenant:a")
    result = reencrypt(shop.seal)
    assert (result.done, result.failed) == (2, 2)
    assert {failure.error for failure in result.failures} == {"IntegrityError"}


@pytest.mark.parametrize("state", ["destroyed", "active"])
def test_items_of_a_key_whose_row_was_edited_fail_whatever_the_row_says(shop, state):
    items = shop.append(2)
    rotate_keys(shop.seal, compromised=True)
    edit = (
        "UPDATE eventseal_encryption_keys SET state = :state, destroyed_by = 'shredded' "
        "WHERE state = 'compromised'"
    )
    shop.execute(edit, state=state)
    for options in ({"dry_run": True}, {}):
        result = reencrypt(shop.again().seal, **options)
        assert (result.done, result.by_table["integer_sequenced_items"]["erased"]) == (0, 0)
    assert result.failed >= 2
    assert {failure.key_id for failure in result.failures} == {items[0].key_id}


def test_rows_whose_key_id_is_none_at_all_are_reported(sqlite_shop):
    items = sqlite_shop.append(3)
    sqlite_shop.edit(items[1], key_id="nonsense")
    sqlite_shop.seal.keyring.rotate()
    settle(sqlite_shop)
    result = reencrypt(sqlite_shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 2, 1)


@pytest.mark.slow
def test_more_keys_than_a_query_can_name_are_told_apart_row_by_row(shop, monkeypatch):
    monkeypatch.setattr(sources, "MOST_LISTED_KEYS", 2)
    for number in range(5):
        shop.append(3, scope=f"subject:{number}")
        shop.seal.keyring.rotate(f"subject:{number}")
    shop.append(4)
    shop.append_plain(2)
    settle(shop)
    mixed = shop.again(always_encrypt=False)
    result = reencrypt(mixed.seal, batch=3)
    assert (result.complete, result.done, result.failed) == (True, 15, 0)
    assert_all_opens(mixed, 19)


@pytest.mark.slow
def test_fitting_items_in_another_compression_are_found_among_many_keys_too(shop, monkeypatch):
    monkeypatch.setattr(sources, "MOST_LISTED_KEYS", 0)
    item = sealed_by(shop, Zlib())
    shop.append(5)
    assert reencrypt(shop.seal).done == 1
    assert inspect(stored(shop, item)).compression is CompressionId.ZSTD_EVENTS


def test_many_items_are_moved_without_the_index_of_keys(shop, monkeypatch):
    monkeypatch.setattr(sources, "FEW_ITEMS", 5)
    shop.append(20)
    first = active(shop)
    shop.seal.keyring.rotate()
    assert reencrypt(shop.seal, keys=[first], batch=3).done == 20


def test_a_dry_run_counts_estimates_and_changes_nothing(shop):
    shop.append(50)
    shop.append(2, record=SnapshotRecord)
    shop.seal.keyring.rotate()
    tables = [
        ITEMS,
        "snapshots",
        "eventseal_encryption_keys",
        "eventseal_key_fences",
        "eventseal_reencryption_jobs",
        "eventseal_key_changes",
    ]
    before = [shop.execute(f"SELECT * FROM {table}") for table in tables]
    result = reencrypt(shop.seal, dry_run=True)
    assert [shop.execute(f"SELECT * FROM {table}") for table in tables] == before
    assert (result.done, result.left, result.job_id) == (0, 52, None)
    assert sum(result.by_key.values()) == 52
    assert result.estimated_seconds > 0
    throttled = reencrypt(shop.seal, dry_run=True, items_per_second=0.5)
    assert throttled.estimated_seconds == 104


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"batch": 100_001}, "from 1 to 100,000"),
        ({"shards": 0}, "shards is 0"),
        ({"items_per_second": 0}, "items_per_second is 0"),
        ({"items_per_second": math.nan}, "items_per_second is nan"),
        ({"items_per_second": math.inf}, "items_per_second is inf"),
        ({"tables": ["integer_sequenced_item"]}, "no registered table"),
        ({"keys": [UUID(int=7)]}, "has no key 00000000"),
        ({"resume": UUID(int=7), "dry_run": True}, "its own keys and tables"),
        ({"resume": UUID(int=7), "tables": [ITEMS]}, "its own keys and tables"),
    ],
    ids=[
        "batch",
        "large-batch",
        "shards",
        "rate",
        "no-rate",
        "endless-rate",
        "table",
        "key",
        "resume-dry",
        "resume-tables",
    ],
)
def test_wrong_arguments_are_refused(sqlite_shop, arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        reencrypt(sqlite_shop.seal, **arguments)
    assert list_jobs(sqlite_shop.seal) == []


def test_the_active_key_is_no_source(sqlite_shop):
    sqlite_shop.append(1)
    with pytest.raises(ConfigurationError, match="is the active key of scope 'application'"):
        reencrypt(sqlite_shop.seal, keys=[active(sqlite_shop)])


def test_a_table_that_nobody_registered_stops_it(sqlite_shop):
    sqlite_shop.execute("CREATE TABLE stray (id INTEGER, key_id BLOB(16), body BLOB)")
    with pytest.raises(ConfigurationError, match="stray"):
        reencrypt(sqlite_shop.seal)


# --- compression ---


def sealed_by(shop, compression, plaintext=b"a" * 200):
    cipher = AESCipher(shop.seal.keyring, compression=compression)
    context = ItemContext(uuid4(), 0, "shop:Placed")
    key_id = shop.seal.keyring.sealing_keys({"application": 0})["application"].key_id
    item = SequencedItem(context.sequence_id, 0, context.topic, cipher.encrypt(plaintext, context), key_id)
    SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, shop.seal.datastore.session).append([item])
    return item


def stored(shop, item):
    (found,) = shop.strategy().get_items(item.sequence_id)
    return found.data


@pytest.mark.parametrize("other", [Zlib(), Zstd()], ids=["zlib", "zstd-without-the-dictionary"])
def test_what_is_compressed_otherwise_is_compressed_as_the_cipher_does(shop, other):
    item = sealed_by(shop, other)
    result = reencrypt(shop.seal)
    assert (result.done, result.failed) == (1, 0)
    assert inspect(stored(shop, item)).compression is CompressionId.ZSTD_EVENTS
    assert_all_opens(shop, 1)


def test_another_compression_is_another_job_also_while_one_settles(shop):
    item = sealed_by(shop, Zlib())
    shop.seal.keyring.rotate()
    settling = reencrypt(shop.seal)
    assert (settling.done, settling.complete) == (1, False)
    result = reencrypt(shop.again(compression="zlib").seal)
    assert (result.done, result.left) == (1, 0)
    assert inspect(stored(shop, item)).compression is CompressionId.ZLIB
    assert [job.state for job in list_jobs(shop.seal)] == ["finished", "settling"]


def test_what_is_not_compressed_stays_so_for_it_may_be_on_purpose(shop):
    item = sealed_by(shop, NoCompression())
    assert reencrypt(shop.seal).done == 0
    shop.seal.keyring.rotate()
    assert reencrypt(shop.seal).done == 1
    assert inspect(stored(shop, item)).compression is CompressionId.NONE


def test_without_compression_the_old_one_goes(open_shop, store_url):
    shop = open_shop(store_url, compression="none")
    item = sealed_by(shop, Zstd())
    assert reencrypt(shop.seal).done == 1
    assert inspect(stored(shop, item)).compression is CompressionId.NONE
    assert_all_opens(shop, 1)


def test_compressed_bytes_are_sealed_as_they_are(shop, monkeypatch):
    sealed_by(shop, EventZstd())
    shop.seal.keyring.rotate()

    def refuse(*_, **__):
        raise AssertionError("compressed anew")

    monkeypatch.setattr("eventseal.cipher.aes.decompress", refuse)
    monkeypatch.setattr(EventZstd, "compress", refuse)
    assert reencrypt(shop.seal).done == 1


def test_large_items_do_not_gather_in_a_page(shop, monkeypatch):
    monkeypatch.setattr("eventseal.storage.items.swaps_on_sqlite.MOST_PAGE_BYTES", 1_000)
    monkeypatch.setattr("eventseal.storage.items.swaps_on_postgresql.MOST_PAGE_BYTES", 1_000)
    sizes = []
    move = resealers.TableResealer.reseal

    def noting(self, shard, page, worker):
        sizes.append(sum(map(len, page.envelopes)))
        return move(self, shard, page, worker)

    monkeypatch.setattr(resealers.TableResealer, "reseal", noting)
    shop.append(100)
    shop.seal.keyring.rotate()
    assert reencrypt(shop.seal).done == 100
    assert max(sizes) < 1_200

"""Rows that are set aside: excused exactly as they are, by the ledger alone, and for nobody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from tests.fixtures.ledger_shops import APPLICATION, LedgerShop

from eventseal.cipher import ItemContext
from eventseal.configuration import EventSeal, Settings
from eventseal.erasure import VerifyReceipt, set_aside, shred, withdraw
from eventseal.erasure.setting_aside import rows_in_force
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    ItemNotFoundError,
    JobError,
    KeyDestroyedError,
    KmsUnavailableError,
)
from eventseal.items import SequencedItem
from eventseal.keys.states import KeyState
from eventseal.rotation import damaged_row, damaged_rows, reencrypt, retire, verify
from eventseal.rotation.status.application_status import status
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy
from eventseal.testing import FakeKms

ITEMS = "integer_sequenced_items"
REASON = "disk failure, no backup"


@dataclass
class Damaged:
    """A shop with five items, some of which an edit has damaged."""

    shop: LedgerShop
    items: list[SequencedItem]

    @property
    def seal(self) -> EventSeal:
        return self.shop.seal

    def edit(self, number: int, **columns: Any) -> None:
        where = self.items[number]
        sets = ", ".join(f"{name} = :{name}" for name in columns)
        with self.seal.datastore.engine.begin() as connection:
            changed = connection.execute(
                text(f"UPDATE {ITEMS} SET {sets} WHERE sequence_id = :id"),
                {**columns, "id": self.raw(where.sequence_id)},
            )
        assert changed.rowcount == 1

    def delete(self, number: int) -> None:
        with self.seal.datastore.engine.begin() as connection:
            delete = text(f"DELETE FROM {ITEMS} WHERE sequence_id = :id")
            connection.execute(delete, {"id": self.raw(self.items[number].sequence_id)})

    def raw(self, key_id: UUID) -> Any:
        return key_id.bytes if self.shop.url.startswith("sqlite") else key_id

    def break_tag(self, number: int) -> bytes:
        data = self.items[number].data
        broken = data[:-1] + bytes([data[-1] ^ 1])
        self.edit(number, data=broken)
        return broken

    def set_all_aside(self) -> Any:
        return set_aside(self.seal, damaged_rows(self.seal, ITEMS), reason=REASON)

    def failed(self, **named: Any) -> int:
        return verify(self.seal, **named).failed

    def counts(self, **named: Any) -> dict[str, int]:
        return dict(verify(self.seal, **named).by_table[ITEMS])


@pytest.fixture
def damaged(store_url, tmp_path):
    shop = LedgerShop(store_url, FakeKms(), tmp_path)
    yield Damaged(shop, [shop.append("application") for _ in range(5)])
    shop.stop()


@pytest.fixture
def on_sqlite(sqlite_url, tmp_path):
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    yield Damaged(shop, [shop.append("application") for _ in range(5)])
    shop.stop()


def age_keys(damaged: Damaged) -> UUID:
    """Rotate, and let every process have noticed; gives the old key."""
    (old,) = {item.key_id for item in damaged.items}
    damaged.seal.keyring.rotate("application")
    with damaged.seal.datastore.key_engine.begin() as connection:
        connection.execute(text("UPDATE eventseal_key_changes SET refresh_interval = 0"))
    return old


# --- what is set aside, and what is excused ---


@pytest.mark.parametrize(
    "columns",
    [
        {"data": b"x" * 200},
        {"data": b""},
        {"topic": "another:Topic"},
        {"data": b"x" * 200, "key_id": None},
        {"topic": "another:Topic", "key_id": UUID(int=5)},
    ],
    ids="-".join,
)
def test_each_kind_of_damage_is_set_aside_and_verify_passes(damaged, columns) -> None:
    damaged.edit(1, **{n: damaged.raw(v) if isinstance(v, UUID) else v for n, v in columns.items()})
    assert damaged.failed() == 1
    result = damaged.set_all_aside()
    assert (result.done, result.failed) == (1, 0)
    (said,) = result.set_aside
    assert (said.table, said.reason) == (ITEMS, REASON)
    assert said.row == {"sequence_id": str(damaged.items[1].sequence_id), "position": "0"}
    found = damaged.counts()
    assert (found["done"], found["failed"], found["set_aside"]) == (4, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["'text'", "NULL", "12", "1.5", "x'0102'", "CAST(x'ff41' AS TEXT)"])
@pytest.mark.parametrize("column", ["data", "topic", "key_id"])
def test_whatever_an_edit_put_there_is_told_from_every_other_value(on_sqlite, column, value) -> None:
    def put(sql: str) -> None:
        with on_sqlite.seal.datastore.engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
            connection.execute(
                text(f"UPDATE {ITEMS} SET {column} = {sql} WHERE sequence_id = :id"),
                {"id": on_sqlite.items[0].sequence_id.bytes},
            )

    if column in {"data", "topic"} and value == "NULL":
        pytest.skip("the column takes no NULL")
    if column == "key_id":  # else the row would be sound but for it
        on_sqlite.break_tag(0)
    put(value)
    assert on_sqlite.failed() == 1
    on_sqlite.set_all_aside()
    assert on_sqlite.failed() == 0
    for other in ("'texts'", "13", "2.5", "x'0103'", "CAST(x'fe41' AS TEXT)"):
        put(other)
        assert on_sqlite.failed() == 2, other  # the row, and what the ledger says of it
    put(value)
    assert on_sqlite.failed() == 0


def test_the_digest_is_that_of_the_format_and_the_same_on_each_database(damaged) -> None:
    broken = damaged.break_tag(0)
    (said,) = damaged.set_all_aside().set_aside
    item = damaged.items[0]
    framed = b""
    for part in (b"text", item.topic.encode(), b"bytes", broken, b"bytes", item.key_id.bytes):
        framed += len(part).to_bytes(4, "big") + part
    assert said.sha256 == sha256(b"\0\0\0\x0deventseal row" + framed).hexdigest()


def test_one_row_is_set_aside_by_its_place_and_twice_is_once(damaged) -> None:
    damaged.break_tag(0)
    damaged.break_tag(1)
    place = str(damaged.items[0].sequence_id), "0"
    for done, already in ((1, 0), (0, 1)):
        found = damaged_row(damaged.seal, ITEMS, *place)
        assert (set_aside(damaged.seal, found, reason=REASON).done, found.already) == (done, already)
    assert damaged.failed() == 1


def test_a_reader_gets_the_error_as_before(damaged) -> None:
    broken = damaged.break_tag(0)
    damaged.set_all_aside()
    item = damaged.items[0]
    with pytest.raises(IntegrityError):
        damaged.seal.cipher.decrypt(broken, ItemContext(item.sequence_id, 0, item.topic))


def test_a_thousand_rows_are_one_entry_and_more_are_several(damaged, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.erasure.setting_aside.ROWS_IN_AN_ENTRY", 2)
    for number in range(5):
        damaged.break_tag(number)
    assert damaged.set_all_aside().done == 5
    assert damaged.shop.kinds() == ["set_aside"] * 3
    assert damaged.failed() == 0


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["deleted", "changed", "topic", "key id", "swapped"])
@pytest.mark.parametrize("sample", [1.0, 0.000001])
def test_a_row_that_was_set_aside_and_is_no_longer_what_it_was_is_a_failure(damaged, attack, sample) -> None:
    first, second = damaged.break_tag(0), damaged.break_tag(1)
    damaged.set_all_aside()
    assert damaged.failed() == 0
    if attack == "deleted":
        damaged.delete(0)
        (failure,) = verify(damaged.seal, sample=sample).failures
        assert failure.row["sequence_id"] == str(damaged.items[0].sequence_id)
        assert "is missing" in failure.message
        assert verify(damaged.seal, tables=[ITEMS]).failed == 1
        assert verify(damaged.seal, tables=["snapshots"]).failed == 0
        return
    if attack == "changed":
        damaged.edit(0, data=first[:-1] + b"\0" if first[-1] else first[:-1] + b"\1")
    elif attack == "topic":
        damaged.edit(0, topic="shop:Other")
    elif attack == "key id":
        damaged.edit(0, key_id=None)
    else:
        damaged.edit(0, data=second)
        damaged.edit(1, data=first)
    # Each row, and what the ledger says of it.
    assert damaged.failed() == (4 if attack == "swapped" else 2)
    assert damaged.failed(sample=sample) >= (2 if attack == "swapped" else 1)


def test_a_row_that_opens_again_is_a_failure_until_it_is_withdrawn(damaged) -> None:
    broken = damaged.break_tag(0)
    said = damaged.set_all_aside().set_aside
    damaged.edit(0, data=damaged.items[0].data)
    result = verify(damaged.seal)
    assert dict(result.by_table[ITEMS])["done"] == 5
    (failure,) = result.failures
    assert "the row has changed since. Entry 2 of the ledger set it aside" in failure.message
    place = f"--table {ITEMS} --sequence {damaged.items[0].sequence_id} --position 0"
    assert f"eventseal set-aside --undo {place}" in failure.remedy
    withdraw(damaged.seal, said)
    assert damaged.failed() == 0
    damaged.edit(0, data=broken)  # the same damage, put back later
    assert damaged.failed() == 1


def test_workers_and_a_resumed_run_excuse_the_same(damaged) -> None:
    damaged.break_tag(0)
    damaged.set_all_aside()
    with ThreadPoolExecutor(2) as pool:
        result = verify(damaged.seal, executor=pool, shards=2)
    assert (result.done, result.failed, result.by_table[ITEMS]["set_aside"]) == (4, 0, 1)
    damaged.delete(0)
    kept: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        verify(damaged.seal, keep=kept.append, progress=partial(_interrupt))
    assert verify(damaged.seal, resume=kept[-1]).failed == 1


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_the_receipt_says_how_many_are_set_aside(damaged) -> None:
    damaged.break_tag(0)
    damaged.set_all_aside()
    receipt = VerifyReceipt.of(damaged.seal, verify(damaged.seal))
    assert receipt.facts["tables"][ITEMS]["set_aside"] == 1
    assert receipt.facts["passed"] is True
    assert "set_aside 1" in receipt.to_html()


# --- what is refused ---


def test_a_row_that_opens_is_refused(damaged) -> None:
    with pytest.raises(JobError, match="opens"):
        damaged_row(damaged.seal, ITEMS, str(damaged.items[0].sequence_id), "0")
    assert damaged_rows(damaged.seal, ITEMS).rows == ()


def test_an_outage_of_the_kms_says_nothing_about_rows(damaged) -> None:
    damaged.break_tag(0)
    damaged.shop.restart()
    damaged.shop.kms.fail_always()
    with pytest.raises(KmsUnavailableError):
        damaged_rows(damaged.seal, ITEMS)
    damaged.shop.kms.recover()


def test_a_row_whose_key_is_missing_is_refused(damaged) -> None:
    key_id = damaged.raw(damaged.items[0].key_id)
    with damaged.seal.datastore.key_engine.begin() as connection:
        for table in ("eventseal_key_wrappings", "eventseal_encryption_keys"):
            connection.execute(text(f"DELETE FROM {table} WHERE key_id = :key"), {"key": key_id})
    damaged.shop.restart()
    with pytest.raises(JobError, match="its key cannot be used"):
        damaged_row(damaged.seal, ITEMS, str(damaged.items[0].sequence_id), "0")
    found = damaged_rows(damaged.seal, ITEMS)
    assert (len(found.rows), len(found.refused)) == (0, 5)
    assert set_aside(damaged.seal, found, reason=REASON).failed == 5


def test_a_row_whose_keys_row_was_edited_is_refused(damaged) -> None:
    damaged.break_tag(0)
    with damaged.seal.datastore.key_engine.begin() as connection:
        connection.execute(
            text("UPDATE eventseal_key_wrappings SET wrapped = :no WHERE key_id = :key"),
            {"no": b"no wrapping", "key": damaged.raw(damaged.items[0].key_id)},
        )
    damaged.shop.restart()
    with pytest.raises(JobError, match="its key cannot be used"):
        damaged_row(damaged.seal, ITEMS, str(damaged.items[0].sequence_id), "0")


def test_a_kek_that_is_not_configured_is_a_refusal(sqlite_url, tmp_path) -> None:
    first, second = FakeKms("first"), FakeKms("second")
    settings = Settings(store_url=sqlite_url, application=APPLICATION, ledger=str(tmp_path / "l.jsonl"))
    with EventSeal(settings, kms=[first, second]) as seal:
        seal.datastore.setup_tables(application=APPLICATION)
        place = ItemContext(UUID(int=7), 0, "shop:Placed")
        data = seal.cipher.encrypt(b"{}", place)
        key_id = seal.keyring.sealing_keys({"application": 0})["application"].key_id
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        strategy.append([SequencedItem(UUID(int=7), 0, "shop:Placed", data, key_id)])
        with seal.datastore.key_engine.begin() as connection:  # the item's key is under the first alone
            connection.execute(
                text("DELETE FROM eventseal_key_wrappings WHERE kek_uri = :uri AND key_id = :key"),
                {"uri": second.uri, "key": key_id.bytes},
            )
    with EventSeal(settings, kms=second) as seal:
        with pytest.raises(JobError, match="its key cannot be used") as refused:
            damaged_row(seal, ITEMS, str(UUID(int=7)), "0")
        assert "add the KMS key to kms_key" in refused.value.remedy


def test_a_shredded_item_is_erased_and_needs_nothing(damaged) -> None:
    item = damaged.shop.append("subject:1")
    shred(damaged.seal, "subject:1")
    with pytest.raises(JobError, match="is erased"):
        damaged_row(damaged.seal, ITEMS, str(item.sequence_id), "0")


@pytest.mark.slow
def test_a_row_whose_key_was_retired_is_lost_for_good(damaged) -> None:
    other = damaged.shop.append("application")
    old = age_keys(damaged)
    damaged.delete(4)
    saved = damaged.items[4]
    reencrypt(damaged.seal)
    assert retire(damaged.seal, keys=[old]).done == 1
    damaged.edit(3, data=saved.data, key_id=damaged.raw(old))  # as an old backup has it
    assert verify(damaged.seal).failed == 1
    result = damaged.set_all_aside()
    assert (result.done, result.failed, damaged.failed()) == (1, 0, 0)
    assert other.key_id == old


def test_there_must_be_such_a_row_a_table_a_reason_and_a_ledger(damaged) -> None:
    with pytest.raises(ItemNotFoundError):
        damaged_row(damaged.seal, ITEMS, str(UUID(int=1)), "0")
    with pytest.raises(ConfigurationError):
        damaged_rows(damaged.seal, "no_table")
    damaged.break_tag(0)
    found = damaged_rows(damaged.seal, ITEMS)
    for reason in ("", "  ", "x" * 501):
        with pytest.raises(ConfigurationError, match="a reason has"):
            set_aside(damaged.seal, found, reason=reason)
    damaged.seal.ledger = None
    with pytest.raises(ConfigurationError) as refused:
        set_aside(damaged.seal, found, reason=REASON)
    assert refused.value.remedy == 'Add a line to eventseal.toml: ledger = "erasures.jsonl"'


def test_a_row_that_changed_since_it_was_found_is_not_set_aside(damaged) -> None:
    damaged.break_tag(0)
    found = damaged_rows(damaged.seal, ITEMS)
    damaged.edit(0, data=damaged.items[0].data)
    result = set_aside(damaged.seal, found, reason=REASON)
    assert (result.done, result.failed) == (0, 1)
    assert not damaged.shop.ledger.exists(APPLICATION)


# --- the ledger ---


def test_undo_of_one_row_leaves_the_others_with_their_reason_and_time(damaged) -> None:
    for number in range(3):
        damaged.break_tag(number)
    first = damaged.set_all_aside().set_aside
    leaving = [row for row in first if row.place[0] == damaged.items[1].sequence_id]
    assert withdraw(damaged.seal, leaving).done == 1
    staying = damaged.seal.rows_set_aside()
    assert {(row.sha256, row.reason, row.at) for row in staying} == {
        (row.sha256, row.reason, row.at) for row in first if row not in leaving
    }
    assert damaged.failed() == 1
    assert withdraw(damaged.seal, staying).done == 2
    assert damaged.failed() == 3
    assert damaged.shop.kinds() == ["set_aside", "set_aside", "withdrawn"]
    assert damaged.shop.ledger.last(damaged.seal).open_intents == ()


def test_a_row_that_changed_is_set_aside_anew_and_what_was_said_goes(damaged) -> None:
    damaged.break_tag(0)
    damaged.set_all_aside()
    damaged.edit(0, topic="shop:Other")
    assert damaged.set_all_aside().done == 1
    assert len(damaged.seal.rows_set_aside()) == 1
    assert damaged.failed() == 0


@pytest.mark.slow
def test_shreds_and_reopenings_go_on_beside_rows_that_are_set_aside(damaged) -> None:
    from eventseal.erasure import after_restore, reopen

    damaged.break_tag(0)
    damaged.set_all_aside()
    damaged.shop.append("subject:1")
    assert shred(damaged.seal, "subject:1").receipt is not None
    assert damaged.shop.ledger.open_intents(damaged.seal) == []
    assert reopen(damaged.seal, "subject:1").done == 1
    assert after_restore(damaged.seal, dry_run=True).scopes == ()
    assert damaged.failed() == 0


def test_two_that_withdraw_at_once_do_not_bring_back_what_the_other_took(damaged, monkeypatch) -> None:
    for number in range(3):
        damaged.break_tag(number)
    rows = damaged.set_all_aside().set_aside
    ledger = damaged.shop.ledger
    read_entries = type(ledger).open_entries
    came: list[None] = []

    def overtaken(self, store, kind):
        found = read_entries(self, store, kind)
        if not came:
            came.append(None)
            withdraw(store, rows[:1], ledger=damaged.shop.ledger)
        return found

    monkeypatch.setattr(type(ledger), "open_entries", overtaken)
    with pytest.raises(JobError, match="somebody else"):
        withdraw(damaged.seal, rows[1:2], ledger=ledger)
    assert len(damaged.seal.rows_set_aside()) == 2


@pytest.mark.parametrize("attack", ["edited", "forged", "cut"])
def test_a_ledger_that_was_changed_excuses_nothing(damaged, attack) -> None:
    damaged.break_tag(0)
    damaged.set_all_aside()
    lines = damaged.shop.place.read_bytes().splitlines(keepends=True)
    if attack == "edited":
        digest = damaged.seal.rows_set_aside()[0].sha256
        damaged.shop.place.write_bytes(b"".join(lines).replace(digest.encode(), b"0" * 64))
    elif attack == "forged":
        damaged.shop.place.write_bytes(b"".join(lines).replace(b'"number":2', b'"number":3'))
    else:
        damaged.shop.place.write_bytes(lines[0])
    result = verify(damaged.seal)
    assert result.failed == 2  # the ledger and the row
    assert {failure.table for failure in result.failures} == {"eventseal_erasure_ledger", ITEMS}
    age_keys(damaged)
    with pytest.raises(IntegrityError):
        retire(damaged.seal)
    if attack == "cut":  # nobody who begins anew can tell, and the row fails
        damaged.shop.restart()
        assert damaged.failed() == 1


def test_the_ledger_of_a_lost_file_excuses_nothing(damaged) -> None:
    damaged.break_tag(0)
    damaged.set_all_aside()
    damaged.shop.place.unlink()
    damaged.shop.restart()
    assert damaged.failed() == 1


# --- re-encryption and retirement ---


@pytest.mark.slow
def test_reencrypt_counts_it_as_set_aside_and_completes(damaged) -> None:
    damaged.break_tag(0)
    age_keys(damaged)
    assert reencrypt(damaged.seal).failed == 1
    damaged.set_all_aside()
    for _ in range(2):
        result = reencrypt(damaged.seal)
        assert (result.complete, result.failed, result.left, result.failures) == (True, 0, 0, ())
        assert result.by_table[ITEMS]["set_aside"] == 1


@pytest.mark.slow
def test_reencrypt_counts_what_is_no_envelope_as_set_aside(damaged) -> None:
    damaged.edit(0, data=b"x" * 90)
    age_keys(damaged)
    assert reencrypt(damaged.seal).failed == 1
    damaged.set_all_aside()
    result = reencrypt(damaged.seal)
    assert (result.complete, result.failed) == (True, 0)
    counts = result.by_table[ITEMS]
    assert (counts["set_aside"], counts["plain"]) == (1, 0)


@pytest.mark.slow
def test_a_row_that_came_after_its_key_was_compromised_is_no_suspect_any_more(damaged) -> None:
    damaged.seal.keyring.prepare(["application"])
    (old,) = {item.key_id for item in damaged.items}
    from eventseal.rotation import mark_compromised

    mark_compromised(damaged.seal, [old])
    damaged.break_tag(0)
    result = reencrypt(damaged.seal)
    assert (result.by_table[ITEMS]["suspected"], result.failed) == (1, 2)  # itself, and the count
    assert damaged.set_all_aside().done == 1
    counts = reencrypt(damaged.seal).by_table[ITEMS]
    assert (counts["suspected"], counts["failed"], counts["set_aside"]) == (0, 0, 1)


@pytest.mark.slow
def test_a_key_stays_for_a_row_that_is_set_aside_until_it_is_given_up(damaged) -> None:
    damaged.break_tag(0)
    old = age_keys(damaged)
    damaged.set_all_aside()
    reencrypt(damaged.seal)
    result = retire(damaged.seal)
    assert (result.done, result.left, result.failed) == (0, 1, 0)
    assert result.by_table == {ITEMS: {"set_aside": 1}}
    (row,) = result.set_aside
    with pytest.raises(JobError, match="only rows that are set aside need it") as refused:
        retire(damaged.seal, keys=[old])
    assert "--give-up-set-aside" in refused.value.remedy
    assert str(damaged.items[0].sequence_id) in str(refused.value)
    would = retire(damaged.seal, give_up_set_aside=True, dry_run=True)
    assert (would.done, would.given_up) == (1, (row,))
    result = retire(damaged.seal, keys=[old], give_up_set_aside=True)
    assert (result.done, result.left, result.given_up) == (1, 0, (row,))
    assert result.to_json()["given_up"][0]["reason"] == REASON
    assert damaged.failed() == 0
    assert damaged.seal.key_store.get([old])[old].state is KeyState.DESTROYED


def test_a_key_with_another_item_is_not_given_up(damaged) -> None:
    damaged.break_tag(0)
    old = age_keys(damaged)
    damaged.set_all_aside()
    result = retire(damaged.seal, give_up_set_aside=True)
    assert (result.done, result.left, result.given_up) == (0, 1, ())
    assert result.by_key[old] == 4


@pytest.mark.slow
def test_a_row_that_changes_before_the_fence_closes_keeps_its_key(damaged, monkeypatch) -> None:
    from eventseal.rotation import fences

    damaged.break_tag(0)
    old = age_keys(damaged)
    damaged.set_all_aside()
    reencrypt(damaged.seal)
    close = fences.close_and_count

    def overtaken(*words, **named):
        damaged.edit(0, data=damaged.items[0].data)  # somebody had a backup
        return close(*words, **named)

    monkeypatch.setattr("eventseal.rotation.retirement.close_and_count", overtaken)
    result = retire(damaged.seal, give_up_set_aside=True)
    assert (result.done, result.left, result.by_key[old]) == (0, 1, 1)
    assert reencrypt(damaged.seal).done == 1
    withdraw(damaged.seal, damaged.seal.rows_set_aside())
    assert damaged.failed() == 0


@pytest.mark.slow
def test_what_is_no_envelope_stops_a_retire_until_it_is_given_up(damaged) -> None:
    damaged.edit(0, data=b"x" * 90)
    damaged.edit(1, data=b"y" * 90)
    old = age_keys(damaged)
    reencrypt(damaged.seal)
    with pytest.raises(IntegrityError, match="2 items"):
        retire(damaged.seal)
    found = damaged_row(damaged.seal, ITEMS, str(damaged.items[0].sequence_id), "0")
    set_aside(damaged.seal, found, reason=REASON)
    with pytest.raises(IntegrityError, match="1 item of") as refused:
        retire(damaged.seal, give_up_set_aside=True)
    assert str(damaged.items[1].sequence_id) in str(refused.value)
    damaged.set_all_aside()
    with pytest.raises(JobError, match="2 items") as refused:
        retire(damaged.seal)
    assert "--give-up-set-aside" in refused.value.remedy
    result = retire(damaged.seal, give_up_set_aside=True)
    assert (result.done, result.left, result.failed, len(result.given_up)) == (1, 0, 0, 2)
    assert old not in {key for key, count in result.by_key.items() if count}


@pytest.mark.slow
def test_a_row_of_two_keys_stops_a_retire_until_it_is_given_up(damaged) -> None:
    old = age_keys(damaged)
    other = damaged.shop.key("tenant:b")
    damaged.edit(0, key_id=damaged.raw(other), topic="shop:Other")
    reencrypt(damaged.seal)
    damaged.set_all_aside()
    result = retire(damaged.seal)
    assert (result.done, result.failed) == (0, 1)
    assert "--give-up-set-aside" in result.failures[0].remedy
    result = retire(damaged.seal, give_up_set_aside=True)
    assert (result.done, result.failed, result.failures) == (1, 0, ())
    assert [row.place[0] for row in result.given_up] == [damaged.items[0].sequence_id]
    damaged.shop.restart()
    with pytest.raises(KeyDestroyedError):
        raise damaged.seal.keyring.opening_keys([old])[old]


# --- status ---


def now(damaged: Damaged, **named: Any) -> Any:
    said = rows_in_force(damaged.seal, damaged.shop.ledger) if damaged.shop.place.exists() else ()
    return status(damaged.seal.key_store, damaged.seal.datastore, APPLICATION, said=said, **named)


@pytest.mark.parametrize("damage", [{"data": b"x" * 90}, {"key_id": None, "topic": "a:B"}])
def test_status_is_sound_while_the_rows_are_what_they_were(damaged, damage) -> None:
    damaged.edit(0, **damage)
    assert not now(damaged).is_sound
    damaged.set_all_aside()
    found = now(damaged)
    assert found.is_sound
    assert found.items[ITEMS] == {"active": 4, "set_aside": 1}
    damaged.edit(0, topic="shop:Other")
    assert not now(damaged).is_sound


@pytest.mark.parametrize("data", [b"x" * 90, b"{not json"])
def test_status_counts_rows_where_plaintext_is_accepted(damaged, data) -> None:
    damaged.edit(0, data=data, key_id=None)
    before = dict(now(damaged, always_encrypt=False).unreadable)
    damaged.set_all_aside()
    assert now(damaged, always_encrypt=False).unreadable == {}
    assert before == ({ITEMS: 1} if data[:1] == b"x" else {})


def test_status_recommends_nothing_for_a_row_that_is_set_aside(damaged) -> None:
    damaged.break_tag(0)
    age_keys(damaged)
    reencrypt(damaged.seal)
    assert [step.command for step in now(damaged).next_steps] == ["eventseal reencrypt"]
    damaged.set_all_aside()
    assert now(damaged).next_steps == ()

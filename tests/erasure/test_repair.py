"""Rows that do not open come back from a backup, and nothing else comes with them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from tests.fixtures.ledger_shops import APPLICATION, TOPIC, LedgerShop

from eventseal.cipher import ItemContext
from eventseal.configuration import EventSeal, Settings
from eventseal.erasure import Backup, reopen, repair, repairing, set_aside, shred
from eventseal.erasure.backup_rows import BackupRows
from eventseal.errors import ConfigurationError, IntegrityError, JobError
from eventseal.items import PersonalData, SequencedItem
from eventseal.rotation import mark_compromised, reencrypt, retire, rotate_keys, verify
from eventseal.rotation.row_damage import damaged_rows
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage import SQLAlchemyActiveRecordStrategy, TimestampSequencedItemRecord
from eventseal.storage.items.fences import close_fences
from eventseal.storage.items.rows import ItemRow, RowChange, digest_of, replace_rows
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from eventseal.erasure import RepairResult

pytestmark = pytest.mark.slow

ITEMS = "integer_sequenced_items"
SCOPE, OTHER = "subject:customer-42", "subject:other"


@pytest.fixture
def shop(store_url, tmp_path) -> Iterator[LedgerShop]:
    shop = LedgerShop(store_url, FakeKms(), tmp_path)
    yield shop
    shop.stop()


@pytest.fixture
def empty_url(store_url, request) -> str:
    """A database for a backup that is no database by itself."""
    if store_url.startswith("sqlite"):
        return ""
    new: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return new()


@pytest.fixture
def new_backup_url(empty_url, request) -> str:
    """Another such database."""
    new: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return new() if empty_url else ""


@pytest.fixture
def repaired(shop, empty_url) -> Callable[..., RepairResult]:
    """Repairs the shop from its backup."""

    def run(**options: Any) -> RepairResult:
        with shop.open_backup(empty_url) as backup:
            return repair(shop.seal, backup, **options)

    return run


def settle(shop: LedgerShop) -> None:
    shop.execute(text("UPDATE eventseal_key_changes SET refresh_interval = 0"))


def damaged(item: SequencedItem) -> bytes:
    return item.data[:-1] + bytes([item.data[-1] ^ 1])


def move_on(shop: LedgerShop) -> None:
    """Rotate every key, encrypt every item again and retire the old keys."""
    rotate_keys(shop.seal)
    settle(shop)
    assert reencrypt(shop.seal).complete
    assert retire(shop.seal).failed == 0


def reason(result: RepairResult) -> str:
    (failure,) = result.failures
    return failure.message


# --- what is repaired ---


@pytest.mark.parametrize(
    "damage",
    [
        lambda item: {"data": damaged(item)},
        lambda item: {"data": item.data[:3] + uuid4().bytes + item.data[19:]},
        lambda item: {"data": b""},
        lambda item: {"data": b'{"amount":1000000}', "key_id": None},
        lambda item: {"topic": "shop:Cancelled"},
        lambda item: {"key_id": uuid4()},
        lambda item: {"key_id": None},
    ],
    ids=["bytes", "header", "empty", "plain", "topic", "key-id", "no-key-id"],
)
def test_a_damaged_row_is_replaced_and_all_others_stay(shop, repaired, damage):
    item, others = shop.append(SCOPE), [shop.append(SCOPE), shop.append(OTHER)]
    shop.back_up()
    shop.edit(item, **damage(item))
    before = [shop.stored(other) for other in others]
    assert verify(shop.seal).failed == 1
    result = repaired()
    assert (result.done, result.left, result.failed, result.complete) == (1, 0, 0, True)
    assert result.places == ((ITEMS, str(item.sequence_id), "0"),)
    now = shop.stored(item)
    assert (shop.opens(now), now.topic, now.key_id) == (True, TOPIC, shop.key(SCOPE))
    assert [shop.stored(other) for other in others] == before
    assert verify(shop.seal).failed == 0
    again = repaired()
    assert (again.done, again.left, again.failed) == (0, 0, 0)


def test_text_in_place_of_bytes_is_repaired(sqlite_url, tmp_path):
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    item = shop.append(SCOPE)
    shop.back_up()
    with shop.seal.datastore.engine.begin() as connection:
        connection.execute(text(f"UPDATE {ITEMS} SET data = 'not bytes'"))
    with shop.open_backup("") as backup:
        assert repair(shop.seal, backup).done == 1
    assert shop.opens(shop.stored(item))
    shop.stop()


def test_after_a_retire_the_backup_opens_under_its_own_keys_and_the_row_gets_a_current_one(shop, repaired):
    item, other = shop.append(SCOPE), shop.append(OTHER)
    shop.back_up()
    move_on(shop)
    shop.edit(shop.stored(item), data=b"")
    assert not shop.opens(other), "its key was retired"
    result = repaired()
    assert (result.done, result.failed) == (1, 0)
    now = shop.stored(item)
    assert shop.opens(now)
    assert now.key_id == shop.key(SCOPE) != item.key_id


def test_the_ledger_names_each_row_with_both_digests_and_the_backup(shop, repaired):
    item = shop.append(SCOPE)
    shop.back_up()
    shop.edit(item, data=damaged(item))
    old = shop.stored(item)
    repaired()
    *_, entry = shop.ledger.entries(shop.seal)
    assert entry.kind == "repair"
    (row,) = entry.details["rows"]
    new = shop.stored(item)
    assert row == {
        "table": ITEMS,
        "place": [["uuid", str(item.sequence_id)], ["int", "0"]],
        "old": _digest(old),
        "new": _digest(new),
    }
    assert entry.details["backup"]["key_changes"] == 0
    assert "password" not in str(entry.details["backup"])


def _digest(item: SequencedItem) -> str:
    return digest_of(item.topic, item.data, item.key_id)


def test_a_dry_run_writes_nothing_and_needs_no_ledger(store_url, tmp_path, empty_url):
    shop = LedgerShop(store_url, FakeKms(), tmp_path)
    item = shop.append(SCOPE)
    shop.back_up()
    shop.edit(item, data=damaged(item))
    before = shop.stored(item)
    with EventSeal(Settings(store_url=store_url, application=APPLICATION), kms=shop.kms) as seal:
        with shop.open_backup(empty_url) as backup:
            result = repair(seal, backup, dry_run=True)
            assert (result.done, result.left) == (0, 1)
            with pytest.raises(ConfigurationError, match="no erasure ledger") as caught:
                repair(seal, backup)
        assert 'ledger = "' in caught.value.remedy
    assert shop.stored(item) == before
    assert not shop.place.exists()
    shop.stop()


def test_who_does_not_confirm_gets_nothing_changed(shop, repaired):
    item = shop.append(SCOPE)
    shop.back_up()
    shop.edit(item, data=damaged(item))
    before = shop.stored(item)

    def refuse(would: RepairResult) -> None:
        assert would.left == 1
        raise JobError("no")

    with pytest.raises(JobError, match="no"):
        repaired(confirm=refuse)
    assert shop.stored(item) == before
    assert not shop.place.exists()


def test_a_row_is_replaced_only_if_it_is_still_as_it_was_read(shop):
    item = shop.append(SCOPE)
    (table,) = registered_tables(shop.seal.datastore, APPLICATION, [ITEMS])
    old = ItemRow(item.sequence_id, 0, TOPIC, item.data, item.key_id)
    new = old._replace(data=b"new")
    for changed in ({"data": b"1"}, {"topic": "shop:Cancelled"}, {"key_id": None}):
        before = old._replace(**changed)
        change = RowChange(old[:2], digest_of(before.topic, before.data, before.key_id), new)
        with shop.seal.datastore.engine.begin() as connection:
            assert replace_rows(connection, table, [change]) == []
    assert shop.stored(item) == item
    change = RowChange(old[:2], digest_of(old.topic, old.data, old.key_id), new)
    for _ in range(2):  # a COMMIT that was not answered is tried again
        with shop.seal.datastore.engine.begin() as connection:
            assert replace_rows(connection, table, [change]) == [0]
    assert shop.stored(item).data == b"new"


def test_a_row_that_somebody_changes_meanwhile_is_left_alone(shop, repaired):
    item = shop.append(SCOPE)
    shop.back_up()
    shop.edit(item, data=damaged(item))
    result = repaired(confirm=lambda _: shop.edit(item, data=item.data))
    assert (result.done, result.left, result.complete) == (0, 1, False)
    assert shop.stored(item).data == item.data
    assert not shop.place.exists() or "repair" not in shop.kinds()


@pytest.mark.parametrize("crash_at", ["share_fences", "replace_rows"])
def test_a_run_that_ends_behind_the_ledgers_entry_is_run_again(shop, repaired, monkeypatch, crash_at):
    item = shop.append(SCOPE)
    shop.back_up()
    shop.edit(item, data=damaged(item))

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"eventseal.erasure.repairing.{crash_at}", crash)
        repaired()
    assert shop.stored(item).data == damaged(item)
    assert repaired().done == 1
    assert shop.kinds() == ["repair", "repair"]


def test_a_key_that_is_closed_meanwhile_is_not_sealed_under(shop, repaired, monkeypatch):
    """Another process rotates and retires between the encryption and the transaction."""
    item = shop.append(SCOPE)
    shop.back_up()
    shop.edit(item, data=damaged(item))
    first = shop.key(SCOPE)
    encrypt = BackupRows.encrypt

    def rotated_behind(self: BackupRows, *arguments: Any) -> Any:
        monkeypatch.undo()
        changes = encrypt(self, *arguments)
        other = EventSeal(shop.seal.settings, kms=shop.kms)
        rotate_keys(other, scopes=[SCOPE])
        with shop.seal.datastore.engine.begin() as connection:
            close_fences(connection, [first])
        other.close()
        return changes

    monkeypatch.setattr(BackupRows, "encrypt", rotated_behind)
    assert repaired().done == 1
    now = shop.stored(item)
    assert now.key_id != first
    assert shop.opens(now)


def test_a_row_that_opens_again_before_its_digest_is_taken_is_not_touched(shop, repaired, monkeypatch):
    item = shop.append(SCOPE)
    shop.back_up()
    rotate_keys(shop.seal, scopes=[SCOPE])
    shop.edit(item, data=damaged(item))
    stored_rows = repairing.stored_rows

    def mended_before(*arguments: Any) -> Any:
        monkeypatch.undo()
        shop.edit(item, data=item.data)
        return stored_rows(*arguments)

    monkeypatch.setattr(repairing, "stored_rows", mended_before)
    result = repaired()
    assert (result.done, result.left, result.complete) == (0, 1, False)
    assert shop.stored(item) == item


def test_a_key_id_is_put_right_without_a_backup_and_the_envelope_stays(shop):
    item = shop.append(SCOPE)
    rotate_keys(shop.seal, scopes=[SCOPE])
    shop.edit(item, key_id=None)
    assert verify(shop.seal).failed == 1
    assert repair(shop.seal).done == 1
    assert shop.stored(item) == item
    assert verify(shop.seal).failed == 0


def test_a_row_of_another_table_is_not_adopted(shop, repaired):
    """Copied there, and into an honest backup, it is still bound to the table that it is from."""
    item = shop.append(SCOPE)
    records = SQLAlchemyActiveRecordStrategy(TimestampSequencedItemRecord, shop.seal.datastore.session)
    records.append([item._replace(position=Decimal(0))])
    shop.back_up()
    result = repaired()
    assert (result.done, result.failed) == (0, 1)
    assert verify(shop.seal).failed == 1


@pytest.mark.parametrize("hidden", [{"key_id": None}, {"topic": "shop:Cancelled"}], ids=["key-id", "topic"])
def test_a_repair_of_a_forgery_does_not_vouch_for_it_in_a_later_backup(
    shop, empty_url, new_backup_url, hidden
):
    """The thief of a key has his row repaired as damaged, and hopes that its digest is kept."""
    item, _ = shop.append(SCOPE), shop.append(SCOPE)
    forged = _sealed_with(shop.seal.keyring.opening_keys([item.key_id])[item.key_id], item)
    shop.back_up()
    rotate_keys(shop.seal)
    mark_compromised(shop.seal, [item.key_id])
    shop.edit(item, data=forged, **hidden)
    with shop.open_backup(empty_url) as backup:
        repair(shop.seal, backup)
    shop.edit(item, data=forged, topic=TOPIC, key_id=item.key_id)
    shop.back_up()
    shop.edit(item, data=b"", key_id=None)
    with shop.open_backup(new_backup_url) as backup:
        result = repair(shop.seal, backup)
    assert (result.done, result.failed) == (0, 1)
    assert "may be forged" in reason(result)


def test_a_row_that_is_overwritten_is_not_missed_when_its_key_was_marked(shop, repaired):
    """The backup has it under an earlier key than the one that was marked since."""
    item, other = shop.append(SCOPE), shop.append(SCOPE)
    shop.back_up()
    move_on(shop)
    leaked = shop.stored(item).key_id
    rotate_keys(shop.seal, scopes=[SCOPE])
    mark_compromised(shop.seal, [leaked])
    now = shop.stored(item)
    shop.edit(now, data=now.data[:40] + bytes([now.data[40] ^ 1]) + now.data[41:])
    assert repaired().done == 1
    settle(shop)
    assert reencrypt(shop.seal).failed == 0
    assert shop.opens(shop.stored(other))


def test_a_row_that_was_set_aside_is_repaired_and_no_longer_set_aside(shop, repaired):
    item, lost = shop.append(SCOPE), shop.append(OTHER)
    shop.back_up()
    later = shop.append(OTHER)
    for damaged_item in (item, later):
        shop.edit(damaged_item, data=damaged(damaged_item))
    set_aside(shop.seal, damaged_rows(shop.seal, ITEMS), reason="disk failure")
    assert verify(shop.seal).failed == 0
    assert repaired().done == 1
    assert [row.place for row in shop.seal.rows_set_aside()] == [(later.sequence_id, 0)]
    assert verify(shop.seal).failed == 0
    assert shop.opens(shop.stored(lost))


# --- what a backup is not believed in ---


def test_what_was_shredded_since_the_backup_stays_erased(shop, repaired):
    item = shop.append(SCOPE)
    shop.back_up()
    shred(shop.seal, SCOPE)
    shop.edit(item, data=damaged(item))  # its header still names the shredded key
    for scope_is_open in (False, True):
        if scope_is_open:
            reopen(shop.seal, SCOPE)
            shop.append(SCOPE)
        shop.edit(item, data=b"garbage", key_id=None)
        result = repaired()
        assert (result.done, result.left, result.failed) == (0, 0, 1)
        assert "shredded" in reason(result)


def test_a_key_that_was_retired_before_its_scope_was_shredded_brings_nothing_back(shop, repaired):
    item = shop.append(SCOPE)
    shop.back_up()
    move_on(shop)
    shred(shop.seal, SCOPE)
    reopen(shop.seal, SCOPE)
    shop.append(SCOPE)
    shop.edit(item, data=b"garbage", key_id=None)
    result = repaired()
    assert (result.done, result.failed) == (0, 1)
    assert "was shredded at some time" in reason(result)


def test_key_tables_that_a_restore_set_back_are_not_believed_against_the_ledger(shop, repaired):
    item = shop.append(SCOPE)
    shop.back_up()
    shred(shop.seal, SCOPE)
    shop.restore()
    assert shop.opens(item), "the restore brought the key back"
    shop.edit(item, data=damaged(item))
    with pytest.raises(JobError, match="do not agree") as caught:
        repaired()
    assert "--after-restore" in caught.value.remedy


@pytest.mark.parametrize("retired", [False, True], ids=["compromised", "retired-since"])
def test_a_compromised_keys_forgery_is_not_laundered(shop, repaired, retired):
    """The thief of a key has his row in the backup: he needs only to have it repaired."""
    item, other = shop.append(SCOPE), shop.append(SCOPE)
    thief = shop.seal.keyring.opening_keys([item.key_id])[item.key_id]
    forged = _sealed_with(thief, item)
    rotate_keys(shop.seal)
    shop.edit(item, data=forged)
    shop.back_up()  # its tables call the key deactivated
    shop.edit(item, data=item.data)
    mark_compromised(shop.seal, [item.key_id])
    settle(shop)
    assert reencrypt(shop.seal).failed == 0
    if retired:
        assert retire(shop.seal).done == 1
    shop.edit(item, data=b"", key_id=None)
    result = repaired()
    assert (result.done, result.failed) == (0, 1)
    assert "may be forged" in reason(result)
    assert shop.opens(shop.stored(other))


def _sealed_with(key, item: SequencedItem) -> bytes:
    from eventseal.cipher.context import ItemBinder
    from eventseal.cipher.envelopes import seal_under
    from eventseal.suites.cbc_hmac import A256CBC_HS512
    from eventseal.suites.envelope import CompressionId

    place = ItemBinder(APPLICATION).bind(ItemContext(item.sequence_id, item.position, item.topic))
    ready = [(CompressionId.NONE, b"forged", place)]
    return seal_under(key, A256CBC_HS512, ready, application=APPLICATION)[0]


@pytest.mark.parametrize("retired", [False, True], ids=["compromised", "retired-since"])
def test_what_was_replaced_after_its_key_was_marked_may_come_from_a_backup(shop, repaired, retired):
    item = shop.append(SCOPE)
    shop.back_up()
    rotate_keys(shop.seal)
    mark_compromised(shop.seal, [item.key_id])
    settle(shop)
    assert reencrypt(shop.seal).done == 1
    if retired:
        assert retire(shop.seal).done == 1
    shop.edit(item, data=b"", key_id=None)
    assert repaired().done == 1
    assert shop.opens(shop.stored(item))


def test_on_sqlite_a_damaged_row_under_a_marked_key_comes_back_by_the_tag_that_was_noted(
    sqlite_url, tmp_path
):
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    item, other = shop.append(SCOPE), shop.append(SCOPE)
    shop.back_up()
    rotate_keys(shop.seal)
    mark_compromised(shop.seal, [item.key_id])
    shop.edit(item, data=damaged(item))
    with shop.open_backup("") as backup:
        assert repair(shop.seal, backup).done == 1
    assert shop.stored(item).key_id == shop.key(SCOPE)
    settle(shop)
    assert reencrypt(shop.seal).failed == 0, "the counts below the mark add up"
    shop.edit(item, data=b"", key_id=None)
    with shop.open_backup("") as backup:
        assert repair(shop.seal, backup).done == 1, "its digest was kept"
    assert shop.opens(shop.stored(other))
    shop.stop()


def test_a_forged_backup_with_a_key_of_its_own_is_refused(sqlite_url, tmp_path):
    """Whoever can call the KMS, and write the backup, puts his own key under the id of a retired one."""
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    item = shop.append(SCOPE)
    shop.back_up()
    move_on(shop)
    shop.edit(item, data=b"", key_id=None)
    forger = LedgerShop(f"sqlite:///{tmp_path / 'forged.sqlite'}", shop.kms, tmp_path / "elsewhere")
    forger.key(SCOPE)
    forger.append(SCOPE)
    forger.stop()
    with closing(sqlite3.connect(tmp_path / "forged.sqlite")) as connection, connection:
        connection.execute("ATTACH DATABASE ? AS real", (str(tmp_path / "backup"),))
        connection.execute("DELETE FROM integer_sequenced_items")
        connection.execute("INSERT INTO integer_sequenced_items SELECT * FROM real.integer_sequenced_items")
    with Backup(shop.seal, f"sqlite:///{tmp_path / 'forged.sqlite'}") as backup:
        result = repair(shop.seal, backup)
    assert (result.done, result.failed) == (0, 1)
    shop.stop()


def test_the_backups_key_must_be_the_one_that_was_retired(shop, repaired, monkeypatch):
    item = shop.append(SCOPE)
    shop.back_up()
    move_on(shop)
    shop.edit(item, data=b"", key_id=None)
    monkeypatch.setattr("eventseal.erasure.backup.is_bound", lambda *_: False)
    result = repaired()
    assert "is not the key that the store retired" in reason(result)


def test_an_unencrypted_row_of_a_backup_is_never_sealed(shop, repaired):
    item = shop.append(SCOPE)
    shop.edit(item, data=b'{"amount":1000000}', key_id=None)
    shop.back_up()
    result = repaired()
    assert (result.done, result.failed) == (0, 1)
    assert "not an envelope" in reason(result)


def test_a_row_of_another_place_is_not_taken(shop, repaired):
    item, other = shop.append(SCOPE), shop.append(SCOPE)
    shop.edit(item, data=other.data, key_id=other.key_id)
    shop.back_up()
    result = repaired()
    assert (result.done, result.failed) == (0, 1)
    assert "does not open either" in reason(result)


def test_a_row_that_is_not_in_the_backup_fails(shop, repaired):
    shop.append(SCOPE)
    shop.back_up()
    item = shop.append(SCOPE)
    shop.edit(item, data=damaged(item))
    result = repaired()
    assert (result.done, result.failed) == (0, 1)
    assert "no row at this place" in reason(result)


def test_a_suspected_forgery_that_opens_is_not_touched(shop, repaired):
    item = shop.append(SCOPE)
    thief = shop.seal.keyring.opening_keys([item.key_id])[item.key_id]
    forged = _sealed_with(thief, item)
    shop.back_up()
    rotate_keys(shop.seal)
    mark_compromised(shop.seal, [item.key_id])
    shop.edit(item, data=forged)
    result = repaired()
    assert (result.done, result.left, result.failed) == (0, 0, 0)
    assert shop.stored(item).data == forged


# --- fields, snapshots, outages ---


class Registered:
    customer_id: str
    email: Annotated[str, PersonalData(subject="customer_id")]

    def __init__(self, originator_id, originator_version, customer_id, email) -> None:
        self.originator_id = originator_id
        self.originator_version = originator_version
        self.customer_id = customer_id
        self.email = email


def test_fields_are_copied_and_those_that_were_erased_stay_erased(shop, repaired):
    events = [Registered(uuid4(), 0, name, f"{name}@example.org") for name in ("ada", "bob")]
    items = shop.seal.mapper.to_sequenced_items(events)
    shop.strategy.append(items)
    shop.back_up()
    move_on(shop)
    shred(shop.seal, "subject:ada")
    for item in items:
        shop.edit(item, data=b"", key_id=None)
    assert repaired().done == 2
    ada, bob = shop.seal.mapper.from_sequenced_items([shop.stored(item) for item in items])
    assert ada.email == ada.email
    assert (repr(ada.email), bob.email) == ("<erased email>", "bob@example.org")


def test_an_outage_of_the_kms_says_nothing_about_rows(shop, repaired):
    from eventseal.errors import KmsUnavailableError

    item = shop.append(SCOPE)
    shop.back_up()
    shop.edit(item, data=damaged(item))
    shop.restart()
    shop.kms.fail_always()
    with pytest.raises(KmsUnavailableError):
        repaired()


def test_the_backup_is_not_changed_by_a_byte(sqlite_url, tmp_path):
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    item = shop.append(SCOPE)
    shop.back_up()
    move_on(shop)
    shop.edit(item, data=b"", key_id=None)
    before = (tmp_path / "backup").read_bytes()
    (tmp_path / "backup").chmod(0o444)
    with shop.open_backup("") as backup:
        assert repair(shop.seal, backup).done == 1
    assert (tmp_path / "backup").read_bytes() == before
    shop.stop()


def test_a_backup_that_is_not_there_is_not_created(sqlite_url, tmp_path):
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    with pytest.raises(ConfigurationError, match="there is no backup"):
        Backup(shop.seal, f"sqlite:///{tmp_path / 'nowhere.sqlite'}")
    assert not (tmp_path / "nowhere.sqlite").exists()
    with pytest.raises(ConfigurationError, match="own database"):
        Backup(shop.seal, sqlite_url)
    shop.stop()


def test_a_table_that_had_another_name_in_the_backup(shop, empty_url):
    item = shop.append(SCOPE)
    shop.execute(text(f"ALTER TABLE {ITEMS} RENAME TO orders"))
    shop.back_up()
    shop.execute(text(f"ALTER TABLE orders RENAME TO {ITEMS}"))
    shop.edit(item, data=damaged(item))
    with shop.open_backup(empty_url, renamed={ITEMS: "orders"}) as backup:
        assert repair(shop.seal, backup).done == 1


def test_a_table_that_the_backup_lacks_is_named_with_what_there_is(sqlite_url, tmp_path):
    shop = LedgerShop(sqlite_url, FakeKms(), tmp_path)
    item = shop.append(SCOPE)
    shop.execute(text(f"ALTER TABLE {ITEMS} RENAME TO orders"))
    shop.back_up()
    shop.execute(text(f"ALTER TABLE orders RENAME TO {ITEMS}"))
    shop.edit(item, data=damaged(item))
    with shop.open_backup("") as backup, pytest.raises(ConfigurationError, match="orders") as caught:
        repair(shop.seal, backup)
    assert f"--renamed {ITEMS}=NAME" in caught.value.remedy
    shop.stop()


def test_a_ledger_that_was_changed_stops_the_repair(shop, repaired):
    item = shop.append(SCOPE)
    shop.append(OTHER)
    shred(shop.seal, OTHER)
    shop.back_up()
    shop.edit(item, data=damaged(item))
    lines = shop.place.read_bytes().splitlines(keepends=True)
    shop.place.write_bytes(lines[0] + lines[2])
    shop.restart()
    with pytest.raises(IntegrityError):
        repaired()
    assert not shop.opens(shop.stored(item))

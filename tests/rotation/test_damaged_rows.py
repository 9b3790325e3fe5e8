"""Rows that fail and are not damaged, since only a key, a key id or a setting is wrong: none is set aside."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from tests.fixtures.old_formats import OLD_KEY, WRONG_KEY, cbc
from tests.fixtures.personal_events import Registered

from eventseal.cipher import ItemContext
from eventseal.erasure import set_aside
from eventseal.errors import ConfigurationError, JobError
from eventseal.items import SequencedItem
from eventseal.rotation import (
    begin_migration,
    damaged_row,
    damaged_rows,
    migrate,
    reencrypt,
    retire,
    rotate_keys,
    verify,
)
from eventseal.storage import SnapshotRecord, TimestampSequencedItemRecord

if TYPE_CHECKING:
    from eventseal.rotation import DamagedRows

ITEMS, TIMES = "integer_sequenced_items", "timestamp_sequenced_items"
CBC = ["eventsourcing-cbc key=env:OLD"]
FIELD_KEYS = "SELECT key_id FROM eventseal_encryption_keys WHERE purpose = 'field'"


@pytest.fixture(autouse=True)
def old_key(monkeypatch) -> None:
    set_old_key(monkeypatch, OLD_KEY)


def set_old_key(monkeypatch, key: bytes) -> None:
    monkeypatch.setenv("OLD", base64.b64encode(key).decode())


def only_refusal(found: DamagedRows) -> Any:
    assert found.rows == ()
    (refused,) = found.refused
    return refused


# --- a key id that was edited ---


@pytest.mark.parametrize("key_id", [None, UUID(int=5)], ids=["none", "another"])
def test_a_row_of_which_only_the_key_id_was_edited_is_sound(shop, key_id) -> None:
    item, _ = shop.append(2)
    shop.edit(item, key_id=key_id)
    assert verify(shop.seal).failed == 1
    refused = only_refusal(damaged_rows(shop.seal, ITEMS))
    assert "only its key id column was edited" in refused.message
    assert refused.remedy == "To correct the key id, run `eventseal repair`."
    with pytest.raises(JobError, match="only its key id"):
        damaged_row(shop.seal, ITEMS, str(item.sequence_id), "0")


def test_so_is_one_that_is_bound_to_the_former_collection_of_its_table(shop) -> None:
    with shop.seal.datastore.key_engine.begin() as connection:
        connection.execute(
            text("UPDATE eventseal_sealed_tables SET collection = :name WHERE table_name = :table"),
            {"name": TimestampSequencedItemRecord.__former_collection__, "table": TIMES},
        )
    again = shop.again()
    place = uuid4(), Decimal("1.5"), "shop:Placed"
    sealed = again.seal.cipher.encrypt(b"{}", ItemContext(*place, "items"))
    again.strategy(record=TimestampSequencedItemRecord).append([SequencedItem(*place, sealed, None)])
    assert verify(again.seal).failed == 1
    assert "only its key id" in only_refusal(damaged_rows(again.seal, TIMES)).message


# --- fields inside of an item ---


@pytest.fixture(params=[True, False], ids=["encrypted item", "plain item"])
def holder(request, open_shop, store_url):
    """A shop with one item that has a field, and its settings."""
    shop = open_shop(store_url, always_encrypt=request.param)
    shop.strategy().append(
        shop.seal.mapper.to_sequenced_items([Registered(uuid4(), 0, "c-1", "c-1@example.org")])
    )
    return shop, {"always_encrypt": request.param}


@pytest.mark.parametrize(
    "change",
    [
        f"DELETE FROM eventseal_key_wrappings WHERE key_id IN ({FIELD_KEYS})",
        f"UPDATE eventseal_key_wrappings SET wrapped = :other WHERE key_id IN ({FIELD_KEYS})",
        "UPDATE eventseal_encryption_keys SET scope = 'subject:c-2' WHERE purpose = 'field'",
    ],
    ids=["no wrapping", "edited wrapping", "edited row"],
)
def test_an_item_with_a_field_whose_key_was_edited_is_refused(holder, change) -> None:
    shop, settings = holder
    with shop.seal.datastore.key_engine.begin() as connection:
        assert connection.execute(text(change), {"other": b"no wrapping"}).rowcount
    again = shop.again(**settings)
    assert verify(again.seal).by_table[ITEMS]["failed"] == 1
    assert "its key cannot be used" in only_refusal(damaged_rows(again.seal, ITEMS)).message


def test_only_an_item_that_is_not_encrypted_may_have_a_damaged_field(holder) -> None:
    shop, settings = holder
    (item,) = shop.execute(f"SELECT sequence_id, position, topic, data, key_id FROM {ITEMS}")
    place = ItemContext(UUID(bytes=item[0]) if isinstance(item[0], bytes) else item[0], 0, item[2])
    is_plain = item.key_id is None
    raw = json.loads(item.data if is_plain else shop.seal.cipher.decrypt(item.data, place))
    pointer, sealed = raw["email"]["$sealed"]
    raw["email"]["$sealed"] = [pointer, sealed[:60] + ("A" if sealed[60] != "A" else "B") + sealed[61:]]
    data = json.dumps(raw, separators=(",", ":")).encode()
    shop.execute(
        f"UPDATE {ITEMS} SET data = :data", data=data if is_plain else shop.seal.cipher.encrypt(data, place)
    )
    again = shop.again(**settings)
    assert verify(again.seal).by_table[ITEMS]["failed"] == 1
    found = damaged_rows(again.seal, ITEMS)
    if is_plain:
        assert (len(found.rows), found.refused) == (1, ())
    else:
        assert "its contents are as they were written" in only_refusal(found).message


# --- a header that names a key that is not there ---


@pytest.mark.slow
def test_a_row_of_a_key_that_is_not_there_is_refused_and_stops_no_retire(shop) -> None:
    item, _ = shop.append(2)
    other = uuid4()
    shop.edit(item, data=item.data[:3] + other.bytes + item.data[19:], key_id=other)
    assert "its key cannot be used" in only_refusal(damaged_rows(shop.seal, ITEMS)).message
    rotate_keys(shop.seal)
    with shop.seal.datastore.key_engine.begin() as connection:
        connection.execute(text("UPDATE eventseal_key_changes SET refresh_interval = 0"))
    reencrypt(shop.seal)
    assert retire(shop.seal).done == 1


# --- older formats, while a migration lasts ---


def append_old(shop, key: bytes = OLD_KEY, **named: Any) -> SequencedItem:
    item = SequencedItem(uuid4(), 0, "shop:Placed", cbc(json.dumps({"a": 1}).encode(), key), None)
    shop.strategy(**named).append([item])
    return item


def damage(shop, item: SequencedItem) -> None:
    shop.execute(
        f"UPDATE {ITEMS} SET data = :data WHERE sequence_id = :id",
        data=b"x" * 90,
        id=shop.raw(item.sequence_id),
    )


@pytest.fixture
def old_shop(open_shop, store_url, tmp_path):
    """A store whose migration has begun, with an envelope, an older item, and one that is damaged."""
    shop = open_shop(store_url, old_formats=CBC, ledger=str(tmp_path / "erasures.jsonl"))
    shop.append(1)
    append_old(shop)
    lost = append_old(shop)
    begin_migration(shop.seal)
    damage(shop, lost)
    return shop


def test_with_its_key_a_damaged_row_is_told_from_older_items(old_shop) -> None:
    found = damaged_rows(old_shop.seal, ITEMS)
    assert (len(found.rows), found.refused) == (1, ())
    assert set_aside(old_shop.seal, found, reason="lost").done == 1


@pytest.mark.parametrize(
    ("formats", "key", "said"),
    [
        ((), OLD_KEY, "no older format is configured"),
        (["plain-json"], OLD_KEY, "accepts eventsourcing-cbc, which old_formats does not name"),
        (CBC, WRONG_KEY, "opens nothing"),
    ],
    ids=["no format", "another format", "wrong key"],
)
def test_settings_that_open_no_older_item_call_none_damaged(
    old_shop, monkeypatch, formats, key, said
) -> None:
    set_old_key(monkeypatch, key)
    seal = old_shop.again(old_formats=formats).seal
    assert verify(seal).failed == 2
    with pytest.raises(ConfigurationError, match=said):
        damaged_rows(seal, ITEMS)


def test_what_a_migration_has_left_is_damaged(old_shop) -> None:
    assert migrate(old_shop.seal).done == 1
    found = damaged_rows(old_shop.seal, ITEMS)
    assert (len(found.rows), found.refused) == (1, ())


def test_older_items_of_another_table_prove_the_key(open_shop, store_url) -> None:
    shop = open_shop(store_url, old_formats=CBC)
    append_old(shop, record=SnapshotRecord)
    lost = append_old(shop)
    begin_migration(shop.seal)
    damage(shop, lost)
    assert len(damaged_rows(shop.seal, ITEMS).rows) == 1


def test_an_envelope_that_is_damaged_needs_no_older_format(open_shop, store_url) -> None:
    shop = open_shop(store_url, old_formats=CBC)
    (item,) = shop.append(1)
    begin_migration(shop.seal)
    shop.edit(item, topic="shop:Other")
    (row,) = damaged_rows(shop.again(old_formats=["plain-json"]).seal, ITEMS).rows
    assert row.place == (item.sequence_id, 0)

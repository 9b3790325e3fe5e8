"""Verify: what opens is counted, what does not is reported, and an outage is neither."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text
from tests.fixtures.key_marks import mark_of

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KekNotConfiguredError,
    KmsForbiddenError,
    KmsUnavailableError,
    MissingTableError,
    StoreUnavailableError,
    WrongApplicationError,
)
from eventseal.keys import KeyPurpose
from eventseal.rotation import SealedStore, reencrypt, verify
from eventseal.rotation.results import MAX_FAILURES
from eventseal.storage import SnapshotRecord, TimestampSequencedItemRecord
from eventseal.testing import FakeKms

ITEMS = "integer_sequenced_items"
OTHER_ID = UUID("01890000-0000-7000-8000-000000000001")
CHECKS = "eventseal.rotation.item_checks"


def errors_of(result) -> list[str]:
    return [failure.error for failure in result.failures]


@pytest.mark.slow
def test_every_item_of_every_table_is_opened_and_counted(shop):
    first = shop.append(5)[0].key_id
    shop.append(3, record=SnapshotRecord)
    shop.append(2, record=TimestampSequencedItemRecord)
    shop.seal.keyring.rotate()
    second = shop.append(4)[0].key_id
    result = verify(shop.again().seal)
    assert (result.verb, result.complete, result.done, result.failed, result.left) == (
        "verify",
        True,
        14,
        0,
        0,
    )
    assert result.by_key == {first: 10, second: 4}
    assert {table: counts["done"] for table, counts in result.by_table.items()} == {
        ITEMS: 9,
        "snapshots": 3,
        "timestamp_sequenced_items": 2,
    }
    assert result.failures == ()


def test_a_store_without_items_is_whole(shop):
    result = verify(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 0, 0)


def test_it_reads_page_after_page(shop, monkeypatch):
    monkeypatch.setattr(f"{CHECKS}.PAGE_SIZE", 3)
    for count in (3, 2, 5):
        shop.append(count)
    assert verify(shop.seal).done == 10


def test_it_checks_the_keys_page_after_page(shop, monkeypatch):
    monkeypatch.setattr("eventseal.rotation.sealed_store.PAGE_SIZE", 2)
    shop.seal.keyring.prepare([f"tenant:{n}" for n in range(5)])
    assert shop.execute("UPDATE eventseal_encryption_keys SET row_version = 2 WHERE scope = 'tenant:4'") == 1
    assert shop.execute("UPDATE eventseal_encryption_keys SET row_version = 2 WHERE scope = 'tenant:0'") == 1
    assert verify(shop.again().seal).failed == 2


@pytest.mark.slow
@pytest.mark.parametrize("column", ["state", "purpose"])
def test_a_key_row_that_cannot_be_read_fails_alone(shop, column):
    good, bad = shop.append(2)[0].key_id, shop.append(3, scope="tenant:a")[0].key_id
    assert (
        shop.execute(f"UPDATE eventseal_encryption_keys SET {column} = 'edited' WHERE scope = 'tenant:a'")
        == 1
    )
    result = verify(shop.again().seal)
    assert (result.done, result.failed) == (2, 4)
    assert set(errors_of(result)) == {"IntegrityError"}
    assert result.by_key == {good: 2}
    assert {failure.key_id for failure in result.failures} == {bad}


def test_a_store_key_whose_row_cannot_be_read_is_named(shop):
    shop.append()
    shop.execute("UPDATE eventseal_encryption_keys SET state = 'edited' WHERE purpose = 'store'")
    key_id = shop.seal.key_store.active("shop", ["store"], purpose=KeyPurpose.STORE)["store"].key_id
    with pytest.raises(IntegrityError, match=f"{key_id} was edited: its state cannot be read"):
        shop.again().seal.keyring.refresh()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(lambda item: {"topic": "shop:Refunded"}, "IntegrityError", id="topic"),
        pytest.param(lambda item: {"position": 77}, "IntegrityError", id="position"),
        pytest.param(lambda item: {"sequence_id": OTHER_ID}, "IntegrityError", id="stream"),
        pytest.param(lambda item: {"key_id": None}, "IntegrityError", id="no key id"),
        pytest.param(lambda item: {"key_id": OTHER_ID}, "IntegrityError", id="another key id"),
        pytest.param(
            lambda item: {"data": item.data[:-1] + bytes((item.data[-1] ^ 1,))}, "IntegrityError", id="tag"
        ),
        pytest.param(
            lambda item: {"data": item.data[:40] + bytes((item.data[40] ^ 1,)) + item.data[41:]},
            "IntegrityError",
            id="ciphertext",
        ),
        pytest.param(lambda item: {"data": b"\x02" + item.data[1:]}, "UnknownFormatError", id="version"),
        pytest.param(lambda item: {"data": item.data[:30]}, "UnknownFormatError", id="cut"),
        pytest.param(lambda item: {"data": b'{"amount":5}'}, "UnknownFormatError", id="plaintext"),
        pytest.param(lambda item: {"data": b""}, "UnknownFormatError", id="empty"),
        pytest.param(
            lambda item: {"data": item.data[:3] + OTHER_ID.bytes + item.data[19:]},
            "IntegrityError",
            id="header's key",
        ),
    ],
)
def test_an_edited_row_is_a_failure_that_names_it(shop, change, error):
    items = shop.append(3)
    shop.edit(items[1], **change(items[1]))
    result = verify(shop.seal)
    assert (result.complete, result.done, result.failed) == (True, 2, 1)
    (failure,) = result.failures
    assert (failure.table, failure.error) == (ITEMS, error)
    edited = items[1]._replace(**change(items[1]))
    assert failure.row == {"sequence_id": str(edited.sequence_id), "position": str(edited.position)}
    assert failure.key_id == edited.key_id


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("key_id", b"\x01"),
        ("key_id", "text"),
        ("sequence_id", b"\x01"),
        ("position", "first"),
    ],
)
@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_what_sqlite_lets_an_edit_put_in_a_column_fails_its_own_row_alone(
    sqlite_shop, monkeypatch, column, value, page_size
):
    monkeypatch.setattr(f"{CHECKS}.PAGE_SIZE", page_size)
    items = sqlite_shop.append(3)
    sqlite_shop.edit(items[1], **{column: value})
    result = verify(sqlite_shop.seal)
    assert (result.done, result.failed) == (2, 1)
    json.dumps(result.to_json())


@pytest.mark.slow
@pytest.mark.parametrize("column", ["data", "topic", "sequence_id", "key_id"])
def test_text_that_is_not_utf_8_fails_its_own_row_alone(sqlite_shop, column):
    items = sqlite_shop.append(3)
    with sqlite_shop.seal.datastore.engine.begin() as connection:
        connection.execute(
            text(f"UPDATE {ITEMS} SET {column} = CAST(x'6fff' AS TEXT) WHERE position = :position"),
            {"position": items[1].position},
        )
    result = verify(sqlite_shop.seal)
    assert (result.done, result.failed) == (2, 1)
    json.dumps(result.to_json())
    sqlite_shop.seal.keyring.rotate()
    moved = reencrypt(sqlite_shop.seal)
    # What is no envelope any more is under no key, so that it is counted and not moved.
    assert (moved.done, moved.failed + moved.by_table[ITEMS]["plain"]) == (2, 1)


def test_an_item_moved_to_another_table_is_a_failure(shop):
    (item,) = shop.append()
    shop.execute(f"INSERT INTO snapshots SELECT * FROM {ITEMS}")
    result = verify(shop.seal)
    assert result.done == 1
    assert [(failure.table, failure.error) for failure in result.failures] == [
        ("snapshots", "IntegrityError")
    ]
    assert item.key_id == result.failures[0].key_id


def test_failures_hold_no_data(shop):
    for item in shop.append(2):
        shop.edit(item, topic="x")
    shown = json.dumps(verify(shop.seal).to_json()) + repr(verify(shop.seal))
    assert "the-secret" not in shown
    assert shop.append()[0].data.hex() not in shown


def test_what_was_shredded_is_counted_apart_and_fails_nothing(shop):
    kept = shop.append(2)
    shop.append(3, scope="subject:1")
    shop.seal.keyring.shred("subject:1")
    result = verify(shop.again().seal)
    assert (result.done, result.failed, result.failures) == (2, 0, ())
    assert result.by_table[ITEMS] == {
        "done": 2,
        "failed": 0,
        "plain": 0,
        "unmigrated": 0,
        "foreign": 0,
        "erased": 3,
        "left": 0,
    }
    assert result.by_key == {kept[0].key_id: 2}


def test_a_header_that_names_a_shredded_key_beside_another_key_id_is_no_erasure(shop):
    kept = shop.append(1)[0]
    gone = shop.append(1, scope="subject:1")[0]
    shop.seal.keyring.shred("subject:1")
    shop.edit(kept, data=kept.data[:3] + gone.key_id.bytes + kept.data[19:])
    result = verify(shop.seal)
    assert (result.by_table[ITEMS]["erased"], result.failed) == (1, 1)
    assert result.failures[0].key_id == kept.key_id


def test_a_tombstone_that_was_forged_erases_nothing(shop):
    item = shop.append(1)[0]
    shop.execute("UPDATE eventseal_encryption_keys SET state = 'destroyed', destroyed_by = 'shredded'")
    result = verify(shop.again().seal)
    assert result.by_table[ITEMS]["erased"] == 0
    assert "KeyDestroyedError" not in errors_of(result)
    assert item.key_id in {failure.key_id for failure in result.failures}


@pytest.mark.parametrize(
    ("outage", "error"),
    [(FakeKms.fail_always, KmsUnavailableError), (FakeKms.deny, KmsForbiddenError)],
    ids=["away", "denied"],
)
def test_a_kms_that_fails_ends_it_with_its_own_error(shop, outage, error):
    shop.append(3)
    other = shop.again()
    outage(shop.kms)
    with pytest.raises(error):
        verify(other.seal)


def test_a_kms_that_fails_half_way_is_no_failed_item(sqlite_shop):
    """The store key is in memory already: what fails is the unwrapping of a data key."""
    sqlite_shop.append(3)
    sqlite_shop.append(3, scope="tenant:a")
    other = sqlite_shop.again()
    other.seal.keyring.prepare(["application"])
    sqlite_shop.kms.fail_always()
    with pytest.raises(KmsUnavailableError):
        verify(other.seal)


def test_a_database_that_fails_ends_it_with_its_own_error(sqlite_shop, monkeypatch):
    sqlite_shop.append(3)

    def away(_key_ids, **_options):
        raise StoreUnavailableError("the database is away")

    monkeypatch.setattr(sqlite_shop.seal.keyring, "opening_keys", away)
    with pytest.raises(StoreUnavailableError):
        verify(sqlite_shop.seal)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE eventseal_encryption_keys SET state = 'deactivated' WHERE purpose = 'data'",
        (
            "UPDATE eventseal_encryption_keys SET scope = 'tenant:b', active_scope = 'tenant:b' "
            "WHERE purpose = 'data'"
        ),
        "UPDATE eventseal_encryption_keys SET row_version = 2 WHERE purpose = 'data'",
    ],
    ids=["state", "scope", "version"],
)
def test_a_key_row_edited_by_hand_is_a_failure_though_no_item_names_it(shop, edit):
    shop.seal.keyring.prepare(["application"])
    shop.execute(edit)
    result = verify(shop.again().seal)
    assert (result.done, result.failed) == (0, 1)
    assert errors_of(result) == ["IntegrityError"]
    assert result.failures[0].table == "eventseal_encryption_keys"
    assert result.failures[0].row == {"key_id": str(result.failures[0].key_id)}


def test_a_key_row_edited_by_hand_fails_its_items_too(shop):
    shop.append(3)
    shop.execute("UPDATE eventseal_encryption_keys SET state = 'compromised' WHERE purpose = 'data'")
    result = verify(shop.again().seal)
    assert (result.done, result.failed) == (0, 4)
    assert set(errors_of(result)) == {"IntegrityError"}


def test_a_swapped_wrapping_is_a_failure(shop):
    first = shop.append()[0].key_id
    second = shop.append(scope="tenant:a")[0].key_id
    (wrapped,) = shop.execute(
        "SELECT wrapped FROM eventseal_key_wrappings WHERE key_id = :id", id=shop.raw(second)
    )[0]
    shop.execute(
        "UPDATE eventseal_key_wrappings SET wrapped = :wrapped WHERE key_id = :id",
        wrapped=wrapped,
        id=shop.raw(first),
    )
    result = verify(shop.again().seal)
    assert result.done == 1
    assert {(failure.table, failure.error) for failure in result.failures} == {
        ("eventseal_encryption_keys", "IntegrityError"),
        (ITEMS, "IntegrityError"),
    }


def test_a_kek_that_is_not_configured_ends_it_and_fails_no_item(sqlite_shop):
    """The store key opens, and the others are wrapped under a KEK that was left out of the settings."""
    sqlite_shop.append(3)
    of_data_keys = "SELECT key_id FROM eventseal_encryption_keys WHERE purpose = 'data'"
    sqlite_shop.execute(
        f"UPDATE eventseal_key_wrappings SET kek_uri = 'fake://gone' WHERE key_id IN ({of_data_keys})"
    )
    with pytest.raises(KekNotConfiguredError, match="is wrapped under fake://gone"):
        verify(sqlite_shop.again().seal)


def test_the_first_thousand_failures_are_listed_and_all_are_counted(sqlite_shop):
    sqlite_shop.append(MAX_FAILURES + 5)
    sqlite_shop.execute(f"UPDATE {ITEMS} SET topic = 'x'")
    result = verify(sqlite_shop.seal)
    assert result.failed == MAX_FAILURES + 5
    assert len(result.failures) == MAX_FAILURES


def test_one_table_can_be_asked_for(shop):
    shop.append(2)
    shop.append(3, record=SnapshotRecord)
    result = verify(shop.seal, tables=["snapshots"])
    assert result.done == 3
    assert set(result.by_table) == {"snapshots"}


def test_a_table_that_is_not_registered_names_the_nearest(sqlite_shop):
    with pytest.raises(ConfigurationError, match="there is no registered table snapshot") as caught:
        verify(sqlite_shop.seal, tables=["snapshot"])
    assert caught.value.remedy == "Did you mean snapshots?"


def test_a_registered_table_that_is_gone_is_named(shop):
    shop.execute("DROP TABLE snapshots")
    with pytest.raises(MissingTableError, match="snapshots") as caught:
        verify(shop.seal)
    assert caught.value.table == "snapshots"


def test_a_registered_table_of_another_database_is_named(sqlite_shop):
    sqlite_shop.execute(
        "UPDATE eventseal_sealed_tables SET database_name = 'archive' WHERE table_name = 'snapshots'"
    )
    with pytest.raises(ConfigurationError, match="snapshots is in a database 'archive'"):
        verify(sqlite_shop.seal)


def make_lookalike(shop) -> None:
    uuid, binary = ("UUID", "BYTEA") if shop.url.startswith("postgresql") else ("BLOB", "BLOB")
    shop.execute(f"CREATE TABLE parcels (id INTEGER PRIMARY KEY, key_id {uuid}, body {binary})")


def test_a_table_that_looks_sealed_but_is_not_registered_stops_it(shop):
    make_lookalike(shop)
    with pytest.raises(ConfigurationError, match="parcels") as caught:
        verify(shop.seal)
    assert "unsealed_tables" in caught.value.remedy
    assert verify(shop.again(unsealed_tables="parcels").seal).complete


def test_without_tables_it_says_what_makes_them(open_shop, sqlite_url, shop):
    shop.seal.datastore.drop_tables()
    with pytest.raises(MissingTableError) as caught:
        verify(shop.seal)
    assert "eventseal init" in caught.value.remedy


@pytest.mark.slow
def test_items_of_another_application_in_a_shared_table_are_not_its_business(shop):
    shop.append(2)
    billing = shop.again(application="billing")
    billing.seal.datastore.setup_tables(application="billing")
    billing.append(3)
    for store, done, foreign in ((shop, 2, 3), (billing, 3, 2)):
        result = verify(store.seal)
        assert (result.done, result.failed) == (done, 0)
        assert result.by_table[ITEMS]["foreign"] == foreign


def test_items_of_another_application_in_its_own_table_are_failures(shop):
    shop.append(2)
    shop.again(application="billing").append(3)
    result = verify(shop.seal)
    assert (result.done, result.failed) == (2, 3)
    assert set(errors_of(result)) == {"WrongApplicationError"}


@pytest.mark.slow
def test_the_wrong_application_opens_nothing_of_the_first(shop):
    shop.append(2)
    other = shop.again(application="shop2")
    with pytest.raises(ConfigurationError, match=r"is registered for application shop2\..*tables: shop"):
        verify(other.seal)
    other.seal.datastore.setup_tables()
    with pytest.raises(WrongApplicationError, match="shop2") as caught:
        verify(other.seal)
    assert (caught.value.expected, caught.value.found) == ("shop2", "shop")
    other.seal.keyring.prepare(["application"])  # now it is an application of its own
    assert verify(other.seal).by_table[ITEMS]["foreign"] == 2


def test_a_sample_opens_some_and_leaves_the_rest(sqlite_shop):
    sqlite_shop.append(400)
    result = verify(sqlite_shop.seal, sample=0.25)
    assert result.done + result.left == 400
    assert 40 < result.done < 200
    assert result.by_table[ITEMS]["left"] == result.left
    assert result.complete


@pytest.mark.parametrize("sample", [0, -0.1, 1.1, float("nan")])
def test_a_sample_is_a_share(sqlite_shop, sample):
    with pytest.raises(ConfigurationError, match="sample"):
        verify(sqlite_shop.seal, sample=sample)


def test_progress_is_told_page_by_page(sqlite_shop, monkeypatch):
    monkeypatch.setattr(f"{CHECKS}.PAGE_SIZE", 4)
    sqlite_shop.append(10)
    told = []
    result = verify(sqlite_shop.seal, progress=told.append)
    assert [(part.done, part.left, part.complete) for part in told] == [
        (4, 6, False),
        (8, 2, False),
        (10, 0, False),
    ]
    assert result.complete
    assert told[0].by_table[ITEMS]["done"] == 4  # a value, not a view of what goes on


def test_destroyed_keys_are_no_failures(sqlite_shop):
    """A tombstone has a seal and no wrapping; only an item that names it would be wrong."""
    sqlite_shop.seal.keyring.prepare(["tenant:a"])
    store = sqlite_shop.seal.key_store
    record = store.active("shop", ["tenant:a"])["tenant:a"]
    seals = seals_of(sqlite_shop)
    from eventseal.keys.states import KeyState

    destroyed = replace(
        record,
        state=KeyState.DESTROYED,
        destroyed_by="retired",
        active_scope=None,
        row_version=record.row_version + 1,
    )
    store.set_states([seals.sealed(destroyed)], next_mark=mark_of(seals, [destroyed]))
    result = verify(sqlite_shop.again().seal)
    assert (result.complete, result.failed) == (True, 0)


def seals_of(shop):
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.states import KeyPurpose
    from eventseal.kms import EncryptionContext

    record = shop.seal.key_store.active("shop", ["store"], purpose=KeyPurpose.STORE)["store"]
    context = EncryptionContext(record.key_id, record.purpose, record.application)
    key = shop.kms.unwrap(record.wrappings[0], context)
    handle = DataKey(
        key,
        key_id=record.key_id,
        application=record.application,
        scope=record.scope,
        purpose=record.purpose,
        state=record.state,
    )
    return Seals(handle)


class FourThings:
    """Any object with the four is a store; this one says nothing of unsealed tables."""

    def __init__(self, seal):
        self.keyring, self.cipher = seal.keyring, seal.cipher
        self.key_store, self.datastore = seal.key_store, seal.datastore


def test_any_object_with_the_four_is_a_store(sqlite_shop):
    sqlite_shop.append(2)
    store = FourThings(sqlite_shop.seal)
    assert isinstance(store, SealedStore)
    assert verify(store).done == 2


def test_its_json_has_the_documented_members(sqlite_shop):
    item = sqlite_shop.append(2)[0]
    sqlite_shop.edit(item, topic="x")
    shown = verify(sqlite_shop.seal).to_json()
    assert json.loads(json.dumps(shown)) == shown
    assert list(shown) == [
        "verb",
        "complete",
        "done",
        "left",
        "failed",
        "seconds",
        "job_id",
        "by_table",
        "by_key",
        "by_kek",
        "failures",
    ]
    assert shown["by_key"] == {str(item.key_id): 1}
    assert shown["failures"] == [
        {
            "table": ITEMS,
            "row": {"sequence_id": str(item.sequence_id), "position": "0"},
            "key_id": str(item.key_id),
            "error": "IntegrityError",
        }
    ]
    assert isinstance(item.key_id, UUID)

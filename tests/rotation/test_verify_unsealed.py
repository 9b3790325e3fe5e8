"""Verify: rows that are no envelopes, and tables that it cannot read, fail unless a rule accepts them."""

from __future__ import annotations

import zlib
from uuid import uuid4

import pytest
from sqlalchemy.orm import DeclarativeBase
from tests.fixtures.eventsourcing_store import EVENTS

from eventseal.errors import ConfigurationError, JobError
from eventseal.rotation import begin_migration, finish_migration, migrate, reencrypt, status, verify
from eventseal.rotation.sealed_store import registered_tables
from eventseal.storage.items.registry import set_old_formats
from eventseal.storage.items.tables import IntegerSequencedColumns

ITEMS = "integer_sequenced_items"
BY_CHANCE = b"\x01\x03\x00" + bytes(16) + bytes(16 + 16 + 32)


def errors_of(result) -> list[str]:
    return [failure.error for failure in result.failures]


def steps(shop, **options) -> list[str]:
    return [step.command for step in read_status(shop, **options).next_steps]


def read_status(shop, **options):
    return status(shop.seal.key_store, shop.seal.datastore, "shop", **options)


@pytest.fixture
def mixed_shop(open_shop, store_url):
    """A store whose application seals some events, and stores others in plain."""
    return open_shop(store_url, always_encrypt=False)


@pytest.fixture
def library(open_library, store_url):
    return open_library(store_url)


# --- tables with a column of key ids ---


@pytest.mark.parametrize(
    "data", [b'{"customer":"forged"}', b"", BY_CHANCE], ids=["json", "empty", "by chance"]
)
def test_a_row_in_plain_is_a_failure_where_every_event_is_sealed(shop, data):
    items = shop.append(3)
    shop.edit(items[1], data=data, key_id=None)
    result = verify(shop.seal)
    assert (result.done, result.failed, result.by_table[ITEMS]["plain"]) == (2, 1, 0)
    assert errors_of(result) == ["EncryptionRequiredError"]
    assert result.failures[0].row == {"sequence_id": str(items[1].sequence_id), "position": "1"}


def test_items_in_plain_are_counted_apart_where_they_may_be(mixed_shop):
    mixed_shop.append(2)
    mixed_shop.append_plain(3)
    result = verify(mixed_shop.seal)
    assert (result.done, result.failed) == (2, 0)
    assert (result.by_table[ITEMS]["plain"], result.by_table[ITEMS]["unmigrated"]) == (3, 0)


@pytest.mark.parametrize("data", [b"", b"[5]", BY_CHANCE], ids=["empty", "no object", "binary"])
def test_what_no_reader_takes_for_plain_is_a_failure_there_too(mixed_shop, data):
    mixed_shop.append_plain(1, data=data)
    assert errors_of(verify(mixed_shop.seal)) == ["SerializationError"]


def test_a_store_that_does_not_say_is_one_that_seals_everything(mixed_shop):
    mixed_shop.append_plain(1)

    class FourThings:
        keyring, cipher = mixed_shop.seal.keyring, mixed_shop.seal.cipher
        key_store, datastore = mixed_shop.seal.key_store, mixed_shop.seal.datastore

    assert verify(FourThings()).failed == 1


@pytest.mark.slow
def test_old_items_fail_until_their_migration_begins_and_are_counted_apart_until_it_ends(
    open_shop, store_url
):
    shop = open_shop(store_url, old_formats=("plain-json",))
    shop.append(2)
    shop.append_plain(3)
    assert verify(shop.seal).failed == 3
    begin_migration(shop.seal)
    shop.append_plain(1, data=b"\x00 in no format")
    counts = verify(shop.seal).by_table[ITEMS]
    assert (counts["done"], counts["unmigrated"], counts["failed"], counts["plain"]) == (2, 3, 1, 0)
    assert verify(shop.again(old_formats=()).seal).failed == 4  # its readers take none of them either
    shop.execute(f"DELETE FROM {ITEMS} WHERE key_id IS NULL AND data != :json", json=b'{"amount":5}')
    migrate(shop.seal)
    finish_migration(shop.seal)
    assert verify(shop.seal).by_table[ITEMS]["done"] == 5
    shop.append_plain(1)
    assert verify(shop.seal).failed == 1


@pytest.mark.slow
def test_after_a_migration_every_row_is_an_envelope_whatever_the_setting(mixed_shop):
    mixed_shop.append(1)
    finish_migration(mixed_shop.seal)
    mixed_shop.append_plain(1)
    assert verify(mixed_shop.seal).failed == 1
    assert steps(mixed_shop, always_encrypt=False) == ["eventseal verify"]


@pytest.mark.slow
@pytest.mark.parametrize("column", [True, False], ids=["another key id", "no key id"])
def test_a_row_whose_column_and_envelope_disagree_is_tampered_whatever_became_of_the_key(shop, column):
    kept, other = shop.append(2)
    gone = shop.append(1, scope="subject:1")[0]
    shop.seal.keyring.shred("subject:1")
    shop.edit(gone, key_id=kept.key_id if column else None)
    unknown = other.data[:3] + uuid4().bytes + other.data[19:]
    shop.edit(other, data=unknown)
    result = verify(shop.seal)
    assert (result.done, result.by_table[ITEMS]["erased"]) == (1, 0)
    assert errors_of(result) == ["IntegrityError", "IntegrityError"]


# --- tables of the eventsourcing library ---


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_of_the_first_byte_is_a_failure(open_library, sqlite_url, bit):
    library = open_library(sqlite_url)
    library.append(2)
    (event,) = library.append()
    flipped = bytes((event.state[0] ^ 1 << bit,)) + event.state[1:]
    library.execute(
        f"UPDATE {EVENTS} SET state = :flipped WHERE state = :state", flipped=flipped, state=event.state
    )
    result = verify(library.seal)
    assert (result.done, errors_of(result)) == (2, ["UnknownFormatError"])


@pytest.mark.slow
def test_states_that_were_emptied_are_failures(library):
    library.append(20)
    library.execute(f"UPDATE {EVENTS} SET state = :nothing", nothing=b"")
    result = verify(library.seal)
    assert (result.done, result.failed) == (0, 20)


@pytest.mark.slow
@pytest.mark.parametrize("always_encrypt", [True, False])
def test_events_in_plain_are_failures_until_a_migration_begins(open_library, store_url, always_encrypt):
    """The mapper for the library's tables reads nothing in plain, whatever the setting."""
    library = open_library(store_url, old_formats=("plain-json",), always_encrypt=always_encrypt)
    library.append()
    library.append_plain(3)
    assert verify(library.seal).failed == 3
    assert "eventseal verify" in [step.command for step in library_status(library, always_encrypt).next_steps]
    begin_migration(library.seal)
    counts = verify(library.seal).by_table[EVENTS]
    assert (counts["done"], counts["unmigrated"], counts["failed"]) == (1, 3, 0)
    assert [step.command for step in library_status(library, always_encrypt).next_steps] == [
        "eventseal migrate"
    ]


def library_status(library, always_encrypt):
    seal = library.seal
    return status(seal.key_store, seal.datastore, "shop", always_encrypt=always_encrypt)


@pytest.mark.slow
@pytest.mark.postgres
def test_tables_of_events_by_tags_are_named_as_not_verified(postgres_shop):
    postgres_shop.append(2)
    postgres_shop.execute("CREATE TABLE dcb_events (id BIGSERIAL, type TEXT, data BYTEA, tags TEXT[])")
    result = verify(postgres_shop.seal)
    assert (result.done, result.failed) == (2, 1)
    (failure,) = result.failures
    assert (failure.table, failure.row) == ("dcb_events", {})
    assert "unsealed_tables" in failure.remedy
    assert verify(postgres_shop.seal, tables=[ITEMS]).failed == 0
    assert verify(postgres_shop.again(unsealed_tables=("dcb_events",)).seal).failed == 0


# --- what is not there ---


@pytest.mark.slow
def test_where_no_configured_table_of_the_library_is_there_nothing_is_proved(open_library, store_url):
    library = open_library(store_url, made=False, old_formats=("plain-json",))
    library.make_ours()
    with pytest.raises(ConfigurationError, match=f"no table of eventsourcing_tables .* {EVENTS}"):
        verify(library.seal)
    with pytest.raises(ConfigurationError, match=EVENTS):
        finish_migration(library.seal)


@pytest.mark.slow
def test_a_migration_does_not_end_while_one_of_the_configured_tables_is_missing(open_library, store_url):
    library = open_library(store_url, old_formats=("plain-json",))
    begin_migration(library.seal)
    missing = library.open(eventsourcing_tables=[*library.tables, "elsewhere_events"])
    with pytest.raises(ConfigurationError, match="elsewhere_events") as refused:
        finish_migration(missing)
    assert "eventsourcing_tables" in refused.value.remedy
    assert any(table.old_formats for table in registered_tables(missing.datastore, "shop"))
    missing.close()
    assert finish_migration(library.seal).complete


@pytest.mark.slow
def test_a_migration_does_not_end_while_an_old_item_hides_behind_a_key_id(open_shop, store_url):
    shop = open_shop(store_url, old_formats=("plain-json",))
    kept = shop.append(1)[0]
    shop.append_plain(1)
    begin_migration(shop.seal)
    shop.execute(f"UPDATE {ITEMS} SET key_id = :key WHERE key_id IS NULL", key=shop.raw(kept.key_id))
    shop.append_plain(1)
    assert migrate(shop.seal).done == 1
    with pytest.raises(JobError, match=f"not envelopes under a key of application shop: 1 item in {ITEMS}"):
        finish_migration(shop.seal)
    assert verify(shop.seal).failed == 1


def test_a_record_class_whose_table_was_never_made_is_named(open_shop, sqlite_url, shop):
    class Base(DeclarativeBase):
        pass

    class InvoiceRecord(IntegerSequencedColumns, Base):
        __tablename__ = "invoices"
        __collection__ = "invoices"

    shop = open_shop(sqlite_url)
    shop.seal.datastore.tables = (*shop.seal.datastore.tables, InvoiceRecord)
    for verb in (verify, finish_migration):
        with pytest.raises(ConfigurationError, match="invoices") as refused:
            verb(shop.seal)
        assert "eventseal init" in refused.value.remedy


# --- what the reports say of it ---


def test_status_says_that_rows_in_plain_are_taken_by_no_reader(shop):
    shop.append(1)
    shop.append_plain(2)
    (step,) = read_status(shop).next_steps
    assert step.command == "eventseal verify"
    assert step.reason.startswith(f"no reader accepts 2 items of {ITEMS}. Either an item is not encrypted")
    assert steps(shop, always_encrypt=False) == []
    accept(shop, "plain-json")
    assert steps(shop) == ["eventseal migrate"]


@pytest.mark.parametrize(
    ("names", "data", "wrong"),
    [
        (["plain-json"], b'\n {"amount":5}', 0),
        (["plain-json"], b"\xff", 1),
        (["plain-json+zlib"], zlib.compress(b"{}"), 0),
        (["plain-json", "eventsourcing-gcm"], b"\xff in any bytes", 0),
    ],
    ids=["json", "no json", "zlib", "ciphertext"],
)
def test_status_counts_no_old_item_that_its_format_may_begin_like(shop, names, data, wrong):
    shop.append_plain(data=data)
    accept(shop, *names)
    assert read_status(shop).unreadable == ({ITEMS: wrong} if wrong else {})


@pytest.mark.parametrize("edited", ["CAST(data AS TEXT)", "CAST('{}' AS TEXT)"])
def test_status_counts_text_where_every_format_is_accepted(sqlite_shop, edited):
    sqlite_shop.append(1)
    accept(sqlite_shop, "eventsourcing-gcm")
    sqlite_shop.execute(f"UPDATE {ITEMS} SET data = {edited}, key_id = NULL")
    assert read_status(sqlite_shop).unreadable == {ITEMS: 1}


def accept(shop, *names):
    tables = registered_tables(shop.seal.datastore, "shop")
    with shop.seal.datastore.key_engine.begin() as connection:
        for table in tables:
            set_old_formats(connection, table, names)


@pytest.mark.slow
def test_rows_in_plain_fail_in_a_reencryption_too(shop):
    shop.append_plain(2)
    assert (reencrypt(shop.seal).failed, verify(shop.seal).failed) == (2, 2)

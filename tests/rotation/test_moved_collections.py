"""Tables of one collection: refused, found, and moved to a collection of their own."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from eventseal.cipher import ItemContext
from eventseal.cipher.context import ItemBinder
from eventseal.cipher.envelopes import seal_under
from eventseal.erasure import shred
from eventseal.errors import ConfigurationError, IntegrityError, KmsUnavailableError
from eventseal.eventstore.store import EventStore
from eventseal.items import Masked, PersonalData, SequencedItemMapper
from eventseal.rotation import list_jobs, reencrypt, rotate_keys, verify
from eventseal.rotation.jobs import passes
from eventseal.storage import SnapshotRecord, TimestampSequencedItemRecord
from eventseal.suites.cbc_hmac import A256CBC_HS512
from eventseal.suites.envelope import CompressionId

LOGGED = "timestamp_sequenced_items"
NEW, OLD = "timestamp_items", "items"


def settle(shop):
    shop.execute("UPDATE eventseal_key_changes SET refresh_interval = 0")


def test_a_row_that_is_copied_from_one_table_to_the_other_does_not_open(shop):
    (item,) = shop.append()
    shop.strategy(TimestampSequencedItemRecord).append(item._replace(position=Decimal(0)))
    result = verify(shop.seal)
    assert (result.done, result.failed) == (1, 1)
    assert result.failures[0].error == "IntegrityError"
    assert result.by_table[LOGGED]["failed"] == 1


class Noted:
    """An event in order of time, with personal data of two subjects: a customer, and the stream itself."""

    def __init__(self, originator_id: UUID, timestamp: Decimal, name: str, note: str) -> None:
        self.originator_id = originator_id
        self.timestamp = timestamp
        self.customer = name
        self.name = name
        self.note = note

    name: Annotated[str, PersonalData(subject="customer")]
    note: Annotated[str, PersonalData(subject="originator_id")]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Noted) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def mapper(shop, collection=NEW, **options):
    return SequencedItemMapper(
        cipher=shop.seal.cipher,
        sequence_id_attr_name="originator_id",
        position_attr_name="timestamp",
        collection=collection,
        **options,
    )


def store(shop, **options):
    return EventStore(shop.strategy(TimestampSequencedItemRecord), mapper(shop, **options))


def append_old(shop, many=6, **options):
    """Append events as an earlier release did, which gave both tables of events one collection."""
    stream = uuid4()
    events = [Noted(stream, Decimal(n), f"customer {n}", "a note") for n in range(many)]
    items = mapper(shop, OLD, **options).to_sequenced_items(events)
    shop.strategy(TimestampSequencedItemRecord).append(items)
    shop.execute(f"UPDATE eventseal_sealed_tables SET collection = '{OLD}' WHERE table_name = '{LOGGED}'")
    return events


def read_again(shop, events, **options):
    return store(shop, **options).get_domain_events(events[0].originator_id)


def move(shop, **options):
    return reencrypt(shop.seal, tables=[LOGGED], to_collection=NEW, **options)


def edit(shop, item, **values):
    """Change columns of one row behind everybody's back."""
    table = TimestampSequencedItemRecord.__table__
    there = (table.c.sequence_id == item.sequence_id) & (table.c.position == item.position)
    with shop.seal.datastore.engine.begin() as connection:
        assert connection.execute(update(table).where(there).values(**values)).rowcount == 1


def collection_of(shop):
    (said,) = shop.execute(f"SELECT collection FROM eventseal_sealed_tables WHERE table_name = '{LOGGED}'")
    return said[0]


def test_a_table_of_an_earlier_release_stays_readable_and_accepts_both_names(sqlite_shop):
    events = append_old(sqlite_shop)
    later = Noted(events[0].originator_id, Decimal(9), "Ada", "later")
    store(sqlite_shop).append(later)
    assert read_again(sqlite_shop, events) == [*events, later]
    counts = verify(sqlite_shop.seal).by_table[LOGGED]
    assert (counts["done"], counts.get("former", 0), counts["failed"]) == (1, 6, 0)


def test_no_other_table_accepts_both_names(sqlite_shop):
    append_old(sqlite_shop)
    (item,) = sqlite_shop.append(record=TimestampSequencedItemRecord)
    sqlite_shop.strategy().append(item._replace(position=0))
    assert verify(sqlite_shop.seal).by_table["integer_sequenced_items"]["failed"] == 1


def test_the_registry_alone_opens_nothing(sqlite_shop):
    events = append_old(sqlite_shop)
    (snapshot,) = sqlite_shop.append(record=SnapshotRecord)
    sqlite_shop.strategy().append(snapshot)
    for table in ("integer_sequenced_items", LOGGED):
        sqlite_shop.execute(
            f"UPDATE eventseal_sealed_tables SET collection = 'snapshots' WHERE table_name = '{table}'"
        )
    assert sqlite_shop.strategy().other_collections("shop") == []
    with pytest.raises(IntegrityError):
        read_again(sqlite_shop, events)
    by_table = verify(sqlite_shop.seal).by_table
    assert by_table["integer_sequenced_items"]["failed"] == 1
    assert (by_table[LOGGED].get("former", 0), by_table[LOGGED]["failed"]) == (0, 6)


def test_setting_up_again_leaves_the_name_that_items_are_bound_to(sqlite_shop):
    events = append_old(sqlite_shop)
    sqlite_shop.seal.datastore.setup_tables(application="shop")
    assert collection_of(sqlite_shop) == OLD
    assert read_again(sqlite_shop, events) == events
    sqlite_shop.execute(f"DELETE FROM {LOGGED}")
    sqlite_shop.seal.datastore.setup_tables(application="shop")
    assert collection_of(sqlite_shop) == NEW


@pytest.mark.slow
def test_a_moved_table_accepts_the_new_name_alone(shop):
    events = append_old(shop)
    before = shop.strategy(TimestampSequencedItemRecord).get_items(events[0].originator_id)
    rotate_keys(shop.seal)
    settle(shop)
    result = move(shop, batch=2)
    assert (result.complete, result.done, result.left, result.failed) == (True, 6, 0, 0)
    assert collection_of(shop) == NEW
    assert read_again(shop, events) == events
    active = shop.seal.key_store.active("shop", ["application"])["application"].key_id
    items = shop.strategy(TimestampSequencedItemRecord).get_items(events[0].originator_id)
    assert {item.key_id for item in items} == {active}
    edit(shop, items[1], data=before[1].data, key_id=before[1].key_id)
    with pytest.raises(IntegrityError):
        read_again(shop, events)
    counts = verify(shop.seal).by_table[LOGGED]
    assert (counts["done"], counts.get("former", 0), counts["failed"]) == (5, 0, 1)


@pytest.mark.slow
def test_a_move_that_was_stopped_goes_on_and_both_names_are_accepted_meanwhile(shop, monkeypatch):
    events = append_old(shop)
    reseal_many, calls = shop.seal.cipher.reseal_many, []

    def hooked(page, collection, **named):
        calls.append(page)
        if len(calls) > 1:
            raise KmsUnavailableError("the KMS went away")
        return reseal_many(page, collection, **named)

    with monkeypatch.context() as patched:
        patched.setattr(shop.seal.cipher, "reseal_many", hooked)
        with pytest.raises(KmsUnavailableError):
            move(shop, batch=2)
    assert collection_of(shop) == OLD
    assert read_again(shop, events) == events
    counts = verify(shop.seal).by_table[LOGGED]
    assert (counts["done"], counts.get("former", 0), counts["failed"]) == (2, 4, 0)
    (job,) = list_jobs(shop.seal)
    assert reencrypt(shop.seal).failed == 0  # it moves no item whose key fits, and does not end the move
    result = reencrypt(shop.seal, resume=job.job_id)
    assert (result.job_id, result.done, result.complete) == (job.job_id, 6, True)
    assert collection_of(shop) == NEW
    assert read_again(shop, events) == events


def test_a_row_that_is_changed_beside_the_move_is_looked_at_again(shop, monkeypatch):
    events = append_old(shop, many=1)
    reseal_many, calls = shop.seal.cipher.reseal_many, []

    def hooked(page, collection, **named):
        outcomes = reseal_many(page, collection, **named)
        if not calls:
            (again,) = mapper(shop, OLD).to_sequenced_items(events)
            edit(shop, again, data=again.data)
        calls.append(page)
        return outcomes

    monkeypatch.setattr(shop.seal.cipher, "reseal_many", hooked)
    assert move(shop).done == 1
    assert collection_of(shop) == NEW
    assert read_again(shop, events) == events


def test_what_does_not_open_keeps_the_table_from_being_moved(sqlite_shop):
    events = append_old(sqlite_shop)
    broken, *_ = sqlite_shop.strategy(TimestampSequencedItemRecord).get_items(events[0].originator_id)
    edit(sqlite_shop, broken, data=broken.data[:-1] + bytes([broken.data[-1] ^ 1]))
    result = move(sqlite_shop)
    assert (result.done, result.failed) == (5, 1)
    assert collection_of(sqlite_shop) == OLD
    edit(sqlite_shop, broken, data=broken.data)
    assert move(sqlite_shop).done == 1
    assert collection_of(sqlite_shop) == NEW


def test_a_re_encryption_beside_a_move_binds_to_the_new_name(sqlite_shop):
    events = append_old(sqlite_shop)
    rotate_keys(sqlite_shop.seal)
    settle(sqlite_shop)
    assert reencrypt(sqlite_shop.seal).done == 6
    assert verify(sqlite_shop.seal).by_table[LOGGED].get("former", 0) == 0
    assert move(sqlite_shop).done == 0
    assert collection_of(sqlite_shop) == NEW
    assert read_again(sqlite_shop, events) == events


@pytest.mark.slow
def test_a_forgery_under_a_compromised_key_is_not_moved(sqlite_shop):
    events = append_old(sqlite_shop)
    (old,) = sqlite_shop.strategy(TimestampSequencedItemRecord).get_items(events[0].originator_id)[:1]
    rotate_keys(sqlite_shop.seal, compromised=True)
    settle(sqlite_shop)
    forged = Noted(uuid4(), Decimal(0), "Eve", "forged")
    key = sqlite_shop.seal.keyring.opening_keys([old.key_id])[old.key_id]
    place = ItemBinder("shop").bind(ItemContext(forged.originator_id, Decimal(0), old.topic, OLD))
    ready = [(CompressionId.NONE, b"{}", place)]
    (sealed,) = seal_under(key, A256CBC_HS512, ready, application="shop")
    sqlite_shop.execute(
        f"INSERT INTO {LOGGED} (sequence_id, position, topic, data, key_id) "
        f"SELECT :stream, position, topic, :data, key_id FROM {LOGGED} WHERE position = 0",
        stream=sqlite_shop.raw(forged.originator_id),
        data=sealed,
    )
    result = move(sqlite_shop)
    assert (result.done, result.failed) == (6, 1)
    assert result.by_table[LOGGED]["suspected"] == 1
    assert collection_of(sqlite_shop) == OLD


def test_a_field_whose_subject_was_erased_stays_a_mask(sqlite_shop):
    events = append_old(sqlite_shop)
    shred(sqlite_shop.seal, "subject:customer 3")
    assert move(sqlite_shop).failed == 0
    assert collection_of(sqlite_shop) == NEW
    read = read_again(sqlite_shop, events)
    assert isinstance(read[3].name, Masked)
    assert [event.note for event in read] == ["a note"] * 6
    assert read[:3] == events[:3]


def test_fields_inside_items_in_plain_keep_the_table_from_being_moved(sqlite_shop):
    events = append_old(sqlite_shop, always_encrypt=False)
    assert read_again(sqlite_shop, events, always_encrypt=False) == events
    result = move(sqlite_shop.again(always_encrypt=False))
    assert (result.done, result.failed) == (0, 6)
    assert "are still bound to 'items'" in result.failures[0].message
    assert collection_of(sqlite_shop) == OLD


def test_a_damaged_row_keeps_the_table_from_being_moved(sqlite_shop):
    append_old(sqlite_shop)  # restored from a backup, it is bound to the former name
    sqlite_shop.execute(f"UPDATE {LOGGED} SET data = x'' WHERE rowid = 1")
    result = move(sqlite_shop)
    assert (result.done, result.failed) == (5, 1)
    assert collection_of(sqlite_shop) == OLD


def test_a_dry_run_of_a_move_counts(sqlite_shop):
    append_old(sqlite_shop)
    assert move(sqlite_shop, dry_run=True).left == 6
    assert (collection_of(sqlite_shop), list_jobs(sqlite_shop.seal)) == (OLD, [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tables": [LOGGED, "snapshots"]}, "one table"),
        ({"tables": None}, "one table"),
        ({"keys": []}, "one table"),
        ({"to_collection": "elsewhere"}, "record class"),
    ],
)
def test_a_move_that_cannot_be_is_refused(sqlite_shop, arguments, said):
    append_old(sqlite_shop)
    with pytest.raises(ConfigurationError, match=said):
        reencrypt(sqlite_shop.seal, **{"tables": [LOGGED], "to_collection": NEW, **arguments})
    assert (collection_of(sqlite_shop), list_jobs(sqlite_shop.seal)) == (OLD, [])


def test_four_passes_over_leave_it_for_the_next_run(sqlite_shop, monkeypatch):
    append_old(sqlite_shop)
    with monkeypatch.context() as patched:
        patched.setattr(passes, "MOST_PASSES", 0)
        assert move(sqlite_shop).unfinished
    assert collection_of(sqlite_shop) == OLD
    assert move(sqlite_shop).done == 6

"""The event store: events in and out, all or none."""

from decimal import Decimal
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from sqlalchemy import select, text

from eventseal.cipher import AESCipher, inspect
from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    ItemNotFoundError,
    KeyClosedError,
    SequencedItemConflictError,
    SerializationError,
)
from eventseal.eventstore import DomainEvent, EventStore, Logged
from eventseal.items import SequencedItemMapper
from eventseal.keys import CachePolicy, Keyring
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyKeyStore,
    TimestampSequencedItemRecord,
)
from eventseal.storage.items.fences import close_fence
from eventseal.testing import FakeKms


class Happened(DomainEvent):
    pass


class Other(NamedTuple):
    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    key_id: Any


class Sealed(Happened):
    __always_encrypt__ = True


def happened(stream, *versions, **attributes):
    return [Happened(originator_id=stream, originator_version=n, **attributes) for n in versions]


def versions(events):
    return [event.originator_version for event in events]


def test_events_come_back_in_order_and_by_range(store):
    stream = uuid4()
    events = happened(stream, 0, 1, 2, 3, 4, foo="bar")
    store.append(events[0])
    store.append(events[1:3])
    store.append(tuple(events[3:]))

    assert store.get_domain_events(stream) == events
    assert versions(store.get_domain_events(stream, gt=1)) == [2, 3, 4]
    assert versions(store.get_domain_events(stream, gte=1, lt=3)) == [1, 2]
    assert versions(store.get_domain_events(stream, lte=1)) == [0, 1]
    assert versions(store.get_domain_events(stream, limit=2)) == [0, 1]
    assert versions(store.get_domain_events(stream, limit=2, is_ascending=False)) == [4, 3]
    assert store.get_domain_events(uuid4()) == []


def test_one_event_is_found_by_its_position(store):
    stream = uuid4()
    store.append(happened(stream, 0, 1))

    assert store.get_domain_event(stream, eq=1).originator_version == 1
    with pytest.raises(ItemNotFoundError):
        store.get_domain_event(stream, eq=2)


def test_the_most_recent_event_is_found(store):
    stream = uuid4()
    store.append(happened(stream, 0, 1, 2))

    assert store.get_most_recent_event(stream).originator_version == 2
    assert store.get_most_recent_event(stream, lt=2).originator_version == 1
    assert store.get_most_recent_event(stream, lte=0).originator_version == 0
    assert store.get_most_recent_event(stream, lt=0) is None


@pytest.mark.parametrize("page_size", [1, 2, 3, 4, 1000])
def test_a_stream_is_read_in_pages(store, page_size):
    stream = uuid4()
    events = happened(stream, *range(6))
    store.append(events)

    assert list(store.iterate_domain_events(stream, page_size=page_size)) == events
    assert versions(store.iterate_domain_events(stream, gt=0, lt=5, page_size=page_size)) == [1, 2, 3, 4]
    assert versions(store.iterate_domain_events(stream, lte=2, page_size=page_size)) == [0, 1, 2]
    assert list(store.iterate_domain_events(uuid4(), page_size=page_size)) == []


def test_a_page_is_read_when_it_is_wanted(memory, cipher):
    store = EventStore(memory, SequencedItemMapper(cipher=cipher))
    stream = uuid4()
    store.append(happened(stream, *range(5)))

    events = store.iterate_domain_events(stream, page_size=2)
    assert [next(events).originator_version for _ in range(2)] == [0, 1]
    assert memory.reads == [2]
    assert versions(events) == [2, 3, 4]
    assert memory.reads == [2, 2, 2]


@pytest.mark.parametrize("page_size", [1, 2, 1000])
def test_the_events_of_all_streams_are_read_in_pages(store, page_size):
    streams = sorted((uuid4() for _ in range(3)), key=lambda stream: stream.bytes)
    events = [event for stream in streams for event in happened(stream, 0, 1)]
    store.append(events[::-1])

    assert list(store.all_domain_events(page_size=page_size)) == events


def test_a_page_of_all_streams_is_opened_at_once(memory, cipher, monkeypatch):
    store = EventStore(memory, SequencedItemMapper(cipher=cipher))
    store.append(happened(uuid4(), *range(5)))
    opened = []
    open_many = cipher.open_many
    monkeypatch.setattr(cipher, "open_many", lambda items: opened.append(len(items)) or open_many(items))

    assert len(list(store.all_domain_events(page_size=2))) == 5
    assert opened == [2, 2, 1]


def test_appending_nothing_does_nothing(store):
    store.append([])
    assert list(store.all_domain_events()) == []


def test_events_in_order_of_time(strategy, cipher):
    store = EventStore(strategy(TimestampSequencedItemRecord), SequencedItemMapper(cipher=cipher))
    stream = uuid4()
    events = [Logged(originator_id=stream, message=f"{n}") for n in range(5)]
    events.append(Logged(originator_id=stream, timestamp=Decimal("4000000000.000001")))
    events.append(Logged(originator_id=stream, timestamp=Decimal(4000000001)))
    store.append(events)

    assert store.get_domain_events(stream) == events
    assert list(store.iterate_domain_events(stream, page_size=2)) == events
    assert store.get_domain_events(stream, gt=events[4].timestamp) == events[5:]


def test_a_position_that_is_taken_is_a_conflict_and_nothing_of_the_batch_is_written(store):
    stream = uuid4()
    store.append(happened(stream, 1))

    with pytest.raises(SequencedItemConflictError):
        store.append(happened(stream, 0, 1, 2))
    assert versions(store.get_domain_events(stream)) == [1]


def count(datastore, record_class=IntegerSequencedItemRecord):
    with datastore.engine.connect() as connection:
        return len(connection.execute(select(record_class.__table__)).all())


@pytest.mark.parametrize("cipher", [None, AESCipher(b"0123456789abcdef")])
@pytest.mark.parametrize(
    "bad",
    [
        {"originator_version": 1.0},
        {"originator_version": True},
        {"originator_version": 2**63},
        {"originator_version": Decimal("1.0000001")},
        {"originator_version": "1"},
        {"originator_id": 1.5},
        {"originator_id": "no uuid"},
        {"foo": object()},
        {"foo": {"deep": [float("nan")]}},
        {"foo": "\ud800"},
    ],
)
def test_nothing_of_a_batch_is_written_if_one_event_cannot_be(datastore, strategy, cipher, bad):
    store = EventStore(strategy(), SequencedItemMapper(cipher=cipher))
    stream = uuid4()
    events = happened(stream, 0)
    events += [Happened(**{"originator_id": stream, "originator_version": 1, **bad}), *happened(stream, 2)]

    with pytest.raises(SerializationError):
        store.append(events)
    assert count(datastore) == 0


def test_nothing_of_a_batch_is_written_if_one_event_may_not_be_in_plain(datastore, strategy):
    store = EventStore(strategy(), SequencedItemMapper())

    with pytest.raises(EncryptionRequiredError):
        store.append([*happened(uuid4(), 0), Sealed(originator_id=uuid4(), originator_version=0)])
    assert count(datastore) == 0


def test_a_bad_row_is_told_and_not_skipped(datastore, store):
    stream = uuid4()
    store.append(happened(stream, 0, 1, 2))
    with datastore.engine.begin() as connection:
        connection.execute(
            text("UPDATE integer_sequenced_items SET data = :data WHERE position = 1"), {"data": b"{}"}
        )

    for read in (store.get_domain_events, lambda stream: list(store.iterate_domain_events(stream))):
        with pytest.raises(EventSealError) as caught:
            read(stream)
        assert caught.value.position == 1


# --- pairs that do not fit ---


def test_the_mapper_and_the_table_are_of_one_collection(strategy, cipher):
    with pytest.raises(ConfigurationError, match="'items', the table's is 'snapshots'") as caught:
        EventStore(strategy(SnapshotRecord), SequencedItemMapper(cipher=cipher))
    assert "collection='snapshots'" in caught.value.remedy
    EventStore(strategy(SnapshotRecord), SequencedItemMapper(cipher=cipher, collection="snapshots"))


def test_the_mapper_and_the_strategy_are_of_one_item_class(strategy, cipher):
    with pytest.raises(ConfigurationError, match="creates Other items, but the strategy takes SequencedItem"):
        EventStore(strategy(), SequencedItemMapper(Other, cipher=cipher))
    stream = uuid4()
    store = EventStore(strategy(sequenced_item_class=Other), SequencedItemMapper(Other, cipher=cipher))
    store.append(happened(stream, 0, 1, 2))
    assert versions(store.iterate_domain_events(stream, page_size=2)) == [0, 1, 2]


# --- a key that is closed between sealing and writing ---


def test_events_whose_key_was_closed_meanwhile_are_sealed_again_and_written(datastore, strategy):
    kms, keys = FakeKms(), SQLAlchemyKeyStore(datastore)
    writer, rotator = (
        Keyring(kms=kms, key_store=keys, application="shop", cache=CachePolicy(refresh_interval=3600))
        for _ in range(2)
    )
    store = EventStore(strategy(), SequencedItemMapper(cipher=AESCipher(writer)))
    stream = uuid4()
    store.append(happened(stream, 0, foo="before"))
    old = store.active_record_strategy.get_item(stream, eq=0).key_id
    rotator.rotate()
    with datastore.engine.begin() as connection:
        close_fence(connection, old)

    store.append(happened(stream, 1, 2, foo="after"))

    items = store.active_record_strategy.get_items(stream)
    assert [item.key_id == old for item in items] == [True, False, False]
    assert inspect(items[1].data).key_id == items[1].key_id
    assert [event.foo for event in store.get_domain_events(stream)] == ["before", "after", "after"]


def test_the_keyring_is_refreshed_once_and_a_second_refusal_is_told(memory, cipher):
    store = EventStore(memory, SequencedItemMapper(cipher=cipher))
    refreshed = []
    cipher.refresh = lambda: refreshed.append(1)
    stream = uuid4()
    memory.faults = [KeyClosedError("closed")]
    store.append(happened(stream, 0))
    assert len(memory.items) == len(refreshed) == 1

    memory.faults = [KeyClosedError("closed"), KeyClosedError("closed again")]
    with pytest.raises(KeyClosedError, match="closed again"):
        store.append(happened(stream, 1))
    assert len(refreshed) == 2
    assert len(memory.items) == 1


def test_the_events_are_sealed_again_and_not_only_sent_again(memory, cipher):
    sent = []
    memory.append = sent.append
    store = EventStore(memory, SequencedItemMapper(cipher=cipher))

    def append(items):
        sent.append(items)
        if len(sent) == 1:
            raise KeyClosedError("closed")

    memory.append = append
    store.append(happened(uuid4(), 0))

    assert sent[0][0].data != sent[1][0].data


def test_without_a_cipher_a_closed_key_is_told(memory):
    memory.faults = [KeyClosedError("closed")]
    with pytest.raises(KeyClosedError):
        EventStore(memory, SequencedItemMapper()).append(happened(uuid4(), 0))


def test_an_event_that_was_moved_by_the_database_is_refused(datastore, store):
    one, two = uuid4(), uuid4()
    store.append([*happened(one, 0), *happened(two, 1)])
    with datastore.engine.begin() as connection:
        connection.execute(
            text("UPDATE integer_sequenced_items SET sequence_id = :one WHERE position = 1"),
            {"one": one.bytes},
        )

    with pytest.raises(IntegrityError):
        store.get_domain_events(one)

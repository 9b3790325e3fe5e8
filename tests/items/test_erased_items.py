"""Items whose own key was shredded: raised, masked or skipped, as the reader chose, and only then."""

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventseal.cipher import AESCipher
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KeyDestroyedError,
    KmsUnavailableError,
    SerializationError,
)
from eventseal.items import Erased, SequencedItem, SequencedItemMapper, topic_of
from eventseal.keys import Keyring
from eventseal.keys.states import KeyPurpose


@dataclass(frozen=True)
class Placed:
    originator_id: UUID
    originator_version: int
    customer: str


class OfCustomer(Placed):
    def __key_scope__(self) -> str:
        return f"subject:{self.customer}"


def by_stream(item: Any) -> str:
    return f"stream:{item.sequence_id}"


def of_stream(event: Any) -> str:
    return f"stream:{event.originator_id}"


@pytest.fixture
def events():
    first, second = uuid4(), uuid4()
    return [Placed(first, 0, "a"), Placed(second, 0, "b"), Placed(first, 1, "c")]


def stored(make_mapper, events, keyring, **options):
    """Seals events, and shreds the scope of the first one."""
    mapper = make_mapper(key_scope=of_stream, **options)
    items = mapper.to_sequenced_items(events)
    keyring.shred(of_stream(events[0]))
    return mapper, items


def test_an_erased_item_is_raised_unless_the_reader_chose_otherwise(make_mapper, keyring, events):
    mapper, items = stored(make_mapper, events, keyring)

    with pytest.raises(KeyDestroyedError) as caught:
        mapper.from_sequenced_items(items)
    assert (caught.value.position, caught.value.destroyed_by) == (0, "shredded")
    assert mapper.from_sequenced_item(items[1]) == events[1]


def test_an_erased_item_is_masked_by_a_typed_event(make_mapper, keyring, events):
    mapper, items = stored(make_mapper, events, keyring, on_erased="mask", erased_scope=by_stream)

    first, second, third = mapper.from_sequenced_items(items)

    assert second == events[1]
    assert first == Erased(
        sequence_id=events[0].originator_id,
        position=0,
        topic=topic_of(Placed),
        key_id=items[0].key_id,
        scope=of_stream(events[0]),
    )
    assert (third.originator_id, third.originator_version) == (events[0].originator_id, 1)
    assert mapper.key_scope_of(first) == of_stream(events[0])


def test_an_erased_item_is_skipped(make_mapper, keyring, events):
    mapper, items = stored(make_mapper, events, keyring, on_erased="skip", erased_scope=by_stream)

    assert mapper.from_sequenced_items(items) == [events[1]]
    assert mapper.from_sequenced_item(items[0]) is None


def test_a_key_scope_that_is_one_string_says_what_is_expected(make_mapper, keyring, events):
    mapper = make_mapper(key_scope="tenant:acme", on_erased="mask")
    items = mapper.to_sequenced_items(events)
    keyring.shred("tenant:acme")

    assert [type(event) for event in mapper.from_sequenced_items(items)] == [Erased] * 3


@pytest.mark.parametrize("choice", ["mask", "skip"])
def test_without_an_expected_scope_an_erased_item_is_raised(make_mapper, keyring, events, choice):
    mapper, items = stored(make_mapper, events, keyring, on_erased=choice)

    with pytest.raises(KeyDestroyedError):
        mapper.from_sequenced_items(items)


def test_a_classs_own_scope_is_told_by_the_item(make_mapper, keyring):
    event = OfCustomer(uuid4(), 0, "c-1")
    mapper = make_mapper(on_erased="mask", erased_scope=lambda item: "subject:c-1")
    item = mapper.to_sequenced_item(event)
    keyring.shred("subject:c-1")

    assert type(mapper.from_sequenced_item(item)) is Erased


@pytest.mark.parametrize("choice", ["mask", "skip"])
def test_a_tombstone_of_another_scope_is_no_erasure(make_mapper, keyring, events, choice):
    mapper, items = stored(
        make_mapper, events, keyring, on_erased=choice, erased_scope=lambda item: "stream:another"
    )

    with pytest.raises(KeyDestroyedError):
        mapper.from_sequenced_item(items[0])


@pytest.mark.parametrize("names_it", [True, False])
def test_the_applications_own_scope_is_an_erasure_only_where_it_is_named(
    make_mapper, keyring, names_it, monkeypatch
):
    named = {"erased_scope": lambda item: "application"} if names_it else {}
    mapper = make_mapper(on_erased="mask", **named)
    item = mapper.to_sequenced_item(Placed(uuid4(), 0, "a"))
    gone = KeyDestroyedError("gone", key_id=item.key_id, scope="application", destroyed_by="shredded")
    monkeypatch.setattr(keyring, "opening_keys", lambda key_ids, **_: dict.fromkeys(key_ids, gone))

    if names_it:
        assert type(mapper.from_sequenced_item(item)) is Erased
    else:
        with pytest.raises(KeyDestroyedError):
            mapper.from_sequenced_item(item)


def test_a_retired_key_is_no_erasure(make_mapper, keyring, events, monkeypatch):
    mapper = make_mapper(key_scope=of_stream, on_erased="mask", erased_scope=by_stream)
    item = mapper.to_sequenced_item(events[0])
    gone = KeyDestroyedError("gone", key_id=item.key_id, scope=of_stream(events[0]), destroyed_by="retired")
    monkeypatch.setattr(keyring, "opening_keys", lambda key_ids, **_: dict.fromkeys(key_ids, gone))

    with pytest.raises(KeyDestroyedError):
        mapper.from_sequenced_item(item)


def test_an_outage_is_no_erasure(make_mapper, kms, key_store, events):
    item = make_mapper(key_scope=of_stream).to_sequenced_item(events[0])
    cold = SequencedItemMapper(
        cipher=AESCipher(Keyring(kms, key_store, application="shop")),
        key_scope=of_stream,
        on_erased="skip",
        erased_scope=by_stream,
    )
    kms.fail_always()

    with pytest.raises(KmsUnavailableError):
        cold.from_sequenced_item(item)


def test_a_header_that_names_another_rows_tombstone_is_no_erasure(make_mapper, keyring, events):
    mapper, items = stored(make_mapper, events, keyring, on_erased="mask", erased_scope=by_stream)
    forged = items[1]._replace(data=items[0].data[:19] + items[1].data[19:])

    with pytest.raises(IntegrityError):
        mapper.from_sequenced_item(forged)
    with pytest.raises(KeyDestroyedError):  # the row's key id too: it is not the scope of that stream
        mapper.from_sequenced_item(forged._replace(key_id=items[0].key_id))


def test_a_forged_tombstone_is_no_erasure(make_mapper, kms, key_store, events):
    item = make_mapper(key_scope=of_stream).to_sequenced_item(events[0])
    record = key_store._records[item.key_id]
    key_store._records[item.key_id] = replace(
        record, state="destroyed", destroyed_by="shredded", wrappings=()
    )
    cold = SequencedItemMapper(
        cipher=AESCipher(Keyring(kms, key_store, application="shop")),
        on_erased="mask",
        erased_scope=by_stream,
    )

    with pytest.raises(IntegrityError):
        cold.from_sequenced_item(item)


def test_the_tombstone_of_a_field_key_is_no_items_erasure(make_mapper, keyring, events):
    keyring.prepare([of_stream(events[0])], purpose=KeyPurpose.FIELD)
    field_key = keyring.sealing_keys({of_stream(events[0]): 0}, purpose=KeyPurpose.FIELD).popitem()[1].key_id
    mapper, items = stored(make_mapper, events, keyring, on_erased="mask", erased_scope=by_stream)
    data = items[0].data[:3] + field_key.bytes + items[0].data[19:]

    with pytest.raises(IntegrityError):
        mapper.from_sequenced_item(items[0]._replace(data=data, key_id=field_key))


def test_what_stands_for_an_erased_event_is_not_stored_again(make_mapper, keyring, events):
    mapper, items = stored(make_mapper, events, keyring, on_erased="mask", erased_scope=by_stream)

    with pytest.raises(SerializationError, match="cannot be stored again"):
        mapper.to_sequenced_items(mapper.from_sequenced_items(items))


def test_the_item_that_the_reader_asked_for_tells_its_scope(make_mapper, keyring, events):
    seen = []
    _, items = stored(make_mapper, events, keyring)
    mapper = make_mapper(
        key_scope=of_stream, on_erased="mask", erased_scope=lambda item: seen.append(item) or by_stream(item)
    )
    mapper.from_sequenced_items(items)

    assert seen == [items[0], items[2]]
    assert type(seen[0]) is SequencedItem


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_erased": "ignore"}, "not 'ignore'"),
        ({"erased_scope": "application"}, "a function of an item, not str"),
    ],
)
def test_choices_that_are_none_are_refused(make_mapper, options, message):
    with pytest.raises(ConfigurationError, match=message):
        make_mapper(**options)

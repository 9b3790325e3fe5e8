"""Verify: personal-data fields inside of items, sealed and plain, are opened too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID, uuid4

import pytest
from tests.fixtures.personal_events import Noted, Registered

from eventseal.cipher import ItemContext
from eventseal.erasure import shred
from eventseal.errors import (
    EncryptionRequiredError,
    IntegrityError,
    KmsUnavailableError,
    SerializationError,
)
from eventseal.items import PersonalData, SequencedItem, SequencedItemMapper
from eventseal.keys import KeyPurpose
from eventseal.rotation import verify

ITEMS = "integer_sequenced_items"


@pytest.fixture(params=[True, False], ids=["sealed items", "plain items"])
def shop(request, open_shop, sqlite_url):
    return open_shop(sqlite_url, always_encrypt=request.param)


def append(shop, events, mapper=None):
    items = (mapper or shop.seal.mapper).to_sequenced_items(events)
    shop.strategy().append(items)
    return items


def registered(customer: str) -> Registered:
    return Registered(uuid4(), 0, customer, f"{customer}@example.com")


def counts_of(shop):
    counts = verify(shop.again(always_encrypt=shop.seal.settings.always_encrypt).seal).by_table[ITEMS]
    return counts["done"] + counts["plain"], counts["failed"]


def damage(shop, item, change) -> None:
    """Change the JSON of an item; a sealed one is sealed again, as a mistake in the application would."""
    place = ItemContext(item.sequence_id, item.position, item.topic)
    if item.key_id is None:
        shop.edit(item, data=change(item.data))
        return
    key_id = shop.seal.keyring.sealing_keys({"application": 1})["application"].key_id
    data = shop.seal.cipher.encrypt(change(shop.seal.cipher.decrypt(item.data, place)), place)
    shop.edit(item, data=data, key_id=key_id)


def with_another_byte(data: bytes) -> bytes:
    raw = json.loads(data)
    pointer, sealed = raw["email"]["$sealed"]
    raw["email"]["$sealed"] = [pointer, sealed[:60] + ("A" if sealed[60] != "A" else "B") + sealed[61:]]
    return json.dumps(raw, separators=(",", ":")).encode()


def of_another_subject(data: bytes) -> bytes:
    return data.replace(b'"c-1"', b'"c-2"', 1)


def without_its_subject(data: bytes) -> bytes:
    return data.replace(b'"/customer_id"', b'"/nobody"', 1)


def cut(data: bytes) -> bytes:
    return data[:-3]


@pytest.mark.parametrize("change", [with_another_byte, of_another_subject, without_its_subject, cut])
def test_a_corrupted_field_fails_its_item_as_it_fails_the_reader(shop, change):
    append(shop, [registered("c-3")])
    (item,) = append(shop, [registered("c-1")])
    damage(shop, item, change)
    with pytest.raises((IntegrityError, SerializationError)):
        shop.seal.mapper.from_sequenced_items(shop.strategy().get_items(item.sequence_id))
    assert counts_of(shop) == (1, 1)


def test_an_item_whose_fields_key_is_gone_is_a_failure(shop):
    append(shop, [registered(f"c-{number % 4}") for number in range(20)])
    key_id = shop.seal.keyring.sealing_keys({"subject:c-1": 0}, purpose=KeyPurpose.FIELD)[
        "subject:c-1"
    ].key_id
    assert shop.execute("DELETE FROM eventseal_encryption_keys WHERE key_id = :key", key=key_id.bytes) == 1
    assert counts_of(shop) == (15, 5)


def test_an_erased_field_is_no_failure(shop):
    append(shop, [registered("c-1"), registered("c-2")])
    shred(shop.seal, "subject:c-1")
    assert counts_of(shop) == (2, 0)


def test_an_outage_met_at_a_field_ends_the_run(shop):
    append(shop, [registered("c-1")])
    other = shop.again(always_encrypt=shop.seal.settings.always_encrypt)
    other.seal.keyring.prepare(["application"])
    check = other.seal.cipher.open_fields

    def away(fields):
        return [KmsUnavailableError("the KMS did not answer")] * len(check(fields))

    other.seal.cipher.open_fields = away
    with pytest.raises(KmsUnavailableError):
        verify(other.seal)


@dataclass(frozen=True)
class Opened:
    account: UUID
    number: int
    owner: Annotated[str, PersonalData(subject="account")]


def test_a_subject_that_is_the_place_is_found_whatever_the_application_calls_it(shop):
    append(shop, [Noted(originator_id=uuid4(), originator_version=0, text="noted")])
    mapper = SequencedItemMapper(
        cipher=shop.seal.cipher,
        always_encrypt=shop.seal.settings.always_encrypt,
        sequence_id_attr_name="account",
        position_attr_name="number",
    )
    append(shop, [Opened(uuid4(), 0, "Ada")], mapper)
    assert counts_of(shop) == (2, 0)


def test_what_looks_like_a_field_in_another_programs_state_is_left_to_that_program(open_library, sqlite_url):
    library = open_library(sqlite_url)
    library.append(plaintext=b'{"x":{"$sealed":["/y","z"]}}')
    assert verify(library.seal).failed == 0


@pytest.mark.parametrize("beside", ["known", "unknown", "none"])
@pytest.mark.parametrize("header", ["unknown", "another application's", "of no KEK that is here"])
def test_readers_refuse_an_envelope_beside_the_id_of_another_key(open_shop, sqlite_url, header, beside):
    shop = open_shop(sqlite_url)
    (item,) = append(shop, [registered("c-1")])
    named = uuid4()
    if header == "another application's":
        (of_billing,) = shop.again(application="billing").append(1)
        named = of_billing.key_id
    elif header == "of no KEK that is here":
        (of_tenant,) = shop.append(1, scope="tenant:a")
        named = of_tenant.key_id
        statement = "UPDATE eventseal_key_wrappings SET kek_uri = 'fake://gone' WHERE key_id = :key"
        assert shop.execute(statement, key=named.bytes) == 1
    data = item.data[:3] + named.bytes + item.data[19:]
    key_id = {"known": item.key_id, "unknown": uuid4(), "none": None}[beside]
    expected = EncryptionRequiredError if (header, beside) == ("unknown", "none") else IntegrityError
    with pytest.raises(expected):  # bytes are an envelope only if a row, or the key store, says so
        shop.again().seal.mapper.from_sequenced_item(SequencedItem(*item[:3], data, key_id))

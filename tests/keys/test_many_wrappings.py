"""A key with thousands of wrappings that open nothing costs a handful of calls, and is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fixtures.versioned_kms import VersionedKms

from eventseal.errors import EventSealError, IntegrityError
from eventseal.keys import DataKey
from eventseal.kms import WrappedKey
from eventseal.testing import FakeBatchKms, FakeKms

MANY = 2_000


def bogus(kek_uri: str, first: int = 100, count: int = MANY) -> list[WrappedKey]:
    return [
        WrappedKey(kek_uri=kek_uri, kek_version=str(number), ciphertext=b"1|" + bytes(60))
        for number in range(first, first + count)
    ]


def fill(new_keyring, kms):
    (key,) = new_keyring(kms=kms).sealing_keys({"s": 1}).values()
    return key.key_id


def opened(keyring, key_id):
    keyring.refresh()  # the store key is at hand
    return keyring.opening_keys([key_id])[key_id]


@pytest.mark.parametrize("kind", [FakeKms, FakeBatchKms])
@pytest.mark.parametrize("verified", [False, True], ids=["unverified", "one verified"])
def test_three_are_tried_under_each_kek_and_the_error_says_how_many_were_not(
    new_keyring, store, kind, verified
) -> None:
    keks = [kind("one"), kind("two")]
    key_id = fill(new_keyring, keks)
    real = store.record(key_id).wrappings
    store.edit(
        key_id,
        wrappings=(*bogus("fake://one"), *bogus("fake://two"), *real),
        verified=frozenset(real[:1] if verified else ()),
    )
    keyring = new_keyring(kms=keks)
    keyring.refresh()
    for kek in keks:
        kek.calls.clear()
    outcome = opened(keyring, key_id)
    assert isinstance(outcome, IntegrityError)
    assert f"key {key_id}" in str(outcome)
    assert f"{MANY + 1 - 3:,} more were not tried" in str(outcome)
    assert "eventseal_key_wrappings" in outcome.remedy
    assert [kek.count("unwrap", "unwrap_many") for kek in keks] == [3, 3]


def test_the_newest_are_tried_first(new_keyring, store) -> None:
    kek = FakeKms("one")
    key_id = fill(new_keyring, kek)
    (real,) = store.record(key_id).wrappings
    for place, opens in ((2, True), (3, False)):
        others = bogus("fake://one")
        others.insert(place, real)
        store.edit(key_id, wrappings=tuple(others))
        keyring = new_keyring(kms=kek)
        assert isinstance(opened(keyring, key_id), DataKey if opens else EventSealError)


def test_wrappings_of_other_keks_cost_no_call_and_no_try(new_keyring, store) -> None:
    kek = FakeKms("one")
    key_id = fill(new_keyring, kek)
    (real,) = store.record(key_id).wrappings
    store.edit(key_id, wrappings=(*bogus("fake://strange", count=20), real))
    assert isinstance(opened(new_keyring(kms=kek), key_id), DataKey)


def test_the_others_of_a_page_open(new_keyring, store) -> None:
    kek = FakeBatchKms("one")
    keys = new_keyring(kms=kek).sealing_keys({f"s:{n}": 1 for n in range(5)})
    lost, *good = [key.key_id for key in keys.values()]
    store.edit(lost, wrappings=(*bogus("fake://one"), *store.record(lost).wrappings))
    keyring = new_keyring(kms=kek)
    keyring.refresh()
    kek.calls.clear()
    outcomes = keyring.opening_keys([lost, *good])
    assert isinstance(outcomes[lost], IntegrityError)
    assert all(isinstance(outcomes[key_id], DataKey) for key_id in good)
    assert kek.count() == 3


def test_a_rewrap_sends_three_of_them(new_keyring, store) -> None:
    kek = VersionedKms("kek")
    key_id = fill(new_keyring, kek)
    kek.rotate(), kek.calls.clear()
    forged = [replace(wrapped, ciphertext=b"9|" + bytes(60)) for wrapped in bogus("fake://kek")]
    store.edit(key_id, wrappings=(*forged, *store.record(key_id).wrappings))
    kek.denied.add("current_version")
    rewrap = new_keyring(kms=kek).rewrap()
    assert list(rewrap.failures) == [key_id]
    assert kek.count() <= 8


@pytest.mark.parametrize("branches", [None, 1], ids=["under a KEK", "under a branch key"])
def test_a_key_with_more_wrappings_than_are_read_is_neither_rewrapped_nor_proved(
    new_keyring, store, branches
) -> None:
    old, new = FakeKms("old"), FakeKms("new")
    key_ids = [
        key.key_id for key in new_keyring(kms=old, branches=branches).sealing_keys({"s": 1, "t": 1}).values()
    ]
    store.edit(key_ids[0], more_wrappings=1_936)
    keyring = new_keyring(kms=[old, new], branches=branches)
    assert f"key {key_ids[0]} has 1,937 wrappings" in str(keyring.rewrap(new).failures[key_ids[0]])
    proof = keyring.wrappings.prove_without(lambda wrapped: wrapped.kek_uri == old.uri)
    assert list(proof.failures) == [key_ids[0]]
    assert isinstance(keyring.opening_keys(key_ids)[key_ids[0]], DataKey)

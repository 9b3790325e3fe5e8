"""A new wrapping is verified by whoever opens a key with it: in passing, and never in the way of a read."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from tests.fixtures.versioned_kms import VersionedKms

from eventseal.errors import (
    IntegrityError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.keys import DataKey
from eventseal.testing import FakeBatchKms, FakeKms

OPENING = ("unwrap", "unwrap_many")


@pytest.fixture
def old() -> FakeKms:
    return FakeKms("old")


@pytest.fixture
def new() -> FakeBatchKms:
    return FakeBatchKms("new")


@pytest.fixture
def versioned() -> VersionedKms:
    return VersionedKms("versioned")


def fill(new_keyring, kms, count: int = 3) -> list:
    keyring = new_keyring(kms=kms)
    return [key.key_id for key in keyring.sealing_keys({f"s:{n}": 1 for n in range(count)}).values()]


def add_unverified(new_keyring, old, new) -> None:
    """Have every key wrapped under *new*, which is not configured yet: so nobody has opened that."""
    assert new_keyring(kms=old).rewrap(new).added


def mark_old(store) -> None:
    for record in store.records():
        old = [wrapped for wrapped in record.wrappings if wrapped.kek_uri == "fake://old"]
        store.mark_wrappings_verified({record.key_id: old[0]})


def opened(keyring, key_ids) -> bool:
    return all(isinstance(key, DataKey) for key in keyring.opening_keys(key_ids).values())


def verified_uris(store) -> list[list[str]]:
    return [sorted(w.kek_uri for w in record.verified) for record in store.records()]


def test_whoever_opens_a_key_by_a_new_wrapping_verifies_it(new_keyring, store, old, new) -> None:
    key_ids = fill(new_keyring, old)
    add_unverified(new_keyring, old, new)
    assert opened(new_keyring(kms=[new, old]), key_ids)
    assert verified_uris(store) == [["fake://new"]] * 4


def test_a_load_marks_all_its_keys_in_one_write(new_keyring, store, old, new) -> None:
    key_ids = fill(new_keyring, old, 50)
    add_unverified(new_keyring, old, new)
    writes = []
    mark = store.mark_wrappings_verified
    store.mark_wrappings_verified = lambda opened, **options: (
        writes.append(len(opened)) or mark(opened, **options)
    )
    assert opened(new_keyring(kms=[new, old]), key_ids)
    assert writes == [1, 50]  # the store key, then the page


def test_a_key_with_one_wrapping_costs_nothing(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old)
    store.mark_wrappings_verified = None
    keyring = new_keyring(kms=old)
    assert opened(keyring, key_ids)
    assert verified_uris(store) == [[]] * 4


def test_what_is_verified_is_not_written_again(new_keyring, store, old, new) -> None:
    key_ids = fill(new_keyring, old)
    assert new_keyring(kms=[old, new]).rewrap().added
    mark_old(store)
    store.mark_wrappings_verified = None
    assert opened(new_keyring(kms=[old, new]), key_ids)
    assert opened(new_keyring(kms=[new, old]), key_ids)


def test_the_newest_of_a_keks_wrappings_is_tried_first_and_once_verified_alone(
    new_keyring, store, versioned
) -> None:
    key_ids = fill(new_keyring, versioned)
    versioned.rotate()
    assert new_keyring(kms=versioned).rewrap().awaiting == 4
    asked = []
    opening = versioned._opened
    versioned._opened = lambda wrapped, context: (
        asked.append(wrapped.kek_version) or opening(wrapped, context)
    )
    assert opened(new_keyring(kms=versioned), key_ids)
    assert asked == ["2"] * 4
    assert new_keyring(kms=versioned).rewrap().dropped == 4
    assert {w.kek_version for record in store.records() for w in record.wrappings} == {"2"}


def test_a_new_wrapping_that_was_changed_does_not_make_its_key_unreadable(
    new_keyring, store, versioned, caplog
) -> None:
    key_ids = fill(new_keyring, versioned)
    versioned.rotate()
    new_keyring(kms=versioned).rewrap()
    for record in store.records():
        newest, *others = record.wrappings
        store.edit(record.key_id, wrappings=(replace(newest, ciphertext=b"2|" + bytes(60)), *others))
    with caplog.at_level(logging.WARNING, "eventseal.keys.wrapping.unwrapping"):
        assert opened(new_keyring(kms=versioned), key_ids)
    assert str(key_ids[0]) in caplog.text
    assert {w.kek_version for record in store.records() for w in record.verified} == {"1"}
    again = new_keyring(kms=versioned).rewrap()
    assert (again.awaiting, again.dropped) == (4, 0)
    assert opened(new_keyring(kms=versioned), key_ids)


def test_if_no_wrapping_opens_the_first_error_is_told(new_keyring, store, versioned) -> None:
    (key_id,) = fill(new_keyring, versioned, 1)
    versioned.rotate()
    new_keyring(kms=versioned).rewrap()
    record = store.record(key_id)
    edited = tuple(replace(wrapped, ciphertext=b"9|" + bytes(60)) for wrapped in record.wrappings)
    store.edit(key_id, wrappings=edited)
    assert isinstance(new_keyring(kms=versioned).opening_keys([key_id])[key_id], IntegrityError)


def test_a_verified_wrapping_that_was_changed_is_never_passed_over(new_keyring, store, versioned) -> None:
    (key_id,) = fill(new_keyring, versioned, 1)
    versioned.rotate()
    new_keyring(kms=versioned).rewrap()
    record = store.record(key_id)
    newest = replace(record.wrappings[0], ciphertext=b"2|" + bytes(60))
    edited = (newest, *record.wrappings[1:])
    store.edit(key_id, wrappings=edited, verified=frozenset(edited))
    assert isinstance(new_keyring(kms=versioned).opening_keys([key_id])[key_id], IntegrityError)


@pytest.mark.parametrize("fault", ["fail_always", "deny", "disable"])
def test_an_error_of_the_kek_is_not_passed_over_for_an_unverified_wrapping(
    new_keyring, old, new, fault
) -> None:
    key_ids = fill(new_keyring, old)
    add_unverified(new_keyring, old, new)
    keyring = new_keyring(kms=[new, old])
    keyring.refresh()
    getattr(new, fault)(), old.calls.clear()
    for outcome in keyring.opening_keys(key_ids).values():
        assert isinstance(outcome, KmsUnavailableError | KmsForbiddenError | KmsKeyStateError)
    assert old.count() == 0


# --- KEKs further down the list ---


def test_a_kek_further_down_the_list_opens_each_key_once(new_keyring, store, old, new) -> None:
    key_ids = fill(new_keyring, old)
    add_unverified(new_keyring, old, new)
    for number in range(3):
        old.calls.clear(), new.calls.clear()
        assert opened(new_keyring(kms=[old, new]), key_ids)
        # First the old ones are seen to open, then the new ones, and then all is as if nothing had been.
        assert (old.count(*OPENING), new.count(*OPENING)) == [(4, 0), (0, 2), (4, 0)][number]
    assert verified_uris(store) == [["fake://new", "fake://old"]] * 4


@pytest.mark.parametrize("fault", ["fail_always", "deny", "disable"])
def test_a_kek_further_down_that_does_not_serve_costs_one_call(
    new_keyring, store, old, new, fault, clock
) -> None:
    key_ids = fill(new_keyring, old, 30)
    add_unverified(new_keyring, old, new)
    mark_old(store)
    getattr(new, fault)()
    new.calls.clear()
    keyring = new_keyring(kms=[old, new], ttl=60)
    assert opened(keyring, key_ids)
    assert new.count() == 1
    clock.advance(61)
    assert opened(keyring, key_ids)
    assert new.count() == 1
    clock.advance(900)
    assert opened(keyring, key_ids)
    assert new.count() == 2
    assert verified_uris(store) == [["fake://old"]] * 31


def test_it_is_tried_with_one_key_before_it_is_with_all(new_keyring, store, old, new) -> None:
    key_ids = fill(new_keyring, old, 30)
    add_unverified(new_keyring, old, new)
    mark_old(store)
    new.calls.clear(), old.calls.clear()
    assert opened(new_keyring(kms=[old, new]), key_ids)
    assert [len(call.key_ids) for call in new.calls] == [1, 30]
    assert old.count() == 0


def test_a_changed_wrapping_further_down_is_tried_once_a_process(new_keyring, store, old, new, clock) -> None:
    (key_id,) = fill(new_keyring, old, 1)
    add_unverified(new_keyring, old, new)
    mark_old(store)
    record = store.record(key_id)
    (wrapped,) = [w for w in record.wrappings if w not in record.verified]
    store.edit(key_id, wrappings=(replace(wrapped, ciphertext=bytes(60)), *record.verified))
    keyring = new_keyring(kms=[old, new], ttl=60)
    keyring.refresh()
    new.calls.clear()
    for _ in range(3):
        assert opened(keyring, [key_id])
        clock.advance(61)
    assert new.count() == 1


@pytest.mark.parametrize("fault", ["deny", "disable"])
def test_nobody_goes_behind_a_kek_that_was_heard_to_say_no(new_keyring, store, old, new, fault) -> None:
    key_ids = fill(new_keyring, old)
    keyring = new_keyring(kms=[old, new])
    keyring.refresh()
    getattr(old, fault)()
    assert not opened(keyring, key_ids)
    old.recover()
    add_unverified(new_keyring, old, new)
    mark_old(store)
    getattr(old, fault)()
    new.calls.clear()
    assert not opened(keyring, key_ids)
    assert new.count() == 0


def test_a_kek_without_batches_that_does_not_serve_is_tried_with_one_key(new_keyring, store, old) -> None:
    new = FakeKms("new")
    key_ids = fill(new_keyring, old, 30)
    add_unverified(new_keyring, old, new)
    mark_old(store)
    keyring = new_keyring(kms=[old, new])
    (store_key,) = [record for record in store.records() if record.key_id not in key_ids]
    store.edit(store_key.key_id, verified=frozenset(store_key.wrappings))
    new.deny(), new.calls.clear()
    assert opened(keyring, key_ids)
    assert new.count() == 1


def test_the_wrapping_of_a_first_kek_that_was_changed_leads_to_the_next_kek(
    new_keyring, store, old, new
) -> None:
    (key_id,) = fill(new_keyring, [old, new], 1)
    first, second = store.record(key_id).wrappings
    store.edit(key_id, wrappings=(replace(first, ciphertext=bytes(60)), second))
    assert opened(new_keyring(kms=[old, new]), [key_id])
    assert store.record(key_id).verified == {second}


def test_an_older_wrapping_is_tried_too_if_nobody_has(new_keyring, store, versioned) -> None:
    key_ids = fill(new_keyring, versioned)
    versioned.rotate(), new_keyring(kms=versioned).rewrap()
    late = {record.key_id: record.wrappings[0] for record in store.records()}  # under version 2
    versioned.rotate(), new_keyring(kms=versioned).rewrap()
    for key_id, wrapped in late.items():  # as another rewrap adds it, which asked for the version before
        others = tuple(w for w in store.record(key_id).wrappings if w != wrapped)
        store.edit(key_id, wrappings=(wrapped, *others), verified=frozenset([wrapped]))
    assert opened(new_keyring(kms=versioned), key_ids)
    assert {w.kek_version for record in store.records() for w in record.verified} == {"2", "3"}
    assert new_keyring(kms=versioned).rewrap().dropped == 4
    assert {w.kek_version for record in store.records() for w in record.wrappings} == {"3"}


# --- what stands in the way ---


@pytest.mark.parametrize("error", [StoreUnavailableError, StoreReadOnlyError])
def test_a_mark_that_cannot_be_written_fails_no_read_and_is_written_later(
    new_keyring, store, old, new, error
) -> None:
    key_ids = fill(new_keyring, old)
    add_unverified(new_keyring, old, new)
    keyring = new_keyring(kms=[new, old])
    mark, waits = store.mark_wrappings_verified, []

    def refuse(opened, *, wait):
        waits.append(wait)
        raise error("not now")

    store.mark_wrappings_verified = refuse
    assert opened(keyring, key_ids[:2])
    assert waits == [False, False]  # the store key, then the two
    assert verified_uris(store) == [[]] * 4
    store.mark_wrappings_verified = mark
    assert opened(keyring, key_ids[2:])
    assert verified_uris(store) == [["fake://new"]] * 4


def test_what_could_not_be_noted_is_not_tried_for_ever(new_keyring, store, old, new, clock) -> None:
    key_ids = fill(new_keyring, old)
    add_unverified(new_keyring, old, new)
    mark_old(store)

    def refuse(opened, *, wait):
        raise StoreReadOnlyError("a replica")

    store.mark_wrappings_verified = refuse
    keyring = new_keyring(kms=[old, new], ttl=60)
    assert opened(keyring, key_ids)
    new.calls.clear()
    clock.advance(61)
    assert opened(keyring, key_ids)
    assert new.count() == 0

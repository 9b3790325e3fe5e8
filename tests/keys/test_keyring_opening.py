"""Which key opens: found by id, a batch at a time, with an outcome for each."""

from __future__ import annotations

from uuid import uuid4

import pytest

from eventseal.errors import (
    IntegrityError,
    KekNotConfiguredError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsUnavailableError,
    StoreUnavailableError,
    WrongApplicationError,
)
from eventseal.keys import DataKey, KeyPurpose, KeyState
from eventseal.keys.ring.opening import REFUSAL_SECONDS
from eventseal.testing import FakeBatchKms, FakeKms


def made(keyring, count: int):
    return [
        key.key_id for key in keyring.sealing_keys({f"t:{number}": 1 for number in range(count)}).values()
    ]


def opened(keyring, key_id):
    return keyring.opening_keys([key_id])[key_id]


def test_a_new_process_opens_with_two_kms_calls(keyring, new_keyring, kms, store) -> None:
    (key_id,) = made(keyring, 1)
    other = new_keyring()
    kms.calls.clear(), store.calls.clear()
    key = opened(other, key_id)
    assert isinstance(key, DataKey)
    assert key.derive(b"x", 8) == keyring.sealing_keys({"t:0": 1})["t:0"].derive(b"x", 8)
    assert [call.operation for call in kms.calls] == ["unwrap", "unwrap"]
    assert store.calls == ["active", "changes", "get"]
    assert other.counters.kms_calls == 2
    assert other.counters.store_queries == 3
    assert (other.counters.hits, other.counters.misses) == (0, 1)


def test_a_cached_key_asks_nobody(keyring, kms, store) -> None:
    (key_id,) = made(keyring, 1)
    asked = len(kms.calls), len(store.calls)
    assert opened(keyring, key_id) is opened(keyring, key_id)
    assert (len(kms.calls), len(store.calls)) == asked
    assert keyring.counters.hits == 2


def test_a_page_of_500_missing_keys_costs_one_query_and_one_batched_unwrap(new_keyring, store) -> None:
    kms = FakeBatchKms()
    ids = made(new_keyring(kms=kms), 500)
    other = new_keyring(kms=kms)
    opened(other, ids[0])  # warm: the store key is loaded
    kms.calls.clear(), store.calls.clear()
    found = other.opening_keys(ids)
    assert [key_id for key_id, key in found.items() if isinstance(key, DataKey)].sort() == ids.sort()
    assert len(found) == 500
    assert store.calls == ["get"]
    assert [(call.operation, len(call.key_ids)) for call in kms.calls] == [("unwrap_many", 499)]
    assert (other.counters.hits, other.counters.misses) == (1, 500)


def test_an_id_asked_for_twice_is_loaded_once(keyring, new_keyring, kms) -> None:
    (key_id,) = made(keyring, 1)
    other = new_keyring()
    kms.calls.clear()
    assert list(other.opening_keys([key_id, key_id])) == [key_id]
    assert kms.count("unwrap") == 2


def test_asking_for_nothing_gives_nothing(keyring) -> None:
    assert keyring.opening_keys([]) == {}


def test_each_key_has_an_outcome_of_its_own(keyring, new_keyring, store, destroy, kms) -> None:
    good, gone, edited, unwrapped = made(keyring, 4)
    other_application = new_keyring(application="other")
    (foreign,) = made(other_application, 1)
    (elsewhere,) = [
        key.key_id for key in new_keyring(kms=[FakeKms("else"), kms]).sealing_keys({"elsewhere": 1}).values()
    ]
    destroy(gone, by="retired")
    store.edit(edited, scope="t:9")
    store.edit(elsewhere, wrappings=store.record(elsewhere).wrappings[:1])
    unknown = uuid4()
    keyring = new_keyring()
    outcomes = keyring.opening_keys([good, gone, edited, unwrapped, foreign, elsewhere, unknown])
    assert {key_id: type(outcome) for key_id, outcome in outcomes.items()} == {
        good: DataKey,
        gone: KeyDestroyedError,
        edited: IntegrityError,
        unwrapped: DataKey,
        foreign: WrongApplicationError,
        elsewhere: KekNotConfiguredError,
        unknown: KeyNotFoundError,
    }


def test_another_applications_key_names_both(keyring, new_keyring) -> None:
    (key_id,) = made(new_keyring(application="billing"), 1)
    for here in (keyring, new_keyring(application="default")):
        error = opened(here, key_id)
        assert isinstance(error, WrongApplicationError)
        assert (error.expected, error.found) == ("default", "billing")
        assert "'default'" in str(error)
        assert "'billing'" in str(error)
        made(keyring, 1)  # the second time, the application has a store key of its own


def test_a_destroyed_key_says_how_it_ended(keyring, new_keyring, destroy) -> None:
    retired, shredded = made(keyring, 2)
    destroy(retired, by="retired")
    destroy(shredded, by="shredded", keep_slot=True)
    for key_id, by in ((retired, "retired"), (shredded, "shredded")):
        error = opened(new_keyring(), key_id)
        assert isinstance(error, KeyDestroyedError)
        assert (error.key_id, error.destroyed_by) == (key_id, by)
        assert error.scope in {"t:0", "t:1"}


def test_a_deactivated_and_a_compromised_key_still_open(keyring, new_keyring) -> None:
    (key_id,) = made(keyring, 1)
    second = keyring.rotate("t:0").key_id
    keyring.rotate("t:0", compromised=True)
    found = new_keyring().opening_keys([key_id, second])
    assert [found[key_id].state, found[second].state] == [KeyState.DEACTIVATED, KeyState.COMPROMISED]


def test_the_store_key_opens_no_item(keyring, store) -> None:
    made(keyring, 1)
    (store_key,) = [record.key_id for record in store.records() if record.purpose is KeyPurpose.STORE]
    error = opened(keyring, store_key)
    assert isinstance(error, IntegrityError)
    assert "store" in str(error)


def test_an_empty_key_store_has_no_key_and_gets_none(keyring, store, kms) -> None:
    assert isinstance(opened(keyring, uuid4()), KeyNotFoundError)
    assert store.records() == []
    assert kms.calls == []


def test_a_key_made_elsewhere_after_the_first_look_is_found(keyring, new_keyring) -> None:
    opened(keyring, uuid4())  # no store key yet
    (key_id,) = made(new_keyring(), 1)
    assert isinstance(opened(keyring, key_id), DataKey)


# --- the cache ---


def test_an_absent_key_is_not_looked_for_again_for_a_short_while(keyring, store, clock) -> None:
    made(keyring, 1)
    unknown = uuid4()
    store.calls.clear()
    first, second = opened(keyring, unknown), opened(keyring, unknown)
    assert store.calls == ["get"]
    assert first is not second
    assert str(first) == str(second)
    clock.advance(REFUSAL_SECONDS)
    opened(keyring, unknown)
    assert store.calls.count("get") == 2


def test_a_refresh_looks_for_absent_keys_again(keyring, store) -> None:
    (key_id,) = made(keyring, 1)
    row = store._records.pop(key_id)
    other_ring = keyring
    other_ring._held_keys.of(KeyPurpose.DATA).drop(key_id, close=False)
    assert isinstance(opened(other_ring, key_id), KeyNotFoundError)
    store._records[key_id] = row
    assert isinstance(opened(other_ring, key_id), KeyNotFoundError)
    other_ring.refresh()
    assert isinstance(opened(other_ring, key_id), DataKey)


def test_a_key_that_was_absent_and_came_is_not_refused_when_it_is_evicted(new_keyring, store) -> None:
    (key_id,) = made(new_keyring(), 1)
    row = store._records.pop(key_id)
    small = new_keyring(max_keys=1)
    assert isinstance(opened(small, key_id), KeyNotFoundError)
    store._records[key_id] = row
    assert small.sealing_keys({"t:0": 1})["t:0"].key_id == key_id
    small.sealing_keys({"other": 1})
    assert isinstance(opened(small, key_id), DataKey)


@pytest.mark.slow
def test_refusals_are_bounded(keyring) -> None:
    made(keyring, 1)
    keyring.opening_keys([uuid4() for _ in range(25_000)])
    assert len(keyring._opener._refusals) <= 10_000


@pytest.mark.parametrize("fault", ["kms", "store"])
def test_a_failure_is_never_remembered(keyring, new_keyring, kms, store, fault: str) -> None:
    (key_id,) = made(keyring, 1)
    other = new_keyring()
    other.refresh()
    if fault == "kms":
        kms.fail_next()
        assert isinstance(opened(other, key_id), KmsUnavailableError)
    else:
        store.fail("get")
        with pytest.raises(StoreUnavailableError):
            opened(other, key_id)
        store.recover()
    assert isinstance(opened(other, key_id), DataKey)


def test_a_tampered_wrapping_is_not_remembered_and_a_good_one_is_not_refused(
    keyring, new_keyring, store
) -> None:
    first, second = made(keyring, 2)
    good = store.record(first).wrappings
    store.edit(first, wrappings=store.record(second).wrappings)
    other = new_keyring()
    assert isinstance(opened(other, first), IntegrityError)
    store.edit(first, wrappings=good)
    assert isinstance(opened(other, first), DataKey)
    store.edit(first, wrappings=store.record(second).wrappings)
    assert isinstance(opened(new_keyring(), first), IntegrityError)


def test_the_cache_is_bounded_and_an_evicted_key_ends_with_its_last_batch(keyring, new_keyring, kms) -> None:
    ids = made(keyring, 5)
    small = new_keyring(max_keys=2)
    held = small.opening_keys(ids)
    assert not any(key.closed for key in held.values())
    assert len(small._held_keys.keys) == 2
    kms.calls.clear()
    again = opened(small, ids[0])
    assert kms.count("unwrap") == 1
    assert again is not held[ids[0]]
    assert again.derive(b"x", 8) == held[ids[0]].derive(b"x", 8)


def test_a_key_in_use_stays(keyring, new_keyring, kms) -> None:
    ids = made(keyring, 4)
    small = new_keyring(max_keys=2)
    for key_id in ids[1:]:
        opened(small, ids[0])
        opened(small, key_id)
    kms.calls.clear()
    opened(small, ids[0])
    assert kms.calls == []


def test_a_key_is_unwrapped_again_after_its_ttl_and_keeps_its_handle(
    keyring, new_keyring, kms, clock
) -> None:
    (key_id,) = made(keyring, 1)
    other = new_keyring(ttl=900, refresh_interval=1e6)
    key = opened(other, key_id)
    kms.calls.clear()
    clock.advance(899.9)
    opened(other, key_id)
    assert kms.calls == []
    clock.advance(0.1)
    assert opened(other, key_id) is key
    assert [call.operation for call in kms.calls] == ["unwrap"]
    opened(other, key_id)
    assert len(kms.calls) == 1


def test_a_key_that_seals_is_unwrapped_again_after_its_ttl(keyring, kms, clock) -> None:
    made(keyring, 1)
    clock.advance(901)
    key = keyring.sealing_keys({"t:0": 1})["t:0"]
    assert kms.count("unwrap") == 1
    assert opened(keyring, key.key_id) is key
    assert kms.count("unwrap") == 1


def test_a_thousand_keys_that_expire_together_are_unwrapped_in_one_call(new_keyring, clock, store) -> None:
    kms = FakeBatchKms()
    ids = made(new_keyring(kms=kms), 1_000)
    other = new_keyring(kms=kms)
    other.opening_keys(ids)
    clock.advance(1_000)
    kms.calls.clear(), store.calls.clear()
    other.opening_keys(ids)
    assert [(call.operation, len(call.key_ids)) for call in kms.calls] == [("unwrap_many", 1_000)]
    assert store.calls == ["changes", "get"]


def test_a_handle_that_somebody_closed_is_replaced(keyring) -> None:
    (key_id,) = made(keyring, 1)
    key = opened(keyring, key_id)
    key.close()
    again = opened(keyring, key_id)
    assert again is not key
    assert not again.closed
    assert keyring.sealing_keys({"t:0": 1})["t:0"] is again


def test_a_key_that_moved_to_another_kek_opens_under_it(keyring, new_keyring, store, kms) -> None:
    from eventseal.kms import EncryptionContext

    (key_id,) = made(keyring, 1)
    row = store.record(key_id)
    context = EncryptionContext(key_id, "data", "default")
    new = FakeKms("new")
    store.edit(key_id, wrappings=(new.wrap(kms.unwrap(row.wrappings[0], context), context),))
    assert isinstance(opened(new_keyring(kms=[kms, new]), key_id), DataKey)
    error = opened(new_keyring(), key_id)
    assert isinstance(error, KekNotConfiguredError)
    assert error.kek_uri == "fake://new"

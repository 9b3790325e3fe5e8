"""An outage of the KMS is outlived for a while; a KMS that says no is obeyed at once."""

from __future__ import annotations

import pytest

from eventseal.errors import KmsForbiddenError, KmsKeyStateError, KmsUnavailableError
from eventseal.keys import DataKey

TTL, GRACE = 900.0, 3_600.0
FAULTS = {"unavailable": KmsUnavailableError, "forbidden": KmsForbiddenError, "disabled": KmsKeyStateError}


def break_kms(kms, fault: str) -> None:
    {"unavailable": kms.fail_always, "forbidden": kms.deny, "disabled": kms.disable}[fault]()


def sealing_key(keyring, scope: str = "a"):
    return keyring.sealing_keys({scope: 1})[scope]


def opened(keyring, key_id):
    return keyring.opening_keys([key_id])[key_id]


AGES = {
    "fresh": (0, set(FAULTS)),
    "just fresh": (TTL - 1, set(FAULTS)),
    "ttl passed": (TTL, {"unavailable"}),
    "grace nearly passed": (TTL + GRACE - 1, {"unavailable"}),
    "grace passed": (TTL + GRACE, set()),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("use", ["open", "seal"])
def test_outage_matrix(new_keyring, kms, clock, fault: str, age: str, use: str) -> None:
    keyring = new_keyring(ttl=TTL, outage_grace=GRACE)
    key = sealing_key(keyring)
    seconds, served = AGES[age]
    break_kms(kms, fault)
    clock.advance(seconds)
    if use == "open":
        outcome = opened(keyring, key.key_id)
        if fault in served:
            assert outcome is key
        else:
            assert type(outcome) is FAULTS[fault]
    elif fault in served:
        assert sealing_key(keyring) is key
    else:
        with pytest.raises(FAULTS[fault]):
            sealing_key(keyring)
    kms.recover()
    clock.advance(6)
    assert opened(keyring, key.key_id) is key
    assert sealing_key(keyring) is key


def test_without_grace_an_outage_ends_with_the_ttl(new_keyring, kms, clock) -> None:
    keyring = new_keyring(ttl=TTL, outage_grace=0)
    key = sealing_key(keyring)
    kms.fail_always()
    clock.advance(TTL)
    assert isinstance(opened(keyring, key.key_id), KmsUnavailableError)


@pytest.mark.parametrize("fault", ["forbidden", "disabled"])
def test_a_kms_that_says_no_during_an_outage_ends_it(new_keyring, kms, clock, fault: str) -> None:
    keyring = new_keyring()
    key = sealing_key(keyring)
    kms.fail_always()
    clock.advance(TTL)
    assert opened(keyring, key.key_id) is key
    break_kms(kms, fault)
    clock.advance(6)
    assert type(opened(keyring, key.key_id)) is FAULTS[fault]


def test_while_the_kms_is_away_it_is_not_asked_for_each_item_or_key(new_keyring, kms, clock) -> None:
    keyring = new_keyring()
    keys = [sealing_key(keyring, f"t:{number}") for number in range(50)]
    kms.fail_always()
    clock.advance(TTL)
    kms.calls.clear()
    for _ in range(20):
        for key in keys:
            assert opened(keyring, key.key_id) is key
            assert sealing_key(keyring, key.scope) is key
    assert len(kms.calls) == 1
    clock.advance(5.1)
    for key in keys:
        opened(keyring, key.key_id)
    assert len(kms.calls) == 2


def test_ten_minutes_without_the_kms_stop_no_cached_stream(new_keyring, kms, clock) -> None:
    keyring = new_keyring()
    keys = [sealing_key(keyring, f"t:{number}") for number in range(5)]
    clock.advance(TTL - 60)
    kms.fail_always()
    kms.calls.clear()
    for _ in range(600):
        clock.advance(1)
        for key in keys:
            assert opened(keyring, key.key_id) is key
            assert sealing_key(keyring, key.scope) is key
    assert len(kms.calls) <= 600 / 5
    assert isinstance(opened(new_keyring(), keys[0].key_id), KmsUnavailableError)


def test_a_new_scope_cannot_be_made_without_the_kms(keyring, kms, store) -> None:
    sealing_key(keyring)
    kms.fail_always()
    with pytest.raises(KmsUnavailableError):
        sealing_key(keyring, "new")
    assert len(store.data_records()) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_that_cannot_load_the_store_key_says_why_for_each_key(new_keyring, kms, fault: str) -> None:
    keys = [sealing_key(new_keyring(), scope) for scope in "ab"]
    break_kms(kms, fault)
    other = new_keyring()
    outcomes = other.opening_keys([key.key_id for key in keys])
    assert [type(outcome) for outcome in outcomes.values()] == [FAULTS[fault]] * 2
    with pytest.raises(FAULTS[fault]):
        sealing_key(other)
    kms.recover()
    assert isinstance(opened(other, keys[0].key_id), DataKey)


def test_a_second_kek_does_not_step_in_for_one_that_failed(new_keyring, clock) -> None:
    from eventseal.testing import FakeKms

    first, second = FakeKms(), FakeKms()
    key = sealing_key(new_keyring(kms=[first, second]))
    first.fail_always()
    other = new_keyring(kms=[first, second])
    assert isinstance(opened(other, key.key_id), KmsUnavailableError)

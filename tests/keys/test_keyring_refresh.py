"""What a process knows is confirmed by one small query, as of the moment before it, and for no longer."""

from __future__ import annotations

import pytest

from eventseal.errors import KeyDestroyedError, StoreUnavailableError
from eventseal.keys import DataKey, KeyState


def sealing_key(keyring, scope: str = "a"):
    return keyring.sealing_keys({scope: 1})[scope]


def opened(keyring, key_id):
    return keyring.opening_keys([key_id])[key_id]


def test_nothing_is_asked_within_the_interval(keyring, store, clock) -> None:
    key = sealing_key(keyring)
    store.calls.clear()
    clock.advance(60)
    sealing_key(keyring), opened(keyring, key.key_id)
    assert store.calls == []


def test_after_the_interval_one_query_confirms_every_key(keyring, store, clock) -> None:
    keys = [sealing_key(keyring, f"t:{number}") for number in range(20)]
    store.calls.clear()
    clock.advance(60.1)
    for key in keys:
        sealing_key(keyring, key.scope), opened(keyring, key.key_id)
    assert store.calls == ["changes"]


def test_the_shorter_interval_wins(new_keyring, store, clock) -> None:
    store._refresh_interval = 10.0
    keyring = new_keyring(refresh_interval=60)
    sealing_key(keyring)
    store.calls.clear()
    clock.advance(10.1)
    sealing_key(keyring)
    assert store.calls == ["changes"]
    store._refresh_interval = 1_000.0
    clock.advance(10.1)
    sealing_key(keyring)
    store.calls.clear()
    clock.advance(60)
    sealing_key(keyring)
    assert store.calls == []
    clock.advance(0.1)
    sealing_key(keyring)
    assert store.calls == ["changes"]


@pytest.mark.parametrize("interval", [-5.0, float("nan"), float("inf")])
def test_an_impossible_stored_interval_is_passed_over(new_keyring, store, clock, interval: float) -> None:
    store._refresh_interval = interval
    keyring = new_keyring(refresh_interval=60)
    sealing_key(keyring)
    store.calls.clear()
    clock.advance(60)
    sealing_key(keyring)
    assert store.calls == []
    clock.advance(0.1)
    sealing_key(keyring)
    assert store.calls == ["changes"]


def test_a_key_is_confirmed_as_of_the_moment_before_the_query(keyring, store, clock) -> None:
    sealing_key(keyring)
    changes = store.changes

    def slow(*args):
        clock.advance(25)  # the answer takes its time
        return changes(*args)

    clock.advance(61)
    store.changes = slow
    sealing_key(keyring)
    store.changes = changes
    store.calls.clear()
    clock.advance(35)
    sealing_key(keyring)
    assert store.calls == []
    clock.advance(0.1)
    sealing_key(keyring)
    assert store.calls == ["changes"]


def test_another_processs_rotation_is_seen_within_the_interval(keyring, new_keyring, clock) -> None:
    old = sealing_key(keyring)
    new = new_keyring().rotate("a").key_id
    assert sealing_key(keyring) is old
    clock.advance(60.1)
    assert sealing_key(keyring).key_id == new
    assert opened(keyring, old.key_id) is old
    assert old.state is KeyState.DEACTIVATED
    assert not old.closed


def test_a_compromised_key_is_seen_and_still_opens(keyring, new_keyring) -> None:
    old = sealing_key(keyring)
    new_keyring().rotate("a", compromised=True)
    keyring.refresh()
    assert opened(keyring, old.key_id) is old
    assert old.state is KeyState.COMPROMISED
    assert sealing_key(keyring) is not old


@pytest.mark.parametrize("by", ["retired", "shredded"])
def test_a_destroyed_key_is_closed_at_once(keyring, destroy, by: str) -> None:
    key = sealing_key(keyring)
    destroy(key.key_id, by=by)
    assert opened(keyring, key.key_id) is key
    keyring.refresh()
    assert key.closed
    error = opened(keyring, key.key_id)
    assert isinstance(error, KeyDestroyedError)
    assert error.destroyed_by == by


def test_only_moved_keys_are_touched(keyring, new_keyring, kms) -> None:
    kept, moved = sealing_key(keyring, "kept"), sealing_key(keyring, "moved")
    new_keyring().rotate("moved")
    kms.calls.clear()
    keyring.refresh()
    assert sealing_key(keyring, "kept") is kept
    assert opened(keyring, moved.key_id) is moved
    assert kms.calls == []


@pytest.mark.parametrize("grace", [0.0, 600.0])
def test_stale_beyond_the_interval_it_neither_seals_nor_opens(
    new_keyring, store, clock, grace: float
) -> None:
    keyring = new_keyring(open_grace=grace)
    key = sealing_key(keyring)
    store.fail()
    clock.advance(60)
    assert sealing_key(keyring) is opened(keyring, key.key_id) is key
    clock.advance(0.1)
    with pytest.raises(StoreUnavailableError):
        sealing_key(keyring)
    if grace:
        assert opened(keyring, key.key_id) is key
        clock.advance(grace - 0.1)
        assert opened(keyring, key.key_id) is key
        clock.advance(0.1)
    with pytest.raises(StoreUnavailableError):
        opened(keyring, key.key_id)
    store.recover()
    assert sealing_key(keyring) is opened(keyring, key.key_id) is key


def test_while_the_store_is_away_it_is_not_asked_for_each_item(new_keyring, store, clock) -> None:
    keyring = new_keyring(open_grace=600)
    key = sealing_key(keyring)
    store.fail()
    clock.advance(61)
    store.calls.clear()
    for _ in range(1_000):
        opened(keyring, key.key_id)
    assert store.calls == ["changes"]
    clock.advance(5.1)
    opened(keyring, key.key_id)
    assert store.calls == ["changes"] * 2


def test_a_key_outlives_its_ttl_while_the_store_is_away(new_keyring, store, clock, kms) -> None:
    keyring = new_keyring(open_grace=3_600, ttl=100)
    key = sealing_key(keyring)
    store.fail()
    clock.advance(200)
    assert opened(keyring, key.key_id) is key
    assert kms.count("unwrap") == 1  # under the wrappings that are remembered
    kms.deny()
    clock.advance(200)
    outcome = opened(keyring, key.key_id)
    assert not isinstance(outcome, DataKey)


def test_an_unknown_key_cannot_be_loaded_while_the_store_is_away(new_keyring, store, clock) -> None:
    keyring, other = new_keyring(open_grace=3_600), new_keyring()
    key, unknown = sealing_key(keyring), sealing_key(other, "b")
    store.fail()
    clock.advance(100)
    with pytest.raises(StoreUnavailableError):
        keyring.opening_keys([key.key_id, unknown.key_id])


def test_an_explicit_refresh_always_asks(keyring, store) -> None:
    sealing_key(keyring)
    store.calls.clear()
    keyring.refresh()
    keyring.refresh()
    assert store.calls == ["changes", "changes"]


def test_an_explicit_refresh_of_an_empty_store_is_no_error(keyring, store) -> None:
    keyring.refresh()
    assert store.records() == []


def test_an_explicit_refresh_tells_of_a_store_that_is_away(keyring, store) -> None:
    sealing_key(keyring)
    store.fail()
    with pytest.raises(StoreUnavailableError):
        keyring.refresh()

"""Rotation gives a scope a new active key; the old one opens only."""

from __future__ import annotations

import pytest

from eventseal.errors import (
    ConfigurationError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsForbiddenError,
    StoreUnavailableError,
)
from eventseal.keys import DataKey, InMemoryKeyStore, KeyState
from eventseal.keys.records import Replacement
from eventseal.keys.ring.key_cache import FIRST_BLOCK
from eventseal.testing import FakeKms


def sealing_key(keyring, scope: str = "a"):
    return keyring.sealing_keys({scope: 1})[scope]


@pytest.mark.parametrize("compromised", [False, True])
def test_rotation_replaces_the_active_key(keyring, new_keyring, store, kms, compromised: bool) -> None:
    old = sealing_key(keyring)
    kms.calls.clear()
    record = keyring.rotate("a", compromised=compromised)
    assert [call.operation for call in kms.calls] == ["generate_data_key"]
    assert (record.scope, record.active_scope, record.state) == ("a", "a", KeyState.ACTIVE)
    assert record == store.record(record.key_id)
    assert record.created_at is not None
    expected = KeyState.COMPROMISED if compromised else KeyState.DEACTIVATED
    assert (store.record(old.key_id).state, store.record(old.key_id).active_scope) == (expected, None)
    assert sealing_key(keyring).key_id == record.key_id
    assert keyring.opening_keys([old.key_id])[old.key_id] is old
    assert old.state is expected
    assert not old.closed
    other = new_keyring()
    assert sealing_key(other).key_id == record.key_id
    found = other.opening_keys([old.key_id])[old.key_id]
    assert isinstance(found, DataKey)
    assert found.state is expected


def test_the_new_key_comes_with_its_first_block(keyring, store) -> None:
    sealing_key(keyring)
    record = keyring.rotate("a")
    assert record.items_reserved == FIRST_BLOCK
    for _ in range(FIRST_BLOCK):
        sealing_key(keyring)
    assert "reserve" not in store.calls


def test_rotation_moves_the_counter_once_and_only_compromise_changes_the_tree(keyring, store) -> None:
    sealing_key(keyring)
    first = store._marks["default"].revoked
    keyring.rotate("a")
    mark = store._marks["default"]
    assert (mark.counter, mark.revoked, store._nodes) == (1, first, {})
    keyring.rotate("a", compromised=True)
    assert store._marks["default"].counter == 2
    assert store._marks["default"].revoked != first
    assert len(store._nodes) == 5  # from the root to a leaf of keys, and to one of scopes


def test_one_scopes_rotation_leaves_others_alone(keyring) -> None:
    other = sealing_key(keyring, "b")
    sealing_key(keyring, "a")
    keyring.rotate("a")
    assert sealing_key(keyring, "b") is other


def test_the_default_scope_is_the_application(keyring) -> None:
    assert keyring.rotate().scope == "application"


def test_a_scope_without_a_key_gets_its_first(keyring, store) -> None:
    record = keyring.rotate("a")
    assert record.state is KeyState.ACTIVE
    assert len(store.data_records()) == 1


def test_a_refused_scope_rotates_nothing(keyring, store) -> None:
    with pytest.raises(ConfigurationError):
        keyring.rotate("")
    assert store.records() == []


def test_a_shredded_scope_is_not_rotated(keyring, new_keyring, destroy) -> None:
    key = sealing_key(keyring)
    destroy(key.key_id, by="shredded", keep_slot=True)
    for ring in (keyring, new_keyring()):
        with pytest.raises(KeyDestroyedError) as caught:
            ring.rotate("a")
        assert caught.value.destroyed_by == "shredded"


def test_a_failed_rotation_leaves_the_old_key_active(keyring, store, kms) -> None:
    key = sealing_key(keyring)
    kms.deny()
    with pytest.raises(KmsForbiddenError):
        keyring.rotate("a")
    kms.recover()
    store.fail("replace_all_active")
    with pytest.raises(StoreUnavailableError):
        keyring.rotate("a")
    store.recover()
    assert sealing_key(keyring) is key
    assert store.record(key.key_id).state is KeyState.ACTIVE


def test_the_kms_is_called_before_the_transaction_and_never_in_it(keyring, store, kms) -> None:
    sealing_key(keyring)
    kms.calls.clear()
    seen: list[int] = []
    replace_all_active = store.replace_all_active

    def watched(*args, **options):
        seen.append(len(kms.calls))
        answer = replace_all_active(*args, **options)
        seen.append(len(kms.calls))
        return answer

    store.replace_all_active = watched
    keyring.rotate("a")
    assert seen == [1, 1]


def test_every_kek_wraps_the_new_key(new_keyring, store) -> None:
    first, second = FakeKms("one"), FakeKms("two")
    keyring = new_keyring(kms=[first, second])
    sealing_key(keyring)
    record = keyring.rotate("a")
    assert {wrapping.kek_uri for wrapping in record.wrappings} == {"fake://one", "fake://two"}


@pytest.mark.parametrize("compromised", [False, True])
@pytest.mark.parametrize("first_compromised", [False, True])
def test_who_comes_second_takes_the_winners_key(
    keyring, new_keyring, store, compromised: bool, first_compromised: bool
) -> None:
    old = sealing_key(keyring)
    other = new_keyring()
    winners = []
    replace_all_active = store.replace_all_active

    def overtaken(*args, **options):
        store.replace_all_active = replace_all_active
        winners.append(other.rotate("a", compromised=first_compromised))
        return replace_all_active(*args, **options)

    store.replace_all_active = overtaken
    assert keyring.rotate("a", compromised=compromised) == winners[0]
    assert sealing_key(keyring).key_id == winners[0].key_id
    assert len(store.data_records()) == 2
    # A key that was to be marked compromised is, whoever deactivated it.
    expected = KeyState.COMPROMISED if compromised or first_compromised else KeyState.DEACTIVATED
    assert store.record(old.key_id).state is expected
    for ring in (keyring, other, new_keyring()):
        ring.refresh()
        assert ring.opening_keys([old.key_id])[old.key_id].state is expected


def test_a_key_destroyed_while_it_was_to_be_marked_compromised_is_left(
    keyring, new_keyring, store, destroy
) -> None:
    old = sealing_key(keyring)
    replace_all_active = store.replace_all_active

    def overtaken(*args, **options):
        store.replace_all_active = replace_all_active
        new_keyring().rotate("a")
        destroy(old.key_id)
        return replace_all_active(*args, **options)

    store.replace_all_active = overtaken
    keyring.rotate("a", compromised=True)
    assert store.record(old.key_id).destroyed_by == "retired"


def test_marking_compromised_tries_again_if_the_row_moved(keyring, new_keyring, store) -> None:
    old = sealing_key(keyring)
    replace_all_active, set_states = store.replace_all_active, store.set_states
    tries: list[int] = []

    def overtaken(*args, **options):
        store.replace_all_active = replace_all_active
        new_keyring().rotate("a")
        return replace_all_active(*args, **options)

    def refused_once(*args, **options):
        tries.append(1)
        return [] if len(tries) == 1 else set_states(*args, **options)

    store.replace_all_active, store.set_states = overtaken, refused_once
    keyring.rotate("a", compromised=True)
    assert store.record(old.key_id).state is KeyState.COMPROMISED
    assert len(tries) == 2


def test_a_scope_shredded_meanwhile_stops_the_rotation(keyring, store, destroy) -> None:
    old = sealing_key(keyring)
    replace_all_active = store.replace_all_active

    def overtaken(*args, **options):
        destroy(old.key_id, by="shredded", keep_slot=True)
        return replace_all_active(*args, **options)

    store.replace_all_active = overtaken
    with pytest.raises(KeyDestroyedError):
        keyring.rotate("a")
    assert len(store.data_records()) == 1


def test_a_scope_whose_key_was_retired_meanwhile_is_read_again(keyring, store, destroy) -> None:
    old = sealing_key(keyring)
    replace_all_active = store.replace_all_active

    def overtaken(*args, **options):
        store.replace_all_active = replace_all_active
        destroy(old.key_id)
        return replace_all_active(*args, **options)

    store.replace_all_active = overtaken
    record = keyring.rotate("a")
    assert record.key_id != old.key_id
    assert InMemoryKeyStore.active(store, "default", ["a"])["a"] == record


def test_rotation_that_never_settles_ends_in_an_error_to_try_again(keyring, store) -> None:
    sealing_key(keyring)
    store.replace_all_active = lambda *_, **__: {}  # no key holds the slot, and then one does
    with pytest.raises(StoreUnavailableError, match="changed 8 times"):
        keyring.rotate("a")


class EarlierStore(InMemoryKeyStore):
    """A store of an earlier release: one method replaces one key, and the other one always waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[bool] = []
        self.has_no_holder = False

    def replace_active(self, old, closed, new, *, next_mark, wait=True):
        self.waits.append(wait)
        holders = self.replace_all_active([Replacement(old, closed, new)], next_mark=next_mark)
        if self.has_no_holder:
            raise KeyNotFoundError("gone")
        return holders[old.scope]

    def replace_all_active(self, replacements, *, next_mark):
        return super().replace_all_active(replacements, next_mark=next_mark)


def test_a_store_that_still_has_the_old_method_works(new_keyring) -> None:
    store = EarlierStore()
    keyring = new_keyring(key_store=store, max_items=2)
    ids = [sealing_key(keyring, scope).key_id for scope in ("a", "b")]
    ids += [keyring.rotate("a").key_id]
    ids += [outcome.new.key_id for outcome in keyring.rotate_many(["a", "b"]).values()]
    assert store.waits == []
    ids += [keyring.sealing_keys({"a": 2})["a"].key_id for _ in range(2)]  # the second by policy
    store.has_no_holder = True
    ids += [keyring.sealing_keys({"a": 2})["a"].key_id]
    assert set(store.waits) == {False}
    assert all(isinstance(key, DataKey) for key in new_keyring(key_store=store).opening_keys(ids).values())


def test_many_rotations_in_turn_keep_every_key_opening(keyring, new_keyring) -> None:
    ids = [sealing_key(keyring).key_id]
    ids += [new_keyring().rotate("a").key_id for _ in range(10)]
    found = keyring.opening_keys(ids)
    assert all(isinstance(key, DataKey) for key in found.values())
    keyring.refresh()
    assert sealing_key(keyring).key_id == ids[-1]

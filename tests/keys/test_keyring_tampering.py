"""An attacker who can write to the key tables but cannot call the KMS can withhold rows, and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from unittest.mock import Mock

import pytest
from tests.fixtures.key_marks import mark_of

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    StoreUnavailableError,
    WrongApplicationError,
)
from eventseal.keys import DataKey, KeyPurpose, KeyState


def sealing_key(keyring, scope: str = "a"):
    return keyring.sealing_keys({scope: 1})[scope]


def opened(keyring, key_id):
    return keyring.opening_keys([key_id])[key_id]


EDITS = {
    "scope": {"scope": "b"},
    "slot": {"active_scope": None},
    "state": {"state": KeyState.DEACTIVATED},
    "tombstone": {"state": KeyState.DESTROYED, "destroyed_by": "shredded", "wrappings": ()},
    "destroyed_by": {"destroyed_by": "shredded"},
    "version": {"row_version": 2},
    "negative version": {"row_version": -1},
    "purpose": {"purpose": KeyPurpose.FIELD},
    "binding": {"binding": os.urandom(32)},
    "seal": {"seal": os.urandom(32)},
    "short seal": {"seal": b""},
    "wrappings": {"wrappings": ()},
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_row_neither_opens_nor_seals(keyring, new_keyring, store, edit) -> None:
    key = sealing_key(keyring)
    store.edit(key.key_id, **edit)
    assert isinstance(opened(new_keyring(), key.key_id), IntegrityError)
    with pytest.raises(IntegrityError) as caught:
        sealing_key(new_keyring())
    assert str(key.key_id) in str(caught.value)
    assert caught.value.key_id == key.key_id


def test_an_edited_application_is_an_error_that_names_both(keyring, new_keyring, store) -> None:
    key = sealing_key(keyring)
    store.edit(key.key_id, application="other")
    error = opened(new_keyring(), key.key_id)
    assert isinstance(error, WrongApplicationError)
    assert (error.expected, error.found) == ("default", "other")


@pytest.mark.parametrize("column", ["application", "state"])
def test_a_row_that_cannot_be_read_is_named_with_its_column(keyring, new_keyring, store, column) -> None:
    bad, good = sealing_key(keyring, "a"), sealing_key(keyring, "b")
    stand_in = {"application": ""} if column == "application" else {"state": KeyState.DEACTIVATED}
    store.edit(bad.key_id, unreadable=(column,), seal=b"", **stand_in)
    ring = new_keyring()
    assert isinstance(opened(ring, good.key_id), DataKey)
    for error in (opened(ring, bad.key_id), ring.opening_keys([good.key_id, bad.key_id])[bad.key_id]):
        assert isinstance(error, IntegrityError)
        assert f"{bad.key_id} was edited: its {column} cannot be read" in str(error)


@pytest.mark.parametrize("by", ["retired", "shredded"])
def test_an_erasure_cannot_be_forged(keyring, new_keyring, store, by: str) -> None:
    key = sealing_key(keyring)
    running = new_keyring()
    running.refresh()
    store.edit(key.key_id, state=KeyState.DESTROYED, destroyed_by=by, row_version=2, wrappings=())
    for ring in (running, new_keyring()):
        assert isinstance(opened(ring, key.key_id), IntegrityError)


def test_a_retirement_cannot_be_turned_into_an_erasure(keyring, new_keyring, store, destroy) -> None:
    key = sealing_key(keyring)
    destroy(key.key_id, by="retired")
    store.edit(key.key_id, destroyed_by="shredded")
    assert isinstance(opened(new_keyring(), key.key_id), IntegrityError)


def test_a_row_of_another_key_under_this_id_is_refused(keyring, new_keyring, store) -> None:
    first, second = sealing_key(keyring, "a"), sealing_key(keyring, "b")
    store._records[first.key_id] = store._records[second.key_id]
    assert isinstance(opened(new_keyring(), first.key_id), IntegrityError)


def test_another_scopes_row_in_a_slot_is_refused(keyring, new_keyring, store) -> None:
    sealing_key(keyring, "a"), sealing_key(keyring, "b")
    store._slots["default", KeyPurpose.DATA, "a"] = store._slots["default", KeyPurpose.DATA, "b"]
    with pytest.raises(IntegrityError):
        sealing_key(new_keyring(), "a")


def test_a_deactivated_row_in_a_slot_is_refused(keyring, new_keyring, store) -> None:
    old = sealing_key(keyring, "a")
    keyring.rotate("a")
    store._slots["default", KeyPurpose.DATA, "a"] = old.key_id
    with pytest.raises(IntegrityError):
        sealing_key(new_keyring(), "a")


def test_a_row_that_holds_a_slot_without_being_active_is_refused(keyring, new_keyring, store, seals) -> None:
    key = sealing_key(keyring, "a")
    store._records[key.key_id] = seals().sealed(replace(store.record(key.key_id), state=KeyState.DEACTIVATED))
    with pytest.raises(IntegrityError, match="deactivated"):
        sealing_key(new_keyring(), "a")


def test_a_store_key_that_is_not_active_is_refused(keyring, new_keyring, store, seals) -> None:
    sealing_key(keyring, "a")
    (row,) = [record for record in store.records() if record.purpose is KeyPurpose.STORE]
    store._records[row.key_id] = seals().sealed(replace(row, state=KeyState.DEACTIVATED))
    with pytest.raises(IntegrityError, match="deactivated"):
        sealing_key(new_keyring(), "a")


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_store_key_stops_everything(keyring, new_keyring, store, edit) -> None:
    key = sealing_key(keyring)
    (store_key,) = [record for record in store.records() if record.purpose is KeyPurpose.STORE]
    store.edit(store_key.key_id, **edit)
    other = new_keyring()
    assert isinstance(opened(other, key.key_id), EventSealError)
    with pytest.raises(IntegrityError):
        sealing_key(other)
    assert len(store.data_records()) == 1


def test_another_key_in_the_place_of_the_store_key_is_refused(keyring, new_keyring, store) -> None:
    key = sealing_key(keyring)
    store._slots["default", KeyPurpose.STORE, "store"] = key.key_id
    with pytest.raises(IntegrityError):
        sealing_key(new_keyring())


def test_another_applications_store_key_is_refused(keyring, new_keyring, store) -> None:
    sealing_key(keyring), sealing_key(new_keyring(application="other"))
    store._slots["default", KeyPurpose.STORE, "store"] = store._slots["other", KeyPurpose.STORE, "store"]
    with pytest.raises(IntegrityError):
        sealing_key(new_keyring())


def test_a_deleted_store_key_is_noticed_by_new_processes(keyring, new_keyring, store) -> None:
    key = sealing_key(keyring)
    del store._slots["default", KeyPurpose.STORE, "store"]
    other = new_keyring()
    assert isinstance(opened(other, key.key_id), IntegrityError)


def test_no_second_store_key_takes_the_place_of_a_withheld_one(keyring, new_keyring, store) -> None:
    sealing_key(keyring)
    del store._slots["default", KeyPurpose.STORE, "store"]
    with pytest.raises(IntegrityError, match="no store key"):
        sealing_key(new_keyring(), "b")
    assert not store.active("default", ["store"], purpose=KeyPurpose.STORE)


def test_a_deleted_store_key_and_mark_are_noticed_by_new_processes(keyring, new_keyring, store) -> None:
    key = sealing_key(keyring)
    del store._slots["default", KeyPurpose.STORE, "store"]
    store._marks.clear()
    error = opened(new_keyring(), key.key_id)
    assert isinstance(error, IntegrityError)
    assert "no store key" in str(error)
    maker = new_keyring()
    with pytest.raises(IntegrityError):  # a store key made anew matches no row
        sealing_key(maker)


# --- the change mark ---


@pytest.mark.parametrize(
    "edit",
    [{"counter": 7}, {"counter": -1}, {"revoked": os.urandom(32)}, {"seal": bytes(32)}, {"application": "x"}],
)
def test_an_edited_mark_stops_everything_at_the_next_refresh(
    keyring, new_keyring, store, clock, edit
) -> None:
    key = sealing_key(keyring)
    store._marks["default"] = replace(store._marks["default"], **edit)
    assert isinstance(opened(new_keyring(), key.key_id), IntegrityError)
    with pytest.raises(IntegrityError):
        keyring.refresh()
    clock.advance(61)
    assert isinstance(opened(keyring, key.key_id), IntegrityError)
    with pytest.raises(IntegrityError):
        sealing_key(keyring)


def test_a_deleted_mark_stops_everything(keyring, new_keyring, store) -> None:
    key = sealing_key(keyring)
    store._marks.clear()
    assert isinstance(opened(new_keyring(), key.key_id), IntegrityError)
    with pytest.raises(IntegrityError):
        keyring.refresh()


def test_an_edited_mark_undoes_a_rotation(keyring, store) -> None:
    key = sealing_key(keyring)
    store._marks["default"] = replace(store._marks["default"], counter=5)
    with pytest.raises(IntegrityError):
        keyring.rotate("a")
    assert store.record(key.key_id).state is KeyState.ACTIVE
    assert len(store.data_records()) == 1


@pytest.mark.parametrize("how", ["compromised", "shredded"])
def test_one_old_row_put_back_alone_is_refused_by_new_processes(
    keyring, new_keyring, store, destroy, how
) -> None:
    key, other = sealing_key(keyring, "a"), sealing_key(keyring, "b")
    old = store.record(key.key_id)
    if how == "compromised":
        keyring.rotate("a", compromised=True)
    else:
        destroy(key.key_id, by="shredded")
    assert isinstance(opened(new_keyring(), other.key_id), DataKey)
    store._records[key.key_id] = old
    error = opened(new_keyring(), key.key_id)
    assert isinstance(error, IntegrityError)
    assert error.key_id == key.key_id
    assert isinstance(opened(new_keyring(), other.key_id), DataKey)


@pytest.mark.parametrize("how", ["deactivated", "compromised", "shredded", "retired"])
def test_one_old_row_put_back_is_refused_by_running_processes(
    keyring, new_keyring, store, destroy, how
) -> None:
    key = sealing_key(keyring, "a")
    old = store.record(key.key_id)
    witness = new_keyring()
    if how in {"deactivated", "compromised"}:
        new_keyring().rotate("a", compromised=how == "compromised")
    else:
        destroy(key.key_id, by=how)
    opened(witness, key.key_id)  # sees the later state
    store._records[key.key_id] = old
    witness._held_keys.of(KeyPurpose.DATA).drop(key.key_id, close=False)
    witness._opener.look_again()
    error = opened(witness, key.key_id)
    assert isinstance(error, IntegrityError)
    assert error.key_id == key.key_id


def test_a_put_back_row_of_a_key_that_was_never_read_is_refused_too(keyring, new_keyring, store) -> None:
    key = sealing_key(keyring, "a")
    old = store.record(key.key_id)
    keyring.rotate("a", compromised=True)
    witness = new_keyring()
    sealing_key(witness, "b")  # has read the root of the tree, never the key
    store._records[key.key_id] = old
    assert isinstance(opened(witness, key.key_id), IntegrityError)


def test_a_put_back_row_does_not_come_to_seal_again(keyring, new_keyring, store) -> None:
    key = sealing_key(keyring, "a")
    old = store.record(key.key_id)
    new = keyring.rotate("a", compromised=True)
    store._records[key.key_id] = old
    store._slots["default", KeyPurpose.DATA, "a"] = key.key_id
    store._records.pop(new.key_id)
    keyring._held_keys.unseat(new.scope, KeyPurpose.DATA)
    with pytest.raises(IntegrityError):
        sealing_key(keyring, "a")
    with pytest.raises(IntegrityError):
        keyring.rotate("a")


def test_a_withheld_tombstone_is_a_key_that_is_not_there(keyring, new_keyring, store, destroy) -> None:
    shredded, other = sealing_key(keyring, "a"), sealing_key(keyring, "b")
    destroy(shredded.key_id, by="shredded")
    del store._records[shredded.key_id]
    assert isinstance(opened(new_keyring(), shredded.key_id), KeyNotFoundError)  # not erased
    assert isinstance(opened(new_keyring(), other.key_id), DataKey)


def test_an_older_set_put_back_whole_is_refused_by_running_processes(
    keyring, new_keyring, store, destroy
) -> None:
    key, other = sealing_key(keyring, "a"), sealing_key(keyring, "b")
    before = store.snapshot()
    destroy(key.key_id, by="shredded")
    keyring.refresh()
    store.restore(before)
    with pytest.raises(IntegrityError, match="went back"):
        keyring.refresh()
    assert isinstance(opened(new_keyring(), other.key_id), DataKey)  # one that starts afterwards cannot tell


def test_a_process_notices_the_loss_of_its_own_rotation(keyring, store) -> None:
    sealing_key(keyring, "a")
    before = store.snapshot()
    keyring.rotate("a")
    store.restore(before)
    with pytest.raises(IntegrityError, match="went back"):
        keyring.refresh()


def test_a_rotation_does_not_build_on_an_older_mark(keyring, store, destroy) -> None:
    key, other = sealing_key(keyring, "a"), sealing_key(keyring, "b")
    before = store.snapshot()
    destroy(key.key_id, by="shredded")
    keyring.refresh()
    store.restore(before)
    with pytest.raises(IntegrityError):
        keyring.rotate("b")
    assert store.record(other.key_id).state is KeyState.ACTIVE


def test_a_mark_changed_without_its_counter_is_refused(keyring, store, seals) -> None:
    sealing_key(keyring)
    forged = seals()._sealed_mark(0, os.urandom(32))  # as only a stolen store key could
    store._marks["default"] = forged
    with pytest.raises(IntegrityError, match="counter"):
        keyring.refresh()


def test_an_edited_row_in_a_refresh_stops_that_key_alone(keyring, new_keyring, store) -> None:
    bad, good = sealing_key(keyring, "a"), sealing_key(keyring, "b")
    new_keyring().rotate("a")
    store.edit(bad.key_id, row_version=9)
    keyring.refresh()
    assert opened(keyring, good.key_id) is good
    assert isinstance(opened(keyring, bad.key_id), IntegrityError)


def test_a_compromised_key_may_be_retired(keyring, new_keyring, store, seals) -> None:
    key = sealing_key(keyring, "a")
    keyring.rotate("a", compromised=True)
    keyring.refresh()
    made = seals()
    record = store.record(key.key_id)
    tombstone = made.sealed(
        replace(record, state=KeyState.DESTROYED, destroyed_by="retired", row_version=record.row_version + 1)
    )
    store.set_states([tombstone], next_mark=mark_of(made, [tombstone]))
    keyring.refresh()
    for ring in (keyring, new_keyring()):
        assert isinstance(opened(ring, key.key_id), KeyDestroyedError)


def test_a_wrapping_that_names_no_branch_key_is_told_with_the_key_that_it_wraps(new_keyring, store) -> None:
    """The key it names may be in order: who reads of it alone looks for the fault in the wrong row."""
    keyring = new_keyring(branches=1)
    edited, named = (keyring.sealing_keys({scope: 1})[scope].key_id for scope in ("a", "b"))
    (wrapped,) = store.record(edited).wrappings
    store.edit(edited, wrappings=(replace(wrapped, kek_uri=f"branch:{named}"),))
    error = new_keyring().opening_keys([edited])[edited]
    assert isinstance(error, IntegrityError)
    assert str(error).startswith(f"key {edited} is wrapped under branch key {named}: ")
    assert "key tables" in error.remedy


# --- the revocation tree ---


def test_a_refresh_reads_no_more_of_the_tree_than_moved_and_is_held(keyring, new_keyring, store) -> None:
    running = new_keyring()
    key = sealing_key(running, "a")
    running.refresh()

    def reads() -> list[str]:
        store.calls.clear()
        running.refresh()
        return list(store.calls)

    assert reads() == ["changes"]
    sealing_key(keyring, "b")
    keyring.rotate("b")  # moves the counter, and nothing is revoked
    assert reads() == ["changes"]
    new_keyring().compromise([key.key_id])
    assert reads() == ["changes", "revocations"]
    assert reads() == ["changes"]
    assert opened(running, key.key_id).state is KeyState.COMPROMISED


def test_a_refresh_that_breaks_off_asks_again_what_was_revoked(
    keyring, new_keyring, store, monkeypatch
) -> None:
    key, running = sealing_key(keyring, "a"), new_keyring()
    opened(running, key.key_id)
    keyring.rotate("a", compromised=True)
    store._changed[key.key_id] = 0  # so that the tree alone tells
    broken = StoreUnavailableError("away")
    with monkeypatch.context() as patched, pytest.raises(StoreUnavailableError):
        patched.setattr(store, "revocations", Mock(side_effect=broken))
        running.refresh()
    running.refresh()
    assert opened(running, key.key_id).state is KeyState.COMPROMISED


def test_an_edited_change_number_hides_no_revocation_from_a_running_process(
    keyring, new_keyring, store
) -> None:
    """The rows that changed are found by that column, which has no seal: the tree says what was revoked."""
    key, witness = sealing_key(keyring, "a"), new_keyring()
    assert opened(witness, key.key_id).state is KeyState.ACTIVE
    keyring.rotate("a", compromised=True)
    store._changed[key.key_id] = 0
    witness.refresh()
    assert opened(witness, key.key_id).state is KeyState.COMPROMISED


@pytest.mark.parametrize("how", ["put back", "taken away", "forged"])
def test_a_revocation_that_is_withheld_from_a_running_process_is_noticed(
    keyring, new_keyring, store, how
) -> None:
    key, other, witness = sealing_key(keyring, "a"), sealing_key(keyring, "b"), new_keyring()
    old = store.record(key.key_id)
    assert isinstance(opened(witness, key.key_id), DataKey)
    keyring.rotate("a", compromised=how != "forged")
    if how == "put back":
        store._records[key.key_id] = old
    elif how == "taken away":
        del store._records[key.key_id], store._changed[key.key_id]
    else:
        store.edit(key.key_id, destroyed_by="shredded")
    witness.refresh()
    error = opened(witness, key.key_id)
    assert isinstance(error, KeyNotFoundError if how == "taken away" else IntegrityError)
    assert error.key_id == key.key_id
    assert isinstance(opened(witness, other.key_id), DataKey)


def test_what_was_revoked_stays_so_whatever_changes_later(keyring, new_keyring, store) -> None:
    key, witness = sealing_key(keyring, "a"), new_keyring()
    old = store.record(key.key_id)
    keyring.rotate("a", compromised=True)
    witness.refresh()
    store._records[key.key_id] = old
    keyring.rotate("a")
    witness.refresh()
    for ring in (witness, new_keyring()):
        error = opened(ring, key.key_id)
        assert isinstance(error, IntegrityError)
        assert error.key_id == key.key_id

"""Keys come to their end: marked compromised, retired, shredded; and none of them comes back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import attrgetter

import pytest
from tests.fixtures.key_marks import mark_of

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    JobError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsUnavailableError,
    StoreUnavailableError,
    WrongApplicationError,
)
from eventseal.keys import DataKey, InMemoryKeyStore, KeyPurpose, KeyState
from eventseal.keys.records import new_key_id
from eventseal.keys.states import SUBJECT_PURPOSES
from eventseal.testing import FakeKms

SCOPE = "subject:customer-42"


def sealing_key(keyring, scope: str = SCOPE) -> DataKey:
    return keyring.sealing_keys({scope: 1})[scope]


def opened(keyring, key_id):
    return keyring.opening_keys([key_id])[key_id]


def slots(store, scope: str = SCOPE) -> dict[KeyPurpose, KeyState]:
    """The state of the key that holds the scope's slot, by purpose."""
    found = {}
    for purpose in KeyPurpose:
        holder = InMemoryKeyStore.active(store, "default", [scope], purpose=purpose).get(scope)
        if holder is not None:
            found[purpose] = holder.state
    return found


CLOSED = dict.fromkeys(SUBJECT_PURPOSES, KeyState.DESTROYED)


# --- shred ---


def test_shredding_destroys_every_key_of_the_scope_and_closes_it(keyring, store) -> None:
    first = sealing_key(keyring)
    keyring.rotate(SCOPE)
    second = sealing_key(keyring)
    other = sealing_key(keyring, "subject:other")
    ended = keyring.shred(SCOPE)
    assert set(ended.destroyed) == {first.key_id, second.key_id}
    for key_id in ended.destroyed:
        record = store.record(key_id)
        assert (record.state, record.destroyed_by, record.wrappings) == ("destroyed", "shredded", ())
    assert slots(store) == CLOSED
    assert store.record(second.key_id).active_scope == SCOPE
    assert store.record(first.key_id).active_scope is None
    assert opened(keyring, other.key_id) is other


def test_a_shred_moves_the_counter_once_for_all_keys_and_tombstones(keyring, store) -> None:
    sealing_key(keyring)
    keyring.rotate(SCOPE)
    before = store.changes("default", -1, ()).mark.counter
    keyring.shred(SCOPE)
    assert store.changes("default", before, ()).mark.counter == before + 1


def test_what_was_shredded_opens_and_seals_nowhere(keyring, new_keyring) -> None:
    other = new_keyring()
    old, held = sealing_key(keyring), sealing_key(other)
    keyring.shred(SCOPE)
    assert old.closed  # at once, in the process that did it
    other.refresh()
    assert held.closed
    for ring in (keyring, other, new_keyring()):
        error = opened(ring, old.key_id)
        assert isinstance(error, KeyDestroyedError)
        assert (error.destroyed_by, error.scope) == ("shredded", SCOPE)
        for seal in (sealing_key, lambda ring: ring.rotate(SCOPE), lambda ring: ring.prepare([SCOPE])):
            with pytest.raises(KeyDestroyedError, match="the scope is closed"):
                seal(ring)


def test_other_processes_stop_within_the_refresh_interval(keyring, new_keyring, clock) -> None:
    other = new_keyring(refresh_interval=60.0)
    held = sealing_key(other)
    keyring.shred(SCOPE)
    assert opened(other, held.key_id) is held
    clock.advance(60.1)
    assert isinstance(opened(other, held.key_id), KeyDestroyedError)
    assert held.closed


def test_keys_of_fields_and_indexes_are_shredded_with_the_scope(keyring, store, seals) -> None:
    from dataclasses import replace

    from eventseal.keys.records import new_record

    sealing_key(keyring)
    made = {}
    for purpose in (KeyPurpose.FIELD, KeyPurpose.INDEX):
        record = new_record("default", SCOPE, purpose, leased=0)
        made[purpose] = seals().sealed(replace(record, binding=bytes(32)))
        store.add_active([made[purpose]])
    keyring.shred(SCOPE)
    for record in made.values():
        assert store.record(record.key_id).destroyed_by == "shredded"
    assert slots(store) == CLOSED
    assert len(store.of_scope("default", SCOPE)) == 3  # no tombstone beside a key's own


def test_shredding_again_finds_nothing_left_and_moves_the_tombstones(keyring, new_keyring, store) -> None:
    sealing_key(keyring)
    first = keyring.shred(SCOPE)
    rows = store.of_scope("default", SCOPE)
    again = new_keyring().shred(SCOPE)
    assert again.destroyed == ()
    assert {record.key_id for record in again.shredded} == {record.key_id for record in first.shredded}
    now = store.of_scope("default", SCOPE)
    assert [(row.row_version, replace(row, row_version=0, seal=b"")) for row in now] == [
        (row.row_version + 1, replace(row, row_version=0, seal=b"")) for row in rows
    ]


def test_a_retired_key_of_the_scope_stays_retired_and_closes_nothing(keyring, store, destroy) -> None:
    retired = sealing_key(keyring)
    destroy(retired.key_id, by="retired")
    ended = keyring.shred(SCOPE)
    assert ended.destroyed == ()
    assert store.record(retired.key_id).destroyed_by == "retired"
    assert slots(store) == CLOSED
    assert retired.key_id not in {record.key_id for record in ended.shredded}
    assert store.record(retired.key_id).active_scope is None


def test_branch_and_store_keys_of_a_like_named_scope_are_left_alone(new_keyring, store) -> None:
    keyring = new_keyring(branches=1)
    key = sealing_key(keyring, "branch:0")
    other = sealing_key(keyring, "store")
    assert keyring.shred("branch:0").destroyed == (key.key_id,)
    assert keyring.shred("store").destroyed == (other.key_id,)
    for scope, purpose in (("branch:0", KeyPurpose.BRANCH), ("store", KeyPurpose.STORE)):
        assert slots(store, scope) == {**CLOSED, purpose: KeyState.ACTIVE}
    assert isinstance(sealing_key(new_keyring(branches=1), "elsewhere"), DataKey)


@pytest.mark.parametrize("verb", ["shred", "destroyer.reopen"])
def test_a_scope_that_never_had_a_key_is_refused(keyring, store, verb) -> None:
    sealing_key(keyring, "subject:customer-43")
    before = store.snapshot()
    with pytest.raises(ConfigurationError, match="customer-42"):
        attrgetter(verb)(keyring)(SCOPE)
    for refused in ("store", "", "a\0b"):
        with pytest.raises(ConfigurationError):
            attrgetter(verb)(keyring)(refused)
    assert store.snapshot() == before


def test_the_scope_of_everybody_is_not_shredded(keyring, store) -> None:
    sealing_key(keyring, "application")
    before = store.snapshot()
    with pytest.raises(ConfigurationError, match="holds every event without its own scope"):
        keyring.shred("application")
    assert store.snapshot() == before


def test_an_edited_row_stops_the_shred_before_anything_is_destroyed(keyring, store) -> None:
    old = sealing_key(keyring)
    keyring.rotate(SCOPE)
    before = store.snapshot()
    for edit in ({"purpose": KeyPurpose.BRANCH}, {"state": KeyState.DESTROYED}, {"row_version": 7}):
        store.restore(before)
        store.edit(old.key_id, **edit)
        with pytest.raises(IntegrityError) as caught:
            keyring.shred(SCOPE)
        assert caught.value.key_id == old.key_id
        assert store.data_records()[-1].state is KeyState.ACTIVE


def test_a_keyring_that_is_closed_ends_no_key(keyring) -> None:
    key = sealing_key(keyring)
    keyring.close()
    for verb in (
        lambda: keyring.shred(SCOPE),
        lambda: keyring.destroyer.reopen(SCOPE),
        lambda: keyring.destroyer.retire([key.key_id]),
        lambda: keyring.compromise([key.key_id]),
        lambda: keyring.rotate_many([SCOPE]),
    ):
        with pytest.raises(ConfigurationError, match="closed"):
            verb()


def test_a_closed_keyring_makes_no_store_key(keyring, store) -> None:
    keyring.close()
    with pytest.raises(ConfigurationError, match="closed"):
        keyring.destroyer.retire([new_key_id()])
    assert store.records() == []


def test_a_closed_keyring_makes_and_opens_no_ledgers_key(keyring) -> None:
    _, record = keyring.ledger_keys.new()
    keyring.close()
    for use in (
        keyring.ledger_keys.new,
        lambda: keyring.ledger_keys.open(record),
        lambda: keyring.ledger_keys.rewrapped(record),
    ):
        with pytest.raises(ConfigurationError, match="closed"):
            use()


# --- shred against what is in flight ---


def test_a_rotation_in_flight_is_shredded_too(keyring, new_keyring, store) -> None:
    sealing_key(keyring)
    with store.gate("of_scope") as gate, ThreadPoolExecutor(1) as pool:
        shred = pool.submit(keyring.shred, SCOPE)
        gate.wait_reached()
        late = new_keyring().rotate(SCOPE)
        gate.open()
        ended = shred.result(60)
    assert late.key_id in ended.destroyed
    assert slots(store) == CLOSED
    assert store.record(late.key_id).destroyed_by == "shredded"


def test_a_rotation_that_comes_second_is_refused_and_leaves_no_key(keyring, new_keyring, store) -> None:
    sealing_key(keyring)
    rotator = new_keyring()
    rotator.refresh()
    with store.gate("replace_all_active", after=False) as gate, ThreadPoolExecutor(1) as pool:
        rotation = pool.submit(rotator.rotate, SCOPE)
        gate.wait_reached()
        keyring.shred(SCOPE)
        gate.open()
        with pytest.raises(KeyDestroyedError):
            rotation.result(60)
    assert all(record.state is KeyState.DESTROYED for record in store.of_scope("default", SCOPE))


def test_a_first_key_in_flight_is_shredded_too(keyring, new_keyring, store, destroy) -> None:
    destroy(sealing_key(keyring).key_id, by="retired")  # so that the slot is free
    with store.gate("of_scope") as gate, ThreadPoolExecutor(1) as pool:
        shred = pool.submit(keyring.shred, SCOPE)
        gate.wait_reached()
        late = sealing_key(new_keyring())
        gate.open()
        assert shred.result(60).destroyed == (late.key_id,)
    assert slots(store) == CLOSED


def test_a_first_key_that_comes_second_is_refused(keyring, new_keyring, store, destroy) -> None:
    destroy(sealing_key(keyring).key_id, by="retired")
    with store.gate("add_active", after=False) as gate, ThreadPoolExecutor(1) as pool:
        first_use = pool.submit(sealing_key, new_keyring())
        gate.wait_reached()
        keyring.shred(SCOPE)
        gate.open()
        with pytest.raises(KeyDestroyedError):
            first_use.result(60)
    assert all(record.state is KeyState.DESTROYED for record in store.of_scope("default", SCOPE))


@pytest.mark.parametrize("who", ["same process", "another process"])
def test_a_load_in_flight_does_not_put_the_key_back(keyring, new_keyring, store, who) -> None:
    key_id = sealing_key(keyring).key_id
    loader = new_keyring()
    loader.refresh()
    shredder = loader if who == "same process" else keyring
    with store.gate("get") as gate, ThreadPoolExecutor(1) as pool:
        load = pool.submit(opened, loader, key_id)
        gate.wait_reached()  # the row, still with its wrappings, is in the loader's hand
        shredder.shred(SCOPE)
        loader.refresh()
        gate.open()
        assert isinstance(load.result(60), KeyDestroyedError)
    assert isinstance(opened(loader, key_id), KeyDestroyedError)


def test_shreds_and_rotations_that_race_leave_the_scope_closed(keyring, new_keyring, store) -> None:
    sealing_key(keyring)
    barrier = threading.Barrier(6)

    def work(number: int) -> None:
        ring = new_keyring()
        barrier.wait(60)
        for _ in range(5):
            try:
                ring.shred(SCOPE) if number < 2 else ring.rotate(SCOPE, compromised=number == 5)
            except KeyDestroyedError:
                return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert slots(store) == CLOSED
    assert all(record.state is KeyState.DESTROYED for record in store.of_scope("default", SCOPE))
    new_keyring().refresh()  # the set of revoked keys is the one that the mark counts


def test_a_shred_that_never_settles_ends_in_an_error_to_try_again(keyring, store) -> None:
    key = sealing_key(keyring)
    store.set_states = lambda *_, **__: []
    with pytest.raises(StoreUnavailableError, match="changed 8 times"):
        keyring.shred(SCOPE)
    assert store.record(key.key_id).state is KeyState.ACTIVE


def test_a_shred_whose_answer_was_lost_is_done_when_run_again(keyring, store) -> None:
    key = sealing_key(keyring)
    set_states = store.set_states

    def lost(*args, **options):
        set_states(*args, **options)
        raise StoreUnavailableError("the connection was lost")

    store.set_states = lost
    with pytest.raises(StoreUnavailableError):
        keyring.shred(SCOPE)
    store.set_states = set_states
    ended = keyring.shred(SCOPE)
    assert ended.destroyed == ()
    assert key.key_id in {record.key_id for record in ended.shredded}
    assert isinstance(opened(keyring, key.key_id), KeyDestroyedError)


# --- reopen ---


def test_a_reopened_scope_gets_new_keys_and_the_old_ones_stay_destroyed(keyring, new_keyring, store) -> None:
    old = sealing_key(keyring).key_id
    keyring.shred(SCOPE)
    assert len(keyring.destroyer.reopen(SCOPE)) == 3
    assert slots(store) == {}
    new = sealing_key(new_keyring())
    assert new.key_id != old
    assert sealing_key(keyring).key_id == new.key_id
    for ring in (keyring, new_keyring()):
        error = opened(ring, old)
        assert isinstance(error, KeyDestroyedError)
        assert "closed" not in str(error)
    again = keyring.shred(SCOPE)
    assert again.destroyed == (new.key_id,)
    assert slots(store) == CLOSED
    new_keyring().refresh()


def test_a_scope_reopened_and_not_used_is_closed_again_by_the_same_tombstones(keyring, store) -> None:
    sealing_key(keyring)
    keyring.shred(SCOPE)
    rows = len(store.of_scope("default", SCOPE))
    keyring.destroyer.reopen(SCOPE)
    assert keyring.shred(SCOPE).destroyed == ()
    assert slots(store) == CLOSED
    assert len(store.of_scope("default", SCOPE)) == rows


def test_a_scope_that_is_not_closed_is_left_as_it_is(keyring, store) -> None:
    sealing_key(keyring)
    before = store.snapshot()
    assert keyring.destroyer.reopen(SCOPE) == []
    assert store.snapshot() == before


# --- retire ---


def test_a_retired_key_opens_nowhere(keyring, new_keyring, store) -> None:
    other = new_keyring()
    old = sealing_key(keyring, "a").key_id
    held = opened(other, old)
    keyring.rotate("a")
    (tombstone,) = keyring.destroyer.retire([old])
    assert (tombstone.state, tombstone.destroyed_by, tombstone.active_scope) == ("destroyed", "retired", None)
    assert store.record(old).wrappings == ()
    other.refresh()
    assert held.closed
    for ring in (keyring, other, new_keyring()):
        error = opened(ring, old)
        assert isinstance(error, KeyDestroyedError)
        assert error.destroyed_by == "retired"
    assert keyring.destroyer.retire([old]) == [tombstone]


def test_a_compromised_key_may_be_retired_later(keyring, new_keyring) -> None:
    running = new_keyring()
    old = sealing_key(keyring, "a").key_id
    keyring.rotate("a", compromised=True)
    running.refresh()
    keyring.destroyer.retire([old])
    for ring in (running, new_keyring()):
        ring.refresh()
        assert isinstance(opened(ring, old), KeyDestroyedError)


def test_active_keys_and_keys_that_are_never_retired_are_refused(keyring, store, seals) -> None:
    old, store_key = sealing_key(keyring, "a"), store.active("default", ["store"], purpose=KeyPurpose.STORE)
    keyring.rotate("a")
    active = sealing_key(keyring, "a")
    with pytest.raises(JobError, match="active key of scope 'a'") as caught:
        keyring.destroyer.retire([old.key_id, active.key_id])
    assert "rotate" in caught.value.remedy
    with pytest.raises(JobError, match="active") as caught:
        keyring.destroyer.retire([store_key["store"].key_id])
    assert caught.value.remedy == "Keep this key: `eventseal rotate` replaces only data keys."
    assert store.record(old.key_id).state is KeyState.DEACTIVATED  # all or none


@pytest.mark.parametrize("purpose", [KeyPurpose.FIELD, KeyPurpose.INDEX])
def test_keys_whose_items_nobody_can_count_are_only_shredded(keyring, store, seals, purpose) -> None:
    from dataclasses import replace

    from eventseal.keys.records import new_record

    sealing_key(keyring)
    record = replace(new_record("default", SCOPE, purpose, leased=0), binding=bytes(32))
    store.add_active([seals().sealed(record)])
    closed = replace(record, state=KeyState.DEACTIVATED, active_scope=None, row_version=2)
    store.set_states([seals().sealed(closed)], next_mark=mark_of(seals()))
    with pytest.raises(JobError, match=f"purpose {purpose}"):
        keyring.destroyer.retire([record.key_id])
    with pytest.raises(ConfigurationError, match=f"purpose {purpose}") as caught:
        keyring.compromise([record.key_id])
    assert purpose is not KeyPurpose.FIELD or "eventseal shred" in caught.value.remedy
    assert record.key_id in keyring.shred(SCOPE).destroyed


def test_unknown_and_foreign_keys_are_told(keyring, new_keyring) -> None:
    old = sealing_key(keyring, "a").key_id
    foreign = sealing_key(new_keyring(application="other"), "a").key_id
    keyring.rotate("a")
    for verb in (keyring.destroyer.retire, keyring.compromise):
        with pytest.raises(KeyNotFoundError):
            verb([old, new_key_id()])
        with pytest.raises(WrongApplicationError):
            verb([old, foreign])
    assert opened(keyring, old).state is KeyState.DEACTIVATED


def test_a_dry_run_only_checks(keyring, store) -> None:
    old = sealing_key(keyring, "a").key_id
    keyring.rotate("a")
    before = store.snapshot()
    (record,) = keyring.destroyer.retire([old], dry_run=True)
    assert record.state is KeyState.DEACTIVATED
    assert store.snapshot() == before
    store.edit(old, binding=bytes(32))
    with pytest.raises(IntegrityError):
        keyring.destroyer.retire([old], dry_run=True)


# --- branch keys ---


def test_a_branch_key_is_retired_when_it_wraps_nothing(new_keyring, store) -> None:
    keyring = new_keyring(branches=1)
    data = sealing_key(keyring, "a").key_id
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    keyring.rotate_branches()
    assert keyring.destroyer.wrapped_under([branch.key_id]) == {branch.key_id: 1}
    for dry_run in (True, False):
        with pytest.raises(JobError, match=r"has wrapped 1 other key$") as caught:
            keyring.destroyer.retire([branch.key_id], dry_run=dry_run)
        assert "rewrap" in caught.value.remedy
    keyring.rotate("a")
    keyring.destroyer.retire([data])
    assert keyring.destroyer.wrapped_under([branch.key_id]) == {}
    keyring.destroyer.retire([branch.key_id])
    assert store.record(branch.key_id).destroyed_by == "retired"
    assert isinstance(opened(new_keyring(), sealing_key(keyring, "a").key_id), DataKey)


@pytest.mark.parametrize("work", ["first use", "rotation", "many rotations", "policy"])
def test_a_key_wrapped_under_a_branch_key_that_was_just_retired_is_wrapped_again(
    new_keyring, store, clock, work
) -> None:
    from datetime import timedelta

    store._refresh_interval = 1e9  # the process learns of nothing by itself
    stale = new_keyring(branches=1, max_age=timedelta(hours=1), ttl=1e9, refresh_interval=1e9)
    old = sealing_key(stale, "a")
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    operator = new_keyring(branches=1)
    operator.rotate_branches()
    operator.rewrap()
    operator.destroyer.retire([branch.key_id])
    clock.advance(3601)
    if work == "first use":
        key_id = sealing_key(stale, "b").key_id
    elif work == "rotation":
        key_id = stale.rotate("a").key_id
    elif work == "many rotations":
        (rotated,) = stale.rotate_many(["a"]).values()
        key_id = rotated.new.key_id
    else:
        sealing_key(stale, "a")  # tries once, learns of it, and goes on with the old key
        clock.advance(31)
        key_id = sealing_key(stale, "a").key_id
        assert key_id != old.key_id
    assert isinstance(opened(new_keyring(branches=1), key_id), DataKey)
    assert not any(f"branch:{branch.key_id}" == w.kek_uri for r in store.records() for w in r.wrappings)


def test_data_keys_under_a_destroyed_branch_key_stop_with_it(new_keyring, store, destroy, clock) -> None:
    maker, holder = new_keyring(branches=1), new_keyring()
    key_id = sealing_key(maker).key_id
    held = opened(holder, key_id)
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    destroy(branch.key_id)
    assert opened(holder, key_id) is held
    holder.refresh()
    assert held.closed
    error = opened(holder, key_id)
    assert isinstance(error, KeyDestroyedError)
    assert error.key_id == branch.key_id
    assert "Nothing can decrypt this item again" not in error.remedy


def test_data_keys_stop_although_their_branch_key_was_evicted(new_keyring, store, destroy) -> None:
    key_id = sealing_key(new_keyring(branches=1)).key_id
    holder = new_keyring()
    held = opened(holder, key_id)
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    holder._held_keys.of(KeyPurpose.BRANCH).drop(branch.key_id, close=False)
    destroy(branch.key_id)
    holder.refresh()
    assert held.closed
    assert isinstance(opened(holder, key_id), KeyDestroyedError)


def test_who_finds_a_branch_key_destroyed_closes_what_it_had_opened(new_keyring, store, destroy) -> None:
    maker, holder = new_keyring(branches=1), new_keyring()
    first, second = sealing_key(maker, "a").key_id, sealing_key(maker, "b").key_id
    held = opened(holder, first)
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    destroy(branch.key_id)
    holder._held_keys.of(KeyPurpose.BRANCH).drop(branch.key_id, close=False)
    assert isinstance(
        opened(holder, second), KeyDestroyedError
    )  # looks for the branch key, without a refresh
    assert held.closed


def test_a_load_in_flight_does_not_outlive_its_branch_key(new_keyring, store, destroy, clock) -> None:
    key_id = sealing_key(new_keyring(branches=1)).key_id
    loader = new_keyring()
    loader.refresh()
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    unwrap = loader._ring.branches.unwrap

    def overtaken(records):
        loader._ring.branches.unwrap = unwrap
        outcomes = unwrap(records)  # the branch key was there, and has done its work
        destroy(branch.key_id)
        loader.refresh()
        return outcomes

    loader._ring.branches.unwrap = overtaken
    loader.opening_keys([key_id])
    assert isinstance(opened(loader, key_id), KeyDestroyedError)


def test_a_row_read_before_its_key_was_wrapped_elsewhere_is_read_again(new_keyring, store) -> None:
    maker = new_keyring(branches=1)
    key_id = sealing_key(maker, "a").key_id
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    loader = new_keyring()
    loader.refresh()
    with store.gate("get") as gate, ThreadPoolExecutor(1) as pool:
        load = pool.submit(opened, loader, key_id)
        gate.wait_reached()
        maker.rotate_branches()
        maker.rewrap()
        maker.destroyer.retire([branch.key_id])
        gate.open()
        assert isinstance(load.result(60), DataKey)


# --- compromised ---


def test_a_key_that_was_replaced_long_ago_is_marked_without_a_rotation(keyring, new_keyring, store) -> None:
    old = sealing_key(keyring, "a").key_id
    active = keyring.rotate("a")
    (record,) = keyring.compromise([old])
    assert record.state is KeyState.COMPROMISED
    assert InMemoryKeyStore.active(store, "default", ["a"])["a"].key_id == active.key_id
    for ring in (keyring, new_keyring()):
        ring.refresh()
        assert opened(ring, old).state is KeyState.COMPROMISED
    before = store.snapshot()
    assert [each.state for each in keyring.compromise([old])] == [KeyState.COMPROMISED]
    assert store.snapshot() == before


def test_an_active_key_that_leaked_is_replaced_first(keyring, store) -> None:
    leaked, older = sealing_key(keyring, "a").key_id, sealing_key(keyring, "b").key_id
    keyring.rotate("b")
    records = keyring.compromise([older, leaked])
    assert [record.state for record in records] == [KeyState.COMPROMISED] * 2
    assert sealing_key(keyring, "a").key_id != leaked
    assert len(store.data_records()) == 4


def test_a_branch_key_is_marked_compromised_too(new_keyring, store) -> None:
    keyring = new_keyring(branches=1)
    sealing_key(keyring, "a")
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    (marked,) = keyring.compromise([branch.key_id])
    assert marked.state is KeyState.COMPROMISED
    assert len([record for record in store.records() if record.purpose is KeyPurpose.BRANCH]) == 2


def test_a_destroyed_key_is_not_marked(keyring, store, destroy) -> None:
    gone, live = sealing_key(keyring, "a").key_id, sealing_key(keyring, "b").key_id
    destroy(gone)
    before = store.snapshot()
    with pytest.raises(KeyDestroyedError):
        keyring.compromise([live, gone])
    assert store.snapshot() == before


def test_a_compromised_key_that_is_shredded_counts_as_shredded(keyring, new_keyring, store) -> None:
    """Else the compromised row, put back with its wrappings, would pass for what the tree has."""
    running, other = new_keyring(), sealing_key(keyring, "b")
    old = sealing_key(keyring).key_id
    keyring.rotate(SCOPE, compromised=True)
    compromised = store.record(old)
    running.refresh()
    keyring.shred(SCOPE)
    running.refresh()
    assert isinstance(opened(running, old), KeyDestroyedError)
    store._records[old] = compromised
    running._opener.look_again()
    for ring in (running, new_keyring()):
        assert isinstance(opened(ring, old), IntegrityError)
        assert isinstance(opened(ring, other.key_id), DataKey)


# --- many scopes at once ---


def test_many_scopes_are_rotated_with_one_call_of_the_kms_for_all(new_keyring, store) -> None:
    from eventseal.testing import FakeBatchKms

    kms = [FakeBatchKms("one"), FakeBatchKms("two")]
    keyring = new_keyring(kms=kms)
    scopes = [f"tenant:{number}" for number in range(50)]
    keyring.prepare(scopes)
    olds = {scope: keyring.sealing_keys({scope: 1})[scope].key_id for scope in scopes}
    before = keyring.counters.kms_calls
    rotated = keyring.rotate_many(scopes)
    assert {scope: outcome.old for scope, outcome in rotated.items()} == olds
    assert keyring.counters.kms_calls - before <= 51 + 1  # made one by one by the first, wrapped at once
    for scope, outcome in rotated.items():
        assert store.record(olds[scope]).state is KeyState.DEACTIVATED
        assert sealing_key(keyring, scope).key_id == outcome.new.key_id


class GeneratingKms(FakeKms):
    """Makes several keys at once, each of which may fail."""

    failing: int | None = None
    short: int | None = None

    def generate_data_keys(self, contexts):
        answers = []
        for number, context in enumerate(contexts):
            key, wrapped = self.generate_data_key(context)
            if number == self.failing:
                answers.append(KmsUnavailableError("throttled", kek_uri=self.uri))
            else:
                answers.append((key[:16] if number == self.short else key, wrapped))
        return answers


@pytest.mark.parametrize("trouble", [None, "failing", "short"])
def test_keys_are_made_together_where_the_kms_can(new_keyring, store, trouble) -> None:
    kms = GeneratingKms()
    keyring = new_keyring(kms=kms)
    scopes = [f"tenant:{number}" for number in range(30)]
    keyring.prepare(scopes)
    if trouble is not None:
        setattr(kms, trouble, 7)
        before = store.snapshot()
        with pytest.raises(KmsUnavailableError if trouble == "failing" else IntegrityError):
            keyring.rotate_many(scopes)
        assert store.snapshot() == before  # all, or none
        setattr(kms, trouble, None)
    calls = keyring.counters.kms_calls
    rotated = keyring.rotate_many(scopes)
    assert keyring.counters.kms_calls == calls + 1
    found = new_keyring(kms=kms).opening_keys([outcome.new.key_id for outcome in rotated.values()])
    assert all(isinstance(key, DataKey) for key in found.values())


def test_with_branches_many_scopes_are_rotated_without_a_call(new_keyring, kms) -> None:
    keyring = new_keyring(branches=2)
    scopes = [f"tenant:{number}" for number in range(50)]
    keyring.prepare(scopes)
    before = keyring.counters.kms_calls
    assert len(keyring.rotate_many(scopes, compromised=True)) == 50
    assert keyring.counters.kms_calls == before


def test_one_scopes_trouble_leaves_the_others_to_be_rotated(keyring, store) -> None:
    keys = {scope: sealing_key(keyring, scope).key_id for scope in ("bad", "closed", "fine")}
    keyring.shred("closed")
    store.edit(keys["bad"], binding=bytes(32))
    outcomes = keyring.rotate_many(["bad", "closed", "fine", "new"])
    assert isinstance(outcomes["bad"], IntegrityError)
    assert isinstance(outcomes["closed"], KeyDestroyedError)
    assert outcomes["fine"].old == keys["fine"]
    assert outcomes["new"].old is None


def overtake(store, work) -> None:
    """Do *work* between the next look at active keys and their replacement."""
    replace_all_active = store.replace_all_active

    def overtaken(*args, **options):
        store.replace_all_active = replace_all_active
        work()
        return replace_all_active(*args, **options)

    store.replace_all_active = overtaken


def test_many_rotations_give_way_to_another_process(keyring, new_keyring, store) -> None:
    olds = {scope: sealing_key(keyring, scope).key_id for scope in ("a", "b")}
    overtake(store, lambda: new_keyring().rotate("a"))
    outcomes = keyring.rotate_many(["a", "b"])
    assert {scope: outcome.old for scope, outcome in outcomes.items()} == olds
    for scope, outcome in outcomes.items():
        assert sealing_key(keyring, scope).key_id == outcome.new.key_id
    assert len(store.data_records()) == 4  # what the other process has done is not done again


def test_a_leaked_key_is_marked_although_another_process_replaced_it_first(
    keyring, new_keyring, store
) -> None:
    olds = {scope: sealing_key(keyring, scope).key_id for scope in ("a", "b")}
    overtake(store, lambda: new_keyring().rotate("a"))
    outcomes = keyring.rotate_many(["a", "b"], compromised=True)
    assert {scope: outcome.old for scope, outcome in outcomes.items()} == olds
    assert {store.record(old).state for old in olds.values()} == {KeyState.COMPROMISED}
    assert {outcome.new.state for outcome in outcomes.values()} == {KeyState.ACTIVE}


def test_a_scope_that_is_shredded_meanwhile_leaves_the_others_to_be_rotated(
    keyring, new_keyring, store
) -> None:
    olds = {scope: sealing_key(keyring, scope).key_id for scope in ("a", "b")}
    overtake(store, lambda: new_keyring().shred("a"))
    outcomes = keyring.rotate_many(["a", "b"])
    assert isinstance(outcomes["a"], KeyDestroyedError)
    assert outcomes["b"].old == olds["b"]
    assert store.record(olds["b"]).state is KeyState.DEACTIVATED


def test_many_scopes_are_rotated_in_one_transaction(keyring, store) -> None:
    scopes = [f"tenant:{number}" for number in range(50)]
    keyring.prepare(scopes)
    store.calls.clear()
    assert len(keyring.rotate_many(scopes)) == 50
    assert store.calls.count("replace_all_active") == 1


def test_many_rotations_do_not_drive_out_what_a_process_holds(new_keyring) -> None:
    keyring = new_keyring(max_keys=4)
    hot = [sealing_key(keyring, scope) for scope in ("h1", "h2")]
    others = [f"tenant:{number}" for number in range(20)]
    new_keyring().prepare(others)
    keyring.rotate_many(others)
    assert [sealing_key(keyring, scope) for scope in ("h1", "h2")] == hot

"""A rewrap moves every key, drops what is superfluous once the new wrapping is verified, and loses none."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from tests.fixtures.versioned_kms import VersionedKms

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KekNotConfiguredError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    KmsUnavailableError,
    StoreUnavailableError,
    WrongApplicationError,
)
from eventseal.keys import DataKey, KeyPurpose, KeyState, Rewrap
from eventseal.testing import FakeBatchKms, FakeKms


@pytest.fixture
def old() -> FakeBatchKms:
    return FakeBatchKms("old")


@pytest.fixture
def kek() -> VersionedKms:
    return VersionedKms("kek")


def fill(new_keyring, kms, count: int = 5, **options) -> list:
    keyring = new_keyring(kms=kms, **options)
    return [key.key_id for key in keyring.sealing_keys({f"s:{n}": 1 for n in range(count)}).values()]


def opened(keyring, key_ids) -> bool:
    return all(isinstance(key, DataKey) for key in keyring.opening_keys(key_ids).values())


def places(store) -> set[tuple[tuple[str, str | None], ...]]:
    return {
        tuple(sorted((w.kek_uri, w.kek_version or "") for w in record.wrappings))
        for record in store.records()
    }


def operations(kms) -> list[tuple[str, int]]:
    return [(call.operation, len(call.key_ids)) for call in kms.calls]


# --- versions ---


def test_old_versions_are_left_in_two_runs_and_no_key_is_seen_before_something_goes(
    new_keyring, store, kek
) -> None:
    key_ids = fill(new_keyring, kek)
    kek.rotate(), kek.calls.clear()
    kek.denied |= {"unwrap", "unwrap_many", "wrap_many"}
    worker = new_keyring(kms=kek)
    assert worker.rewrap() == Rewrap(awaiting=6, added={"fake://kek": 6})
    assert operations(kek) == [("current_version", 0), ("rewrap_many", 6)]
    assert worker.rewrap() == Rewrap(awaiting=6)
    kek.denied.clear()
    assert opened(new_keyring(kms=kek), key_ids)
    kek.denied |= {"unwrap", "unwrap_many", "wrap_many"}
    assert worker.rewrap() == Rewrap(awaiting=6)  # who may not unwrap drops nothing, whatever the rows say
    kek.denied.clear(), kek.calls.clear()
    assert worker.rewrap() == Rewrap(done=6, dropped=6)
    assert operations(kek) == [("current_version", 0), ("unwrap_many", 6), ("unwrap", 1)]
    assert places(store) == {(("fake://kek", "2"),)}
    assert worker.rewrap() == Rewrap(done=6)


def test_who_ends_a_kek_afterwards_is_told_that_it_may_not_unwrap(new_keyring, kek) -> None:
    fill(new_keyring, kek)
    kek.denied |= {"unwrap", "unwrap_many"}
    with pytest.raises(KmsForbiddenError):
        new_keyring(kms=kek).rewrap(verify=True)


def test_what_is_current_is_found_with_one_call(new_keyring, store, kek) -> None:
    fill(new_keyring, kek, 50)
    kek.calls.clear()
    before = store.snapshot()
    assert new_keyring(kms=kek).rewrap(batch=7) == Rewrap(done=51)
    assert operations(kek) == [("current_version", 0)]
    assert store.snapshot() == before


def test_only_what_is_not_current_is_sent(new_keyring, store, kek) -> None:
    fill(new_keyring, kek, 4)
    kek.rotate()
    late = new_keyring(kms=kek).sealing_keys({f"late:{n}": 1 for n in range(3)})
    kek.calls.clear()
    assert new_keyring(kms=kek).rewrap() == Rewrap(done=3, awaiting=5, added={"fake://kek": 5})
    sent = {key_id for call in kek.calls for key_id in call.key_ids}
    assert len(sent) == 5
    assert sent.isdisjoint(key.key_id for key in late.values())


def test_who_may_not_ask_for_the_version_learns_it_from_the_first_wrapping(new_keyring, store, kek) -> None:
    fill(new_keyring, kek, 9)
    kek.rotate(), kek.calls.clear()
    kek.denied |= {"current_version", "unwrap", "unwrap_many", "wrap_many"}
    worker = new_keyring(kms=kek)
    assert worker.rewrap(batch=5).added == {"fake://kek": 10}
    assert operations(kek) == [
        ("current_version", 0),
        ("rewrap_many", 1),
        ("rewrap_many", 5),
        ("rewrap_many", 5),
    ]
    kek.calls.clear()
    assert worker.rewrap(batch=5) == Rewrap(awaiting=10)
    assert operations(kek) == [("current_version", 0), ("rewrap_many", 1)]


def test_a_wrapping_without_a_version_gets_one(new_keyring, store, kek) -> None:
    kek.says = False
    key_ids = fill(new_keyring, kek)
    assert places(store) == {(("fake://kek", ""),)}
    assert new_keyring(kms=kek).rewrap().added == {"fake://kek": 6}
    assert opened(new_keyring(kms=kek), key_ids)
    assert new_keyring(kms=kek).rewrap().dropped == 6
    assert places(store) == {(("fake://kek", "1"),)}


def test_a_kek_that_is_rotated_meanwhile_leaves_nothing_behind_but_another_run(
    new_keyring, store, kek
) -> None:
    key_ids = fill(new_keyring, kek, 9)
    kek.rotate()
    moving = kek._moved
    kek._moved = lambda *args: kek.rotate() and moving(*args) if len(kek.versions) == 2 else moving(*args)
    new_keyring(kms=kek).rewrap(batch=4)
    kek._moved = moving
    for _ in range(2):
        assert opened(new_keyring(kms=kek), key_ids)
        new_keyring(kms=kek).rewrap(batch=4)
    assert places(store) == {(("fake://kek", "3"),)}


def test_of_two_current_wrappings_the_verified_one_counts(new_keyring, store, kek) -> None:
    kek.is_named = lambda kek_uri: kek_uri in {"fake://kek", "fake://replica"}
    fill(new_keyring, kek, 2)
    kek.rotate(), new_keyring(kms=kek).rewrap()
    for record in store.records():
        newest = record.wrappings[0]
        replica = replace(newest, kek_uri="fake://replica")
        store.edit(record.key_id, wrappings=(replica, *record.wrappings), verified=frozenset([newest]))
    assert new_keyring(kms=kek).rewrap() == Rewrap(done=3, dropped=3)
    assert places(store) == {(("fake://kek", "2"), ("fake://replica", "2"))}


# --- to another KEK ---


def test_to_a_kek_of_ones_own_takes_one_run(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old)
    new = FakeBatchKms("new")
    old.calls.clear()
    assert new_keyring(kms=[old, new]).rewrap(new) == Rewrap(done=6, added={"fake://new": 6}, dropped=6)
    assert places(store) == {(("fake://new", "1"),)}
    assert operations(new) == [("wrap_many", 6), ("unwrap_many", 6)]
    assert opened(new_keyring(kms=new), key_ids)


def test_to_a_kek_that_is_not_configured_the_old_wrappings_stay_until_it_is(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old)
    new = FakeBatchKms("new")
    worker = new_keyring(kms=old)
    assert worker.rewrap(new) == Rewrap(awaiting=6, added={"fake://new": 6})
    assert worker.rewrap(new) == Rewrap(awaiting=6)
    assert opened(worker, key_ids)
    assert opened(new_keyring(kms=[new, old]), key_ids)
    assert worker.rewrap(new) == Rewrap(done=6, dropped=6)
    assert opened(new_keyring(kms=new), key_ids)


def test_to_a_kek_that_does_not_open_for_this_process_the_old_wrappings_stay(
    new_keyring, store, old, kek
) -> None:
    key_ids = fill(new_keyring, old, 20)
    kek.denied |= {"unwrap", "unwrap_many"}
    rewrap = new_keyring(kms=[old, kek]).rewrap(kek, batch=5)
    assert (rewrap.awaiting, rewrap.dropped) == (21, 0)
    assert kek.count("unwrap_many") <= 1
    assert opened(new_keyring(kms=old), key_ids)


def test_between_keks_of_one_service_no_key_is_seen(new_keyring, store) -> None:
    service: dict = {}
    first, second = VersionedKms("first", service), VersionedKms("second", service)
    key_ids = fill(new_keyring, first)
    for kms in (first, second):
        kms.calls.clear()
        kms.denied |= {"unwrap", "unwrap_many", "wrap_many"}
    worker = new_keyring(kms=first)
    assert worker.rewrap(second) == Rewrap(awaiting=6, added={"fake://second": 6})
    assert first.count() == 0
    second.denied.clear()
    assert opened(new_keyring(kms=second), key_ids)
    assert worker.rewrap(second) == Rewrap(awaiting=6)  # it cannot open the store key, hence check no row
    first.denied.clear()
    assert worker.rewrap(second).dropped == 6
    assert places(store) == {(("fake://second", "1"),)}


def test_a_wrapping_of_a_kek_that_is_not_configured_is_never_sent(new_keyring, store) -> None:
    service: dict = {}
    ours, strange = VersionedKms("ours", service), VersionedKms("strange", service)
    (key_id,) = fill(new_keyring, ours, 1)
    record = store.record(key_id)
    store.edit(key_id, wrappings=tuple(replace(w, kek_uri=strange.uri) for w in record.wrappings))
    ours.calls.clear()
    rewrap = new_keyring(kms=ours).rewrap()
    assert type(rewrap.failures[key_id]) is KekNotConfiguredError
    assert rewrap.done == 1
    assert "rewrap_many" not in {call.operation for call in ours.calls}


def test_to_one_of_several_keks_the_others_wrappings_go(new_keyring, store, old, kek) -> None:
    third = FakeKms("third")
    key_ids = fill(new_keyring, [old, kek, third])
    keyring = new_keyring(kms=[old, kek, third])
    assert keyring.rewrap(third) == Rewrap(awaiting=6)
    assert opened(new_keyring(kms=third), key_ids)
    assert keyring.rewrap(third) == Rewrap(done=6, dropped=6)
    assert places(store) == {(("fake://third", "1"),)}


def test_every_configured_kek_gets_its_newest_version(new_keyring, store, old) -> None:
    one, two = VersionedKms("one"), VersionedKms("two")
    key_ids = fill(new_keyring, [one])
    one.rotate(), two.rotate()
    keyring = new_keyring(kms=[old, one, two])
    keyring.rewrap()
    for kms in (one, two, old):
        assert opened(new_keyring(kms=[kms]), key_ids)
    keyring.rewrap()
    assert places(store) == {(("fake://old", "1"), ("fake://one", "2"), ("fake://two", "2"))}


def test_wrappings_of_keks_that_are_not_listed_any_more_stay(new_keyring, store, old) -> None:
    new = FakeBatchKms("new")
    fill(new_keyring, [old, new])
    assert new_keyring(kms=new).rewrap() == Rewrap(done=6)
    assert places(store) == {(("fake://new", "1"), ("fake://old", "1"))}


def test_no_verified_wrapping_is_ever_lost_whatever_is_run(new_keyring, store, old) -> None:
    service: dict = {}
    keks = [old, VersionedKms("one", service), VersionedKms("two", service)]
    key_ids = fill(new_keyring, keks[0])
    for number, (source, target) in enumerate(itertools.permutations(keks, 2)):
        if isinstance(target, VersionedKms) and number % 2:
            target.rotate()
        new_keyring(kms=[source, target]).rewrap(target if number % 3 else None)
        assert opened(new_keyring(kms=keks, fall_back_on_outage=True), key_ids)
        new_keyring(kms=keks).rewrap(target)
        assert opened(new_keyring(kms=keks), key_ids)


# --- branch keys ---


def test_data_keys_move_to_their_branchs_active_key_for_a_handful_of_calls(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old, 300, branches=2)
    keyring = new_keyring(kms=old, branches=2)
    keyring.rotate_branches(compromised=True)
    old.calls.clear()
    worker = new_keyring(kms=old)
    active = {
        f"branch:{record.key_id}"
        for record in store.records()
        if record.purpose is KeyPurpose.BRANCH and record.state is KeyState.ACTIVE
    }
    rewrap = worker.rewrap()
    assert (rewrap.done, rewrap.dropped, set(rewrap.added)) == (305, 300, active)
    assert old.count() <= 5
    for record in store.data_records():
        assert len(record.wrappings) == 1
        assert record.wrappings[0].kek_uri in active
    assert opened(new_keyring(kms=old), key_ids)
    old.calls.clear()
    assert new_keyring(kms=old).rewrap() == Rewrap(done=305)
    assert old.count() == 0


def test_branch_keys_move_and_data_keys_stay_under_them(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old, 100, branches=4)
    new = FakeBatchKms("new")
    rewrap = new_keyring(kms=[old, new]).rewrap(new)
    assert rewrap == Rewrap(done=105, added={"fake://new": 5}, dropped=5)
    old.fail_always()
    assert opened(new_keyring(kms=new), key_ids)


def test_a_branch_move_that_was_cut_off_is_finished(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old, 40, branches=1)
    new_keyring(kms=old, branches=1).rotate_branches()
    drop, failing = store.drop_wrappings, [True]

    def cut(*args, **options):
        if failing:
            raise StoreUnavailableError("away")
        return drop(*args, **options)

    store.drop_wrappings = cut
    with pytest.raises(StoreUnavailableError):
        new_keyring(kms=old).rewrap(batch=10)
    assert opened(new_keyring(kms=old), key_ids)
    failing.clear()
    assert new_keyring(kms=old).rewrap(batch=10).dropped == 40
    assert all(len(record.wrappings) == 1 for record in store.data_records())
    assert opened(new_keyring(kms=old), key_ids)


def test_a_changed_wrapping_under_a_branch_key_is_a_failure_of_its_own(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old, 10, branches=1)
    new_keyring(kms=old, branches=1).rotate_branches()
    damaged, edited, lost, *good = key_ids
    (wrapped,) = store.record(damaged).wrappings
    store.edit(
        damaged,
        wrappings=(
            replace(wrapped, ciphertext=wrapped.ciphertext[:-1] + bytes([wrapped.ciphertext[-1] ^ 1])),
        ),
    )
    store.edit(edited, seal=bytes(32))
    nowhere = "branch:00000000-0000-7000-8000-000000000000"
    store.edit(lost, wrappings=(replace(wrapped, kek_uri=nowhere),))
    rewrap = new_keyring(kms=old).rewrap()
    assert {key_id: type(error) for key_id, error in rewrap.failures.items()} == dict.fromkeys(
        [damaged, edited, lost], IntegrityError
    )
    assert rewrap.dropped == len(good)
    assert opened(new_keyring(kms=old), good)
    assert len(store.record(damaged).wrappings) == 1


def test_who_ends_a_kek_afterwards_hears_of_data_keys_that_do_not_open(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old, 3, branches=1)
    (wrapped,) = store.record(key_ids[0]).wrappings
    changed = replace(wrapped, ciphertext=wrapped.ciphertext[:-1] + bytes([wrapped.ciphertext[-1] ^ 1]))
    store.edit(key_ids[0], wrappings=(changed,), verified=frozenset([changed]))
    assert new_keyring(kms=old).rewrap().failed == 0  # where it should be, and nothing is to go
    assert list(new_keyring(kms=old).rewrap(verify=True).failures) == [key_ids[0]]


def test_data_keys_of_a_branch_without_an_active_key_stay(new_keyring, store, kms, destroy) -> None:
    key_ids = fill(new_keyring, kms, 5, branches=1)
    keyring = new_keyring(kms=kms, branches=1)
    (newer,) = keyring.rotate_branches()
    destroy(newer.key_id, by="retired", keep_slot=True)
    assert new_keyring(kms=kms).rewrap() == Rewrap(done=7)
    assert opened(new_keyring(kms=kms), key_ids)


# --- dry run, batches, progress ---


def test_a_dry_run_counts_and_asks_for_nothing_but_versions(new_keyring, store, kek, old) -> None:
    fill(new_keyring, kek, 5)
    fill(new_keyring, kek, 20, branches=1)
    new_keyring(kms=kek, branches=1).rotate_branches()
    kek.rotate(), kek.calls.clear()
    before = store.snapshot()
    dry = new_keyring(kms=[kek, old]).rewrap(dry_run=True)
    assert dry.to_move == dry.keys == len(store.records())
    assert {call.operation for call in kek.calls} == {"current_version"}
    assert old.count() == 0
    assert store.snapshot() == before
    alone = new_keyring(kms=kek)
    moved = alone.rewrap()
    assert sum(moved.added.values()) == dry.to_move
    after = alone.rewrap(dry_run=True)  # what this process opened meanwhile can lose its old wrapping
    assert (after.done, after.to_move + after.awaiting) == (moved.done, moved.awaiting)
    assert 0 < after.to_move < after.awaiting


def test_progress_is_told_after_each_batch(new_keyring, store, kek) -> None:
    fill(new_keyring, kek, 9)
    kek.rotate()
    seen: list[Rewrap] = []
    last = new_keyring(kms=kek).rewrap(batch=3, progress=seen.append)
    assert [told.keys for told in seen] == [3, 6, 9, 10]
    assert seen[-1] == last


@pytest.mark.parametrize("batch", [0, -1, True, 2.5])
def test_a_batch_of_no_keys_is_refused(new_keyring, kek, batch) -> None:
    with pytest.raises(ConfigurationError, match="batch"):
        new_keyring(kms=kek).rewrap(batch=batch)


def test_what_is_no_kek_is_refused(new_keyring, kek) -> None:
    with pytest.raises(ConfigurationError, match="adapter"):
        new_keyring(kms=kek).rewrap("fake://kek")


# --- failures ---


def test_a_key_that_does_not_move_is_a_failure_and_the_others_go_on(new_keyring, store, kek) -> None:
    key_ids = fill(new_keyring, kek, 10)
    bad = key_ids[4]
    (wrapped,) = store.record(bad).wrappings
    store.edit(bad, wrappings=(replace(wrapped, ciphertext=b"1|" + bytes(60)),))
    store.edit(key_ids[5], unreadable=("seal",))
    kek.rotate()
    rewrap = new_keyring(kms=kek).rewrap(batch=4)
    assert (rewrap.awaiting, rewrap.failed) == (9, 2)
    assert {type(error) for error in rewrap.failures.values()} == {IntegrityError}
    assert set(rewrap.failures) == {bad, key_ids[5]}
    assert len(store.record(bad).wrappings) == 1


def test_where_one_wrapping_is_of_no_use_another_of_the_service_is_moved(new_keyring, store) -> None:
    service: dict = {}
    first, second = VersionedKms("first", service), VersionedKms("second", service)
    key_ids = fill(new_keyring, [first, second])
    first.rotate(), second.rotate()
    first.forbidden.add("1")
    rewrap = new_keyring(kms=[first, second]).rewrap()
    assert (rewrap.failed, rewrap.added) == (0, {"fake://first": 6, "fake://second": 6})
    assert opened(new_keyring(kms=first), key_ids)


def test_where_the_keks_own_wrapping_is_of_no_use_another_kek_unwraps(new_keyring, store, old, kek) -> None:
    key_ids = fill(new_keyring, [old, kek])
    kek.rotate()
    kek.forbidden.add("1")
    assert new_keyring(kms=[old, kek]).rewrap() == Rewrap(done=6, added={"fake://kek": 6}, dropped=6)
    assert opened(new_keyring(kms=kek), key_ids)


def test_a_keks_own_wrapping_is_moved_before_anothers(new_keyring, store) -> None:
    service: dict = {}
    first, second = VersionedKms("first", service), VersionedKms("second", service)
    fill(new_keyring, [first, second])
    second.rotate()
    sent, moving = [], second._moved
    second._moved = lambda wrapped, context: sent.append(wrapped.kek_uri) or moving(wrapped, context)
    new_keyring(kms=[first, second]).rewrap()
    assert sent == ["fake://second"] * 6


def test_a_branch_key_that_is_said_to_be_under_another_is_a_failure(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old, 3, branches=1)
    (branch,) = [record for record in store.records() if record.purpose is KeyPurpose.BRANCH]
    (wrapped,) = store.record(key_ids[0]).wrappings
    store.edit(branch.key_id, wrappings=(wrapped,))
    rewrap = new_keyring(kms=old).rewrap()
    assert type(rewrap.failures[branch.key_id]) is IntegrityError


def test_a_key_under_what_is_no_branch_key_is_a_failure(new_keyring, store, old) -> None:
    key_ids = fill(new_keyring, old, 3, branches=1)
    (wrapped,) = store.record(key_ids[0]).wrappings
    misled = replace(wrapped, kek_uri=f"branch:{key_ids[1]}")
    store.edit(key_ids[0], wrappings=(misled,))
    rewrap = new_keyring(kms=old).rewrap()
    assert {key_id: type(error) for key_id, error in rewrap.failures.items()} == {key_ids[0]: IntegrityError}
    assert rewrap.done == 4


def test_a_forbidden_version_is_a_failure_of_the_keys_under_it_alone(new_keyring, store, kek) -> None:
    lost = fill(new_keyring, kek, 4)
    kek.rotate()
    kept = [k.key_id for k in new_keyring(kms=kek).sealing_keys({f"t:{n}": 1 for n in range(4)}).values()]
    kek.rotate()
    kek.forbidden.add("1")
    rewrap = new_keyring(kms=kek).rewrap(batch=2)
    assert {type(error) for error in rewrap.failures.values()} == {KmsKeyStateError}
    assert rewrap.failed == len(lost) + 1
    assert rewrap.awaiting == len(kept)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("fail_always", KmsUnavailableError), ("deny", KmsForbiddenError), ("disable", KmsKeyStateError)],
)
@pytest.mark.parametrize("which", ["source", "target", "inside"])
def test_a_kek_that_is_gone_half_way_is_told_and_what_was_done_stays(
    new_keyring, store, old, kek, fault, error, which
) -> None:
    source = kek if which == "inside" else old
    target = kek if which != "target" else FakeBatchKms("target")
    if which == "inside":
        key_ids = fill(new_keyring, kek, 30)
        kek.rotate()
    else:
        key_ids = fill(new_keyring, old, 30)
    failing = target if which == "target" else source
    keyring = new_keyring(kms=[source] if source is target else [source, target])
    keyring.refresh()
    failing.calls.clear()
    call = failing._call

    def fail_later(operation, *contexts):
        if failing.count() >= 4:
            getattr(failing, fault)()
        return call(operation, *contexts)

    failing._call = fail_later
    with pytest.raises(error):
        keyring.rewrap(None if which == "inside" else target, batch=5)
    failing._call = call
    failing.recover()
    so_far = sum(target.uri in {w.kek_uri for w in r.wrappings} for r in store.records())
    assert so_far > 0
    assert opened(new_keyring(kms=[source, target] if source is not target else kek), key_ids)
    keyring.rewrap(None if which == "inside" else target, batch=5)
    assert opened(new_keyring(kms=target), key_ids)
    keyring.rewrap(None if which == "inside" else target, batch=5)
    assert places(store) == {((target.uri, "2" if which == "inside" else "1"),)}


def test_a_plain_refusal_of_one_wrapping_does_not_stop_the_others(new_keyring, store, kek) -> None:
    key_ids = fill(new_keyring, kek, 5)
    kek.rotate()
    moving = kek._moved

    def refuse_one(wrapped, context):
        return KmsError("odd", kek_uri=kek.uri) if context.key_id == key_ids[2] else moving(wrapped, context)

    kek._moved = refuse_one
    rewrap = new_keyring(kms=kek).rewrap()
    assert list(rewrap.failures) == [key_ids[2]]
    assert rewrap.awaiting == 5


def test_a_store_key_that_this_worker_cannot_open_stops_only_what_must_be_unwrapped(
    new_keyring, store, old
) -> None:
    service: dict = {}
    one, two = VersionedKms("one", service), VersionedKms("two", service)
    fill(new_keyring, one)
    one.rotate()
    for kms in (one, two):
        kms.denied |= {"unwrap", "unwrap_many"}
    assert new_keyring(kms=one).rewrap().awaiting == 6
    assert new_keyring(kms=[one, two]).rewrap(two).awaiting == 6
    with pytest.raises(KmsForbiddenError):
        new_keyring(kms=one).rewrap(old)


def test_what_is_interrupted_goes_on_where_it_stopped(new_keyring, store, kek) -> None:
    fill(new_keyring, kek, 20)
    kek.rotate()

    def interrupt(so_far: Rewrap) -> None:
        if so_far.keys == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_keyring(kms=kek).rewrap(batch=5, progress=interrupt)
    kek.calls.clear()
    assert new_keyring(kms=kek).rewrap(batch=5) == Rewrap(awaiting=21, added={"fake://kek": 11})
    assert sum(len(call.key_ids) for call in kek.calls) == 11


def test_each_kek_that_makes_a_bad_wrapping_is_caught_before_anything_is_stored(
    new_keyring, store, old
) -> None:
    class Careless(FakeBatchKms):
        def wrap_many(self, keys):
            return super().wrap_many([(bytes(32), context) for _, context in keys])

    key_ids = fill(new_keyring, old)
    careless = Careless("careless")
    rewrap = new_keyring(kms=[old, careless]).rewrap(careless)
    assert (rewrap.failed, rewrap.added, rewrap.dropped) == (6, {}, 0)
    assert opened(new_keyring(kms=old), key_ids)


def test_nothing_is_noted_of_a_key_that_the_store_gives_of_another_application(
    new_keyring, store, old, monkeypatch
) -> None:
    key = new_keyring(kms=old, application="other").sealing_keys({"s": 1})["s"]
    fill(new_keyring, old)
    monkeypatch.setattr(
        store, "page", lambda *_, after, **__: [store.record(key.key_id)] if after is None else []
    )
    with pytest.raises(WrongApplicationError):
        new_keyring(kms=old).rewrap(verify=True)
    assert not store.record(key.key_id).verified

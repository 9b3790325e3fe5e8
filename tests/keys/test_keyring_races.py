"""Threads and processes that race: one key a scope, shared calls, and no destroyed key that comes back."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy

import pytest

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsUnavailableError,
    StoreUnavailableError,
)
from eventseal.keys import DataKey, InMemoryKeyStore, KeyPurpose, Keyring, KeyState
from eventseal.testing import FakeBatchKms, FakeKms


def sealing_key(keyring, scope: str = "a", items: int = 1):
    return keyring.sealing_keys({scope: items})[scope]


def opened(keyring, key_id):
    return keyring.opening_keys([key_id])[key_id]


def together(work, count: int) -> list:
    """Run *work* with 0, 1, ... in that many threads that start together."""
    barrier = threading.Barrier(count)

    def run(number: int):
        barrier.wait(60)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_fifty_threads_on_a_cold_scope_make_one_key_each_with_one_call() -> None:
    kms, store = FakeKms(), InMemoryKeyStore()
    kms.delay = 0.01
    keyring = Keyring(kms, store)
    keys = together(lambda _: sealing_key(keyring), 50)
    assert len({id(key) for key in keys}) == 1
    records = store.page("default")
    assert Counter(record.purpose for record in records) == {KeyPurpose.STORE: 1, KeyPurpose.DATA: 1}
    assert [call.operation for call in kms.calls] == ["generate_data_key"] * 2
    assert kms.peak == 1


def test_fifty_threads_on_fifty_scopes_make_one_key_for_each() -> None:
    kms, store = FakeKms(), InMemoryKeyStore()
    kms.delay = 0.001
    keyring = Keyring(kms, store)
    scopes = [f"t:{number}" for number in range(10)]
    together(
        lambda number: keyring.sealing_keys(dict.fromkeys(scopes[number % 10 :] + scopes[: number % 10], 1)),
        50,
    )
    assert len(store.page("default")) == 11
    assert kms.count() == 11


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_that_race_make_one_key_with_two_calls_each_at_most(processes: int) -> None:
    kms, store = FakeKms(), InMemoryKeyStore()
    kms.delay = 0.005
    keyrings = [Keyring(kms, store) for _ in range(processes)]
    keys = together(lambda number: sealing_key(keyrings[number % processes]), 8 * processes)
    assert len({key.key_id for key in keys}) == 1
    assert Counter(record.purpose for record in store.page("default")) == {
        KeyPurpose.STORE: 1,
        KeyPurpose.DATA: 1,
    }
    for keyring in keyrings:
        assert keyring.counters.kms_calls <= 4  # two keys: make, and unwrap if the race was lost
    assert kms.count("generate_data_key") <= 2 * processes


def test_who_loses_the_race_unwraps_the_winners_key(kms, store, new_keyring) -> None:
    first, second = new_keyring(), new_keyring()
    sealing_key(first, "warm"), sealing_key(second, "warm")
    kms.calls.clear()
    with ThreadPoolExecutor(1) as pool, store.gate("add_active", after=False) as gate:
        loser = pool.submit(sealing_key, second)
        gate.wait_reached()
        winner = sealing_key(first)
        gate.open()
        lost = loser.result(60)
    assert lost.key_id == winner.key_id
    assert lost.derive(b"x", 8) == winner.derive(b"x", 8)
    assert Counter(call.operation for call in kms.calls) == {"generate_data_key": 2, "unwrap": 1}
    assert len(store.data_records()) == 2


def test_who_loses_the_race_for_the_store_key_unwraps_the_winners(kms, store, new_keyring) -> None:
    first, second = new_keyring(), new_keyring()
    with ThreadPoolExecutor(1) as pool, store.gate("add_active", after=False) as gate:
        loser = pool.submit(sealing_key, second)
        gate.wait_reached()
        winner = sealing_key(first)
        gate.open()
        assert loser.result(60).key_id == winner.key_id
    assert len(store.records()) == 2
    assert second.counters.kms_calls == 3  # made a store key in vain, unwrapped both of the winner's


def test_a_hundred_threads_that_open_a_cold_key_share_one_call(new_keyring, kms, store) -> None:
    key_id = sealing_key(new_keyring()).key_id
    keyring = new_keyring()
    kms.calls.clear()
    kms.delay = 0.02
    keys = together(lambda _: opened(keyring, key_id), 100)
    assert {id(key) for key in keys} == {id(keys[0])}
    assert isinstance(keys[0], DataKey)
    assert kms.count("unwrap") == 2
    assert store.calls.count("get") == 1


def test_pages_that_overlap_load_each_key_once(new_keyring, store) -> None:
    kms = FakeBatchKms()
    ids = [key.key_id for key in new_keyring(kms=kms).sealing_keys({f"t:{n}": 1 for n in range(60)}).values()]
    keyring = new_keyring(kms=kms)
    opened(keyring, ids[0])
    kms.calls.clear()
    kms.delay = 0.01
    pages = together(lambda number: keyring.opening_keys(ids[number * 5 : number * 5 + 20]), 9)
    assert all(isinstance(key, DataKey) for page in pages for key in page.values())
    loaded = [key_id for call in kms.calls for key_id in call.key_ids]
    assert sorted(loaded) == sorted(ids[1:])


def test_a_thousand_keys_that_expire_together_are_each_unwrapped_once(new_keyring, kms, clock) -> None:
    ids = [key.key_id for key in new_keyring().sealing_keys({f"t:{n}": 1 for n in range(1_000)}).values()]
    keyring = new_keyring()
    keyring.opening_keys(ids)
    clock.advance(1_000)
    kms.calls.clear()
    kms.peak = 0
    together(lambda number: [opened(keyring, ids[(number * 50 + n) % 1_000]) for n in range(1_000)], 20)
    assert kms.count("unwrap") == 1_000
    assert kms.peak <= 20


def test_threads_share_a_refresh(new_keyring, store, clock) -> None:
    keyring = new_keyring()
    key = sealing_key(keyring)
    clock.advance(61)
    store.calls.clear()
    with store.gate("changes") as gate, ThreadPoolExecutor(20) as pool:
        opening = [pool.submit(opened, keyring, key.key_id) for _ in range(10)]
        sealing = [pool.submit(sealing_key, keyring) for _ in range(10)]
        gate.wait_reached()
        gate.open()
        assert all(future.result(60) is key for future in opening + sealing)
    assert store.calls == ["changes"]


class CountedLock:
    """A lock that tells how many threads came to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = threading.Condition()
        self._came = 0

    def __enter__(self) -> None:
        with self._condition:
            self._came += 1
            self._condition.notify_all()
        self._lock.acquire()

    def __exit__(self, *_) -> None:
        self._lock.release()

    def wait_for(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self._came >= count, 60)


@pytest.mark.parametrize(
    ("error", "tries"),
    [(None, 1), (StoreUnavailableError("the key store is away"), 1), (RuntimeError("a fault"), 19)],
    ids=["done", "shared", "not understood"],
)
def test_threads_that_come_while_one_refreshes_share_the_next_if_it_is_understood(
    new_keyring, store, clock, error: Exception | None, tries: int
) -> None:
    keyring = new_keyring()
    sealing_key(keyring)
    clock.advance(61)
    lock = keyring._ring.refresher._lock = CountedLock()
    store.calls.clear()
    with ThreadPoolExecutor(20) as pool, store.gate("changes", after=False) as gate:
        first = pool.submit(keyring.refresh)
        gate.wait_reached()
        if error is not None:
            store.changes = _failing(store, error)
        others = [pool.submit(keyring.refresh) for _ in range(19)]
        lock.wait_for(20)
        gate.open()
        first.result(60)
        errors = [_outcome(other) for other in others]
    assert store.calls == ["changes"] * (1 + tries)
    assert {type(each) for each in errors} == {type(error)}
    assert len({id(each) for each in errors}) == (1 if error is None else 19)


def _failing(store, error: Exception):
    def changes(*args):
        store.calls.append("changes")
        raise copy(error)

    return changes


def test_an_explicit_refresh_does_not_settle_for_one_that_began_before(new_keyring, store) -> None:
    keyring, other = new_keyring(), new_keyring()
    key = sealing_key(keyring)
    with ThreadPoolExecutor(2) as pool, store.gate("changes") as gate:
        first = pool.submit(keyring.refresh)
        gate.wait_reached()  # it has its answer already
        other.rotate("a")
        second = pool.submit(keyring.refresh)
        gate.open()
        first.result(60), second.result(60)
    assert key.state is KeyState.DEACTIVATED


def test_racing_leases_hand_out_what_was_reserved_and_no_more(new_keyring, store) -> None:
    keyrings = [new_keyring(), new_keyring()]
    keys = together(lambda number: [sealing_key(keyrings[number % 2], items=7) for _ in range(1_500)], 16)
    (record,) = store.data_records()
    assert {key.key_id for some in keys for key in some} == {record.key_id}
    left = sum(cached.lease._left for ring in keyrings for cached in ring._held_keys.active.values())
    assert record.items_reserved == 16 * 1_500 * 7 + left


def test_racing_threads_never_seal_more_than_the_policy_allows_under_a_key(new_keyring, store) -> None:
    keyring = new_keyring(max_items=1_000)
    used = together(lambda _: [sealing_key(keyring).key_id for _ in range(100)], 50)
    counts = Counter(key_id for some in used for key_id in some)
    assert sum(counts.values()) == 5_000
    assert max(counts.values()) <= 1_000
    assert len(counts) == 5


def test_racing_rotations_leave_one_active_key(new_keyring, store) -> None:
    keyrings = [new_keyring() for _ in range(4)]
    sealing_key(keyrings[0])
    together(lambda number: keyrings[number % 4].rotate("a"), 12)
    records = store.data_records()
    assert [record.state for record in records].count(KeyState.ACTIVE) == 1
    for keyring in keyrings:
        keyring.refresh()
        assert len({sealing_key(ring).key_id for ring in [*keyrings[:1], keyring]}) <= 2
    active = InMemoryKeyStore.active(store, "default", ["a"])["a"].key_id
    for keyring in keyrings:
        keyring.refresh()
        assert sealing_key(keyring).key_id == active
    assert store._marks["default"].counter == len(records) - 1


def test_sealing_goes_on_while_others_rotate(new_keyring, store) -> None:
    keyrings = [new_keyring(), new_keyring()]
    stop = threading.Event()
    sealed: list[set] = []

    def work(number: int) -> None:
        keyring = keyrings[number % 2]
        if number < 2:
            for turn in range(20):
                keyring.rotate("a", compromised=turn % 5 == 0)
                keyring.refresh()
            stop.set()
            return
        seen = set()
        while not stop.is_set():
            seen.add(sealing_key(keyring).key_id)
        sealed.append(seen)

    together(work, 6)
    ids = {key_id for seen in sealed for key_id in seen}
    found = new_keyring().opening_keys(ids)
    assert all(isinstance(key, DataKey) for key in found.values())


def test_a_key_that_is_replaced_as_compromised_while_it_is_read_is_no_edited_row(new_keyring, store) -> None:
    keyring, other = new_keyring(), new_keyring()
    sealing_key(other, "a")
    sealing_key(keyring, "b")
    with ThreadPoolExecutor(1) as pool, store.gate("active") as gate:
        sealing = pool.submit(sealing_key, keyring, "a")
        gate.wait_reached()
        new = other.rotate("a", compromised=True)
        keyring.refresh()
        gate.open()
        assert sealing.result(60).key_id == new.key_id


def test_a_store_key_made_while_a_refresh_asks_is_loaded(new_keyring, store) -> None:
    keyring, other = new_keyring(), new_keyring()
    with ThreadPoolExecutor(1) as pool, store.gate("changes", after=False) as gate:
        refreshing = pool.submit(keyring.refresh)
        gate.wait_reached()  # it saw no store key
        key_id = sealing_key(other).key_id
        gate.open()
        refreshing.result(60)
    store.calls.clear()
    assert isinstance(opened(keyring, key_id), DataKey)
    assert store.calls == ["get"]


def test_a_store_key_made_while_a_key_is_looked_for_brings_its_listing(new_keyring, store) -> None:
    nothing = store.snapshot()
    other = new_keyring()
    row = store.record(sealing_key(other).key_id)
    other.rotate("a", compromised=True)
    store._records[row.key_id] = row  # put back as if it were still good
    everything = store.snapshot()
    store.restore(nothing)
    keyring = new_keyring()
    with ThreadPoolExecutor(1) as pool, store.gate("get", after=False) as gate:
        looking = pool.submit(opened, keyring, row.key_id)
        gate.wait_reached()  # it saw no store key, and nothing to confirm
        store.restore(everything)
        gate.open()
        assert isinstance(looking.result(60), IntegrityError)


# --- a load in flight against the end of its key: a deterministic schedule ---


@pytest.mark.parametrize("by", ["retired", "shredded"])
@pytest.mark.parametrize("stop_at", ["row read", "kms called"])
def test_a_key_destroyed_while_it_is_loaded_does_not_come_back(
    new_keyring, kms, store, seals, destroy, by: str, stop_at: str
) -> None:
    key_id = sealing_key(new_keyring()).key_id
    keyring = new_keyring()
    sealing_key(keyring, "warm")
    seals()  # so that to destroy the key takes no call of the KMS, which is held
    with ThreadPoolExecutor(1) as pool:
        if stop_at == "row read":
            with store.gate("get") as gate:
                loading = pool.submit(opened, keyring, key_id)
                gate.wait_reached()
                destroy(key_id, by=by)
                keyring.refresh()
                gate.open()
        else:
            with kms.hold():
                loading = pool.submit(opened, keyring, key_id)
                kms.wait_inside(1)
                destroy(key_id, by=by)
                keyring.refresh()
        outcome = loading.result(60)
    assert isinstance(outcome, KeyDestroyedError)
    assert outcome.destroyed_by == by
    assert key_id not in keyring._held_keys.keys
    assert isinstance(opened(keyring, key_id), KeyDestroyedError)


def test_a_key_destroyed_while_it_is_loaded_is_dropped_at_the_next_refresh_at_the_latest(
    new_keyring, store, destroy
) -> None:
    key_id = sealing_key(new_keyring()).key_id
    keyring = new_keyring()
    sealing_key(keyring, "warm")
    with ThreadPoolExecutor(1) as pool, store.gate("get") as gate:
        loading = pool.submit(opened, keyring, key_id)
        gate.wait_reached()
        destroy(key_id, by="shredded")  # nobody refreshes: this process cannot know yet
        gate.open()
        key = loading.result(60)
    assert isinstance(key, DataKey)
    keyring.refresh()
    assert key.closed
    assert isinstance(opened(keyring, key_id), KeyDestroyedError)


def test_a_scope_shredded_while_its_key_is_loaded_is_not_sealed_for(new_keyring, store, destroy) -> None:
    key_id = sealing_key(new_keyring()).key_id
    keyring = new_keyring()
    sealing_key(keyring, "warm")
    with ThreadPoolExecutor(1) as pool, store.gate("active") as gate:
        sealing = pool.submit(sealing_key, keyring)
        gate.wait_reached()
        destroy(key_id, by="shredded", keep_slot=True)
        keyring.refresh()
        gate.open()
        with pytest.raises(KeyDestroyedError):
            sealing.result(60)
    assert keyring._held_keys.active.keys() == {"warm"}


def test_a_scope_rotated_by_the_same_process_while_its_key_is_loaded_seals_under_the_new_one(
    new_keyring, store
) -> None:
    old = sealing_key(new_keyring()).key_id
    keyring = new_keyring()
    sealing_key(keyring, "warm")
    with ThreadPoolExecutor(1) as pool, store.gate("active") as gate:
        sealing = pool.submit(sealing_key, keyring)
        gate.wait_reached()
        new = keyring.rotate("a").key_id
        gate.open()
        assert sealing.result(60).key_id == new
    assert sealing_key(keyring).key_id == new
    assert opened(keyring, old).state is KeyState.DEACTIVATED


def test_a_key_loaded_while_states_move_is_not_unwrapped_again(new_keyring, kms, store) -> None:
    key_id = sealing_key(new_keyring()).key_id
    keyring, other = new_keyring(), new_keyring()
    sealing_key(keyring, "warm")
    store.calls.clear()
    with ThreadPoolExecutor(1) as pool, store.gate("get") as gate:
        loading = pool.submit(opened, keyring, key_id)
        gate.wait_reached()
        other.rotate("warm")
        kms.calls.clear()
        keyring.refresh()
        gate.open()
        assert isinstance(loading.result(60), DataKey)
    assert kms.count("unwrap") == 1
    assert store.calls.count("get") == 2


@pytest.mark.parametrize("evicted", [False, True])
def test_who_asks_after_the_end_of_a_key_gets_none_from_a_load_that_began_before(
    new_keyring, destroy, evicted: bool
) -> None:
    key_id, other_id = sealing_key(new_keyring()).key_id, sealing_key(new_keyring(), "b").key_id
    keyring = new_keyring(max_keys=1)
    keyring.refresh()
    flights = keyring._opener._flights
    land, loaded, go = flights._land, threading.Event(), threading.Event()

    def land_later(mine, outcomes) -> None:
        if key_id in mine and not loaded.is_set():
            loaded.set()
            assert go.wait(60)
        land(mine, outcomes)

    flights._land = land_later
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(opened, keyring, key_id)
        assert loaded.wait(60)  # the key is held, but the flight has not landed
        if evicted:
            opened(keyring, other_id)
        destroy(key_id, by="shredded")
        keyring.refresh()
        follower = pool.submit(opened, keyring, key_id)
        while not flights._flights[key_id].landed._cond._waiters:
            threading.Event().wait(0.001)
        go.set()
        assert isinstance(leader.result(60), DataKey)  # it asked before
        assert isinstance(follower.result(60), KeyDestroyedError)


def test_a_keyring_closed_while_a_key_is_loaded_keeps_none(new_keyring, kms) -> None:
    key_id = sealing_key(new_keyring()).key_id
    keyring = new_keyring()
    sealing_key(keyring, "warm")
    with ThreadPoolExecutor(1) as pool:
        with kms.hold():
            loading = pool.submit(opened, keyring, key_id)
            kms.wait_inside(1)
            keyring.close()
        outcome = loading.result(60)
    assert isinstance(outcome, ConfigurationError)
    assert keyring._held_keys.keys == {}


def test_states_that_never_rest_end_in_an_error_to_try_again(new_keyring, store, clock) -> None:
    key_id = sealing_key(new_keyring()).key_id
    keyring, other = new_keyring(), new_keyring()
    sealing_key(keyring, "warm"), sealing_key(other, "warm")
    get = store.get

    def moving(*args):
        answer = get(*args)
        other.rotate("warm")
        keyring.refresh()
        return answer

    store.get = moving
    with pytest.raises(StoreUnavailableError, match="changed 8 times"):
        opened(keyring, key_id)
    store.get = get
    assert isinstance(opened(keyring, key_id), DataKey)


@pytest.mark.parametrize("seed", range(5))
def test_shredding_against_loads_in_many_threads_never_resurrects(
    new_keyring, store, destroy, seed: int
) -> None:
    maker = new_keyring()
    scopes = [f"s:{number}" for number in range(40)]
    ids = {scope: key.key_id for scope, key in maker.sealing_keys(dict.fromkeys(scopes, 1)).items()}
    keyring = new_keyring(max_keys=10)
    gone: set = set()
    failures: list = []

    def work(number: int) -> None:
        if number == 0:
            for scope in scopes:
                destroy(ids[scope], by="shredded", keep_slot=True)
                keyring.refresh()
                gone.add(scope)
            return
        for turn in range(200):
            scope = scopes[(turn * 7 + number * 13 + seed) % len(scopes)]
            was_gone = scope in gone
            try:
                outcome = opened(keyring, ids[scope])
            except StoreUnavailableError:
                continue  # states moved faster than the key was loaded: try again
            if was_gone and not isinstance(outcome, KeyDestroyedError):
                failures.append((scope, outcome))

    together(work, 6)
    assert failures == []
    assert not any(key_id in keyring._held_keys.keys for key_id in ids.values())


# --- failures that are shared ---


def test_threads_that_wait_for_a_failed_call_share_its_failure_and_the_next_call_is_made(
    new_keyring, kms
) -> None:
    key_id = sealing_key(new_keyring()).key_id
    keyring = new_keyring()
    sealing_key(keyring, "warm")
    kms.calls.clear()
    kms.fail_next()
    with ThreadPoolExecutor(10) as pool:
        with kms.hold():
            futures = [pool.submit(opened, keyring, key_id) for _ in range(10)]
            kms.wait_inside(1)
            flight = keyring._opener._flights._flights[key_id]
            while len(flight.landed._cond._waiters) < 9:
                threading.Event().wait(0.001)
        outcomes = [future.result(60) for future in futures]
    assert {type(outcome) for outcome in outcomes} == {KmsUnavailableError}
    assert len({id(outcome) for outcome in outcomes}) == 10
    assert len(kms.calls) == 1
    assert isinstance(opened(keyring, key_id), DataKey)


def test_one_threads_unknown_key_is_not_anothers_failure(new_keyring, store) -> None:
    good = sealing_key(new_keyring()).key_id
    from uuid import uuid4

    keyring = new_keyring()
    bad = uuid4()
    results = together(lambda number: keyring.opening_keys([good, bad] if number % 2 else [bad, good]), 8)
    for found in results:
        assert isinstance(found[good], DataKey)
        assert isinstance(found[bad], KeyNotFoundError)


def test_a_thread_that_is_interrupted_does_not_stop_the_others(new_keyring, kms) -> None:
    key_id = sealing_key(new_keyring()).key_id

    class Interrupted(FakeKms):
        def unwrap(self, wrapped, context):
            if context.purpose == "data" and not self.count("unwrap"):
                with self._call("unwrap", context):
                    raise KeyboardInterrupt
            return super().unwrap(wrapped, context)

    broken = Interrupted()
    broken._uri, broken._kek = kms._uri, kms._kek
    keyring = new_keyring(kms=broken)
    keyring.refresh()
    broken.calls.clear()
    with ThreadPoolExecutor(5) as pool:
        with broken.hold():
            futures = [pool.submit(opened, keyring, key_id) for _ in range(5)]
            broken.wait_inside(1)
        outcomes = [_outcome(future) for future in futures]
    assert sum(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, DataKey) for outcome in outcomes) == 4


def _outcome(future: Future) -> object:
    try:
        return future.result(60)
    except (EventSealError, KeyboardInterrupt, RuntimeError) as error:
        return error


def test_a_key_that_is_kept_while_a_refresh_reads_is_read_again(
    new_keyring, store, destroy, monkeypatch
) -> None:
    """A refresh asks for the keys that are held; one that comes in meanwhile is not in its answer."""
    (key,) = new_keyring().sealing_keys({"a": 1}).values()
    keyring = new_keyring()
    keyring.sealing_keys({"b": 1})
    read = type(store).changes

    def changes(self, *arguments):
        monkeypatch.undo()
        assert opened(keyring, key.key_id).state == "active"
        destroy(key.key_id, by="shredded", keep_slot=True)
        return read(self, *arguments)

    monkeypatch.setattr(type(store), "changes", changes)
    keyring.refresh()
    assert isinstance(opened(keyring, key.key_id), KeyDestroyedError)

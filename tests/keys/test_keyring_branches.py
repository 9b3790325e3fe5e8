"""Data keys under branch keys: what they cost, how long they serve, and what is refused."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import pytest

from eventseal.cipher import AESCipher, ItemContext
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KekNotConfiguredError,
    KeyDestroyedError,
    KmsForbiddenError,
    KmsUnavailableError,
    StoreUnavailableError,
)
from eventseal.keys import DataKey, KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_scope
from eventseal.kms import WrappedKey
from eventseal.testing import FakeBatchKms, FakeKms

TTL, GRACE = 900.0, 3_600.0


def scopes(count: int, kind: str = "subject") -> dict[str, int]:
    return {f"{kind}:{number}": 1 for number in range(count)}


def made(keyring, count: int, kind: str = "subject"):
    return [key.key_id for key in keyring.sealing_keys(scopes(count, kind)).values()]


def opened(keyring, key_id):
    return keyring.opening_keys([key_id])[key_id]


def same(first: DataKey, second: DataKey) -> bool:
    return first.derive(b"x", 8) == second.derive(b"x", 8)


def branch_records(store, application: str = "default"):
    return [record for record in store.records(application) if record.purpose is KeyPurpose.BRANCH]


@pytest.fixture
def branched(new_keyring):
    return new_keyring(branches=4)


# --- making ---


def test_a_data_key_is_wrapped_under_its_scopes_branch_and_under_no_kek(branched, store, kms) -> None:
    made(branched, 40)
    branches = {record.scope: record for record in branch_records(store)}
    for record in store.data_records():
        (wrapped,) = record.wrappings
        branch = branches[branch_scope("default", record.scope, 4)]
        assert wrapped.kek_uri == f"branch:{branch.key_id}"
    for branch in branches.values():
        assert [wrapped.kek_uri for wrapped in branch.wrappings] == [kms.uri]
        assert (branch.state, branch.active_scope) == (KeyState.ACTIVE, branch.scope)
        assert branch.items_reserved == 0


def test_a_million_scopes_cost_a_call_for_each_branch_and_one_for_the_store_key(branched, kms) -> None:
    for page in range(10):
        branched.prepare([f"subject:{page}:{number}" for number in range(200)])
    assert Counter(call.operation for call in kms.calls) == {"generate_data_key": 5}
    assert branched.counters.kms_calls == 5


def test_a_page_of_500_new_scopes_costs_one_query_and_one_transaction(branched, kms, store) -> None:
    made(branched, 50, "warm")
    kms.calls.clear(), store.calls.clear()
    keys = branched.sealing_keys(scopes(500))
    assert len(keys) == 500
    assert store.calls == ["active", "add_active"]
    assert kms.calls == []


def test_without_branches_the_keks_wrap_every_key(keyring, store, kms) -> None:
    made(keyring, 3)
    assert branch_records(store) == []
    assert {record.wrappings[0].kek_uri for record in store.records()} == {kms.uri}


def test_the_number_of_branches_may_change_and_keys_keep_their_branch(new_keyring, store, kms) -> None:
    by_kek = made(new_keyring(), 5, "a")
    by_two = made(new_keyring(branches=2), 20, "b")
    before = {record.key_id: record.wrappings for record in store.data_records()}
    by_eight = made(new_keyring(branches=8), 40, "c")
    assert len(branch_records(store)) == 8
    for keyring in (new_keyring(), new_keyring(branches=2), new_keyring(branches=8)):
        found = keyring.opening_keys([*by_kek, *by_two, *by_eight])
        assert all(isinstance(key, DataKey) for key in found.values())
        assert [key.key_id for key in keyring.sealing_keys(scopes(20, "b")).values()] == by_two
    assert {key_id: store.record(key_id).wrappings for key_id in before} == before


@pytest.mark.parametrize("branches", [0, 4097, True, "2"])
def test_a_number_of_branches_that_cannot_be_is_refused_at_once(new_keyring, branches) -> None:
    with pytest.raises(ConfigurationError, match="branches"):
        new_keyring(branches=branches)


def test_several_keks_wrap_the_branch_keys(new_keyring, store) -> None:
    first, second = FakeKms(), FakeKms()
    ids = made(new_keyring(kms=[first, second], branches=2), 10)
    for record in branch_records(store):
        assert [wrapped.kek_uri for wrapped in record.wrappings] == [first.uri, second.uri]
    for kms in (first, second):
        found = new_keyring(kms=kms).opening_keys(ids)
        assert all(isinstance(key, DataKey) for key in found.values())


def test_a_data_key_that_cannot_have_its_branch_key_is_not_made(branched, kms, store) -> None:
    kms.fail_always()
    branched.counters.kms_calls = 0
    for _ in range(2):
        with pytest.raises(KmsUnavailableError):
            made(branched, 1)
    kms.recover()
    made(branched, 1)
    kms.fail_always()
    with pytest.raises(KmsUnavailableError):
        made(branched, 40)
    assert len(store.data_records()) == 1
    assert len(branch_records(store)) == 1


# --- opening ---


def test_a_cold_page_of_500_costs_two_queries_and_an_unwrap_for_each_branch(new_keyring, store) -> None:
    kms = FakeKms()
    ids = made(new_keyring(kms=kms, branches=16), 500)
    other = new_keyring(kms=kms)
    other.refresh()
    kms.calls.clear(), store.calls.clear()
    found = other.opening_keys(ids)
    assert all(isinstance(key, DataKey) for key in found.values())
    assert store.calls == ["get", "get"]
    assert Counter(call.operation for call in kms.calls) == {"unwrap": 16}
    assert (other.counters.hits, other.counters.misses) == (0, 500)


def test_branch_keys_are_unwrapped_in_one_batch(new_keyring) -> None:
    kms = FakeBatchKms()
    ids = made(new_keyring(kms=kms, branches=16), 500)
    other = new_keyring(kms=kms)
    other.refresh()
    kms.calls.clear()
    other.opening_keys(ids)
    assert [(call.operation, len(call.key_ids)) for call in kms.calls] == [("unwrap_many", 16)]


def test_further_pages_cost_one_query_and_no_call(branched, new_keyring, store, kms) -> None:
    first, second = made(branched, 100, "first"), made(branched, 100, "second")
    other = new_keyring()
    other.opening_keys(first)
    kms.calls.clear(), store.calls.clear()
    found = other.opening_keys(second)
    assert all(isinstance(key, DataKey) for key in found.values())
    assert store.calls == ["get"]
    assert kms.calls == []


def test_loading_active_keys_costs_no_call_either(branched, new_keyring, store, kms) -> None:
    ids = made(branched, 100)
    other = new_keyring(branches=4)
    other.opening_keys(ids[:40])
    kms.calls.clear(), store.calls.clear()
    assert [key.key_id for key in other.sealing_keys(dict.fromkeys(scopes(100), 0)).values()] == ids
    assert store.calls == ["active"]
    assert kms.calls == []


def test_branch_keys_outlive_the_data_keys_that_a_small_cache_lets_go(branched, new_keyring, kms) -> None:
    ids = made(branched, 300)
    other = new_keyring(max_keys=2)
    for key_id in [*ids, *ids]:
        assert isinstance(opened(other, key_id), DataKey)
    assert other.counters.kms_calls == 5


def test_items_sealed_in_many_scopes_open_in_another_process(branched, new_keyring) -> None:
    context = ItemContext(sequence_id=uuid4(), position=0, topic="t")
    names = list(scopes(60))
    items = [(name.encode(), context) for name in names]
    sealed = AESCipher(branched).encrypt_many(items, scopes=names)
    answers = AESCipher(new_keyring()).open_many([(envelope, context) for envelope in sealed])
    assert [(answer.plaintext.decode(), answer.scope) for answer in answers] == [(n, n) for n in names]


def test_a_branch_key_seals_and_opens_no_item(branched, new_keyring, store) -> None:
    made(branched, 1)
    (branch,) = branch_records(store)
    for keyring in (branched, new_keyring()):
        outcome = opened(keyring, branch.key_id)
        assert isinstance(outcome, IntegrityError)
        assert "branch" in str(outcome)


def test_a_scope_that_is_called_like_a_branch_has_a_data_key_of_its_own(branched, store) -> None:
    made(branched, 40)
    key = branched.sealing_keys({"branch:0": 1})["branch:0"]
    assert key.purpose is KeyPurpose.DATA
    assert key.key_id not in {record.key_id for record in branch_records(store)}


# --- races ---


def test_fifty_threads_on_a_cold_branch_cost_one_call(branched, new_keyring, kms, store) -> None:
    ids = made(new_keyring(branches=1), 50)
    keyring = new_keyring()
    keyring.refresh()
    kms.calls.clear()
    with ThreadPoolExecutor(50) as pool:
        with kms.hold():
            futures = [pool.submit(opened, keyring, key_id) for key_id in ids]
            kms.wait_inside(1)
            (flight,) = keyring._ring.branch_keys.opener._flights._flights.values()
            while len(flight.landed._cond._waiters) < 49:
                threading.Event().wait(0.001)
        assert all(isinstance(future.result(60), DataKey) for future in futures)
    assert [call.operation for call in kms.calls] == ["unwrap"]


def test_fifty_threads_with_fifty_new_scopes_make_one_branch_key(new_keyring, kms, store) -> None:
    keyring = new_keyring(branches=1)
    kms.delay = 0.01
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda number: keyring.prepare([f"s:{number}"]), range(50)))
    assert len(branch_records(store)) == 1
    assert kms.count("generate_data_key") == 2
    assert len({record.wrappings[0].kek_uri for record in store.data_records()}) == 1


def test_who_loses_the_race_for_a_branch_wraps_under_the_winners_key(new_keyring, kms, store) -> None:
    first, second = new_keyring(branches=1), new_keyring(branches=1)
    first.refresh(), second.refresh()
    first._ring.store_key.made_seals(), second._ring.store_key.made_seals()
    with ThreadPoolExecutor(1) as pool, store.gate("add_active", after=False) as gate:
        loser = pool.submit(made, second, 1, "loser")
        gate.wait_reached()
        made(first, 1, "winner")
        gate.open()
        loser.result(60)
    (branch,) = branch_records(store)
    assert {record.wrappings[0].kek_uri for record in store.data_records()} == {f"branch:{branch.key_id}"}
    found = new_keyring().opening_keys([record.key_id for record in store.data_records()])
    assert all(isinstance(key, DataKey) for key in found.values())


def test_a_branch_key_that_is_closed_while_it_is_used_is_asked_for_once_more(
    branched, new_keyring, store
) -> None:
    (key_id,) = made(branched, 1)
    keyring = new_keyring(branches=4)
    keyring.opening_keys([key_id])
    (branch,) = keyring._held_keys.of(KeyPurpose.BRANCH).keys.values()
    stale = branch.key
    stale.close()
    opener, sealer = keyring._ring.branch_keys.opener, keyring._ring.branch_keys.sealer
    for part, stale_answer in (
        (opener, {branch.record.key_id: stale}),
        (sealer, {branch.record.scope: stale}),
    ):
        ask, asked = part.keys, []

        def answer(names, ask=ask, asked=asked, stale_answer=stale_answer, **options):
            asked.append(names)
            return ask(names, **options) if asked[1:] else stale_answer

        part.keys = answer
    keyring._held_keys.of(KeyPurpose.DATA).drop(key_id, close=False)
    assert isinstance(opened(keyring, key_id), DataKey)
    fitting = next(
        f"t:{n}" for n in range(100) if branch_scope("default", f"t:{n}", 4) == branch.record.scope
    )
    assert isinstance(keyring.sealing_keys({fitting: 1})[fitting], DataKey)


# --- how long they serve ---


def load(new_keyring, store, kms, count: int = 3, **options):
    """A process that holds data keys of one branch, which another one has made."""
    ids = made(new_keyring(branches=1), count)
    keyring = new_keyring(branches=1, ttl=TTL, outage_grace=GRACE, **options)
    assert all(isinstance(key, DataKey) for key in keyring.opening_keys(ids).values())
    kms.calls.clear(), store.calls.clear()
    return keyring, ids


def test_a_branch_key_is_unwrapped_again_after_its_ttl(new_keyring, store, kms, clock) -> None:
    keyring, ids = load(new_keyring, store, kms)
    clock.advance(TTL - 1)
    keyring.opening_keys(ids)
    assert kms.calls == []
    clock.advance(1)
    keyring.opening_keys(ids)
    assert [call.operation for call in kms.calls] == ["unwrap"]


@pytest.mark.parametrize("fault", ["deny", "disable"])
def test_a_data_key_serves_no_longer_than_the_answer_for_its_branch_key(
    new_keyring, store, kms, clock, fault
) -> None:
    keyring, _ = load(new_keyring, store, kms)
    clock.advance(TTL - 1)
    late = new_keyring(branches=1).sealing_keys({"late": 1})["late"].key_id
    made_here = keyring.sealing_keys({"here": 1})["here"].key_id
    assert isinstance(opened(keyring, late), DataKey)
    getattr(kms, fault)()
    clock.advance(1)
    for key_id in (late, made_here):
        assert not isinstance(opened(keyring, key_id), DataKey)
    kms.recover()
    assert isinstance(opened(keyring, late), DataKey)


@pytest.mark.parametrize("use", ["open", "seal"])
@pytest.mark.parametrize(
    ("age", "served"), [(TTL, True), (TTL + GRACE - 1, True), (TTL + GRACE, False)], ids=str
)
def test_data_keys_outlive_an_outage_as_long_as_their_branch_key(
    new_keyring, store, kms, clock, use, age, served
) -> None:
    keyring, ids = load(new_keyring, store, kms)
    keyring.sealing_keys(scopes(3))
    kms.fail_always()
    clock.advance(age)
    if use == "open":
        outcomes = keyring.opening_keys(ids).values()
        assert {type(outcome) for outcome in outcomes} == {DataKey if served else KmsUnavailableError}
    elif served:
        assert [key.key_id for key in keyring.sealing_keys(scopes(3)).values()] == ids
    else:
        with pytest.raises(KmsUnavailableError):
            keyring.sealing_keys(scopes(3))
    kms.recover()
    clock.advance(6)
    assert all(isinstance(key, DataKey) for key in keyring.opening_keys(ids).values())


def test_a_data_key_made_late_outlives_an_outage_no_longer_than_its_branch_key(
    new_keyring, store, kms, clock
) -> None:
    keyring, _ = load(new_keyring, store, kms)
    clock.advance(TTL - 1)
    late = keyring.sealing_keys({"late": 1})["late"].key_id
    kms.fail_always()
    clock.advance(GRACE)
    assert isinstance(opened(keyring, late), DataKey)
    clock.advance(1)
    assert isinstance(opened(keyring, late), KmsUnavailableError)


def test_new_scopes_are_served_in_an_outage_as_long_as_the_branch_key_is_held(
    new_keyring, store, kms, clock
) -> None:
    keyring, _ = load(new_keyring, store, kms)
    kms.fail_always()
    clock.advance(TTL + 60)
    for number in range(10):
        made(keyring, 1, f"new-{number}")
    assert len(kms.calls) == 1
    clock.advance(GRACE)
    with pytest.raises(KmsUnavailableError):
        made(keyring, 1, "too late")


def test_in_an_outage_the_kms_is_asked_for_no_more_than_its_rest_allows(
    new_keyring, store, kms, clock
) -> None:
    keyring, ids = load(new_keyring, store, kms, count=40)
    clock.advance(TTL)
    kms.fail_always()
    for _ in range(60):
        clock.advance(1)
        for key_id in ids:
            assert isinstance(opened(keyring, key_id), DataKey)
    assert len(kms.calls) <= 60 / 5 + 1
    assert store.calls.count("get") <= 2 * len(kms.calls)


def test_while_the_key_store_is_away_what_is_held_serves_within_its_time(
    new_keyring, store, kms, clock
) -> None:
    keyring, ids = load(new_keyring, store, kms, open_grace=10_000.0)
    clock.advance(TTL)
    store.fail()
    assert all(isinstance(key, DataKey) for key in keyring.opening_keys(ids).values())
    assert [call.operation for call in kms.calls] == ["unwrap"]


def test_a_key_store_that_fails_for_the_branch_keys_is_no_keys_fault(new_keyring, store, kms) -> None:
    ids = made(new_keyring(branches=1), 3)
    keyring = new_keyring()
    keyring.refresh()
    get = store.get

    def fail_second(key_ids):
        if store.calls.count("get"):
            raise StoreUnavailableError("away")
        return get(key_ids)

    store.get = fail_second
    store.calls.clear()
    with pytest.raises(StoreUnavailableError):
        keyring.opening_keys(ids)
    store.get = get
    assert all(isinstance(key, DataKey) for key in keyring.opening_keys(ids).values())


# --- bad rows ---


def wrapped_under(store, key_id, kek_uri: str) -> None:
    (wrapped,) = store.record(key_id).wrappings
    store.edit(key_id, wrappings=(replace(wrapped, kek_uri=kek_uri),))


def refused(new_keyring, key_id) -> Exception:
    """What a process gets that has not seen the key before; a good key of the same page is not touched."""
    outcome = opened(new_keyring(), key_id)
    assert not isinstance(outcome, DataKey)
    return outcome


@pytest.fixture
def two(new_keyring, store):
    """Two data keys under two branches, by id, and the ids of their branch keys."""
    keyring = new_keyring(branches=2)
    names = [
        next(f"{n}" for n in range(99) if branch_scope("default", f"{n}", 2) == f"branch:{b}") for b in (0, 1)
    ]
    ids = [key.key_id for key in keyring.sealing_keys(dict.fromkeys(names, 1)).values()]
    branches = {record.scope: record.key_id for record in branch_records(store)}
    return ids, [branches["branch:0"], branches["branch:1"]]


def test_a_wrapping_that_names_another_branch_key_is_refused(two, new_keyring, store) -> None:
    (first, second), (_, other) = two
    wrapped_under(store, first, f"branch:{other}")
    assert isinstance(refused(new_keyring, first), IntegrityError)
    assert isinstance(opened(new_keyring(), second), DataKey)


def test_swapped_wrappings_are_refused(two, new_keyring, store) -> None:
    (first, second), _ = two
    mine, theirs = store.record(first).wrappings, store.record(second).wrappings
    store.edit(first, wrappings=theirs), store.edit(second, wrappings=mine)
    found = new_keyring().opening_keys([first, second])
    assert {type(outcome) for outcome in found.values()} == {IntegrityError}


def test_an_edited_wrapping_is_refused_and_its_page_opens(two, new_keyring, store) -> None:
    (first, second), _ = two
    (wrapped,) = store.record(first).wrappings
    changed = wrapped.ciphertext[:-1] + bytes([wrapped.ciphertext[-1] ^ 1])
    store.edit(first, wrappings=(replace(wrapped, ciphertext=changed),))
    found = new_keyring().opening_keys([first, second])
    assert isinstance(found[first], IntegrityError)
    assert found[first].key_id == first
    assert isinstance(found[second], DataKey)


def test_a_wrapping_under_a_key_that_is_no_branch_key_is_refused(two, new_keyring, store) -> None:
    (first, second), _ = two
    (store_key,) = [record.key_id for record in store.records() if record.purpose is KeyPurpose.STORE]
    for named, purpose in ((first, "data"), (second, "data"), (store_key, "store")):
        wrapped_under(store, first, f"branch:{named}")
        error = refused(new_keyring, first)
        assert isinstance(error, IntegrityError)
        assert purpose in str(error)


@pytest.mark.parametrize("name", ["", "0", "nonsense", "{}", "upper"])
def test_a_wrapping_that_names_nothing_is_refused(two, new_keyring, store, name) -> None:
    (first, _), (branch, _) = two
    wrapped_under(store, first, f"branch:{str(branch).upper() if name == 'upper' else name}")
    error = refused(new_keyring, first)
    assert isinstance(error, IntegrityError)
    assert f"key {first}" in str(error)
    assert "not the name of a branch key" in str(error)


def test_a_branch_key_that_is_not_there_is_no_missing_data_key(two, new_keyring, store) -> None:
    """Were it KeyNotFoundError, the item could pass for one in plain."""
    (first, second), (branch, _) = two
    store._records.pop(branch)
    for key_id, named in ((first, branch), (second, uuid4())):
        wrapped_under(store, key_id, f"branch:{named}")
        error = refused(new_keyring, key_id)
        assert isinstance(error, IntegrityError)
        assert str(key_id) in str(error)
        assert str(named) in str(error)


def test_another_applications_branch_key_is_refused(two, new_keyring, store) -> None:
    (first, _), _ = two
    made(new_keyring(application="other", branches=1), 1)
    (foreign,) = branch_records(store, "other")
    wrapped_under(store, first, f"branch:{foreign.key_id}")
    error = refused(new_keyring, first)
    assert type(error) is IntegrityError
    assert "'other'" in str(error)


def test_an_edited_branch_row_is_refused_for_each_of_its_keys(two, new_keyring, store) -> None:
    (first, second), (branch, _) = two
    for change in (
        {"scope": "branch:1"},
        {"state": KeyState.DEACTIVATED},
        {"binding": bytes(32)},
        {"seal": bytes(32)},
    ):
        kept = store.record(branch)
        store.edit(branch, **change)
        found = new_keyring().opening_keys([first, second])
        assert isinstance(found[first], IntegrityError)
        assert found[first].key_id == branch
        assert isinstance(found[second], DataKey)
        store._records[branch] = kept


def test_a_branch_key_whose_wrapping_was_edited_is_refused(two, new_keyring, store) -> None:
    (first, second), (branch, other) = two
    (mine,), (theirs,) = store.record(branch).wrappings, store.record(other).wrappings
    for wrappings in (
        (replace(mine, ciphertext=mine.ciphertext[:-1] + bytes([mine.ciphertext[-1] ^ 1])),),
        (theirs,),
        (),
        store.record(second).wrappings,
        (WrappedKey(kek_uri=f"branch:{branch}", kek_version=None, ciphertext=bytes(115)),),
    ):
        store.edit(branch, wrappings=wrappings)
        found = new_keyring().opening_keys([first, second])
        assert isinstance(found[first], IntegrityError), wrappings
        assert isinstance(found[second], DataKey)


def test_a_branch_key_under_a_kek_that_is_not_listed_names_it(new_keyring, store) -> None:
    mine, other = FakeKms("mine"), FakeKms("other")
    (key_id,) = made(new_keyring(kms=[mine, other], branches=1), 1)
    (branch,) = branch_records(store)
    store.edit(branch.key_id, wrappings=branch.wrappings[1:])
    outcome = opened(new_keyring(kms=mine), key_id)
    assert isinstance(outcome, KekNotConfiguredError)
    assert outcome.kek_uri == "fake://other"


@pytest.mark.parametrize("by", ["retired", "shredded"])
def test_a_destroyed_branch_key_is_told_and_never_taken_for_an_erasure(
    two, new_keyring, store, destroy, by
) -> None:
    (first, second), (branch, _) = two
    held = new_keyring()
    held.opening_keys([first])
    destroy(branch, by=by)
    for keyring in (new_keyring(), new_keyring()):
        found = keyring.opening_keys([first, second])
        error = found[first]
        assert isinstance(error, KeyDestroyedError)
        assert (error.key_id, error.destroyed_by, error.scope) == (branch, by, None)
        assert str(first) in str(error)
        assert isinstance(found[second], DataKey)
    held.refresh()
    assert held._held_keys.of(KeyPurpose.BRANCH).keys.keys() == set()


def test_a_closed_branch_makes_no_keys_and_leaves_the_others_alone(two, new_keyring, store, destroy) -> None:
    _, (branch, _) = two
    destroy(branch, by="shredded", keep_slot=True)
    keyring = new_keyring(branches=2)
    of_branch = {
        b: [f"n:{n}" for n in range(40) if branch_scope("default", f"n:{n}", 2) == b]
        for b in ("branch:0", "branch:1")
    }
    with pytest.raises(KeyDestroyedError):
        keyring.prepare(of_branch["branch:0"])
    keyring.prepare(of_branch["branch:1"])
    assert len(store.data_records()) == 2 + len(of_branch["branch:1"])


def test_a_closed_branch_is_no_fault_of_a_scope_that_another_thread_waits_for(
    two, new_keyring, store, destroy
) -> None:
    _, (branch, _) = two
    closed = next(f"n:{n}" for n in range(40) if branch_scope("default", f"n:{n}", 2) == "branch:0")
    (existing,) = [
        record.scope
        for record in store.data_records()
        if branch_scope("default", record.scope, 2) == "branch:1"
    ]
    destroy(branch, by="shredded", keep_slot=True)
    keyring = new_keyring(branches=2)
    keyring.refresh()
    with ThreadPoolExecutor(2) as pool, store.gate("active") as gate:
        both = pool.submit(keyring.prepare, [existing, closed])
        gate.wait_reached()
        waiting = pool.submit(keyring.sealing_keys, {existing: 1})
        flight = keyring._sealer._flights._flights[existing]
        while not flight.landed._cond._waiters:
            threading.Event().wait(0.001)
        gate.open()
        assert isinstance(waiting.result(60)[existing], DataKey)
        with pytest.raises(KeyDestroyedError):
            both.result(60)


def test_a_refresh_looks_for_an_absent_branch_key_again(two, new_keyring, store) -> None:
    (first, _), (branch, _) = two
    keyring = new_keyring()
    row = store._records.pop(branch)
    assert isinstance(opened(keyring, first), IntegrityError)
    store._records[branch] = row
    assert isinstance(opened(keyring, first), IntegrityError)  # not asked for again for a few seconds
    keyring.refresh()
    assert isinstance(opened(keyring, first), DataKey)


def test_a_kms_that_says_no_is_each_keys_outcome(new_keyring, kms) -> None:
    ids = made(new_keyring(branches=2), 20)
    keyring = new_keyring()
    keyring.refresh()
    kms.deny()
    found = keyring.opening_keys(ids)
    assert {type(outcome) for outcome in found.values()} == {KmsForbiddenError}
    assert len({id(outcome) for outcome in found.values()}) == 20


# --- rotation ---


def test_a_rotated_branch_key_wraps_no_more_and_still_unwraps(new_keyring, store) -> None:
    keyring = new_keyring(branches=2)
    old = made(keyring, 20, "old")
    before = {record.key_id for record in branch_records(store)}
    rotated = keyring.rotate_branches()
    assert [record.scope for record in rotated] == ["branch:0", "branch:1"]
    assert not before & {record.key_id for record in rotated}
    assert {store.record(key_id).state for key_id in before} == {KeyState.DEACTIVATED}
    new = made(keyring, 20, "new")
    named = {f"branch:{record.key_id}" for record in rotated}
    assert {store.record(key_id).wrappings[0].kek_uri for key_id in new} == named
    found = new_keyring().opening_keys([*old, *new])
    assert all(isinstance(key, DataKey) for key in found.values())


def test_another_process_wraps_under_the_new_branch_key_once_it_has_seen_it(new_keyring, store) -> None:
    keyring, other = new_keyring(branches=1), new_keyring(branches=1)
    made(other, 1, "before")
    (branch,) = keyring.rotate_branches()
    other.refresh()
    (key_id,) = made(other, 1, "after")
    assert store.record(key_id).wrappings[0].kek_uri == f"branch:{branch.key_id}"


def test_rotating_branches_that_have_no_keys_makes_them(new_keyring, store) -> None:
    keyring = new_keyring(branches=3)
    assert [record.scope for record in keyring.rotate_branches()] == ["branch:0", "branch:1", "branch:2"]
    assert len(branch_records(store)) == 3


def test_a_compromised_branch_key_opens_and_wraps_no_more(new_keyring, store) -> None:
    keyring = new_keyring(branches=1)
    ids = made(keyring, 3)
    (old,) = branch_records(store)
    keyring.rotate_branches(compromised=True)
    assert store.record(old.key_id).state is KeyState.COMPROMISED
    assert all(isinstance(key, DataKey) for key in new_keyring().opening_keys(ids).values())
    store.edit(old.key_id, state=KeyState.ACTIVE)
    assert isinstance(refused(new_keyring, ids[0]), IntegrityError)


def test_a_branch_key_grows_old_without_being_rotated(new_keyring, store, clock) -> None:
    keyring = new_keyring(branches=1, max_age=None)
    made(keyring, 1)
    aging = new_keyring(branches=1)
    clock.advance(91 * 86_400)
    aging.sealing_keys({"subject:0": 1, "new": 1})
    assert len(branch_records(store)) == 1
    assert len(store.data_records()) == 3  # the data key came of age


def test_a_keyring_without_branches_has_none_to_rotate(keyring) -> None:
    with pytest.raises(ConfigurationError, match="no branches"):
        keyring.rotate_branches()
    keyring.close()


def test_a_closed_keyring_rotates_no_branches(branched) -> None:
    branched.close()
    with pytest.raises(ConfigurationError, match="closed"):
        branched.rotate_branches()


def test_a_closed_keyring_holds_no_branch_key(branched) -> None:
    made(branched, 20)
    keys = [cached.key for cached in branched._held_keys.of(KeyPurpose.BRANCH).keys.values()]
    branched.close()
    assert all(key.closed for key in keys)
    assert len(keys) == 4


def test_a_forked_child_starts_without_the_parents_branch_keys(branched, kms) -> None:
    ids = made(branched, 20)
    keys = [cached.key for cached in branched._held_keys.of(KeyPurpose.BRANCH).keys.values()]
    kms.calls.clear()
    branched.renew_in_child()
    assert all(key.closed for key in keys)
    assert not branched._held_keys.of(KeyPurpose.BRANCH).keys
    assert all(isinstance(key, DataKey) for key in branched.opening_keys(ids).values())
    assert kms.count("unwrap") == 5

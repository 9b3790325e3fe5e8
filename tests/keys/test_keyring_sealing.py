"""Which key seals: made on first use, one a scope, leased, and replaced when it is time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from eventseal.errors import (
    ConfigurationError,
    KeyDestroyedError,
    KeyLimitError,
    KmsForbiddenError,
    KmsUnavailableError,
    StoreReadOnlyError,
    StoreUnavailableError,
)
from eventseal.keys import HARD_LIMIT, InMemoryKeyStore, KeyPurpose, Keyring, KeyState
from eventseal.keys.ring.key_cache import FIRST_BLOCK, MOST_CREDIT
from eventseal.keys.source import StaticKey
from eventseal.testing import FakeBatchKms, FakeKms


def sealing_key(keyring: Keyring, scope: str = "a", items: int = 1):
    return keyring.sealing_keys({scope: items})[scope]


def test_the_constructor_asks_nobody(kms, store) -> None:
    Keyring(kms, store)
    assert kms.calls == []
    assert store.calls == []


@pytest.mark.parametrize("kms", [[], (), object(), [object()], "fake://one"])
def test_a_keyring_without_a_kek_is_refused(kms, store) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Keyring(kms if isinstance(kms, (list, tuple, str)) else [kms], store)
    assert caught.value.remedy


def test_a_key_store_that_is_none_is_refused(kms) -> None:
    with pytest.raises(ConfigurationError, match="key_store"):
        Keyring(kms, FakeKms())


@pytest.mark.parametrize(
    "application", ["", "x" * 201, "a\0b", "e\N{COMBINING ACUTE ACCENT}", "\ud800", 7, None]
)
def test_a_refused_application_name_is_a_configuration_error(kms, store, application) -> None:
    with pytest.raises(ConfigurationError):
        Keyring(kms, store, application=application)


def test_a_keyring_has_its_application_read_only(keyring) -> None:
    assert keyring.application == "default"
    with pytest.raises(AttributeError):
        keyring.application = "other"


def test_several_keks_may_come_from_an_iterator(store) -> None:
    keyring = Keyring(iter([FakeKms("one"), FakeKms("two")]), store)  # type: ignore[arg-type]
    keyring.renew_in_child()
    key = sealing_key(keyring)
    assert [wrapping.kek_uri for wrapping in store.record(key.key_id).wrappings] == [
        "fake://one",
        "fake://two",
    ]


def test_first_use_makes_the_store_key_and_the_scopes_key(keyring, kms, store) -> None:
    key = sealing_key(keyring, "tenant:acme")
    assert [call.operation for call in kms.calls] == ["generate_data_key", "generate_data_key"]
    by_purpose = {record.purpose: record for record in store.records()}
    assert set(by_purpose) == {KeyPurpose.STORE, KeyPurpose.DATA}
    made = by_purpose[KeyPurpose.DATA]
    assert (key.key_id, key.scope, key.state, key.application) == (
        made.key_id,
        "tenant:acme",
        KeyState.ACTIVE,
        "default",
    )
    assert made.active_scope == "tenant:acme"
    assert made.items_reserved == FIRST_BLOCK
    assert (by_purpose[KeyPurpose.STORE].scope, by_purpose[KeyPurpose.STORE].items_reserved) == ("store", 0)


def test_the_key_is_committed_before_it_is_handed_out(keyring, store) -> None:
    store.fail("add_active")
    with pytest.raises(StoreUnavailableError):
        sealing_key(keyring)
    assert store.records() == []


def test_a_second_use_asks_nobody(keyring, kms, store) -> None:
    first = sealing_key(keyring)
    asked = len(store.calls), len(kms.calls)
    assert sealing_key(keyring) is first
    assert (len(store.calls), len(kms.calls)) == asked
    assert keyring.counters.hits == 1


def test_another_process_seals_under_the_same_key(new_keyring, kms) -> None:
    first, second = sealing_key(new_keyring()), sealing_key(new_keyring())
    assert first is not second
    assert first.key_id == second.key_id
    assert first.derive(b"x", 32) == second.derive(b"x", 32)
    assert [call.operation for call in kms.calls] == ["generate_data_key"] * 2 + ["unwrap"] * 2


def test_scopes_have_keys_of_their_own_made_in_one_transaction(keyring, store) -> None:
    keys = keyring.sealing_keys({f"tenant:{number}": 1 for number in range(20)})
    assert len({key.key_id for key in keys.values()}) == 20
    assert all(key.scope == scope for scope, key in keys.items())
    assert store.calls.count("add_active") == 2  # the store key, all others


def test_a_hundred_thousand_items_cost_two_kms_calls(keyring, kms, store) -> None:
    for _ in range(100_000):
        sealing_key(keyring)
    assert len(kms.calls) == 2
    assert store.calls.count("reserve") <= 7


def test_without_make_a_scope_that_has_no_key_is_left_out(keyring, new_keyring, store, kms) -> None:
    assert keyring.sealing_keys({"a": 1}, make=False) == {}
    assert store.records() == []
    assert kms.calls == []
    key = sealing_key(new_keyring(), "b")
    assert {
        scope: found.key_id for scope, found in keyring.sealing_keys({"a": 1, "b": 1}, make=False).items()
    } == {"b": key.key_id}
    assert len(store.data_records()) == 1


@pytest.mark.parametrize("scope", ["", "x" * 201, "a\0b", "e\N{COMBINING ACUTE ACCENT}", "\udc00", 7])
def test_a_refused_scope_makes_nothing(keyring, store, scope) -> None:
    with pytest.raises(ConfigurationError):
        keyring.sealing_keys({"good": 1, scope: 1})
    assert store.records() == []


def test_impossible_counts_are_refused(keyring, store) -> None:
    with pytest.raises(ConfigurationError):
        keyring.sealing_keys({"a": -1})
    with pytest.raises(KeyLimitError):
        keyring.sealing_keys({"a": HARD_LIMIT + 1})
    sealing_key(keyring)
    with pytest.raises(ConfigurationError):
        keyring.sealing_keys({"a": -1})
    assert len(store.data_records()) == 1


def test_asking_for_nothing_gives_nothing(keyring) -> None:
    assert keyring.sealing_keys({}) == {}


def test_prepared_scopes_need_no_write_at_first_use(keyring, store) -> None:
    keyring.prepare(["a", "b"])
    store.fail("add_active", "replace_all_active", "reserve", "set_states")
    keys = keyring.sealing_keys({"a": FIRST_BLOCK, "b": 1})
    assert len(keys) == 2


def test_preparing_again_changes_nothing(keyring, store, kms) -> None:
    keyring.prepare(["a"])
    before = store.snapshot(), len(kms.calls)
    keyring.prepare(["a"])
    assert (store.snapshot(), len(kms.calls)) == before


@pytest.mark.parametrize("kms", [FakeKms, FakeBatchKms])
def test_many_prepared_scopes_are_loaded_by_another_process_at_once(kms, new_keyring, store) -> None:
    adapter = kms()
    scopes = [f"tenant:{number}" for number in range(50)]
    new_keyring(kms=adapter).prepare(scopes)
    other = new_keyring(kms=adapter)
    store.calls.clear(), adapter.calls.clear()
    other.prepare(scopes)
    assert store.calls == ["active", "changes", "active"]
    assert len(adapter.calls) == (2 if kms is FakeBatchKms else 51)


# --- leases ---


def test_leases_grow_and_add_up_across_processes(new_keyring, store) -> None:
    first, second = new_keyring(), new_keyring()
    key_id = sealing_key(first, items=FIRST_BLOCK).key_id
    assert store.record(key_id).items_reserved == 1_024
    sealing_key(first)
    assert store.record(key_id).items_reserved == 1_024 + 2_048
    sealing_key(second)
    assert store.record(key_id).items_reserved == 1_024 + 2_048 + 1_024
    sealing_key(first, items=2_048)
    assert store.record(key_id).items_reserved == 1_024 + 2_048 + 1_024 + 4_096


def test_several_scopes_are_leased_in_one_call(keyring, store) -> None:
    scopes = {f"tenant:{number}": FIRST_BLOCK for number in range(5)}
    keyring.sealing_keys(scopes)
    keyring.sealing_keys(scopes)
    assert store.calls.count("reserve") == 1


def test_a_batch_larger_than_a_block_is_leased_whole(keyring, store) -> None:
    key = sealing_key(keyring, items=5_000)
    assert store.record(key.key_id).items_reserved == 5_000
    assert sealing_key(keyring, items=300_000) is key
    assert store.record(key.key_id).items_reserved == 305_000


def test_items_are_sealed_on_credit_while_the_table_cannot_be_written(keyring, store) -> None:
    key = sealing_key(keyring, items=FIRST_BLOCK)
    store.fail("reserve")
    for _ in range(MOST_CREDIT // FIRST_BLOCK):
        assert sealing_key(keyring, items=FIRST_BLOCK) is key
    with pytest.raises(StoreUnavailableError):
        sealing_key(keyring)
    assert store.record(key.key_id).items_reserved == FIRST_BLOCK
    store.recover()
    sealing_key(keyring)
    assert store.record(key.key_id).items_reserved == FIRST_BLOCK + MOST_CREDIT + 2 * FIRST_BLOCK


def test_credit_is_paid_although_the_key_was_evicted_meanwhile(new_keyring, store) -> None:
    keyring = new_keyring(max_keys=1)
    key_id = keyring.sealing_keys({"a": FIRST_BLOCK})["a"].key_id
    store.fail("reserve")
    keyring.sealing_keys({"a": 1})
    store.recover()
    keyring.sealing_keys({"b": 1})
    assert key_id not in keyring._held_keys.keys
    keyring.sealing_keys({"a": 300_000})
    assert store.record(key_id).items_reserved >= FIRST_BLOCK + 1 + 300_000


def test_credit_is_taken_in_blocks_so_that_the_table_is_not_tried_for_each_item(keyring, store) -> None:
    sealing_key(keyring, items=FIRST_BLOCK)
    store.fail("reserve")
    for _ in range(FIRST_BLOCK):
        sealing_key(keyring)
    assert store.calls.count("reserve") == 1


def test_a_read_only_table_gives_no_credit(keyring, store) -> None:
    sealing_key(keyring, items=FIRST_BLOCK)
    store.fail("reserve", error=StoreReadOnlyError("read-only"))
    with pytest.raises(StoreReadOnlyError):
        sealing_key(keyring)


def test_one_scopes_failure_leaves_the_others_alone(new_keyring, store, kms) -> None:
    keyring = new_keyring()
    sealing_key(keyring, "a", FIRST_BLOCK)
    kms.fail_always()
    with pytest.raises(KmsUnavailableError):
        keyring.sealing_keys({"a": 1, "new": 1})
    assert sealing_key(keyring, "a")
    kms.recover()
    assert len(keyring.sealing_keys({"a": 1, "new": 1})) == 2


def test_more_scopes_than_the_cache_holds_are_sealed_in_one_batch(new_keyring, store) -> None:
    keyring = new_keyring(max_keys=3)
    scopes = {f"tenant:{number}": 1 for number in range(10)}
    first = keyring.sealing_keys(scopes)
    second = keyring.sealing_keys(scopes)
    assert {scope: key.key_id for scope, key in first.items()} == {
        scope: key.key_id for scope, key in second.items()
    }
    assert len(store.data_records()) == 10
    assert len(keyring._held_keys.keys) == 3
    assert len(keyring._held_keys.active) <= 3


# --- a key's own limit ---


def test_a_full_key_is_replaced(new_keyring, store) -> None:
    keyring = new_keyring(max_items=HARD_LIMIT)
    full = sealing_key(keyring)
    store.edit(full.key_id, items_reserved=HARD_LIMIT)
    key = sealing_key(keyring, items=FIRST_BLOCK)
    assert key.key_id != full.key_id
    assert store.record(full.key_id).state is KeyState.DEACTIVATED


def test_the_last_items_of_a_key_are_used(new_keyring, store) -> None:
    keyring = new_keyring(max_items=HARD_LIMIT)
    key = sealing_key(keyring, items=FIRST_BLOCK)
    store.edit(key.key_id, items_reserved=HARD_LIMIT - 5)
    assert sealing_key(keyring, items=5) is key
    assert store.record(key.key_id).items_reserved == HARD_LIMIT
    assert sealing_key(keyring) is not key


@pytest.mark.parametrize("fault", ["kms", "store"])
def test_a_full_key_that_cannot_be_replaced_stops(new_keyring, store, kms, fault: str) -> None:
    keyring = new_keyring(max_items=HARD_LIMIT)
    key = sealing_key(keyring, items=FIRST_BLOCK)
    store.edit(key.key_id, items_reserved=HARD_LIMIT)
    if fault == "kms":
        kms.deny()
    else:
        store.fail("replace_all_active")
    with pytest.raises(KeyLimitError) as caught:
        sealing_key(keyring)
    assert caught.value.key_id == key.key_id
    assert isinstance(caught.value.__cause__, KmsForbiddenError if fault == "kms" else StoreUnavailableError)
    kms.recover(), store.recover()
    assert sealing_key(keyring).key_id != key.key_id


# --- rotation by policy ---


def test_a_key_is_replaced_when_its_items_are_used_up(new_keyring, store) -> None:
    keyring = new_keyring(max_items=1_000)
    used = [sealing_key(keyring).key_id for _ in range(3_500)]
    assert [used.count(key_id) for key_id in dict.fromkeys(used)] == [1_000, 1_000, 1_000, 500]
    assert all(record.items_reserved <= 1_000 for record in store.data_records())


def test_a_batch_is_never_split_over_two_keys(new_keyring, store) -> None:
    keyring = new_keyring(max_items=1_000)
    first = sealing_key(keyring, items=700)
    second = sealing_key(keyring, items=700)
    assert first.key_id != second.key_id
    assert sealing_key(keyring, items=5_000).key_id != second.key_id
    assert len(store.data_records()) == 3


def test_a_key_is_replaced_when_it_is_old_by_the_databases_clock(new_keyring, store, clock) -> None:
    keyring = new_keyring(max_age=timedelta(days=90))
    first = sealing_key(keyring)
    clock.advance(timedelta(days=90).total_seconds() - 1)
    assert sealing_key(keyring).key_id == first.key_id
    clock.advance(1)
    second = sealing_key(keyring)
    assert second.key_id != first.key_id
    assert store.record(first.key_id).state is KeyState.DEACTIVATED


def test_age_counts_from_when_another_process_made_the_key(new_keyring, clock) -> None:
    options = {"max_age": timedelta(hours=1), "refresh_interval": 1e6, "ttl": 1e6}
    first = sealing_key(new_keyring(**options))
    clock.advance(3_000)
    late = new_keyring(**options)
    assert sealing_key(late).key_id == first.key_id
    clock.advance(599)
    assert sealing_key(late).key_id == first.key_id
    clock.advance(1)
    assert sealing_key(late).key_id != first.key_id


def test_a_key_without_an_age_limit_is_never_too_old(new_keyring, clock) -> None:
    keyring = new_keyring(max_age=None)
    first = sealing_key(keyring)
    clock.advance(timedelta(days=10_000).total_seconds())
    assert sealing_key(keyring).key_id == first.key_id


@pytest.mark.parametrize("fault", ["kms", "store"])
def test_rotation_by_policy_tries_without_waiting_and_goes_on_with_the_old_key(
    new_keyring, store, kms, clock, fault: str
) -> None:
    keyring = new_keyring(max_age=timedelta(hours=1), ttl=1e9)
    first = sealing_key(keyring)
    clock.advance(3_600)
    waits: list[bool] = []
    replace_all_active = store.replace_all_active

    def watched(*args, wait: bool, **options):
        waits.append(wait)
        return replace_all_active(*args, wait=wait, **options)

    store.replace_all_active = watched
    if fault == "kms":
        kms.fail_always()
    else:
        store.fail("replace_all_active")
    for _ in range(100):
        assert sealing_key(keyring) is first
    assert len(kms.calls) == 3  # the store key, the key, one try: it rests then
    clock.advance(31)
    kms.recover(), store.recover()
    assert sealing_key(keyring) is not first
    assert set(waits) == {False}


def test_a_used_up_key_that_cannot_be_replaced_is_not_tried_for_each_item(
    new_keyring, kms, store, clock
) -> None:
    keyring = new_keyring(max_items=10)
    key = sealing_key(keyring, items=10)
    kms.fail_always()
    kms.calls.clear()
    for _ in range(5):
        assert sealing_key(keyring, items=2_000) is key
    assert len(kms.calls) == 1
    clock.advance(31)
    kms.recover()
    assert sealing_key(keyring, items=100_000) is not key


def test_rotation_by_policy_gives_way_to_another_process(new_keyring, store, clock, kms) -> None:
    options = {"max_age": timedelta(hours=1), "ttl": 1e9, "refresh_interval": 1e9}
    first, second = new_keyring(**options), new_keyring(**options)
    old = sealing_key(first)
    sealing_key(second)
    clock.advance(3_600)
    winner = sealing_key(first)
    assert winner.key_id != old.key_id
    assert sealing_key(second).key_id == winner.key_id
    assert len(store.data_records()) == 2


def test_however_many_processes_notice_an_old_key_it_is_replaced_once(new_keyring, store, clock) -> None:
    options = {"max_age": timedelta(hours=1), "ttl": 1e9, "refresh_interval": 60.0}
    rings = [new_keyring(**options) for _ in range(6)]
    old = {sealing_key(ring).key_id for ring in rings}
    clock.advance(3601)
    barrier = threading.Barrier(len(rings))

    def seal(ring):
        barrier.wait(60)
        return sealing_key(ring).key_id

    with ThreadPoolExecutor(len(rings)) as pool:
        first = set(pool.map(seal, rings))
    clock.advance(61)
    (new,) = {sealing_key(ring).key_id for ring in rings}
    assert {new} != old
    assert first <= {new} | old
    assert len(store.data_records()) == 2


def test_rotation_by_policy_where_the_slot_was_given_up_makes_a_key(
    new_keyring, store, clock, destroy
) -> None:
    keyring = new_keyring(max_age=timedelta(hours=1), ttl=1e9, refresh_interval=1e9)
    old = sealing_key(keyring)
    clock.advance(3_600)
    destroy(old.key_id)
    assert sealing_key(keyring).key_id not in {old.key_id, None}
    assert len(store.data_records()) == 2


# --- closed scopes ---


def test_a_shredded_scope_seals_no_more(keyring, new_keyring, destroy, store) -> None:
    key = sealing_key(keyring)
    destroy(key.key_id, by="shredded", keep_slot=True)
    with pytest.raises(KeyDestroyedError) as caught:
        sealing_key(new_keyring())
    assert (caught.value.key_id, caught.value.scope, caught.value.destroyed_by) == (
        key.key_id,
        "a",
        "shredded",
    )
    keyring.refresh()
    with pytest.raises(KeyDestroyedError):
        sealing_key(keyring)
    assert key.closed
    assert len(store.data_records()) == 1


def test_a_scope_shredded_while_its_lease_ran_out_seals_no_more(keyring, destroy) -> None:
    key = sealing_key(keyring, items=FIRST_BLOCK)
    destroy(key.key_id, by="shredded", keep_slot=True)
    with pytest.raises(KeyDestroyedError):
        sealing_key(keyring)
    assert key.closed


def test_a_shredded_scope_stops_rotation_by_policy(new_keyring, clock, destroy) -> None:
    keyring = new_keyring(max_age=timedelta(hours=1), ttl=1e9, refresh_interval=1e9)
    key = sealing_key(keyring)
    clock.advance(3_600)
    destroy(key.key_id, by="shredded", keep_slot=True)
    with pytest.raises(KeyDestroyedError):
        sealing_key(keyring)


def test_a_retired_scope_gets_a_new_key(keyring, destroy) -> None:
    key = sealing_key(keyring)
    destroy(key.key_id)
    keyring.refresh()
    assert sealing_key(keyring).key_id != key.key_id


# --- the end ---


def test_a_closed_keyring_gives_no_key(keyring) -> None:
    key = sealing_key(keyring)
    keyring.close()
    assert key.closed
    for use in (
        lambda: sealing_key(keyring),
        lambda: keyring.opening_keys([key.key_id]),
        lambda: keyring.rotate("a"),
        lambda: keyring.prepare(["a"]),
        keyring.refresh,
    ):
        with pytest.raises(ConfigurationError, match="closed"):
            use()
    keyring.close()


def test_a_keyring_satisfies_the_key_source() -> None:
    from eventseal.keys import KeySource

    assert isinstance(Keyring(FakeKms(), InMemoryKeyStore()), KeySource)
    assert isinstance(StaticKey(bytes(16)), KeySource)

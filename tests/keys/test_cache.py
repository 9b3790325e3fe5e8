"""The cache is bounded, and what was used longest ago goes first."""

from __future__ import annotations

from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from eventseal.keys import CachePolicy, DataKey, KeyPurpose, KeyState, RotationPolicy
from eventseal.keys.policy import BootClock
from eventseal.keys.records import new_record
from eventseal.keys.ring.key_cache import CachedKey, Confirmation, KeyCache

CONFIRMATION = Confirmation(CachePolicy(), RotationPolicy())


def cached(number: int, used: int = 0) -> CachedKey:
    record = new_record("shop", f"tenant:{number}", KeyPurpose.DATA, leased=0)
    key = DataKey(
        bytes(32),
        key_id=record.key_id,
        application="shop",
        scope=record.scope,
        purpose=KeyPurpose.DATA,
        state=KeyState.ACTIVE,
    )
    entry = CachedKey(key, record)
    entry.used = used
    return entry


def test_the_key_used_longest_ago_goes_and_its_handle_stays_open() -> None:
    cache = KeyCache(2, CONFIRMATION)
    first, second, third = cached(1, used=5), cached(2, used=3), cached(3, used=6)
    for entry in (first, second, third):
        cache.add(entry)
    assert set(cache.keys.values()) == {first, third}
    assert not second.key.closed


def test_adding_a_key_again_evicts_nothing() -> None:
    cache = KeyCache(2, CONFIRMATION)
    first, second = cached(1), cached(2)
    for entry in (first, second, second, first):
        cache.add(entry)
    assert len(cache.keys) == 2


def test_an_evicted_key_seals_no_more() -> None:
    cache = KeyCache(1, CONFIRMATION)
    first = cached(1)
    cache.add(first)
    cache.active["tenant:1"] = first
    cache.add(cached(2, used=1))
    assert cache.active == {}


def test_a_key_leaves_the_seat_of_another_alone() -> None:
    cache = KeyCache(5, CONFIRMATION)
    old, new = cached(1), cached(1)
    cache.add(old)
    cache.add(new)
    cache.active["tenant:1"] = new
    cache.drop(old.record.key_id, close=True)
    assert old.key.closed
    assert cache.active == {"tenant:1": new}


def test_dropping_what_is_not_held_does_nothing() -> None:
    KeyCache(1, CONFIRMATION).drop(uuid4(), close=True)


def test_a_large_cache_evicts_a_share_at_once() -> None:
    cache = KeyCache(640, CONFIRMATION)
    for number in range(640):
        cache.add(cached(number, used=number))
    cache.add(cached(641, used=641))
    assert len(cache.keys) == 640 - 10 + 1
    assert min(entry.used for entry in cache.keys.values()) == 10


@given(st.integers(1, 8), st.lists(st.integers(0, 12), max_size=80))
def test_a_small_cache_is_exactly_least_recently_used(max_keys: int, accesses: list[int]) -> None:
    cache, entries, model = (
        KeyCache(max_keys, CONFIRMATION),
        {number: cached(number) for number in range(13)},
        [],
    )
    for use, number in enumerate(accesses):
        entry = entries[number]
        entry.used = use
        cache.add(entry)
        if number in model:
            model.remove(number)
        model.append(number)
        del model[:-max_keys]
        assert set(cache.keys) == {entries[kept].record.key_id for kept in model}


def test_a_subclass_of_the_clock_says_what_time_it_is() -> None:
    class Standing(BootClock):
        def now(self) -> float:
            return 5.0

    assert Standing().now() == 5.0

"""Key ids are UUIDs of version 7."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122

import pytest

from eventseal.keys.records import new_key_id


def test_an_id_has_the_version_and_variant_of_rfc_9562() -> None:
    for _ in range(1_000):
        key_id = new_key_id()
        assert key_id.version == 7
        assert key_id.variant == RFC_4122


def test_an_id_begins_with_the_milliseconds_of_now() -> None:
    before = time.time_ns() // 1_000_000
    milliseconds = new_key_id().int >> 80
    assert before <= milliseconds <= time.time_ns() // 1_000_000


def test_the_fraction_of_a_millisecond_stands_behind_the_version(monkeypatch) -> None:
    def fraction(nanoseconds: int) -> int:
        monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123 * 1_000_000 + nanoseconds)
        key_id = new_key_id()
        assert key_id.int >> 80 == 1_700_000_000_123
        return key_id.int >> 64 & 0xFFF

    assert [fraction(nanoseconds) for nanoseconds in (0, 244, 245, 500_000, 999_999)] == [0, 0, 1, 2048, 4095]


def test_ids_sort_by_the_time_they_were_made() -> None:
    made = []
    for _ in range(50):
        made.append(new_key_id())
        deadline = time.time_ns() + 1_000
        while time.time_ns() < deadline:
            pass
    assert made == sorted(made)


@pytest.mark.slow
def test_threads_never_make_the_same_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_key_id(), range(20_000)))
    assert len(set(made)) == len(made)


def test_the_random_bits_vary_in_every_place(monkeypatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    zeros = ones = 0
    for _ in range(200):
        low = new_key_id().int & (1 << 62) - 1
        ones |= low
        zeros |= ~low
    assert ones == (1 << 62) - 1
    assert zeros & (1 << 62) - 1 == (1 << 62) - 1

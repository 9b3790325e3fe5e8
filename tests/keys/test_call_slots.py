"""At most so many calls to KMSs at once, in the order in which they were asked for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.keys.wrapping.kek_calls import CALLS_IN_FLIGHT, CallSlots
from eventseal.testing import FakeBatchKms, FakeKms


def wait_for_queue(slots: CallSlots, length: int) -> None:
    deadline = time.monotonic() + 60
    while len(slots._queue) != length:
        assert time.monotonic() < deadline, f"{len(slots._queue)} are waiting, not {length}"
        threading.Event().wait(0.001)


def hold(slots: CallSlots, wanted: int, entered: threading.Event, leave: threading.Event) -> None:
    with slots.taken(wanted):
        entered.set()
        assert leave.wait(60)


def test_no_more_are_in_than_there_are_slots() -> None:
    slots, inside, peak, lock = CallSlots(3), 0, 0, threading.Lock()

    def call(wanted: int) -> None:
        nonlocal inside, peak
        with slots.taken(wanted):
            with lock:
                inside += min(wanted, 3)
                peak = max(peak, inside)
            threading.Event().wait(0.001)
            with lock:
                inside -= min(wanted, 3)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, [1, 2, 3, 50] * 25))
    assert peak == 3
    assert slots._free == 3
    assert not slots._queue


def test_who_waits_longest_goes_first_even_if_it_wants_more() -> None:
    slots = CallSlots(2)
    order: list[str] = []

    def call(name: str, wanted: int) -> None:
        with slots.taken(wanted):
            order.append(name)

    with ThreadPoolExecutor(3) as pool, slots.taken(1):
        futures = [pool.submit(call, "batch", 2)]
        wait_for_queue(slots, 1)
        futures.append(pool.submit(call, "single", 1))  # a slot is free, but the batch came before
        wait_for_queue(slots, 2)
        assert order == []
    for future in futures:
        future.result(60)
    assert order == ["batch", "single"]


def test_who_is_interrupted_while_waiting_stands_in_nobodys_way() -> None:
    slots = CallSlots(1)

    def wait_for(predicate, timeout=None):
        raise KeyboardInterrupt

    with slots.taken(1):
        patched = pytest.MonkeyPatch()
        patched.setattr(slots._condition, "wait_for", wait_for)
        with pytest.raises(KeyboardInterrupt), slots.taken(1):
            pass
        patched.undo()
    with slots.taken(1):
        pass


def test_who_is_interrupted_does_not_take_the_place_of_who_came_before() -> None:
    slots = CallSlots(1)
    wait_for = slots._condition.wait_for

    def wait_or_be_interrupted(predicate, timeout=None):
        if len(slots._queue) == 2:
            raise KeyboardInterrupt
        return wait_for(predicate, timeout)

    with ThreadPoolExecutor(1) as pool, slots.taken(1):
        entered, leave = threading.Event(), threading.Event()
        leave.set()
        slots._condition.wait_for = wait_or_be_interrupted
        first = pool.submit(hold, slots, 1, entered, leave)
        wait_for_queue(slots, 1)
        (ticket,) = slots._queue
        with pytest.raises(KeyboardInterrupt), slots.taken(1):
            pass
        assert list(slots._queue) == [ticket]
    first.result(60)
    assert entered.is_set()


def test_a_call_that_fails_gives_its_slot_back() -> None:
    slots = CallSlots(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"), slots.taken(1):
            raise ValueError("x")


def test_fifty_threads_have_twenty_calls_in_flight() -> None:
    kms, store = FakeKms(), InMemoryKeyStore()
    keyring = Keyring(kms, store)
    keyring.prepare(["warm"])
    with ThreadPoolExecutor(50) as pool:
        with kms.hold():
            futures = [pool.submit(keyring.prepare, [f"s:{number}"]) for number in range(50)]
            wait_for_queue(keyring._ring.keks.calls._slots, 50 - CALLS_IN_FLIGHT)
            kms.wait_inside(CALLS_IN_FLIGHT)  # whoever has a slot may not have come to the KMS yet
            assert kms.peak == CALLS_IN_FLIGHT
        for future in futures:
            future.result(60)
    assert kms.peak <= CALLS_IN_FLIGHT
    assert len(store.page("default")) == 52


def test_the_calls_to_all_keks_share_the_slots() -> None:
    first, second = FakeKms(), FakeKms()
    store = InMemoryKeyStore()
    mine = Keyring(first, store).sealing_keys({f"a:{number}": 1 for number in range(20)})
    Keyring([first, second], store).rewrap()
    for record in store.page("default"):
        if record.scope.startswith("a:") and int(record.scope[2:]) % 2:
            kept = tuple(wrapped for wrapped in record.wrappings if wrapped.kek_uri == second.uri)
            store._records[record.key_id] = replace(record, wrappings=kept)
    keyring = Keyring([first, second], store)
    keyring.refresh()
    ids = [key.key_id for key in mine.values()]
    with ThreadPoolExecutor(40) as pool:
        with first.hold(), second.hold():
            futures = [pool.submit(keyring.opening_keys, [key_id]) for key_id in ids]
            first.wait_inside(10)
            second.wait_inside(10)
            futures += [pool.submit(keyring.prepare, [f"b:{number}"]) for number in range(20)]
            wait_for_queue(keyring._ring.keks.calls._slots, 20)
            assert (first._inside, second._inside) == (10, 10)
        for future in futures:
            future.result(60)


@pytest.mark.parametrize("size", [1, 3])
def test_wrapping_under_a_further_kek_takes_slots_too(size: int) -> None:
    first, second = FakeKms(), FakeBatchKms()
    keyring = Keyring([first, second], InMemoryKeyStore())
    keyring.prepare(["warm"])
    most = CALLS_IN_FLIGHT // size
    with ThreadPoolExecutor(most + 5) as pool:
        with second.hold():
            batches = [[f"{number}:{n}" for n in range(size)] for number in range(most + 5)]
            futures = [pool.submit(keyring.prepare, batch) for batch in batches]
            second.wait_inside(most)
            wait_for_queue(keyring._ring.keks.calls._slots, 5)
            assert second._inside == most
        for future in futures:
            future.result(60)


def test_a_batch_counts_as_the_calls_that_it_may_make() -> None:
    kms, store = FakeBatchKms(), InMemoryKeyStore()
    ids = [key.key_id for key in Keyring(kms, store).sealing_keys({f"s:{n}": 1 for n in range(40)}).values()]
    keyring = Keyring(kms, store)
    keyring.refresh()
    with ThreadPoolExecutor(3) as pool:
        with kms.hold():
            futures = [pool.submit(keyring.opening_keys, ids[:12])]
            kms.wait_inside(1)
            futures.append(pool.submit(keyring.opening_keys, ids[12:20]))
            kms.wait_inside(2)
            futures.append(pool.submit(keyring.opening_keys, ids[20:]))
            wait_for_queue(keyring._ring.keks.calls._slots, 1)
        assert sum(len(future.result(60)) for future in futures) == 40

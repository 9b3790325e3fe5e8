"""A forked child starts anew: no lock, lease or handle of its parent's is used there."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from eventseal.cipher import AESCipher, ItemContext
from eventseal.keys import InMemoryKeyStore, Keyring
from eventseal.keys.concurrency import _renewables
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
from concurrent.futures import ThreadPoolExecutor

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
SECONDS = 60.0


def in_child(work: Callable[[], Any]) -> Any:
    """Run *work* in a forked child and give what it returns, or fail if it does not end in time."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(work(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    try:
        deadline = time.monotonic() + SECONDS
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise AssertionError(f"the child was not done after {SECONDS} s")
            time.sleep(0.001)
        with os.fdopen(reading, "rb", closefd=False) as pipe:
            return pickle.load(pipe)
    finally:
        os.close(reading)


def context(position: int = 0) -> ItemContext:
    return ItemContext(sequence_id=uuid4(), position=position, topic="t")


@pytest.mark.slow
def test_children_of_a_busy_parent_seal_and_open() -> None:
    store, kms = InMemoryKeyStore(), FakeKms()
    keyring = Keyring(kms, store)
    cipher = AESCipher(keyring)
    place = context()
    sealed = cipher.encrypt(b"of the parent", place)
    stop = threading.Event()

    def busy(number: int) -> None:
        scope = f"tenant:{number}"
        turn = 0
        while not stop.is_set():
            turn += 1
            here = context(turn)
            assert cipher.decrypt(cipher.encrypt(b"busy", here, scope=scope), here) == b"busy"
            if turn % 50 == 0:
                keyring.refresh()
            if turn % 200 == 0:
                keyring.rotate(scope)

    def child() -> tuple[bytes, int]:
        here = context()
        opened = cipher.decrypt(cipher.encrypt(b"child", here, scope="tenant:1"), here)
        return opened + cipher.decrypt(sealed, place), keyring.counters.kms_calls

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            opened, calls = in_child(child)
            assert opened == b"childof the parent"
            assert calls == 3  # the store key and both data keys, unwrapped again
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert cipher.decrypt(sealed, place) == b"of the parent"


@pytest.mark.parametrize(
    "lock", ["_held_keys._lock", "_ring.refresher._lock", "_sealer._flights._lock", "counters._lock"]
)
def test_a_lock_that_is_held_at_the_fork_does_not_stop_the_child(lock: str) -> None:
    keyring = Keyring(FakeKms(), InMemoryKeyStore())
    keyring.prepare(["a"])
    held: Any = keyring
    for name in lock.split("."):
        held = getattr(held, name)
    with held:
        assert in_child(lambda: len(keyring.sealing_keys({"a": 1}))) == 1


def test_a_load_in_flight_at_the_fork_does_not_stop_the_child() -> None:
    kms, store = FakeKms(), InMemoryKeyStore()
    key_id = Keyring(kms, store).sealing_keys({"a": 1})["a"].key_id
    keyring = Keyring(kms, store)
    keyring.refresh()
    with kms.hold():
        loading = threading.Thread(target=keyring.opening_keys, args=([key_id],))
        loading.start()
        kms.wait_inside(1)
        assert in_child(lambda: keyring.opening_keys([key_id])[key_id].closed) is False
    loading.join(60)


def test_the_parents_handles_are_closed_in_the_child_and_stay_open_in_the_parent() -> None:
    keyring = Keyring(FakeKms(), InMemoryKeyStore())
    key = keyring.sealing_keys({"a": 1})["a"]
    with key._lock:  # as if another thread used it
        assert in_child(lambda: (key.closed, bytes(key._material))) == (True, bytes(32))
    assert not key.closed


def test_a_lease_is_not_shared_with_the_child() -> None:
    store = InMemoryKeyStore()
    keyring = Keyring(FakeKms(), store)
    keyring.sealing_keys({"a": 1})
    left = in_child(lambda: keyring.sealing_keys({"a": 1}) and keyring._held_keys.active["a"].lease._total)
    assert left == 2 * 1_024  # the child leased a block of its own


def test_a_child_of_a_child_starts_anew_too() -> None:
    keyring = Keyring(FakeKms(), InMemoryKeyStore())
    keyring.prepare(["a"])
    assert in_child(lambda: in_child(lambda: len(keyring.sealing_keys({"a": 1})))) == 1


@pytest.mark.slow
def test_a_keyring_is_not_kept_alive_for_forks() -> None:
    keyring = Keyring(FakeKms(), InMemoryKeyStore())
    known = weakref.ref(keyring)
    assert keyring in _renewables
    del keyring
    gc.collect()
    assert known() is None


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_processes_on_a_cold_scope_make_one_key_with_two_calls_a_key_at_most(
    tmp_path: Path, busy: bool
) -> None:
    datastore = SQLAlchemyDatastore(settings=SQLAlchemySettings(uri=f"sqlite:///{tmp_path}/keys.db"))
    datastore.setup_connection()
    datastore.setup_tables()
    store = SQLAlchemyKeyStore(datastore)
    kms = FakeKms()  # the children have its KEK, each a copy
    kms.delay = 0.02
    keyring = Keyring(kms, store)
    begin = time.monotonic() + 0.5

    def child() -> tuple[set[Any], int]:
        time.sleep(max(0.0, begin - time.monotonic()))
        with ThreadPoolExecutor(12 if busy else 1) as pool:
            keys = list(pool.map(lambda _: keyring.sealing_keys({"a": 1})["a"].key_id, range(12)))
        return set(keys), keyring.counters.kms_calls

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: in_child(child), range(4)))
    assert len(set.union(*[ids for ids, _ in answers])) == 1
    assert sorted(record.purpose for record in store.page("default")) == ["data", "store"]
    assert all(calls <= 4 for _, calls in answers)
    datastore.close()

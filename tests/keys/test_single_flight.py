"""Threads that want the same thing share one attempt to get it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from eventseal.errors import KmsUnavailableError
from eventseal.keys.concurrency import SingleFlight


def wait_for_followers(flight: SingleFlight, key: str, count: int) -> None:
    """Wait until *count* threads wait for the flight of *key* to land."""
    deadline = threading.Event()
    for _ in range(60_000):
        if len(flight._flights[key].landed._cond._waiters) >= count:
            return
        deadline.wait(0.001)
    raise AssertionError("nobody waits")


def test_a_batch_loads_what_nobody_loads_and_waits_for_the_rest() -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    inside, go = threading.Event(), threading.Event()
    claims: list[list[str]] = []

    def slowly(claimed: list[str]) -> dict[str, str]:
        claims.append(claimed)
        inside.set()
        assert go.wait(60)
        return {key: key.upper() for key in claimed}

    def at_once(claimed: list[str]) -> dict[str, str]:
        claims.append(claimed)
        return {key: key.upper() for key in claimed}

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flight.run, ["a", "b"], slowly)
        assert inside.wait(60)
        second = pool.submit(flight.run, ["b", "c"], at_once)
        wait_for_followers(flight, "b", 1)
        go.set()
        assert first.result(60) == ({"a": "A", "b": "B"}, {})
        assert second.result(60) == ({"c": "C"}, {"b": "B"})
    assert claims == [["a", "b"], ["c"]]


def test_what_landed_is_loaded_anew() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    assert flight.run(["a"], lambda claimed: {"a": 1}) == ({"a": 1}, {})
    assert flight.run(["a"], lambda claimed: {"a": 2}) == ({"a": 2}, {})


def test_a_key_asked_for_twice_does_not_wait_for_itself() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    assert flight.run(["a", "a"], lambda claimed: dict.fromkeys(claimed, 1)) == ({"a": 1}, {})


def test_nothing_is_loaded_if_nothing_is_wanted() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    assert flight.run([], lambda claimed: pytest.fail("called")) == ({}, {})


def test_followers_share_a_failure_each_with_an_error_of_its_own() -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    inside, go = threading.Event(), threading.Event()
    cause = OSError("no route")

    def fail(claimed: list[str]) -> dict[str, str]:
        inside.set()
        assert go.wait(60)
        raise KmsUnavailableError("away", kek_uri="fake://x", retry_after=2.0) from cause

    with ThreadPoolExecutor(4) as pool:
        leader = pool.submit(flight.run, ["a"], fail)
        assert inside.wait(60)
        followers = [pool.submit(flight.run, ["a"], fail) for _ in range(3)]
        wait_for_followers(flight, "a", 3)
        go.set()
        with pytest.raises(KmsUnavailableError):
            leader.result(60)
        errors = [follower.result(60)[1]["a"] for follower in followers]
    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert isinstance(error, KmsUnavailableError)
        assert (str(error), error.kek_uri, error.retry_after) == ("away", "fake://x", 2.0)
        assert error.__cause__ is cause
    assert flight._flights == {}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ZeroDivisionError()])
def test_an_interrupted_leader_leaves_its_followers_to_try_themselves(failure: BaseException) -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    inside, go = threading.Event(), threading.Event()

    def interrupted(claimed: list[str]) -> dict[str, str]:
        inside.set()
        assert go.wait(60)
        raise failure

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(flight.run, ["a"], interrupted)
        assert inside.wait(60)
        follower = pool.submit(flight.run, ["a"], interrupted)
        wait_for_followers(flight, "a", 1)
        go.set()
        with pytest.raises(type(failure)):
            leader.result(60)
        assert follower.result(60) == ({}, {})
    assert flight.run(["a"], lambda claimed: {"a": "b"}) == ({"a": "b"}, {})


def test_batches_that_want_each_others_keys_do_not_deadlock() -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    both_inside = threading.Barrier(2)

    def load(claimed: list[str]) -> dict[str, str]:
        both_inside.wait(60)
        return dict.fromkeys(claimed, "loaded")

    first_claimed = threading.Event()

    def load_first(claimed: list[str]) -> dict[str, str]:
        first_claimed.set()
        return load(claimed)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flight.run, ["a"], load_first)
        assert first_claimed.wait(60)
        second = pool.submit(flight.run, ["b", "a"], load)
        assert first.result(60) == ({"a": "loaded"}, {})
        assert second.result(60) == ({"b": "loaded"}, {"a": "loaded"})

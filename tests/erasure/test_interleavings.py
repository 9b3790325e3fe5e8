"""Whatever order the steps of a shred and of others come in, nothing of the scope comes back."""

from __future__ import annotations

import pytest
from tests.erasure.interleavings import SCENARIOS, play_many
from tests.erasure.mistakes import MISTAKES
from tests.erasure.scheduling import DeadlockError, Schedule, ScheduledLock, explore, step
from tests.fixtures.profiles import SHORT

from eventseal.errors import EventSealError

pytestmark = pytest.mark.slow

ORDERS = -(-SHORT.interleavings // len(SCENARIOS))
ORDERS_TO_A_MISTAKE = 400


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_comes_back_in_any_order(name: str) -> None:
    assert play_many(name, ORDERS) == ORDERS


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_caught(name: str) -> None:
    mistake = MISTAKES[name]
    with mistake.make(), pytest.raises((AssertionError, EventSealError)) as caught:
        play_many(mistake.scenario, ORDERS_TO_A_MISTAKE)
    assert "play(" in caught.value.__notes__[0]


# --- the schedule itself ---


def test_every_order_of_two_actors_is_played() -> None:
    seen: list[str] = []

    def actor(letter: str) -> None:
        for _ in range(3):
            seen[-1] += letter
            step()

    def play(choices):
        seen.append("")
        schedule = Schedule({letter: lambda letter=letter: actor(letter) for letter in "ab"}, choices)
        schedule.run()
        return schedule.history

    assert explore(play, count=1_000, seed=1) == len(seen)
    assert set(seen) == _orders("aaabbb")


def _orders(letters: str) -> set[str]:
    if not letters:
        return {""}
    return {
        letter + rest
        for number, letter in enumerate(letters)
        for rest in _orders(letters[:number] + letters[number + 1 :])
    }


def test_actors_that_wait_for_each_other_are_found() -> None:
    def play(choices):
        one, other = ScheduledLock(), ScheduledLock()

        def holds_both(first, second) -> None:
            with first:
                step()
                with second:
                    step()

        schedule = Schedule(
            {"a": lambda: holds_both(one, other), "b": lambda: holds_both(other, one)}, choices
        )
        schedule.run()
        return schedule.history

    with pytest.raises(DeadlockError, match="a, b wait"):
        explore(play, count=100, seed=1)

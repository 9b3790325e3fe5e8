"""A clock that stands still until a test moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventseal.keys.policy import Clock


class ManualClock:
    """
    Satisfies :class:`eventseal.keys.policy.Clock`: give it to a keyring and move time at will.

    Args:
        start: Seconds; any number, as of any clock for intervals.
    """

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = start

    def now(self) -> float:
        """Seconds since some moment."""
        return self._now

    def advance(self, seconds: float) -> None:
        """
        Move on by *seconds*.

        Raises:
            ValueError: *seconds* is negative; a clock for intervals never goes back.
        """
        if seconds < 0:
            raise ValueError(f"cannot go back by {-seconds} s")
        self._now += seconds


if TYPE_CHECKING:
    _: type[Clock] = ManualClock

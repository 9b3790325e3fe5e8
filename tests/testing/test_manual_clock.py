"""The manual clock moves when it is told to, and only on."""

from __future__ import annotations

import pytest

from eventseal.testing import ManualClock


def test_it_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(5.0)
    assert clock.now() == clock.now() == 5.0
    clock.advance(2.5)
    assert clock.now() == 7.5


def test_it_never_goes_back() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
    assert clock.now() == ManualClock().now()

"""When a key stops being active, how long a process remembers keys, and the clock that says so."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

from eventseal.errors import ConfigurationError
from eventseal.keys.store import HARD_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPolicy:
    """
    When a data key is replaced on the write path.

    Args:
        max_age: Since the key was made, by the database's clock; ``None``: never by age.
        max_items: Items leased under the key, 1 to 2**32.
    """

    max_age: timedelta | None = timedelta(days=90)
    max_items: int = 2**28

    def __post_init__(self) -> None:
        if self.max_age is not None and self.max_age <= timedelta(0):
            raise ConfigurationError(f"max_age is {self.max_age}; it must be positive, or None for never")
        if not 1 <= self.max_items <= HARD_LIMIT:
            raise ConfigurationError(f"max_items is {self.max_items}; 1 to {HARD_LIMIT} are allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """
    How long a process uses what it knows of keys. No safety rests on these times: the fence keeps items.

    Args:
        max_keys: Unwrapped data keys held at most, at least 1; branch keys are held apart.
        ttl: Seconds until a key is unwrapped again.
        refresh_interval: Seconds; a state confirmed longer ago neither seals nor opens. The interval that the
            key store holds for all processes wins if it is smaller.
        open_grace: Seconds added to it for opening only, for keys in a database that may be down alone.
        outage_grace: Seconds past *ttl* that a key serves on while the KMS is unreachable, and only then.
    """

    max_keys: int = 10_000
    ttl: float = 900.0
    refresh_interval: float = 60.0
    open_grace: float = 0.0
    outage_grace: float = 3600.0

    def __post_init__(self) -> None:
        if self.max_keys < 1:
            raise ConfigurationError(f"max_keys is {self.max_keys}; it must be at least 1")
        for name in ("ttl", "refresh_interval"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigurationError(f"{name} is {seconds} s; it must be a positive number of seconds")
        for name in ("open_grace", "outage_grace"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ConfigurationError(f"{name} is {seconds} s; it must not be negative")


class Clock(Protocol):
    """A clock for intervals; never set back, and running while the machine sleeps."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...


class BootClock:
    """``CLOCK_BOOTTIME`` where the system has it, else the monotonic clock."""

    # In C: every key that is sealed or opened under asks for the time.
    now = staticmethod(partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)))


RETRY_SECONDS = 5.0
"""How long a key store or a KMS that is away is not asked again, while keys outlive the outage."""

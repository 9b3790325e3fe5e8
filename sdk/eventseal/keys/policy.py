"""Limits for active keys and for keys in memory, and the clock."""

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
        max_age: The age of the key by the database's clock. With ``None``, its age does not matter.
        max_items: The number of items leased under the key, 1 to 2**32.
    """

    max_age: timedelta | None = timedelta(days=90)
    max_items: int = 2**28

    def __post_init__(self) -> None:
        if self.max_age is not None and self.max_age <= timedelta(0):
            raise ConfigurationError(f"max_age is {self.max_age}, but it must be positive, or None for never")
        if not 1 <= self.max_items <= HARD_LIMIT:
            raise ConfigurationError(f"max_items is {self.max_items}, but it must be from 1 to {HARD_LIMIT}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """
    How long a process uses its knowledge of keys.

    No safety depends on these times, because the fence protects items.

    Args:
        max_keys: How many unwrapped data keys are held at most, at least 1. Branch keys are held separately.
        ttl: Seconds until a key is unwrapped again.
        refresh_interval: Seconds for which a confirmed state may be used to seal and open. If the key store's
            interval for all processes is smaller, that one applies.
        open_grace: Additional seconds for opening only, for keys in a database that may be unavailable alone.
        outage_grace: Seconds after *ttl* for which a key remains usable, only while the KMS is unavailable.
    """

    max_keys: int = 10_000
    ttl: float = 900.0
    refresh_interval: float = 60.0
    open_grace: float = 0.0
    outage_grace: float = 3600.0

    def __post_init__(self) -> None:
        if self.max_keys < 1:
            raise ConfigurationError(f"max_keys is {self.max_keys}, but it must be at least 1")
        for name in ("ttl", "refresh_interval"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigurationError(
                    f"{name} is {seconds} s, but it must be a positive number of seconds"
                )
        for name in ("open_grace", "outage_grace"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ConfigurationError(f"{name} is {seconds} s, but it must not be negative")


class Clock(Protocol):
    """A clock for intervals. It is never set back, and runs while the machine sleeps."""

    def now(self) -> float:
        """Return the seconds since some fixed moment."""
        ...


class BootClock:
    """``CLOCK_BOOTTIME`` if the system has it, else the monotonic clock."""

    # In C, because every use of a key reads the time.
    now = staticmethod(partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)))


RETRY_SECONDS = 5.0
"""
The seconds before an unavailable key store or KMS is tried again.

Meanwhile, keys outlive the outage.
"""

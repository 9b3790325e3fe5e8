"""When a key stops being active, how long a process remembers keys, and how long what it knows counts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import TYPE_CHECKING, Protocol

from eventseal.errors import ConfigurationError
from eventseal.keys.states import KeyPurpose
from eventseal.keys.store import HARD_LIMIT

if TYPE_CHECKING:
    from datetime import datetime

    from eventseal.keys.records import KeyRecord


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

    def __init__(self) -> None:
        clock_id = getattr(time, "CLOCK_BOOTTIME", None)
        self._id: int = time.CLOCK_MONOTONIC if clock_id is None else clock_id

    def now(self) -> float:
        """Seconds since the machine started."""
        return time.clock_gettime(self._id)


RETRY_SECONDS = 5.0
"""How long a key store or a KMS that is away is not asked again, while keys outlive the outage."""


class Confirmation:
    """
    Limits that one thread at a time moves, and all read.

    Attributes:
        opens_until: Until when what is known may be used to open, by the keyring's clock.
        seals_until: The same to seal.
    """

    def __init__(self, caching: CachePolicy, rotation: RotationPolicy) -> None:
        self._caching = caching
        self._max_age = rotation.max_age
        self._opens_at_most_until = -inf
        self._store_time: tuple[datetime, float] | None = None
        self.opens_until = self.seals_until = -inf

    def confirm(self, began: float, *, interval: float, store_time: datetime) -> None:
        """
        Note that everything known holds as of *began*.

        Args:
            began: The moment before the query, by the keyring's clock.
            interval: Seconds; the key store's own, which wins if it is smaller.
            store_time: The key store's clock at that moment.
        """
        longest = self._caching.refresh_interval
        until = began + (interval if 0 <= interval < longest else longest)
        self._store_time = (store_time, began)
        self._opens_at_most_until = until + self._caching.open_grace
        self.opens_until = self.seals_until = until

    def outlives_store(self, now: float) -> bool:
        """Tell whether keys still open although the store is away, and if so let it rest for a while."""
        if now > self._opens_at_most_until:
            return False
        self.opens_until = min(self._opens_at_most_until, now + RETRY_SECONDS)
        return True

    def rotation_time(self, record: KeyRecord) -> float:
        """When a data key comes of age to be rotated, by the keyring's clock; the store's says its age."""
        if (
            record.purpose is not KeyPurpose.DATA
        ):  # a branch key is rotated on request; a field's is never retired
            return inf
        if self._max_age is None or self._store_time is None or record.created_at is None:
            return inf
        store_time, confirmed = self._store_time
        return confirmed + (record.created_at + self._max_age - store_time).total_seconds()

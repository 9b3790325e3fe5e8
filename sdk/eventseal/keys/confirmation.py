"""As of when everything that a process knows of keys was confirmed, and how long that lasts. No I/O."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from datetime import datetime

    from eventseal.keys.policy import CachePolicy, RotationPolicy
    from eventseal.keys.records import KeyRecord

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

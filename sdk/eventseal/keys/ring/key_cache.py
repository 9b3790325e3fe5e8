"""Held keys, their leases, and the time limits of the known states."""

from __future__ import annotations

import heapq
import threading
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

from eventseal.keys.policy import RETRY_SECONDS
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.store import HARD_LIMIT

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import CachePolicy, RotationPolicy
    from eventseal.keys.records import KeyRecord


FIRST_BLOCK = 1_024
LARGEST_BLOCK = 65_536
MOST_CREDIT = 65_536
"""
The most items that are sealed while the table cannot be written.

They are reserved with the next lease.
"""


class Lease:
    """
    A key's lease in this process.

    Args:
        total: The number of items that all processes leased under the key, as last read.
        left: The number of these items that this process may still seal.
    """

    __slots__ = ("_block", "_left", "_lock", "_owed", "_total")

    def __init__(self, *, total: int, left: int = 0) -> None:
        self._lock = threading.Lock()
        self._total = total
        self._left = left
        self._owed = 0
        self._block = 2 * FIRST_BLOCK if left else FIRST_BLOCK

    def take(self, items: int) -> bool:
        """Take *items* from the lease, if it has enough."""
        with self._lock:
            if not 0 <= items <= self._left:
                return False
            self._left -= items
            return True

    def covers(self, items: int) -> bool:
        """Return whether the lease has enough for *items*."""
        return items <= self._left

    def is_over(self, items: int, max_items: int) -> bool:
        """Return whether *items* more would exceed *max_items* for the key."""
        return self._total + self._owed + items > max_items

    def wanted(self, items: int, max_items: int) -> int:
        """
        Return the number of items to reserve before *items* can be sealed.

        Args:
            items: The number of items in the batch.
            max_items: The limit of the block, if *items* fit below it.

        Returns:
            A block and the owed items, or 0 if the key can no longer seal *items*.
        """
        taken = self._total + self._owed
        if taken + items > HARD_LIMIT:
            return 0
        bound = max_items if taken + items <= max_items else HARD_LIMIT
        return self._owed + max(items, min(self._block, bound - taken))

    def grant(self, reserved: int, *, total: int, items: int) -> None:
        """
        Add the reserved items, and take *items* of them.

        Args:
            reserved: The result of :meth:`wanted`.
            total: The number of items that all processes have now leased under the key.
            items: The number of items in the batch that needed the reservation.
        """
        with self._lock:
            self._left += reserved - self._owed - items
            self._owed = 0
            self._total = total
            self._block = min(2 * self._block, LARGEST_BLOCK)

    def borrow(self, items: int) -> bool:
        """
        Take *items* on credit, and some more for the next batches.

        Returns:
            Whether the credit allows it.
        """
        with self._lock:
            credit = MOST_CREDIT - self._owed
            if items > credit:
                return False
            borrowed = min(credit, max(items, FIRST_BLOCK))
            self._owed += borrowed
            self._left += borrowed - items
            return True

    def reread(self, total: int) -> None:
        """Adopt the number of leased items from the key's row."""
        with self._lock:
            self._total = max(self._total, total)


_last_use = attrgetter("used")


class CachedKey:
    """
    A key in memory and its state.

    Attributes:
        key: The handle.
        record: Its row as last read, with the wrappings that opened it.
        expires: When it must be unwrapped again, by the keyring's clock.
        grace_ends: Until when it remains usable if the KMS is then unavailable.
        rotates_at: When it should be rotated because of its age.
        rests_until: Until when its rotation is not tried again.
        seals_until: When sealing checks it again, because it expires or should be rotated.
        lease: The items that this process may still seal under it.
        used: The number of the call that used it last.
        branch: The branch key that opened it. ``None`` if a KEK did.
    """

    __slots__ = (
        "branch",
        "expires",
        "grace_ends",
        "key",
        "lease",
        "record",
        "rests_until",
        "rotates_at",
        "seals_until",
        "used",
    )

    def __init__(self, key: DataKey, record: KeyRecord, *, leased: int = 0) -> None:
        self.key = key
        self.record = record
        self.lease = Lease(total=record.items_reserved, left=leased)
        self.expires = self.grace_ends = self.seals_until = 0.0
        self.rotates_at = inf
        self.rests_until = -inf
        self.used = 0
        self.branch: UUID | None = None

    def schedule(self) -> None:
        """Set the time when sealing checks the key again."""
        self.seals_until = min(self.expires, max(self.rotates_at, self.rests_until))

    def __repr__(self) -> str:
        return f"<CachedKey {self.key!r}>"


class KeyCache:
    """
    Keys by id, and active keys by scope.

    Args:
        max_keys: How many keys are held at most.
        confirmation: Determines when a key's age requires its rotation.
    """

    def __init__(self, max_keys: int, confirmation: Confirmation) -> None:
        self.keys: dict[UUID, CachedKey] = {}
        self.active: dict[str, CachedKey] = {}
        self._max_keys = max_keys
        self._confirmation = confirmation

    def renew(self, cached: CachedKey, record: KeyRecord) -> None:
        """Adopt a key's row that was read again."""
        cached.record = record
        cached.key.state = record.state
        cached.lease.reread(record.items_reserved)
        if record.state is not KeyState.ACTIVE:
            self.vacate(cached)
        cached.rotates_at = self._confirmation.rotation_time(record)
        cached.schedule()

    def add(self, cached: CachedKey) -> None:
        """Hold *cached* by its id. The keys that were unused for longest may be evicted."""
        key_id = cached.record.key_id
        if key_id not in self.keys and len(self.keys) >= self._max_keys:
            self._evict(1 + len(self.keys) - self._max_keys)
        self.keys[key_id] = cached

    def drop(self, key_id: UUID, *, close: bool) -> None:
        """
        Drop a key.

        Args:
            key_id: The id of a key, held or not.
            close: Whether batches that still hold the handle must stop immediately.
        """
        cached = self.keys.pop(key_id, None)
        if cached is not None:
            self.vacate(cached)
            if close:
                cached.key.close()

    def vacate(self, cached: CachedKey) -> None:
        """Stop sealing under *cached*. It still opens."""
        if self.active.get(cached.record.scope) is cached:
            del self.active[cached.record.scope]

    def _evict(self, count: int) -> None:
        # A sweep evicts a share of a large cache, so that it costs little for each key.
        count = max(count, self._max_keys // 64)
        for cached in heapq.nsmallest(count, self.keys.values(), key=_last_use):
            # A batch that holds the handle continues with it (docs/decisions/0006).
            self.drop(cached.record.key_id, close=False)


class Confirmation:
    """
    Time limits that one thread at a time moves and all read.

    Attributes:
        opens_until: Until when the knowledge of keys may be used to open, by the keyring's clock.
        seals_until: Until when the knowledge of keys may be used to seal.
    """

    def __init__(self, caching: CachePolicy, rotation: RotationPolicy) -> None:
        self._caching = caching
        self._max_age = rotation.max_age
        self._opens_at_most_until = -inf
        self._store_time: tuple[datetime, float] | None = None
        self.opens_until = self.seals_until = -inf

    def confirm(self, began: float, *, interval: float, store_time: datetime) -> None:
        """
        Record that everything known was valid at *began*.

        Args:
            began: The moment before the query, by the keyring's clock.
            interval: The key store's refresh interval in seconds. It wins if it is smaller.
            store_time: The key store's clock at that moment.
        """
        longest = self._caching.refresh_interval
        until = began + (interval if 0 <= interval < longest else longest)
        self._store_time = (store_time, began)
        self._opens_at_most_until = until + self._caching.open_grace
        self.opens_until = self.seals_until = until

    def outlives_store(self, now: float) -> bool:
        """
        Return whether keys still open while the store is unavailable.

        If they do, the store is not queried for a while.
        """
        if now > self._opens_at_most_until:
            return False
        self.opens_until = min(self._opens_at_most_until, now + RETRY_SECONDS)
        return True

    def rotation_time(self, record: KeyRecord) -> float:
        """
        Return when a data key's age requires rotation, by the keyring's clock.

        The store's clock determines its age.
        """
        # The rotation of a branch key alone protects nothing, and a field key is never retired
        # (docs/decisions/0008, 0011).
        if record.purpose is not KeyPurpose.DATA:
            return inf
        if self._max_age is None or self._store_time is None or record.created_at is None:
            return inf
        store_time, confirmed = self._store_time
        return confirmed + (record.created_at + self._max_age - store_time).total_seconds()

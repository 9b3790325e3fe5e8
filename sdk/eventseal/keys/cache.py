"""The keys that a process holds: bounded, least recently used first out. Locked by its owner."""

from __future__ import annotations

import heapq
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

from eventseal.keys.leases import Lease

if TYPE_CHECKING:
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord

_last_use = attrgetter("used")


class CachedKey:
    """
    A key in memory and what is known of it.

    Attributes:
        key: The handle.
        record: Its row as last read, with the wrappings that opened it.
        expires: When it must be unwrapped again, by the keyring's clock.
        grace_ends: Until when it serves on if the KMS is unavailable then.
        rotates_at: When it should be rotated by age.
        rests_until: Until when its rotation is not tried again.
        seals_until: When sealing looks at it again: on expiry, or to rotate it.
        lease: What this process may still seal under it.
        used: The number of the call that used it last.
        branch: The branch key that opened it; ``None`` if a KEK did.
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

    def renew(self, record: KeyRecord) -> None:
        """Take over the key's row as it was read again."""
        self.record = record
        self.key.state = record.state
        self.lease.reread(record.items_reserved)

    def schedule(self) -> None:
        """Say when sealing looks at the key again."""
        self.seals_until = min(self.expires, max(self.rotates_at, self.rests_until))

    def __repr__(self) -> str:
        return f"<CachedKey {self.key!r}>"


class KeyCache:
    """
    Keys by id, and active keys by scope.

    Args:
        max_keys: Keys held at most.
    """

    def __init__(self, max_keys: int) -> None:
        self.keys: dict[UUID, CachedKey] = {}
        self.active: dict[str, CachedKey] = {}
        self._max_keys = max_keys

    def add(self, cached: CachedKey) -> None:
        """Hold *cached* by its id; what was used longest ago may go for it."""
        key_id = cached.record.key_id
        if key_id not in self.keys and len(self.keys) >= self._max_keys:
            self._evict(1 + len(self.keys) - self._max_keys)
        self.keys[key_id] = cached

    def drop(self, key_id: UUID, *, close: bool) -> None:
        """
        Let a key go.

        Args:
            key_id: Held or not.
            close: Whether batches that still hold the handle must stop at once.
        """
        cached = self.keys.pop(key_id, None)
        if cached is not None:
            self.vacate(cached)
            if close:
                cached.key.close()

    def vacate(self, cached: CachedKey) -> None:
        """Seal no more under *cached*; it still opens."""
        if self.active.get(cached.record.scope) is cached:
            del self.active[cached.record.scope]

    def _evict(self, count: int) -> None:
        # A sweep takes a share of a large cache, so that it costs little for each key.
        count = max(count, self._max_keys // 64)
        for cached in heapq.nsmallest(count, self.keys.values(), key=_last_use):
            self.drop(cached.record.key_id, close=False)

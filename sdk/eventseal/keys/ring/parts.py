"""The parts of a keyring: counters, what every part works with, and the keys of one purpose."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from eventseal.keys.ring.key_cache import FIRST_BLOCK
from eventseal.keys.ring.new_keys import Seats
from eventseal.keys.ring.opening import Opener
from eventseal.keys.ring.rotating import Rotator
from eventseal.keys.ring.sealing import Sealer
from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from eventseal.errors import EventSealError
    from eventseal.keys.authentication.checked_store import CheckedStore
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import CachePolicy, Clock, RotationPolicy
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.destroying import Destroyer
    from eventseal.keys.ring.held_keys import Memory
    from eventseal.keys.ring.opening import Refresher
    from eventseal.keys.ring.rotating import Rotated
    from eventseal.keys.ring.store_key import StoreKey
    from eventseal.kms.adapter import WrappedKey


class KeyringCounters:
    """
    Totals since the keyring was made, or since the process was forked.

    Attributes:
        kms_calls: Calls to KMS adapters that left the process; a batch is one.
        store_queries: Calls to the key store.
        hits: Keys that were answered from memory. Counted without a lock, which would cost a third of a hit:
            with several threads it may come out a little low.
        misses: Keys that were not.
        missing_wrappings: Wrappings that new keys were stored without, as the quorum allows;
            :meth:`eventseal.keys.Keyring.rewrap` adds them.
    """

    __slots__ = ("_lock", "hits", "kms_calls", "misses", "missing_wrappings", "store_queries")

    def __init__(self) -> None:
        self.kms_calls = 0
        self.store_queries = 0
        self.hits = 0
        self.misses = 0
        self.missing_wrappings = 0
        self._lock = threading.Lock()

    def count_kms_calls(self, calls: int) -> None:
        """Count calls that left the process."""
        with self._lock:
            self.kms_calls += calls

    def count_store_query(self) -> None:
        """Count a call to the key store."""
        with self._lock:
            self.store_queries += 1

    def count_misses(self, keys: int) -> None:
        """Count keys that were not."""
        with self._lock:
            self.misses += keys

    def count_missing_wrappings(self, wrappings: int) -> None:
        """Count wrappings that a KEK should have made for new keys, and did not."""
        with self._lock:
            self.missing_wrappings += wrappings

    def __repr__(self) -> str:
        return (
            f"<KeyringCounters kms_calls={self.kms_calls} store_queries={self.store_queries} "
            f"hits={self.hits} misses={self.misses} missing_wrappings={self.missing_wrappings}>"
        )


class Wrapping(Protocol):
    """Makes keys with their wrappings, and unwraps them: under KEKs, or under branch keys."""

    def generate(self, records: Sequence[KeyRecord]) -> list[tuple[DataKey, tuple[WrappedKey, ...]]]:
        """Make a key for each of *records*: all, or none."""
        ...

    def unwrap(self, records: Sequence[KeyRecord]) -> list[DataKey | EventSealError]:
        """Unwrap the key of each of *records*: one outcome a record, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """
    What the parts of a keyring that serve keys of one purpose were given. None of it remembers a key.

    Attributes:
        application: The application that owns every key.
        purpose: Of the keys.
        wrapping: Makes and unwraps them.
        store: Holds the records.
        rotation: When a key stops being the active one.
        caching: How long keys and what is known of them are used.
        clock: For intervals.
        counters: Count hits and misses.
    """

    application: str
    purpose: KeyPurpose
    wrapping: Wrapping
    store: CheckedStore
    rotation: RotationPolicy
    caching: CachePolicy
    clock: Clock
    counters: KeyringCounters

    @property
    def first_block(self) -> int:
        """Items that are leased together with a new key; what a branch key wraps is not counted."""
        return 0 if self.purpose is KeyPurpose.BRANCH else min(FIRST_BLOCK, self.rotation.max_items)


class KeysOfPurpose:
    """
    What serves the keys of one purpose: data keys, or the branch keys under which those are wrapped.

    Args:
        resources: Say the purpose, and what makes and wraps the keys.
        memory: Shared by all purposes, as are the other three.
        store_key: Seals their rows.
        refresher: Confirms what is known of them.
        destroyer: Marks them compromised.

    Attributes:
        opener: Finds keys by id.
        sealer: Finds and makes the active keys of scopes.
    """

    def __init__(
        self,
        resources: Resources,
        memory: Memory,
        store_key: StoreKey,
        *,
        refresher: Refresher,
        destroyer: Destroyer,
    ) -> None:
        self.opener = Opener(resources, memory, store_key, refresher)
        self._rotator = Rotator(resources, memory, store_key, refresher=refresher, destroyer=destroyer)
        self.sealer = Sealer(
            resources,
            memory,
            store_key,
            refresher=refresher,
            seats=Seats(resources, memory, store_key, refresher=refresher, opener=self.opener),
            rotator=self._rotator,
        )

    def rotate(self, scope: str, *, compromised: bool) -> Rotated:
        """
        Rotate a scope's key; one that has none gets its first.

        Args:
            scope: Checked.
            compromised: Whether what the old key has sealed must be sealed again.
        """
        return self._rotator.rotate(
            scope, compromised=compromised, make=lambda: self.sealer.keys({scope: 0}, make=True)
        )

    def rotate_many(
        self, scopes: Collection[str], *, compromised: bool
    ) -> dict[str, Rotated | EventSealError]:
        """Rotate the keys of many scopes, with as few calls of the KMS as it allows; arguments as above."""
        return self._rotator.rotate_many(
            scopes, compromised=compromised, make=lambda scope: self.sealer.keys({scope: 0}, make=True)
        )

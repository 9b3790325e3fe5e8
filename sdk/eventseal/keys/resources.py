"""What every part of a keyring works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from eventseal.keys.leases import FIRST_BLOCK
from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.errors import EventSealError
    from eventseal.keys.checked_store import CheckedStore
    from eventseal.keys.counters import KeyringCounters
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import CachePolicy, Clock, RotationPolicy
    from eventseal.keys.records import KeyRecord
    from eventseal.kms.adapter import WrappedKey


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

"""What every part of a keyring works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventseal.keys.counters import CountedStore, KeyringCounters
    from eventseal.keys.policy import CachePolicy, Clock, RotationPolicy
    from eventseal.keys.wrapping import Keks


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """
    What a keyring was given. None of it remembers a key.

    Attributes:
        application: The application that owns every key.
        keks: Make and unwrap keys.
        store: Holds the records.
        rotation: When a key stops being the active one.
        caching: How long keys and what is known of them are used.
        clock: For intervals.
        counters: Count hits and misses.
    """

    application: str
    keks: Keks
    store: CountedStore
    rotation: RotationPolicy
    caching: CachePolicy
    clock: Clock
    counters: KeyringCounters

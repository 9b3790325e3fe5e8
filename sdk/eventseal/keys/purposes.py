"""The keys of one purpose: found, made and rotated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.keys.opening import Opener
from eventseal.keys.rotating import Rotator
from eventseal.keys.sealing import Sealer
from eventseal.keys.seating import Seats

if TYPE_CHECKING:
    from eventseal.keys.memory import Memory
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.refreshing import Refresher
    from eventseal.keys.resources import Resources
    from eventseal.keys.store_key import StoreKey


class KeysOfPurpose:
    """
    What serves the keys of one purpose: data keys, or the branch keys under which those are wrapped.

    Args:
        resources: Say the purpose, and what makes and wraps the keys.
        memory: Shared by all purposes, as are the other two.
        store_key: Seals their rows.
        refresher: Confirms what is known of them.

    Attributes:
        opener: Finds keys by id.
        sealer: Finds and makes the active keys of scopes.
    """

    def __init__(
        self, resources: Resources, memory: Memory, store_key: StoreKey, refresher: Refresher
    ) -> None:
        self.opener = Opener(resources, memory, store_key, refresher)
        self._rotator = Rotator(resources, memory, store_key, refresher)
        self.sealer = Sealer(
            resources,
            memory,
            store_key,
            refresher=refresher,
            seats=Seats(resources, memory, store_key, self.opener),
            rotator=self._rotator,
        )

    def rotate(self, scope: str, *, compromised: bool) -> KeyRecord:
        """
        Rotate a scope's key; one that has none gets its first.

        Args:
            scope: Checked.
            compromised: Whether what the old key has sealed must be sealed again.
        """
        return self._rotator.rotate(
            scope, compromised=compromised, make=lambda: self.sealer.keys({scope: 0}, make=True)
        )

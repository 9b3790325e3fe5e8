"""The keys of one purpose: found, made and rotated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.keys.opening import Opener
from eventseal.keys.rotating import Rotator
from eventseal.keys.sealing import Sealer
from eventseal.keys.seating import Seats

if TYPE_CHECKING:
    from collections.abc import Collection

    from eventseal.errors import EventSealError
    from eventseal.keys.destroying import Destroyer
    from eventseal.keys.memory import Memory
    from eventseal.keys.refreshing import Refresher
    from eventseal.keys.resources import Resources
    from eventseal.keys.rotating import Rotated
    from eventseal.keys.store_key import StoreKey


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

"""Lets one process create a key while the others wait for it."""

from __future__ import annotations

import random
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from eventseal.errors import ConfigurationError, EventSealError, StoreError, StoreUnavailableError
from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from eventseal.keys.states import KeyPurpose


CLAIM_SECONDS = 10.0
"""How long a claim lasts. A KMS call takes less, with all its attempts. Then another process may claim."""

LONGEST_WAIT = 15.0
"""The seconds that a process waits for another one's key. Then it creates a key without a claim."""

_PAUSES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""The longest pauses between two reads of a slot. After the last one, the process tries to claim the slot."""


class Claims:
    """
    Claims the slots of scopes before the KMS is called.

    Claims only save calls. The unique slot keeps one key, however many were created (docs/decisions/0036).

    Args:
        application: The application that owns the keys.
        store: The key store. If it cannot claim slots, each process creates its own key.
    """

    def __init__(self, application: str, store: Any) -> None:
        self._application = application
        self._store = store
        self._owner = uuid4()

    def take(
        self,
        purpose: KeyPurpose,
        scopes: Mapping[str, bytes],
        *,
        is_filled: Callable[[], bool],
        wait: bool = True,
    ) -> list[str]:
        """
        Claim slots, or wait until other processes have filled them.

        Args:
            purpose: The purpose of the keys.
            scopes: For each scope, its turn: bytes that change when its slot may be filled once more, such as
                the id of the key to replace. So the claim of an earlier key holds nobody up.
            is_filled: Returns whether all the slots have another key by now.
            wait: Whether to wait. If ``False``, slots that others have claimed are left out.

        Returns:
            The scopes whose keys the caller must create now. Empty if others have created them. If a scope is
            left out, read its slot again.

        Raises:
            StoreUnavailableError: The key store is unavailable.
        """
        slots = {self._slot(purpose, scope, turn): scope for scope, turn in scopes.items()}
        ends_at = time.monotonic() + LONGEST_WAIT
        # The first attempt does not wait for a lock. A crowd of processes would only queue there in order to
        # be refused.
        mine = self._claimed(slots, wait=False)
        while not mine and wait:
            for pause in _PAUSES:
                time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not a secret
                if is_filled():
                    return []
            if time.monotonic() >= ends_at:
                return list(scopes)
            mine = self._claimed(slots, wait=True)
        return [slots[slot] for slot in mine]

    def release(self, purpose: KeyPurpose, scopes: Mapping[str, bytes]) -> None:
        """End claims whose keys were not created. If that fails, the claims end by themselves."""
        try:
            release = getattr(self._store, "release_slots", None)
            if release is not None:
                release([self._slot(purpose, *each) for each in scopes.items()], owner=self._owner)
        except EventSealError:
            pass

    def _claimed(self, slots: Collection[bytes], *, wait: bool) -> Collection[bytes]:
        claim = getattr(self._store, "claim_slots", None)
        if claim is None:
            return slots
        try:
            claimed: Collection[bytes] = claim(slots, owner=self._owner, seconds=CLAIM_SECONDS, wait=wait)
        except StoreUnavailableError:
            raise
        except (StoreError, ConfigurationError):  # no such table or no right: it needs none to create keys
            return slots
        return claimed

    def _slot(self, purpose: KeyPurpose, scope: str, turn: bytes) -> bytes:
        parts = (self._application.encode(), purpose.encode(), scope.encode(), turn)
        return sha256(length_prefixed(*parts)).digest()

"""Short refusals: ids that have no key to give are not looked for again for a few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import KeyDestroyedError, KeyNotFoundError
from eventseal.keys.single_flight import copied

if TYPE_CHECKING:
    from uuid import UUID

    from eventseal.errors import EventSealError

REFUSAL_SECONDS = 5.0
_MOST_REFUSALS = 10_000


class Refusals:
    """
    Remembers absent and destroyed keys. A KMS or a key store that failed is never remembered.

    Each operation is one of a dictionary's, so threads need no lock.
    """

    def __init__(self) -> None:
        self._refusals: dict[UUID, tuple[EventSealError, float]] = {}

    def add(self, key_id: UUID, error: EventSealError, now: float) -> None:
        """Answer for *key_id* with *error* for a short while, if it is one that lasts."""
        if isinstance(error, (KeyNotFoundError, KeyDestroyedError)):
            if len(self._refusals) >= _MOST_REFUSALS:
                self._refusals.clear()
            self._refusals[key_id] = (error, now + REFUSAL_SECONDS)

    def get(self, key_id: UUID, now: float) -> EventSealError | None:
        """Give a copy of the error that answers for *key_id* at the moment, if one does."""
        error, until = self._refusals.get(key_id, (None, 0.0))
        return copied(error) if error is not None and now < until else None

    def forget(self, key_id: UUID) -> None:
        """Look for *key_id* again: it was found."""
        self._refusals.pop(key_id, None)

    def clear(self) -> None:
        """Look for every key again."""
        self._refusals.clear()

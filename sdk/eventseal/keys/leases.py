"""Leases: the items that this process may still seal under a key without asking the key store."""

from __future__ import annotations

import threading

from eventseal.keys.store import HARD_LIMIT

FIRST_BLOCK = 1_024
LARGEST_BLOCK = 65_536
MOST_CREDIT = 65_536
"""Items sealed at most while the table cannot be written; they are reserved with the next lease."""


class Lease:
    """
    One key's lease in this process.

    Args:
        total: Items that all processes leased under the key, as last read.
        left: Those of them that this process may still seal.
    """

    __slots__ = ("_block", "_left", "_lock", "_owed", "_total")

    def __init__(self, *, total: int, left: int = 0) -> None:
        self._lock = threading.Lock()
        self._total = total
        self._left = left
        self._owed = 0
        self._block = 2 * FIRST_BLOCK if left else FIRST_BLOCK

    def take(self, items: int) -> bool:
        """Use up *items* of what is left, if that is enough."""
        with self._lock:
            if not 0 <= items <= self._left:
                return False
            self._left -= items
            return True

    def covers(self, items: int) -> bool:
        """Whether *items* could be taken now."""
        return items <= self._left

    def is_over(self, items: int, max_items: int) -> bool:
        """Whether the key would seal more than *max_items* if *items* were leased now."""
        return self._total + self._owed + items > max_items

    def wanted(self, items: int, max_items: int) -> int:
        """
        Say how much to reserve so that *items* can be sealed.

        Args:
            items: The batch.
            max_items: The block stops there, if *items* fit below it.

        Returns:
            A block and what is owed, or 0 if the key cannot seal *items* any more.
        """
        taken = self._total + self._owed
        if taken + items > HARD_LIMIT:
            return 0
        bound = max_items if taken + items <= max_items else HARD_LIMIT
        return self._owed + max(items, min(self._block, bound - taken))

    def grant(self, reserved: int, *, total: int, items: int) -> None:
        """
        Add what was reserved, and use up *items* of it.

        Args:
            reserved: What :meth:`wanted` gave.
            total: Items leased under the key now, by all processes.
            items: The batch for which it was reserved.
        """
        with self._lock:
            self._left += reserved - self._owed - items
            self._owed = 0
            self._total = total
            self._block = min(2 * self._block, LARGEST_BLOCK)

    def borrow(self, items: int) -> bool:
        """Use up *items* on credit, with some in hand for the next batches; tell whether credit allows it."""
        with self._lock:
            credit = MOST_CREDIT - self._owed
            if items > credit:
                return False
            borrowed = min(credit, max(items, FIRST_BLOCK))
            self._owed += borrowed
            self._left += borrowed - items
            return True

    def reread(self, total: int) -> None:
        """Note how many items the key's row says are leased."""
        with self._lock:
            self._total = max(self._total, total)

"""How many calls to KMSs a keyring has in flight."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS_IN_FLIGHT = 20
"""Calls that one keyring has in flight at most, to all its KEKs together."""


class CallSlots:
    """
    Lets so many calls in at once; who has waited longest goes first.

    Args:
        count: Slots that there are.
    """

    def __init__(self, count: int = CALLS_IN_FLIGHT) -> None:
        self._count = self._free = count
        self._condition = threading.Condition()
        self._queue: deque[object] = deque()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        """
        Wait for slots and hold them.

        Args:
            wanted: How many calls the block may have in flight. An adapter's batch may make one for each of
                its keys, so it counts as that many, or as all slots if there are fewer.
        """
        wanted = min(wanted, self._count)
        self._take(wanted)
        try:
            yield
        finally:
            with self._condition:
                self._free += wanted
                self._condition.notify_all()

    def _take(self, wanted: int) -> None:
        ticket = object()
        with self._condition:
            self._queue.append(ticket)
            try:
                self._condition.wait_for(lambda: self._queue[0] is ticket and self._free >= wanted)
                self._free -= wanted
            finally:  # also if the thread is interrupted
                self._queue.remove(ticket)
                self._condition.notify_all()

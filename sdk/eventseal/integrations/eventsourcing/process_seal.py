"""The process's own EventSeal: made once, from the settings, for whatever the library makes by a topic."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from eventseal.configuration import EventSeal
from eventseal.keys.forks import renew_in_children

if TYPE_CHECKING:
    from eventseal.rotation.sealed_store import SealedStore


class ProcessSeal:
    """
    Makes an EventSeal when it is first asked for, and keeps it.

    What is inside of it renews itself in a forked process; only the lock is this class's own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seal: EventSeal | None = None
        renew_in_children(self)

    def __call__(self) -> SealedStore:
        """
        Give the process's EventSeal.

        Raises:
            ConfigurationError: The settings name no KEK or no database, or are wrong.
        """
        with self._lock:
            if self._seal is None:
                self._seal = EventSeal.from_settings()
            return self._seal

    def close(self) -> None:
        """Forget it, its keys and its connections: whoever asks next reads the settings anew."""
        with self._lock:
            seal, self._seal = self._seal, None
        if seal is not None:
            seal.close()

    def renew_in_child(self) -> None:
        """Take no lock of the parent's."""
        self._lock = threading.Lock()


process_seal = ProcessSeal()
"""Reads ``eventseal.toml`` and ``EVENTSEAL_*`` of the process: the library does not show its own ``env``."""

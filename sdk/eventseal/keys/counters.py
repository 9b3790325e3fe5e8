"""What a keyring counts: cheap evidence of how often it asked the KMS and the key store."""

from __future__ import annotations

import threading


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

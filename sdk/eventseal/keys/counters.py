"""What a keyring counts: cheap evidence of how often it asked the KMS and the key store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class KeyringCounters:
    """
    Totals since the keyring was made, or since the fork.

    Attributes:
        kms_calls: Calls to KMS adapters that left the process; a batch is one.
        store_queries: Calls to the key store.
        hits: Keys that were answered from memory.
        misses: Keys that were not.
    """

    kms_calls: int = 0
    store_queries: int = 0
    hits: int = 0
    misses: int = 0

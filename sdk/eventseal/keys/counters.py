"""What a keyring counts: cheap evidence of how often it asked the KMS and the key store."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.records import ChangeMark, Changes, KekUse, KeyRecord, NextMark, Replacement
    from eventseal.keys.states import KeyPurpose
    from eventseal.keys.store import KeyStore
    from eventseal.kms.adapter import WrappedKey


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


class CountedStore:
    """What a keyring asks of its key store, counted."""

    def __init__(self, store: KeyStore, counters: KeyringCounters) -> None:
        self._store = store
        self._counters = counters

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose
    ) -> dict[str, KeyRecord]:
        """Give the record that holds each scope's slot."""
        self._counters.count_store_query()
        return self._store.active(application, scopes, purpose=purpose)

    def get(self, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
        """Give records by id."""
        self._counters.count_store_query()
        return self._store.get(key_ids)

    def add_active(
        self, records: Sequence[KeyRecord], *, mark: ChangeMark | None = None
    ) -> dict[str, KeyRecord]:
        """Insert new active keys, each unless its scope's slot is taken."""
        self._counters.count_store_query()
        return self._store.add_active(records, mark=mark)

    def replace_active(
        self, old: KeyRecord, closed: KeyRecord, new: KeyRecord, *, next_mark: NextMark, wait: bool
    ) -> KeyRecord:
        """Close a scope's active key and make another."""
        self._counters.count_store_query()
        return self._store.replace_active(old, closed, new, next_mark=next_mark, wait=wait)

    def replace_all_active(
        self, replacements: Sequence[Replacement], *, next_mark: NextMark
    ) -> dict[str, KeyRecord]:
        """Close the active keys of scopes and make others."""
        self._counters.count_store_query()
        return self._store.replace_all_active(replacements, next_mark=next_mark)

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """Give every key and tombstone of a scope."""
        self._counters.count_store_query()
        return self._store.of_scope(application, scope)

    def set_states(
        self,
        records: Sequence[KeyRecord],
        *,
        next_mark: NextMark,
        whole_scope: str | None = None,
        tombstones: Sequence[KeyRecord] = (),
    ) -> list[KeyRecord]:
        """Move keys to the states that *records* carry, and insert *tombstones*."""
        self._counters.count_store_query()
        return self._store.set_states(
            records, next_mark=next_mark, whole_scope=whole_scope, tombstones=tombstones
        )

    def put_wrappings(self, add: Mapping[UUID, WrappedKey], *, verified: bool = False) -> set[UUID]:
        """Add a wrapping to each key that misses it."""
        self._counters.count_store_query()
        return self._store.put_wrappings(add, verified=verified)

    def mark_wrappings_verified(self, opened: Mapping[UUID, WrappedKey], *, wait: bool) -> None:
        """Note that wrappings were unwrapped and hold their keys."""
        self._counters.count_store_query()
        self._store.mark_wrappings_verified(opened, wait=wait)

    def drop_wrappings(
        self, drop: Mapping[UUID, Collection[WrappedKey]], *, keep: Mapping[UUID, WrappedKey]
    ) -> set[UUID]:
        """Delete wrappings of keys that have a better one."""
        self._counters.count_store_query()
        return self._store.drop_wrappings(drop, keep=keep)

    def kek_uses(self, application: str) -> list[KekUse]:
        """Count wrappings by KEK and version."""
        self._counters.count_store_query()
        return self._store.kek_uses(application)

    def page(self, application: str, *, after: UUID | None, limit: int) -> list[KeyRecord]:
        """Give records in order of id."""
        self._counters.count_store_query()
        return self._store.page(application, after=after, limit=limit)

    def reserve(self, items: Mapping[UUID, int]) -> dict[UUID, int]:
        """Lease items under active keys."""
        self._counters.count_store_query()
        return self._store.reserve(items)

    def changes(self, application: str, since: int, key_ids: Collection[UUID]) -> Changes | None:
        """Read the application's mark and what changed."""
        self._counters.count_store_query()
        return self._store.changes(application, since, key_ids)

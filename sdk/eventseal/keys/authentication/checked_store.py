"""The key store as a keyring asks it: counted, and each row with what the revocation tree says of its key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from eventseal.keys.authentication.row_checks import is_set_back
from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.authentication.revocations import Revocations
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import (
        Admission,
        ChangeMark,
        Changes,
        KekUse,
        KeyRecord,
        NextMark,
        Replacement,
    )
    from eventseal.keys.ring.parts import KeyringCounters
    from eventseal.keys.store import KeyStore
    from eventseal.kms.adapter import WrappedKey


class CheckedStore:
    """
    What a keyring asks of its key store: counted, and each row with what the revocation tree says of its key.

    Args:
        store: The key store.
        counters: Count the calls.
        revocations: Say what is revoked.
        seals: Give the application's seals; ``None`` if it has no store key.
    """

    def __init__(
        self,
        store: KeyStore,
        counters: KeyringCounters,
        revocations: Revocations,
        seals: Callable[[], Seals | None],
    ) -> None:
        self._store = store
        self._counters = counters
        self.revocations = revocations
        self._seals = seals

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose, check: bool = True
    ) -> dict[str, KeyRecord]:
        """Give the record that holds each scope's slot; see :meth:`get`."""
        self._counters.count_store_query()
        found = self._store.active(application, scopes, purpose=purpose)
        if purpose is KeyPurpose.STORE or not check:  # under the store key all others are checked
            return found
        checked = self._checked(found.values())
        return {scope: checked[record.key_id] for scope, record in found.items()}

    def get(self, key_ids: Collection[UUID], *, check: bool = True) -> dict[UUID, KeyRecord]:
        """Give records by id; unchecked ones open nothing, and need no right to decrypt."""
        self._counters.count_store_query()
        found = self._store.get(key_ids)
        checked = self._checked(found.values()) if check else {}
        return {key_id: checked.get(record.key_id, record) for key_id, record in found.items()}

    def add_active(
        self, records: Sequence[KeyRecord], *, mark: ChangeMark | None = None, admit: Admission | None = None
    ) -> dict[str, KeyRecord]:
        """Insert new active keys, each unless its scope's slot is taken."""
        self._counters.count_store_query()
        return self._store.add_active(records, mark=mark, admit=admit)

    def replace_active(
        self, old: KeyRecord, closed: KeyRecord, new: KeyRecord, *, next_mark: NextMark, wait: bool
    ) -> KeyRecord:
        """Close a scope's active key and make another."""
        self._counters.count_store_query()
        holder = self._store.replace_active(old, closed, new, next_mark=next_mark, wait=wait)
        self.revocations.has_changed()
        return holder

    def replace_all_active(
        self, replacements: Sequence[Replacement], *, next_mark: NextMark
    ) -> dict[str, KeyRecord]:
        """Close the active keys of scopes and make others."""
        self._counters.count_store_query()
        holders = self._store.replace_all_active(replacements, next_mark=next_mark)
        self.revocations.has_changed()
        return holders

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """Give every key and tombstone of a scope."""
        self._counters.count_store_query()
        return list(self._checked(self._store.of_scope(application, scope), by_scope=False).values())

    def set_states(
        self,
        records: Sequence[KeyRecord],
        *,
        next_mark: NextMark,
        whole_scope: str | None = None,
        left_out: Collection[UUID] = (),
        tombstones: Sequence[KeyRecord] = (),
    ) -> list[KeyRecord]:
        """Move keys to the states that *records* carry, and insert *tombstones*."""
        self._counters.count_store_query()
        stored = self._store.set_states(
            records, next_mark=next_mark, whole_scope=whole_scope, left_out=left_out, tombstones=tombstones
        )
        self.revocations.has_changed()
        return stored

    def list_erased(self, application: str, digests: Collection[bytes]) -> None:
        """Add digests of items that were erased."""
        self._counters.count_store_query()
        self._store.list_erased(application, digests)

    def find_erased(self, application: str, digests: Collection[bytes]) -> set[bytes]:
        """Say which of some digests are listed."""
        self._counters.count_store_query()
        return self._store.find_erased(application, digests)

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

    def orphans(self, *, limit: int) -> list[KeyRecord]:
        """Give keys, of all applications, that lost what opens them; unchecked."""
        self._counters.count_store_query()
        return self._store.orphans(limit=limit)

    def page(
        self, application: str, *, after: UUID | None, limit: int, check: bool = False
    ) -> list[KeyRecord]:
        """Give records in order of id; unchecked, as of :meth:`get`, unless asked for."""
        self._counters.count_store_query()
        found = self._store.page(application, after=after, limit=limit)
        return list(self._checked(found).values()) if check else found

    def reserve(self, items: Mapping[UUID, int]) -> dict[UUID, int]:
        """Lease items under active keys."""
        self._counters.count_store_query()
        return self._store.reserve(items)

    def changes(self, application: str, since: int, key_ids: Collection[UUID]) -> Changes | None:
        """Read the application's mark and what changed."""
        self._counters.count_store_query()
        return self._store.changes(application, since, key_ids)

    def advance(self, application: str, *, next_mark: NextMark) -> None:
        """Store the next mark, with no key moved."""
        self._counters.count_store_query()
        self._store.advance(application, next_mark=next_mark)
        self.revocations.has_changed()

    def _checked(self, records: Iterable[KeyRecord], *, by_scope: bool = True) -> dict[UUID, KeyRecord]:
        """
        Give records with what the revocation tree says of their keys, in their order.

        Args:
            records: As the key store gave them.
            by_scope: Whether the caller believes ``revoked_as`` only of rows whose seals it has checked.
        """
        found = {record.key_id: record for record in records}
        seals = self._seals() if found else None
        if seals is None:
            return found
        revocations = self.revocations
        revoked = revocations.of_rows(found, seals) if by_scope else revocations.of_keys(found, seals)
        told = {key_id: replace(found[key_id], revoked_as=how) for key_id, how in revoked.items() if how}
        earlier = [record.key_id for record in told.values() if is_set_back(record)]
        if earlier:  # maybe read a moment before their keys were revoked
            told |= {
                key_id: replace(record, revoked_as=revoked[key_id])
                for key_id, record in self._store.get(earlier).items()
            }
        return found | told

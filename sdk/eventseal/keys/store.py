"""
The interface of a key store. Each protocol is defined where it is used.

The implementation for SQLAlchemy is ``storage.key_store``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from eventseal.keys.records import (
        Admission,
        ChangeMark,
        Changes,
        KekUse,
        KeyRecord,
        NextMark,
        Replacement,
    )
    from eventseal.keys.states import KeyState
    from eventseal.kms.adapter import WrappedKey

HARD_LIMIT = 2**32
"""The highest number of items that one data key may ever seal."""


class SupportsClaims(Protocol):
    """
    An optional ability of a key store: claims of slots.

    With it, processes wait while another one creates a key. Without it, processes that create a key together
    call the KMS once each, and all but one key is discarded.
    """

    def claim_slots(
        self, slots: Collection[bytes], *, owner: UUID, seconds: float, wait: bool = True
    ) -> set[bytes]:
        """
        Claim the creation of keys in slots.

        Args:
            slots: Digests of 32 bytes.
            owner: A random id of the caller, who may claim a slot again.
            seconds: The duration of the claims, by the database's clock.
            wait: Whether to wait for another writer. If ``False``, nothing is claimed while one writes.

        Returns:
            The slots that nobody else has claimed. A claim may be lost, as long as that is rare.
        """
        ...

    def release_slots(self, slots: Collection[bytes], *, owner: UUID) -> None:
        """End the owner's claims, without waiting for another writer."""
        ...


@runtime_checkable
class KeyStore(Protocol):
    """
    Stores complete records with their MACs. It neither creates nor checks a MAC.

    Each call is a separate transaction on a separate connection, and durable when it returns. Several threads
    may call methods at the same time. If the database does not serve a call, each method raises
    ``StoreUnavailableError``, ``StoreReadOnlyError`` or ``MissingTableError``. The suite that every key store
    passes is in ``eventseal.testing.key_store_contract``.
    """

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, KeyRecord]:
        """Return the record, maybe a tombstone, in each scope's slot. Absent records are left out."""
        ...

    def get(self, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
        """Return records by id, of any application. Absent records are left out."""
        ...

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """
        Return every key and tombstone of a scope, of any purpose.

        They are in order of id, without wrappings.
        """
        ...

    def add_active(
        self, records: Sequence[KeyRecord], *, mark: ChangeMark | None = None, admit: Admission | None = None
    ) -> dict[str, KeyRecord]:
        """
        Insert new active keys, each unless its scope's slot is taken.

        All keys have the same application and purpose.

        Args:
            records: The keys with their wrappings. The first leased block is in ``items_reserved``.
            mark: The application's first mark. It comes with the store key, and is stored if that key was
                inserted.
            admit: Decides whether the inserted keys stay, unless the mark's ``revoked`` is its own. It is
                called in a later statement of the same transaction. If it rejects the keys, they are deleted
                again.

        Returns:
            For each scope, the record in its slot now: the given record, or the record of another process
            that was first. Nothing, if the keys were rejected.

        Raises:
            StoreError: A key with this id already exists. Ids are never used again.
            KeyDestroyedError: A wrapping is under a branch key that was destroyed in the meantime.
        """
        ...

    def replace_all_active(
        self, replacements: Sequence[Replacement], *, next_mark: NextMark, wait: bool = True
    ) -> dict[str, KeyRecord]:
        """
        Close the active keys of scopes and create others, all or none.

        Everything happens in one transaction.

        Args:
            replacements: Replacements of one application and one purpose, each for a different scope.
            next_mark: Returns the mark to store, from the locked current mark.
            wait: Whether to wait for another writer. If ``False``, ``StoreUnavailableError`` is raised
                immediately.

        Returns:
            For each scope, the record in its slot now. These are all new records as stored or, if one of the
            old records had changed, the records that were in the slots before. A scope whose slot is free is
            left out.

        Raises:
            KeyDestroyedError: A wrapping is under a branch key that was destroyed in the meantime.
        """
        ...

    def set_states(
        self,
        records: Sequence[KeyRecord],
        *,
        next_mark: NextMark,
        whole_scope: str | None = None,
        left_out: Collection[UUID] = (),
        tombstones: Sequence[KeyRecord] = (),
    ) -> list[KeyRecord]:
        """
        Store the states in *records*, and insert *tombstones*, all or none.

        Args:
            records: Records whose ``row_version`` is one above the stored version. The stored number of
                leased items is kept. ``DESTROYED`` deletes the wrappings.
            next_mark: Returns the mark to store, from the locked current mark.
            whole_scope: A scope that must be complete. Nothing is changed if *records* lacks a key of this
                scope that is not destroyed and whose purpose a shred ends.
            left_out: Keys that may be missing in *records*, whatever their rows say. They lose their slots.
            tombstones: New rows of destroyed keys that never existed. They occupy slots.

        Returns:
            All of these records as stored, or an empty list in these cases:
            - A version had changed.
            - A key that is not destroyed is missing.
            - Another key holds a slot that a given key needs.
            - A branch key that would be destroyed still wraps other keys.
        """
        ...

    def advance(self, application: str, *, next_mark: NextMark) -> None:
        """
        Store an application's next mark and its nodes, without changing a key.

        Args:
            application: An application that has a mark.
            next_mark: Returns the mark and the nodes, from the locked current mark.
        """
        ...

    def revocations(
        self, application: str, paths: Collection[bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]] | None:
        """
        Read an application's mark and revocation tree nodes at one moment.

        Returns:
            The mark, and the contents of the existing nodes by path. ``None`` if there is no mark.
        """
        ...

    def list_erased(self, application: str, digests: Collection[bytes]) -> None:
        """
        Add digests of items that were erased, before their scope is reopened.

        Args:
            application: The application that owns the items.
            digests: Digests of 32 bytes.
        """
        ...

    def find_erased(self, application: str, digests: Collection[bytes]) -> set[bytes]:
        """Return those of the digests that are listed as erased."""
        ...

    def put_wrappings(self, add: Mapping[UUID, WrappedKey], *, verified: bool = False) -> set[UUID]:
        """
        Add a wrapping to each key. A destroyed key gets none.

        A key that has a wrapping of the same KEK and version gets none either.

        Args:
            add: The wrapping for each key id. Ids that do not exist are left out.
            verified: Whether the caller has unwrapped the wrappings. A verified wrapping replaces one of the
                same KEK and version that was never unwrapped.

        Returns:
            The ids of the keys that now have exactly the given wrapping.
        """
        ...

    def mark_wrappings_verified(self, opened: Mapping[UUID, WrappedKey], *, wait: bool = True) -> None:
        """
        Record that wrappings were unwrapped and hold their keys. The first time counts.

        Args:
            opened: The wrapping of each key id. A wrapping whose stored bytes differ by now is left
                unchanged.
            wait: Whether to wait for another writer. If ``False``, ``StoreUnavailableError`` is raised
                immediately.
        """
        ...

    def drop_wrappings(
        self, drop: Mapping[UUID, Collection[WrappedKey]], *, keep: Mapping[UUID, WrappedKey]
    ) -> set[UUID]:
        """
        Delete wrappings of keys that have a better wrapping.

        The check of the better wrapping is in the same transaction.

        Args:
            drop: The wrappings to delete, by the key's id. A wrapping whose stored bytes differ by now is
                kept.
            keep: The better wrapping of each key, which the caller has just unwrapped. If a key no longer has
                exactly these bytes, none of its wrappings is deleted.

        Returns:
            The ids of the keys that have their ``keep`` wrapping, and none of their ``drop`` wrappings.
        """
        ...

    def kek_uses(self, application: str) -> list[KekUse]:
        """
        Count an application's wrappings by KEK and version, in order of both.

        Wrappings of destroyed keys are left out.
        """
        ...

    def count_wrapped_keys(self, application: str) -> int:
        """
        Count an application's keys that have a wrapping.

        In a sound store, these are exactly the keys that are not destroyed.
        """
        ...

    def orphans(self, *, limit: int = 1000) -> list[KeyRecord]:
        """
        Return up to *limit* keys, of any application, that nothing can unwrap.

        They are not destroyed and have no wrapping, or their application has no change mark. A sound store
        has no such keys: somebody edited or deleted rows. A backup may still have them, and need a KEK that
        will soon be deleted.
        """
        ...

    def reserve(self, items: Mapping[UUID, int], *, limit: int = HARD_LIMIT) -> dict[UUID, int]:
        """
        Lease items under active keys.

        Returns:
            The new totals of the keys that are active and within *limit*.
        """
        ...

    def changes(self, application: str, since: int, key_ids: Collection[UUID]) -> Changes | None:
        """
        Read an application's mark and the changes since a counter.

        Changes are read only if the mark's counter is not *since*.

        Returns:
            ``None`` if the application has no mark, and so no store key.
        """
        ...

    def page(
        self, application: str, *, after: UUID | None = None, limit: int = 1000, state: KeyState | None = None
    ) -> list[KeyRecord]:
        """Return up to *limit* records, in order of id. All ids are above *after*."""
        ...

    def add_place(self, application: str, name: str, collection: str) -> None:
        """
        Record an additional place of items, before its first item is written.

        A place is additional if it is not one of the registered tables.

        Args:
            application: The application whose keys encrypt the items.
            name: The name of the place. A name that already exists is left unchanged.
            collection: The logical name that is bound to the items.
        """
        ...

    def places(self) -> list[str]:
        """Return the names of all recorded places, of any application, in order."""
        ...

    def now(self) -> datetime:
        """Read the database's clock, UTC. Only this clock is compared with the times of records."""
        ...

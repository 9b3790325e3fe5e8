"""What a key store must do. Protocols live where they are used; SQLAlchemy's is ``storage.key_store``."""

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
"""Items that one data key may ever seal."""


@runtime_checkable
class KeyStore(Protocol):
    """
    Stores complete, sealed records; it makes no seal and checks none.

    Each call is one transaction of its own, on a connection of its own, durable when it returns. Methods may
    be called from several threads at once. All raise ``StoreUnavailableError``, ``StoreReadOnlyError`` or
    ``MissingTableError`` when the database does not serve. ``eventseal.testing.key_store_contract`` holds the
    suite that every key store passes.
    """

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, KeyRecord]:
        """Give the record that holds each scope's slot, maybe a tombstone; leave out absent ones."""
        ...

    def get(self, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
        """Give records by id, of whatever application; absent ones are left out."""
        ...

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """Give every key and tombstone of a scope, of whatever purpose, in order of id, without wrappings."""
        ...

    def add_active(
        self, records: Sequence[KeyRecord], *, mark: ChangeMark | None = None, admit: Admission | None = None
    ) -> dict[str, KeyRecord]:
        """
        Insert new active keys, all of one application and purpose, each unless its scope's slot is taken.

        Args:
            records: With their wrappings and the first leased block in ``items_reserved``.
            mark: The application's first mark; comes with its store key, stored if that was inserted.
            admit: Asked once the keys are inserted, in a later statement of the same transaction, unless the
                mark's ``revoked`` is its own. If it does not admit them, they are taken back.

        Returns:
            By scope the record that holds the slot now: the given one, or the winner's of a race. Nothing, if
            they were not admitted.

        Raises:
            StoreError: A key of this id is there already; ids are never used again.
            KeyDestroyedError: A wrapping is under a branch key that was destroyed meanwhile.
        """
        ...

    def replace_all_active(
        self, replacements: Sequence[Replacement], *, next_mark: NextMark, wait: bool = True
    ) -> dict[str, KeyRecord]:
        """
        Close the active keys of scopes and make others, all or none, in one transaction.

        Args:
            replacements: All of one application and purpose, each of another scope.
            next_mark: Gives the mark to store, from the locked current one.
            wait: Whether to wait for another writer; ``False`` raises ``StoreUnavailableError`` at once.

        Returns:
            By scope the record that holds the slot now: every new one as stored, or, if one of the old ones
            had moved on, what held the slots before. A scope whose slot is free is left out.

        Raises:
            KeyDestroyedError: A wrapping is under a branch key that was destroyed meanwhile.
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
        Move keys to the states that *records* carry, and insert *tombstones*, all or none.

        Args:
            records: Each with a ``row_version`` one above the stored one; what was leased meanwhile is kept.
                ``DESTROYED`` deletes the wrappings.
            next_mark: Gives the mark to store, from the locked current one.
            whole_scope: If given, nothing is done while a live key of this scope, of a purpose that a shred
                ends, is not among *records*.
            left_out: Keys that may be missing among them, whatever their rows say; they lose their slots.
            tombstones: New rows of destroyed keys that never were, to hold slots.

        Returns:
            All of these records as stored, or an empty list if a version had moved, a live key was left out,
            another key holds a slot that one of the given ones is to hold, or a branch key that is to be
            destroyed has wrapped other keys.
        """
        ...

    def advance(self, application: str, *, next_mark: NextMark) -> None:
        """
        Store the next mark of an application, with the nodes that go with it and no key moved.

        Args:
            application: It has a mark.
            next_mark: Gives both, from the locked current mark.
        """
        ...

    def revocations(
        self, application: str, paths: Collection[bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]] | None:
        """
        Read an application's mark and nodes of its revocation tree, as of one moment.

        Returns:
            The nodes' contents by path, without those that are not there; ``None`` if there is no mark.
        """
        ...

    def list_erased(self, application: str, digests: Collection[bytes]) -> None:
        """Add digests of items that were erased in a scope that is about to be reopened; 32 bytes each."""
        ...

    def find_erased(self, application: str, digests: Collection[bytes]) -> set[bytes]:
        """Say which of some digests are listed."""
        ...

    def put_wrappings(self, add: Mapping[UUID, WrappedKey], *, verified: bool = False) -> set[UUID]:
        """
        Add a wrapping to each key, unless the key is destroyed or has one of the same KEK and version.

        Args:
            add: By the key's id; ids that are not there are left out.
            verified: Whether the caller has unwrapped them. Such a wrapping takes the place of one of the
                same KEK and version that nobody has unwrapped.

        Returns:
            The ids of the keys that have this very wrapping now.
        """
        ...

    def mark_wrappings_verified(self, opened: Mapping[UUID, WrappedKey], *, wait: bool = True) -> None:
        """
        Note that these wrappings were unwrapped and hold their keys; the first time counts.

        Args:
            opened: By the key's id. What is stored otherwise by now, to the byte, is left as it is.
            wait: Whether to wait for another writer; ``False`` raises ``StoreUnavailableError`` at once.
        """
        ...

    def drop_wrappings(
        self, drop: Mapping[UUID, Collection[WrappedKey]], *, keep: Mapping[UUID, WrappedKey]
    ) -> set[UUID]:
        """
        Delete wrappings of keys that have a better one: in one transaction with the look at that one.

        Args:
            drop: By the key's id. What is stored otherwise by now, to the byte, stays.
            keep: The wrapping for whose sake the others go: the caller has just unwrapped it. If a key does
                not have it any more, to the byte, nothing of that key is deleted.

        Returns:
            The ids of the keys that have ``keep``, and none of ``drop`` any more.
        """
        ...

    def kek_uses(self, application: str) -> list[KekUse]:
        """Count the wrappings of an application's live keys by KEK and version, in order of both."""
        ...

    def count_wrapped_keys(self, application: str) -> int:
        """Count an application's keys that have a wrapping: the live ones, in a sound store."""
        ...

    def orphans(self, *, limit: int = 1000) -> list[KeyRecord]:
        """
        Give up to *limit* keys, of all applications, that lost what opens them.

        They are not destroyed and have no wrapping, or their application has no change mark. A sound store
        has none: somebody edited rows, or deleted some. A backup may have them still, and need a KEK that
        is about to end.
        """
        ...

    def reserve(self, items: Mapping[UUID, int], *, limit: int = HARD_LIMIT) -> dict[UUID, int]:
        """Lease items under active keys; give the new totals of those that are active and within *limit*."""
        ...

    def changes(self, application: str, since: int, key_ids: Collection[UUID]) -> Changes | None:
        """
        Read the application's mark and, only if its counter is not *since*, what changed.

        Returns:
            ``None`` if the application has no mark, hence no store key.
        """
        ...

    def page(
        self, application: str, *, after: UUID | None = None, limit: int = 1000, state: KeyState | None = None
    ) -> list[KeyRecord]:
        """Give up to *limit* records in order of id, those behind *after*."""
        ...

    def add_place(self, application: str, name: str, collection: str) -> None:
        """
        Note, before the first item is written there, that a place beside the registered tables holds items.

        Args:
            application: Under whose keys.
            name: Of the place; one that is there already is left as it is.
            collection: The logical name that is bound to its items.
        """
        ...

    def places(self) -> list[str]:
        """Name the places that were noted, whatever application did, in order."""
        ...

    def now(self) -> datetime:
        """Read the database's clock, UTC: the only one that is compared with the times of records."""
        ...

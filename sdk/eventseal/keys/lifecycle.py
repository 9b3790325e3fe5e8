"""What happens to keys after they were made: they are rotated, marked compromised, retired, shredded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from eventseal.errors import ConfigurationError
from eventseal.keys.authentication.old_key_tables import (
    Upgrade,
    read_old_rows,
    refuse_edited_rows,
    upgrade_name,
)
from eventseal.keys.authentication.row_checks import check_row
from eventseal.keys.records import DEFAULT_SCOPE, checked_scope
from eventseal.keys.ring.state_transitions import SHREDS
from eventseal.keys.states import KeyPurpose, KeyState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.keys.authentication.checked_store import CheckedStore
    from eventseal.keys.authentication.old_key_tables import OldRows
    from eventseal.keys.authentication.row_macs import ScopeDigests
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.destroying import Destroyer, ShreddedScope
    from eventseal.keys.ring.held_keys import Memory
    from eventseal.keys.ring.opening import Refresher
    from eventseal.keys.ring.parts import KeysOfPurpose
    from eventseal.keys.ring.rotating import Rotated
    from eventseal.keys.ring.store_key import LedgerKeys, StoreKey
    from eventseal.keys.store import KeyStore


class RetiredKey(NamedTuple):
    """
    A data key that was retired.

    Attributes:
        record: Its tombstone, which was checked.
        was_compromised: Whether it was marked as compromised before.
        scope_was_shredded: Whether its scope was ever shredded, also if that was reopened.
    """

    record: KeyRecord
    was_compromised: bool
    scope_was_shredded: bool


class KeyLifecycle:
    """The part of a keyring that moves keys from one state to another."""

    _application: str
    _branch_keys: KeysOfPurpose
    _data_keys: KeysOfPurpose
    _destroyer: Destroyer
    _key_store: KeyStore
    _ledger_keys: LedgerKeys
    _memory: Memory
    _refresher: Refresher
    _scope_digests: ScopeDigests | None
    _store: CheckedStore
    _store_key: StoreKey

    def scope_named(self, name: str) -> str:
        """
        Give the stored form of a scope that a person names: the same, without ``scope_digest``.

        Args:
            name: The scope, or its stored form, as ``eventseal keys`` lists it.

        Raises:
            ConfigurationError: The scope is refused, or the keyring was told otherwise of digests than the
                application's first, so that scopes would not be found; or it is closed.
            EventSealError: The application's store key does not open.
        """
        self._memory.check_open()
        self._store_key.seals()
        return self._stored(name, make=False)

    def retired_keys(self, key_ids: Collection[UUID]) -> dict[UUID, RetiredKey]:
        """
        Give the tombstones of data keys that were retired, and what happened to the keys before that.

        Args:
            key_ids: Any number; those of other keys are left out.

        Raises:
            IntegrityError: A row, or what the revocation tree says of it, is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        seals = self._store_key.seals()
        if seals is None or not key_ids:
            return {}
        rows = []
        for key_id, record in self._store.get(key_ids).items():
            check_row(record, key_id, self._application, seals)
            if record.purpose is KeyPurpose.DATA and record.destroyed_by == "retired":
                rows.append(record)
        pasts = self._store.revocations.pasts(rows, seals)
        return {
            record.key_id: RetiredKey(
                record,
                # The time is not sealed. Key tables that were upgraded may have nothing else.
                was_compromised=pasts[record.key_id].was_compromised or record.compromised_at is not None,
                scope_was_shredded=pasts[record.key_id].scope_was_shredded,
            )
            for record in rows
        }

    def rotate(self, scope: str = DEFAULT_SCOPE, *, compromised: bool = False) -> KeyRecord:
        """
        Give *scope* a new active key; the old one opens only. No item is touched.

        Args:
            scope: Whose key is replaced; one that has none gets its first.
            compromised: Whether the old key's items must be encrypted again.

        Returns:
            The row of the new active key, or of another process's if that was first.

        Raises:
            ConfigurationError: The scope's name is refused, or the keyring is closed.
            IntegrityError: The key's row, or the change mark, is not what a keyring sealed.
            KeyDestroyedError: The scope was closed.
            KmsError: The KMS refused or failed; the old key is still the active one.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        return self._data_keys.rotate(self._stored(scope), compromised=compromised).new

    def rotate_many(
        self, scopes: Collection[str], *, compromised: bool = False
    ) -> dict[str, Rotated | EventSealError]:
        """
        Rotate the keys of many scopes as :meth:`rotate` does, with as few calls of the KMS as it allows.

        The new keys are not held: a process may rotate more of them than it has room for.

        Args:
            scopes: A few hundred at a time, whose keys are wrapped together.
            compromised: Whether the old keys' items must be encrypted again.

        Returns:
            By scope the old key and the row of the new one, or why this scope was not rotated:
            ``KeyDestroyedError`` or ``IntegrityError``.

        Raises:
            ConfigurationError: A scope's name is refused, or the keyring is closed.
            KmsError: The KMS refused or failed; the old keys are still the active ones.
            StoreError: The key store refused or failed; the scopes before stay rotated.
        """
        self._memory.check_open()
        stored = {scope: self._stored(scope) for scope in scopes}
        rotated = self._data_keys.rotate_many(dict.fromkeys(stored.values()), compromised=compromised)
        return {scope: rotated[held] for scope, held in stored.items()}

    def compromise(self, key_ids: Collection[UUID]) -> list[KeyRecord]:
        """
        Mark keys compromised: what they have sealed must be sealed again. An active one is replaced first.

        Args:
            key_ids: Of data keys and branch keys; what is compromised already stays as it is.

        Returns:
            Their rows, in order of id.

        Raises:
            ConfigurationError: A key is of another purpose, or the keyring is closed.
            IntegrityError: A key's row, or the change mark, is not what a keyring sealed.
            KeyDestroyedError: A key was destroyed; nothing was done.
            KeyNotFoundError: There is no such key; nothing was done.
            KmsError: The KMS refused or failed; the keys that were not replaced yet are active still.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        for record in self._destroyer.compromisable(key_ids):
            if record.state is KeyState.ACTIVE:
                keys = self._branch_keys if record.purpose is KeyPurpose.BRANCH else self._data_keys
                keys.rotate(record.scope, compromised=True)
        return self._destroyer.mark_compromised(key_ids)

    def retire(self, key_ids: Collection[UUID], *, dry_run: bool = False) -> list[KeyRecord]:
        """
        Destroy keys that nothing needs any more. Use :func:`eventseal.rotation.retire`, which sees to that.

        Args:
            key_ids: Of data keys and branch keys, deactivated or compromised, all or none of which are
                destroyed. The fences of the data keys were closed, and then no item of them was found.
            dry_run: Whether to check only what the key store says.

        Returns:
            Their tombstones, or the rows as they are, in order of id.

        Raises:
            IntegrityError: A key's row, or the change mark, is not what a keyring sealed.
            JobError: A key is active, is never retired, or has wrapped other keys.
            KeyNotFoundError: There is no such key.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        return self._destroyer.retire(key_ids, dry_run=dry_run)

    def shred(
        self,
        scope: str,
        *,
        first: Callable[[Sequence[KeyRecord]], object] | None = None,
        even_default: bool = False,
        dry_run: bool = False,
    ) -> ShreddedScope:
        """
        Destroy every key of a scope, so that nothing of it is ever opened again, and close the scope.

        Nobody seals for a closed scope until it is reopened. :func:`eventseal.erasure.shred` does this and
        closes the fences too, so that no stale writer's item is written unreadable.

        Args:
            scope: One that has had a key. Shredded again, it stays closed, or is closed again.
            first: Called with every key that the scope ever had, before one is destroyed; what it raises
                keeps them. Called again if one of them moved meanwhile.
            even_default: Whether the scope may be ``application``, which is everybody's.
            dry_run: Whether only to read what would be destroyed.

        Raises:
            ConfigurationError: No key of the scope was ever made, it is ``application``, its name is refused,
                or the keyring is closed.
            IntegrityError: A row of the scope, or the change mark, is not what a keyring sealed; nothing was
                destroyed.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        return self._destroyer.shred(
            self._stored(scope), first=first, even_default=even_default, dry_run=dry_run
        )

    def shred_again(
        self, scope: str, erased: Mapping[UUID, KeyPurpose], *, closed: bool, dry_run: bool = False
    ) -> ShreddedScope:
        """
        Destroy keys that were shredded once, and that a restore of the key tables has brought back.

        No other key is destroyed. One whose tombstone the restore took gets one again.

        Args:
            scope: Whose keys.
            erased: The keys by id, with their purposes.
            closed: Whether the scope was not reopened since. Its slots are taken then, except where a key
                that is not among *erased* has one.
            dry_run: Whether only to read what would be destroyed.

        Returns:
            ``destroyed`` are those that lived; ``keys`` are all of the scope, so that one that lives still
            can be told.

        Raises:
            IntegrityError: A row of the scope, or the change mark, is not what a keyring sealed, or a key is
                of another scope or purpose; nothing was destroyed.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        return self._destroyer.shred_again(self._stored(scope), erased, closed=closed, dry_run=dry_run)

    def reopen(
        self, scope: str, *, first: Callable[[Sequence[KeyRecord]], object] | None = None
    ) -> list[KeyRecord]:
        """
        Let a scope that was shredded have keys again. What was shredded stays so.

        Use :func:`eventseal.erasure.reopen` where there are items: it closes the fences that the shred had to
        leave open, so that no stale writer's item is written unreadable into a scope that is open again.

        Args:
            scope: One that is closed; nothing is done to one that is not.
            first: Called with the scope's shredded keys before it is opened; what it raises keeps it closed.

        Returns:
            The tombstones that had closed the scope.

        Raises:
            ConfigurationError: No key of the scope was ever made, its name is refused, or the keyring is
                closed.
            IntegrityError: A row of the scope, or the change mark, is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        return self._destroyer.reopen(self._stored(scope), first=first)

    def branch_uses(self, branch_ids: Collection[UUID]) -> dict[UUID, int]:
        """
        Count the wrappings that branch keys have made and that are there still.

        Args:
            branch_ids: Of branch keys.

        Returns:
            By branch key; one that has none is left out.

        Raises:
            StoreError: The key store refused or failed.
        """
        return self._destroyer.wrapped_under(branch_ids)

    def count_shreds(self) -> int:
        """
        Say how often keys of the application were shredded, as the revocation tree counts it.

        Raises:
            EventSealError: The store key does not open, or the mark is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        seals = self._store_key.made_seals()
        self._refresher.refresh()
        state = self._store.revocations.entry(seals.scope_name(*SHREDS), seals)
        return 0 if state is None else state.number

    def key_tables(self) -> Literal["old", "upgraded", "new"] | None:
        """
        Say whether the key tables are of a release before the revocation tree, were upgraded, or never were.

        Returns:
            ``None`` if the application has no key yet.

        Raises:
            EventSealError: The store key does not open, or the mark is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        self._memory.check_open()
        seals = self._store_key.seals()
        if seals is None:
            return None
        self._refresher.refresh()
        revocations = self._store.revocations
        if revocations.are_old:
            return "old"
        return "upgraded" if revocations.entry(upgrade_name(seals), seals) else "new"

    def upgrade_key_tables(self, *, first: Callable[[OldRows], object]) -> OldRows | None:
        """
        Upgrade key tables of a release before the revocation tree, once; see ``eventseal.erasure``.

        Args:
            first: Called with what was read before anything is changed; what it raises keeps the tables as
                they are.

        Returns:
            What was taken into the tree; ``None`` if there was nothing to do.

        Raises:
            IntegrityError: The rows are not what the old change mark counts, or that of a compromised or
                shredded key was edited.
            StoreError: The key store refused or failed, or the tables changed meanwhile; run it again.
        """
        self._memory.check_open()
        seals = self._store_key.seals()
        if seals is None:
            return None
        self._refresher.refresh()  # refuses old tables that were put back
        found = self._key_store.revocations(self._application, ())
        if found is None or not seals.is_old(found[0]):
            return None
        mark = found[0]
        rows = read_old_rows(self._key_store, mark, seals)
        refuse_edited_rows(rows)
        first(rows)
        self._store.advance(self._application, next_mark=Upgrade(mark, rows, seals))
        self._refresher.refresh()
        return rows

    @property
    def ledger_keys(self) -> LedgerKeys:
        """Makes and opens the keys of erasure ledgers, which are kept outside of the key store."""
        self._memory.check_open()
        return self._ledger_keys

    def receipt_mac(self, facts: Mapping[str, Any]) -> str:
        """
        Authenticate a receipt under a key that is derived from the application's store key.

        Args:
            facts: As JSON has them.

        Returns:
            The MAC in hex: 64 digits.

        Raises:
            ConfigurationError: The application has no store key, or the keyring is closed.
            EventSealError: The store key does not open.
        """
        self._memory.check_open()
        seals = self._store_key.seals()
        if seals is None:
            raise ConfigurationError(
                "the application has no store key, which receipts are authenticated with",
                remedy="Run `eventseal init`, which creates it.",
            )
        return seals.receipt_mac(facts).hex()

    def _stored(self, name: str, *, make: bool = True) -> str:
        self._memory.check_open()
        digests = self._scope_digests
        return checked_scope(name) if digests is None else digests.named(name, make=make)

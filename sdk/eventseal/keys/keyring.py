"""The keyring: it chooses and finds keys, and changes their states."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import ConfigurationError
from eventseal.keys.concurrency import renew_in_children
from eventseal.keys.policy import BootClock, CachePolicy, RotationPolicy
from eventseal.keys.records import DEFAULT_SCOPE, checked_application
from eventseal.keys.ring.parts import KeyringOptions, Ring
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.store import KeyStore
from eventseal.keys.wrapping.branches import checked_branches
from eventseal.kms.adapter import KmsAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import Clock
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.rewrap.rewrapping import Rewrap
    from eventseal.keys.ring.parts import KeysOfPurpose
    from eventseal.keys.ring.rotating import Rotated
    from eventseal.keys.ring.sealing import Sealer
    from eventseal.keys.ring.state_transitions import ShreddedScope


class Keyring:
    """
    Chooses the key that encrypts, and finds the key that decrypts.

    Threads may share a keyring, and it survives a fork. The constructor checks its arguments and makes no
    call. A scope's key is created on first use. However many processes race, exactly one key is created. Keys
    are unwrapped once and held in memory, for as long as *cache* says.

    Args:
        kms: One KEK or several. The first one creates a new key, each of them wraps it, and any of them can
            unwrap it.
        key_store: Stores the wrapped keys.
        application: The application that owns the keys, 1 to 200 bytes of UTF-8.
        policy: When a key stops being the active key.
        cache: How long the keyring uses keys, and its knowledge of them, from memory.
        clock: The clock that measures intervals. By default it also runs while the machine sleeps.
        branches: How many branch keys wrap new data keys, 1 to 4,096. Each costs one call of the KMS. With
            ``None``, the KEKs wrap every data key. You can change it later: existing keys keep their branch.
        wrap_quorum: How many of several KEKs must wrap a new key before it is used. ``None`` means all of
            them.
        fall_back_on_outage: Whether a key is unwrapped under the next KEK if one is unavailable. A KEK that
            is disabled, or denies the call, is never skipped.
        scope_digest: Whether the key tables hold digests instead of scopes, for scopes whose ids are personal
            data. It applies to an application from its first key, and can never be changed.
        key_tables: The lowest format of the key tables that is accepted. Set it to 2 after
            `eventseal upgrade` has updated them. Then an old copy of all key tables is rejected.

    Attributes:
        keks: The KEKs that were passed to this keyring, in their order.
        counters: How often the keyring called the KMS and the key store.
        ledger_keys: Creates and opens the keys of erasure ledgers, which are stored outside of the key store.
        tables: Accesses the rest of the key tables, such as the list of erased items.
        destroyer: Destroys keys.
        wrappings: Processes the wrappings of all keys.

    Raises:
        ConfigurationError: No KEK is given, a KEK is given twice, the application's name is invalid, or a
            number is not within its limits.
    """

    def __init__(
        self,
        kms: KmsAdapter | Sequence[KmsAdapter],
        key_store: KeyStore,
        *,
        application: str = "default",
        policy: RotationPolicy | None = None,
        cache: CachePolicy | None = None,
        clock: Clock | None = None,
        branches: int | None = None,
        wrap_quorum: int | None = None,
        fall_back_on_outage: bool = False,
        scope_digest: bool = False,
        key_tables: int = 1,
    ) -> None:
        if not isinstance(key_store, KeyStore):
            raise ConfigurationError(f"key_store= is a {type(key_store).__name__}, which is not a key store")
        adapters = (kms,) if isinstance(kms, KmsAdapter) else tuple(kms)
        self._given = KeyringOptions(
            application=checked_application(application),
            kms=adapters,
            key_store=key_store,
            policy=policy or RotationPolicy(),
            cache=cache or CachePolicy(),
            clock=clock or BootClock(),
            branches=checked_branches(branches),
            wrap_quorum=wrap_quorum,
            fall_back_on_outage=fall_back_on_outage,
            scope_digest=scope_digest,
            key_tables=key_tables,
        )
        self.keks = adapters
        self._start()
        renew_in_children(self)

    @property
    def application(self) -> str:
        """The application that owns every key of this keyring."""
        return self._given.application

    def sealing_keys(
        self, items_by_scope: Mapping[str, int], *, make: bool = True, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, DataKey]:
        """
        Return each scope's active key, and count the items to encrypt.

        Args:
            items_by_scope: How many items each scope's key will encrypt.
            make: Whether the keyring may create keys. If ``False``, it leaves out a scope that has no key,
                and rotates no key.
            purpose: ``data`` for items, ``field`` for fields inside them.

        Raises:
            ConfigurationError: The name of a scope or the purpose is invalid, the keyring is closed, or
                *scope_digest* differs from the application's first setting.
            IntegrityError: A key's row is not authentic.
            KeyDestroyedError: A scope is closed.
            KeyLimitError: A key has encrypted as many items as one key may, and cannot be rotated.
            KmsError, StoreError: The KMS or the key store refused or failed.
        """
        if purpose is not KeyPurpose.DATA:
            return self._sealing_keys(self._for(purpose).sealer, items_by_scope, make=make)
        held_keys, digests = self._held_keys, self._scope_digests
        now = self._clock.now()
        if now <= self._confirmation.seals_until:
            found: dict[str, DataKey] = {}
            for scope, items in items_by_scope.items():
                stored = scope if digests is None else digests.known.get(scope, "")
                cached = held_keys.active.get(stored)
                if (
                    cached is None
                    or now >= cached.seals_until
                    or cached.key.closed
                    or not cached.lease.take(items)
                ):
                    break
                cached.used = held_keys.uses
                found[scope] = cached.key
            else:
                held_keys.uses += 1
                self.counters.hits += len(found)
                return found
        return self._sealing_keys(self._sealer, items_by_scope, make=make)

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """
        Return each key by its id, or an error in its place.

        An error concerns its own key only: ``KeyNotFoundError``, ``KeyDestroyedError``, ``IntegrityError``,
        ``WrongApplicationError``, ``KekNotConfiguredError`` or a ``KmsError``.

        Args:
            key_ids: The ids of keys, from envelopes.
            purpose: ``data`` for the keys of items, ``field`` for the keys of fields inside them.

        Raises:
            ConfigurationError: The purpose is invalid, or the keyring is closed.
            StoreError: The key store refused or failed.
        """
        if purpose is not KeyPurpose.DATA:
            return self._for(purpose).opener.keys(key_ids)
        held_keys = self._held_keys
        now = self._clock.now()
        if now <= self._confirmation.opens_until:
            found: dict[UUID, DataKey | EventSealError] = {}
            for key_id in key_ids:
                cached = held_keys.keys.get(key_id)
                if cached is None or now >= cached.expires or cached.key.closed:
                    break
                cached.used = held_keys.uses
                found[key_id] = cached.key
            else:
                held_keys.uses += 1
                self.counters.hits += len(found)
                return found
        return self._opener.keys(key_ids)

    def prepare(self, scopes: Collection[str], *, purpose: KeyPurpose = KeyPurpose.DATA) -> None:
        """
        Create the missing keys of *scopes* before a write transaction. Raises as :meth:`sealing_keys`.

        Args:
            scopes: Any number of scopes. Their keys are stored in one transaction.
            purpose: ``data`` for items, ``field`` for fields inside them.
        """
        self.sealing_keys(dict.fromkeys(scopes, 0), purpose=purpose)

    def rotate(self, scope: str = DEFAULT_SCOPE, *, compromised: bool = False) -> KeyRecord:
        """
        Create a new active key for *scope*. The old key then only decrypts. No item is changed.

        Args:
            scope: The scope whose key is replaced. A scope that has no key gets its first one.
            compromised: Whether the old key's items must be encrypted again.

        Returns:
            The row of the new active key. If another process rotated first, the row of its key.

        Raises:
            ConfigurationError: The scope's name is invalid, or the keyring is closed.
            IntegrityError: The row of the key or the change mark is not authentic.
            KeyDestroyedError: The scope is closed.
            KmsError, StoreError: The KMS or the key store refused or failed. The old key stays active.
        """
        return self._ring.data_keys.rotate_one(self.tables.stored_scope(scope), compromised=compromised)

    def rotate_many(
        self, scopes: Collection[str], *, compromised: bool = False
    ) -> dict[str, Rotated | EventSealError]:
        """
        Rotate many scopes' keys with as few KMS calls as possible.

        Args:
            scopes: Up to a few hundred scopes. Their keys are wrapped together, and not held in memory.
            compromised: Whether the old keys' items must be encrypted again.

        Returns:
            For each scope, the old key and the row of the new key, or the error that prevented its rotation:
            ``KeyDestroyedError`` or ``IntegrityError``.

        Raises:
            ConfigurationError, KmsError, StoreError: As :meth:`rotate` raises. Earlier rotations are kept.
        """
        self._held_keys.check_open()
        stored = {scope: self.tables.stored_scope(scope) for scope in scopes}
        rotated = self._ring.data_keys.rotate(dict.fromkeys(stored.values()), compromised=compromised)
        return {scope: rotated[held] for scope, held in stored.items()}

    def compromise(self, key_ids: Collection[UUID]) -> list[KeyRecord]:
        """
        Mark keys as compromised. An active key is replaced first.

        Args:
            key_ids: The ids of data and branch keys. Their items must be encrypted again. Keys that are
                already compromised are left unchanged.

        Returns:
            The rows of the keys, in order of id.

        Raises:
            ConfigurationError: A key has another purpose, or the keyring is closed.
            KeyDestroyedError, KeyNotFoundError: A key was destroyed or does not exist. Nothing was changed.
            EventSealError: As :meth:`rotate` raises. The keys that were not replaced yet are still active.
        """
        self._held_keys.check_open()
        for record in self.destroyer.compromisable(key_ids):
            if record.state is KeyState.ACTIVE:
                keys = self._ring.branch_keys if record.purpose is KeyPurpose.BRANCH else self._ring.data_keys
                keys.rotate_one(record.scope, compromised=True)
        return self.destroyer.mark_compromised(key_ids)

    def shred(
        self,
        scope: str,
        *,
        before_commit: Callable[[Sequence[KeyRecord]], object] | None = None,
        even_default: bool = False,
        dry_run: bool = False,
    ) -> ShreddedScope:
        """
        Destroy every key of a scope, and close the scope.

        Nothing of the scope can ever be decrypted again, and nothing is encrypted for it until you reopen it.
        The function :func:`eventseal.erasure.shred` also closes the fences. So no writer with an outdated key
        can store an item that nobody can decrypt.

        Args:
            scope: A scope that has had a key. If you shred it again, it stays closed or is closed again.
            before_commit: Called with every key that the scope ever had, before any key is destroyed. If it
                raises an error, the keys are kept. It is called again if a key changed in the meantime.
            even_default: Whether the scope may be ``application``, which holds each event without its own
                scope.
            dry_run: Whether to only read which keys would be destroyed.

        Raises:
            ConfigurationError: The scope never had a key, it is ``application`` without *even_default*, its
                name is invalid, or the keyring is closed.
            IntegrityError: A row of the scope, or the change mark, is not authentic. Nothing was destroyed.
            StoreError: The key store refused or failed.
        """
        self._held_keys.check_open()
        return self.destroyer.shred(
            scope,
            before_commit=before_commit,
            even_default=even_default,
            dry_run=dry_run,
        )

    def rewrap(
        self,
        to: KmsAdapter | None = None,
        *,
        batch: int = 100,
        dry_run: bool = False,
        verify: bool = False,
        progress: Callable[[Rewrap], object] | None = None,
    ) -> Rewrap:
        """
        Wrap every key under the current KEKs, and delete superseded wrappings.

        No item is changed, and destroyed keys are left out. Each key gets a wrapping under the newest version
        of every KEK of this keyring, including KEKs that it lacks. Wrappings under older versions are
        deleted. With *to*, each key ends under that KEK alone. Data keys under branch keys are wrapped under
        the active key of their branch. If you run it again, it continues where it stopped.

        A run deletes an old wrapping only after a new one was unwrapped. The run does both itself with
        *verify*, or if it must unwrap the key to wrap it and the KEK is its own. Otherwise a later run
        deletes it, once a process that opens keys has recorded that it unwrapped the new one.

        Args:
            to: The only KEK that remains. It need not be one of this keyring's KEKs.
            batch: How many keys are read at a time, and at most wrapped in one call.
            dry_run: Whether to only count. EventSeal then asks a KEK for its newest version only.
            verify: Whether to unwrap every wrapping that remains, under a KEK or a branch key, and to check
                the rows of destroyed keys. Use it before you disable or delete a KEK. It requires the
                permission to unwrap, and makes one run enough.
            progress: Called after each batch.

        Raises:
            ConfigurationError: The keyring is closed, or *to* or *batch* is invalid.
            IntegrityError: The store key's row is not authentic.
            KmsError, StoreError: A KEK or the key store refused or failed. Earlier changes are kept.
        """
        return self.wrappings.rewrap(to, batch=batch, dry_run=dry_run, verify=verify, progress=progress)

    def rotate_branches(self, *, compromised: bool = False) -> list[KeyRecord]:
        """
        Create a new key for every branch, including earlier branches. The old keys only unwrap.

        Args:
            compromised: Whether keys under the old branch keys must be wrapped again, and items encrypted
                again.

        Returns:
            The rows of the new branch keys.

        Raises:
            ConfigurationError: The keyring has no branches and never had any, or it is closed.
            EventSealError: As :meth:`rotate` raises. The branches that were rotated before it stay rotated.
        """
        return self.wrappings.rotate_branches(compromised=compromised)

    def add_place(self, name: str, collection: str) -> None:
        """Record that a place holds items, as :meth:`KeySource.add_place` specifies."""
        self._given.key_store.add_place(self.application, name, collection)

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Return which items were erased, as :meth:`KeySource.are_listed_as_erased` specifies."""
        return self.tables.are_listed_as_erased(items)

    def stored_scope(self, scope: str) -> str:
        """
        Return a scope as keys, tombstones, ledgers and receipts name it. Only ``scope_digest`` changes it.

        Raises:
            ConfigurationError: The scope is invalid, or the keyring is closed.
            EventSealError: The application's store key cannot be unwrapped or created.
        """
        digests = self._scope_digests
        if digests is None:
            return scope
        stored = digests.known.get(scope)
        if stored is None:
            self._held_keys.check_open()
            stored = digests.of(scope)
        return stored

    def over(self, key_store: KeyStore) -> Keyring:
        """Return a keyring of this application and KEKs over other key tables. They may be a backup's."""
        return Keyring(
            self.keks,
            key_store,
            application=self.application,
            cache=self._given.cache,
            clock=self._clock,
            fall_back_on_outage=self._given.fall_back_on_outage,
            scope_digest=self._given.scope_digest,
        )

    def refresh(self) -> None:
        """
        Look now for keys whose state changed, without waiting for ``refresh_interval``.

        Raises:
            IntegrityError, StoreError: The change mark or revocation tree was edited, or could not be read.
        """
        self._ring.refresher.refresh()
        self._ring.branch_keys.opener.look_again()
        self._ring.field_keys.opener.look_again()
        self._opener.look_again()

    def close(self) -> None:
        """Close every handle and forget every key. The keyring then returns none."""
        self._held_keys.close()

    def renew_in_child(self) -> None:
        """Start again in a forked child. It uses no key, lease, lock or connection of its parent."""
        self._held_keys.close_in_child()
        self._start()

    def _start(self) -> None:
        """Create all state in memory, at first and in each forked child."""
        self._ring = ring = Ring(self._given)
        self.counters = ring.counters
        self.ledger_keys = ring.ledger_keys
        self.tables, self.destroyer, self.wrappings = ring.tables, ring.destroyer, ring.wrappings
        # The fast paths of sealing and opening read these attributes without another lookup.
        self._clock, self._scope_digests = self._given.clock, ring.scope_digests
        self._confirmation, self._held_keys = ring.confirmation, ring.held_keys
        self._opener, self._sealer = ring.data_keys.opener, ring.data_keys.sealer

    def _sealing_keys(
        self, sealer: Sealer, items_by_scope: Mapping[str, int], *, make: bool
    ) -> dict[str, DataKey]:
        """Return the keys that the fast path does not have."""
        digests = self._scope_digests
        if digests is None:
            return sealer.keys(items_by_scope, make=make)
        self._held_keys.check_open()
        stored = digests.to_seal_for(items_by_scope, make=make)
        found = sealer.keys({stored[scope]: items_by_scope[scope] for scope in stored}, make=make)
        return {scope: found[held] for scope, held in stored.items() if held in found}

    def _for(self, purpose: KeyPurpose) -> KeysOfPurpose:
        if purpose is not KeyPurpose.FIELD:
            raise ConfigurationError(
                f"a keyring returns keys for items and for fields, not for the purpose {purpose!r}",
                remedy="Pass KeyPurpose.DATA or KeyPurpose.FIELD.",
            )
        return self._ring.field_keys

    def __repr__(self) -> str:
        return f"<Keyring of application {self.application!r}: {len(self._held_keys.keys)} keys in memory>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Keyring cannot be pickled or copied. Create one in each process.")

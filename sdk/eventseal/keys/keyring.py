"""The keyring: which key seals, which opens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import ConfigurationError
from eventseal.keys.authentication.checked_store import CheckedStore
from eventseal.keys.authentication.revocations import Revocations
from eventseal.keys.authentication.row_macs import ScopeDigests
from eventseal.keys.concurrency import renew_in_children
from eventseal.keys.lifecycle import KeyLifecycle
from eventseal.keys.policy import BootClock, CachePolicy, Confirmation, RotationPolicy
from eventseal.keys.records import checked_application
from eventseal.keys.rewrap.key_wrappings import KeyUpkeep
from eventseal.keys.ring.destroying import Destroyer
from eventseal.keys.ring.held_keys import Memory
from eventseal.keys.ring.opening import Refresher
from eventseal.keys.ring.parts import KeyringCounters, KeysOfPurpose, Resources
from eventseal.keys.ring.store_key import LedgerKeys, StoreKey
from eventseal.keys.states import KeyPurpose
from eventseal.keys.store import KeyStore
from eventseal.keys.wrapping.branches import Branches, checked_branches
from eventseal.keys.wrapping.keks import Keks
from eventseal.keys.wrapping.unwrapping import Verifier
from eventseal.kms.adapter import KmsAdapter

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import Clock
    from eventseal.keys.ring.parts import Wrapping
    from eventseal.keys.ring.sealing import Sealer
    from eventseal.keys.source import KeySource


class Keyring(KeyLifecycle, KeyUpkeep):
    """
    Decides which key seals, and finds the key that opens. It may be shared by threads, and survives a fork.

    The constructor checks what is local and makes no call. A scope's key is made on first use, exactly one
    however many processes race; keys are unwrapped once and held for a while, as *cache* says.

    Args:
        kms: One KEK or several: the first makes a new key, every one wraps it, any one unwraps it.
        key_store: Holds the wrapped keys.
        application: The application that owns the keys, 1 to 200 bytes of UTF-8.
        policy: When a key stops being the active one.
        cache: How long keys, and what is known of them, are used.
        clock: For intervals; by default one that runs while the machine sleeps.
        branches: Wrap new data keys under this many branch keys, 1 to 4,096, each of which costs one call of
            the KMS; ``None``: the KEKs wrap every data key. It may be changed later: keys keep their branch.
        wrap_quorum: How many of several KEKs must wrap a new key for it to be used; ``None``: all of them.
        fall_back_on_outage: Whether a key is unwrapped under the next KEK if one is unavailable. A KEK that
            is disabled, or denies the call, is never passed over.
        scope_digest: Whether the key tables hold digests in place of the scopes, for those whose ids are
            personal. It holds for an application from its first key on, and is never changed.
        key_tables: The format that the key tables have at least: 2 once `eventseal init` has brought them up
            to date, so that an old copy of all of them is refused.

    Attributes:
        counters: How often the KMS and the key store were asked.

    Raises:
        ConfigurationError: No KEK is given, one is given twice, the application's name is refused, or a
            number is not within its limits.
    """

    counters: KeyringCounters

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
            raise ConfigurationError(f"key_store= is a {type(key_store).__name__}, which is no key store")
        self._application = checked_application(application)
        self._kms = (kms,) if isinstance(kms, KmsAdapter) else tuple(kms)
        self._key_store = key_store
        self._policy = policy or RotationPolicy()
        self._caching = cache or CachePolicy()
        self._clock = clock or BootClock()
        self._branch_count = checked_branches(branches)
        self._wrap_quorum = wrap_quorum
        self._falls_back = fall_back_on_outage
        self._digests_scopes = scope_digest
        self._key_tables = key_tables
        self._start()
        renew_in_children(self)

    @property
    def application(self) -> str:
        """The application that owns every key of this keyring."""
        return self._application

    @property
    def keks(self) -> tuple[KmsAdapter, ...]:
        """The KEKs that this keyring was given, in their order."""
        return self._kms

    def sealing_keys(
        self, items_by_scope: Mapping[str, int], *, make: bool = True, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, DataKey]:
        """
        Give each scope's active key, and count what it is about to seal.

        Args:
            items_by_scope: How many items each scope's key will seal.
            make: Whether keys may be made; ``False`` leaves out a scope without one, and rotates none.
            purpose: ``data`` for items, ``field`` for fields inside them.

        Raises:
            ConfigurationError: A scope's name or the purpose is refused, or *scope_digest* is not what the
                application began with, or the keyring is closed.
            IntegrityError: A key's row is not what a keyring sealed.
            KeyDestroyedError: A scope was closed.
            KeyLimitError: A key has sealed as many items as one key may, and cannot be rotated.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        if purpose is not KeyPurpose.DATA:
            return self._sealing_keys(self._for(purpose).sealer, items_by_scope, make=make)
        memory, digests = self._memory, self._scope_digests
        now = self._clock.now()
        if now <= self._confirmation.seals_until:
            found: dict[str, DataKey] = {}
            for scope, items in items_by_scope.items():
                stored = scope if digests is None else digests.known.get(scope, "")
                cached = memory.active.get(stored)
                if (
                    cached is None
                    or now >= cached.seals_until
                    or cached.key.closed
                    or not cached.lease.take(items)
                ):
                    break
                cached.used = memory.uses
                found[scope] = cached.key
            else:
                memory.uses += 1
                self.counters.hits += len(found)
                return found
        return self._sealing_keys(self._sealer, items_by_scope, make=make)

    def opening_keys(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[UUID, DataKey | EventSealError]:
        """
        Give each key, or why there is none, for every asked-for id.

        An error stands for its key alone: ``KeyNotFoundError``, ``KeyDestroyedError``, ``IntegrityError``,
        ``WrongApplicationError``, ``KekNotConfiguredError`` or a ``KmsError``.

        Args:
            key_ids: As envelopes name them.
            purpose: ``data`` for those of items, ``field`` for those of fields inside them.

        Raises:
            ConfigurationError: The purpose is refused, or the keyring is closed.
            StoreError: The key store refused or failed.
        """
        if purpose is not KeyPurpose.DATA:
            return self._for(purpose).opener.keys(key_ids)
        memory = self._memory
        now = self._clock.now()
        if now <= self._confirmation.opens_until:
            found: dict[UUID, DataKey | EventSealError] = {}
            for key_id in key_ids:
                cached = memory.keys.get(key_id)
                if cached is None or now >= cached.expires or cached.key.closed:
                    break
                cached.used = memory.uses
                found[key_id] = cached.key
            else:
                memory.uses += 1
                self.counters.hits += len(found)
                return found
        return self._opener.keys(key_ids)

    def prepare(self, scopes: Collection[str], *, purpose: KeyPurpose = KeyPurpose.DATA) -> None:
        """
        Make the keys of *scopes* that have none, ahead of a write transaction; raises as ``sealing_keys``.

        Args:
            scopes: Any number; their keys are stored in one transaction.
            purpose: ``data`` for items, ``field`` for fields inside them.
        """
        self.sealing_keys(dict.fromkeys(scopes, 0), purpose=purpose)

    def add_place(self, name: str, collection: str) -> None:
        """
        Note that a place beside the registered tables holds items: no key is retired while it is not counted.

        Raises:
            StoreError: The key store refused or failed.
        """
        self._key_store.add_place(self._application, name, collection)

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """
        Say which items of a scope that was reopened were erased in it before, as :meth:`list_erased` noted.

        Args:
            items: The associated data of each, without the header, and its envelope.

        Raises:
            StoreError: The key store refused or failed.
        """
        digests = self._erased_digests(items)
        found = self._store.find_erased(self._application, digests)
        return [digest in found for digest in digests]

    def list_erased(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """
        Note that items are erased, before their scope is reopened; arguments and errors as above.

        Afterwards anything else that names a destroyed key of the scope is tampering.
        """
        if items:
            self._store.list_erased(self._application, self._erased_digests(items))

    def stored_scope(self, scope: str) -> str:
        """
        Give a scope as keys, tombstones, ledgers and receipts name it: the same, without ``scope_digest``.

        Args:
            scope: As the application has it.

        Raises:
            ConfigurationError: The scope is refused, or the keyring is closed.
            EventSealError: The application's store key does not open, or cannot be made.
        """
        digests = self._scope_digests
        if digests is None:
            return scope
        stored = digests.known.get(scope)
        if stored is None:
            self._memory.check_open()
            stored = digests.of(scope)
        return stored

    def over(self, key_store: KeyStore) -> Keyring:
        """
        Give a keyring of the same application and KEKs over other key tables, such as a backup's.

        Args:
            key_store: Has the tables, of this release or an earlier one.
        """
        return Keyring(
            self._kms,
            key_store,
            application=self._application,
            cache=self._caching,
            clock=self._clock,
            fall_back_on_outage=self._falls_back,
            scope_digest=self._digests_scopes,
        )

    def refresh(self) -> None:
        """
        Look at once for keys whose state changed, instead of within ``refresh_interval``.

        Raises:
            IntegrityError: The change mark, or the root of the revocation tree, is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        self._refresher.refresh()
        self._branch_keys.opener.look_again()
        self._field_keys.opener.look_again()
        self._opener.look_again()

    def close(self) -> None:
        """Close every handle and forget every key; the keyring gives none afterwards."""
        self._memory.close()

    def renew_in_child(self) -> None:
        """Start anew in a forked child: no key, lease, lock or connection of the parent's is used there."""
        self._memory.close_in_child()
        self._start()

    def _start(self) -> None:
        """Make everything that remembers, at first and in every forked child."""
        self.counters = KeyringCounters()
        self._confirmation = Confirmation(self._caching, self._policy)
        self._memory = memory = Memory(self._caching, self._confirmation)
        revocations = Revocations(
            self._application,
            self._key_store,
            memory,
            key_tables=self._key_tables,
            count_query=self.counters.count_store_query,
        )
        self._store = CheckedStore(self._key_store, self.counters, revocations, self._seals)
        self._keks = Keks(
            self._kms,
            counters=self.counters,
            quorum=self._wrap_quorum,
            fall_back_on_outage=self._falls_back,
            clock=self._clock,
            verifier=Verifier(self._store),
        )
        self._ledger_keys = LedgerKeys(self._application, self._keks)
        # The keyring's own counters do not count hits and misses of branch keys.
        by_keks = self._resources(KeyPurpose.BRANCH, self._keks, KeyringCounters())
        self._store_key = StoreKey(by_keks, scope_digest=self._digests_scopes)
        self._scope_digests = (
            ScopeDigests(self._store_key, self._caching.max_keys) if self._digests_scopes else None
        )
        self._refresher = Refresher(by_keks, memory, self._confirmation, self._store_key)
        self._destroyer = Destroyer(by_keks, memory, self._store_key, self._refresher)
        self._branch_keys = self._keys_of(by_keks)
        self._branches = Branches(
            self._branch_count,
            self._keks,
            sealer=self._branch_keys.sealer,
            opener=self._branch_keys.opener,
        )
        by_branches = self._resources(KeyPurpose.DATA, self._branches, self.counters)
        self._data_keys = self._keys_of(by_branches)
        self._opener, self._sealer = self._data_keys.opener, self._data_keys.sealer
        self._field_keys = self._keys_of(self._resources(KeyPurpose.FIELD, self._branches, self.counters))

    def _sealing_keys(
        self, sealer: Sealer, items_by_scope: Mapping[str, int], *, make: bool
    ) -> dict[str, DataKey]:
        """Give the keys that the fast path has not."""
        digests = self._scope_digests
        if digests is None:
            return sealer.keys(items_by_scope, make=make)
        self._memory.check_open()
        stored = digests.to_seal_for(items_by_scope, make=make)
        found = sealer.keys({stored[scope]: items_by_scope[scope] for scope in stored}, make=make)
        return {scope: found[held] for scope, held in stored.items() if held in found}

    def _seals(self) -> Seals | None:
        return self._store_key.seals()

    def _erased_digests(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        seals = self._store_key.made_seals()
        return [seals.erased_digest(place, envelope) for place, envelope in items]

    def _for(self, purpose: KeyPurpose) -> KeysOfPurpose:
        if purpose is not KeyPurpose.FIELD:
            raise ConfigurationError(
                f"a keyring gives keys for items and for fields, not of purpose {purpose!r}",
                remedy="Ask for KeyPurpose.DATA or KeyPurpose.FIELD.",
            )
        return self._field_keys

    def _keys_of(self, resources: Resources) -> KeysOfPurpose:
        return KeysOfPurpose(
            resources,
            self._memory,
            self._store_key,
            refresher=self._refresher,
            destroyer=self._destroyer,
        )

    def _resources(self, purpose: KeyPurpose, wrapping: Wrapping, counters: KeyringCounters) -> Resources:
        return Resources(
            application=self._application,
            purpose=purpose,
            wrapping=wrapping,
            store=self._store,
            rotation=self._policy,
            caching=self._caching,
            clock=self._clock,
            counters=counters,
        )

    def __repr__(self) -> str:
        return f"<Keyring of application {self._application!r}: {len(self._memory.keys)} keys in memory>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Keyring is neither pickled nor copied; make one in each process")


if TYPE_CHECKING:
    _: type[KeySource] = Keyring

"""The keyring: which key seals, which opens, and what becomes of keys."""

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
        keks: The KEKs that this keyring was given, in their order.
        counters: How often the KMS and the key store were asked.
        ledger_keys: Makes and opens the keys of erasure ledgers, which are kept outside of the key store.
        tables: What its key tables say beside which keys seal and open.
        destroyer: Ends keys.
        wrappings: Goes through the wrappings of all keys.

    Raises:
        ConfigurationError: No KEK is given, one is given twice, the application's name is refused, or a
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
            raise ConfigurationError(f"key_store= is a {type(key_store).__name__}, which is no key store")
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
        Make the keys of *scopes* that have none, ahead of a write transaction; raises as ``sealing_keys``.

        Args:
            scopes: Any number; their keys are stored in one transaction.
            purpose: ``data`` for items, ``field`` for fields inside them.
        """
        self.sealing_keys(dict.fromkeys(scopes, 0), purpose=purpose)

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
            KmsError, StoreError: The KMS or the key store refused or failed; the old key stays active.
        """
        return self._ring.data_keys.rotate_one(self.tables.stored_scope(scope), compromised=compromised)

    def rotate_many(
        self, scopes: Collection[str], *, compromised: bool = False
    ) -> dict[str, Rotated | EventSealError]:
        """
        Rotate the keys of many scopes as :meth:`rotate` does, with as few calls of the KMS as it allows.

        Args:
            scopes: A few hundred at a time, whose keys are wrapped together, and not held.
            compromised: Whether the old keys' items must be encrypted again.

        Returns:
            By scope the old key and the row of the new one, or why this scope was not rotated:
            ``KeyDestroyedError`` or ``IntegrityError``.

        Raises:
            ConfigurationError, KmsError, StoreError: As :meth:`rotate`; what was rotated before stays so.
        """
        self._held_keys.check_open()
        stored = {scope: self.tables.stored_scope(scope) for scope in scopes}
        rotated = self._ring.data_keys.rotate(dict.fromkeys(stored.values()), compromised=compromised)
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
            KeyDestroyedError, KeyNotFoundError: A key was destroyed, or there is none; nothing was done.
            EventSealError: As :meth:`rotate` raises; keys that were not replaced yet are active still.
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
        Destroy every key of a scope, so that nothing of it is ever opened again, and close the scope.

        Nobody seals for a closed scope until it is reopened. :func:`eventseal.erasure.shred` does this and
        closes the fences too, so that no stale writer's item is written unreadable.

        Args:
            scope: One that has had a key. Shredded again, it stays closed, or is closed again.
            before_commit: Called with every key that the scope ever had, before one is destroyed; what it
                raises keeps them. Called again if one of them changed meanwhile.
            even_default: Whether the scope may be ``application``, which is everybody's.
            dry_run: Whether only to read what would be destroyed.

        Raises:
            ConfigurationError: No key of the scope was ever made, it is ``application``, its name is refused,
                or the keyring is closed.
            IntegrityError: A row of the scope, or the change mark, is not what a keyring sealed; nothing was
                destroyed.
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
        Wrap every live key where it should be, and drop what that makes superfluous. No item is touched.

        Each key gets a wrapping under the newest version of every KEK of this keyring, those included that it
        misses; older versions' wrappings go. With *to* it ends under that KEK alone. Data keys under branch
        keys are wrapped under their branch's active key. Run again, it goes on where it stopped.

        An old wrapping goes in the run that has unwrapped the new one. That is the run which makes it, where
        keys must be unwrapped anyway and the KEK is one of its own, and with *verify*; else a later one, once
        the rows say that a process which opens keys has unwrapped it.

        Args:
            to: The only KEK that is to remain; it need not be one of this keyring's.
            batch: Keys read, and at most wrapped in one call, at a time.
            dry_run: Whether only to count; a KEK is asked for nothing but its newest version.
            verify: Whether to unwrap every wrapping that stays, under a KEK or a branch key, and to check the
                rows of destroyed keys: whoever ends a KEK afterwards relies on it. It takes the right to
                unwrap, and one run is enough then.
            progress: Called after each batch.

        Raises:
            ConfigurationError: The keyring is closed, or *to* or *batch* is refused.
            IntegrityError: The store key's row is not what a keyring sealed.
            KmsError, StoreError: A KEK or the key store refused or failed; what was done before stays.
        """
        return self.wrappings.rewrap(to, batch=batch, dry_run=dry_run, verify=verify, progress=progress)

    def rotate_branches(self, *, compromised: bool = False) -> list[KeyRecord]:
        """
        Give every branch, an earlier one too, a new key; the old ones unwrap what they have wrapped.

        Args:
            compromised: Whether the data keys under the old ones must be wrapped, and items encrypted, again.

        Returns:
            The rows of the new branch keys.

        Raises:
            ConfigurationError: The keyring has no branches, and never had, or is closed.
            EventSealError: As :meth:`Keyring.rotate` raises; the branches before stay rotated.
        """
        return self.wrappings.rotate_branches(compromised=compromised)

    def add_place(self, name: str, collection: str) -> None:
        """Note that a place holds items, as :meth:`KeySource.add_place` has it."""
        self._given.key_store.add_place(self.application, name, collection)

    def are_listed_as_erased(self, items: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        """Say which items were erased before, as :meth:`KeySource.are_listed_as_erased` has it."""
        return self.tables.are_listed_as_erased(items)

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
            self._held_keys.check_open()
            stored = digests.of(scope)
        return stored

    def over(self, key_store: KeyStore) -> Keyring:
        """Give a keyring of the same application and KEKs over other key tables, such as a backup's."""
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
        Look at once for keys whose state changed, instead of within ``refresh_interval``.

        Raises:
            IntegrityError, StoreError: The change mark or the revocation tree was edited, or was not read.
        """
        self._ring.refresher.refresh()
        self._ring.branch_keys.opener.look_again()
        self._ring.field_keys.opener.look_again()
        self._opener.look_again()

    def close(self) -> None:
        """Close every handle and forget every key; the keyring gives none afterwards."""
        self._held_keys.close()

    def renew_in_child(self) -> None:
        """Start anew in a forked child: no key, lease, lock or connection of the parent's is used there."""
        self._held_keys.close_in_child()
        self._start()

    def _start(self) -> None:
        """Make everything that remembers, at first and in every forked child."""
        self._ring = ring = Ring(self._given)
        self.counters = ring.counters
        self.ledger_keys = ring.ledger_keys
        self.tables, self.destroyer, self.wrappings = ring.tables, ring.destroyer, ring.wrappings
        # What the fast paths of sealing and opening need is at hand.
        self._clock, self._scope_digests = self._given.clock, ring.scope_digests
        self._confirmation, self._held_keys = ring.confirmation, ring.held_keys
        self._opener, self._sealer = ring.data_keys.opener, ring.data_keys.sealer

    def _sealing_keys(
        self, sealer: Sealer, items_by_scope: Mapping[str, int], *, make: bool
    ) -> dict[str, DataKey]:
        """Give the keys that the fast path has not."""
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
                f"a keyring gives keys for items and for fields, not of purpose {purpose!r}",
                remedy="Ask for KeyPurpose.DATA or KeyPurpose.FIELD.",
            )
        return self._ring.field_keys

    def __repr__(self) -> str:
        return f"<Keyring of application {self.application!r}: {len(self._held_keys.keys)} keys in memory>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Keyring is neither pickled nor copied; make one in each process")

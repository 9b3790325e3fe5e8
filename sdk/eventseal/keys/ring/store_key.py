"""The store key, which authenticates rows, and the keys of erasure ledgers."""

from __future__ import annotations

import hmac
from dataclasses import replace
from hashlib import sha512
from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, KmsError
from eventseal.keys.authentication.row_checks import store_key_deleted
from eventseal.keys.authentication.row_macs import RESTORE_STORE_KEY, Seals, check_readable
from eventseal.keys.concurrency import SingleFlight
from eventseal.keys.data_key import binding_of
from eventseal.keys.records import DIGEST_STORE_SCOPE, STORE_SCOPE, new_record
from eventseal.keys.states import KeyPurpose, KeyState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.claims import Claims
    from eventseal.keys.ring.held_keys import HeldKeys
    from eventseal.keys.store import KeyStore
    from eventseal.keys.wrapping.keks import Keks
    from eventseal.kms.adapter import KmsAdapter, WrappedKey


class StoreKey:
    """
    Finds or creates the application's store key, once in a process.

    It keeps keys that are derived from the store key, only for MACs. No item opens under them, so they have
    no time to live.

    Args:
        store: Has the row of the store key. Only this class checks that row, with the bytes that the KEKs
            unwrapped.
        keks: The KEKs that wrap the store key. A branch key never wraps it, because the store key
            authenticates the branch keys.
        claims: Lets one process create the key while the others wait.
        scope_digest: Whether the application's scopes are stored as digests. The store key's row says so from
            the application's first key. A process with a different setting gets an error.

    Attributes:
        known: The result of :meth:`seals`, once it is known.
    """

    def __init__(
        self, application: str, store: KeyStore, keks: Keks, claims: Claims, *, scope_digest: bool
    ) -> None:
        self._application = application
        self._store = store
        self._keks = keks
        self._claims = claims
        self._scope = DIGEST_STORE_SCOPE if scope_digest else STORE_SCOPE
        # There is no time to live, because a refusal to unwrap it again would stop every refresh
        # (docs/decisions/0006).
        self.known: Seals | None = None
        self._flight: SingleFlight[str, Seals] = SingleFlight()

    def seals(self) -> Seals | None:
        """
        Return the application's MACs, or ``None`` if it has no store key.

        Without a store key, it has no key at all.

        Raises:
            ConfigurationError: The application's scopes are stored as digests but this process has a
                different setting, or the reverse.
            IntegrityError: The store key's row is not authentic.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        return self.known or self._found(make=False)

    def made_seals(self) -> Seals:
        """Return the application's MACs. A missing store key is created. Raises as :meth:`seals`."""
        seals = self.known
        while seals is None:
            seals = self._found(make=True)
        return seals

    def _found(self, *, make: bool) -> Seals | None:
        loaded, awaited = self._flight.run([STORE_SCOPE], lambda _: self._load(make=make))
        for outcome in (*loaded.values(), *awaited.values()):
            if isinstance(outcome, EventSealError):
                raise outcome
        return self.known

    def _load(self, *, make: bool) -> dict[str, Seals]:
        if self.known is None:
            record = self._record()
            if record is None and make and self._has_mark():
                record = self._record()  # another process created it in the meantime, or it was deleted
                if record is None:
                    raise store_key_deleted(self._application)
            if record is not None:
                self.known = self._opened(record)
            elif make:
                self.known = self._made_once()
        return {} if self.known is None else {STORE_SCOPE: self.known}

    def _record(self) -> KeyRecord | None:
        found = self._store.active(self._application, [STORE_SCOPE], purpose=KeyPurpose.STORE)
        return found.get(STORE_SCOPE)

    def _has_mark(self) -> bool:
        # The mark is stored together with the store key (docs/decisions/0001). A second store key would only
        # prevent the repair of the first.
        return self._store.changes(self._application, -1, []) is not None

    def _made_once(self) -> Seals | None:
        """Create the store key. Return ``None`` if another process has just created it."""
        slot = {STORE_SCOPE: b""}
        if not self._claims.take(KeyPurpose.STORE, slot, is_filled=lambda: self._record() is not None):
            return None
        try:
            return self._made()
        except BaseException:
            self._claims.release(KeyPurpose.STORE, slot)
            raise

    def _made(self) -> Seals:
        record = new_record(self._application, self._scope, KeyPurpose.STORE, leased=0)
        record = replace(record, active_scope=STORE_SCOPE)
        ((key, wrappings),) = self._keks.generate([record])
        seals = Seals(key)
        record = seals.sealed(replace(record, binding=binding_of(key), wrappings=wrappings))
        key.close()
        kept = self._store.add_active([record], mark=seals.first_mark())[STORE_SCOPE]
        return seals if kept.key_id == record.key_id else self._opened(kept)

    def _opened(self, record: KeyRecord) -> Seals:
        check_readable(record)
        (key,) = self._keks.unwrap([record])
        if isinstance(key, EventSealError):
            raise key
        seals = Seals(key)
        key.close()
        seals.check(record)
        _check_place(record, self._application)
        self._check_scope(record)
        return seals

    def _check_scope(self, record: KeyRecord) -> None:
        """
        Refuse to store scopes in two forms.

        A scope that was shredded in one form would remain in the other.
        """
        # This is permanent: no unique index covers both forms of a scope (docs/decisions/0015).
        if record.scope == self._scope:
            return
        application = self._application
        if record.scope == DIGEST_STORE_SCOPE:
            raise ConfigurationError(
                f"the scopes of application {application!r} have been stored as digests since its first key",
                remedy="Set scope_digest to true for this application, in every process.",
            )
        raise ConfigurationError(
            f"scope_digest is set, but the scopes of application {application!r} have been stored "
            "without digests since its first key",
            remedy="Omit scope_digest for this application. To use digests, create a new application, and "
            "copy the events into it.",
        )


def _check_place(record: KeyRecord, application: str) -> None:
    place = (record.application, record.active_scope, record.purpose, record.state)
    scopes = {STORE_SCOPE, DIGEST_STORE_SCOPE}
    if place != (application, STORE_SCOPE, KeyPurpose.STORE, KeyState.ACTIVE) or record.scope not in scopes:
        raise IntegrityError(
            f"key {record.key_id} is in the place of the store key of application {application!r}, "
            f"but is a {record.state} key of purpose {record.purpose} of application {record.application!r}",
            remedy=RESTORE_STORE_KEY,
            key_id=record.key_id,
        )


LEDGER_SCOPE = "ledger"
MAC_SIZE = 32
_INFO = b"eventseal/v1/erasure ledger"
_HMAC_KEY_SIZE = 64


class LedgerKey:
    """
    Authenticates the entries of one ledger.

    Args:
        key: The unwrapped key. One key is derived from it, and the handle is not kept.

    Attributes:
        key_id: The id of the key, which is also the id of the ledger.
    """

    __slots__ = ("_key", "key_id")

    def __init__(self, key: DataKey) -> None:
        self.key_id: UUID = key.key_id
        self._key = key.derive(_INFO, _HMAC_KEY_SIZE)

    def mac(self, message: bytes) -> bytes:
        """Return 32 bytes of HMAC-SHA-512 over *message*."""
        return hmac.digest(self._key, message, sha512)[:MAC_SIZE]

    def authenticates(self, message: bytes, mac: bytes) -> bool:
        """Return whether *mac* is the MAC of *message*, in constant time."""
        return hmac.compare_digest(self.mac(message), mac)

    def __repr__(self) -> str:
        return f"<LedgerKey {self.key_id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LedgerKey holds a key and cannot be pickled or copied")


class LedgerKeys:
    """
    Creates and opens the keys of an application's ledgers.

    The KEKs bind them to the purpose ``ledger``.

    Args:
        application: The application that owns the ledgers.
        keks: The KEKs wrap and unwrap the keys. A branch key never does, because branch keys are in the key
            tables.
        held_keys: Knows whether the keyring is closed. A closed keyring returns no ledger key.
    """

    def __init__(self, application: str, keks: Keks, held_keys: HeldKeys) -> None:
        self._application = application
        self._keks = keks
        self._held_keys = held_keys

    def new(self) -> tuple[LedgerKey, KeyRecord]:
        """
        Create a key.

        Returns:
            The key, and a record of everything that must be stored: its id, its binding and its wrappings.

        Raises:
            ConfigurationError: The keyring is closed.
            KmsError: Too few KEKs wrapped the key.
        """
        self._held_keys.check_open()
        record = new_record(self._application, LEDGER_SCOPE, KeyPurpose.LEDGER, leased=0)
        ((key, wrappings),) = self._keks.generate([record])
        record = replace(record, binding=binding_of(key), wrappings=wrappings)
        return _derived(key), record

    def open(self, record: KeyRecord) -> LedgerKey:
        """
        Unwrap a key.

        Args:
            record: A record with the stored binding and wrappings.

        Raises:
            ConfigurationError: The keyring is closed.
            IntegrityError: A wrapping was changed, or holds another key.
            KekNotConfiguredError: None of the wrappings is under a KEK of the keyring.
            KmsError: A KEK refused or failed.
        """
        return _derived(self._unwrapped(record))

    def rewrapped(self, record: KeyRecord, targets: Sequence[KmsAdapter] | None = None) -> KeyRecord:
        """
        Wrap a key again.

        Args:
            record: A record with at least one wrapping that opens.
            targets: The KEKs that will wrap the key. With ``None``, these are all KEKs of the keyring.

        Returns:
            The record with only the new wrappings.

        Raises:
            EventSealError: As :meth:`open` raises. Or a target did not wrap the key, or did not unwrap it
                again.
        """
        key = self._unwrapped(record)
        wrappings = []
        try:
            for adapter in self._keks.adapters if targets is None else targets:
                (outcome,) = self._keks.calls.wrap(adapter, [key])
                if isinstance(outcome, EventSealError):
                    raise outcome
                self._check_opens(adapter, record, outcome)
                wrappings.append(outcome)
        finally:
            key.close()
        if not wrappings:
            raise KmsError("no KMS key is given to wrap the ledger's key")
        return replace(record, wrappings=tuple(wrappings))

    def _check_opens(self, adapter: KmsAdapter, record: KeyRecord, wrapped: WrappedKey) -> None:
        """Unwrap a new wrapping. Anyone who deletes the old KEK depends on this check."""
        (again,) = self._keks.calls.unwrap(adapter, [(record, wrapped)])
        if isinstance(again, EventSealError):
            raise again
        again.close()

    def _unwrapped(self, record: KeyRecord) -> DataKey:
        self._held_keys.check_open()
        # All wrappings count as verified, because the key store has no row to record which one was unwrapped.
        (key,) = self._keks.unwrap([replace(record, verified=frozenset(record.wrappings))])
        if isinstance(key, EventSealError):
            raise key
        return key


def _derived(key: DataKey) -> LedgerKey:
    try:
        return LedgerKey(key)
    finally:
        key.close()

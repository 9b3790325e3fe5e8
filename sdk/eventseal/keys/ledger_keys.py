"""The keys of erasure ledgers: they authenticate entries, and live outside of the key store."""

from __future__ import annotations

import hmac
from dataclasses import replace
from hashlib import sha512
from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import EventSealError, KmsError
from eventseal.keys.making import new_record
from eventseal.keys.seals import binding_of
from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.wrapping import Keks
    from eventseal.kms.adapter import KmsAdapter, WrappedKey

LEDGER_SCOPE = "ledger"
MAC_SIZE = 32
_INFO = b"eventseal/v1/erasure ledger"
_HMAC_KEY_SIZE = 64


class LedgerKey:
    """
    Authenticates the entries of one ledger.

    Args:
        key: What a KEK unwrapped; one key is derived from it, and the handle is not kept.

    Attributes:
        key_id: The key's, which is the ledger's too.
    """

    __slots__ = ("_key", "key_id")

    def __init__(self, key: DataKey) -> None:
        self.key_id: UUID = key.key_id
        self._key = key.derive(_INFO, _HMAC_KEY_SIZE)

    def mac(self, message: bytes) -> bytes:
        """Give 32 bytes of HMAC-SHA-512 over *message*."""
        return hmac.digest(self._key, message, sha512)[:MAC_SIZE]

    def authenticates(self, message: bytes, mac: bytes) -> bool:
        """Whether *mac* is that of *message*; compared in constant time."""
        return hmac.compare_digest(self.mac(message), mac)

    def __repr__(self) -> str:
        return f"<LedgerKey {self.key_id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a LedgerKey holds a key and is neither pickled nor copied")


class LedgerKeys:
    """
    Makes and opens the keys of an application's ledgers; bound by the KEKs to purpose ``ledger``.

    Args:
        application: Whose.
        keks: Wrap and unwrap the keys, never under a branch key: that is in the key tables.
    """

    def __init__(self, application: str, keks: Keks) -> None:
        self._application = application
        self._keks = keks

    def new(self) -> tuple[LedgerKey, KeyRecord]:
        """
        Make a key.

        Returns:
            The key, and what must be kept of it: its id, its binding and its wrappings.

        Raises:
            KmsError: Too few KEKs wrapped it.
        """
        record = new_record(self._application, LEDGER_SCOPE, KeyPurpose.LEDGER, leased=0)
        ((key, wrappings),) = self._keks.generate([record])
        record = replace(record, binding=binding_of(key), wrappings=wrappings)
        return _derived(key), record

    def open(self, record: KeyRecord) -> LedgerKey:
        """
        Unwrap a key.

        Args:
            record: With the binding and the wrappings that were kept.

        Raises:
            IntegrityError: A wrapping was changed, or holds another key.
            KekNotConfiguredError: None of the wrappings is under a KEK of the keyring's.
            KmsError: A KEK refused or failed.
        """
        return _derived(self._unwrapped(record))

    def rewrapped(self, record: KeyRecord, targets: Sequence[KmsAdapter] | None = None) -> KeyRecord:
        """
        Wrap a key anew.

        Args:
            record: With wrappings of which one opens.
            targets: The KEKs that are to wrap it; ``None``: all of the keyring's.

        Returns:
            The record with the new wrappings alone.

        Raises:
            EventSealError: As for :meth:`open`; or a target did not wrap it, or not unwrap it again.
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
            raise KmsError("no KEK is named that is to wrap the ledger's key")
        return replace(record, wrappings=tuple(wrappings))

    def _check_opens(self, adapter: KmsAdapter, record: KeyRecord, wrapped: WrappedKey) -> None:
        """Unwrap what was just wrapped: whoever drops the old KEK relies on it."""
        (again,) = self._keks.calls.unwrap(adapter, [(record, wrapped)])
        if isinstance(again, EventSealError):
            raise again
        again.close()

    def _unwrapped(self, record: KeyRecord) -> DataKey:
        # As if all were verified: the key store has no row that could be told which one has opened.
        (key,) = self._keks.unwrap([replace(record, verified=frozenset(record.wrappings))])
        if isinstance(key, EventSealError):
            raise key
        return key


def _derived(key: DataKey) -> LedgerKey:
    try:
        return LedgerKey(key)
    finally:
        key.close()

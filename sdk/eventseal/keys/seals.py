"""What ties a key's bytes to its row, and a row and the change mark to the store key. No I/O."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from dataclasses import replace
from hashlib import sha256, sha512
from typing import TYPE_CHECKING, NoReturn

from eventseal.errors import IntegrityError
from eventseal.keys.records import ChangeMark
from eventseal.suites.framing import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord, Revocation

BINDING_SIZE = 32
SEAL_SIZE = 32
REVOKED_SIZE = 64
_MODULUS = 1 << 8 * REVOKED_SIZE
_HMAC_KEY_SIZE = 64


def binding_of(key: DataKey) -> bytes:
    """
    Tie a key's bytes to its id, application, purpose and scope.

    Returns:
        32 bytes: HKDF-SHA-512, salted with the id, the other three length-prefixed in its info.
    """
    names = (key.application, key.purpose, key.scope)
    info = b"eventseal/v1/binding" + length_prefixed(*[name.encode() for name in names])
    return key.derive(info, BINDING_SIZE)


def is_bound(key: DataKey, record: KeyRecord) -> bool:
    """Whether *key*, unwrapped for *record*, is the one that it was made for; compared in constant time."""
    return hmac.compare_digest(binding_of(key), record.binding)


def check_readable(record: KeyRecord) -> None:
    """
    Refuse a record that stands for a row which somebody made unreadable.

    Raises:
        IntegrityError: A column holds what none of its kind does.
    """
    if record.unreadable:
        raise IntegrityError(
            f"the row of key {record.key_id} was edited: its {', '.join(record.unreadable)} cannot be read",
            remedy="Find out who changed the key tables, and restore this row from a backup.",
            key_id=record.key_id,
        )


class Seals:
    """
    Seals and checks the key tables of one application under its store key.

    Args:
        store_key: Five keys are derived from it; the handle itself is not kept.
    """

    __slots__ = (
        "_application",
        "_epoch_key",
        "_mark_key",
        "_revoked_key",
        "_row_key",
        "_scope_key",
        "key_id",
    )

    def __init__(self, store_key: DataKey) -> None:
        self.key_id = store_key.key_id
        self._application = store_key.application
        self._row_key = store_key.derive(b"eventseal/v1/row seal", _HMAC_KEY_SIZE)
        self._revoked_key = store_key.derive(b"eventseal/v1/revoked", _HMAC_KEY_SIZE)
        self._mark_key = store_key.derive(b"eventseal/v1/change mark", _HMAC_KEY_SIZE)
        self._epoch_key = store_key.derive(b"eventseal/v1/epoch", _HMAC_KEY_SIZE)
        self._scope_key = store_key.derive(b"eventseal/v1/scope digest", _HMAC_KEY_SIZE)

    def sealed(self, record: KeyRecord) -> KeyRecord:
        """Give *record* with the seal that belongs to it."""
        return replace(record, seal=self._row_seal(record))

    def check(self, record: KeyRecord) -> None:
        """
        Check a row's seal.

        Raises:
            IntegrityError: The row is not what a keyring sealed.
        """
        check_readable(record)
        if not hmac.compare_digest(self._row_seal(record), record.seal):
            raise IntegrityError(
                f"the row of key {record.key_id} does not match its seal: it was edited",
                remedy="Find out who changed the key tables, and restore this row from a backup.",
                key_id=record.key_id,
            )

    def first_mark(self) -> ChangeMark:
        """Make the mark that is stored together with the store key."""
        return self._sealed_mark(0, bytes(REVOKED_SIZE))

    def next_mark(
        self, mark: ChangeMark, *, added: Iterable[Revocation] = (), removed: Iterable[Revocation] = ()
    ) -> ChangeMark:
        """
        Check *mark* and give the one that follows it.

        Args:
            mark: As the store holds it locked.
            added: What this change revokes.
            removed: What was revoked before, and is not any more, or in another way.

        Raises:
            IntegrityError: *mark* is not what a keyring sealed.
        """
        self.check_mark(mark)
        total = self.set_hash(int.from_bytes(mark.revoked), added=added, removed=removed)
        return self._sealed_mark(mark.counter + 1, total.to_bytes(REVOKED_SIZE))

    def check_mark(self, mark: ChangeMark) -> None:
        """
        Check a change mark's seal.

        Raises:
            IntegrityError: The mark is not what a keyring sealed.
        """
        if not hmac.compare_digest(self._mark_seal(mark), mark.seal):
            raise IntegrityError(
                f"the change mark of {self._application!r} does not match its seal: it was edited",
                remedy="Find out who changed the key tables, and restore key_changes from a backup.",
            )

    def epoch_seal(self, *parts: bytes) -> bytes:
        """Give the seal of the application's row in ``epochs``: 32 bytes of HMAC over the row's *parts*."""
        sealed = length_prefixed(self._application.encode(), *parts)
        return hmac.digest(self._epoch_key, sealed, sha512)[:SEAL_SIZE]

    def fits_epoch(self, seal: bytes, *parts: bytes) -> bool:
        """Whether *seal* is that of a row in ``epochs``; compared in constant time."""
        return hmac.compare_digest(self.epoch_seal(*parts), seal)

    def scope_digest(self, scope: str) -> str:
        """Give what stands for a scope where scopes are personal: 32 bytes of HMAC in base64url, unpadded."""
        digest = hmac.digest(self._scope_key, scope.encode(), sha256)
        return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    def set_hash(
        self, total: int = 0, *, added: Iterable[Revocation], removed: Iterable[Revocation] = ()
    ) -> int:
        """
        Sum the keyed hashes of revocations, modulo 2**512: the same for any order.

        Args:
            total: The sum so far.
            added: Those that are not in it.
            removed: Those that are.
        """
        change = sum(map(self._hash, added)) - sum(map(self._hash, removed))
        return (total + change) % _MODULUS

    def _hash(self, revocation: Revocation) -> int:
        # Told apart, so that the row of a compromised key does not stand in for the tombstone of its erasure.
        suffix = b"shredded" if revocation.how == "shredded" else b""
        return int.from_bytes(hmac.digest(self._revoked_key, revocation.key_id.bytes + suffix, sha512))

    def _row_seal(self, record: KeyRecord) -> bytes:
        sealed = length_prefixed(
            record.key_id.bytes,
            record.application.encode(),
            record.purpose.encode(),
            record.scope.encode(),
            (record.active_scope or "").encode(),  # no scope is empty, so "" is None and nothing else
            record.state.encode(),
            (record.destroyed_by or "").encode(),
            record.row_version.to_bytes(8, signed=True),  # an edited one may be negative
            record.binding,
        )
        return hmac.digest(self._row_key, sealed, sha512)[:SEAL_SIZE]

    def _sealed_mark(self, counter: int, revoked: bytes) -> ChangeMark:
        mark = ChangeMark(application=self._application, counter=counter, revoked=revoked, seal=b"")
        return replace(mark, seal=self._mark_seal(mark))

    def _mark_seal(self, mark: ChangeMark) -> bytes:
        sealed = length_prefixed(
            mark.application.encode(), mark.counter.to_bytes(8, signed=True), mark.revoked
        )
        return hmac.digest(self._mark_key, sealed, sha512)[:SEAL_SIZE]

    def __repr__(self) -> str:
        return f"<Seals of {self._application!r} under store key {self.key_id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Seals hold keys and are neither pickled nor copied")

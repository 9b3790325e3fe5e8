"""What ties keys, rows, the change mark and scope digests to the store key. No I/O."""

from __future__ import annotations

import hmac
import threading
from base64 import urlsafe_b64encode
from dataclasses import replace
from hashlib import sha256, sha512
from typing import TYPE_CHECKING, Any, NoReturn

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.keys.records import MAX_SCOPE_BYTES, ChangeMark, checked_scope
from eventseal.keys.revocation_tree import SCOPE_NAME_SIZE, node_digest
from eventseal.keys.states import KeyPurpose
from eventseal.suites.hkdf import canonical_json, length_prefixed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.revocation_tree import HowRevoked
    from eventseal.keys.ring.store_key import StoreKey


SEAL_SIZE = 32
_OLD_REVOKED_SIZE = 64
_OLD_MODULUS = 1 << 8 * _OLD_REVOKED_SIZE
_HMAC_KEY_SIZE = 64
_MOST_NAMES = 65_536
_INFOS = (
    b"eventseal/v1/row seal",
    b"eventseal/v2/revocation tree",
    b"eventseal/v2/change mark",
    b"eventseal/v1/revoked",
    b"eventseal/v1/change mark",
    b"eventseal/v1/epoch",
    b"eventseal/v1/scope digest",
    b"eventseal/v1/receipt",
)


SHREDS = (KeyPurpose.STORE, "shreds")
"""The entry of the revocation tree whose number counts shreds: of a scope that no key can have."""


def check_readable(record: KeyRecord) -> None:
    """
    Refuse a record that stands for a row which somebody made unreadable.

    Raises:
        IntegrityError: A column holds what none of its kind does.
    """
    if record.unreadable:
        raise unreadable_row(record)


def unreadable_row(record: KeyRecord) -> IntegrityError:
    """Say which row was made unreadable, and what of it."""
    has_id = "key_id" not in record.unreadable
    whose = f"key {record.key_id}" if has_id else f"a key of scope {record.scope!r}"
    return IntegrityError(
        f"the row of {whose} was edited: its {', '.join(record.unreadable)} cannot be read",
        remedy="Find out who changed the key tables, and restore this row from a backup.",
        key_id=record.key_id if has_id else None,
    )


def is_sealed(seals: Seals, record: KeyRecord) -> bool:
    """Whether a row is as a keyring sealed it."""
    try:
        seals.check(record)
    except IntegrityError:
        return False
    return True


class Seals:
    """
    Seals and checks the key tables of one application under its store key.

    Args:
        store_key: Eight keys are derived from it; the handle itself is not kept.
    """

    __slots__ = (
        "_application",
        "_epoch_key",
        "_mark_key",
        "_names",
        "_old_mark_key",
        "_old_revoked_key",
        "_receipt_key",
        "_row_key",
        "_scope_key",
        "_tree_key",
        "key_id",
    )

    def __init__(self, store_key: DataKey) -> None:
        self.key_id = store_key.key_id
        self._names: dict[tuple[KeyPurpose, str], bytes] = {}
        self._application = store_key.application
        keys = store_key.derive_all(_INFOS, _HMAC_KEY_SIZE)
        self._row_key, self._tree_key, self._mark_key, self._old_revoked_key = keys[:4]
        self._old_mark_key, self._epoch_key, self._scope_key, self._receipt_key = keys[4:]

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
        return self._sealed_mark(0, node_digest(b""))

    def next_mark(self, mark: ChangeMark, root: bytes | None = None) -> ChangeMark:
        """
        Give the mark that follows *mark*, which was checked.

        Args:
            mark: As the store holds it locked.
            root: The new content of the revocation tree's root; ``None``: it stays.
        """
        revoked = mark.revoked if root is None else node_digest(root)
        return self._sealed_mark(mark.counter + 1, revoked)

    def check_mark(self, mark: ChangeMark) -> None:
        """
        Check a change mark's seal.

        Raises:
            IntegrityError: The mark is not what a keyring sealed, or of the format before the
                revocation tree.
        """
        if not hmac.compare_digest(self._mark_seal(self._mark_key, mark), mark.seal):
            raise IntegrityError(
                f"the change mark of {self._application!r} does not match its seal: it was edited",
                remedy="Find out who changed the key tables, and restore key_changes from a backup.",
            )

    def is_old(self, mark: ChangeMark) -> bool:
        """Whether a mark is one of the format before the revocation tree, as a keyring sealed it."""
        return hmac.compare_digest(self._mark_seal(self._old_mark_key, mark), mark.seal)

    def counts_old(self, mark: ChangeMark, revoked: Iterable[tuple[UUID, HowRevoked]]) -> bool:
        """Whether an old mark counts these keys: a sum of keyed hashes modulo 2**512, in any order."""
        total = sum(
            int.from_bytes(hmac.digest(self._old_revoked_key, key_id.bytes + suffix, sha512))
            for key_id, how in revoked
            for suffix in (b"shredded" if how == "shredded" else b"",)
        )
        return (total % _OLD_MODULUS).to_bytes(_OLD_REVOKED_SIZE) == mark.revoked

    def erased_digest(self, place: bytes, envelope: bytes) -> bytes:
        """
        Give what stands for an item that was erased before its scope was reopened: 32 bytes.

        Args:
            place: Its associated data, without the header.
            envelope: As it is stored.
        """
        # The envelope, too: else any bytes at the place would read as erased (docs/decisions/0025).
        framed = length_prefixed(b"erased", place, sha256(envelope).digest())
        return hmac.digest(self._tree_key, framed, sha256)

    def scope_name(self, purpose: KeyPurpose, scope: str) -> bytes:
        """Give the name under which the revocation tree has a scope: 10 bytes."""
        name = self._names.get((purpose, scope))
        if name is None:
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
            framed = length_prefixed(b"scope", purpose.encode(), scope.encode())
            name = hmac.digest(self._tree_key, framed, sha256)[:SCOPE_NAME_SIZE]
            self._names[purpose, scope] = name
        return name

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

    def receipt_mac(self, facts: Mapping[str, Any]) -> bytes:
        """Give 32 bytes of HMAC-SHA-512 over the canonical JSON of a receipt's facts."""
        return hmac.digest(self._receipt_key, canonical_json(facts), sha512)[:SEAL_SIZE]

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
        return replace(mark, seal=self._mark_seal(self._mark_key, mark))

    def _mark_seal(self, key: bytes, mark: ChangeMark) -> bytes:
        sealed = length_prefixed(
            mark.application.encode(), mark.counter.to_bytes(8, signed=True), mark.revoked
        )
        return hmac.digest(key, sealed, sha512)[:SEAL_SIZE]

    def __repr__(self) -> str:
        return f"<Seals of {self._application!r} under store key {self.key_id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Seals hold keys and are neither pickled nor copied")


DIGEST_SIGN = "~"
"""What stands behind the kind of a scope, and before its digest."""


class ScopeDigests:
    """
    Gives the stored form of scopes, and remembers some.

    A scope with a colon is stored as its kind and a digest; one without, such as ``application``, as it is.

    Args:
        store_key: The digests are made under it: they are the same in every process, and nowhere else.
        most: Scopes remembered at most.

    Attributes:
        known: The stored form by scope, for scopes that may be sealed for. Read without a lock.
    """

    def __init__(self, store_key: StoreKey, most: int) -> None:
        self._store_key = store_key
        self._most = most
        self._lock = threading.Lock()
        self.known: dict[str, str] = {}

    def of(self, scope: str) -> str:
        """
        Give the stored form of a scope, whatever it looks like.

        Raises:
            ConfigurationError: The scope is refused.
            EventSealError: There is no store key, and none can be made.
        """
        return self.known.get(scope) or self._digested(scope, self._store_key.made_seals())

    def to_seal_for(self, scopes: Collection[str], *, make: bool) -> dict[str, str]:
        """
        Give the stored forms of scopes that are about to be sealed for.

        Args:
            scopes: As the application has them.
            make: Whether keys may be made. If not, they may be stored forms too: items are sealed again for
                the scope of the key that opened them.

        Returns:
            By scope; nothing if there is no store key, hence no key, and none may be made.

        Raises:
            ConfigurationError: A scope is refused, or looks like a stored form where it must not be one.
            EventSealError: There is no store key, and none can be made.
        """
        seals = self._store_key.made_seals() if make else self._store_key.seals()
        if seals is None:
            return {}
        stored: dict[str, str] = {}
        for scope in scopes:
            if not is_digest(checked_scope(scope)):
                stored[scope] = self.known.get(scope) or self._digested(scope, seals)
            # Sealing again makes no key, and goes by the scope of the key that opened the item
            # (docs/decisions/0015).
            elif not make:
                stored[scope] = scope
            else:
                raise ConfigurationError(
                    f"a key scope must not have {DIGEST_SIGN!r} behind its colon where scopes are stored as "
                    "digests: it could be taken for the digest of another one",
                    remedy="Choose another id for what the scope names.",
                )
        return stored

    def named(self, name: str, *, make: bool) -> str:
        """
        Give the stored form of a scope that somebody names, by itself or by its stored form.

        Args:
            name: What looks like a stored form is one: nothing is ever sealed for another scope like it.
            make: Whether the store key may be made. If there is none, the scope is given as it is: it has no
                key.

        Raises:
            ConfigurationError: The scope is refused.
            EventSealError: The store key does not open, or cannot be made.
        """
        if is_digest(checked_scope(name)):
            return name
        seals = self._store_key.made_seals() if make else self._store_key.seals()
        return name if seals is None else self.known.get(name) or self._digested(name, seals)

    def _digested(self, scope: str, seals: Seals) -> str:
        kind, colon, _ = checked_scope(scope).partition(":")
        stored = f"{kind}:{DIGEST_SIGN}{seals.scope_digest(scope)}" if colon else scope
        size = len(stored.encode())
        if size > MAX_SCOPE_BYTES:
            raise ConfigurationError(
                f"the key scope takes {size} bytes of UTF-8 with a digest in the place of what its colon is "
                f"followed by; {MAX_SCOPE_BYTES} are allowed",
                remedy="Shorten its kind: what stands before the colon.",
            )
        if not is_digest(scope):
            with self._lock:
                if len(self.known) >= self._most:  # the older half goes at once: one by one takes longer
                    for old in list(self.known)[: (self._most + 1) // 2]:
                        del self.known[old]
                self.known[scope] = stored
        return stored


def is_digest(scope: str) -> bool:
    """Whether a scope looks like a stored form with a digest."""
    return scope.partition(":")[2].startswith(DIGEST_SIGN)

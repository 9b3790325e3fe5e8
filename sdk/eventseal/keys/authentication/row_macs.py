"""MACs and digests under the store key, for key tables and receipts. No I/O."""

from __future__ import annotations

import hmac
import threading
from base64 import urlsafe_b64encode
from dataclasses import replace
from hashlib import sha256, sha512
from typing import TYPE_CHECKING, Any, NoReturn

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.keys.records import MAX_SCOPE_BYTES, ChangeMark, checked_scope, restore_remedy
from eventseal.keys.revocation_tree import SCOPE_NAME_SIZE, node_digest
from eventseal.keys.states import KeyPurpose
from eventseal.suites.hkdf import canonical_json, length_prefixed
from eventseal.wording import counted

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

_RESTORE_ROW = restore_remedy("this row")
RESTORE_MARK = restore_remedy("the row of eventseal_key_changes")
RESTORE_STORE_KEY = restore_remedy("the rows of the store key")

SHREDS = (KeyPurpose.STORE, "shreds")
"""The entry of the revocation tree that counts shreds. No key can have its scope."""


def check_readable(record: KeyRecord) -> None:
    """
    Reject the record of a row that somebody made unreadable.

    Raises:
        IntegrityError: A column holds an invalid value.
    """
    if record.unreadable:
        raise unreadable_row(record)


def unreadable_row(record: KeyRecord) -> IntegrityError:
    """Return the error of an unreadable row. It names the row and the columns."""
    has_id = "key_id" not in record.unreadable
    whose = f"key {record.key_id}" if has_id else f"a key of scope {record.scope!r}"
    return IntegrityError(
        f"the row of {whose} was edited: its {', '.join(record.unreadable)} cannot be read",
        remedy=_RESTORE_ROW,
        key_id=record.key_id if has_id else None,
    )


def is_sealed(seals: Seals, record: KeyRecord) -> bool:
    """Return whether a row is authentic."""
    try:
        seals.check(record)
    except IntegrityError:
        return False
    return True


class Seals:
    """
    Authenticates the key tables of one application under its store key.

    Args:
        store_key: The store key. Eight keys are derived from it, and the handle itself is not kept.
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
        """Return *record* with its row MAC."""
        return replace(record, seal=self._row_seal(record))

    def check(self, record: KeyRecord) -> None:
        """
        Check the MAC of a row.

        Raises:
            IntegrityError: The row is not authentic.
        """
        check_readable(record)
        if not hmac.compare_digest(self._row_seal(record), record.seal):
            raise IntegrityError(
                f"the row of key {record.key_id} was edited: it does not match its MAC",
                remedy=_RESTORE_ROW,
                key_id=record.key_id,
            )

    def first_mark(self) -> ChangeMark:
        """Create the mark that is stored together with the store key."""
        return self._sealed_mark(0, node_digest(b""))

    def next_mark(self, mark: ChangeMark, root: bytes | None = None) -> ChangeMark:
        """
        Return the mark that follows *mark*, which was checked.

        Args:
            mark: The mark that the store holds locked.
            root: The new content of the revocation tree's root. With ``None``, the root is unchanged.
        """
        revoked = mark.revoked if root is None else node_digest(root)
        return self._sealed_mark(mark.counter + 1, revoked)

    def check_mark(self, mark: ChangeMark) -> None:
        """
        Check the MAC of a change mark.

        Raises:
            IntegrityError: The mark is not authentic, or it has the format before the revocation tree.
        """
        if not hmac.compare_digest(self._mark_seal(self._mark_key, mark), mark.seal):
            raise IntegrityError(
                f"the change mark of {self._application!r} was edited: it does not match its MAC",
                remedy=RESTORE_MARK,
            )

    def is_old(self, mark: ChangeMark) -> bool:
        """Return whether a mark is authentic in the format before the tree."""
        return hmac.compare_digest(self._mark_seal(self._old_mark_key, mark), mark.seal)

    def counts_old(self, mark: ChangeMark, revoked: Iterable[tuple[UUID, HowRevoked]]) -> bool:
        """
        Return whether an old mark counts exactly these keys, in any order.

        The mark holds a sum of keyed hashes modulo 2**512.
        """
        total = sum(
            int.from_bytes(hmac.digest(self._old_revoked_key, key_id.bytes + suffix, sha512))
            for key_id, how in revoked
            for suffix in (b"shredded" if how == "shredded" else b"",)
        )
        return (total % _OLD_MODULUS).to_bytes(_OLD_REVOKED_SIZE) == mark.revoked

    def erased_digest(self, place: bytes, envelope: bytes) -> bytes:
        """
        Return the digest of an item erased before its scope was reopened.

        Args:
            place: The item's associated data, without the header.
            envelope: The envelope as it is stored.

        Returns:
            32 bytes.
        """
        # The digest covers the envelope, because otherwise any bytes at the place would read as erased
        # (docs/decisions/0025).
        framed = length_prefixed(b"erased", place, sha256(envelope).digest())
        return hmac.digest(self._tree_key, framed, sha256)

    def scope_name(self, purpose: KeyPurpose, scope: str) -> bytes:
        """Return the name of a scope in the revocation tree: 10 bytes."""
        name = self._names.get((purpose, scope))
        if name is None:
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
            framed = length_prefixed(b"scope", purpose.encode(), scope.encode())
            name = hmac.digest(self._tree_key, framed, sha256)[:SCOPE_NAME_SIZE]
            self._names[purpose, scope] = name
        return name

    def epoch_seal(self, *parts: bytes) -> bytes:
        """Return the MAC of the row in ``eventseal_epochs``. It is 32 bytes of HMAC over *parts*."""
        sealed = length_prefixed(self._application.encode(), *parts)
        return hmac.digest(self._epoch_key, sealed, sha512)[:SEAL_SIZE]

    def fits_epoch(self, seal: bytes, *parts: bytes) -> bool:
        """Return whether *seal* is the MAC of an epoch's row. The comparison takes constant time."""
        return hmac.compare_digest(self.epoch_seal(*parts), seal)

    def scope_digest(self, scope: str) -> str:
        """
        Return the digest that replaces a scope in the key tables.

        Returns:
            32 bytes of HMAC in base64url, without padding.
        """
        digest = hmac.digest(self._scope_key, scope.encode(), sha256)
        return urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    def receipt_mac(self, facts: Mapping[str, Any]) -> bytes:
        """Return a receipt's MAC: 32 bytes of HMAC-SHA-512 over its canonical JSON."""
        return hmac.digest(self._receipt_key, canonical_json(facts), sha512)[:SEAL_SIZE]

    def _row_seal(self, record: KeyRecord) -> bytes:
        sealed = length_prefixed(
            record.key_id.bytes,
            record.application.encode(),
            record.purpose.encode(),
            record.scope.encode(),
            (record.active_scope or "").encode(),  # no scope is empty, so "" can only be None
            record.state.encode(),
            (record.destroyed_by or "").encode(),
            record.row_version.to_bytes(8, signed=True),  # an edited row may have a negative one
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
        raise TypeError("Seals hold keys and cannot be pickled or copied")


DIGEST_SIGN = "~"
"""The sign between the kind of a scope and its digest."""


class ScopeDigests:
    """
    Computes the stored form of scopes, and remembers some of them.

    A scope with a colon is stored as its kind and a digest. A scope without a colon, such as ``application``,
    is stored unchanged.

    Args:
        store_key: The store key that digests are computed under. They are the same in every process of the
            application, and nowhere else.
        most: How many scopes are remembered at most.

    Attributes:
        known: The stored form of each remembered scope that items may be sealed for. Read without a lock.
    """

    def __init__(self, store_key: StoreKey, most: int) -> None:
        self._store_key = store_key
        self._most = most
        self._lock = threading.Lock()
        self.known: dict[str, str] = {}

    def of(self, scope: str) -> str:
        """
        Return the stored form of a scope, whatever the scope looks like.

        Raises:
            ConfigurationError: The scope is invalid.
            EventSealError: There is no store key, and none can be created.
        """
        return self.known.get(scope) or self._digested(scope, self._store_key.made_seals())

    def to_seal_for(self, scopes: Collection[str], *, make: bool) -> dict[str, str]:
        """
        Return the stored forms of scopes that items will be sealed for.

        Args:
            scopes: The scopes as the application names them.
            make: Whether keys may be created. If not, the scopes may also be stored forms, because items are
                sealed again for the scope of the key that opened them.

        Returns:
            The stored form of each scope. Nothing, if there is no store key and none may be created, because
            then there is no key.

        Raises:
            ConfigurationError: A scope is invalid, or looks like a stored form where stored forms are not
                allowed.
            EventSealError: There is no store key, and none can be created.
        """
        seals = self._store_key.made_seals() if make else self._store_key.seals()
        if seals is None:
            return {}
        stored: dict[str, str] = {}
        for scope in scopes:
            if not is_digest(checked_scope(scope)):
                stored[scope] = self.known.get(scope) or self._digested(scope, seals)
            # Sealing an item again creates no key. It uses the scope of the key that opened the item
            # (docs/decisions/0015).
            elif not make:
                stored[scope] = scope
            else:
                raise ConfigurationError(
                    f"a key scope must not have {DIGEST_SIGN!r} after its colon if scopes are stored as "
                    "digests: it could be taken for the digest of another scope",
                    remedy=f"Choose a scope that does not have {DIGEST_SIGN!r} after its colon.",
                )
        return stored

    def named(self, name: str, *, make: bool) -> str:
        """
        Return the stored form of a scope that a user names.

        The user names the scope itself or its stored form.

        Args:
            name: The scope. A name that looks like a stored form is one, because no key is ever created for
                such a scope.
            make: Whether the store key may be created. If there is no store key, the scope is returned
                unchanged, because it has no key.

        Raises:
            ConfigurationError: The scope is invalid.
            EventSealError: The store key cannot be unwrapped or created.
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
                f"the key scope takes {counted(size, 'byte')} of UTF-8 with a digest after its colon. "
                f"Up to {MAX_SCOPE_BYTES} are allowed",
                remedy="Shorten the kind of the scope: the text before the colon.",
            )
        if not is_digest(scope):
            with self._lock:
                if len(self.known) >= self._most:  # dropping half of them is faster than one by one
                    for old in list(self.known)[: (self._most + 1) // 2]:
                        del self.known[old]
                self.known[scope] = stored
        return stored


def is_digest(scope: str) -> bool:
    """Return whether a scope looks like a stored form with a digest."""
    return scope.partition(":")[2].startswith(DIGEST_SIGN)

"""Rows of the key tables as values. A key store stores them, and a keyring authenticates them."""

from __future__ import annotations

import os
import time
import unicodedata
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol
from uuid import UUID

from eventseal.errors import ConfigurationError
from eventseal.keys.revocation_tree import NODE_DIGEST_SIZE
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from eventseal.keys.revocation_tree import HowRevoked, RevokedAs
    from eventseal.kms.adapter import WrappedKey

DEFAULT_SCOPE = "application"
STORE_SCOPE = "store"
DIGEST_STORE_SCOPE = "store:digest"
"""The store key's scope if the application's scopes are digests. It has the slot of ``store``."""
BINDING_SIZE = 32
MAX_SCOPE_BYTES = 200
MAX_APPLICATION_BYTES = 200
MOST_WRAPPINGS = 64
"""How many wrappings of a key are read. In a sound store, a key has a few for each KEK."""


class Replacement(NamedTuple):
    """
    The replacement of a scope's active key.

    Attributes:
        old: The active record as it was read. Its ``row_version`` and slot must be unchanged.
        closed: The same key with its new state, version and row MAC.
        new: The new active record, of the same scope and purpose.
    """

    old: KeyRecord
    closed: KeyRecord
    new: KeyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """
    A row of ``eventseal_encryption_keys`` with its wrappings.

    Attributes:
        key_id: The key's id, which is never used again for another key.
        scope: The scope whose items the key encrypts.
        active_scope: The scope while the key holds its scope's slot, else ``None``. It is unique with
            application and purpose, so a scope has at most one active key.
        binding: 32 bytes that bind the key's bytes to its id, application, purpose and scope.
        items_reserved: How many items processes have leased. The row MAC does not cover it.
        row_version: Increased only by a change of the state. A write names the version that it read.
        seal: The row MAC: 32 bytes of HMAC under the store key over every field that nobody may edit.
        wrappings: The key under each KEK, the newest first. Empty for a destroyed key.
        more_wrappings: How many older wrappings were not read, because somebody added thousands.
        verified: The wrappings that a process has unwrapped and that hold this key. The row MAC does not
            cover it.
        created_at: Set by the store, like all times of the record, from its database's clock, in UTC.
        unreadable: The columns with invalid values. No MAC can match such a record, and its
            other fields hold readable values or placeholders. So only the edited row fails.
        revoked_as: The entry of the key in the revocation tree, if the row is authentic. A key store leaves
            it out, and a keyring sets it when it reads a row.
    """

    key_id: UUID
    application: str
    scope: str
    active_scope: str | None
    purpose: KeyPurpose
    state: KeyState
    binding: bytes = field(repr=False)
    items_reserved: int = 0
    row_version: int = 1
    seal: bytes = field(repr=False)
    wrappings: tuple[WrappedKey, ...] = ()
    more_wrappings: int = 0
    verified: frozenset[WrappedKey] = frozenset()
    created_at: datetime | None = None
    deactivated_at: datetime | None = None
    compromised_at: datetime | None = None
    destroyed_at: datetime | None = None
    destroyed_by: Literal["retired", "shredded"] | None = None
    unreadable: tuple[str, ...] = ()
    revoked_as: RevokedAs = field(default=None, compare=False)

    @property
    def how_revoked(self) -> HowRevoked | None:
        """The reason for the key's entry in the revocation tree, or ``None``. It is taken from the row."""
        return self.destroyed_by or ("compromised" if self.state == "compromised" else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMark:
    """
    An application's row of ``eventseal_key_changes``, created together with its store key.

    Attributes:
        application: The application whose key changes it counts.
        counter: Increased by every change of a key's state, but not by the creation of a key.
        revoked: 32 bytes, the digest of the root of the application's revocation tree. It reveals a single
            old row that somebody put back. 64 bytes in key tables of the release before that tree.
        seal: 32 bytes of HMAC under the store key over the three fields above.
    """

    application: str
    counter: int
    revoked: bytes = field(repr=False)
    seal: bytes = field(repr=False)

    @property
    def has_tree(self) -> bool:
        """Whether its format has a revocation tree. Only its MAC proves that this is true."""
        return len(self.revoked) == NODE_DIGEST_SIZE


class Admission(Protocol):
    """
    Lets newly inserted keys stay only if their scopes are still open.

    Attributes:
        revoked: The value of a mark's ``revoked`` under which the keys are known to be allowed. A store with
            this mark does not call the object.
    """

    revoked: bytes

    @property
    def paths(self) -> Collection[bytes]:
        """The nodes of the revocation tree that it needs under another mark."""
        ...

    def __call__(self, mark: ChangeMark, nodes: Mapping[bytes, bytes]) -> bool:
        """
        Return whether the keys may stay. Called inside the transaction.

        Args:
            mark: The mark after the insert.
            nodes: The contents of the existing nodes of ``paths``, by path. They may be a moment newer than
                *mark*.
        """
        ...


class NextMark(Protocol):
    """
    Checks the mark that a store has locked, and returns the next.

    The store calls it inside the transaction, each time that it runs the transaction. If it raises an error,
    the transaction is rolled back.

    Attributes:
        paths: The nodes of the revocation tree that it needs.
    """

    paths: Collection[bytes]

    def __call__(
        self, mark: ChangeMark, nodes: Mapping[bytes, bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """
        Return the next mark, and the nodes to store with it.

        Args:
            mark: The locked mark.
            nodes: The contents of the existing nodes of ``paths``, by path.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """
    The result of a refresh. All of it is read at one moment.

    Attributes:
        mark: The application's mark.
        refresh_interval: The interval that applies to all processes, in seconds.
        now: The time by the database's clock, UTC.
        records: The requested keys whose state changed after the given counter, without wrappings.
        root: The content of the revocation tree's root, if the counter is not the given one.
    """

    mark: ChangeMark
    refresh_interval: float
    now: datetime
    records: tuple[KeyRecord, ...] = ()
    root: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class KekUse:
    """
    Counts the wrappings under one KEK version or one branch key.

    Attributes:
        kek_uri: The stored URI: resolved, never an alias. ``branch:<id>`` for a branch key.
        kek_version: The KEK's version. ``None`` if it is unknown or the KEK has no versions.
        wrappings: The number of wrappings under this version, of keys that are not destroyed.
        verified: How many of these wrappings a process has unwrapped.
    """

    kek_uri: str
    kek_version: str | None
    wrappings: int
    verified: int


def restore_remedy(rows: str = "the rows of this key") -> str:
    """Return the remedy for edited key tables: restore *rows* from a backup."""
    return f"Find out who changed the key tables. Then restore {rows} from a backup."


def checked_scope(scope: str) -> str:
    """
    Reject a scope that two databases might compare differently.

    Raises:
        ConfigurationError: The scope is not a string of 1 to 200 bytes of UTF-8 in NFC, or it contains NUL or
            a lone surrogate.
    """
    return _checked_name("key scope", scope, MAX_SCOPE_BYTES)


def checked_application(application: str) -> str:
    """
    Reject an application name that two databases might compare differently.

    Raises:
        ConfigurationError: The name is not a string of 1 to 200 bytes of UTF-8 in NFC, or it contains NUL or
            a lone surrogate.
    """
    return _checked_name("application name", application, MAX_APPLICATION_BYTES)


def _checked_name(what: str, text: object, most: int) -> str:
    if not isinstance(text, str):
        raise ConfigurationError(f"the {what} is a {type(text).__name__}, not a string")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"the {what} contains a lone surrogate") from None
    if not 0 < size <= most:
        raise ConfigurationError(
            f"the {what} takes {counted(size, 'byte')} of UTF-8. Between 1 and {most} are allowed"
        )
    if "\0" in text:
        raise ConfigurationError(f"the {what} contains a NUL character")
    if not unicodedata.is_normalized("NFC", text):
        raise ConfigurationError(f"the {what} is not in Unicode normal form C")
    return text


_NANOSECONDS = 1_000_000
_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_BITS = (1 << 62) - 1


def new_key_id() -> UUID:
    """
    Create a key id. Ids sort by their time of creation, to a quarter of a microsecond.

    Returns:
        A UUID of 48 bits of milliseconds, 12 bits of their fraction (RFC 9562, section 6.2, method 3) and 62
        bits of the kernel's randomness. Nothing is kept between calls, so neither a thread nor a fork can
        repeat an id.
    """
    milliseconds, rest = divmod(time.time_ns(), _NANOSECONDS)
    fraction = (rest << 12) // _NANOSECONDS
    randomness = int.from_bytes(os.urandom(8)) & _RANDOM_BITS
    return UUID(
        int=(milliseconds & (1 << 48) - 1) << 80 | _VERSION_7 | fraction << 64 | _VARIANT | randomness
    )


def new_record(application: str, scope: str, purpose: KeyPurpose, *, leased: int) -> KeyRecord:
    """Create a new active key's record. It lacks the binding, wrappings and seal, which need its bytes."""
    return KeyRecord(
        key_id=new_key_id(),
        application=application,
        scope=scope,
        active_scope=scope,
        purpose=purpose,
        state=KeyState.ACTIVE,
        binding=b"",
        items_reserved=leased,
        seal=b"",
    )


def new_tombstone(application: str, scope: str, purpose: KeyPurpose) -> KeyRecord:
    """Create the record of a shredded key that never existed. It has no seal yet, and keeps a slot taken."""
    return replace(
        new_record(application, scope, purpose, leased=0),
        state=KeyState.DESTROYED,
        destroyed_by="shredded",
        binding=bytes(BINDING_SIZE),  # of no key: nothing is ever unwrapped for this row
    )

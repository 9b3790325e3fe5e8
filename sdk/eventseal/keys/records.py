"""Rows of the key tables as values: a key store stores them, a keyring seals and checks them."""

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

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from eventseal.keys.revocation_tree import HowRevoked, RevokedAs
    from eventseal.kms.adapter import WrappedKey

DEFAULT_SCOPE = "application"
STORE_SCOPE = "store"
DIGEST_STORE_SCOPE = "store:digest"
"""The scope of the store key, in the slot of ``store``, where the application's scopes are digests."""
BINDING_SIZE = 32
MAX_SCOPE_BYTES = 200
MAX_APPLICATION_BYTES = 200
MOST_WRAPPINGS = 64
"""Wrappings that are read of a key; in a sound store it has a few for each KEK."""


class Replacement(NamedTuple):
    """
    An active key that is to give its scope's slot to another.

    Attributes:
        old: The active record as it was read; ``row_version`` and the slot must still be its own.
        closed: The same key with its new state, version and seal.
        new: The new active record, of the same scope and purpose.
    """

    old: KeyRecord
    closed: KeyRecord
    new: KeyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """
    A row of ``encryption_keys`` with its wrappings.

    Attributes:
        key_id: Never used again for another key.
        scope: Whose items the key seals.
        active_scope: The scope while the key holds its scope's slot, else ``None``. Unique with application
            and purpose, so a scope has one active key at most.
        binding: 32 bytes that tie the key's bytes to its id, application, purpose and scope.
        items_reserved: How many items processes have leased; not part of the seal.
        row_version: Rises with the state only; a write names the version that it read.
        seal: 32 bytes of HMAC under the store key over everything that must not be edited.
        wrappings: The key under each KEK, the newest first; empty for a destroyed key.
        more_wrappings: How many older ones there are that were not read, since somebody added thousands.
        verified: Those of the wrappings that some process has unwrapped since they were made, and found to
            hold this key; not part of the seal.
        created_at: And the other times: set by the store, from its database's clock, in UTC.
        unreadable: The columns that hold what none of their kind does. No seal fits such a record, and its
            other fields are what could be read, or stand-ins; it lets an edited row fail alone.
        revoked_as: What the revocation tree says of the key, if the row's seal fits. A key store leaves it
            out; a keyring sets it when it reads a row.
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
        """Why the revocation tree has the key, by its row; ``None`` if it has not."""
        return self.destroyed_by or ("compromised" if self.state == "compromised" else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMark:
    """
    An application's row of ``key_changes``, made together with its store key.

    Attributes:
        application: Whose keys it counts.
        counter: Raised by every change of a key's state; making a key leaves it.
        revoked: 32 bytes, the digest of the root of the application's revocation tree, so that one old row
            put back alone is noticed. 64 bytes in key tables of the release before that tree.
        seal: 32 bytes of HMAC under the store key over the three above.
    """

    application: str
    counter: int
    revoked: bytes = field(repr=False)
    seal: bytes = field(repr=False)

    @property
    def has_tree(self) -> bool:
        """Whether it is of the format that has a revocation tree; the seal says whether that is true."""
        return len(self.revoked) == NODE_DIGEST_SIZE


class Admission(Protocol):
    """
    Says whether new keys may stay that were just inserted: whether their scopes are open still.

    Attributes:
        revoked: What a mark has in ``revoked`` under which that is known: then nothing is asked.
    """

    revoked: bytes

    @property
    def paths(self) -> Collection[bytes]:
        """The nodes of the revocation tree that it needs under another mark."""
        ...

    def __call__(self, mark: ChangeMark, nodes: Mapping[bytes, bytes]) -> bool:
        """
        Decide, inside the transaction.

        Args:
            mark: As it is after the insert.
            nodes: By path the contents of those of ``paths`` that are there; maybe a moment after *mark*.
        """
        ...


class NextMark(Protocol):
    """
    Checks the mark that a store holds locked and gives the next one.

    Called inside the transaction, each time it is run; what it raises undoes the transaction.

    Attributes:
        paths: The nodes of the revocation tree that it needs.
    """

    paths: Collection[bytes]

    def __call__(
        self, mark: ChangeMark, nodes: Mapping[bytes, bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """
        Give the next mark, and the nodes that are to be stored with it.

        Args:
            mark: Locked.
            nodes: By path the contents of those of ``paths`` that are there.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """
    What a refresh reads, all of it as of one moment.

    Attributes:
        mark: The application's mark.
        refresh_interval: Seconds; the interval that holds for all processes.
        now: The database's clock, UTC.
        records: Those of the asked-for keys whose state changed after the asked-for counter, without
            wrappings.
        root: The content of the revocation tree's root, if the counter is not the asked-for one.
    """

    mark: ChangeMark
    refresh_interval: float
    now: datetime
    records: tuple[KeyRecord, ...] = ()
    root: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class KekUse:
    """
    What hangs on one version of one KEK, or on one branch key.

    Attributes:
        kek_uri: As it is stored: resolved, never an alias; ``branch:<id>`` for a branch key.
        kek_version: ``None`` where it is not known, or the KEK has none.
        wrappings: Of keys that are not destroyed, under this version.
        verified: How many of them some process has unwrapped.
    """

    kek_uri: str
    kek_version: str | None
    wrappings: int
    verified: int


def checked_scope(scope: str) -> str:
    """
    Refuse a scope that two databases might compare differently.

    Raises:
        ConfigurationError: It is not a string of 1 to 200 bytes of UTF-8 in NFC, or holds NUL or a lone
            surrogate.
    """
    return _checked_name("key scope", scope, MAX_SCOPE_BYTES)


def checked_application(application: str) -> str:
    """
    Refuse a name of an application that two databases might compare differently.

    Raises:
        ConfigurationError: It is not a string of 1 to 200 bytes of UTF-8 in NFC, or holds NUL or a lone
            surrogate.
    """
    return _checked_name("application name", application, MAX_APPLICATION_BYTES)


def _checked_name(what: str, text: object, most: int) -> str:
    if not isinstance(text, str):
        raise ConfigurationError(f"the {what} is a {type(text).__name__}, not a string")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"the {what} holds a lone surrogate") from None
    if not 0 < size <= most:
        raise ConfigurationError(f"the {what} takes {size} bytes of UTF-8; 1 to {most} are allowed")
    if "\0" in text:
        raise ConfigurationError(f"the {what} holds a NUL character")
    if not unicodedata.is_normalized("NFC", text):
        raise ConfigurationError(f"the {what} is not in Unicode normal form C")
    return text


_NANOSECONDS = 1_000_000
_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_BITS = (1 << 62) - 1


def new_key_id() -> UUID:
    """
    Make a key id that sorts by the moment it was made, to a quarter of a microsecond.

    Returns:
        48 bits of milliseconds, 12 bits of their fraction (section 6.2, method 3), 62 bits of the kernel's
        randomness. Nothing is remembered between calls, so neither a thread nor a fork can repeat an id.
    """
    milliseconds, rest = divmod(time.time_ns(), _NANOSECONDS)
    fraction = (rest << 12) // _NANOSECONDS
    randomness = int.from_bytes(os.urandom(8)) & _RANDOM_BITS
    return UUID(
        int=(milliseconds & (1 << 48) - 1) << 80 | _VERSION_7 | fraction << 64 | _VARIANT | randomness
    )


def new_record(application: str, scope: str, purpose: KeyPurpose, *, leased: int) -> KeyRecord:
    """Make the record of a new active key, without what only its bytes can give: binding, wrappings, seal."""
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
    """Make the record, without its seal, of a shredded key that never was: it keeps a scope's slot taken."""
    return replace(
        new_record(application, scope, purpose, leased=0),
        state=KeyState.DESTROYED,
        destroyed_by="shredded",
        binding=bytes(BINDING_SIZE),  # of no key: nothing is ever unwrapped for this row
    )

"""Key states and purposes, after NIST SP 800-57 part 1."""

from __future__ import annotations

from enum import StrEnum


class KeyState(StrEnum):
    """
    The state of a key. A key moves down this list, never up.

    - ``ACTIVE``: The key seals and opens.
    - ``DEACTIVATED``: The key only opens.
    - ``COMPROMISED``: The key only opens, and its items must be re-encrypted.
    - ``DESTROYED``: The key does nothing. Its wrappings are deleted, and a tombstone remains.
    """

    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"

    @property
    def opens(self) -> bool:
        """Whether a key in this state opens items."""
        return self is not KeyState.DESTROYED

    def may_become(self, later: KeyState) -> bool:
        """Return whether a key in this state may be in *later* afterwards."""
        return _ORDER[later] >= _ORDER[self]


_ORDER = {state: rank for rank, state in enumerate(KeyState)}


class KeyPurpose(StrEnum):
    """The purpose of a key. No key has two purposes."""

    DATA = "data"
    BRANCH = "branch"
    FIELD = "field"
    INDEX = "index"
    STORE = "store"
    LEDGER = "ledger"


SUBJECT_PURPOSES = (KeyPurpose.DATA, KeyPurpose.FIELD, KeyPurpose.INDEX)
"""
The purposes of keys that a shred of their scope destroys.

Keys of other purposes seal no data of a scope.
"""

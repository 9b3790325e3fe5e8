"""The states and purposes of a key (after NIST SP 800-57 part 1)."""

from __future__ import annotations

from enum import StrEnum


class KeyState(StrEnum):
    """
    What a key may do. A key moves down this list, never up.

    ``ACTIVE`` seals and opens, ``DEACTIVATED`` opens only, ``COMPROMISED`` opens only and its items must be
    re-encrypted, ``DESTROYED`` does nothing: its wrappings are gone and a tombstone stays.
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
        """Whether a key that was seen in this state may be seen in *later* afterwards."""
        return _ORDER[later] >= _ORDER[self]


_ORDER = {state: rank for rank, state in enumerate(KeyState)}


class KeyPurpose(StrEnum):
    """What a key is for; no key serves two purposes."""

    DATA = "data"
    BRANCH = "branch"
    FIELD = "field"
    INDEX = "index"
    STORE = "store"
    LEDGER = "ledger"


SUBJECT_PURPOSES = (KeyPurpose.DATA, KeyPurpose.FIELD, KeyPurpose.INDEX)
"""The purposes of the keys of a scope that end when it is shredded: under the others, nothing is sealed."""

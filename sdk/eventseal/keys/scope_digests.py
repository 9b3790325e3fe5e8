"""Digests of scopes under the store key, in place of the scopes, for those whose subject ids are personal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError
from eventseal.keys.records import MAX_SCOPE_BYTES, checked_scope

if TYPE_CHECKING:
    from collections.abc import Collection

    from eventseal.keys.seals import Seals
    from eventseal.keys.store_key import StoreKey

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

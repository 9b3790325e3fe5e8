"""
Wrap, unwrap and rewrap data keys under a transit key, in batches.

Expected errors are returned, not raised, so that no traceback holds a key.
"""

from __future__ import annotations

import base64
from copy import copy
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, KmsKeyStateError
from eventseal.kms import WrappedKey
from eventseal_kms.outcomes import KEY_SIZE, refusal_of_another_kek
from eventseal_kms.vault.failures import (
    ROW_CHANGED,
    TOO_NEW,
    TOO_OLD,
    failure_of,
    is_too_complex,
    item_failure,
    mismatch,
    trimmed,
)
from eventseal_kms.vault.key_state import defect_of, read_state
from eventseal_kms.vault.transit_key import version_number, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from eventseal.kms import EncryptionContext
    from eventseal_kms.outcomes import Value
    from eventseal_kms.vault.session import VaultSession
    from eventseal_kms.vault.transit_key import TransitKey


class DataKeys:
    """
    Sends data keys and wrappings to a transit key.

    Args:
        session: The session that calls Vault.
        size: The number of items in one call. If the server finds a call too complex, the size is halved
            permanently.

    Raises:
        ConfigurationError: *size* is not positive.
    """

    def __init__(self, session: VaultSession, key: TransitKey, size: int) -> None:
        if size < 1:
            raise ConfigurationError(f"batch_size must be at least 1, not {size}")
        self._session = session
        self._key = key
        self._size = size
        self._key_was_fit = False

    def wrapped(self, keys: Sequence[tuple[bytes, EncryptionContext]]) -> list[WrappedKey | EventSealError]:
        """Wrap keys of 32 bytes, each bound to its context."""
        defect = self._defect() if keys else None
        if defect is not None:
            return _for_each(keys, defect)
        items = [
            {"plaintext": base64.b64encode(key).decode(), "context": _derivation(context)}
            for key, context in keys
        ]
        results = self._results("encrypt", items)
        return [
            self._outcome(result, self._action("encrypt", context), self._wrapping_in)
            for result, (_, context) in zip(results, keys, strict=True)
        ]

    def unwrapped(self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]) -> list[bytes | EventSealError]:
        """Unwrap keys that this transit key wrapped."""
        return self._from_wrappings("decrypt", keys, self._key_in)

    def rewrapped(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """Rewrap keys of this transit key under its newest version."""
        return self._from_wrappings("rewrap", keys, self._wrapping_in)

    def _defect(self) -> EventSealError | None:
        """
        Return an error if the transit key must not wrap.

        The check ends with its first success, because the type of a transit key cannot change.
        """
        if self._key_was_fit:
            return None
        defect = defect_of(self._session, self._key)
        self._key_was_fit = defect is None
        return defect

    def _from_wrappings(
        self,
        operation: str,
        keys: Sequence[tuple[WrappedKey, EncryptionContext]],
        read: Callable[[Mapping[str, Any], str], Value | EventSealError],
    ) -> list[Value | EventSealError]:
        refusals = [self._refusal(wrapped, context) for wrapped, context in keys]
        asked = [pair for pair, refusal in zip(keys, refusals, strict=True) if refusal is None]
        items = [
            {"ciphertext": wrapped.ciphertext.decode("ascii"), "context": _derivation(context)}
            for wrapped, context in asked
        ]
        results = self._results(operation, items)
        oldest = self._oldest_version() if any(TOO_OLD in _error_in(result) for result in results) else 0
        outcomes: list[Value | EventSealError] = []
        for (wrapped, context), result in zip(asked, results, strict=True):
            action, version = self._action(operation, context), version_of(wrapped.ciphertext)
            said = _error_in(result)
            outcome = (
                trimmed(action, key=self._key)
                if TOO_OLD in said and version_number(version) < oldest
                else self._outcome(result, action, read)
            )
            # Vault refused because of this wrapping's key version. Other wrappings may still work.
            if isinstance(outcome, KmsKeyStateError) and (TOO_OLD in said or TOO_NEW in said):
                outcome.kek_version = version
            outcomes.append(outcome)
        remaining = iter(outcomes)
        return [refusal or next(remaining) for refusal in refusals]

    def _refusal(self, wrapped: WrappedKey, context: EncryptionContext) -> EventSealError | None:
        """Return an error, without a call, for a wrapping of another key."""
        another = refusal_of_another_kek(wrapped, context, kek_uri=self._key.uri)
        if another is not None:
            return another
        version = version_of(wrapped.ciphertext)
        if version is None or wrapped.kek_version not in {None, version}:
            return IntegrityError(
                f"the wrapping of key {context.key_id} does not come from Vault", remedy=ROW_CHANGED
            )
        return None

    def _oldest_version(self) -> int:
        """Return the oldest version that was not trimmed, or 0 if unknown."""
        state = read_state(self._session, self._key)
        return 0 if isinstance(state, EventSealError) else state.min_available_version

    def _action(self, operation: str, context: EncryptionContext) -> str:
        return f"{self._key.path(operation)} of key {context.key_id}"

    def _results(
        self, operation: str, items: Sequence[Mapping[str, str]]
    ) -> list[Mapping[str, Any] | EventSealError]:
        """
        Send all items, in calls that the server's JSON limits allow.

        Returns:
            One result an item, in order, as Vault returned it. It may hold an error or a key. A call that
            fails as a whole is the last one. Its items and all after them get its error.
        """
        results: list[Mapping[str, Any] | EventSealError] = []
        while len(results) < len(items):
            page = items[len(results) : len(results) + self._size]
            outcome = self._page(operation, page)
            if outcome is None:
                self._size = max(1, len(page) // 2)
            elif isinstance(outcome, EventSealError):
                results += _for_each(items[len(results) :], outcome)
            else:
                results += outcome
        return results

    def _page(
        self, operation: str, page: Sequence[Mapping[str, str]]
    ) -> Sequence[Mapping[str, Any]] | EventSealError | None:
        """Send one call. Return ``None`` if it must be smaller."""
        path = self._key.path(operation)
        answer = self._session.call("post", path, {"batch_input": page})
        if isinstance(answer, EventSealError):
            return answer
        # If one item fails, the whole answer has status 400, but holds every result. A rewrap has 200.
        results = answer.data.get("batch_results")
        if isinstance(results, list) and len(results) == len(page):
            whole = all(isinstance(result, dict) for result in results)
            return results if whole else mismatch(path, key=self._key)
        if is_too_complex(answer) and len(page) > 1:
            return None
        if answer.ok:
            return mismatch(path, key=self._key)
        return failure_of(answer, path=path, key=self._key)

    def _outcome(
        self,
        result: Mapping[str, Any] | EventSealError,
        action: str,
        read: Callable[[Mapping[str, Any], str], Value | EventSealError],
    ) -> Value | EventSealError:
        """Return one item's result, or the error of the item or call."""
        if isinstance(result, EventSealError):
            return result
        if said := _error_in(result):
            return item_failure(said, action=action, key=self._key)
        return read(result, action)

    def _wrapping_in(self, result: Mapping[str, Any], action: str) -> WrappedKey | EventSealError:
        """Return the wrapping that Vault created."""
        ciphertext = str(result.get("ciphertext", "")).encode()
        version = version_of(ciphertext)
        if version is None:
            return mismatch(action, key=self._key)
        return WrappedKey(kek_uri=self._key.uri, kek_version=version, ciphertext=ciphertext)

    def _key_in(self, result: Mapping[str, Any], action: str) -> bytes | EventSealError:
        """
        Return the key that Vault unwrapped.

        The bytes that Vault decrypted are authentic. If they are not a key of 32 bytes, something else was
        wrapped.
        """
        try:
            opened = base64.b64decode(result["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError):
            return mismatch(action, key=self._key)
        if len(opened) != KEY_SIZE:
            return IntegrityError(
                f"{action}: the wrapping does not hold {KEY_SIZE} bytes", remedy=ROW_CHANGED
            )
        return opened


def _error_in(result: Mapping[str, Any] | EventSealError) -> str:
    """
    Return Vault's reason why one item failed.

    It is empty if the item did not fail, or if the whole call failed.
    """
    return "" if isinstance(result, EventSealError) else str(result.get("error") or "")


def _for_each(items: Sequence[object], error: EventSealError) -> list[Any]:
    """Copy the error for each item, because raising adds a traceback."""
    return [copy(error) for _ in items]


def _derivation(context: EncryptionContext) -> str:
    return base64.b64encode(context.canonical()).decode()

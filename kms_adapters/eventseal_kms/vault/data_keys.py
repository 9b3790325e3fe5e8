"""
Data keys under a transit key: wrapped, unwrapped and rewrapped, so many in one call.

Expected errors are returned, not raised, so that no traceback holds a key.
"""

from __future__ import annotations

import base64
import binascii
from copy import copy
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, KmsError, KmsKeyStateError
from eventseal.kms import WrappedKey
from eventseal_kms.outcomes import KEY_SIZE, refusal_of_another_kek
from eventseal_kms.vault.failures import (
    ROW_CHANGED,
    TOO_NEW,
    TOO_OLD,
    failure_of,
    is_too_complex,
    item_failure,
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
        session: Calls Vault.
        key: The transit key.
        size: Items a call. It is halved for good where the server finds a call too complex.

    Raises:
        ConfigurationError: *size* is not positive.
    """

    def __init__(self, session: VaultSession, key: TransitKey, size: int) -> None:
        if size < 1:
            raise ConfigurationError(f"batch_size is {size}; it must be at least 1")
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
        """Unwrap what this transit key wrapped."""
        return self._from_wrappings("decrypt", keys, _key_in)

    def rewrapped(
        self, keys: Sequence[tuple[WrappedKey, EncryptionContext]]
    ) -> list[WrappedKey | EventSealError]:
        """Rewrap what this transit key wrapped under its newest version."""
        return self._from_wrappings("rewrap", keys, self._wrapping_in)

    def _defect(self) -> EventSealError | None:
        """Say why the key must not wrap; asked until it once was fit, since its kind cannot change."""
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
            # Vault refused because of the wrapping's key version, and others may serve.
            if isinstance(outcome, KmsKeyStateError) and (TOO_OLD in said or TOO_NEW in said):
                outcome.kek_version = version
            outcomes.append(outcome)
        remaining = iter(outcomes)
        return [refusal or next(remaining) for refusal in refusals]

    def _refusal(self, wrapped: WrappedKey, context: EncryptionContext) -> EventSealError | None:
        """Say why Vault need not be asked to open a wrapping; ``None`` if it must."""
        another = refusal_of_another_kek(wrapped, context, kek_uri=self._key.uri)
        if another is not None:
            return another
        version = version_of(wrapped.ciphertext)
        if version is None or wrapped.kek_version not in {None, version}:
            return IntegrityError(
                f"the wrapping of key {context.key_id} is not what Vault wrote", remedy=ROW_CHANGED
            )
        return None

    def _oldest_version(self) -> int:
        """Return the oldest version that was not trimmed; 0 if the token may not ask."""
        state = read_state(self._session, self._key)
        return 0 if isinstance(state, EventSealError) else state.min_available_version

    def _action(self, operation: str, context: EncryptionContext) -> str:
        return f"{self._key.path(operation)} of key {context.key_id}"

    def _results(
        self, operation: str, items: Sequence[Mapping[str, str]]
    ) -> list[Mapping[str, Any] | EventSealError]:
        """
        Send all items, in calls that the server's limits on JSON let through.

        Args:
            operation: ``encrypt``, ``decrypt`` or ``rewrap``.
            items: What Vault calls the batch input.

        Returns:
            One result an item, in order, as Vault gave it: it may hold an error or a key. A call that fails
            as a whole is the last one: its items and all after them get its error.
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
        """Send one call; ``None`` if it must be smaller."""
        path = self._key.path(operation)
        answer = self._session.call("post", path, {"batch_input": page})
        if isinstance(answer, EventSealError):
            return answer
        # Where one item fails, the whole answer has status 400 and yet holds every result (a rewrap has 200).
        results = answer.data.get("batch_results")
        if isinstance(results, list) and len(results) == len(page):
            return results
        if is_too_complex(answer) and len(page) > 1:
            return None
        if answer.ok:
            return KmsError(f"{path}: Vault's answer does not fit the question", kek_uri=self._key.uri)
        return failure_of(answer, path=path, key=self._key)

    def _outcome(
        self,
        result: Mapping[str, Any] | EventSealError,
        action: str,
        read: Callable[[Mapping[str, Any], str], Value | EventSealError],
    ) -> Value | EventSealError:
        """Read the result of one item, or give its error or that of its call."""
        if isinstance(result, EventSealError):
            return result
        if said := _error_in(result):
            return item_failure(said, action=action, key=self._key)
        return read(result, action)

    def _wrapping_in(self, result: Mapping[str, Any], action: str) -> WrappedKey | EventSealError:
        """Read the wrapping that Vault made."""
        ciphertext = str(result.get("ciphertext", "")).encode()
        version = version_of(ciphertext)
        if version is None:
            return KmsError(f"{action}: what Vault returned is no wrapping", kek_uri=self._key.uri)
        return WrappedKey(kek_uri=self._key.uri, kek_version=version, ciphertext=ciphertext)


def _key_in(result: Mapping[str, Any], action: str) -> bytes | EventSealError:
    """
    Read the key that Vault opened.

    What Vault opened is authentic, so if it is no key of 32 bytes, something else was wrapped.
    """
    try:
        opened = base64.b64decode(str(result.get("plaintext", "")), validate=True)
    except binascii.Error:
        opened = b""
    if len(opened) != KEY_SIZE:
        return IntegrityError(f"{action}: what was wrapped is no key of {KEY_SIZE} bytes", remedy=ROW_CHANGED)
    return opened


def _error_in(result: Mapping[str, Any] | EventSealError) -> str:
    """Return Vault's words for why one item failed; empty if it did not, or if the whole call failed."""
    return "" if isinstance(result, EventSealError) else str(result.get("error") or "")


def _for_each(items: Sequence[object], error: EventSealError) -> list[Any]:
    """Give each item an error of its own: a raised error carries its caller's traceback."""
    return [copy(error) for _ in items]


def _derivation(context: EncryptionContext) -> str:
    return base64.b64encode(context.canonical()).decode()

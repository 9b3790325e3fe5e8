"""
The outcome for one key: its value, or its error.

Methods for one key raise the error, and batches return it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from eventseal.errors import ConfigurationError, EventSealError, NotMyKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.kms import EncryptionContext, WrappedKey

Value = TypeVar("Value")

KEY_SIZE = 32
"""The size of every key that EventSeal wraps, in bytes."""


def value_of(outcome: Value | EventSealError) -> Value:
    """Return the value, or raise the error."""
    if isinstance(outcome, EventSealError):
        raise outcome
    return outcome


def wrong_size_of(keys: Sequence[tuple[bytes, EncryptionContext]]) -> ConfigurationError | None:
    """Return an error if a key is not 32 bytes."""
    for key, context in keys:
        if len(key) != KEY_SIZE:
            return ConfigurationError(
                f"key {context.key_id} has {len(key)} bytes, not {KEY_SIZE}: no key was wrapped"
            )
    return None


def refusal_of_another_kek(
    wrapped: WrappedKey, context: EncryptionContext, *, kek_uri: str
) -> NotMyKeyError | None:
    """Return an error if a wrapping is under another KEK than *kek_uri*."""
    if wrapped.kek_uri == kek_uri:
        return None
    return NotMyKeyError(
        f"key {context.key_id} is wrapped under {wrapped.kek_uri}, not under {kek_uri}",
        kek_uri=wrapped.kek_uri,
    )

"""The items of a batch: a key or a wrapping in, a wrapping or a key out."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, KmsError, NotMyKeyError
from eventseal.kms import WrappedKey
from eventseal_kms.vault.failures import item_failure
from eventseal_kms.vault.meanings import ROW_CHANGED, TOO_NEW, TOO_OLD
from eventseal_kms.vault.transit_key import version_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from eventseal.kms import EncryptionContext
    from eventseal_kms.vault.transit_key import TransitKey

KEY_SIZE = 32


def wrong_size_of(keys: Sequence[tuple[bytes, EncryptionContext]]) -> ConfigurationError | None:
    """Say which key has not 32 bytes; ``None`` if all have."""
    for key, context in keys:
        if len(key) != KEY_SIZE:
            return ConfigurationError(f"key {context.key_id} has {len(key)} bytes; {KEY_SIZE} are wrapped")
    return None


def item_to_wrap(key: bytes, context: EncryptionContext) -> dict[str, str]:
    """Write the item that has *key* encrypted, bound to *context*."""
    return {"plaintext": base64.b64encode(key).decode(), "context": _derivation(context)}


def item_to_open(wrapped: WrappedKey, context: EncryptionContext) -> dict[str, str]:
    """Write the item that has a wrapping decrypted or rewrapped."""
    return {"ciphertext": wrapped.ciphertext.decode("ascii"), "context": _derivation(context)}


def refusal_of(
    wrapped: WrappedKey, context: EncryptionContext, *, key: TransitKey
) -> NotMyKeyError | IntegrityError | None:
    """Say why Vault need not be asked to open a wrapping; ``None`` if it must."""
    if wrapped.kek_uri != key.uri:
        return NotMyKeyError(
            f"key {context.key_id} is wrapped under {wrapped.kek_uri}, not under {key.uri}",
            kek_uri=wrapped.kek_uri,
        )
    version = version_of(wrapped.ciphertext)
    if version is None or wrapped.kek_version not in {None, version}:
        return IntegrityError(
            f"the wrapping of key {context.key_id} is not what Vault wrote", remedy=ROW_CHANGED
        )
    return None


def is_too_old(result: Mapping[str, Any] | EventSealError) -> bool:
    """Whether Vault refused since the wrapping's key version no longer opens, or is no longer there."""
    return not isinstance(result, EventSealError) and TOO_OLD in str(result.get("error", ""))


def is_of_version(result: Mapping[str, Any] | EventSealError) -> bool:
    """Whether Vault refused because of the wrapping's key version, and others may serve."""
    return is_too_old(result) or (
        not isinstance(result, EventSealError) and TOO_NEW in str(result.get("error", ""))
    )


def wrapping_in(
    result: Mapping[str, Any] | EventSealError, *, action: str, key: TransitKey
) -> WrappedKey | EventSealError:
    """
    Read the wrapping that Vault made.

    Args:
        result: Of one item, or the error of its call.
        action: What was done to which key of ours.
        key: The transit key.
    """
    if isinstance(result, EventSealError):
        return result
    if error := result.get("error"):
        return item_failure(str(error), action=action, key=key)
    ciphertext = str(result.get("ciphertext", "")).encode()
    version = version_of(ciphertext)
    if version is None:
        return KmsError(f"{action}: what Vault returned is no wrapping", kek_uri=key.uri)
    return WrappedKey(kek_uri=key.uri, kek_version=version, ciphertext=ciphertext)


def key_in(
    result: Mapping[str, Any] | EventSealError, *, action: str, key: TransitKey
) -> bytes | EventSealError:
    """
    Read the key that Vault opened; arguments as for :func:`wrapping_in`.

    What Vault opened is authentic, so if it is no key of 32 bytes, something else was wrapped.
    """
    if isinstance(result, EventSealError):
        return result
    if error := result.get("error"):
        return item_failure(str(error), action=action, key=key)
    try:
        opened = base64.b64decode(str(result.get("plaintext", "")), validate=True)
    except binascii.Error:
        opened = b""
    if len(opened) != KEY_SIZE:
        return IntegrityError(f"{action}: what was wrapped is no key of {KEY_SIZE} bytes", remedy=ROW_CHANGED)
    return opened


def _derivation(context: EncryptionContext) -> str:
    return base64.b64encode(context.canonical()).decode()

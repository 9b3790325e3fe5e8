"""Reading KMS's answers: nothing in one is used before it is known to come from the key that was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventseal.errors import EventSealError, IntegrityError, KmsUnavailableError
from eventseal.kms import WrappedKey
from eventseal_kms.aws.arn import KeyArn

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_SIZE = 32
"""Bytes of every key that EventSeal wraps."""


def wrapping_in(
    answer: Mapping[str, Any], kek: KeyArn, *, version: str | None
) -> WrappedKey | EventSealError:
    """
    Take the wrapping out of an answer.

    Args:
        answer: Of GenerateDataKey, Encrypt or ReEncrypt.
        kek: The key that was asked.
        version: The answer's field that holds the id of the key material; ``None`` where there is none.
    """
    ciphertext = answer.get("CiphertextBlob")
    if not isinstance(ciphertext, bytes) or not ciphertext:
        return _not_kms(kek)
    if not _is_from(answer, kek):
        return _another_key(answer, kek)
    material = answer.get(version) if version else None
    return WrappedKey(kek_uri=kek.uri, kek_version=material or None, ciphertext=ciphertext)


def key_in(answer: Mapping[str, Any], kek: KeyArn) -> bytes | EventSealError:
    """
    Take the plaintext key out of an answer.

    Args:
        answer: Of GenerateDataKey or Decrypt.
        kek: The key that was asked.
    """
    key = answer.get("Plaintext")
    if not isinstance(key, bytes):
        return _not_kms(kek)
    if not _is_from(answer, kek):
        return _another_key(answer, kek)
    if len(key) != KEY_SIZE:
        return IntegrityError(
            f"what {kek} unwrapped has {len(key)} bytes and is no key of EventSeal", kek_uri=kek.uri
        )
    return key


def _is_from(answer: Mapping[str, Any], kek: KeyArn) -> bool:
    found = KeyArn.find(str(answer.get("KeyId", "")))
    return found is not None and found == kek


def _another_key(answer: Mapping[str, Any], kek: KeyArn) -> IntegrityError:
    return IntegrityError(
        f"{kek} was asked, but {answer.get('KeyId')!r} answered",
        remedy="Find out what answers at the endpoint: KMS names the key that it was asked for.",
        kek_uri=kek.uri,
    )


def _not_kms(kek: KeyArn) -> KmsUnavailableError:
    return KmsUnavailableError(
        f"the answer for {kek} was cut short, or is not of KMS",
        remedy="Check the endpoint and any proxy before it.",
        kek_uri=kek.uri,
    )

"""
Generate, wrap, unwrap and rewrap single data keys under AWS KMS.

Expected errors are returned, not raised, so that no traceback holds a key. Nothing in an answer is used
before its KMS key is compared with the requested one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KmsKeyStateError,
    KmsUnavailableError,
)
from eventseal.kms import WrappedKey
from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.aws.failures import Failure, error_in
from eventseal_kms.outcomes import KEY_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventseal.kms import EncryptionContext
    from eventseal_kms.aws.calls import Answer, KmsCalls
    from eventseal_kms.aws.configured_key import ConfiguredKey
    from eventseal_kms.outcomes import Value

MAX_CIPHERTEXT = 6144
"""Bytes of the largest blob that KMS accepts."""


class DataKeys:
    """
    Wraps and unwraps one key at a time, under one KMS key.

    Args:
        kms_key: The KMS key that wraps. It also decides which wrappings it unwraps.
    """

    def __init__(self, kms_key: ConfiguredKey, calls: KmsCalls) -> None:
        self._kms_key = kms_key
        self._calls = calls
        self._reencrypts = True

    def generated(self, context: EncryptionContext) -> tuple[bytes, WrappedKey] | EventSealError:
        """Have KMS generate a key and wrap it."""
        return error_in(
            self._under_current_key(
                lambda kek: self._calls.call(
                    "GenerateDataKey", kek, context=context.as_mapping(), KeySpec="AES_256"
                ),
                _generated_in,
            )
        )

    def wrapped(self, key: bytes, context: EncryptionContext) -> WrappedKey | EventSealError:
        """Wrap a key. The wrapping has no version, because ``Encrypt`` reports none."""
        return error_in(
            self._under_current_key(
                lambda kek: self._calls.call("Encrypt", kek, context=context.as_mapping(), Plaintext=key),
                lambda answer, kek: _wrapping_in(answer, kek, version=None),
            )
        )

    def unwrapped(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes | EventSealError:
        """Unwrap a key, if its wrapping is under this KMS key."""
        kek = self._kms_key.opener(wrapped.kek_uri)
        if isinstance(kek, EventSealError):
            return kek
        return _oddity_of(wrapped) or self._decrypted(wrapped, kek, context)

    def rewrapped(self, wrapped: WrappedKey, context: EncryptionContext) -> WrappedKey | EventSealError:
        """
        Rewrap a key under the newest material of this KMS key.

        The wrapping may be under any KMS key in reach.
        """
        source = self._kms_key.source(wrapped.kek_uri)
        if isinstance(source, EventSealError):
            return source
        odd = _oddity_of(wrapped)
        if odd is not None:
            return odd
        if self._reencrypts:
            outcome = self._under_current_key(
                lambda kek: self._calls.call(
                    "ReEncrypt",
                    kek,
                    source=source,
                    context=context.as_mapping(),
                    CiphertextBlob=wrapped.ciphertext,
                ),
                lambda answer, kek: _wrapping_in(answer, kek, version="DestinationKeyMaterialId"),
            )
            if not isinstance(outcome, Failure):
                return outcome
            if not outcome.is_not_offered:
                return outcome.error
            self._reencrypts = False
        key = self._decrypted(wrapped, source, context)
        return key if isinstance(key, EventSealError) else self.wrapped(key, context)

    def _decrypted(
        self, wrapped: WrappedKey, kek: KeyArn, context: EncryptionContext
    ) -> bytes | EventSealError:
        answer = self._calls.call(
            "Decrypt", kek, context=context.as_mapping(), CiphertextBlob=wrapped.ciphertext
        )
        return answer.error if isinstance(answer, Failure) else _key_in(answer, kek)

    def _under_current_key(
        self,
        ask: Callable[[KeyArn], Answer | Failure],
        read: Callable[[Answer, KeyArn], Value | EventSealError],
    ) -> Value | EventSealError | Failure:
        """
        Call the key that wraps now.

        If it is unusable and the alias names another key by now, call that key.
        """
        kek = self._kms_key.current()
        if isinstance(kek, EventSealError):
            return kek
        answer = ask(kek)
        if isinstance(answer, Failure) and isinstance(answer.error, KmsKeyStateError):
            successor = self._kms_key.successor_of(kek)
            if successor is not None:
                kek, answer = successor, ask(successor)
        return answer if isinstance(answer, Failure) else read(answer, kek)


def _generated_in(answer: Answer, kek: KeyArn) -> tuple[bytes, WrappedKey] | EventSealError:
    wrapped = _wrapping_in(answer, kek, version="KeyMaterialId")
    if isinstance(wrapped, EventSealError):
        return wrapped
    key = _key_in(answer, kek)
    return key if isinstance(key, EventSealError) else (key, wrapped)


def _wrapping_in(answer: Answer, kek: KeyArn, *, version: str | None) -> WrappedKey | EventSealError:
    """
    Return the wrapping in an answer of GenerateDataKey, Encrypt or ReEncrypt.

    *version* is the answer's field with the id of the key material. It is ``None`` if there is no such field.
    """
    ciphertext = answer.get("CiphertextBlob")
    if not isinstance(ciphertext, bytes) or not ciphertext:
        return _not_kms(kek)
    material = answer.get(version) if version else None
    return _another_key(answer, kek) or WrappedKey(
        kek_uri=kek.uri, kek_version=material or None, ciphertext=ciphertext
    )


def _key_in(answer: Answer, kek: KeyArn) -> bytes | EventSealError:
    """Return the plaintext key in an answer of GenerateDataKey or Decrypt."""
    key = answer.get("Plaintext")
    if not isinstance(key, bytes):
        return _not_kms(kek)
    another = _another_key(answer, kek)
    if another is not None:
        return another
    if len(key) != KEY_SIZE:
        return IntegrityError(
            f"{kek} unwrapped {len(key)} bytes, which is not a key of EventSeal", kek_uri=kek.uri
        )
    return key


def _another_key(answer: Answer, kek: KeyArn) -> IntegrityError | None:
    """Return an error if another key answered than the requested one."""
    if KeyArn.find(str(answer.get("KeyId", ""))) == kek:
        return None
    return IntegrityError(
        f"EventSeal requested {kek}, but {answer.get('KeyId')!r} answered",
        remedy="Check which service answers at the endpoint: KMS always names the requested key.",
        kek_uri=kek.uri,
    )


def _not_kms(kek: KeyArn) -> KmsUnavailableError:
    return KmsUnavailableError(
        f"the answer for {kek} is incomplete, or does not come from KMS",
        remedy="Check the endpoint and any proxy in front of it.",
        kek_uri=kek.uri,
    )


def _oddity_of(wrapped: WrappedKey) -> IntegrityError | None:
    """Return an error if AWS KMS cannot have created the wrapping."""
    size = len(wrapped.ciphertext)
    if 1 <= size <= MAX_CIPHERTEXT:
        return None
    return IntegrityError(
        f"a wrapping of {size} bytes does not come from AWS KMS: its row was changed",
        remedy="Restore the key's row from a backup.",
        kek_uri=wrapped.kek_uri,
    )

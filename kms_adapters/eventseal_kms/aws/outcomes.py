"""What becomes of one key: the value, or the error. The short forms raise it, the batches hand it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, EventSealError, IntegrityError, KmsKeyStateError
from eventseal_kms.aws.answers import KEY_SIZE, key_in, wrapping_in
from eventseal_kms.aws.failures import Failure, error_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventseal.kms import EncryptionContext, WrappedKey
    from eventseal_kms.aws.arn import KeyArn
    from eventseal_kms.aws.calls import Answer, KmsCalls
    from eventseal_kms.aws.kek import Kek

MAX_CIPHERTEXT = 6144
"""Bytes of the largest blob that KMS takes."""


class Outcomes:
    """
    Wraps and unwraps one key at a time, under one KEK.

    Nothing that can be foreseen is raised: so no traceback holds a key.

    Args:
        kek: Which KMS key wraps, and which wrappings are its.
        calls: To call with.
    """

    def __init__(self, kek: Kek, calls: KmsCalls) -> None:
        self._kek = kek
        self._calls = calls
        self._reencrypts = True

    def generated(self, context: EncryptionContext) -> tuple[bytes, WrappedKey] | EventSealError:
        """Have a key made and wrapped."""
        pairs = context.as_mapping()
        answered = self._under_current_key(
            lambda kek: self._calls.call(
                "GenerateDataKey",
                kek,
                context=pairs,
                KeyId=str(kek),
                KeySpec="AES_256",
                EncryptionContext=pairs,
            )
        )
        if isinstance(answered, EventSealError | Failure):
            return error_in(answered)
        kek, answer = answered
        wrapped = wrapping_in(answer, kek, version="KeyMaterialId")
        if isinstance(wrapped, EventSealError):
            return wrapped
        key = key_in(answer, kek)
        return key if isinstance(key, EventSealError) else (key, wrapped)

    def wrapped(self, key: bytes, context: EncryptionContext) -> WrappedKey | EventSealError:
        """Wrap a key; the wrapping has no version, since ``Encrypt`` tells none."""
        if len(key) != KEY_SIZE:
            return ConfigurationError(f"a key to wrap has {KEY_SIZE} bytes, not {len(key)}")
        pairs = context.as_mapping()
        answered = self._under_current_key(
            lambda kek: self._calls.call(
                "Encrypt", kek, context=pairs, KeyId=str(kek), Plaintext=key, EncryptionContext=pairs
            )
        )
        if isinstance(answered, EventSealError | Failure):
            return error_in(answered)
        kek, answer = answered
        return wrapping_in(answer, kek, version=None)

    def unwrapped(self, wrapped: WrappedKey, context: EncryptionContext) -> bytes | EventSealError:
        """Unwrap a key, if the wrapping is this KEK's."""
        kek = self._kek.opener(wrapped.kek_uri)
        if isinstance(kek, EventSealError):
            return kek
        return _oddity_of(wrapped) or self._decrypted(wrapped, kek, context)

    def _decrypted(
        self, wrapped: WrappedKey, kek: KeyArn, context: EncryptionContext
    ) -> bytes | EventSealError:
        pairs = context.as_mapping()
        answer = self._calls.call(
            "Decrypt",
            kek,
            context=pairs,
            KeyId=str(kek),
            CiphertextBlob=wrapped.ciphertext,
            EncryptionContext=pairs,
        )
        return answer.error if isinstance(answer, Failure) else key_in(answer, kek)

    def rewrapped(self, wrapped: WrappedKey, context: EncryptionContext) -> WrappedKey | EventSealError:
        """Move a wrapping of any KMS key in reach under the newest material of this one."""
        source = self._kek.source(wrapped.kek_uri)
        if isinstance(source, EventSealError):
            return source
        odd = _oddity_of(wrapped)
        if odd is not None:
            return odd
        if self._reencrypts:
            outcome = self._reencrypted(wrapped, source, context)
            if not isinstance(outcome, Failure):
                return outcome
            if not outcome.is_not_offered:
                return outcome.error
            self._reencrypts = False
        key = self._decrypted(wrapped, source, context)
        return key if isinstance(key, EventSealError) else self.wrapped(key, context)

    def current_material(self) -> str | EventSealError | None:
        """Ask for the id of the key material that wraps now; ``None`` if the endpoint tells none."""
        kek = self._kek.current()
        if isinstance(kek, EventSealError):
            return kek
        answer = self._calls.call("DescribeKey", kek, KeyId=str(kek))
        if isinstance(answer, Failure):
            return answer.error
        return answer.get("KeyMetadata", {}).get("CurrentKeyMaterialId") or None

    def _reencrypted(
        self, wrapped: WrappedKey, source: KeyArn, context: EncryptionContext
    ) -> WrappedKey | EventSealError | Failure:
        pairs = context.as_mapping()
        answered = self._under_current_key(
            lambda kek: self._calls.call(
                "ReEncrypt",
                kek,
                source=source,
                context=pairs,
                CiphertextBlob=wrapped.ciphertext,
                SourceKeyId=str(source),
                SourceEncryptionContext=pairs,
                DestinationKeyId=str(kek),
                DestinationEncryptionContext=pairs,
            )
        )
        if isinstance(answered, EventSealError | Failure):
            return answered
        kek, answer = answered
        return wrapping_in(answer, kek, version="DestinationKeyMaterialId")

    def _under_current_key(
        self, call: Callable[[KeyArn], Answer | Failure]
    ) -> tuple[KeyArn, Answer] | EventSealError | Failure:
        """Call with the key that wraps now; if it is unusable and the alias names another one, with that."""
        kek = self._kek.current()
        if isinstance(kek, EventSealError):
            return kek
        answer = call(kek)
        if isinstance(answer, Failure) and isinstance(answer.error, KmsKeyStateError):
            moved = self._kek.moved_from(kek)
            if moved is not None:
                kek, answer = moved, call(moved)
        return answer if isinstance(answer, Failure) else (kek, answer)


def _oddity_of(wrapped: WrappedKey) -> IntegrityError | None:
    """Say what is wrong with a wrapping that AWS KMS cannot have made."""
    size = len(wrapped.ciphertext)
    if 1 <= size <= MAX_CIPHERTEXT:
        return None
    return IntegrityError(
        f"a wrapping of {size} bytes is none of AWS KMS: its row was changed",
        remedy="Restore the key's row from a backup.",
        kek_uri=wrapped.kek_uri,
    )

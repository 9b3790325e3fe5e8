"""The operations that use a key: making, sealing, opening and moving data keys."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from eventseal_kms.testing.keys import Blob, FakeKey, seal
from eventseal_kms.testing.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventseal_kms.testing.session import Parameters, Session

_KEY_SIZES = {"AES_256": 32, "AES_128": 16}
_MAX_PLAINTEXT = 4096
_MAX_DATA_KEY = 1024
_ALGORITHM = "SYMMETRIC_DEFAULT"


def generate_data_key(session: Session, asked: Parameters) -> dict[str, Any]:
    """GenerateDataKey."""
    answer, plaintext = _generated(session, asked, "GenerateDataKey")
    return {**answer, "Plaintext": _text(plaintext)}


def generate_data_key_without_plaintext(session: Session, asked: Parameters) -> dict[str, Any]:
    """GenerateDataKeyWithoutPlaintext."""
    return _generated(session, asked, "GenerateDataKeyWithoutPlaintext")[0]


def encrypt(session: Session, asked: Parameters) -> dict[str, Any]:
    """Encrypt: its answer does not say which key material was used."""
    context = _context(session, asked)
    key = _usable(session, asked["KeyId"], "Encrypt", context)
    plaintext = b64decode(asked["Plaintext"])
    if not 1 <= len(plaintext) <= _MAX_PLAINTEXT:
        raise Refusal("ValidationException", "Member must have length less than or equal to 4096")
    _end_dry_run(asked)
    return {
        "CiphertextBlob": _text(seal(key, plaintext, context)),
        "KeyId": str(key.arn),
        "EncryptionAlgorithm": _ALGORITHM,
    }


def decrypt(session: Session, asked: Parameters) -> dict[str, Any]:
    """Decrypt: with KeyId by that key alone, without it by the key that the blob names."""
    context = _context(session, asked)
    key, plaintext, material = _opened(session, asked, asked.get("KeyId"), "Decrypt", context)
    _end_dry_run(asked)
    return {
        "Plaintext": _text(plaintext),
        "KeyId": str(key.arn),
        "EncryptionAlgorithm": _ALGORITHM,
        "KeyMaterialId": material,
    }


def re_encrypt(session: Session, asked: Parameters) -> dict[str, Any]:
    """ReEncrypt: needs one permission on either key."""
    old_context = _context(session, asked, "SourceEncryptionContext")
    new_context = dict(asked.get("DestinationEncryptionContext") or {})
    source_id = asked.get("SourceKeyId") or _named_in(asked)
    same = session.registry.find(asked["DestinationKeyId"], session.place).key is (
        session.registry.find(source_id, session.place).key
    )
    facts = {"kms:reencryptonsamekey": str(same).lower()}
    source, plaintext, material = _opened(
        session, asked, source_id, "ReEncrypt", old_context, action="kms:ReEncryptFrom", facts=facts
    )
    key = _usable(
        session, asked["DestinationKeyId"], "ReEncrypt", new_context, action="kms:ReEncryptTo", facts=facts
    )
    _end_dry_run(asked)
    return {
        "CiphertextBlob": _text(seal(key, plaintext, new_context)),
        "SourceKeyId": str(source.arn),
        "KeyId": str(key.arn),
        "SourceEncryptionAlgorithm": _ALGORITHM,
        "DestinationEncryptionAlgorithm": _ALGORITHM,
        "SourceKeyMaterialId": material,
        "DestinationKeyMaterialId": key.family.materials[-1].id,
    }


OPERATIONS: dict[str, Callable[[Session, Parameters], dict[str, Any]]] = {
    "GenerateDataKey": generate_data_key,
    "GenerateDataKeyWithoutPlaintext": generate_data_key_without_plaintext,
    "Encrypt": encrypt,
    "Decrypt": decrypt,
    "ReEncrypt": re_encrypt,
}


def _generated(session: Session, asked: Parameters, operation: str) -> tuple[dict[str, Any], bytes]:
    context = _context(session, asked)
    key = _usable(session, asked["KeyId"], operation, context)
    if ("KeySpec" in asked) == ("NumberOfBytes" in asked):
        raise Refusal("ValidationException", "Please specify either number of bytes or key spec.")
    size = asked.get("NumberOfBytes") or _KEY_SIZES.get(asked.get("KeySpec", ""), 0)
    if not 1 <= size <= _MAX_DATA_KEY:
        raise Refusal("ValidationException", "Member must satisfy enum value set: [AES_256, AES_128]")
    _end_dry_run(asked)
    plaintext = os.urandom(size)
    answer = {
        "CiphertextBlob": _text(seal(key, plaintext, context)),
        "KeyId": str(key.arn),
        "KeyMaterialId": key.family.materials[-1].id,
    }
    return answer, plaintext


def _usable(
    session: Session,
    reference: str,
    operation: str,
    context: dict[str, str],
    *,
    action: str = "",
    facts: dict[str, str] | None = None,
) -> FakeKey:
    key = session.key(reference, action or f"kms:{operation}", context=context, facts=facts)
    key.require_usable()
    key.require_symmetric(operation)
    return key


def _opened(
    session: Session,
    asked: Parameters,
    reference: str | None,
    operation: str,
    context: dict[str, str],
    *,
    action: str = "",
    facts: dict[str, str] | None = None,
) -> tuple[FakeKey, bytes, str]:
    """Give the key, the plaintext and the material that sealed it; of a blind dry run only the key."""
    blind = "IGNORE_CIPHERTEXT" in (asked.get("DryRunModifiers") or ()) and bool(asked.get("DryRun"))
    if not blind and "CiphertextBlob" not in asked:
        raise Refusal("ValidationException", "Value at 'ciphertextBlob' failed to satisfy constraint")
    if reference is None and blind:
        raise Refusal("ValidationException", "KeyId is required where the ciphertext is ignored")
    key = _usable(session, reference or _named_in(asked), operation, context, action=action, facts=facts)
    if blind:
        return key, b"", ""
    blob = Blob.parse(b64decode(asked["CiphertextBlob"]))
    return key, blob.open(key, context), blob.material_id


def _named_in(asked: Parameters) -> str:
    return Blob.parse(b64decode(asked.get("CiphertextBlob", ""))).key_id


def _context(session: Session, asked: Parameters, name: str = "EncryptionContext") -> dict[str, str]:
    context = dict(asked.get(name) or {})
    session.noted["context"] = context
    return context


def _end_dry_run(asked: Parameters) -> None:
    if asked.get("DryRun"):
        raise Refusal(
            "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."
        )


def _text(value: bytes) -> str:
    return b64encode(value).decode()

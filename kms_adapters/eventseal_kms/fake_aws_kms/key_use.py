"""The operations that use a key, and their ciphertexts."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidTag

from eventseal.suites.hkdf import length_prefixed
from eventseal_kms.fake_aws_kms.keys import MATERIAL_ID_SIZE, FakeKey
from eventseal_kms.fake_aws_kms.protocol import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eventseal_kms.fake_aws_kms.policies import Parameters, Session

_MAGIC = b"\x01fake"
_NONCE_SIZE = 12
_TAG_SIZE = 16

_KEY_SIZES = {"AES_256": 32, "AES_128": 16}
_MAX_PLAINTEXT = 4096
_MAX_DATA_KEY = 1024
_ALGORITHM = "SYMMETRIC_DEFAULT"


def generate_data_key(session: Session, asked: Parameters) -> dict[str, Any]:
    """GenerateDataKey."""
    answer, plaintext = _generated(session, asked)
    return {**answer, "Plaintext": _text(plaintext)}


def generate_data_key_without_plaintext(session: Session, asked: Parameters) -> dict[str, Any]:
    """GenerateDataKeyWithoutPlaintext."""
    return _generated(session, asked)[0]


def encrypt(session: Session, asked: Parameters) -> dict[str, Any]:
    """Encrypt: its answer does not name the key material."""
    context = _context(session, asked)
    key = _usable(session, asked["KeyId"], context)
    plaintext = b64decode(asked["Plaintext"])
    if not 1 <= len(plaintext) <= _MAX_PLAINTEXT:
        raise Refusal("ValidationException", "Member must have length less than or equal to 4096")
    _end_dry_run(asked)
    return {
        "CiphertextBlob": _text(_seal(key, plaintext, context)),
        "KeyId": str(key.arn),
        "EncryptionAlgorithm": _ALGORITHM,
    }


def decrypt(session: Session, asked: Parameters) -> dict[str, Any]:
    """Decrypt, by the key of KeyId, or otherwise by the blob's key."""
    context = _context(session, asked)
    key, plaintext, material = _opened(session, asked, asked.get("KeyId"), context)
    _end_dry_run(asked)
    return {
        "Plaintext": _text(plaintext),
        "KeyId": str(key.arn),
        "EncryptionAlgorithm": _ALGORITHM,
        "KeyMaterialId": material,
    }


def re_encrypt(session: Session, asked: Parameters) -> dict[str, Any]:
    """ReEncrypt, which needs one permission on each of the two keys."""
    old_context = _context(session, asked, "SourceEncryptionContext")
    new_context = dict(asked.get("DestinationEncryptionContext") or {})
    source_id = asked.get("SourceKeyId") or _named_in(asked)
    same = session.registry.find(asked["DestinationKeyId"], session.place).key is (
        session.registry.find(source_id, session.place).key
    )
    facts = {"kms:reencryptonsamekey": str(same).lower()}
    source, plaintext, material = _opened(
        session, asked, source_id, old_context, action="kms:ReEncryptFrom", facts=facts
    )
    key = _usable(session, asked["DestinationKeyId"], new_context, action="kms:ReEncryptTo", facts=facts)
    _end_dry_run(asked)
    return {
        "CiphertextBlob": _text(_seal(key, plaintext, new_context)),
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


def _generated(session: Session, asked: Parameters) -> tuple[dict[str, Any], bytes]:
    context = _context(session, asked)
    key = _usable(session, asked["KeyId"], context)
    if ("KeySpec" in asked) == ("NumberOfBytes" in asked):
        raise Refusal("ValidationException", "Please specify either number of bytes or key spec.")
    size = asked.get("NumberOfBytes") or _KEY_SIZES.get(asked.get("KeySpec", ""), 0)
    if not 1 <= size <= _MAX_DATA_KEY:
        raise Refusal("ValidationException", "Member must satisfy enum value set: [AES_256, AES_128]")
    _end_dry_run(asked)
    plaintext = os.urandom(size)
    answer = {
        "CiphertextBlob": _text(_seal(key, plaintext, context)),
        "KeyId": str(key.arn),
        "KeyMaterialId": key.family.materials[-1].id,
    }
    return answer, plaintext


def _usable(
    session: Session,
    reference: str,
    context: dict[str, str],
    *,
    action: str | None = None,
    facts: dict[str, str] | None = None,
) -> FakeKey:
    key = session.key(reference, action, context=context, facts=facts)
    key.require_usable()
    key.require_symmetric(session.operation)
    return key


def _opened(
    session: Session,
    asked: Parameters,
    reference: str | None,
    context: dict[str, str],
    *,
    action: str | None = None,
    facts: dict[str, str] | None = None,
) -> tuple[FakeKey, bytes, str]:
    """
    Return the key, the plaintext, and the material that encrypted it.

    A dry run without a ciphertext returns only the key.
    """
    blind = "IGNORE_CIPHERTEXT" in (asked.get("DryRunModifiers") or ()) and bool(asked.get("DryRun"))
    if not blind and "CiphertextBlob" not in asked:
        raise Refusal("ValidationException", "Value at 'ciphertextBlob' failed to satisfy constraint")
    if reference is None and blind:
        raise Refusal("ValidationException", "KeyId is required where the ciphertext is ignored")
    key = _usable(session, reference or _named_in(asked), context, action=action, facts=facts)
    if blind:
        return key, b"", ""
    blob = _Blob.parse(b64decode(asked["CiphertextBlob"]))
    return key, blob.open(key, context), blob.material_id


def _named_in(asked: Parameters) -> str:
    return _Blob.parse(b64decode(asked.get("CiphertextBlob", ""))).key_id


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


def _seal(key: FakeKey, plaintext: bytes, context: Mapping[str, str]) -> bytes:
    """
    Encrypt under the key's current material.

    The blob names the key and the material, like the real one.
    """
    material = key.family.materials[-1]
    header = _MAGIC + bytes([len(key.id)]) + key.id.encode() + bytes.fromhex(material.id)
    nonce = os.urandom(_NONCE_SIZE)
    return header + nonce + material.sealer.encrypt(nonce, plaintext, _bound(header, context))


@dataclass(frozen=True, slots=True)
class _Blob:
    """
    A ciphertext blob, parsed but not decrypted.

    Attributes:
        header: The bytes that are authenticated together with the context.
        key_id: The key that encrypted it.
        material_id: The material of that key.
        sealed: Nonce, ciphertext and tag.
    """

    header: bytes
    key_id: str
    material_id: str
    sealed: bytes

    @classmethod
    def parse(cls, data: bytes) -> _Blob:
        """
        Read a blob.

        Raises:
            Refusal: The blob does not come from the fake.
        """
        id_at = len(_MAGIC) + 1
        if not data.startswith(_MAGIC) or len(data) <= id_at:
            raise Refusal("InvalidCiphertextException")
        id_end = id_at + data[len(_MAGIC)]
        header_end = id_end + MATERIAL_ID_SIZE
        if len(data) < header_end + _NONCE_SIZE + _TAG_SIZE:
            raise Refusal("InvalidCiphertextException")
        return cls(
            header=data[:header_end],
            key_id=data[id_at:id_end].decode("ascii", "replace"),
            material_id=data[id_end:header_end].hex(),
            sealed=data[header_end:],
        )

    def open(self, key: FakeKey, context: Mapping[str, str]) -> bytes:
        """
        Decrypt with *key*, by the material that encrypted the blob.

        Raises:
            Refusal: Another key encrypted it, or the bytes or the context were changed.
        """
        if self.key_id != key.id:
            text = "The key ID in the request does not identify a CMK that can perform this operation."
            raise Refusal("IncorrectKeyException", text)
        sealer = next((m.sealer for m in key.family.materials if m.id == self.material_id), None)
        if sealer is None:
            raise Refusal("InvalidCiphertextException")
        nonce, sealed = self.sealed[:_NONCE_SIZE], self.sealed[_NONCE_SIZE:]
        try:
            return sealer.decrypt(nonce, sealed, _bound(self.header, context))
        except InvalidTag:
            raise Refusal("InvalidCiphertextException") from None


def _bound(header: bytes, context: Mapping[str, str]) -> bytes:
    pairs = [text.encode() for pair in sorted(context.items()) for text in pair]
    return length_prefixed(header, *pairs)

"""The fake's KMS keys: their state, their material, and what they seal."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventseal.suites.hkdf import length_prefixed
from eventseal_kms.testing.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from eventseal_kms.aws.arn import KeyArn

_MAGIC = b"\x01fake"
_MATERIAL_ID_SIZE = 32
_NONCE_SIZE = 12
_TAG_SIZE = 16
_KEY_SIZE = 32


@dataclass(frozen=True, slots=True)
class Material:
    """
    One version of a key's bytes.

    Attributes:
        id: KMS's ``KeyMaterialId``, 64 hexadecimal digits.
        since: When it became the current one.
        sealer: AES-256-GCM under it.
    """

    since: datetime
    id: str = field(default_factory=lambda: secrets.token_hex(_MATERIAL_ID_SIZE))
    sealer: AESGCM = field(default_factory=lambda: AESGCM(os.urandom(_KEY_SIZE)), repr=False)


@dataclass(slots=True)
class KeyFamily:
    """
    What a multi-Region key shares with its replicas; a key of one Region is a family of its own.

    Attributes:
        id: ``mrk-...`` or a UUID.
        multi_region: Whether it can be replicated.
        primary: The Region of the key that is rotated and replicated.
        materials: Oldest first; the last one seals, each opens what it sealed.
        members: By Region.
    """

    multi_region: bool
    primary: str
    materials: list[Material]
    members: dict[str, FakeKey] = field(default_factory=dict)
    id: str = ""

    def __post_init__(self) -> None:
        self.id = f"mrk-{uuid4().hex}" if self.multi_region else str(uuid4())


@dataclass(slots=True)
class FakeKey:
    """
    A KMS key in one Region.

    Attributes:
        arn: Its name.
        family: Its material, shared with replicas.
        policy: The key policy, as a document.
        created: When.
        usage: ``ENCRYPT_DECRYPT`` or ``GENERATE_VERIFY_MAC``, ...
        spec: ``SYMMETRIC_DEFAULT``, ...
        description: Free text.
        state: As ``DescribeKey`` has it.
        deletion: When it will be gone, if that is pending.
    """

    arn: KeyArn
    family: KeyFamily
    policy: dict[str, Any]
    created: datetime
    usage: str = "ENCRYPT_DECRYPT"
    spec: str = "SYMMETRIC_DEFAULT"
    description: str = ""
    state: str = "Enabled"
    deletion: datetime | None = None

    @property
    def id(self) -> str:
        """The last part of the ARN."""
        return self.family.id

    def require_usable(self) -> None:
        """
        Refuse what only an enabled key does.

        Raises:
            Refusal: It is disabled, or pending deletion, import or creation.
        """
        if self.state == "Disabled":
            raise Refusal("DisabledException", f"{self.arn} is disabled.")
        if self.state != "Enabled":
            raise Refusal("KMSInvalidStateException", f"{self.arn} is {_in_words(self.state)}.")

    def require_symmetric(self, operation: str) -> None:
        """
        Refuse keys that are not for encryption.

        Raises:
            Refusal: The key's usage or spec does not fit *operation*.
        """
        if self.usage != "ENCRYPT_DECRYPT" or self.spec != "SYMMETRIC_DEFAULT":
            text = f"{self.arn} key usage is {self.usage} which is not valid for {operation}."
            raise Refusal("InvalidKeyUsageException", text)

    def metadata(self) -> dict[str, Any]:
        """Describe it as ``DescribeKey`` does."""
        found: dict[str, Any] = {
            "AWSAccountId": self.arn.account,
            "KeyId": self.id,
            "Arn": str(self.arn),
            "CreationDate": self.created.timestamp(),
            "Enabled": self.state == "Enabled",
            "Description": self.description,
            "KeyUsage": self.usage,
            "KeySpec": self.spec,
            "CustomerMasterKeySpec": self.spec,
            "KeyState": self.state,
            "Origin": "AWS_KMS",
            "KeyManager": "CUSTOMER",
            "MultiRegion": self.family.multi_region,
        }
        if self.usage == "ENCRYPT_DECRYPT" and self.spec == "SYMMETRIC_DEFAULT":
            found["EncryptionAlgorithms"] = ["SYMMETRIC_DEFAULT"]
            found["CurrentKeyMaterialId"] = self.family.materials[-1].id
        if self.deletion is not None:
            found["DeletionDate"] = self.deletion.timestamp()
        if self.family.multi_region:
            found["MultiRegionConfiguration"] = self._multi_region()
        return found

    def _multi_region(self) -> dict[str, Any]:
        members = {
            region: {"Arn": str(key.arn), "Region": region} for region, key in self.family.members.items()
        }
        primary = members.pop(self.family.primary)
        kind = "PRIMARY" if self.arn.region == self.family.primary else "REPLICA"
        return {"MultiRegionKeyType": kind, "PrimaryKey": primary, "ReplicaKeys": list(members.values())}


def _in_words(state: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in state).strip()


def seal(key: FakeKey, plaintext: bytes, context: Mapping[str, str]) -> bytes:
    """Encrypt under the key's current material; the blob names key and material, as KMS's does."""
    material = key.family.materials[-1]
    header = _MAGIC + bytes([len(key.id)]) + key.id.encode() + bytes.fromhex(material.id)
    nonce = os.urandom(_NONCE_SIZE)
    return header + nonce + material.sealer.encrypt(nonce, plaintext, _bound(header, context))


@dataclass(frozen=True, slots=True)
class Blob:
    """
    A ciphertext blob, read but not opened.

    Attributes:
        header: What is bound beside the context.
        key_id: The key that sealed it.
        material_id: Which of its materials.
        sealed: Nonce, ciphertext and tag.
    """

    header: bytes
    key_id: str
    material_id: str
    sealed: bytes

    @classmethod
    def parse(cls, data: bytes) -> Blob:
        """
        Read a blob.

        Raises:
            Refusal: It is none of the fake's.
        """
        id_at = len(_MAGIC) + 1
        if not data.startswith(_MAGIC) or len(data) <= id_at:
            raise Refusal("InvalidCiphertextException")
        id_end = id_at + data[len(_MAGIC)]
        header_end = id_end + _MATERIAL_ID_SIZE
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
        Decrypt with *key*, by whichever of its materials sealed the blob.

        Raises:
            Refusal: Another key sealed it, or the bytes or the context were changed.
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

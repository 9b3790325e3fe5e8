"""The keys and aliases of the fake, by account and Region."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventseal_kms.aws.arn import KeyArn
from eventseal_kms.fake_aws_kms.protocol import Refusal

PARTITION = "aws"
MATERIAL_ID_SIZE = 32
_KEY_SIZE = 32

Place = tuple[str, str]
"""Account and Region."""


@dataclass(frozen=True, slots=True)
class Material:
    """
    One version of a key's bytes.

    Attributes:
        id: KMS's ``KeyMaterialId``, 64 hexadecimal digits.
        since: The time when it became the current version.
        sealer: AES-256-GCM under this material.
    """

    since: datetime
    id: str = field(default_factory=lambda: secrets.token_hex(MATERIAL_ID_SIZE))
    sealer: AESGCM = field(default_factory=lambda: AESGCM(os.urandom(_KEY_SIZE)), repr=False)


@dataclass(slots=True)
class KeyFamily:
    """
    The properties that a multi-Region key shares with its replicas.

    A key of one Region is the only member of its family.

    Attributes:
        id: ``mrk-...`` or a UUID.
        multi_region: Whether the key can be replicated.
        primary: The Region of the key that is rotated and replicated.
        materials: The materials, oldest first. The last one encrypts. Each decrypts its own ciphertexts.
        members: The keys by Region.
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
        arn: The ARN of the key.
        family: The material, which the replicas share.
        policy: The key policy, as a document.
        created: The time of its creation.
        usage: ``ENCRYPT_DECRYPT`` or ``GENERATE_VERIFY_MAC``, ...
        spec: ``SYMMETRIC_DEFAULT``, ...
        description: Free text.
        state: The state, in the words of ``DescribeKey``.
        deletion: The time of the deletion, if it is pending.
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
        Refuse an operation that needs an enabled key.

        Raises:
            Refusal: The key is disabled, or its deletion, import or creation is pending.
        """
        if self.state == "Disabled":
            raise Refusal("DisabledException", f"{self.arn} is disabled.")
        if self.state != "Enabled":
            raise Refusal("KMSInvalidStateException", f"{self.arn} is {_in_words(self.state)}.")

    def refuse_if_pending_deletion(self) -> None:
        """
        Refuse an operation on a key whose deletion is pending.

        Raises:
            Refusal: The deletion of the key is pending.
        """
        if self.state == "PendingDeletion":
            raise Refusal("KMSInvalidStateException", f"{self.arn} is pending deletion.")

    def require_symmetric(self, operation: str) -> None:
        """
        Refuse keys that are not for encryption.

        Raises:
            Refusal: The usage or the spec of the key does not allow *operation*.
        """
        if self.usage != "ENCRYPT_DECRYPT" or self.spec != "SYMMETRIC_DEFAULT":
            text = f"{self.arn} key usage is {self.usage} which is not valid for {operation}."
            raise Refusal("InvalidKeyUsageException", text)

    def metadata(self) -> dict[str, Any]:
        """Return the answer of ``DescribeKey``."""
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


class Found(NamedTuple):
    """
    The key that a reference names.

    Attributes:
        key: The key.
        alias: The name of the alias, if the reference is one: ``alias/shop``.
    """

    key: FakeKey
    alias: str | None


@dataclass(slots=True)
class Registry:
    """
    Every key and alias.

    Attributes:
        keys: The keys by place and id.
        aliases: The key ids by place and alias name.
        passed: How far the fake's clock is ahead of the real time.
    """

    keys: dict[Place, dict[str, FakeKey]] = field(default_factory=dict)
    aliases: dict[Place, dict[str, str]] = field(default_factory=dict)
    passed: timedelta = timedelta()

    def now(self) -> datetime:
        """Return the time by the fake's clock."""
        return datetime.now(UTC) + self.passed

    def add(self, place: Place, policy: dict[str, Any], *, multi_region: bool, **settings: Any) -> FakeKey:
        """Create a key with new material."""
        family = KeyFamily(multi_region, primary=place[1], materials=[Material(self.now())])
        return self.add_member(place, family, policy, **settings)

    def add_member(self, place: Place, family: KeyFamily, policy: dict[str, Any], **settings: Any) -> FakeKey:
        """Create a key of *family* in another place."""
        account, region = place
        arn = KeyArn(PARTITION, region, account, f"key/{family.id}")
        key = FakeKey(arn, family, policy, self.now(), **settings)
        family.members[region] = key
        self.keys.setdefault(place, {})[family.id] = key
        return key

    def find(self, reference: str, place: Place) -> Found:
        """
        Find a key by id, ARN, alias name or alias ARN.

        Args:
            reference: The name in the request.
            place: The account of the caller, and the Region of the call.

        Raises:
            Refusal: There is no such key.
        """
        resource = reference if reference.startswith("alias/") else f"key/{reference}"
        if reference.startswith("arn:"):
            arn = KeyArn.find(reference)
            if arn is None:
                raise Refusal("NotFoundException", f"Invalid keyId {reference}")
            if arn.region != place[1]:
                raise Refusal("NotFoundException", f"Invalid arn {arn.region}")
            place, resource = (arn.account, arn.region), arn.resource
        kind, _, name = resource.partition("/")
        alias = resource if kind == "alias" else None
        key_id = self.aliases.get(place, {}).get(resource) if alias else name
        key = self._alive(place, key_id or "")
        if key is None:
            arn = KeyArn(PARTITION, place[1], place[0], resource)
            raise Refusal(
                "NotFoundException", f"Alias {arn} is not found." if alias else f"Key '{arn}' does not exist"
            )
        return Found(key, alias)

    def _alive(self, place: Place, key_id: str) -> FakeKey | None:
        key = self.keys.get(place, {}).get(key_id)
        if key is None or key.deletion is None or key.deletion > self.now():
            return key
        del self.keys[place][key_id]
        del key.family.members[place[1]]
        names = self.aliases.get(place, {})
        for name in [name for name, target in names.items() if target == key_id]:
            del names[name]
        return None

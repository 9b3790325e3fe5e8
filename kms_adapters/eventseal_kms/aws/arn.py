"""ARNs of KMS keys and aliases, read and written without any call."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self

from eventseal.errors import ConfigurationError

SCHEME = "aws-kms://"

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ARN = re.compile(
    r"arn:(?P<partition>aws(?:-[a-z]+)*):kms:(?P<region>[a-z]{2,}(?:-[a-z]+)+-[0-9]+):(?P<account>[0-9]{12}):"
    rf"(?P<resource>key/(?:{_UUID}|mrk-[0-9a-f]{{32}})|alias/[A-Za-z0-9/_-]{{1,250}})"
)
_RESERVED = "alias/aws/"
_FORM = "arn:aws:kms:<region>:<account of 12 digits>:key/<id>, or the same with alias/<name>"


@dataclass(frozen=True, slots=True)
class KeyArn:
    """
    The ARN of a KMS key or of an alias.

    Attributes:
        partition: ``aws``, ``aws-cn``, ``aws-us-gov``, ...
        region: ``eu-west-1``.
        account: 12 digits.
        resource: ``key/<id>`` or ``alias/<name>``.
    """

    partition: str
    region: str
    account: str
    resource: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read an ARN, bare or with the prefix ``aws-kms://``.

        Raises:
            ConfigurationError: It is not the ARN of a KMS key or alias.
        """
        found = cls.find(text)
        if found is None:
            raise ConfigurationError(
                f"{text.partition('?')[0]!r} is not the ARN of a KMS key or alias",
                remedy=f"Write {_FORM}. `aws kms describe-key` prints it.",
            )
        if found.resource.startswith(_RESERVED):
            raise ConfigurationError(
                f"{found} is a key of an AWS service, and wraps keys for that service only",
                remedy="Create your own key: aws kms create-key",
            )
        return found

    @classmethod
    def find(cls, text: str) -> Self | None:
        """Read an ARN, bare or with prefix. Return ``None`` for other texts."""
        match = _ARN.fullmatch(text.removeprefix(SCHEME))
        return cls(**match.groupdict()) if match else None

    @classmethod
    def find_uri(cls, uri: str) -> Self | None:
        """Read a stored ``aws-kms://<ARN>``. Return ``None`` for any other URI."""
        return cls.find(uri) if uri.startswith(SCHEME) else None

    def __str__(self) -> str:
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:{self.resource}"

    @property
    def uri(self) -> str:
        """The key as EventSeal stores it: ``aws-kms://<ARN>``."""
        return f"{SCHEME}{self}"

    def in_policy(self) -> tuple[str, dict[str, dict[str, str]]]:
        """
        Return the resource and conditions that name the key in policies.

        A policy accepts no alias as a resource. So an alias becomes a condition on all keys of its account.
        """
        if not self.is_alias:
            return str(self), {}
        every = f"arn:{self.partition}:kms:{self.region}:{self.account}:key/*"
        return every, {"ForAnyValue:StringEquals": {"kms:ResourceAliases": self.resource}}

    @property
    def is_alias(self) -> bool:
        """Whether this names an alias, which can move to another key."""
        return self.resource.startswith("alias/")

    @property
    def is_multi_region(self) -> bool:
        """Whether the key can have replicas with its id in other Regions."""
        return self.resource.startswith("key/mrk-")

    def in_region(self, region: str) -> Self:
        """Return the ARN of the same resource in *region*."""
        return replace(self, region=region)

    def is_same_key(self, other: KeyArn) -> bool:
        """
        Return whether both name one key.

        They are equal, or they are multi-Region replicas that differ in the Region only.
        """
        return self == other or (self.is_multi_region and self == other.in_region(self.region))

"""The protocols of KMS adapters, and the adapter of a key URI."""

from eventseal.kms.adapter import (
    EncryptionContext,
    KmsAdapter,
    KmsUse,
    PermissionCheck,
    SupportsAliases,
    SupportsBatch,
    SupportsCheck,
    SupportsDeletion,
    SupportsGeneration,
    SupportsPolicy,
    SupportsRewrap,
    SupportsVersions,
    TellsVersion,
    WrappedKey,
)
from eventseal.kms.key_uris import adapter_from_uri

__all__ = [
    "EncryptionContext",
    "KmsAdapter",
    "KmsUse",
    "PermissionCheck",
    "SupportsAliases",
    "SupportsBatch",
    "SupportsCheck",
    "SupportsDeletion",
    "SupportsGeneration",
    "SupportsPolicy",
    "SupportsRewrap",
    "SupportsVersions",
    "TellsVersion",
    "WrappedKey",
    "adapter_from_uri",
]

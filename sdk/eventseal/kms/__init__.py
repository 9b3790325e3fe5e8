"""The key path's far end: what a KMS must do."""

from eventseal.kms.adapter import (
    EncryptionContext,
    KmsAdapter,
    PermissionCheck,
    SupportsAliases,
    SupportsBatch,
    SupportsCheck,
    SupportsDeletion,
    SupportsGeneration,
    SupportsRewrap,
    SupportsVersions,
    TellsVersion,
    WrappedKey,
    adapter_from_uri,
)

__all__ = [
    "EncryptionContext",
    "KmsAdapter",
    "PermissionCheck",
    "SupportsAliases",
    "SupportsBatch",
    "SupportsCheck",
    "SupportsDeletion",
    "SupportsGeneration",
    "SupportsRewrap",
    "SupportsVersions",
    "TellsVersion",
    "WrappedKey",
    "adapter_from_uri",
]

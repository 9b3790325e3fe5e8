"""What a KMS adapter must do, and how a key URI finds its adapter."""

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

"""The key path's far end: what a KMS must do."""

from eventseal.kms.adapter import (
    KmsAdapter,
    PermissionCheck,
    SupportsBatch,
    SupportsCheck,
    SupportsRewrap,
    SupportsVersions,
    WrappedKey,
)
from eventseal.kms.context import EncryptionContext
from eventseal.kms.uri import adapter_from_uri

__all__ = [
    "EncryptionContext",
    "KmsAdapter",
    "PermissionCheck",
    "SupportsBatch",
    "SupportsCheck",
    "SupportsRewrap",
    "SupportsVersions",
    "WrappedKey",
    "adapter_from_uri",
]

"""
EventSeal: application-level encryption of event stores under keys that a KMS controls.

This module has the names that most programs need. Each name is loaded on first use, so ``import eventseal``
costs nothing. Only programs that use SQLAlchemy or pydantic-settings load them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.lazy_names import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "AESCipher": "cipher",
    "CachePolicy": "keys",
    "EventSeal": "configuration",
    "EventSealError": "errors",
    "InMemoryKeyStore": "keys",
    "ItemContext": "cipher",
    "Keyring": "keys",
    "RotationPolicy": "keys",
    "SQLAlchemyActiveRecordStrategy": "storage",
    "SQLAlchemyDatastore": "storage",
    "SQLAlchemyKeyStore": "storage",
    "SQLAlchemySettings": "storage",
    "SequencedItem": "items",
    "SequencedItemMapper": "items",
    "inspect": "cipher",
}

if TYPE_CHECKING:
    from eventseal.cipher import AESCipher, ItemContext, inspect
    from eventseal.configuration import EventSeal
    from eventseal.errors import EventSealError
    from eventseal.items import SequencedItem, SequencedItemMapper
    from eventseal.keys import CachePolicy, InMemoryKeyStore, Keyring, RotationPolicy
    from eventseal.storage import (
        SQLAlchemyActiveRecordStrategy,
        SQLAlchemyDatastore,
        SQLAlchemyKeyStore,
        SQLAlchemySettings,
    )

else:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)


__all__ = [
    "AESCipher",
    "CachePolicy",
    "EventSeal",
    "EventSealError",
    "InMemoryKeyStore",
    "ItemContext",
    "Keyring",
    "RotationPolicy",
    "SQLAlchemyActiveRecordStrategy",
    "SQLAlchemyDatastore",
    "SQLAlchemyKeyStore",
    "SQLAlchemySettings",
    "SequencedItem",
    "SequencedItemMapper",
    "__version__",
    "inspect",
]

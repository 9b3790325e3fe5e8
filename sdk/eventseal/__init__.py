"""
EventSeal: application-level encryption of event stores under keys that a KMS controls.

This module has the names that most programs need. Each name is loaded on first use, so ``import eventseal``
costs nothing. Only programs that use SQLAlchemy or pydantic-settings load them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

    __version__: str

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


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("eventseal")
    elif name in _HOMES:
        value = getattr(import_module(f"eventseal.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

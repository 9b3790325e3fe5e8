"""Keys: the keyring chooses keys that seal, and finds keys that open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.lazy_names import lazy_names

_HOMES = {
    "HARD_LIMIT": "store",
    "CachePolicy": "policy",
    "ChangeMark": "records",
    "Changes": "records",
    "Clock": "policy",
    "DataKey": "data_key",
    "InMemoryKeyStore": "memory_store",
    "KekUse": "records",
    "KeyPurpose": "states",
    "KeyRecord": "records",
    "KeySource": "source",
    "KeyState": "states",
    "KeyStore": "store",
    "Keyring": "keyring",
    "KeyringCounters": "authentication.row_checks",
    "Rewrap": "rewrap.rewrapping",
    "RotationPolicy": "policy",
}

if TYPE_CHECKING:
    from eventseal.keys.authentication.row_checks import KeyringCounters
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.keyring import Keyring
    from eventseal.keys.memory_store import InMemoryKeyStore
    from eventseal.keys.policy import CachePolicy, Clock, RotationPolicy
    from eventseal.keys.records import ChangeMark, Changes, KekUse, KeyRecord
    from eventseal.keys.rewrap.rewrapping import Rewrap
    from eventseal.keys.source import KeySource
    from eventseal.keys.states import KeyPurpose, KeyState
    from eventseal.keys.store import HARD_LIMIT, KeyStore
else:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)

__all__ = [
    "HARD_LIMIT",
    "CachePolicy",
    "ChangeMark",
    "Changes",
    "Clock",
    "DataKey",
    "InMemoryKeyStore",
    "KekUse",
    "KeyPurpose",
    "KeyRecord",
    "KeySource",
    "KeyState",
    "KeyStore",
    "Keyring",
    "KeyringCounters",
    "Rewrap",
    "RotationPolicy",
]

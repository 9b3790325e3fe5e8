"""The key path: which key seals, which opens."""

from eventseal.keys.counters import KeyringCounters
from eventseal.keys.data_key import DataKey
from eventseal.keys.keyring import Keyring
from eventseal.keys.memory_store import InMemoryKeyStore
from eventseal.keys.policy import CachePolicy, Clock, RotationPolicy
from eventseal.keys.records import DEFAULT_SCOPE, ChangeMark, Changes, KekUse, KeyRecord
from eventseal.keys.rewrapping import Rewrap
from eventseal.keys.source import KeySource
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.static_key import StaticKey
from eventseal.keys.store import HARD_LIMIT, KeyStore

__all__ = [
    "DEFAULT_SCOPE",
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
    "StaticKey",
]

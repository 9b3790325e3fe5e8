"""Keys: the keyring chooses keys that seal, and finds keys that open."""

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

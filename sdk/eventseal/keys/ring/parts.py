"""Builds a keyring: the shared parts, and those of each key purpose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError
from eventseal.keys.authentication.key_tables import KeyTables
from eventseal.keys.authentication.revocations import Revocations
from eventseal.keys.authentication.row_checks import CheckedStore, KeyringCounters, counted
from eventseal.keys.authentication.row_macs import ScopeDigests
from eventseal.keys.data_key import binding_of
from eventseal.keys.records import new_record
from eventseal.keys.rewrap.key_wrappings import KeyWrappings
from eventseal.keys.ring.claims import Claims
from eventseal.keys.ring.destroying import Destroyer
from eventseal.keys.ring.held_keys import HeldKeys
from eventseal.keys.ring.key_cache import FIRST_BLOCK, Confirmation
from eventseal.keys.ring.opening import Opener, Refresher
from eventseal.keys.ring.rotating import Rotator
from eventseal.keys.ring.sealing import Sealer
from eventseal.keys.ring.store_key import LedgerKeys, StoreKey
from eventseal.keys.states import KeyPurpose
from eventseal.keys.wrapping.branches import Branches
from eventseal.keys.wrapping.kek_calls import KekCalls
from eventseal.keys.wrapping.keks import Keks, Verifier

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import CachePolicy, Clock, RotationPolicy
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.rotating import Rotated
    from eventseal.keys.store import KeyStore
    from eventseal.kms.adapter import KmsAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class RingParts:
    """
    The parts that the sealer, opener and rotator of one purpose share.

    A forked child creates them again.

    Attributes:
        application: The application that owns every key.
        purpose: The purpose of the keys.
        wrapping: Creates and unwraps the keys, under KEKs or under branch keys.
        store: The store of the records.
        claims: Lets one process create a key while the others wait.
        held_keys: The keys in memory. All purposes share it, and also the next three.
        store_key: Authenticates the rows.
        refresher: Confirms the keyring's knowledge of keys.
        destroyer: Marks keys compromised.
        rotation: When a key stops being the active one.
        clock: The clock that measures intervals.
        counters: Count hits and misses.
    """

    application: str
    purpose: KeyPurpose
    wrapping: Keks | Branches
    store: CheckedStore
    claims: Claims
    held_keys: HeldKeys
    store_key: StoreKey
    refresher: Refresher
    destroyer: Destroyer
    rotation: RotationPolicy
    clock: Clock
    counters: KeyringCounters

    @property
    def first_block(self) -> int:
        """How many items are leased together with a new key. Keys that a branch key wraps are not counted."""
        return 0 if self.purpose is KeyPurpose.BRANCH else min(FIRST_BLOCK, self.rotation.max_items)

    @property
    def calls_kms(self) -> bool:
        """Whether each new key costs a call of the KMS. A key that a branch key wraps costs none."""
        return isinstance(self.wrapping, Keks) or not self.wrapping.wraps_new_keys

    def new_keys(self, leases: Mapping[str, int]) -> dict[str, tuple[DataKey, KeyRecord]]:
        """
        Create a key for each scope, without storing it.

        Args:
            leases: For each scope, the number of items that this process leases with its key.

        Raises:
            KmsError: A key could not be wrapped. Then no key is returned.
        """
        seals = self.store_key.made_seals()
        blank = [
            new_record(self.application, scope, self.purpose, leased=leased)
            for scope, leased in leases.items()
        ]
        made = zip(blank, self.wrapping.generate(blank), strict=True)
        return {
            record.scope: (key, seals.sealed(replace(record, binding=binding_of(key), wrappings=wrappings)))
            for record, (key, wrappings) in made
        }


class KeysOfPurpose:
    """
    Serves the keys of one purpose: data, field or branch keys.

    Args:
        parts: The purpose, and the parts that create and wrap the keys.

    Attributes:
        opener: Finds keys by id.
        sealer: Finds and creates the active keys of scopes.
    """

    def __init__(self, parts: RingParts) -> None:
        self.opener = Opener(parts)
        self._rotator = Rotator(parts)
        self.sealer = Sealer(parts, self.opener, self._rotator)

    def rotate(self, scopes: Collection[str], *, compromised: bool) -> dict[str, Rotated | EventSealError]:
        """
        Rotate the keys of scopes with as few KMS calls as possible.

        See :class:`Rotator`.

        Args:
            scopes: Checked scopes. A scope that has no key gets its first one.
            compromised: Whether everything that the old keys have sealed must be sealed again.
        """
        return self._rotator.rotate(
            scopes, compromised=compromised, make=lambda scope: self.sealer.keys({scope: 0}, make=True)
        )

    def rotate_one(self, scope: str, *, compromised: bool) -> KeyRecord:
        """Rotate one key and return the new key's row. An error is raised, not returned."""
        outcome = self.rotate([scope], compromised=compromised)[scope]
        if isinstance(outcome, EventSealError):
            raise outcome
        return outcome.new


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyringOptions:
    """The checked arguments of a keyring. See :class:`eventseal.keys.Keyring`."""

    application: str
    kms: tuple[KmsAdapter, ...]
    key_store: KeyStore
    policy: RotationPolicy
    cache: CachePolicy
    clock: Clock
    branches: int | None
    wrap_quorum: int | None
    fall_back_on_outage: bool
    scope_digest: bool
    key_tables: int


class Ring:
    """
    All of a keyring's state in memory. A forked child creates it again.

    Args:
        given: The keyring's arguments.
    """

    def __init__(self, given: KeyringOptions) -> None:
        self.given = given
        self.counters = KeyringCounters()
        self.confirmation = Confirmation(given.cache, given.policy)
        self.held_keys = held_keys = HeldKeys(given.cache, self.confirmation)
        key_store, calls = counted(given.key_store, self.counters), KekCalls(self.counters)
        self.keks = Keks(
            given.kms,
            calls=calls,
            quorum=given.wrap_quorum,
            fall_back_on_outage=given.fall_back_on_outage,
            clock=given.clock,
            verifier=Verifier(key_store),
        )
        self.ledger_keys = LedgerKeys(given.application, self.keks, held_keys)
        self.claims = Claims(given.application, key_store)
        self.store_key = StoreKey(
            given.application, key_store, self.keks, self.claims, scope_digest=given.scope_digest
        )
        self.scope_digests = (
            ScopeDigests(self.store_key, given.cache.max_keys) if given.scope_digest else None
        )
        revocations = Revocations(given.application, key_store, held_keys, key_tables=given.key_tables)
        self.store = CheckedStore(key_store, revocations, self.store_key)
        self.refresher, self.tables, self.destroyer = Refresher(self), KeyTables(self), Destroyer(self)
        by_keks = RingParts(
            application=given.application,
            purpose=KeyPurpose.BRANCH,
            wrapping=self.keks,
            store=self.store,
            claims=self.claims,
            held_keys=held_keys,
            store_key=self.store_key,
            refresher=self.refresher,
            destroyer=self.destroyer,
            rotation=given.policy,
            clock=given.clock,
            counters=KeyringCounters(),  # the keyring's counters do not count hits and misses of branch keys
        )
        self.branch_keys = KeysOfPurpose(by_keks)
        self.branches = Branches(
            given.branches, self.keks, sealer=self.branch_keys.sealer, opener=self.branch_keys.opener
        )
        by_branches = replace(by_keks, wrapping=self.branches, counters=self.counters)
        self.data_keys = KeysOfPurpose(replace(by_branches, purpose=KeyPurpose.DATA))
        self.field_keys = KeysOfPurpose(replace(by_branches, purpose=KeyPurpose.FIELD))
        self.wrappings = KeyWrappings(by_keks, given, calls, self.branches, self.branch_keys)

"""Gives the keys that seal: each scope's active one, with a lease, and replaced when its time has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    KeyLimitError,
    KeyNotFoundError,
    KmsError,
    StoreError,
    StoreUnavailableError,
)
from eventseal.keys.concurrency import SingleFlight
from eventseal.keys.records import checked_scope
from eventseal.keys.ring.new_keys import ScopeBatch, Seats
from eventseal.keys.ring.opening import ATTEMPTS
from eventseal.keys.states import KeyState
from eventseal.keys.store import HARD_LIMIT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.ring.held_keys import Memory
    from eventseal.keys.ring.key_cache import CachedKey, Lease
    from eventseal.keys.ring.opening import Refresher
    from eventseal.keys.ring.parts import Resources
    from eventseal.keys.ring.rotating import Rotator
    from eventseal.keys.ring.store_key import StoreKey


ROTATION_RESTS = 30.0
"""Seconds for which a rotation by policy that failed is not tried again."""


class Sealer:
    """Gives the keys that seal, each with a lease for what it is about to seal."""

    def __init__(
        self,
        resources: Resources,
        memory: Memory,
        store_key: StoreKey,
        *,
        refresher: Refresher,
        seats: Seats,
        rotator: Rotator,
    ) -> None:
        self._resources = resources
        self._memory = memory
        self._store_key = store_key
        self._refresher = refresher
        self._seats = seats
        self._rotator = rotator
        self._active = memory.of(resources.purpose).active
        self._flights: SingleFlight[str, CachedKey] = SingleFlight()
        self._debts: dict[UUID, Lease] = {}

    def keys(self, items_by_scope: Mapping[str, int], *, make: bool) -> dict[str, DataKey]:
        """
        Give each scope's active key; raises as :meth:`eventseal.keys.Keyring.sealing_keys` does.

        Args:
            items_by_scope: How many items each scope's key will seal.
            make: Whether keys may be made: of scopes that have none, or by policy.
        """
        self._memory.check_open()
        wanted = {checked_scope(scope): _checked_count(items) for scope, items in items_by_scope.items()}
        found: dict[str, DataKey] = {}
        if self._store_key.seals() is None:
            if not make:
                return found
            self._store_key.made_seals()
        known = self._active.keys() & wanted.keys()
        self._resources.counters.hits += len(known)
        self._resources.counters.count_misses(len(wanted) - len(known))
        while wanted:
            self._refresher.confirm_for_sealing()
            self._take(wanted, found)
            if wanted:
                self._settle_shared(wanted, found, make=make)
        return found

    def _take(self, wanted: dict[str, int], found: dict[str, DataKey]) -> None:
        """Take from the leases that are there."""
        now = self._resources.clock.now()
        for scope, items in list(wanted.items()):
            cached = self._active.get(scope)
            if cached is not None and _is_ready(cached, now) and cached.lease.take(items):
                cached.used = self._memory.uses
                found[scope] = cached.key
                del wanted[scope]

    def _settle_shared(self, wanted: dict[str, int], found: dict[str, DataKey], *, make: bool) -> None:
        """Settle the scopes that no other thread settles; those of others are tried again by the caller."""
        mine: list[str] = []

        def settle(claimed: list[str]) -> dict[str, CachedKey | EventSealError]:
            mine.extend(claimed)
            return self._settle({scope: wanted[scope] for scope in claimed}, make=make)

        loaded, awaited = self._flights.run(list(wanted), settle)
        for outcome in (*loaded.values(), *awaited.values()):
            if isinstance(outcome, EventSealError):
                raise outcome
        for scope in mine:
            del wanted[scope]
            settled = loaded.get(scope)
            if settled is not None and not isinstance(settled, EventSealError):
                found[scope] = settled.key

    def _settle(self, items: dict[str, int], *, make: bool) -> dict[str, CachedKey | EventSealError]:
        """Give each scope a key with its items leased, or the error; nothing for one that has no key."""
        batch = ScopeBatch(items)
        for _ in range(ATTEMPTS):
            self._seats.fill(batch, make=make)
            self._recall_debts(batch)
            if make:
                self._rotate_due(batch)
            self._lease(batch)
            if not batch.pending:
                return batch.outcomes
        refusal, scope = batch.refusal, next(iter(batch.pending))
        if refusal is not None:
            raise StoreUnavailableError(
                f"no key was made for scope {scope!r}: {refusal}", remedy=refusal.remedy
            ) from refusal
        raise StoreUnavailableError(f"the active key of scope {scope!r} moved {ATTEMPTS} times meanwhile")

    # --- rotation by policy ---

    def _rotate_due(self, batch: ScopeBatch) -> None:
        """Replace the keys whose time has come, without waiting; what cannot be replaced now seals on."""
        now = self._resources.clock.now()
        max_items = self._resources.rotation.max_items
        for scope, cached in list(batch.seats.items()):
            items = batch.pending[scope]
            if scope in batch.rotated or now < cached.rests_until:
                continue
            is_full = not cached.lease.covers(items) and cached.lease.is_over(items, max_items)
            if is_full or now >= cached.rotates_at:
                batch.rotated.add(scope)
                try:
                    self._replace(batch, scope, wait=False)
                except (KmsError, StoreError):
                    self._memory.rest(cached, now + ROTATION_RESTS)

    def _replace(self, batch: ScopeBatch, scope: str, *, wait: bool) -> None:
        """Replace a scope's key, or see that another process did; either way the seat is filled anew."""
        old = batch.seats[scope].record
        self._debts.pop(old.key_id, None)
        leased = max(batch.pending[scope], self._resources.first_block)
        try:
            self._rotator.replace(old, KeyState.DEACTIVATED, leased=leased, wait=wait)
        except KeyNotFoundError:
            self._memory.unseat(scope, self._resources.purpose)
        del batch.seats[scope]

    # --- leases ---

    def _recall_debts(self, batch: ScopeBatch) -> None:
        """Go on with the leases of keys that owe items, but were evicted and loaded again meanwhile."""
        for cached in batch.seats.values():
            cached.lease = self._debts.get(cached.record.key_id, cached.lease)

    def _lease(self, batch: ScopeBatch) -> None:
        """Take from the leases, and extend in one call those that are too small."""
        max_items = self._resources.rotation.max_items
        short: dict[str, tuple[CachedKey, int]] = {}
        for scope, cached in list(batch.seats.items()):
            items = batch.pending[scope]
            if cached.lease.take(items):
                batch.settle(scope, cached)
            elif wanted := cached.lease.wanted(items, max_items):
                short[scope] = (cached, wanted)
            else:
                self._replace_full(batch, scope)
        if short:
            self._extend(batch, short)

    def _extend(self, batch: ScopeBatch, short: dict[str, tuple[CachedKey, int]]) -> None:
        wanted = {cached.record.key_id: count for cached, count in short.values()}
        try:
            totals = self._resources.store.reserve(wanted)
        except StoreError as error:
            for scope, (cached, _) in short.items():
                on_credit = isinstance(error, StoreUnavailableError) and cached.lease.borrow(
                    batch.pending[scope]
                )
                if on_credit:
                    self._debts[cached.record.key_id] = cached.lease
                batch.settle(scope, cached if on_credit else error)
            return
        for scope, (cached, count) in short.items():
            total = totals.get(cached.record.key_id)
            self._debts.pop(cached.record.key_id, None)
            if total is None:  # no longer active, or nearly full: read the scope again
                self._memory.unseat(scope, self._resources.purpose)
                del batch.seats[scope]
            else:
                cached.lease.grant(count, total=total, items=batch.pending[scope])
                batch.settle(scope, cached)

    def _replace_full(self, batch: ScopeBatch, scope: str) -> None:
        """Replace a key that may seal no more; this is waited for."""
        key_id = batch.seats[scope].record.key_id
        try:
            self._replace(batch, scope, wait=True)
        except (KmsError, StoreError) as error:
            limit = KeyLimitError(
                f"key {key_id} of scope {scope!r} may seal no more and cannot be rotated: {error}",
                key_id=key_id,
            )
            limit.__cause__ = error
            batch.settle(scope, limit)


def _is_ready(cached: CachedKey, now: float) -> bool:
    return now < cached.seals_until and not cached.key.closed


def _checked_count(items: int) -> int:
    if items < 0:
        raise ConfigurationError(f"{items} items cannot be sealed; the count must not be negative")
    if items > HARD_LIMIT:
        raise KeyLimitError(
            f"a batch of {items} items is more than one key may seal ({HARD_LIMIT})",
            remedy="Seal the items in smaller batches.",
        )
    return items

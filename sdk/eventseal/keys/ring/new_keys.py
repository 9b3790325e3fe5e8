"""New keys: records ready for the key store, and each scope given an active key on first use."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.errors import EventSealError, IntegrityError, KeyDestroyedError
from eventseal.keys.authentication.row_checks import closed_scope, tombstone_of_open_scope, why_not_sealing
from eventseal.keys.authentication.row_macs import BINDING_SIZE, binding_of
from eventseal.keys.records import KeyRecord
from eventseal.keys.ring.opening import Rows
from eventseal.keys.states import SUBJECT_PURPOSES, KeyState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from eventseal.keys.authentication.row_checks import Moment
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import Admission
    from eventseal.keys.ring.held_keys import Memory
    from eventseal.keys.ring.key_cache import CachedKey
    from eventseal.keys.ring.opening import Opener, Refresher
    from eventseal.keys.ring.parts import Resources
    from eventseal.keys.ring.store_key import StoreKey
    from eventseal.keys.states import KeyPurpose


_NANOSECONDS = 1_000_000
_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_BITS = (1 << 62) - 1


def new_key_id() -> UUID:
    """
    Make a key id that sorts by the moment it was made, to a quarter of a microsecond.

    Returns:
        48 bits of milliseconds, 12 bits of their fraction (section 6.2, method 3), 62 bits of the kernel's
        randomness. Nothing is remembered between calls, so neither a thread nor a fork can repeat an id.
    """
    milliseconds, rest = divmod(time.time_ns(), _NANOSECONDS)
    fraction = (rest << 12) // _NANOSECONDS
    randomness = int.from_bytes(os.urandom(8)) & _RANDOM_BITS
    return UUID(
        int=(milliseconds & (1 << 48) - 1) << 80 | _VERSION_7 | fraction << 64 | _VARIANT | randomness
    )


def new_record(application: str, scope: str, purpose: KeyPurpose, *, leased: int) -> KeyRecord:
    """Make the record of a new active key, without what only its bytes can give: binding, wrappings, seal."""
    return KeyRecord(
        key_id=new_key_id(),
        application=application,
        scope=scope,
        active_scope=scope,
        purpose=purpose,
        state=KeyState.ACTIVE,
        binding=b"",
        items_reserved=leased,
        seal=b"",
    )


def new_tombstone(application: str, scope: str, purpose: KeyPurpose) -> KeyRecord:
    """Make the record, without its seal, of a shredded key that never was: it keeps a scope's slot taken."""
    return replace(
        new_record(application, scope, purpose, leased=0),
        state=KeyState.DESTROYED,
        destroyed_by="shredded",
        binding=bytes(BINDING_SIZE),  # of no key: nothing is ever unwrapped for this row
    )


def new_keys(
    resources: Resources, seals: Seals, leases: Mapping[str, int]
) -> dict[str, tuple[DataKey, KeyRecord]]:
    """
    Make a key for each scope; nothing is stored yet.

    Args:
        resources: Say for what purpose, and what makes and wraps them.
        seals: Seal their rows.
        leases: By scope the items that this process leases with its key.

    Raises:
        KmsError: Some key could not be wrapped; then none is given.
    """
    blank = [
        new_record(resources.application, scope, resources.purpose, leased=leased)
        for scope, leased in leases.items()
    ]
    made = zip(blank, resources.wrapping.generate(blank), strict=True)
    return {
        record.scope: (key, seals.sealed(replace(record, binding=binding_of(key), wrappings=wrappings)))
        for record, (key, wrappings) in made
    }


class ScopeBatch:
    """
    Scopes that one thread settles.

    Attributes:
        pending: By scope the items to be sealed, until the scope has its outcome.
        outcomes: Of the others.
        seats: The keys that are about to seal for them, as long as nothing shows that they must not.
        rotated: Scopes whose key was to be replaced by policy: that is tried once.
        refusal: Why new keys were not stored, the last time, though no other process was first.
    """

    def __init__(self, items: Mapping[str, int]) -> None:
        self.pending = dict(items)
        self.outcomes: dict[str, CachedKey | EventSealError] = {}
        self.seats: dict[str, CachedKey] = {}
        self.rotated: set[str] = set()
        self.refusal: KeyDestroyedError | None = None

    def settle(self, scope: str, outcome: CachedKey | EventSealError) -> None:
        """Give a scope its outcome."""
        self.pending.pop(scope, None)
        self.seats.pop(scope, None)
        self.outcomes[scope] = outcome


class Seats:
    """
    Seats the key that seals for each scope.

    A key's row is committed before the key takes its seat; who loses the race for a scope's slot drops its
    key and unwraps the winner's.
    """

    def __init__(
        self,
        resources: Resources,
        memory: Memory,
        store_key: StoreKey,
        *,
        refresher: Refresher,
        opener: Opener,
    ) -> None:
        self._refresher = refresher
        self._resources = resources
        self._memory = memory
        self._store_key = store_key
        self._opener = opener
        self._purpose = resources.purpose
        self._active = memory.of(resources.purpose).active

    def fill(self, batch: ScopeBatch, *, make: bool) -> None:
        """Load the active keys that are not at hand, and make those that nobody has made."""
        missing = self._missing(batch)
        if not missing:
            return
        since = self._memory.moment()
        application = self._resources.application
        try:
            rows = self._resources.store.active(application, missing, purpose=self._purpose)
            admission = self._settle_closed(batch, missing, rows)
            self._seat_rows(batch, {s: row for s, row in rows.items() if s in batch.pending}, since)
            absent = [scope for scope in missing if scope not in rows and scope in batch.pending]
            if absent and make:
                self._make(batch, absent, admission)
        except EventSealError as error:
            for scope in missing:  # the other scopes of the batch, and who waits for them, need none of this
                if scope in batch.pending and scope not in batch.seats:
                    batch.settle(scope, error)
            return
        if not make:
            for scope in absent:
                del batch.pending[scope]

    def _missing(self, batch: ScopeBatch) -> list[str]:
        now = self._resources.clock.now()
        missing: list[str] = []
        for scope in batch.pending:
            cached = batch.seats.get(scope) or self._active.get(scope)
            if cached is not None and now < cached.expires and not cached.key.closed:
                batch.seats[scope] = cached
            else:
                batch.seats.pop(scope, None)
                missing.append(scope)
        return missing

    def _settle_closed(
        self, batch: ScopeBatch, scopes: Collection[str], rows: Mapping[str, KeyRecord]
    ) -> Admission | None:
        """
        Settle the scopes that the revocation tree has as closed, whatever rows hold their slots.

        Args:
            batch: Has the scopes.
            scopes: To be looked at.
            rows: Those that hold slots, not checked yet.

        Returns:
            What admits new keys of the scopes; ``None`` for keys that are never shredded.
        """
        if self._purpose not in SUBJECT_PURPOSES:
            return None
        seals, revocations = self._store_key.made_seals(), self._resources.store.revocations
        states = revocations.scopes(self._purpose, scopes, seals)
        if any(closed != _holds_tombstone(rows, scope) for scope, closed in states.closed.items()):
            self._refresher.refresh()  # maybe shredded or reopened since the last one
            states = revocations.scopes(self._purpose, scopes, seals)
        for scope, closed in states.closed.items():
            if isinstance(closed, IntegrityError):
                batch.settle(scope, closed)
            elif closed and not _holds_tombstone(rows, scope):
                batch.settle(scope, closed_scope(scope))
            elif _holds_tombstone(rows, scope) and not closed and not revocations.are_old:
                batch.settle(scope, tombstone_of_open_scope(rows[scope]))
        return states.admission

    def _seat_rows(self, batch: ScopeBatch, rows: Mapping[str, KeyRecord], since: Moment) -> None:
        application, seals = self._resources.application, self._store_key.made_seals()
        good: list[KeyRecord] = []
        for scope, record in rows.items():
            refusal = why_not_sealing(
                record, scope, application=application, seals=seals, purpose=self._purpose
            )
            if refusal is None:
                good.append(record)
                continue
            batch.settle(scope, refusal)
            if isinstance(refusal, KeyDestroyedError):
                self._memory.bury(record)
        by_id = {record.key_id: record for record in good}
        for key_id, outcome in self._opener.load(list(by_id), Rows(by_id, since)).items():
            if isinstance(outcome, EventSealError):
                batch.settle(by_id[key_id].scope, outcome)
            else:
                self._seat(batch, outcome, by_id[key_id], since)

    def _make(self, batch: ScopeBatch, scopes: Collection[str], admission: Admission | None) -> None:
        self._resources.store.revocations.refuse_old()
        first_block = self._resources.first_block
        leases = {scope: max(batch.pending[scope], first_block) for scope in scopes}
        since = self._memory.moment()
        made = new_keys(self._resources, self._store_key.made_seals(), leases)
        kept: Mapping[str, KeyRecord] = {}
        try:
            kept = self._resources.store.add_active([record for _, record in made.values()], admit=admission)
        except KeyDestroyedError as error:  # a branch key was retired since it was confirmed, or a KEK closed
            batch.refusal = error
        if not kept:  # that, or something was revoked: look at the scopes again, under the branch's new key
            for key, _ in made.values():
                key.close()
            self._refresher.refresh()
            return
        now = self._resources.clock.now()
        winners: dict[str, KeyRecord] = {}
        for scope, (key, record) in made.items():
            stored = kept[scope]
            if stored.key_id != record.key_id:
                key.close()
                winners[scope] = stored
                continue
            cached = self._memory.keep(key, stored, since=since, now=now, leased=leases[scope])
            if cached is not None:
                self._seat(batch, cached, stored, since)
        self._seat_rows(batch, winners, since)

    def _seat(self, batch: ScopeBatch, cached: CachedKey, record: KeyRecord, since: Moment) -> None:
        if self._memory.seat(cached, record, since=since):
            batch.seats[record.scope] = cached


def _holds_tombstone(rows: Mapping[str, KeyRecord], scope: str) -> bool:
    return scope in rows and not rows[scope].state.opens

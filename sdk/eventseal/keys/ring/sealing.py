"""Finds, creates, leases and replaces the active keys that seal for scopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyLimitError,
    KmsError,
    StoreError,
    StoreUnavailableError,
)
from eventseal.keys.authentication.row_checks import closed_scope, tombstone_of_open_scope, why_not_sealing
from eventseal.keys.concurrency import SingleFlight
from eventseal.keys.records import checked_scope
from eventseal.keys.ring.opening import ATTEMPTS, Rows
from eventseal.keys.states import SUBJECT_PURPOSES, KeyState
from eventseal.keys.store import HARD_LIMIT
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import Admission, KeyRecord
    from eventseal.keys.ring.held_keys import Moment
    from eventseal.keys.ring.key_cache import CachedKey, Lease
    from eventseal.keys.ring.opening import Opener
    from eventseal.keys.ring.parts import RingParts
    from eventseal.keys.ring.rotating import Rotator


ROTATION_RESTS = 30.0
"""The seconds before a failed rotation by policy is tried again."""


class ScopeBatch:
    """
    Scopes that one thread settles.

    Attributes:
        pending: For each scope without an outcome, the number of items to seal.
        outcomes: The outcomes of the other scopes.
        seats: The keys that will seal for the pending scopes, unless something forbids it.
        rotated: Scopes whose key was due for rotation by policy. Each is tried once.
        refusal: The reason why new keys were not stored last, although no other process was first.
    """

    def __init__(self, items: Mapping[str, int]) -> None:
        self.pending = dict(items)
        self.outcomes: dict[str, CachedKey | EventSealError] = {}
        self.seats: dict[str, CachedKey] = {}
        self.rotated: set[str] = set()
        self.refusal: KeyDestroyedError | None = None

    def settle(self, scope: str, outcome: CachedKey | EventSealError) -> None:
        """Set the outcome of a scope."""
        self.pending.pop(scope, None)
        self.seats.pop(scope, None)
        self.outcomes[scope] = outcome


class Seats:
    """
    Seats the key that seals for each scope.

    A key's row is committed before the key takes its seat. If another process wins the race for a scope's
    slot, this process drops its key and unwraps the winner's.
    """

    def __init__(self, parts: RingParts, opener: Opener) -> None:
        self._parts = parts
        self._held_keys = parts.held_keys
        self._opener = opener
        self._active = parts.held_keys.of(parts.purpose).active

    def fill(self, batch: ScopeBatch, *, make: bool) -> None:
        """Load or create the active keys that are not in memory."""
        missing = self._missing(batch)
        if not missing:
            return
        since = self._held_keys.moment()
        application = self._parts.application
        try:
            rows = self._parts.store.active(application, missing, purpose=self._parts.purpose)
            admission = self._settle_closed(batch, missing, rows)
            self._seat_rows(batch, {s: row for s, row in rows.items() if s in batch.pending}, since)
            absent = [scope for scope in missing if scope not in rows and scope in batch.pending]
            if absent and make:
                self._make_once(batch, absent, admission)
        except EventSealError as error:
            for scope in missing:  # the batch's other scopes and waiting threads need none of these
                if scope in batch.pending and scope not in batch.seats:
                    batch.settle(scope, error)
            return
        if not make:
            for scope in absent:
                del batch.pending[scope]

    def _missing(self, batch: ScopeBatch) -> list[str]:
        now = self._parts.clock.now()
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
        Settle closed scopes, whatever rows hold their slots.

        The revocation tree shows which scopes are closed.

        Args:
            batch: The batch that has the scopes.
            scopes: The scopes to check.
            rows: The unchecked rows that hold slots.

        Returns:
            The condition for new keys of the scopes. ``None`` for keys that are never shredded.
        """
        if self._parts.purpose not in SUBJECT_PURPOSES:
            return None
        # The tree decides, not the slot, because any user who can write to the database can edit or delete a
        # tombstone (docs/decisions/0025).
        seals, revocations = self._parts.store_key.made_seals(), self._parts.store.revocations
        states = revocations.scopes(self._parts.purpose, scopes, seals)
        if any(closed != _holds_tombstone(rows, scope) for scope, closed in states.closed.items()):
            self._parts.refresher.refresh()  # maybe shredded or reopened since the last refresh
            states = revocations.scopes(self._parts.purpose, scopes, seals)
        for scope, closed in states.closed.items():
            if isinstance(closed, IntegrityError):
                batch.settle(scope, closed)
            elif closed and not _holds_tombstone(rows, scope):
                batch.settle(scope, closed_scope(scope))
            elif _holds_tombstone(rows, scope) and not closed and not revocations.are_old:
                batch.settle(scope, tombstone_of_open_scope(rows[scope]))
        return states.admission

    def _seat_rows(self, batch: ScopeBatch, rows: Mapping[str, KeyRecord], since: Moment) -> None:
        application, seals = self._parts.application, self._parts.store_key.made_seals()
        good: list[KeyRecord] = []
        for scope, record in rows.items():
            refusal = why_not_sealing(
                record, scope, application=application, seals=seals, purpose=self._parts.purpose
            )
            if refusal is None:
                good.append(record)
                continue
            batch.settle(scope, refusal)
            if isinstance(refusal, KeyDestroyedError):
                self._held_keys.bury(record)
        by_id = {record.key_id: record for record in good}
        for key_id, outcome in self._opener.load(list(by_id), Rows(by_id, since)).items():
            if isinstance(outcome, EventSealError):
                batch.settle(by_id[key_id].scope, outcome)
            else:
                self._seat(batch, outcome, by_id[key_id], since)

    def _make_once(self, batch: ScopeBatch, scopes: list[str], admission: Admission | None) -> None:
        """Create the keys that no other process creates. Scopes without a seat must be read again."""
        parts = self._parts
        if not parts.calls_kms:
            self._make(batch, scopes, admission)
            return

        def is_filled() -> bool:
            rows = parts.store.unchecked.active(parts.application, scopes, purpose=parts.purpose)
            return len(rows) == len(scopes)

        turn = b"" if admission is None else admission.revoked
        mine = parts.claims.take(parts.purpose, dict.fromkeys(scopes, turn), is_filled=is_filled)
        if not mine:
            return
        try:
            self._make(batch, mine, admission)
        except BaseException:
            parts.claims.release(parts.purpose, dict.fromkeys(mine, turn))
            raise

    def _make(self, batch: ScopeBatch, scopes: Collection[str], admission: Admission | None) -> None:
        self._parts.store.revocations.refuse_old()
        first_block = self._parts.first_block
        leases = {scope: max(batch.pending[scope], first_block) for scope in scopes}
        since = self._held_keys.moment()
        made = self._parts.new_keys(leases)
        kept: Mapping[str, KeyRecord] = {}
        try:
            kept = self._parts.store.unchecked.add_active(
                [record for _, record in made.values()], admit=admission
            )
        except KeyDestroyedError as error:  # its branch key was retired, or its KEK closed
            batch.refusal = error
        if not kept:  # then, or if a key was revoked, check the scopes again, under the branch's new key
            for key, _ in made.values():
                key.close()
            self._parts.refresher.refresh()
            return
        now = self._parts.clock.now()
        winners: dict[str, KeyRecord] = {}
        for scope, (key, record) in made.items():
            stored = kept[scope]
            if stored.key_id != record.key_id:
                key.close()
                winners[scope] = stored
                continue
            cached = self._held_keys.keep(key, stored, since=since, now=now, leased=leases[scope])
            if cached is not None:
                self._seat(batch, cached, stored, since)
        self._seat_rows(batch, winners, since)

    def _seat(self, batch: ScopeBatch, cached: CachedKey, record: KeyRecord, since: Moment) -> None:
        if self._held_keys.seat(cached, record, since=since):
            batch.seats[record.scope] = cached


def _holds_tombstone(rows: Mapping[str, KeyRecord], scope: str) -> bool:
    return scope in rows and not rows[scope].state.opens


class Sealer:
    """Returns keys that seal, each with a lease for its items."""

    def __init__(self, parts: RingParts, opener: Opener, rotator: Rotator) -> None:
        self._parts = parts
        self._held_keys = parts.held_keys
        self._rotator = rotator
        self._seats = Seats(parts, opener)
        self._active = parts.held_keys.of(parts.purpose).active
        self._flights: SingleFlight[str, CachedKey] = SingleFlight()
        self._debts: dict[UUID, Lease] = {}

    def keys(self, items_by_scope: Mapping[str, int], *, make: bool) -> dict[str, DataKey]:
        """
        Return each scope's active key.

        Raises as :meth:`eventseal.keys.Keyring.sealing_keys` does.

        Args:
            items_by_scope: How many items each scope's key will seal.
            make: Whether keys may be created, for scopes that have none or by the rotation policy.
        """
        self._held_keys.check_open()
        wanted = {checked_scope(scope): _checked_count(items) for scope, items in items_by_scope.items()}
        found: dict[str, DataKey] = {}
        if self._parts.store_key.seals() is None:
            if not make:
                return found
            self._parts.store_key.made_seals()
        known = self._active.keys() & wanted.keys()
        self._parts.counters.hits += len(known)
        self._parts.counters.count_misses(len(wanted) - len(known))
        while wanted:
            self._parts.refresher.confirm_for_sealing()
            self._take(wanted, found)
            if wanted:
                self._settle_shared(wanted, found, make=make)
        return found

    def _take(self, wanted: dict[str, int], found: dict[str, DataKey]) -> None:
        """Take items from existing leases."""
        now = self._parts.clock.now()
        for scope, items in list(wanted.items()):
            cached = self._active.get(scope)
            if cached is not None and _is_ready(cached, now) and cached.lease.take(items):
                cached.used = self._held_keys.uses
                found[scope] = cached.key
                del wanted[scope]

    def _settle_shared(self, wanted: dict[str, int], found: dict[str, DataKey], *, make: bool) -> None:
        """
        Settle the scopes that no other thread settles.

        The caller tries the scopes of other threads again.
        """
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
        """
        Return a key with leased items, or an error, for each scope.

        A scope that has no key is left out.
        """
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
                f"no key was created for scope {scope!r}: {refusal}", remedy=refusal.remedy
            ) from refusal
        raise StoreUnavailableError(
            f"the active key of scope {scope!r} changed {ATTEMPTS} times in the meantime"
        )

    # --- rotation by policy ---

    def _rotate_due(self, batch: ScopeBatch) -> None:
        """
        Replace the keys that are due, without waiting.

        A key that cannot be replaced now continues to seal.
        """
        now = self._parts.clock.now()
        max_items = self._parts.rotation.max_items
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
                    # The append continues under the old key. An outage is not tried again at each append
                    # (docs/decisions/0006).
                    self._held_keys.rest(cached, now + ROTATION_RESTS)

    def _replace(self, batch: ScopeBatch, scope: str, *, wait: bool) -> None:
        """
        Replace a scope's key, or find that another process did it.

        In both cases the seat must be filled again.
        """
        old = batch.seats[scope].record
        self._debts.pop(old.key_id, None)
        leased = max(batch.pending[scope], self._parts.first_block)
        self._rotator.replace([old], KeyState.DEACTIVATED, leased=leased, wait=wait)
        del batch.seats[scope]

    # --- leases ---

    def _recall_debts(self, batch: ScopeBatch) -> None:
        """Restore the leases of keys that owe items but were evicted."""
        for cached in batch.seats.values():
            cached.lease = self._debts.get(cached.record.key_id, cached.lease)

    def _lease(self, batch: ScopeBatch) -> None:
        """Take items from the leases. Leases that are too small are extended in one call."""
        max_items = self._parts.rotation.max_items
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
            totals = self._parts.store.unchecked.reserve(wanted)
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
                self._held_keys.unseat(scope, self._parts.purpose)
                del batch.seats[scope]
            else:
                cached.lease.grant(count, total=total, items=batch.pending[scope])
                batch.settle(scope, cached)

    def _replace_full(self, batch: ScopeBatch, scope: str) -> None:
        """Replace a key that may seal no more, and wait for it."""
        key_id = batch.seats[scope].record.key_id
        try:
            self._replace(batch, scope, wait=True)
        except (KmsError, StoreError) as error:
            limit = KeyLimitError(
                f"key {key_id} of scope {scope!r} may not encrypt more items and cannot be rotated: {error}",
                key_id=key_id,
            )
            limit.__cause__ = error
            batch.settle(scope, limit)


def _is_ready(cached: CachedKey, now: float) -> bool:
    return now < cached.seals_until and not cached.key.closed


def _checked_count(items: int) -> int:
    if items < 0:
        raise ConfigurationError(f"{items} items cannot be encrypted, because the count must not be negative")
    if items > HARD_LIMIT:
        raise KeyLimitError(
            f"a batch of {counted(items, 'item')} is more than one key may encrypt ({HARD_LIMIT:,})",
            remedy="Encrypt the items in smaller batches.",
        )
    return items

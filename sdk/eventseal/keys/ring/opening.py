"""Loads keys by id, and confirms known states by one shared query."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    KmsUnavailableError,
    StoreError,
    StoreUnavailableError,
)
from eventseal.keys.authentication.row_checks import (
    lives_in_closed_scope,
    mark_deleted,
    store_key_deleted,
    why_not,
)
from eventseal.keys.concurrency import SingleFlight, copied
from eventseal.keys.data_key import is_bound
from eventseal.keys.states import SUBJECT_PURPOSES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.held_keys import Moment
    from eventseal.keys.ring.key_cache import CachedKey
    from eventseal.keys.ring.parts import Ring, RingParts


class Refresher:
    """Reads the application's change mark, and the changes if its counter moved."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        # Numbers of refreshes: the last one that began, and the last one that succeeded or set the failure.
        self._begun = self._ended = 0
        self._failure: EventSealError | None = None

    def confirm_for_opening(self) -> None:
        """
        Ensure that the knowledge of keys may be used to open.

        Raises:
            StoreUnavailableError: The key store is unavailable for longer than keys may open without it.
            IntegrityError: The mark, or the root of the revocation tree, is not authentic.
        """
        clock, confirmation = self._ring.given.clock, self._ring.confirmation
        try:
            self._share(self._begun, done=lambda: clock.now() <= confirmation.opens_until)
        except StoreUnavailableError:
            if not confirmation.outlives_store(clock.now()):
                raise

    def confirm_for_sealing(self) -> None:
        """
        Ensure that the knowledge of keys may be used to seal.

        Raises:
            StoreUnavailableError: The key store is unavailable.
            IntegrityError: The mark, or the root of the revocation tree, is not authentic.
        """
        clock, confirmation = self._ring.given.clock, self._ring.confirmation
        self._share(self._begun, done=lambda: clock.now() <= confirmation.seals_until)

    def refresh(self) -> None:
        """Refresh now, even if everything was confirmed a moment ago."""
        self._share(self._begun, done=lambda: False)

    def _share(self, begun: int, *, done: Callable[[], bool]) -> None:
        """
        Refresh, or use a refresh that another thread has just done.

        That refresh must have begun after the caller's request, as *begun* shows.

        Raises:
            EventSealError: This refresh or that one failed. If any other error ended that one, this thread
                refreshes itself.
        """
        if done():
            return
        self._ring.held_keys.check_open()
        with self._lock:
            if done():
                return
            if self._ended > begun:
                if self._failure is not None:
                    raise copied(self._failure)
                return
            self._begun += 1
            try:
                self._refresh()
            except EventSealError as error:
                self._failure, self._ended = error, self._begun
                raise
            self._failure, self._ended = None, self._begun

    def _refresh(self) -> None:
        application = self._ring.given.application
        seals = self._ring.store_key.known or self._ring.store_key.seals()
        counter, held, since = self._ring.held_keys.asked()
        began = self._ring.given.clock.now()
        # This reads one row, however many keys are revoked. The rest is read only if the counter moved
        # (docs/decisions/0025).
        changes = self._ring.store.unchecked.changes(application, counter, held)
        if changes is None:
            if seals is not None:
                raise mark_deleted(application)
            return  # no store key, so no key: there is nothing to confirm
        seals = seals or self._ring.store_key.seals()  # another process created it in the meantime
        if seals is None:
            raise store_key_deleted(application)
        revocations = self._ring.store.revocations
        # A mark of the format before the tree may pass, because is_old() has checked its MAC
        # (docs/decisions/0025).
        if changes.mark.has_tree or not seals.is_old(changes.mark):
            seals.check_mark(changes.mark)
        self._ring.held_keys.check_mark(changes.mark, since)
        if changes.mark.counter != counter:
            revoked = revocations.learn(changes.mark, changes.root, held, seals)
            self._ring.held_keys.learn(changes, seals, since, held, revoked=revoked)
        self._ring.confirmation.confirm(began, interval=changes.refresh_interval, store_time=changes.now)


REFUSAL_SECONDS = 5.0
_MOST_REFUSALS = 10_000

ATTEMPTS = 8
"""How often rows are read at most. Each new attempt needs a refresh that found changed states."""


class Rows(NamedTuple):
    """
    Rows as the key store returned them.

    Attributes:
        records: The rows by id. Absent ones are left out.
        since: The moment before the rows were read.
    """

    records: Mapping[UUID, KeyRecord]
    since: Moment


class Opener:
    """Loads keys by id. It checks every row before it uses the key, and every key against its row."""

    def __init__(self, parts: RingParts) -> None:
        self._parts = parts
        self._held_keys = parts.held_keys
        self._held = parts.held_keys.of(parts.purpose).keys
        self._flights: SingleFlight[UUID, CachedKey] = SingleFlight()
        # Absent and destroyed keys. A failure of a KMS or a key store is never remembered. Threads need no
        # lock, because each operation is a single dictionary operation.
        self._refusals: dict[UUID, tuple[EventSealError, float]] = {}
        self._changes = 0

    def look_again(self) -> None:
        """Forget which keys were absent or destroyed a moment ago."""
        self._refusals.clear()

    def keys(self, key_ids: Collection[UUID]) -> dict[UUID, DataKey | EventSealError]:
        """
        Return each key, or the error in its place.

        Raises:
            StoreError: The key store refused or failed.
            ConfigurationError: The keyring is closed.
        """
        self._held_keys.check_open()
        try:
            return self._keys(key_ids)
        except StoreError:  # an outage says nothing about a key (docs/decisions/0004)
            raise
        except EventSealError as error:  # of the store key or the change mark, on which all keys depend
            return dict.fromkeys(key_ids, error)

    def _keys(self, key_ids: Collection[UUID]) -> dict[UUID, DataKey | EventSealError]:
        held_keys, counters = self._held_keys, self._parts.counters
        held_keys.uses += 1
        self._parts.refresher.confirm_for_opening()
        if (changes := held_keys.known.changes) != self._changes:  # a scope may have been reopened
            self._changes = changes
            self._refusals.clear()
        found: dict[UUID, DataKey | EventSealError] = {}
        missing: list[UUID] = []
        now = self._parts.clock.now()
        for key_id in key_ids:
            if (cached := self._fresh(key_id, now)) is not None:
                cached.used = held_keys.uses
                found[key_id] = cached.key
            elif (refusal := self._refusal(key_id, now)) is not None:
                found[key_id] = refusal
            else:
                missing.append(key_id)
        counters.hits += len(found)
        counters.count_misses(len(missing))
        for key_id, outcome in self.load(missing).items():
            found[key_id] = outcome if isinstance(outcome, EventSealError) else outcome.key
        return found

    def load(
        self, key_ids: Sequence[UUID], rows: Rows | None = None
    ) -> dict[UUID, CachedKey | EventSealError]:
        """
        Load keys, together with the threads that need the same keys.

        Args:
            key_ids: The ids of keys that are not in memory, or must be unwrapped again.
            rows: The rows of the keys, if they were just read.

        Returns:
            One outcome for each key.

        Raises:
            StoreError: The key store refused or failed.
        """
        outcomes: dict[UUID, CachedKey | EventSealError] = {}
        missing = list(key_ids)
        while missing:
            loaded, awaited = self._flights.run(missing, lambda claimed: self._load(claimed, rows))
            outcomes |= loaded
            now = self._parts.clock.now()
            for key_id, outcome in awaited.items():
                if isinstance(outcome, StoreError):
                    raise outcome
                # A key that another thread loaded may have been destroyed since: the load began before this
                # call (docs/decisions/0006).
                if isinstance(outcome, EventSealError) or outcome is self._fresh(key_id, now):
                    outcomes[key_id] = outcome
            missing = [key_id for key_id in missing if key_id not in outcomes]
        return outcomes

    def _refusal(self, key_id: UUID, now: float) -> EventSealError | None:
        """Return a copy of a key's remembered error while it is valid."""
        error, until = self._refusals.get(key_id, (None, 0.0))
        return copied(error) if error is not None and now < until else None

    def _fresh(self, key_id: UUID, now: float) -> CachedKey | None:
        cached = self._held.get(key_id)
        return cached if cached is not None and now < cached.expires and not cached.key.closed else None

    def _load(self, key_ids: list[UUID], rows: Rows | None) -> dict[UUID, CachedKey | EventSealError]:
        batch = _Batch(key_ids)
        for _ in range(ATTEMPTS):
            self._settle_held(batch)
            if batch.pending:
                self._open(batch, rows or self._read(batch.pending))
                rows = None
            if not batch.pending:
                return batch.outcomes
        raise StoreUnavailableError(
            f"the states of keys changed {ATTEMPTS} times while key {next(iter(batch.pending))} was loaded"
        )

    def _settle_held(self, batch: _Batch) -> None:
        """
        Settle keys that another thread has just loaded, or that remain usable.

        Held keys remain usable while the KMS is known to be unavailable.
        """
        now = self._parts.clock.now()
        for key_id in list(batch.pending):
            if key_id not in self._held:
                continue
            held = self._fresh(key_id, now) or self._held_keys.outlives_kms(key_id, now)
            if held is not None:
                batch.settle(key_id, held)

    def _read(self, key_ids: Collection[UUID]) -> Rows:
        since = self._held_keys.moment()
        try:
            return Rows(self._parts.store.get(key_ids), since)
        except StoreUnavailableError:
            # Held keys were confirmed a moment ago, and their wrappings still unwrap (docs/decisions/0006).
            held = {key_id: cached.record for key_id in key_ids if (cached := self._held.get(key_id))}
            if len(held) < len(key_ids):
                raise
            return Rows(held, since)

    def _open(self, batch: _Batch, rows: Rows) -> None:
        seals = self._parts.store_key.known or self._parts.store_key.seals()
        if seals is not None:
            # The store key may have been created after the caller's check.
            self._parts.refresher.confirm_for_opening()
        now = self._parts.clock.now()
        refused: dict[UUID, EventSealError] = {}
        for key_id in batch.pending:
            refusal = why_not(
                rows.records.get(key_id),
                key_id,
                application=self._parts.application,
                seals=seals,
                purpose=self._parts.purpose,
            )
            if refusal is not None:
                refused[key_id] = refusal
        if seals is not None:
            self._note_reopened(refused, seals)
            if not self._refuse_closed(batch, rows, refused, seals):
                return  # states changed since the rows were read
        for key_id, refusal in refused.items():
            self._refuse(batch, key_id, rows.records.get(key_id), refusal)
        records = [rows.records[key_id] for key_id in batch.pending]
        self._unwrap(batch, [record for record in records if not batch.has_opened(record)])
        for record in records:
            key = batch.opened.get(record.key_id)
            if key is not None and record.key_id in batch.pending:
                self._keep(batch, key, record, rows.since, now)

    def _note_reopened(self, refused: dict[UUID, EventSealError], seals: Seals) -> None:
        """
        Record in errors of erased keys whether their scopes were reopened.

        In a reopened scope, an item of such a key may be forged.
        """
        revocations = self._parts.store.revocations
        erased = {
            key_id: error
            for key_id, error in refused.items()
            if isinstance(error, KeyDestroyedError) and error.destroyed_by == "shredded"
        }
        if not erased or revocations.are_old:
            return
        scopes = {error.scope for error in erased.values() if error.scope is not None}
        states = revocations.scopes(self._parts.purpose, scopes, seals)
        if not all(states.closed.values()):  # maybe shredded since the last refresh
            self._parts.refresher.refresh()
            states = revocations.scopes(self._parts.purpose, scopes, seals)
        for key_id, error in erased.items():
            closed = states.closed[error.scope] if error.scope is not None else True
            if isinstance(closed, IntegrityError):
                refused[key_id] = closed
            else:
                # In a reopened scope, only a listed item reads as erased (docs/decisions/0025).
                error.scope_reopened = not closed

    def _refuse_closed(
        self, batch: _Batch, rows: Rows, refused: dict[UUID, EventSealError], seals: Seals
    ) -> bool:
        """
        Refuse keys that are not destroyed although their scope is closed.

        Their rows were hidden while the scope was shredded.

        Returns:
            ``False`` if states changed since the rows were read, so that they must be read again.
        """
        revocations, purpose = self._parts.store.revocations, self._parts.purpose
        live = [rows.records[key_id] for key_id in batch.pending if key_id not in refused]
        if not live or purpose not in SUBJECT_PURPOSES or revocations.are_old:
            return True
        scopes = {record.scope for record in live}
        try:
            states = revocations.scopes(purpose, scopes, seals)
        except StoreUnavailableError:
            if all(record.key_id in self._held for record in live):
                return True  # checked when they were loaded: they remain usable without the store
            raise
        if any(states.closed.values()):  # maybe shredded or reopened since the last refresh
            self._parts.refresher.refresh()
            if self._held_keys.known.changes != rows.since.changes:
                return False
            states = revocations.scopes(purpose, scopes, seals)
        for record in live:
            closed = states.closed[record.scope]
            if closed:
                refused[record.key_id] = (
                    closed if isinstance(closed, IntegrityError) else lives_in_closed_scope(record)
                )
        return True

    def _unwrap(self, batch: _Batch, records: Sequence[KeyRecord]) -> None:
        for record, outcome in zip(records, self._parts.wrapping.unwrap(records), strict=True):
            if not isinstance(outcome, EventSealError):
                batch.opened[record.key_id] = outcome
                continue
            if isinstance(outcome, KeyDestroyedError) and record.key_id not in batch.reread:
                # Its branch key was destroyed. A rewrap may have wrapped it under another one
                # (docs/decisions/0010).
                batch.reread.add(record.key_id)
                continue
            held: CachedKey | None = None
            if isinstance(outcome, KmsUnavailableError):
                held = self._held_keys.outlives_kms(record.key_id, self._parts.clock.now(), failed=True)
            batch.settle(record.key_id, held or outcome)

    def _keep(self, batch: _Batch, key: DataKey, record: KeyRecord, since: Moment, now: float) -> None:
        try:
            kept = self._held_keys.keep(key, record, since=since, now=now)
        except IntegrityError as error:
            batch.settle(record.key_id, error)
            return
        if kept is not None:
            self._refusals.pop(record.key_id, None)
            batch.settle(record.key_id, kept)

    def _refuse(self, batch: _Batch, key_id: UUID, record: KeyRecord | None, refusal: EventSealError) -> None:
        batch.settle(key_id, refusal)
        if record is not None and isinstance(refusal, KeyDestroyedError):
            self._held_keys.bury(record)
        # A failure of the KMS or the key store is never remembered, so that its end is noticed
        # (docs/decisions/0006).
        if isinstance(refusal, KeyNotFoundError | KeyDestroyedError):
            if len(self._refusals) >= _MOST_REFUSALS:
                self._refusals.clear()
            self._refusals[key_id] = (refusal, self._parts.clock.now() + REFUSAL_SECONDS)


class _Batch:
    """
    Keys that one thread loads, until each has its outcome.

    Attributes:
        pending: The keys that have no outcome yet.
        outcomes: The outcomes of the other keys.
        opened: Handles of unwrapped keys, even if their rows must be read again.
        reread: The keys whose rows are read once more, because the row names a destroyed branch key.
    """

    def __init__(self, key_ids: Collection[UUID]) -> None:
        self.pending = dict.fromkeys(key_ids)
        self.outcomes: dict[UUID, CachedKey | EventSealError] = {}
        self.opened: dict[UUID, DataKey] = {}
        self.reread: set[UUID] = set()

    def settle(self, key_id: UUID, outcome: CachedKey | EventSealError) -> None:
        """Set the outcome of a key."""
        self.pending.pop(key_id, None)
        self.outcomes[key_id] = outcome

    def has_opened(self, record: KeyRecord) -> bool:
        """Return whether the key was unwrapped and belongs to this row."""
        key = self.opened.get(record.key_id)
        return key is not None and is_bound(key, record)

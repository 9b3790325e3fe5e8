"""The held keys and known states of a process, under one lock."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.keys.authentication.row_checks import REMEDY_OF_SET_BACK, check_row, set_back
from eventseal.keys.policy import RETRY_SECONDS
from eventseal.keys.revocation_tree import least_state
from eventseal.keys.ring.key_cache import CachedKey, KeyCache
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import MOST_BRANCHES, branch_wrapping, named_branch

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from uuid import UUID

    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.policy import CachePolicy
    from eventseal.keys.records import ChangeMark, Changes, KeyRecord
    from eventseal.keys.revocation_tree import RevokedAs
    from eventseal.keys.ring.key_cache import Confirmation


Held: TypeAlias = "dict[UUID, tuple[KeyPurpose, str] | None]"
"""Keys by id. A key that is held has its purpose and scope."""

MOST_BRANCH_KEYS = 2 * MOST_BRANCHES  # the branch keys that wrap, and as many rotated ones
_MOST_SEEN = 100_000  # about 31 MB (docs/decisions/0006)


class Moment(NamedTuple):
    """
    The knowledge when a query began.

    Attributes:
        changes: How many refreshes had found a changed counter.
        noted: How many states had been recorded.
        floor: The lowest counter that the store may still show.
    """

    changes: int
    noted: int
    floor: int


class _Seen(NamedTuple):
    state: KeyState
    row_version: int
    noted: int


class KnownStates:
    """
    The known counter, mark and key states of an application.

    Attributes:
        counter: The counter at the last refresh. It is -1 before the first refresh.
        changes: How many refreshes had found a changed counter.
    """

    def __init__(self) -> None:
        self.counter = -1
        self._floor = -1
        self.changes = 0
        self._noted = 0
        self._revoked = b""
        self._seen: OrderedDict[UUID, _Seen] = OrderedDict()

    def moment(self) -> Moment:
        """Return the current knowledge. Call it before a query whose rows are admitted after it."""
        return Moment(self.changes, self._noted, self._floor)

    def admit(self, record: KeyRecord, since: Moment) -> bool:
        """
        Compare a row with its key's known state, and record it.

        Args:
            record: An authentic row that was read by a query after *since*.
            since: The knowledge before the query.

        Returns:
            ``False`` if states changed since the query began, so that the row must be read again.

        Raises:
            IntegrityError: A later state was known before the query began.
        """
        if since.changes != self.changes:
            return False
        seen = self._seen.get(record.key_id)
        if seen is not None and _is_earlier(record, seen):
            if seen.noted > since.noted:
                return False
            raise set_back(record, seen.state)
        self.note(record)
        return True

    def note(self, record: KeyRecord) -> None:
        """Remember the state of a key that is no longer active."""
        if record.state is KeyState.ACTIVE:
            return
        self._noted += 1
        self._seen[record.key_id] = _Seen(record.state, record.row_version, self._noted)
        self._seen.move_to_end(record.key_id)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    def raise_floor(self, counter: int) -> None:
        """Record a counter that this process wrote. The store must not show a lower one afterwards."""
        self._floor = max(self._floor, counter)

    def check(self, mark: ChangeMark, since: Moment) -> None:
        """
        Compare an authentic mark with the known marks.

        Raises:
            IntegrityError: The mark is an earlier one, or another one with the same counter.
        """
        # If somebody put all key tables back, a process that knew later ones detects it here
        # (docs/decisions/0025).
        if mark.counter < since.floor:
            raise IntegrityError(
                f"the change counter of application {mark.application!r} went back "
                f"from {since.floor} to {mark.counter}",
                remedy=REMEDY_OF_SET_BACK,
            )
        if mark.counter == self.counter and mark.revoked != self._revoked:
            raise IntegrityError(
                f"the change mark of application {mark.application!r} changed without its counter",
                remedy=REMEDY_OF_SET_BACK,
            )

    def accept(self, mark: ChangeMark) -> None:
        """Accept a mark whose counter changed."""
        self.counter = mark.counter
        self.raise_floor(mark.counter)
        self._revoked = mark.revoked
        self.changes += 1


def _is_earlier(record: KeyRecord, seen: _Seen) -> bool:
    return not seen.state.may_become(record.state) or record.row_version < seen.row_version


class HeldKeys:
    """
    All keys and states that a fork drops and ``close`` forgets.

    The fast paths read the two dictionaries without the lock, because each is one lookup.

    Attributes:
        keys: Data keys by id.
        active: The data keys that seal, by scope.
        known: The known states. Read without the lock, they may be a moment late.
        uses: The number of calls that used keys. It determines which keys are evicted first. Threads may get
            the same number, because nothing else depends on it.
    """

    def __init__(self, caching: CachePolicy, confirmation: Confirmation) -> None:
        self._caching = caching
        self._lock = threading.Lock()
        self._caches = {
            KeyPurpose.DATA: KeyCache(caching.max_keys, confirmation),
            KeyPurpose.FIELD: KeyCache(caching.max_keys, confirmation),
            # Separate: a page of data keys must not evict the branch key of the next (docs/decisions/0008).
            KeyPurpose.BRANCH: KeyCache(MOST_BRANCH_KEYS, confirmation),
        }
        self._branches = self._caches[KeyPurpose.BRANCH].keys
        self.known = KnownStates()
        self._kms_rests_until = -inf
        self.uses = 0
        self._closed = False
        self.keys = self.of(KeyPurpose.DATA).keys
        self.active = self.of(KeyPurpose.DATA).active

    def of(self, purpose: KeyPurpose) -> KeyCache:
        """Return the keys of one purpose, for reading only."""
        return self._caches[purpose]

    def check_open(self) -> None:
        """
        Refuse to continue after ``close``.

        Raises:
            ConfigurationError: The keyring is closed.
        """
        if self._closed:
            raise ConfigurationError(
                "the keyring is closed", remedy="Create another keyring. A closed keyring returns no keys."
            )

    def moment(self) -> Moment:
        """Return the current knowledge. Call it before a query whose rows are kept after it."""
        with self._lock:
            return self.known.moment()

    # --- the input and the result of a refresh ---

    def asked(self) -> tuple[int, Held, Moment]:
        """Return the input of a refresh: the counter, held keys and moment."""
        with self._lock:
            # A branch key that another one evicted may have opened keys that are still held.
            held: Held = {cached.branch: None for cached in self._all() if cached.branch is not None}
            for cached in self._all():
                held[cached.record.key_id] = cached.record.purpose, cached.record.scope
            return self.known.counter, held, self.known.moment()

    def learn(
        self,
        changes: Changes,
        seals: Seals,
        since: Moment,
        asked: Collection[UUID],
        *,
        revoked: Mapping[UUID, RevokedAs],
    ) -> None:
        """
        Adopt the result of a refresh. One thread calls it at a time.

        Args:
            changes: Changes that were read after *since*. The mark is authentic.
            seals: The MACs that authenticate the rows.
            since: The moment before the query.
            asked: The ids that were held then. Keys that were kept since are not in *changes*, and are read
                again.
            revoked: The entries of held keys in the revocation tree, where they may have changed.
        """
        with self._lock:
            if changes.mark.counter == self.known.counter:
                return
            # Rows come before the mark. After the mark, everything that was read earlier counts as outdated.
            for record in changes.records:
                self._learn_row(replace(record, revoked_as=revoked.get(record.key_id)), seals, since)
            for cache in self._caches.values():
                for key_id in cache.keys.keys() - set(asked):
                    cache.drop(key_id, close=False)
            self._end_revoked(revoked)
            self.known.accept(changes.mark)

    def check_mark(self, mark: ChangeMark, since: Moment) -> None:
        """
        Compare an authentic mark with the known marks. Raises as :meth:`KnownStates.check` does.

        Args:
            mark: The mark, read after *since*.
            since: The moment before.
        """
        with self._lock:
            self.known.check(mark, since)

    # --- keys ---

    def keep(
        self, key: DataKey, record: KeyRecord, *, since: Moment, now: float, leased: int = 0
    ) -> CachedKey | None:
        """
        Hold a new or unwrapped key, no longer than its branch key.

        Args:
            key: The key's handle. If the key is already held, that handle stays, and this one is closed.
            record: The key's authentic row.
            since: The moment before the row was read.
            now: The time by the keyring's clock.
            leased: How many items this process leased with it.

        Returns:
            The held key, or ``None`` if states changed since the row was read, so that it must be read again.

        Raises:
            IntegrityError: The row shows an earlier state than a known one.
            ConfigurationError: The keyring was closed in the meantime.
        """
        with self._lock:
            if self._closed:
                key.close()
            self.check_open()
            if not self.known.admit(record, since):
                return None
            cache = self._caches[record.purpose]
            cached = cache.keys.get(record.key_id)
            if cached is None or cached.key.closed:
                cached = CachedKey(key, record, leased=leased)
            elif cached.key is not key:
                key.close()
            cache.renew(cached, record)
            # When it must be unwrapped again, and until when it outlives an outage of the KMS.
            cached.expires = now + self._caching.ttl
            cached.grace_ends = cached.expires + self._caching.outage_grace
            wrapped = branch_wrapping(record)
            cached.branch = None if wrapped is None else named_branch(wrapped)
            if wrapped is not None:
                # A key that a branch key opens is as old as the KMS's answer for the branch key
                # (docs/decisions/0008).
                branch = None if cached.branch is None else self._branches.get(cached.branch)
                cached.expires = min(cached.expires, now if branch is None else branch.expires)
                cached.grace_ends = min(cached.grace_ends, now if branch is None else branch.grace_ends)
            cached.schedule()
            self.uses += 1
            cached.used = self.uses
            cache.add(cached)
            return cached

    def admit(self, record: KeyRecord, *, since: Moment) -> bool:
        """Compare a row as :meth:`keep` does, without holding a key."""
        with self._lock:
            return self.known.admit(record, since)

    def seat(self, cached: CachedKey, record: KeyRecord, *, since: Moment) -> bool:
        """
        Seal under *cached* from now on.

        Args:
            cached: A key that is held, or was held until a moment ago.
            record: The key's active and authentic row.
            since: The moment before the row was read.

        Returns:
            ``False`` if states changed since then, so that the scope must be read again.
        """
        with self._lock:
            self.check_open()
            if not self.known.admit(record, since):
                return False
            cache = self._caches[record.purpose]
            cache.renew(cached, replace(record, wrappings=cached.record.wrappings))
            cache.add(cached)
            cache.active[record.scope] = cached
            return True

    def unseat(self, scope: str, purpose: KeyPurpose) -> None:
        """Stop sealing for *scope* until it is read again."""
        with self._lock:
            self._caches[purpose].active.pop(scope, None)

    def rest(self, cached: CachedKey, until: float) -> None:
        """Seal under *cached*, although it should be rotated. The keyring's clock measures *until*."""
        with self._lock:
            cached.rests_until = until
            cached.schedule()

    def bury(self, record: KeyRecord) -> None:
        """Record an authentic tombstone. Close held handles of the key and of keys that it opened."""
        with self._lock:
            self.known.note(record)
            self._end(record)

    def note_change(self, record: KeyRecord, *, counter: int) -> None:
        """Record a change of state that this process wrote, with its counter."""
        with self._lock:
            self.known.note(record)
            self.known.raise_floor(counter)
            if record.state is KeyState.DESTROYED:
                self._end(record)
                return
            cached = self._held(record.key_id)
            if cached is not None:
                self._caches[record.purpose].renew(cached, replace(record, wrappings=cached.record.wrappings))

    # --- outages of the KMS ---

    def outlives_kms(self, key_id: UUID, now: float, *, failed: bool = False) -> CachedKey | None:
        """
        Return an expired key that stays usable while the KMS is unavailable.

        Args:
            key_id: The id of a key that may be held.
            now: The time by the keyring's clock.
            failed: Whether the KMS was just found unavailable. If not, that must have been a short while ago.
        """
        with self._lock:
            if failed:
                self._kms_rests_until = now + RETRY_SECONDS
            cached = self._held(key_id)
            if cached is None or cached.key.closed or not now < min(self._kms_rests_until, cached.grace_ends):
                return None
            # Until then no thread calls the KMS: one call in 5 s is enough for all keys together
            # (docs/decisions/0006).
            cached.expires = min(self._kms_rests_until, cached.grace_ends)
            cached.schedule()
            return cached

    # --- the end ---

    def close(self) -> None:
        """Close every handle, and hold no key from now on."""
        with self._lock:
            self._closed = True
            for cache in self._caches.values():
                for key_id in list(cache.keys):
                    cache.drop(key_id, close=True)

    def close_in_child(self) -> None:
        """Close every handle in a forked child. Its locks are the parent's, so nothing here is used again."""
        for cached in self._all():
            cached.key.close_in_child()

    def _held(self, key_id: UUID) -> CachedKey | None:
        for cache in self._caches.values():
            if (cached := cache.keys.get(key_id)) is not None:
                return cached
        return None

    def _all(self) -> list[CachedKey]:
        return [cached for cache in self._caches.values() for cached in cache.keys.values()]

    def _learn_row(self, record: KeyRecord, seals: Seals, since: Moment) -> None:
        cached = self._held(record.key_id)
        try:
            check_row(record, record.key_id, record.application, seals)
            current = self.known.admit(record, since)
        except IntegrityError:
            # The error concerns only this row: the next caller that needs the key gets it
            # (docs/decisions/0006).
            for cache in self._caches.values():  # its purpose may be the edited column
                cache.drop(record.key_id, close=False)
            return
        if not current:
            return
        if record.state is KeyState.DESTROYED:
            self._end(record)
        elif cached is not None:
            self._caches[record.purpose].renew(cached, replace(record, wrappings=cached.record.wrappings))

    def _end_revoked(self, revoked: Mapping[UUID, RevokedAs]) -> None:
        """Drop each key with a later state in the tree. Its row may be edited."""
        for key_id, how in revoked.items():
            cached = self._held(key_id)
            if cached is None or (how != "unproven" and least_state(how).may_become(cached.record.state)):
                continue
            if how in {"retired", "shredded"}:
                self._end(cached.record)
            else:  # the next caller that needs the key reads its row again, and gets the error
                self._caches[cached.record.purpose].drop(key_id, close=False)

    def _end(self, record: KeyRecord) -> None:
        """Close a destroyed key's handle, and those of keys that it opened."""
        for cache in self._caches.values():
            cache.drop(record.key_id, close=True)
        if record.purpose is KeyPurpose.BRANCH:
            for held in [held for held in self._all() if held.branch == record.key_id]:
                self._caches[held.record.purpose].drop(held.record.key_id, close=True)

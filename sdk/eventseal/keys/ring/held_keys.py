"""What a process remembers of keys, behind one lock: the handles, and the states that it has seen."""

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
"""Keys by id, with the purpose and the scope of those that are held."""

MOST_BRANCH_KEYS = 2 * MOST_BRANCHES  # those that wrap, and as many that were rotated
_MOST_SEEN = 100_000  # some 31 MB (docs/decisions/0006)


class Moment(NamedTuple):
    """
    What was known when a query began.

    Attributes:
        changes: Refreshes that had found the counter moved.
        noted: States that had been noted.
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
    The application's counter, what its mark covered then, and the last seen state of each key that has moved.

    Attributes:
        counter: As of the last refresh; -1 before the first.
        changes: Refreshes that had found the counter changed.
    """

    def __init__(self) -> None:
        self.counter = -1
        self._floor = -1
        self.changes = 0
        self._noted = 0
        self._revoked = b""
        self._seen: OrderedDict[UUID, _Seen] = OrderedDict()

    def moment(self) -> Moment:
        """Say what is known now: to be asked before a query whose rows are admitted after it."""
        return Moment(self.changes, self._noted, self._floor)

    def admit(self, record: KeyRecord, since: Moment) -> bool:
        """
        Compare a row with what was seen of it, and note it.

        Args:
            record: Read, with its seal checked, by a query that began after *since*.
            since: What was known before the query.

        Returns:
            ``False`` if states moved since the query began, so that the row must be read again.

        Raises:
            IntegrityError: A later state had been seen before the query began.
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
        """Remember the state of a key that has moved from its first one."""
        if record.state is KeyState.ACTIVE:
            return
        self._noted += 1
        self._seen[record.key_id] = _Seen(record.state, record.row_version, self._noted)
        self._seen.move_to_end(record.key_id)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    def raise_floor(self, counter: int) -> None:
        """Note a counter that this process wrote itself: the store shows no lower one afterwards."""
        self._floor = max(self._floor, counter)

    def check(self, mark: ChangeMark, since: Moment) -> None:
        """
        Compare a mark, its seal checked, with what was seen of it.

        Raises:
            IntegrityError: It is an earlier one, or another one of the same counter.
        """
        # A process that saw later key tables notices here that all of them were put back
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
        """Accept a mark whose counter moved."""
        self.counter = mark.counter
        self.raise_floor(mark.counter)
        self._revoked = mark.revoked
        self.changes += 1


def _is_earlier(record: KeyRecord, seen: _Seen) -> bool:
    return not seen.state.may_become(record.state) or record.row_version < seen.row_version


class HeldKeys:
    """
    Everything that a fork drops and ``close`` forgets.

    The fast paths read the two dictionaries without the lock: each is one look-up.

    Attributes:
        keys: Data keys, by id.
        active: Those that seal, by scope.
        known: The states that were seen; read without the lock, it may be a moment late.
        uses: Numbers the calls that used keys, for the order in which keys go. Threads may draw the same
            number: nothing else depends on it.
    """

    def __init__(self, caching: CachePolicy, confirmation: Confirmation) -> None:
        self._caching = caching
        self._lock = threading.Lock()
        self._caches = {
            KeyPurpose.DATA: KeyCache(caching.max_keys, confirmation),
            KeyPurpose.FIELD: KeyCache(caching.max_keys, confirmation),
            # Apart: a page of data keys must not drive out the branch key of the next (docs/decisions/0008).
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
        """Give the keys of one purpose, to be read only."""
        return self._caches[purpose]

    def check_open(self) -> None:
        """
        Refuse to go on after ``close``.

        Raises:
            ConfigurationError: The keyring was closed.
        """
        if self._closed:
            raise ConfigurationError(
                "the keyring is closed", remedy="Make another keyring; a closed one gives no keys."
            )

    def moment(self) -> Moment:
        """Say what is known now: to be asked before a query whose rows are kept after it."""
        with self._lock:
            return self.known.moment()

    # --- what a refresh asks and learns ---

    def asked(self) -> tuple[int, Held, Moment]:
        """Give what a refresh asks with: the counter, the keys that are held, and the moment."""
        with self._lock:
            # Of a branch key that went for another one, the keys that it opened may be held still.
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
        Take over what a refresh read; called by one thread at a time.

        Args:
            changes: As read after *since*; its mark was checked.
            seals: Check the rows.
            since: The moment before the query.
            asked: The ids that were held then. What was kept since is not among *changes*: it is read again.
            revoked: Of keys that are held what the revocation tree says now, where it may have changed.
        """
        with self._lock:
            if changes.mark.counter == self.known.counter:
                return
            # Rows are learnt before the mark moves: afterwards all that was read before counts as stale.
            for record in changes.records:
                self._learn_row(replace(record, revoked_as=revoked.get(record.key_id)), seals, since)
            for cache in self._caches.values():
                for key_id in cache.keys.keys() - set(asked):
                    cache.drop(key_id, close=False)
            self._end_revoked(revoked)
            self.known.accept(changes.mark)

    def check_mark(self, mark: ChangeMark, since: Moment) -> None:
        """
        Compare a mark, whose seal was checked, with what was seen of it; raises as :meth:`learn` does.

        Args:
            mark: Read after *since*.
            since: The moment before.
        """
        with self._lock:
            self.known.check(mark, since)

    # --- keys ---

    def keep(
        self, key: DataKey, record: KeyRecord, *, since: Moment, now: float, leased: int = 0
    ) -> CachedKey | None:
        """
        Hold a key that was just unwrapped or made; one that a branch key wraps no longer than that one.

        Args:
            key: Its handle; one that is held already stays, and this one is closed.
            record: Its row, whose seal was checked.
            since: The moment before the row was read.
            now: By the keyring's clock.
            leased: Items that this process leased with it.

        Returns:
            The held key, or ``None`` if states moved since the row was read, so that it must be read again.

        Raises:
            IntegrityError: The row shows an earlier state than one that was seen.
            ConfigurationError: The keyring was closed meanwhile.
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
                # What a branch key opens is as old as the KMS's answer for that key (docs/decisions/0008).
                branch = None if cached.branch is None else self._branches.get(cached.branch)
                cached.expires = min(cached.expires, now if branch is None else branch.expires)
                cached.grace_ends = min(cached.grace_ends, now if branch is None else branch.grace_ends)
            cached.schedule()
            self.uses += 1
            cached.used = self.uses
            cache.add(cached)
            return cached

    def admit(self, record: KeyRecord, *, since: Moment) -> bool:
        """Compare a row with what was seen of its key, as :meth:`keep` does, without holding a key."""
        with self._lock:
            return self.known.admit(record, since)

    def seat(self, cached: CachedKey, record: KeyRecord, *, since: Moment) -> bool:
        """
        Seal under *cached* from now on.

        Args:
            cached: A key that is held, or was until a moment ago.
            record: Its active row, whose seal was checked.
            since: The moment before the row was read.

        Returns:
            ``False`` if states moved since then, so that the scope must be read again.
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
        """Seal no more for *scope* before it was read again."""
        with self._lock:
            self._caches[purpose].active.pop(scope, None)

    def rest(self, cached: CachedKey, until: float) -> None:
        """Seal under *cached*, although it should be rotated, until a moment of the keyring's clock."""
        with self._lock:
            cached.rests_until = until
            cached.schedule()

    def bury(self, record: KeyRecord) -> None:
        """Note a tombstone, whose seal was checked, and close the handle, and what it opened, if held."""
        with self._lock:
            self.known.note(record)
            self._end(record)

    def note_change(self, record: KeyRecord, *, counter: int) -> None:
        """Note a change of state that this process made itself, and the counter that it wrote."""
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
        Give a key that must be unwrapped again, but serves on while the KMS is unavailable.

        Args:
            key_id: Perhaps held.
            now: By the keyring's clock.
            failed: Whether the KMS was just found unavailable; if not, that must be a short while ago.
        """
        with self._lock:
            if failed:
                self._kms_rests_until = now + RETRY_SECONDS
            cached = self._held(key_id)
            if cached is None or cached.key.closed or not now < min(self._kms_rests_until, cached.grace_ends):
                return None
            # Until then nobody asks the KMS: once in 5 s is enough for all keys together
            # (docs/decisions/0006).
            cached.expires = min(self._kms_rests_until, cached.grace_ends)
            cached.schedule()
            return cached

    # --- the end ---

    def close(self) -> None:
        """Close every handle, and keep none from now on."""
        with self._lock:
            self._closed = True
            for cache in self._caches.values():
                for key_id in list(cache.keys):
                    cache.drop(key_id, close=True)

    def close_in_child(self) -> None:
        """Close every handle in a forked child, whose locks are the parent's; nothing here is used again."""
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
            # It is that row's error alone, and who asks for the key next gets it (docs/decisions/0006).
            for cache in self._caches.values():  # its purpose may be what was edited
                cache.drop(record.key_id, close=False)
            return
        if not current:
            return
        if record.state is KeyState.DESTROYED:
            self._end(record)
        elif cached is not None:
            self._caches[record.purpose].renew(cached, replace(record, wrappings=cached.record.wrappings))

    def _end_revoked(self, revoked: Mapping[UUID, RevokedAs]) -> None:
        """Hold no key, whatever its row says, that the revocation tree has in a later state."""
        for key_id, how in revoked.items():
            cached = self._held(key_id)
            if cached is None or (how != "unproven" and least_state(how).may_become(cached.record.state)):
                continue
            if how in {"retired", "shredded"}:
                self._end(cached.record)
            else:  # who asks for the key next reads its row again, and gets the error
                self._caches[cached.record.purpose].drop(key_id, close=False)

    def _end(self, record: KeyRecord) -> None:
        """Close the handle of a destroyed key at once, and those of the keys that it had opened."""
        for cache in self._caches.values():
            cache.drop(record.key_id, close=True)
        if record.purpose is KeyPurpose.BRANCH:
            for held in [held for held in self._all() if held.branch == record.key_id]:
                self._caches[held.record.purpose].drop(held.record.key_id, close=True)

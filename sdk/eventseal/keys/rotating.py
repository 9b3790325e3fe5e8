"""Gives a scope a new active key; the old one opens only. No item is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import KeyNotFoundError, StoreUnavailableError
from eventseal.keys.making import new_keys
from eventseal.keys.opening import ATTEMPTS
from eventseal.keys.rows import why_not, why_not_sealing
from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from eventseal.keys.known_states import Moment
    from eventseal.keys.memory import Memory
    from eventseal.keys.records import ChangeMark, KeyRecord, NextMark
    from eventseal.keys.refreshing import Refresher
    from eventseal.keys.resources import Resources
    from eventseal.keys.seals import Seals
    from eventseal.keys.store_key import StoreKey


class Replaced(NamedTuple):
    """
    How the replacement of an active key ended.

    Attributes:
        record: The row that holds the slot now.
        won: Whether it is the new one; if not, another process was first, and the row is not checked yet.
    """

    record: KeyRecord
    won: bool


class Rotator:
    """Replaces active keys. The KMS is called before the transaction, never in it."""

    def __init__(
        self, resources: Resources, memory: Memory, store_key: StoreKey, refresher: Refresher
    ) -> None:
        self._resources = resources
        self._memory = memory
        self._store_key = store_key
        self._refresher = refresher
        self._purpose = resources.purpose

    def rotate(self, scope: str, *, compromised: bool, make: Callable[[], object]) -> KeyRecord:
        """
        Rotate a scope's key, whoever holds it.

        Args:
            scope: Checked.
            compromised: Whether the old key's items must be encrypted again.
            make: Makes the first key of a scope that has none.

        Returns:
            The row of the new active key, or of another process's if that was first.

        Raises:
            KeyDestroyedError: The scope is closed.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        state = KeyState.COMPROMISED if compromised else KeyState.DEACTIVATED
        self._store_key.made_seals()
        for _ in range(ATTEMPTS):
            self._refresher.confirm_for_sealing()
            since = self._memory.moment()
            old = self._active(scope)
            if old is None:
                self._memory.unseat(scope, self._purpose)
                make()
                made = self._active(scope)
                if made is not None:
                    return made
            if old is None or not self._memory.admit(old, since=since):
                continue  # closed or moved meanwhile: read again
            try:
                replaced = self.replace(old, state, leased=self._resources.first_block, wait=True)
            except KeyNotFoundError:
                continue  # closed meanwhile, without another in its place
            if not replaced.won:
                self._check(replaced.record, scope)
                if compromised:
                    self._compromise(old.key_id)
            return replaced.record
        raise StoreUnavailableError(f"the active key of scope {scope!r} moved {ATTEMPTS} times meanwhile")

    def replace(self, old: KeyRecord, state: KeyState, *, leased: int, wait: bool) -> Replaced:
        """
        Close *old* and make another in its place.

        Args:
            old: The active row, as it was read and checked.
            state: What it becomes.
            leased: Items that this process leases under the new key at once.
            wait: Whether to wait for another writer of the key tables.

        Raises:
            KeyNotFoundError: No key holds the slot any more.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        seals, since = self._store_key.made_seals(), self._memory.moment()
        key, new = new_keys(self._resources, seals, {old.scope: leased})[old.scope]
        closed = seals.sealed(replace(old, state=state, active_scope=None, row_version=old.row_version + 1))
        marks = _Marks(self._memory, seals, closed, since)
        kept = self._resources.store.replace_active(old, closed, new, next_mark=marks, wait=wait)
        if kept.key_id != new.key_id:
            key.close()
            self._memory.unseat(old.scope, self._purpose)
            return Replaced(kept, won=False)
        self._memory.moved(closed, counter=marks.written)
        now = self._resources.clock.now()
        cached = self._memory.keep(key, kept, since=since, now=now, leased=leased)
        if cached is not None:
            self._memory.seat(cached, kept, since=since)
        return Replaced(kept, won=True)

    def _active(self, scope: str) -> KeyRecord | None:
        application = self._resources.application
        record = self._resources.store.active(application, [scope], purpose=self._purpose).get(scope)
        if record is not None:
            self._check(record, scope)
        return record

    def _check(self, record: KeyRecord, scope: str) -> None:
        application, seals = self._resources.application, self._store_key.made_seals()
        refusal = why_not_sealing(record, scope, application=application, seals=seals, purpose=self._purpose)
        if refusal is not None:
            raise refusal

    def _compromise(self, key_id: UUID) -> None:
        """Move a key, which another process has deactivated meanwhile, on to where it was meant to go."""
        seals = self._store_key.made_seals()
        for _ in range(ATTEMPTS):
            since = self._memory.moment()
            record = self._resources.store.get([key_id]).get(key_id)
            refusal = why_not(
                record, key_id, application=self._resources.application, seals=seals, purpose=self._purpose
            )
            if record is None or record.state in {KeyState.COMPROMISED, KeyState.DESTROYED}:
                return
            if refusal is not None:
                raise refusal
            closed = seals.sealed(
                replace(record, state=KeyState.COMPROMISED, row_version=record.row_version + 1)
            )
            marks = _Marks(self._memory, seals, closed, since)
            if self._resources.store.set_states([closed], next_mark=marks):
                self._memory.moved(closed, counter=marks.written)
                return
        raise StoreUnavailableError(f"key {key_id} moved {ATTEMPTS} times while it was marked compromised")


class _Marks:
    """Gives the mark that follows the locked one, and remembers its counter."""

    def __init__(self, memory: Memory, seals: Seals, closed: KeyRecord, since: Moment) -> None:
        self._memory = memory
        self._seals = seals
        self._revoked = [closed.key_id] if closed.revoked else []
        self._since = since
        self.written = -1

    def __call__(self, mark: ChangeMark) -> ChangeMark:
        following = self._seals.next_mark(mark, revoked=self._revoked)
        self._memory.check_mark(mark, self._since)
        self.written = following.counter
        return following


if TYPE_CHECKING:
    _: type[NextMark] = _Marks

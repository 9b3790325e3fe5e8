"""Gives a scope a new active key; the old one opens only. No item is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    StoreUnavailableError,
)
from eventseal.keys.authentication.row_checks import why_not_sealing
from eventseal.keys.records import Replacement
from eventseal.keys.ring.new_keys import new_keys
from eventseal.keys.ring.opening import ATTEMPTS
from eventseal.keys.ring.state_transitions import Marks
from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from uuid import UUID

    from eventseal.keys.authentication.row_checks import Moment
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.destroying import Destroyer
    from eventseal.keys.ring.held_keys import Memory
    from eventseal.keys.ring.opening import Refresher
    from eventseal.keys.ring.parts import Resources
    from eventseal.keys.ring.store_key import StoreKey


class Replaced(NamedTuple):
    """
    How the replacement of an active key ended.

    Attributes:
        record: The row that holds the slot now.
        won: Whether it is the new one; if not, another process was first, and the row is not checked yet.
    """

    record: KeyRecord
    won: bool


class Rotated(NamedTuple):
    """
    How the rotation of a scope ended.

    Attributes:
        old: The key that was the active one; ``None`` if the scope had none.
        new: The row of the one that is.
    """

    old: UUID | None
    new: KeyRecord


class _BranchEndedError(StoreUnavailableError):
    """What wrapped a new key, a branch key or a KEK, came to its end before that was stored: make another."""


class Rotator:
    """Replaces active keys. The KMS is called before the transaction, never in it."""

    def __init__(
        self,
        resources: Resources,
        memory: Memory,
        store_key: StoreKey,
        *,
        refresher: Refresher,
        destroyer: Destroyer,
    ) -> None:
        self._resources = resources
        self._memory = memory
        self._store_key = store_key
        self._refresher = refresher
        self._destroyer = destroyer
        self._purpose = resources.purpose

    def rotate(self, scope: str, *, compromised: bool, make: Callable[[], object]) -> Rotated:
        """
        Rotate a scope's key, whoever holds it.

        Args:
            scope: Checked.
            compromised: Whether the old key's items must be encrypted again.
            make: Makes the first key of a scope that has none.

        Returns:
            The new active key, or another process's if that was first.

        Raises:
            KeyDestroyedError: The scope is closed.
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        state = KeyState.COMPROMISED if compromised else KeyState.DEACTIVATED
        ended: _BranchEndedError | None = None
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
                    return Rotated(None, made)
            if old is None or not self._memory.admit(old, since=since):
                continue  # closed or moved meanwhile: read again
            try:
                replaced = self.replace(old, state, leased=self._resources.first_block, wait=True)
            except KeyNotFoundError:
                continue  # closed meanwhile, without another in its place
            except _BranchEndedError as error:
                ended = error
                continue
            if not replaced.won:
                self._check(replaced.record, scope)
                if compromised:
                    self._mark_compromised(old.key_id)
            return Rotated(old.key_id, replaced.record)
        if ended is not None:
            raise ended
        raise StoreUnavailableError(f"the active key of scope {scope!r} moved {ATTEMPTS} times meanwhile")

    def rotate_many(
        self, scopes: Collection[str], *, compromised: bool, make: Callable[[str], object]
    ) -> dict[str, Rotated | EventSealError]:
        """
        Rotate the keys of many scopes, whose new keys are made and wrapped together.

        Args:
            scopes: Checked.
            compromised: Whether the old keys' items must be encrypted again.
            make: Makes the first key of a scope that has none.

        Returns:
            An outcome for each; an error stands for its scope alone.

        Raises:
            KmsError: The KMS refused or failed; none of the scopes was rotated.
            StoreError: The key store refused or failed; those before stay rotated.
        """
        outcomes: dict[str, Rotated | EventSealError] = {}
        self._store_key.made_seals()
        for _ in range(ATTEMPTS):
            self._refresher.confirm_for_sealing()
            since = self._memory.moment()
            fit = self._fit([scope for scope in scopes if scope not in outcomes], since)
            if not fit:
                break
            outcomes |= self._rotated_together(fit, compromised=compromised, since=since)
        for scope in scopes:
            if scope not in outcomes:
                outcomes[scope] = self._rotated_alone(scope, compromised=compromised, make=make)
        return outcomes

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
        try:
            replaced = self._replaced(old, state, new, since=since, wait=wait)
        except EventSealError:
            key.close()
            raise
        if not replaced.won:
            key.close()
            return replaced
        now = self._resources.clock.now()
        cached = self._memory.keep(key, replaced.record, since=since, now=now, leased=leased)
        if cached is not None:
            self._memory.seat(cached, replaced.record, since=since)
        return replaced

    def _replaced(
        self, old: KeyRecord, state: KeyState, new: KeyRecord, *, since: Moment, wait: bool
    ) -> Replaced:
        """Store a new key in the place of *old*."""
        seals = self._store_key.made_seals()
        closed = _closed(old, state, seals)
        marks = Marks(self._memory, seals, [(old, closed)], since)
        try:
            kept = self._resources.store.replace_active(old, closed, new, next_mark=marks, wait=wait)
        except KeyDestroyedError as error:
            self._refresher.refresh()  # learns of the branch's new key
            raise _BranchEndedError(str(error), remedy=error.remedy) from error
        self._memory.unseat(old.scope, self._purpose)
        if kept.key_id != new.key_id:
            return Replaced(kept, won=False)
        self._memory.moved(closed, counter=marks.written)
        return Replaced(kept, won=True)

    def _fit(self, scopes: Collection[str], since: Moment) -> dict[str, KeyRecord]:
        """Read active keys whose rows are in order; what is wrong with others shows when they are alone."""
        if not scopes:
            return {}
        rows = self._resources.store.active(self._resources.application, scopes, purpose=self._purpose)
        return {scope: old for scope, old in rows.items() if self._is_fit(old, scope, since)}

    def _is_fit(self, old: KeyRecord, scope: str, since: Moment) -> bool:
        try:
            return self._refusal(old, scope) is None and self._memory.admit(old, since=since)
        except IntegrityError:
            return False

    def _rotated_together(
        self, fit: Mapping[str, KeyRecord], *, compromised: bool, since: Moment
    ) -> dict[str, Rotated]:
        """
        Replace the keys of scopes in one transaction; give those that are not to be read again.

        Args:
            fit: The active rows, checked.
            compromised: Whether the old keys' items must be encrypted again.
            since: The moment before they were read.
        """
        state = KeyState.COMPROMISED if compromised else KeyState.DEACTIVATED
        seals = self._store_key.made_seals()
        made = new_keys(self._resources, seals, dict.fromkeys(fit, 0))
        for key, _ in made.values():
            key.close()  # who seals for the scope loads it: this process may rotate more than it can hold
        replacements = [
            Replacement(old, _closed(old, state, seals), made[scope][1]) for scope, old in fit.items()
        ]
        marks = Marks(self._memory, seals, [(old, closed) for old, closed, _ in replacements], since)
        try:
            holders = self._resources.store.replace_all_active(replacements, next_mark=marks)
        except KeyDestroyedError:
            self._refresher.refresh()  # learns of the branch's new key
            return {}
        rotated: dict[str, Rotated] = {}
        for old, closed, new in replacements:
            self._memory.unseat(old.scope, self._purpose)
            holder = holders.get(old.scope, old)
            if holder.key_id == new.key_id:
                self._memory.moved(closed, counter=marks.written)
            elif holder.key_id == old.key_id or self._refusal(holder, old.scope) is not None:
                continue
            elif compromised:  # another process was first, and may have deactivated it only
                self._mark_compromised(old.key_id)
            rotated[old.scope] = Rotated(old.key_id, holder)
        return rotated

    def _rotated_alone(
        self, scope: str, *, compromised: bool, make: Callable[[str], object]
    ) -> Rotated | EventSealError:
        try:
            return self.rotate(scope, compromised=compromised, make=lambda: make(scope))
        except (KeyDestroyedError, IntegrityError) as error:  # of this scope: the others are in order
            return error

    def _active(self, scope: str) -> KeyRecord | None:
        application = self._resources.application
        record = self._resources.store.active(application, [scope], purpose=self._purpose).get(scope)
        if record is not None:
            self._check(record, scope)
        return record

    def _check(self, record: KeyRecord, scope: str) -> None:
        refusal = self._refusal(record, scope)
        if refusal is not None:
            raise refusal

    def _refusal(self, record: KeyRecord, scope: str) -> EventSealError | None:
        application, seals = self._resources.application, self._store_key.made_seals()
        return why_not_sealing(record, scope, application=application, seals=seals, purpose=self._purpose)

    def _mark_compromised(self, key_id: UUID) -> None:
        """Move a key, which another process has deactivated meanwhile, on to where it was meant to go."""
        try:
            self._destroyer.mark_compromised([key_id])
        except (KeyDestroyedError, KeyNotFoundError):
            return  # it opens nothing any more: there is nothing left to be encrypted again


def _closed(old: KeyRecord, state: KeyState, seals: Seals) -> KeyRecord:
    """Make the record of a key that gave its slot up."""
    return seals.sealed(replace(old, state=state, active_scope=None, row_version=old.row_version + 1))

"""Gives scopes new active keys; the old ones open only. No item is touched."""

from __future__ import annotations

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
from eventseal.keys.ring.opening import ATTEMPTS
from eventseal.keys.ring.state_transitions import NextChangeMark, next_version
from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.held_keys import Moment
    from eventseal.keys.ring.parts import RingParts


class Rotated(NamedTuple):
    """
    How the rotation of a scope ended.

    Attributes:
        old: The key that was the active one; ``None`` if the scope had none.
        new: The row of the one that is.
    """

    old: UUID | None
    new: KeyRecord


class _Replaced(NamedTuple):
    """
    How the replacement of an active key ended.

    Attributes:
        record: The row that holds the slot now.
        won: Whether it is the new one; if not, another process was first, and the row is not checked yet.
    """

    record: KeyRecord
    won: bool


class _BranchEndedError(StoreUnavailableError):
    """What wrapped a new key, a branch key or a KEK, came to its end before that was stored: make another."""


class Rotator:
    """Replaces active keys. The KMS is called before the transaction, never in it."""

    def __init__(self, parts: RingParts) -> None:
        self._parts = parts
        self._held_keys = parts.held_keys

    def rotate(
        self, scopes: Collection[str], *, compromised: bool, make: Callable[[str], object]
    ) -> dict[str, Rotated | EventSealError]:
        """
        Rotate the keys of scopes, whose new keys are made, wrapped and stored together.

        Args:
            scopes: Checked. The new key of a single one is held, since who rotates it seals next; a process
                has no room for many.
            compromised: Whether the old keys' items must be encrypted again.
            make: Makes the first key of a scope that has none.

        Returns:
            An outcome for each; an error stands for its scope alone.

        Raises:
            KmsError: The KMS refused or failed; what was not rotated yet has its old key.
            StoreError: The key store refused or failed; those before stay rotated.
        """
        state = KeyState.COMPROMISED if compromised else KeyState.DEACTIVATED
        leased = self._parts.first_block if len(scopes) == 1 else None
        outcomes: dict[str, Rotated | EventSealError] = {}
        ended: _BranchEndedError | None = None
        self._parts.store_key.made_seals()
        for attempt in range(ATTEMPTS):
            self._parts.refresher.confirm_for_sealing()
            since = self._held_keys.moment()
            left = [scope for scope in scopes if scope not in outcomes]
            olds = self._replaceable(left, outcomes, make=make, since=since)
            # One scope that others rotate all the time must not hold up the rest of them.
            together = [olds] if olds and attempt < ATTEMPTS // 2 else [[old] for old in olds]
            for batch in together:
                try:
                    replaced = self.replace(batch, state, leased=leased, wait=True)
                except _BranchEndedError as error:
                    ended = error
                else:
                    outcomes |= self._rotated(batch, replaced, compromised=compromised)
            if len(outcomes) == len(scopes):
                return outcomes
        if ended is not None:
            raise ended
        scope = next(scope for scope in scopes if scope not in outcomes)
        raise StoreUnavailableError(f"the active key of scope {scope!r} moved {ATTEMPTS} times meanwhile")

    def replace(
        self, olds: Sequence[KeyRecord], state: KeyState, *, leased: int | None, wait: bool
    ) -> dict[str, _Replaced]:
        """
        Close active keys and make others in their place, all or none.

        Args:
            olds: The active rows, as they were read and checked.
            state: What they become.
            leased: Items that this process leases at once under each new key; ``None``: it holds none.
            wait: Whether to wait for another writer of the key tables.

        Returns:
            By scope; one is left out if no key holds its slot any more.

        Raises:
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        seals, since = self._parts.store_key.made_seals(), self._held_keys.moment()
        # Before the transaction: no lock waits for a KMS (docs/decisions/0001).
        made = self._parts.new_keys({old.scope: leased or 0 for old in olds})
        replacements = [
            Replacement(
                old, seals.sealed(next_version(old, state=state, active_scope=None)), made[old.scope][1]
            )
            for old in olds
        ]
        mark = NextChangeMark(
            self._held_keys, seals, [(old, closed) for old, closed, _ in replacements], since
        )
        replaced: dict[str, _Replaced] = {}
        unused = {scope: key for scope, (key, _) in made.items()}
        try:
            holders = self._stored(replacements, mark, wait=wait)
            for old, closed, new in replacements:
                self._held_keys.unseat(old.scope, self._parts.purpose)
                holder = holders.get(old.scope)
                if holder is None:
                    continue
                replaced[old.scope] = _Replaced(holder, won=holder.key_id == new.key_id)
                if holder.key_id != new.key_id:
                    continue
                self._held_keys.note_change(closed, counter=mark.written)
                if leased is not None:
                    key, now = unused.pop(old.scope), self._parts.clock.now()
                    cached = self._held_keys.keep(key, holder, since=since, now=now, leased=leased)
                    if cached is not None:
                        self._held_keys.seat(cached, holder, since=since)
        finally:
            for key in unused.values():
                key.close()
        return replaced

    def _stored(
        self, replacements: Sequence[Replacement], mark: NextChangeMark, *, wait: bool
    ) -> dict[str, KeyRecord]:
        try:
            with self._parts.store.changing() as store:
                if wait:
                    return store.replace_all_active(replacements, next_mark=mark)
                if not hasattr(store, "replace_active"):
                    return store.replace_all_active(replacements, next_mark=mark, wait=False)
                # A store that was written for an earlier release waits, except in this method.
                (replacement,) = replacements
                holder = store.replace_active(*replacement, next_mark=mark, wait=False)
                return {replacement.old.scope: holder}
        except KeyNotFoundError:  # of such a store: no key holds the slot
            return {}
        except KeyDestroyedError as error:
            self._parts.refresher.refresh()  # learns of the branch's new key
            raise _BranchEndedError(str(error), remedy=error.remedy) from error

    def _replaceable(
        self,
        scopes: Sequence[str],
        outcomes: dict[str, Rotated | EventSealError],
        *,
        make: Callable[[str], object],
        since: Moment,
    ) -> list[KeyRecord]:
        """Give the active rows that may give way, and note what became of the other scopes."""
        rows = self._active(scopes)
        found: list[KeyRecord] = []
        for scope in scopes:
            try:
                if (old := rows.get(scope)) is not None:
                    self._check(old, scope)
                    if self._held_keys.admit(old, since=since):
                        found.append(old)
                    continue
                self._held_keys.unseat(scope, self._parts.purpose)
                make(scope)
                if (made := self._active([scope]).get(scope)) is not None:
                    self._check(made, scope)
                    outcomes[scope] = Rotated(None, made)
            except (KeyDestroyedError, IntegrityError) as error:  # of this scope: the others are in order
                outcomes[scope] = error
        return found

    def _rotated(
        self, olds: Sequence[KeyRecord], replaced: dict[str, _Replaced], *, compromised: bool
    ) -> dict[str, Rotated]:
        """Say of each scope how it ended; one that must be read again is left out."""
        rotated: dict[str, Rotated] = {}
        for old in olds:
            record, won = replaced.get(old.scope, _Replaced(old, won=False))
            if record.key_id == old.key_id:  # no key holds the slot, or another of the batch had moved on
                continue
            if not won:
                if self._refusal(record, old.scope) is not None:
                    continue
                if compromised:  # the other process may have deactivated it only (docs/decisions/0006)
                    self._mark_compromised(old.key_id)
            rotated[old.scope] = Rotated(old.key_id, record)
        return rotated

    def _active(self, scopes: Collection[str]) -> dict[str, KeyRecord]:
        parts = self._parts
        return parts.store.active(parts.application, scopes, purpose=parts.purpose) if scopes else {}

    def _check(self, record: KeyRecord, scope: str) -> None:
        refusal = self._refusal(record, scope)
        if refusal is not None:
            raise refusal

    def _refusal(self, record: KeyRecord, scope: str) -> EventSealError | None:
        parts, seals = self._parts, self._parts.store_key.made_seals()
        return why_not_sealing(
            record, scope, application=parts.application, seals=seals, purpose=parts.purpose
        )

    def _mark_compromised(self, key_id: UUID) -> None:
        """Mark a key, which another process has deactivated meanwhile, as it was meant to be."""
        try:
            self._parts.destroyer.mark_compromised([key_id])
        except (KeyDestroyedError, KeyNotFoundError):
            return  # it opens nothing any more: there is nothing left to be encrypted again

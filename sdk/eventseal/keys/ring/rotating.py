"""Creates new active keys for scopes. The old keys then only open. No item is changed."""

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
    The result of a scope's rotation.

    Attributes:
        old: The key that was active before. ``None`` if the scope had none.
        new: The row of the key that is active now.
    """

    old: UUID | None
    new: KeyRecord


class _Replaced(NamedTuple):
    """
    The result of an active key's replacement.

    Attributes:
        record: The row that holds the slot now.
        won: Whether it is the new key. If not, another process was first, and the row is not checked yet.
    """

    record: KeyRecord
    won: bool


class _BranchEndedError(StoreUnavailableError):
    """
    A new key could not be stored because its wrapping became useless.

    The branch key or KEK that wrapped it was destroyed or closed. The caller must create another key.
    """


class Rotator:
    """Replaces active keys. The KMS is called before the transaction, never inside it."""

    def __init__(self, parts: RingParts) -> None:
        self._parts = parts
        self._held_keys = parts.held_keys

    def rotate(
        self, scopes: Collection[str], *, compromised: bool, make: Callable[[str], object]
    ) -> dict[str, Rotated | EventSealError]:
        """
        Rotate the keys of scopes.

        Their new keys are created, wrapped and stored together.

        Args:
            scopes: Checked scopes. If there is only one, its new key is held, because the caller will
                probably seal next. The process has no room for many new keys.
            compromised: Whether the old keys' items must be encrypted again.
            make: Creates the first key of a scope that has none.

        Returns:
            An outcome for each scope. An error concerns its own scope only.

        Raises:
            KmsError: The KMS refused or failed. Scopes that were not rotated yet have their old keys.
            StoreError: The key store refused or failed. Scopes that were rotated before stay rotated.
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
            # One scope that others rotate continuously must not delay the other scopes.
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
        raise StoreUnavailableError(
            f"the active key of scope {scope!r} changed {ATTEMPTS} times in the meantime"
        )

    def replace(
        self, olds: Sequence[KeyRecord], state: KeyState, *, leased: int | None, wait: bool
    ) -> dict[str, _Replaced]:
        """
        Close active keys and create their replacements, all or none.

        Args:
            olds: The active rows, as they were read and checked.
            state: The new state of the old keys.
            leased: How many items this process leases under each new key. With ``None``, it holds no new key.
            wait: Whether to wait for another writer of the key tables.

        Returns:
            The result for each scope. A scope is left out if no key holds its slot any more.

        Raises:
            KmsError: The KMS refused or failed.
            StoreError: The key store refused or failed.
        """
        if len(olds) == 1 and (holder := self._replaced_by_another(olds[0], wait=wait)) is not None:
            self._held_keys.unseat(olds[0].scope, self._parts.purpose)
            return {olds[0].scope: _Replaced(holder, won=False)}
        try:
            return self._replace(olds, state, leased=leased, wait=wait)
        except BaseException:
            if len(olds) == 1 and self._parts.calls_kms:
                self._parts.claims.release(self._parts.purpose, {olds[0].scope: olds[0].key_id.bytes})
            raise

    def _replaced_by_another(self, old: KeyRecord, *, wait: bool) -> KeyRecord | None:
        """
        Return the key by which another process has replaced *old*.

        It may have done so while this one waited. ``None`` means that this process must try to replace it.
        """
        parts = self._parts
        if not parts.calls_kms:
            return None

        def holder() -> KeyRecord | None:
            rows = parts.store.unchecked.active(parts.application, [old.scope], purpose=parts.purpose)
            found = rows.get(old.scope)
            return None if found is None or found.key_id == old.key_id else found

        found = holder()
        slot = {old.scope: old.key_id.bytes}
        if found is not None or parts.claims.take(
            parts.purpose, slot, is_filled=lambda: holder() is not None, wait=wait
        ):
            return found
        if not wait:
            raise StoreUnavailableError(f"another process replaces key {old.key_id}")
        return holder()

    def _replace(
        self, olds: Sequence[KeyRecord], state: KeyState, *, leased: int | None, wait: bool
    ) -> dict[str, _Replaced]:
        seals, since = self._parts.store_key.made_seals(), self._held_keys.moment()
        # Keys are created before the transaction, so that no lock waits for a KMS (docs/decisions/0001).
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
                # A store that was written for an earlier release always waits, except in this method.
                (replacement,) = replacements
                holder = store.replace_active(*replacement, next_mark=mark, wait=False)
                return {replacement.old.scope: holder}
        except KeyNotFoundError:  # from such a store: no key holds the slot
            return {}
        except KeyDestroyedError as error:
            self._parts.refresher.refresh()  # reads the branch's new key
            raise _BranchEndedError(str(error), remedy=error.remedy) from error

    def _replaceable(
        self,
        scopes: Sequence[str],
        outcomes: dict[str, Rotated | EventSealError],
        *,
        make: Callable[[str], object],
        since: Moment,
    ) -> list[KeyRecord]:
        """Return the active rows that can be replaced, and record other outcomes."""
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
            except (KeyDestroyedError, IntegrityError) as error:  # the other scopes are unaffected
                outcomes[scope] = error
        return found

    def _rotated(
        self, olds: Sequence[KeyRecord], replaced: dict[str, _Replaced], *, compromised: bool
    ) -> dict[str, Rotated]:
        """Return the result of each scope. A scope that must be read again is left out."""
        rotated: dict[str, Rotated] = {}
        for old in olds:
            record, won = replaced.get(old.scope, _Replaced(old, won=False))
            if record.key_id == old.key_id:  # no key holds the slot, or another key of the batch had changed
                continue
            if not won:
                if self._refusal(record, old.scope) is not None:
                    continue
                if compromised:  # the other process may only have deactivated it (docs/decisions/0006)
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
        """Mark a key compromised that another process only deactivated."""
        try:
            self._parts.destroyer.mark_compromised([key_id])
        except (KeyDestroyedError, KeyNotFoundError):
            return  # it opens nothing any more, so nothing must be encrypted again

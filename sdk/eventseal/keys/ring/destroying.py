"""Marks keys compromised, retires them, shreds whole scopes, and reopens scopes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    JobError,
    KeyNotFoundError,
    StoreUnavailableError,
)
from eventseal.keys.authentication.row_checks import check_row, destroyed, is_set_back
from eventseal.keys.authentication.row_macs import is_sealed
from eventseal.keys.records import DEFAULT_SCOPE, restore_remedy
from eventseal.keys.ring.opening import ATTEMPTS
from eventseal.keys.ring.state_transitions import (
    RETIRED_PURPOSES,
    Found,
    NextChangeMark,
    ShreddedScope,
    StateTransitions,
    next_version,
    refuse_active,
    refuse_retirement,
    tombstone_of,
    transitions_of_shred,
)
from eventseal.keys.states import SUBJECT_PURPOSES, KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_uri
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.parts import Ring


# Re-encryption of an item cannot find its fields, so a mark would stay forever (docs/decisions/0011).
_NEVER_COMPROMISED = {
    KeyPurpose.FIELD: (
        "The fields that it has encrypted are nested inside items and cannot be encrypted again. Anyone "
        "who has the key and a copy of the items can read them, and nothing changes that. To destroy the "
        "key here, shred its scope with `eventseal shred`."
    ),
}


class Destroyer:
    """
    Changes the states of keys. It checks rows first, and each change is one transaction.

    Args:
        ring: The ring with the store, the store key, and the known states.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def compromisable(self, key_ids: Collection[UUID]) -> list[KeyRecord]:
        """
        Read keys that will be marked compromised.

        Raises:
            ConfigurationError: A key has a purpose whose items cannot be found.
            KeyDestroyedError: A key was destroyed.
            KeyNotFoundError: A key does not exist.
        """
        rows = list(self._named(key_ids).rows)
        for record in rows:
            if record.state is KeyState.DESTROYED:
                raise destroyed(record)
            if record.purpose not in RETIRED_PURPOSES:
                raise ConfigurationError(
                    f"key {record.key_id} is of purpose {record.purpose} and cannot be marked compromised",
                    remedy=_NEVER_COMPROMISED.get(record.purpose),
                )
        return rows

    def mark_compromised(self, key_ids: Collection[UUID]) -> list[KeyRecord]:
        """
        Mark keys compromised that no longer seal.

        Args:
            key_ids: The ids of deactivated keys. A key that is already compromised is left unchanged.

        Returns:
            The rows of the keys, in order of id.

        Raises:
            JobError: A key is still active.
            KeyDestroyedError: A key was destroyed.
            KeyNotFoundError: A key does not exist.
        """

        def plan(found: Found) -> StateTransitions:
            for record in found.rows:
                refuse_active(record)
                if record.state is KeyState.DESTROYED:
                    raise destroyed(record)
            return StateTransitions(
                [
                    (record, next_version(record, state=KeyState.COMPROMISED))
                    for record in found.rows
                    if record.state is KeyState.DEACTIVATED
                ]
            )

        return self._change(
            lambda: self._named(key_ids), plan, f"mark {counted(len(key_ids), 'key')} compromised"
        )

    def retire(self, key_ids: Collection[UUID], *, dry_run: bool = False) -> list[KeyRecord]:
        """
        Destroy keys that nothing needs any more.

        Use :func:`eventseal.rotation.retire`, which proves that nothing needs them.

        Args:
            key_ids: The ids of deactivated or compromised data keys and branch keys. Either all or none are
                destroyed. The fences of the data keys were closed, and then no item of them was found.
            dry_run: Whether to only check the rows of the key store, and destroy nothing.

        Returns:
            The tombstones, or the unchanged rows, in order of id.

        Raises:
            IntegrityError: The row of a key, or the change mark, is not authentic.
            JobError: A key is active, is never retired, or has wrapped other keys.
            KeyNotFoundError: A key does not exist.
            StoreError: The key store refused or failed.
        """

        def plan(found: Found) -> StateTransitions:
            for record in found.rows:
                refuse_retirement(record)
            if dry_run:
                self._refuse_wrapping(found.rows)
                return StateTransitions([])
            return StateTransitions(
                [(record, tombstone_of(record, "retired")) for record in found.rows if record.state.opens]
            )

        return self._change(
            lambda: self._named(key_ids),
            plan,
            f"retire {counted(len(key_ids), 'key')}",
            dry_run=dry_run,
            refused=self._refuse_wrapping,
        )

    def shred(
        self,
        scope: str,
        *,
        before_commit: Callable[[Sequence[KeyRecord]], object] | None,
        even_default: bool,
        dry_run: bool,
    ) -> ShreddedScope:
        """Destroy every key of a scope and close it. See :meth:`eventseal.keys.Keyring.shred`."""
        scope = self._ring.tables.stored_scope(scope)
        if scope == DEFAULT_SCOPE and not even_default:
            raise ConfigurationError(
                f"scope {scope!r} cannot be shredded, because it holds every event without its own scope",
                remedy="Store data that you must erase one day under a separate scope, such as subject:<id>.",
            )
        live: list[UUID] = []

        def plan(found: Found) -> StateTransitions:
            # Nearly always a spelling error (docs/decisions/0010).
            if not found.rows and not found.edited and not self._is_closed(scope):
                raise _unknown(scope)
            live[:] = [record.key_id for record in found.rows if record.state.opens]
            if dry_run:
                return StateTransitions([])
            if before_commit is not None:
                # The ledger names exactly the rows that this transaction changes (docs/decisions/0013).
                before_commit(found.rows)
            return transitions_of_shred(self._ring.given.application, scope, found.rows)

        rows = self._change(
            lambda: self._subject_keys(scope),
            plan,
            f"shred scope {scope!r}",
            dry_run=dry_run,
            whole_scope=scope,
        )
        shredded = tuple([record for record in rows if record.destroyed_by == "shredded"])
        return ShreddedScope(tuple(live), shredded, tuple(rows))

    def shred_again(
        self, scope: str, erased: Mapping[UUID, KeyPurpose], *, closed: bool, dry_run: bool = False
    ) -> ShreddedScope:
        """
        Destroy shredded keys again that a restore brought back.

        No other key is destroyed. If the restore of the key tables removed a key's tombstone, the key gets a
        new tombstone.

        Args:
            scope: The scope of the keys.
            erased: The purposes of the keys, by id.
            closed: Whether the scope was not reopened since. Then its slots are occupied, unless a key that
                is not in *erased* holds one.
            dry_run: Whether to only read which keys would be destroyed.

        Returns:
            ``destroyed`` has the keys that were destroyed now. ``keys`` has all keys of the scope, to show
            which ones are not destroyed.

        Raises:
            IntegrityError: A row of the scope, or the change mark, is not authentic, or a key has another
                scope or purpose. Nothing was destroyed.
            StoreError: The key store refused or failed.
        """
        scope = self._ring.tables.stored_scope(scope)
        live: list[UUID] = []

        def plan(found: Found) -> StateTransitions:
            live[:] = [r.key_id for r in found.rows if r.key_id in erased and r.state.opens]
            if dry_run:
                return StateTransitions([])
            return transitions_of_shred(
                self._ring.given.application, scope, found.rows, erased=erased, closed=closed
            )

        rows = self._change(
            lambda: self._erased_keys(scope, erased),
            plan,
            f"shred keys of scope {scope!r} again",
            dry_run=dry_run,
        )
        shredded = tuple([record for record in rows if record.destroyed_by == "shredded"])
        return ShreddedScope(tuple(live), shredded, tuple(rows))

    def reopen(
        self, scope: str, *, before_commit: Callable[[Sequence[KeyRecord]], object] | None = None
    ) -> list[KeyRecord]:
        """
        Allow new keys in a shredded scope. Shredded keys stay destroyed.

        If the scope has items, use :func:`eventseal.erasure.reopen`. It also closes the fences that the shred
        had to leave open. So no writer with an outdated key can store an item in the reopened scope that
        nobody can decrypt.

        Args:
            scope: A closed scope. A scope that is not closed is left unchanged.
            before_commit: Called with the scope's shredded keys before it is opened. If it raises an error,
                the scope stays closed.

        Returns:
            The tombstones that had closed the scope.

        Raises:
            ConfigurationError: The scope never had a key, its name is invalid, or the keyring is closed.
            IntegrityError: A row of the scope, or the change mark, is not authentic.
            StoreError: The key store refused or failed.
        """
        scope = self._ring.tables.stored_scope(scope)
        freed: set[UUID] = set()

        def plan(found: Found) -> StateTransitions:
            is_closed = self._is_closed(scope)  # even if somebody edited the rows
            if not found.rows and not found.edited and not is_closed:
                raise _unknown(scope)
            holding = [r for r in found.rows if not r.state.opens and r.active_scope is not None]
            freed.clear()
            freed.update(record.key_id for record in holding)
            if not holding and not is_closed:
                return StateTransitions([])
            if before_commit is not None:
                # The ledger comes first. Otherwise it could show a scope as closed in which keys are created
                # (docs/decisions/0013).
                before_commit([record for record in found.rows if record.destroyed_by == "shredded"])
            freeing = [(record, next_version(record, active_scope=None)) for record in holding]
            return StateTransitions(freeing, scopes={(p, scope): False for p in SUBJECT_PURPOSES})

        rows = self._change(lambda: self._subject_keys(scope), plan, f"reopen scope {scope!r}")
        return [record for record in rows if record.key_id in freed]

    def _change(
        self,
        read: Callable[[], Found],
        plan: Callable[[Found], StateTransitions],
        doing: str,
        *,
        dry_run: bool = False,
        whole_scope: str | None = None,
        refused: Callable[[Sequence[KeyRecord]], None] | None = None,
    ) -> list[KeyRecord]:
        """
        Read keys and change their states. If a key changes meanwhile, start again.

        Args:
            read: Returns the checked rows.
            plan: Returns the state transitions.
            doing: The change as an infinitive, for the error if the rows never settle.
            dry_run: Whether nothing will be changed.
            whole_scope: The scope of which every key that is not destroyed must be included.
            refused: Called with the rows after the store has refused the change. It raises an error if it
                knows the reason.

        Returns:
            The current rows, in order of id.
        """
        self._ring.held_keys.check_open()  # before a store key is created
        seals = self._ring.store_key.made_seals()
        for _ in range(ATTEMPTS):
            self._ring.refresher.refresh()  # the revocation tree may have been edited since the last refresh
            if not dry_run:
                self._ring.store.revocations.refuse_old()
            since = self._ring.held_keys.moment()
            found = read()
            # A row that was put back shows an earlier state, and is destroyed again.
            rows = [row for row in found.rows if not is_set_back(row)]
            if not all(self._ring.held_keys.admit(row, since=since) for row in rows):
                continue
            transitions = plan(found)
            if not (transitions.keys or transitions.tombstones or self._differ(transitions.scopes)):
                self._bury(found.rows)
                return list(found.rows)
            changed = [seals.sealed(record) for _, record in transitions.keys]
            added = [seals.sealed(record) for record in transitions.tombstones]
            every = [*transitions.keys, *((None, record) for record in added)]
            mark = NextChangeMark(self._ring.held_keys, seals, every, since, scopes=transitions.scopes)
            with self._ring.store.changing() as store:
                if not every:
                    # No row needs to change: only the tree still has the scope in its other state
                    # (docs/decisions/0025).
                    store.advance(self._ring.given.application, next_mark=mark)
                    return list(found.rows)
                stored = store.set_states(
                    changed,
                    next_mark=mark,
                    whole_scope=whole_scope,
                    # Edits of destroyed keys must not protect a scope from a shred (docs/decisions/0025).
                    left_out=[record.key_id for record in found.edited],
                    tombstones=added,
                )
            if stored:
                for record in stored:
                    self._ring.held_keys.note_change(record, counter=mark.written)
                now = {record.key_id: record for record in (*found.rows, *stored)}
                return [now[key_id] for key_id in sorted(now)]
            if refused is not None:
                refused(found.rows)
        raise StoreUnavailableError(
            f"could not {doing}: the states of keys changed {ATTEMPTS} times in the meantime"
        )

    def _bury(self, rows: Sequence[KeyRecord]) -> None:
        """Forget destroyed keys. An earlier run may have destroyed them without receiving an answer."""
        for record in rows:
            if record.state is KeyState.DESTROYED:
                self._ring.held_keys.bury(record)

    def _named(self, key_ids: Collection[UUID]) -> Found:
        seals = self._ring.store_key.made_seals()
        found = self._ring.store.get(key_ids)
        for key_id in key_ids:
            if key_id not in found:
                raise KeyNotFoundError(f"the key store has no key {key_id}", key_id=key_id)
            check_row(found[key_id], key_id, self._ring.given.application, seals)
        return Found([found[key_id] for key_id in sorted(found)])

    def _subject_keys(self, scope: str) -> Found:
        """
        Read the keys that a shred destroys.

        Edited rows of destroyed keys must not protect a scope from a shred.

        Raises:
            IntegrityError: The row of a key that is not destroyed is not authentic.
        """
        seals = self._ring.store_key.made_seals()
        rows: list[KeyRecord] = []
        edited: list[KeyRecord] = []
        for record in self._ring.store.of_scope(self._ring.given.application, scope):
            is_destroyed = record.revoked_as in {"retired", "shredded"}
            if is_destroyed and not is_sealed(seals, record):
                edited.append(record)
                continue
            if not is_destroyed:  # also keys of other purposes, because the purpose may have been edited
                check_row(record, record.key_id, self._ring.given.application, seals)
            if record.purpose in SUBJECT_PURPOSES:
                rows.append(record)
        return Found(rows, edited)

    def _erased_keys(self, scope: str, erased: Mapping[UUID, KeyPurpose]) -> Found:
        found = self._subject_keys(scope)
        purposes = {record.key_id: record.purpose for record in found.rows}
        elsewhere = [key_id for key_id in erased if key_id not in purposes]
        for key_id in [*self._ring.store.get(elsewhere), *(k for k in purposes if k in erased)]:
            if purposes.get(key_id) is not erased[key_id]:
                raise IntegrityError(
                    f"key {key_id} was shredded as a {erased[key_id]} key of scope {scope!r}, but its row is "
                    "of another scope or purpose",
                    remedy=restore_remedy(),
                    key_id=key_id,
                )
        return found

    def _differ(self, scopes: Mapping[tuple[KeyPurpose, str], bool]) -> bool:
        """Return whether the revocation tree must change for these scopes."""
        seals, revocations = self._ring.store_key.made_seals(), self._ring.store.revocations
        return any(
            revocations.scopes(purpose, [scope], seals).closed[scope] is not closed
            for (purpose, scope), closed in scopes.items()
        )

    def _is_closed(self, scope: str) -> bool:
        """Return whether the revocation tree has a scope closed, whatever rows say."""
        seals, revocations = self._ring.store_key.made_seals(), self._ring.store.revocations
        return any(
            closed is True
            for purpose in SUBJECT_PURPOSES
            for closed in revocations.scopes(purpose, [scope], seals).closed.values()
        )

    def wrapped_under(self, branch_ids: Collection[UUID]) -> dict[UUID, int]:
        """Count the wrappings under each branch key. A branch key without wrappings is left out."""
        if not branch_ids:
            return {}
        named = {branch_uri(branch_id): branch_id for branch_id in branch_ids}
        uses = self._ring.store.unchecked.kek_uses(self._ring.given.application)
        return {named[use.kek_uri]: use.wrappings for use in uses if use.kek_uri in named}

    def _refuse_wrapping(self, rows: Sequence[KeyRecord]) -> None:
        """Refuse to retire branch keys that still wrap other keys."""
        branches = [record.key_id for record in rows if record.purpose is KeyPurpose.BRANCH]
        for branch_id, wrappings in self.wrapped_under(branches).items():
            raise JobError(
                f"branch key {branch_id} has wrapped {counted(wrappings, 'other key')}",
                key_id=branch_id,
                remedy="Run `eventseal rewrap` to wrap them under another branch key. Then retire this one.",
            )


def _unknown(scope: str) -> ConfigurationError:
    return ConfigurationError(
        f"scope {scope!r} never had a key. Nothing was changed",
        remedy="Check the spelling of the scope: `eventseal keys` lists the scopes that have keys.",
    )

"""Ends keys: marks them compromised, retires them, shreds whole scopes, and reopens those."""

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
from eventseal.keys.records import DEFAULT_SCOPE
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

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.parts import Ring


# Whoever seals an item again cannot tell where its fields are: a mark would stay for good
# (docs/decisions/0011).
_NEVER_COMPROMISED = {
    KeyPurpose.FIELD: "What it has sealed is nested inside of items and cannot be sealed again: whoever has "
    "the key and a copy of the items reads it, and nothing takes that back. `eventseal shred` of its scope "
    "destroys the key here.",
}


class Destroyer:
    """
    Ends keys. Rows are checked first, and every change is one transaction.

    Args:
        ring: Has the store, the store key, and what is known.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def compromisable(self, key_ids: Collection[UUID]) -> list[KeyRecord]:
        """
        Read keys that are to be marked compromised.

        Raises:
            ConfigurationError: A key is of a purpose whose items nobody finds.
            KeyDestroyedError: A key was destroyed.
            KeyNotFoundError: There is no such key.
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
        Mark keys compromised that seal no more.

        Args:
            key_ids: Of keys that are deactivated; what is compromised already stays as it is.

        Returns:
            Their rows, in order of id.

        Raises:
            JobError: A key is still active.
            KeyDestroyedError: A key was destroyed.
            KeyNotFoundError: There is no such key.
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
            lambda: self._named(key_ids), plan, f"{len(key_ids)} keys were marked compromised"
        )

    def retire(self, key_ids: Collection[UUID], *, dry_run: bool = False) -> list[KeyRecord]:
        """
        Destroy keys that nothing needs any more. Use :func:`eventseal.rotation.retire`, which sees to that.

        Args:
            key_ids: Of data keys and branch keys, deactivated or compromised, all or none of which are
                destroyed. The fences of the data keys were closed, and then no item of them was found.
            dry_run: Whether to check only what the key store says.

        Returns:
            Their tombstones, or the rows as they are, in order of id.

        Raises:
            IntegrityError: A key's row, or the change mark, is not what a keyring sealed.
            JobError: A key is active, is never retired, or has wrapped other keys.
            KeyNotFoundError: There is no such key.
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
            f"{len(key_ids)} keys were retired",
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
        """Destroy every key of a scope and close the scope; see :meth:`eventseal.keys.Keyring.shred`."""
        scope = self._ring.tables.stored_scope(scope)
        if scope == DEFAULT_SCOPE and not even_default:
            raise ConfigurationError(
                f"the scope {scope!r} is everybody's and cannot be shredded",
                remedy="Give what is to be erased one day a scope of its own, such as subject:<id>.",
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
                # The ledger names the very rows that this transaction changes (docs/decisions/0013).
                before_commit(found.rows)
            return transitions_of_shred(self._ring.given.application, scope, found.rows)

        rows = self._change(
            lambda: self._subject_keys(scope),
            plan,
            f"scope {scope!r} was shredded",
            dry_run=dry_run,
            whole_scope=scope,
        )
        shredded = tuple([record for record in rows if record.destroyed_by == "shredded"])
        return ShreddedScope(tuple(live), shredded, tuple(rows))

    def shred_again(
        self, scope: str, erased: Mapping[UUID, KeyPurpose], *, closed: bool, dry_run: bool = False
    ) -> ShreddedScope:
        """
        Destroy keys that were shredded once, and that a restore of the key tables has brought back.

        No other key is destroyed. One whose tombstone the restore took gets one again.

        Args:
            scope: Whose keys.
            erased: The keys by id, with their purposes.
            closed: Whether the scope was not reopened since. Its slots are taken then, except where a key
                that is not among *erased* has one.
            dry_run: Whether only to read what would be destroyed.

        Returns:
            ``destroyed`` are those that lived; ``keys`` are all of the scope, so that one that lives still
            can be told.

        Raises:
            IntegrityError: A row of the scope, or the change mark, is not what a keyring sealed, or a key is
                of another scope or purpose; nothing was destroyed.
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
            f"keys of scope {scope!r} were shredded again",
            dry_run=dry_run,
        )
        shredded = tuple([record for record in rows if record.destroyed_by == "shredded"])
        return ShreddedScope(tuple(live), shredded, tuple(rows))

    def reopen(
        self, scope: str, *, before_commit: Callable[[Sequence[KeyRecord]], object] | None = None
    ) -> list[KeyRecord]:
        """
        Let a scope that was shredded have keys again. What was shredded stays so.

        Use :func:`eventseal.erasure.reopen` where there are items: it closes the fences that the shred had to
        leave open, so that no stale writer's item is written unreadable into a scope that is open again.

        Args:
            scope: One that is closed; nothing is done to one that is not.
            before_commit: Called with the scope's shredded keys before it is opened; what it raises keeps it
                closed.

        Returns:
            The tombstones that had closed the scope.

        Raises:
            ConfigurationError: No key of the scope was ever made, its name is refused, or the keyring is
                closed.
            IntegrityError: A row of the scope, or the change mark, is not what a keyring sealed.
            StoreError: The key store refused or failed.
        """
        scope = self._ring.tables.stored_scope(scope)
        freed: set[UUID] = set()

        def plan(found: Found) -> StateTransitions:
            is_closed = self._is_closed(scope)  # whatever somebody made of the rows
            if not found.rows and not found.edited and not is_closed:
                raise _unknown(scope)
            holding = [r for r in found.rows if not r.state.opens and r.active_scope is not None]
            freed.clear()
            freed.update(record.key_id for record in holding)
            if not holding and not is_closed:
                return StateTransitions([])
            if before_commit is not None:
                # First the ledger: else it could have a scope as closed in which keys are made
                # (docs/decisions/0013).
                before_commit([record for record in found.rows if record.destroyed_by == "shredded"])
            freeing = [(record, next_version(record, active_scope=None)) for record in holding]
            return StateTransitions(freeing, scopes={(p, scope): False for p in SUBJECT_PURPOSES})

        rows = self._change(lambda: self._subject_keys(scope), plan, f"scope {scope!r} was reopened")
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
        Read keys and change their states; again, if one of them changed meanwhile.

        Args:
            read: Gives the rows, checked.
            plan: Says what becomes of them.
            doing: For the message, if they never settle.
            dry_run: Whether nothing is to be changed.
            whole_scope: The scope of which no live key may be left out.
            refused: Asked after the store has refused, with the rows as they were read: raises what it knows.

        Returns:
            The rows as they are now, in order of id.
        """
        self._ring.held_keys.check_open()  # before a store key is made
        seals = self._ring.store_key.made_seals()
        for _ in range(ATTEMPTS):
            self._ring.refresher.refresh()  # what is revoked may have been edited since the last one
            if not dry_run:
                self._ring.store.revocations.refuse_old()
            since = self._ring.held_keys.moment()
            found = read()
            # A row that was put back shows an earlier state, and is destroyed anew.
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
                    # No row is to change: the tree alone still has the scope in its other state
                    # (docs/decisions/0025).
                    store.advance(self._ring.given.application, next_mark=mark)
                    return list(found.rows)
                stored = store.set_states(
                    changed,
                    next_mark=mark,
                    whole_scope=whole_scope,
                    # Nobody keeps a scope from its shred by editing destroyed keys (docs/decisions/0025).
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
        raise StoreUnavailableError(f"keys moved {ATTEMPTS} times while {doing}")

    def _bury(self, rows: Sequence[KeyRecord]) -> None:
        """Forget keys whose end an earlier run may have written without being told so."""
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
        Read what a shred ends. Nobody keeps a scope from being shredded by editing rows of destroyed keys.

        Raises:
            IntegrityError: The row of a key that is not destroyed is not what a keyring sealed.
        """
        seals = self._ring.store_key.made_seals()
        rows: list[KeyRecord] = []
        edited: list[KeyRecord] = []
        for record in self._ring.store.of_scope(self._ring.given.application, scope):
            is_destroyed = record.revoked_as in {"retired", "shredded"}
            if is_destroyed and not is_sealed(seals, record):
                edited.append(record)
                continue
            if not is_destroyed:  # also the others: the purpose may be what was edited
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
                    f"key {key_id} was shredded as a {erased[key_id]} key of scope {scope!r}, and its row is "
                    "of another scope or purpose",
                    remedy="Find out who changed the key tables, and restore the key's row from a backup.",
                    key_id=key_id,
                )
        return found

    def _differ(self, scopes: Mapping[tuple[KeyPurpose, str], bool]) -> bool:
        """Whether the revocation tree says of a scope something else than it is to say."""
        seals, revocations = self._ring.store_key.made_seals(), self._ring.store.revocations
        return any(
            revocations.scopes(purpose, [scope], seals).closed[scope] is not closed
            for (purpose, scope), closed in scopes.items()
        )

    def _is_closed(self, scope: str) -> bool:
        """Whether the revocation tree has a scope as closed, whatever rows hold its slots."""
        seals, revocations = self._ring.store_key.made_seals(), self._ring.store.revocations
        return any(
            closed is True
            for purpose in SUBJECT_PURPOSES
            for closed in revocations.scopes(purpose, [scope], seals).closed.values()
        )

    def wrapped_under(self, branch_ids: Collection[UUID]) -> dict[UUID, int]:
        """Count the wrappings under each of some branch keys; one that has none is left out."""
        if not branch_ids:
            return {}
        named = {branch_uri(branch_id): branch_id for branch_id in branch_ids}
        uses = self._ring.store.unchecked.kek_uses(self._ring.given.application)
        return {named[use.kek_uri]: use.wrappings for use in uses if use.kek_uri in named}

    def _refuse_wrapping(self, rows: Sequence[KeyRecord]) -> None:
        """Refuse to retire branch keys under which others are wrapped."""
        branches = [record.key_id for record in rows if record.purpose is KeyPurpose.BRANCH]
        for branch_id, wrappings in self.wrapped_under(branches).items():
            raise JobError(
                f"branch key {branch_id} has wrapped {wrappings} other keys",
                key_id=branch_id,
                remedy="Wrap those under other keys first (`eventseal rewrap`), then retire this one.",
            )


def _unknown(scope: str) -> ConfigurationError:
    return ConfigurationError(
        f"no key of scope {scope!r} was ever made; nothing was done",
        remedy="Check how the scope is spelled: `eventseal keys` lists the scopes that have keys.",
    )

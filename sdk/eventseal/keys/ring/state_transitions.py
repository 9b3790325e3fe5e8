"""State transitions of keys, with the change mark and revocation tree. No I/O."""

from __future__ import annotations

import shlex
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from eventseal.errors import IntegrityError, JobError
from eventseal.keys.authentication.revocations import old_key_tables
from eventseal.keys.authentication.row_macs import SHREDS
from eventseal.keys.records import new_tombstone
from eventseal.keys.revocation_tree import (
    NEVER_SHREDDED,
    REMEDY,
    ROOT,
    RevocationTree,
    ScopeState,
    UnprovenError,
    leaves_of,
    paths_to,
)
from eventseal.keys.states import SUBJECT_PURPOSES, KeyPurpose, KeyState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import ChangeMark, KeyRecord
    from eventseal.keys.revocation_tree import HowRevoked
    from eventseal.keys.ring.held_keys import HeldKeys, Moment


RETIRED_PURPOSES = (KeyPurpose.DATA, KeyPurpose.BRANCH)
"""The purposes of keys that are retired. Other keys are shredded, or stay."""


class Found(NamedTuple):
    """
    Keys as they were read.

    Attributes:
        rows: The checked rows.
        edited: Edited rows of destroyed keys. They lose their slots, and are otherwise left unchanged.
    """

    rows: Sequence[KeyRecord]
    edited: Sequence[KeyRecord] = ()


class ShreddedScope(NamedTuple):
    """
    A scope that is closed.

    Attributes:
        destroyed: The keys that this shred destroyed, or would destroy if it is a dry run.
        shredded: All keys of the scope that were ever shredded, by this or an earlier run. It includes
            tombstones that only hold a slot.
        keys: Every key that the scope ever had, including keys that were retired.
    """

    destroyed: tuple[UUID, ...]
    shredded: tuple[KeyRecord, ...]
    keys: tuple[KeyRecord, ...]


class StateTransitions(NamedTuple):
    """
    The planned changes of keys that were just read.

    Attributes:
        keys: Each key as it was read, and as it will be, without its MAC.
        tombstones: New rows, without MACs, of keys that are missing or never existed.
        scopes: For each purpose and scope that changes, whether it becomes closed or open.
    """

    keys: Sequence[tuple[KeyRecord, KeyRecord]]
    tombstones: Sequence[KeyRecord] = ()
    scopes: Mapping[tuple[KeyPurpose, str], bool] = MappingProxyType({})


def next_version(record: KeyRecord, **changes: Any) -> KeyRecord:
    """Return the next version of a row, without its MAC."""
    return replace(record, row_version=record.row_version + 1, **changes)


def tombstone_of(
    record: KeyRecord, by: Literal["retired", "shredded"], *, active_scope: str | None = None
) -> KeyRecord:
    """Return the tombstone of a key, without its MAC."""
    return next_version(
        record, state=KeyState.DESTROYED, destroyed_by=by, active_scope=active_scope, wrappings=()
    )


def transitions_of_shred(
    application: str,
    scope: str,
    rows: Sequence[KeyRecord],
    *,
    erased: Mapping[UUID, KeyPurpose] | None = None,
    closed: bool = True,
) -> StateTransitions:
    """
    Return the state transitions that shred a scope.

    Unchanged tombstones get a new version, too. A process that has read the scope to reopen or shred it must
    then read it again, and write to the ledger again. Otherwise the ledger could show the scope as open
    although this shred has closed it, or the reverse.

    Args:
        application: The application that owns the keys.
        scope: The scope to shred.
        rows: All of its keys and tombstones, of the purposes that a shred ends.
        erased: The only keys to destroy, with their purposes. A key that has no row gets a tombstone. With
            ``None``, all keys are destroyed.
        closed: Whether tombstones take every slot, and the scope is closed for its purposes. If a key that is
            not destroyed holds a slot, it keeps the slot, and the scope stays open for that purpose.
    """
    keys: list[tuple[KeyRecord, KeyRecord]] = []
    tombstones: list[KeyRecord] = []
    scopes: dict[tuple[KeyPurpose, str], bool] = {}
    for purpose in SUBJECT_PURPOSES:
        there = {record.key_id: record for record in rows if record.purpose is purpose}
        named = set(there) if erased is None else {key for key, its in erased.items() if its is purpose}
        dead = [record for key, record in there.items() if key in named or not record.state.opens]
        lost = [_lost(application, scope, purpose, key) for key in sorted(named - set(there))]
        survivors = [record for key, record in there.items() if key not in named and record.state.opens]
        takes_slot = closed and all(record.active_scope is None for record in survivors)
        if takes_slot:
            scopes[purpose, scope] = True
        holder = _slot_holder([*dead, *lost]) if takes_slot else None
        if takes_slot and holder is None:
            tombstones.append(new_tombstone(application, scope, purpose))
        for record in dead:
            slot = scope if record is holder else None
            if record.state.opens:
                keys.append((record, tombstone_of(record, "shredded", active_scope=slot)))
            # A new version, even if nothing changes: a process that reopens the scope meanwhile must read it
            # again (docs/decisions/0016).
            elif erased is None or (takes_slot and slot != record.active_scope):
                keys.append((record, next_version(record, active_scope=slot)))
        tombstones += [replace(record, active_scope=scope if record is holder else None) for record in lost]
    # With this count, a roll of the epoch detects a shred since it began (docs/decisions/0014).
    return StateTransitions(keys, tombstones, {**scopes, SHREDS: True} if keys or tombstones else scopes)


def refuse_retirement(record: KeyRecord) -> None:
    """
    Refuse to retire a key that must stay.

    Such a key is in use, or its items cannot be counted.

    Raises:
        JobError: The key is active, or of a purpose that is never retired.
    """
    refuse_active(record)
    if record.purpose not in RETIRED_PURPOSES:
        raise JobError(
            f"key {record.key_id} is of purpose {record.purpose}, and such keys are never retired",
            key_id=record.key_id,
            remedy="Its fields are nested inside items and cannot be counted. To destroy the key, shred its "
            "scope with `eventseal shred`.",
        )


def refuse_active(record: KeyRecord) -> None:
    """
    Refuse to destroy a key that seals.

    Raises:
        JobError: The key is active.
    """
    if record.state is KeyState.ACTIVE:
        rotate = f"Rotate the scope first: `eventseal rotate --scope {shlex.quote(record.scope)}`."
        raise JobError(
            f"key {record.key_id} is the active key of scope {record.scope!r}",
            key_id=record.key_id,
            # `rotate` replaces only data keys, so it would find no key of another purpose.
            remedy=rotate
            if record.purpose is KeyPurpose.DATA
            else "Keep this key: `eventseal rotate` replaces only data keys.",
        )


def _lost(application: str, scope: str, purpose: KeyPurpose, key_id: UUID) -> KeyRecord:
    return replace(new_tombstone(application, scope, purpose), key_id=key_id, active_scope=None)


def _slot_holder(rows: Sequence[KeyRecord]) -> KeyRecord | None:
    """
    Choose the key of a purpose whose tombstone keeps the slot.

    It is the key that already holds the slot, or else the newest. A retired key does not qualify, because its
    tombstone says that no item of the scope is unreadable.
    """
    held = [record for record in rows if record.active_scope is not None]
    shredded = [record for record in rows if record.destroyed_by != "retired"]
    return max(held or shredded, key=lambda record: record.key_id, default=None)


class NextChangeMark:
    """
    Computes the mark that follows the locked one, and remembers its counter.

    Args:
        held_keys: Knows earlier marks.
        seals: The MACs that authenticate marks.
        changes: Each key as it was, or ``None`` for a new key, and as it will be.
        since: The moment before the keys were read.
        scopes: For each purpose and scope that changes, whether it becomes closed or reopened.

    Attributes:
        paths: The nodes of the revocation tree that the change needs.
        written: The counter of the mark that was returned last.
    """

    def __init__(
        self,
        held_keys: HeldKeys,
        seals: Seals,
        changes: Iterable[tuple[KeyRecord | None, KeyRecord]],
        since: Moment,
        *,
        scopes: Mapping[tuple[KeyPurpose, str], bool] | None = None,
    ) -> None:
        self._held_keys = held_keys
        self._seals = seals
        self._since = since
        self._keys: list[tuple[UUID, HowRevoked]] = []
        self._touched: set[bytes] = set()
        for old, new in changes:
            how = new.how_revoked
            if how is not None and (old is None or old.how_revoked != how):
                self._keys.append((new.key_id, how))
                self._touched.add(seals.scope_name(new.purpose, new.scope))
        self._scopes = {
            seals.scope_name(purpose, scope): closed for (purpose, scope), closed in (scopes or {}).items()
        }
        self._touched.update(self._scopes)
        keys = [key_id for key_id, _ in self._keys]
        self.paths: Collection[bytes] = paths_to(leaves_of(keys, self._touched))
        self.written = -1

    def __call__(
        self, mark: ChangeMark, nodes: Mapping[bytes, bytes]
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """Check *mark* and *nodes*, and return their successors."""
        # The store calls this inside its transaction. The store creates no MAC, and no KMS is called
        # (docs/decisions/0001).
        if self._seals.is_old(mark):
            raise old_key_tables(mark.application)
        self._seals.check_mark(mark)
        self._held_keys.check_mark(mark, self._since)
        tree = RevocationTree(nodes, mark.revoked)
        try:
            scopes = {name: tree.scope_state(name) or NEVER_SHREDDED for name in self._touched}
            for name, closed in self._scopes.items():
                scopes[name] = ScopeState(closed, scopes[name].number + 1)
            changed = tree.changed(self._keys, scopes)
        except UnprovenError:
            raise IntegrityError(
                f"a node of the revocation tree of application {mark.application!r} was edited: "
                "it does not match the change mark. Nothing was changed",
                remedy=REMEDY,
            ) from None
        following = self._seals.next_mark(mark, changed.get(ROOT))
        self.written = following.counter
        return following, changed

"""How keys change states, and the change mark with the revocation tree that goes along. No I/O."""

from __future__ import annotations

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
"""The purposes of keys that are retired; the others are shredded, or stay."""


class Found(NamedTuple):
    """
    Keys as they were read.

    Attributes:
        rows: Checked.
        edited: Rows of keys that are destroyed, and that somebody edited: they lose their slots, and stay as
            they are otherwise.
    """

    rows: Sequence[KeyRecord]
    edited: Sequence[KeyRecord] = ()


class ShreddedScope(NamedTuple):
    """
    A scope that is closed.

    Attributes:
        destroyed: The keys that lived until now.
        shredded: All keys of the scope that were ever shredded, also in an earlier run, with the tombstones
            that only hold a slot.
        keys: Every key that the scope ever had, also those that were retired.
    """

    destroyed: tuple[UUID, ...]
    shredded: tuple[KeyRecord, ...]
    keys: tuple[KeyRecord, ...]


class StateTransitions(NamedTuple):
    """
    What is to become of keys that were just read.

    Attributes:
        keys: Each as it was read, and as it is to be, not sealed yet.
        tombstones: New rows of what is no key any more, or never was, not sealed yet.
        scopes: By purpose and scope whether it is closed from now on, or open, for those that change.
    """

    keys: Sequence[tuple[KeyRecord, KeyRecord]]
    tombstones: Sequence[KeyRecord] = ()
    scopes: Mapping[tuple[KeyPurpose, str], bool] = MappingProxyType({})


def next_version(record: KeyRecord, **changes: Any) -> KeyRecord:
    """Give a row as it is to be, in its next version, not sealed yet."""
    return replace(record, row_version=record.row_version + 1, **changes)


def tombstone_of(
    record: KeyRecord, by: Literal["retired", "shredded"], *, active_scope: str | None = None
) -> KeyRecord:
    """Give the tombstone of a key, not sealed yet."""
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
    Say how the keys of a scope end.

    Tombstones that stay as they are get a new version, too. So a process that has read the scope before, to
    reopen it or to shred it as well, has to read it again, and to write to the ledger again. Otherwise the
    ledger could have the scope as open although this has closed it, or the other way round.

    Args:
        application: Whose keys.
        scope: The one that is shredded.
        rows: All of its keys and tombstones, of the purposes that a shred ends.
        erased: Only these keys are destroyed, with their purposes; one that has no row gets a tombstone.
            ``None``: all.
        closed: Whether every slot is to be taken by a tombstone, and the scope to be closed for its purpose;
            a slot that a surviving key has stays its own, and open.
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
            # A new version, even if nothing changes: whoever reopens the scope meanwhile reads it again
            # (docs/decisions/0016).
            elif erased is None or (takes_slot and slot != record.active_scope):
                keys.append((record, next_version(record, active_scope=slot)))
        tombstones += [replace(record, active_scope=scope if record is holder else None) for record in lost]
    # Counted, so that a roll of the epoch knows that a key was shredded since it began (docs/decisions/0014).
    return StateTransitions(keys, tombstones, {**scopes, SHREDS: True} if keys or tombstones else scopes)


def refuse_retirement(record: KeyRecord) -> None:
    """
    Refuse to retire a key that is in use, or whose items nobody can count.

    Raises:
        JobError: The key is active, or of a purpose that is never retired.
    """
    refuse_active(record)
    if record.purpose not in RETIRED_PURPOSES:
        raise JobError(
            f"key {record.key_id} is of purpose {record.purpose}, and such keys are never retired",
            key_id=record.key_id,
            remedy="What it has sealed is nested inside items, where nobody counts it: only a shred ends it.",
        )


def refuse_active(record: KeyRecord) -> None:
    """
    Refuse to end a key that seals.

    Raises:
        JobError: The key is active.
    """
    if record.state is KeyState.ACTIVE:
        raise JobError(
            f"key {record.key_id} is the active key of scope {record.scope!r}",
            key_id=record.key_id,
            remedy=f"Rotate the scope first: `eventseal rotate --scope {record.scope}`.",
        )


def _lost(application: str, scope: str, purpose: KeyPurpose, key_id: UUID) -> KeyRecord:
    return replace(new_tombstone(application, scope, purpose), key_id=key_id, active_scope=None)


def _slot_holder(rows: Sequence[KeyRecord]) -> KeyRecord | None:
    """
    Choose the key of a purpose whose tombstone keeps the slot: who holds it already, else the newest.

    A retired key is none: its tombstone says that no item of the scope is unreadable.
    """
    held = [record for record in rows if record.active_scope is not None]
    shredded = [record for record in rows if record.destroyed_by != "retired"]
    return max(held or shredded, key=lambda record: record.key_id, default=None)


class NextChangeMark:
    """
    Gives the mark that follows the locked one, and remembers its counter.

    Args:
        held_keys: Has seen earlier marks.
        seals: Check and seal them.
        changes: Each key as it was, ``None`` for a new one, and as it is to be.
        since: The moment before the keys were read.
        scopes: By purpose and scope whether it is closed from now on, or reopened, for those that change.

    Attributes:
        paths: The nodes of the revocation tree that the change needs.
        written: The counter of the mark that was given last.
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
        """Check *mark* and *nodes*, and give what follows them."""
        # The store calls this inside its transaction. It makes no seal itself, and no KMS is called
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
                f"a node of the revocation tree of application {mark.application!r} does not match the "
                "change mark: it was edited; nothing was changed",
                remedy=REMEDY,
            ) from None
        following = self._seals.next_mark(mark, changed.get(ROOT))
        self.written = following.counter
        return following, changed

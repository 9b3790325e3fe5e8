"""Key tables of a release before the revocation tree: their rows give the tree, in memory or for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import IntegrityError, StoreUnavailableError
from eventseal.keys.authentication.row_macs import is_sealed
from eventseal.keys.revocation_tree import NEVER_SHREDDED, ROOT, RevocationTree, ScopeState, node_digest
from eventseal.keys.states import KeyPurpose, KeyState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import ChangeMark, KeyRecord, NextMark
    from eventseal.keys.revocation_tree import HowRevoked
    from eventseal.keys.store import KeyStore


_PAGE_SIZE = 1000


class OldRows(NamedTuple):
    """
    What the rows of an earlier release say is revoked.

    Attributes:
        nodes: The revocation tree of it, by path.
        keys: How many keys are compromised or destroyed.
        reopened: The shredded keys, whose items are erased, of scopes that were reopened.
        edited: Keys whose rows do not match their seals, with how they claim to be revoked.
    """

    nodes: Mapping[bytes, bytes]
    keys: int
    reopened: Sequence[KeyRecord]
    edited: Mapping[UUID, HowRevoked]


def upgrade_name(seals: Seals) -> bytes:
    """Give the name of the entry that says that the tree was made from rows: a scope that no key can have."""
    return seals.scope_name(KeyPurpose.STORE, "upgraded")


def read_old_rows(store: KeyStore, mark: ChangeMark, seals: Seals) -> OldRows:
    """
    Make the revocation tree from rows.

    A retired key is not counted by an old mark: its row's own seal must fit, or the row is left out.

    Args:
        store: Whose rows are read.
        mark: Of the old format, its seal checked.
        seals: Check the rows.

    Raises:
        IntegrityError: The mark counts other keys than those that rows show as compromised or shredded.
        StoreError: The key store refused or failed.
    """
    revoked: dict[UUID, HowRevoked] = {}
    edited: dict[UUID, HowRevoked] = {}
    scopes: dict[bytes, ScopeState] = {}
    for record in _rows(store, mark.application, KeyState.COMPROMISED, KeyState.DESTROYED):
        how = record.how_revoked
        if how is None:
            continue
        if not is_sealed(seals, record):
            edited[record.key_id] = how
            if how == "retired":
                continue
        else:
            name = seals.scope_name(record.purpose, record.scope)
            state = scopes.get(name, NEVER_SHREDDED)
            if how == "shredded":
                state = ScopeState(state.closed or record.active_scope is not None, 1)
            scopes[name] = state
        revoked[record.key_id] = how
    if not seals.counts_old(mark, ((key_id, how) for key_id, how in revoked.items() if how != "retired")):
        raise IntegrityError(
            f"the keys of application {mark.application!r} that are compromised or shredded "
            "are not those that its change mark counts: a row was put back or taken away",
            remedy="Find out who changed the key tables, or which backup was restored; "
            "destroyed keys stay destroyed.",
        )
    empty = RevocationTree({}, node_digest(b""))
    have_reopened = any(state.number and not state.closed for state in scopes.values())
    reopened = [
        record
        for record in (_rows(store, mark.application, KeyState.DESTROYED) if have_reopened else ())
        if record.how_revoked == "shredded"
        and record.key_id not in edited
        and not scopes.get(seals.scope_name(record.purpose, record.scope), NEVER_SHREDDED).closed
    ]
    nodes = empty.changed(revoked.items(), {**scopes, upgrade_name(seals): ScopeState(closed=True, number=1)})
    return OldRows(nodes, len(revoked), reopened, edited)


class Upgrade:
    """
    Stores the tree that was made from rows, with the first mark of the new format.

    Args:
        mark: The old mark under which the rows were read.
        rows: What they say.
        seals: Seal the new mark.
    """

    def __init__(self, mark: ChangeMark, rows: OldRows, seals: Seals) -> None:
        self._mark = mark
        self._rows = rows
        self._seals = seals
        self.paths: Collection[bytes] = ()

    def __call__(
        self,
        mark: ChangeMark,
        nodes: Mapping[bytes, bytes],  # noqa: ARG002 (there are none yet)
    ) -> tuple[ChangeMark, Mapping[bytes, bytes]]:
        """Give the new mark and every node of the tree."""
        if mark != self._mark:
            raise StoreUnavailableError(
                f"the key tables of application {mark.application!r} changed while they were upgraded",
                remedy="Stop the processes of the earlier release, then run `eventseal init` again.",
            )
        root = self._rows.nodes.get(ROOT, b"")
        return self._seals.next_mark(mark, root), self._rows.nodes


def refuse_edited_rows(rows: OldRows) -> None:
    """
    Refuse the upgrade if the row of a compromised or shredded key was edited.

    Raises:
        IntegrityError: Such a row does not match its seal, so nobody can tell the key's scope.
    """
    for key_id, how in rows.edited.items():
        if how != "retired":
            raise IntegrityError(
                f"the row of key {key_id}, which is {how}, does not match its seal: it was edited, so "
                "nobody can tell the key's scope. Nothing was upgraded",
                remedy="Restore this row from a backup, then run `eventseal init` again.",
                key_id=key_id,
            )


def _rows(store: KeyStore, application: str, *states: KeyState) -> Iterator[KeyRecord]:
    for state in states:
        after: UUID | None = None
        while page := store.page(application, after=after, limit=_PAGE_SIZE, state=state):
            yield from page
            after = page[-1].key_id


if TYPE_CHECKING:
    _: type[NextMark] = Upgrade

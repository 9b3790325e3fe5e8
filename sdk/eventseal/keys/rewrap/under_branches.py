"""Wraps data keys again after the rotation of their branch key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from eventseal.errors import EventSealError
from eventseal.keys.rewrap.under_keks import RewrapOutcome
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import (
    branch_uri,
    branch_wrapping,
    named_branch,
    unwrap_under,
    wrap_under,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.authentication.row_checks import CheckedStore
    from eventseal.keys.data_key import DataKey
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.rewrap.under_keks import RowChecks
    from eventseal.keys.ring.opening import Opener
    from eventseal.keys.wrapping.branches import Branches
    from eventseal.kms.adapter import WrappedKey


class BranchRewrapper:
    """
    Wraps data keys under the active keys of their branches.

    Args:
        application: The application that owns the keys.
        store: Knows the active key of each branch.
        branches: Unwrap data keys.
        opener: Finds branch keys by id.
        checks: Reject edited rows.
    """

    def __init__(
        self, application: str, store: CheckedStore, branches: Branches, opener: Opener, checks: RowChecks
    ) -> None:
        self._application = application
        self._store = store
        self._branches = branches
        self._opener = opener
        self._checks = checks
        self._successors: dict[UUID, UUID] = {}
        self._ended: set[UUID] = set()

    def learn(self, records: Sequence[KeyRecord]) -> None:
        """
        Find the active key of each branch in *records*, once a run.

        Raises:
            StoreError: The key store refused or failed.
        """
        named = {branch_id for record in records if (branch_id := _branch_of(record)) is not None}
        unknown = named - self._successors.keys() - self._ended
        if not unknown:
            return
        scopes = {
            key_id: record.scope
            for key_id, record in self._store.unchecked.get(unknown).items()
            if record.purpose is KeyPurpose.BRANCH and record.application == self._application
        }
        holders = self._store.unchecked.active(
            self._application, set(scopes.values()), purpose=KeyPurpose.BRANCH
        )
        for key_id, scope in scopes.items():
            holder = holders.get(scope)
            if holder is not None and holder.state is KeyState.ACTIVE:
                self._successors[key_id] = holder.key_id
            else:
                self._ended.add(key_id)

    def forget(self) -> None:
        """Forget the active keys, because one of them is destroyed."""
        self._successors.clear()
        self._ended.clear()

    def has_no_successor(self, record: KeyRecord) -> bool:
        """Return whether a key's branch has no active key. The key stays under the old one."""
        return _branch_of(record) in self._ended

    def current(self, record: KeyRecord) -> WrappedKey | None:
        """
        Return a key's wrapping under its branch's active key.

        If the branch has no active key, it is the wrapping that remains.
        """
        branch_id = _branch_of(record)
        if branch_id in self._ended:
            return branch_wrapping(record)
        successor = None if branch_id is None else self._successors.get(branch_id)
        if successor is None:
            return None
        uri = branch_uri(successor)
        return next((wrapped for wrapped in record.wrappings if wrapped.kek_uri == uri), None)

    def rewrap(self, records: Sequence[KeyRecord]) -> RewrapOutcome:
        """
        Wrap readable *records* under their active branch keys, and unwrap the result.

        Raises:
            IntegrityError: The store key's row is not authentic.
            StoreError: The key store refused or failed.
        """
        result = RewrapOutcome()
        keys = self._checks.opened(records, self._branches.unwrap(records), result)
        try:
            if result.ended_by is None:
                self._wrap({r.key_id: r for r in records if r.key_id in keys}, keys, result)
        finally:
            for key in keys.values():
                key.close()
        return result

    def verify(self, held: Sequence[tuple[KeyRecord, WrappedKey]]) -> RewrapOutcome:
        """
        Unwrap wrappings under branch keys, and check that each holds its key.

        Args:
            held: Rows, each with one wrapping.

        Returns:
            The keys that passed, and the errors of the others. No wrapping is created.

        Raises:
            IntegrityError: The store key's row is not authentic.
            StoreError: The key store refused or failed.
        """
        seen = RewrapOutcome()
        records = [replace(record, wrappings=(wrapped,)) for record, wrapped in held]
        self._checks.prove(records, self._branches.unwrap(records), seen)
        return seen

    def _wrap(
        self, records: Mapping[UUID, KeyRecord], keys: Mapping[UUID, DataKey], result: RewrapOutcome
    ) -> None:
        by_successor: dict[UUID, list[KeyRecord]] = {}
        for record in records.values():
            branch_id = _branch_of(record)
            if branch_id is not None:  # the wrapping of an unwrapped key names a branch key, which exists
                by_successor.setdefault(self._successors[branch_id], []).append(record)
        branches = self._opener.keys(by_successor) if by_successor else {}
        for successor, branch in branches.items():
            addressed = by_successor[successor]
            if isinstance(branch, EventSealError):
                for record in addressed:
                    result.fail(record.key_id, branch)
                continue
            made = list(zip(addressed, wrap_under(branch, [keys[r.key_id] for r in addressed]), strict=True))
            for (record, wrapped), outcome in zip(made, unwrap_under(branch, made), strict=True):
                if isinstance(outcome, EventSealError):
                    result.fail(record.key_id, outcome)
                else:
                    outcome.close()
                    result.made[record.key_id] = wrapped
                    result.verified.add(record.key_id)


def _branch_of(record: KeyRecord) -> UUID | None:
    """Return the branch key id of a key's newest branch wrapping."""
    wrapped = branch_wrapping(record)
    return None if wrapped is None else named_branch(wrapped)

"""A key store in memory, for tests and trials. It is also the shortest example of a key store."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eventseal.errors import KeyDestroyedError, StoreError
from eventseal.keys.concurrency import renew_in_children
from eventseal.keys.records import Changes, KekUse
from eventseal.keys.revocation_tree import ROOT
from eventseal.keys.states import SUBJECT_PURPOSES, KeyPurpose, KeyState
from eventseal.keys.store import HARD_LIMIT
from eventseal.keys.wrapping.branches import branch_uri, named_branch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from uuid import UUID

    from eventseal.keys.records import Admission, ChangeMark, KeyRecord, NextMark, Replacement
    from eventseal.keys.store import KeyStore
    from eventseal.kms.adapter import WrappedKey


def _utc_now() -> datetime:
    return datetime.now(UTC)


class InMemoryKeyStore:
    """
    Keeps records in a dictionary under one lock.

    Several keyrings of a process may share it.

    Args:
        refresh_interval: The interval that applies to all keyrings of the store, in seconds.
        now: The store's clock, in UTC.
    """

    def __init__(self, *, refresh_interval: float = 60.0, now: Callable[[], datetime] = _utc_now) -> None:
        self._refresh_interval = refresh_interval
        self._now = now
        self._places: set[str] = set()
        self._lock = threading.Lock()
        self._records: dict[UUID, KeyRecord] = {}
        self._changed: dict[UUID, int] = {}
        self._slots: dict[tuple[str, KeyPurpose, str | None], UUID] = {}
        self._marks: dict[str, ChangeMark] = {}
        self._nodes: dict[tuple[str, bytes], bytes] = {}
        self._erased: set[tuple[str, bytes]] = set()
        renew_in_children(self)

    def renew_in_child(self) -> None:
        """Keep a copy of the records in a forked child. It has a separate lock."""
        self._lock = threading.Lock()

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> dict[str, KeyRecord]:
        """Return the record in each scope's slot. Absent ones are left out."""
        with self._lock:
            held = {scope: self._slots.get((application, purpose, scope)) for scope in scopes}
            return {scope: self._records[key_id] for scope, key_id in held.items() if key_id is not None}

    def get(self, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
        """Return records by id. Absent ones are left out."""
        with self._lock:
            return {key_id: self._records[key_id] for key_id in key_ids if key_id in self._records}

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """
        Return every key and tombstone of a scope, of any purpose.

        They are in order of id, without wrappings.
        """
        with self._lock:
            found = [
                replace(record, wrappings=())
                for record in self._records.values()
                if (record.application, record.scope) == (application, scope)
            ]
        return sorted(found, key=lambda record: record.key_id)

    def add_active(
        self, records: Sequence[KeyRecord], *, mark: ChangeMark | None = None, admit: Admission | None = None
    ) -> dict[str, KeyRecord]:
        """Insert new active keys, each unless its scope's slot is taken. Returns the slot holders."""
        with self._lock:
            if admit is not None and records and not self._admits(records[0].application, admit):
                return {}
            free = [record for record in records if _slot(record) not in self._slots]
            self._hold_branches([wrapped for record in free for wrapped in record.wrappings])
            for record in free:
                if _slot(record) not in self._slots:  # the same scope twice
                    self._insert(record)
                    if mark is not None:
                        self._marks.setdefault(mark.application, mark)
            return {str(record.active_scope): self._records[self._slots[_slot(record)]] for record in records}

    def replace_all_active(
        self,
        replacements: Sequence[Replacement],
        *,
        next_mark: NextMark,
        wait: bool = True,  # noqa: ARG002 (the lock is never held long)
    ) -> dict[str, KeyRecord]:
        """Close the active keys of scopes and create others, all or none. Returns the slot holders."""
        with self._lock:
            if replacements and all(
                self._follows(each.closed) and self._slots.get(_slot(each.old)) == each.old.key_id
                for each in replacements
            ):
                for each in replacements:
                    self._refuse_taken(each.new)
                    self._hold_branches(each.new.wrappings)
                mark = self._next(replacements[0].old.application, next_mark)
                for each in replacements:
                    self._move(each.closed, mark)
                    self._insert(each.new)
            held = {each.old.scope: self._slots.get(_slot(each.old)) for each in replacements}
            return {scope: self._records[key_id] for scope, key_id in held.items() if key_id is not None}

    def set_states(
        self,
        records: Sequence[KeyRecord],
        *,
        next_mark: NextMark,
        whole_scope: str | None = None,
        left_out: Collection[UUID] = (),
        tombstones: Sequence[KeyRecord] = (),
    ) -> list[KeyRecord]:
        """Store the states in *records*, and insert *tombstones*, all or none."""
        wanted = [*records, *tombstones]
        with self._lock:
            if not wanted or not all(self._follows(record) for record in records):
                return []
            given = {record.key_id for record in wanted}
            application = wanted[0].application
            if any(
                self._is_left_out(record, whole_scope, application, given.union(left_out))
                for record in self._records.values()
            ):
                return []
            free = given.union(left_out)
            if any(self._slots.get(_slot(record), record.key_id) not in free for record in _holding(wanted)):
                return []
            if any(map(self._wraps_others, records)):
                return []
            mark = self._next(application, next_mark)
            for key_id in left_out:
                self._free(key_id)
            for record in records:
                self._move(record, mark)
            for record in tombstones:
                self._insert(record)
                self._records[record.key_id] = replace(self._records[record.key_id], destroyed_at=self._now())
                self._changed[record.key_id] = mark.counter
            return [self._records[record.key_id] for record in wanted]

    def advance(self, application: str, *, next_mark: NextMark) -> None:
        """Store the next mark and its nodes, without changing a key."""
        with self._lock:
            self._next(application, next_mark)

    def revocations(
        self, application: str, paths: Collection[bytes]
    ) -> tuple[ChangeMark, dict[bytes, bytes]] | None:
        """Read an application's mark and revocation tree nodes at one moment."""
        with self._lock:
            mark = self._marks.get(application)
            return None if mark is None else (mark, self._nodes_at(application, paths))

    def list_erased(self, application: str, digests: Collection[bytes]) -> None:
        """Add digests of items that were erased, before their scope is reopened."""
        with self._lock:
            self._erased.update((application, digest) for digest in digests)

    def find_erased(self, application: str, digests: Collection[bytes]) -> set[bytes]:
        """Return those of the digests that are listed."""
        with self._lock:
            return {digest for digest in digests if (application, digest) in self._erased}

    def put_wrappings(self, add: Mapping[UUID, WrappedKey], *, verified: bool = False) -> set[UUID]:
        """Add missing wrappings to keys that are not destroyed. Returns the ids of the keys."""
        with self._lock:
            living = {
                key_id
                for key_id in add
                if key_id in self._records and self._records[key_id].state is not KeyState.DESTROYED
            }
            self._hold_branches([add[key_id] for key_id in living])
            for key_id in living:
                self._records[key_id] = _with_wrapping(self._records[key_id], add[key_id], verified=verified)
            return {key_id for key_id in living if add[key_id] in self._records[key_id].wrappings}

    def mark_wrappings_verified(
        self,
        opened: Mapping[UUID, WrappedKey],
        *,
        wait: bool = True,  # noqa: ARG002 (the lock is never held long)
    ) -> None:
        """Record that wrappings were unwrapped and hold their keys."""
        with self._lock:
            for key_id, wrapped in opened.items():
                record = self._records.get(key_id)
                if record is not None and wrapped in record.wrappings:
                    self._records[key_id] = replace(record, verified=record.verified | {wrapped})

    def drop_wrappings(
        self, drop: Mapping[UUID, Collection[WrappedKey]], *, keep: Mapping[UUID, WrappedKey]
    ) -> set[UUID]:
        """Delete wrappings of keys that still have a better one."""
        with self._lock:
            better = {
                key_id
                for key_id in drop
                if key_id in self._records and keep[key_id] in self._records[key_id].wrappings
            }
            for key_id in better:
                record, gone = self._records[key_id], set(drop[key_id]) - {keep[key_id]}
                left = tuple(wrapped for wrapped in record.wrappings if wrapped not in gone)
                self._records[key_id] = replace(record, wrappings=left, verified=record.verified - gone)
            return better

    def kek_uses(self, application: str) -> list[KekUse]:
        """Count the wrappings of keys by KEK and version."""
        with self._lock:
            records = [record for record in self._records.values() if record.application == application]
        wrappings = Counter(_place(wrapped) for record in records for wrapped in record.wrappings)
        verified = Counter(_place(wrapped) for record in records for wrapped in record.verified)
        return [
            KekUse(kek_uri=uri, kek_version=version, wrappings=count, verified=verified[uri, version])
            for (uri, version), count in sorted(
                wrappings.items(), key=lambda use: (use[0][0], use[0][1] or "")
            )
        ]

    def count_wrapped_keys(self, application: str) -> int:
        """Count an application's keys that have a wrapping."""
        with self._lock:
            records = list(self._records.values())
        return sum(record.application == application and bool(record.wrappings) for record in records)

    def orphans(self, *, limit: int = 1000) -> list[KeyRecord]:
        """Return the records that :meth:`KeyStore.orphans` describes."""
        with self._lock:
            records = list(self._records.values())
        found = [
            record
            for record in records
            if (record.state.opens and not record.wrappings) or record.application not in self._marks
        ]
        return sorted(found, key=lambda record: record.key_id)[:limit]

    def reserve(self, items: Mapping[UUID, int], *, limit: int = HARD_LIMIT) -> dict[UUID, int]:
        """Lease items under active keys. Returns the new totals of the granted leases."""
        totals: dict[UUID, int] = {}
        with self._lock:
            for key_id, count in items.items():
                record = self._records.get(key_id)
                if (
                    record is None
                    or record.state is not KeyState.ACTIVE
                    or record.items_reserved + count > limit
                ):
                    continue
                totals[key_id] = record.items_reserved + count
                self._records[key_id] = replace(record, items_reserved=totals[key_id])
        return totals

    def changes(self, application: str, since: int, key_ids: Collection[UUID]) -> Changes | None:
        """Read the application's mark and, unless its counter is *since*, the changes."""
        with self._lock:
            mark = self._marks.get(application)
            if mark is None:
                return None
            interval, now = self._refresh_interval, self._now()
            if mark.counter == since:
                return Changes(mark=mark, refresh_interval=interval, now=now)
            asked = [self._records[key_id] for key_id in key_ids if self._changed.get(key_id, -1) > since]
            return Changes(
                mark=mark,
                refresh_interval=interval,
                now=now,
                records=tuple(
                    replace(record, wrappings=()) for record in asked if record.application == application
                ),
                root=self._nodes_at(application, [ROOT]).get(ROOT, b""),
            )

    def page(
        self, application: str, *, after: UUID | None = None, limit: int = 1000, state: KeyState | None = None
    ) -> list[KeyRecord]:
        """Return up to *limit* records, in order of id. All ids are above *after*."""
        with self._lock:
            found = [
                record
                for record in self._records.values()
                if record.application == application
                and (after is None or record.key_id > after)
                and (state is None or record.state is state)
            ]
        return sorted(found, key=lambda record: record.key_id)[:limit]

    def add_place(self, application: str, name: str, collection: str) -> None:  # noqa: ARG002
        """Record that a place outside the registered tables holds items."""
        with self._lock:
            self._places.add(name)

    def places(self) -> list[str]:
        """Return the names of the recorded places."""
        with self._lock:
            return sorted(self._places)

    def now(self) -> datetime:
        """Read the store's clock, UTC."""
        return self._now()

    def _admits(self, application: str, admit: Admission) -> bool:
        mark = self._marks[application]
        return mark.revoked == admit.revoked or admit(mark, self._nodes_at(application, admit.paths))

    def _next(self, application: str, next_mark: NextMark) -> ChangeMark:
        """Store the next mark, and return it."""
        mark, changed = next_mark(self._marks[application], self._nodes_at(application, next_mark.paths))
        self._marks[application] = mark
        self._nodes.update({(application, path): content for path, content in changed.items()})
        return mark

    def _nodes_at(self, application: str, paths: Collection[bytes]) -> dict[bytes, bytes]:
        at = {path: self._nodes.get((application, path)) for path in paths}
        return {path: content for path, content in at.items() if content is not None}

    def _free(self, key_id: UUID) -> None:
        """Take a key's slot away."""
        for slot in [slot for slot, holder in self._slots.items() if holder == key_id]:
            del self._slots[slot]
        if (record := self._records.get(key_id)) is not None:
            self._records[key_id] = replace(record, active_scope=None)

    def _refuse_taken(self, record: KeyRecord) -> None:
        if record.key_id in self._records:
            raise StoreError(f"key id {record.key_id} is taken. Ids are never used again")

    def _insert(self, record: KeyRecord) -> None:
        self._refuse_taken(record)
        mark = self._marks.get(record.application)
        self._records[record.key_id] = replace(record, created_at=self._now())
        self._changed[record.key_id] = 0 if mark is None else mark.counter
        self._slots[_slot(record)] = record.key_id

    def _is_left_out(
        self, record: KeyRecord, whole_scope: str | None, application: str, given: Collection[UUID]
    ) -> bool:
        return (
            (record.scope, record.application) == (whole_scope, application)
            and record.purpose in SUBJECT_PURPOSES
            and record.state is not KeyState.DESTROYED
            and record.key_id not in given
        )

    def _wraps_others(self, record: KeyRecord) -> bool:
        """Return whether *record* destroys a branch key that still wraps other keys."""
        if (record.purpose, record.state) != (KeyPurpose.BRANCH, KeyState.DESTROYED):
            return False
        uri = branch_uri(record.key_id)
        return any(wrapped.kek_uri == uri for other in self._records.values() for wrapped in other.wrappings)

    def _hold_branches(self, wrappings: Collection[WrappedKey]) -> None:
        """Refuse wrappings under a branch key that was destroyed in the meantime."""
        for branch_id in map(named_branch, wrappings):
            branch = None if branch_id is None else self._records.get(branch_id)
            if branch is not None and branch.state is KeyState.DESTROYED:
                raise KeyDestroyedError(
                    f"branch key {branch_id} was destroyed before the keys that it has wrapped were stored",
                    key_id=branch_id,
                    remedy="Try again: the branch now has another key.",
                )

    def _follows(self, record: KeyRecord) -> bool:
        stored = self._records.get(record.key_id)
        return stored is not None and stored.row_version == record.row_version - 1

    def _move(self, record: KeyRecord, mark: ChangeMark) -> None:
        stored = self._records[record.key_id]
        changed = replace(
            stored,
            state=record.state,
            active_scope=record.active_scope,
            destroyed_by=record.destroyed_by,
            row_version=record.row_version,
            seal=record.seal,
            wrappings=() if record.state is KeyState.DESTROYED else stored.wrappings,
            verified=frozenset() if record.state is KeyState.DESTROYED else stored.verified,
        )
        changed = _timed(changed, self._now()) if changed.state is not stored.state else changed
        if self._slots.get(_slot(stored)) == stored.key_id:
            del self._slots[_slot(stored)]
        if changed.active_scope is not None:
            self._slots[_slot(changed)] = changed.key_id
        self._records[record.key_id] = changed
        self._changed[record.key_id] = mark.counter


def _timed(record: KeyRecord, now: datetime) -> KeyRecord:
    """Set the time when *record* got its state."""
    match record.state:
        case KeyState.DEACTIVATED:
            return replace(record, deactivated_at=now)
        case KeyState.COMPROMISED:
            return replace(record, compromised_at=now)
        case KeyState.DESTROYED:
            return replace(record, destroyed_at=now)
        case _:
            return record


def _holding(records: Sequence[KeyRecord]) -> list[KeyRecord]:
    return [record for record in records if record.active_scope is not None]


def _slot(record: KeyRecord) -> tuple[str, KeyPurpose, str | None]:
    return record.application, record.purpose, record.active_scope


def _with_wrapping(record: KeyRecord, wrapped: WrappedKey, *, verified: bool) -> KeyRecord:
    """
    Add a wrapping as the newest, unless its KEK version has one.

    A verified wrapping replaces one that was never verified.
    """
    others = [other for other in record.wrappings if _place(other) != _place(wrapped)]
    held = [other for other in record.wrappings if _place(other) == _place(wrapped)]
    if not held or (verified and held[0] not in record.verified):
        record = replace(record, wrappings=(wrapped, *others))
    if verified and wrapped in record.wrappings:
        record = replace(record, verified=record.verified | {wrapped})
    return record


def _place(wrapped: WrappedKey) -> tuple[str, str | None]:
    return wrapped.kek_uri, wrapped.kek_version


if TYPE_CHECKING:
    _: type[KeyStore] = InMemoryKeyStore

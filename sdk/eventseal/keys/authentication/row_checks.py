"""Checks key rows against their MACs and the revocation tree."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from eventseal.errors import (
    EventSealError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    WrongApplicationError,
)
from eventseal.keys.authentication.row_macs import RESTORE_MARK, RESTORE_STORE_KEY
from eventseal.keys.records import restore_remedy
from eventseal.keys.revocation_tree import REMEDY, least_state
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.wording import shell_word

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from uuid import UUID

    from eventseal.keys.authentication.revocations import Revocations
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.store_key import StoreKey
    from eventseal.keys.store import KeyStore


REMEDY_OF_SET_BACK = (
    "Find out who changed the key tables, or which backup was restored. Destroyed keys stay destroyed."
)


def set_back(record: KeyRecord, seen: KeyState) -> IntegrityError:
    """Return the error of a row whose state is earlier than known."""
    return IntegrityError(
        f"the row of key {record.key_id} says {record.state}, but it was {seen}: an old row was put back",
        remedy=REMEDY_OF_SET_BACK,
        key_id=record.key_id,
    )


_MISUSE = {
    KeyPurpose.DATA: "does not encrypt or decrypt items",
    KeyPurpose.FIELD: "does not encrypt or decrypt fields",
    KeyPurpose.BRANCH: "does not wrap other keys",
}
_FOREIGN = "Do not use the bytes that name it, because no such key can have encrypted them."


def why_not(
    record: KeyRecord | None,
    key_id: UUID,
    *,
    application: str,
    seals: Seals | None,
    purpose: KeyPurpose,
) -> EventSealError | None:
    """
    Return the reason why a row's key must not open, or ``None``.

    The application is checked before the row MAC, because the MAC is under the owner's store key. The MAC is
    checked before the state, so that nobody can fake an erasure.

    Args:
        record: The record that the key store returned for *key_id*.
        key_id: The requested id.
        application: The application whose keys are looked up.
        seals: The MACs of the application. ``None`` if it has no store key.
        purpose: The purpose of the keys that are looked up.
    """
    if record is None:
        return KeyNotFoundError(f"the key store has no key {key_id}", key_id=key_id)
    try:
        check_row(record, key_id, application, seals)
        _check_purpose(record, purpose)
    except EventSealError as error:
        return error
    return destroyed(record) if record.state is KeyState.DESTROYED else None


def why_not_sealing(
    record: KeyRecord, scope: str, *, application: str, seals: Seals, purpose: KeyPurpose
) -> EventSealError | None:
    """
    Return the reason why a scope's key must not seal, or ``None``.

    The key is the one in the scope's slot.

    Args:
        record: The record that the key store returned for *scope*.
        scope: The requested scope.
        application: The application whose keys are looked up.
        seals: The MACs of the application.
        purpose: The purpose of the keys that are looked up.
    """
    refusal = why_not(record, record.key_id, application=application, seals=seals, purpose=purpose)
    if refusal is not None:
        return refusal
    if (record.scope, record.active_scope, record.state) != (scope, scope, KeyState.ACTIVE):
        return IntegrityError(
            f"key {record.key_id} holds the slot of scope {scope!r}, "
            f"but its authentic row is {record.state} and of scope {record.scope!r}",
            remedy=restore_remedy(),
            key_id=record.key_id,
        )
    return None


def destroyed(record: KeyRecord) -> KeyDestroyedError:
    """Return the error of a tombstone whose MAC was checked."""
    closed = record.active_scope is not None
    return KeyDestroyedError(
        f"key {record.key_id} of scope {record.scope!r} was {record.destroyed_by}"
        + (", and the scope is closed" if closed else ""),
        key_id=record.key_id,
        scope=record.scope,
        destroyed_by=record.destroyed_by,
    )


def is_set_back(record: KeyRecord) -> bool:
    """Return whether a row shows an earlier state than the revocation tree."""
    how = record.revoked_as
    return how != "unproven" and not least_state(how).may_become(record.state)


def closed_scope(scope: str) -> KeyDestroyedError:
    """
    Return the error of a closed scope whose slot has no tombstone.

    The revocation tree shows that the scope is closed.
    """
    return KeyDestroyedError(
        f"scope {scope!r} was shredded, and is closed",
        scope=scope,
        destroyed_by="shredded",
        remedy=reopening(scope),
    )


def reopening(scope: str) -> str:
    """Return the remedy for new items of a closed scope."""
    return (
        f"To write new items to this scope, run `eventseal reopen {shell_word(scope)}`. Nothing can decrypt "
        "the old ones again."
    )


def lives_in_closed_scope(record: KeyRecord) -> IntegrityError:
    """
    Return the error of a key that survived in a closed scope.

    The key is not destroyed, although a shred destroys every key. The revocation tree shows that the scope is
    closed.
    """
    named = shell_word(record.scope)
    return IntegrityError(
        f"key {record.key_id} is {record.state}, but its scope {record.scope!r} was shredded and closed. "
        "Either the key's row was hidden from the shred, or an old row was put back",
        remedy=f"To destroy this key, run `eventseal shred {named}` again. If the key was created "
        f"after a backup was restored, and you want to keep it, run `eventseal reopen {named}`.",
        key_id=record.key_id,
    )


def tombstone_of_open_scope(record: KeyRecord) -> IntegrityError:
    """
    Return the error of a tombstone in an open scope's slot.

    The revocation tree shows that the scope is open.
    """
    return IntegrityError(
        f"the tombstone {record.key_id} holds the slot of scope {record.scope!r}, which is not closed: "
        "an old row was put back",
        remedy=restore_remedy(),
        key_id=record.key_id,
    )


def check_row(record: KeyRecord, key_id: UUID, application: str, seals: Seals | None) -> None:
    """
    Check that a row is the application's, and that it is authentic.

    Args:
        record: The record that the key store returned for *key_id*.
        key_id: The requested id.
        application: The application whose keys are looked up.
        seals: The MACs of the application. ``None`` if it has no store key.

    Raises:
        WrongApplicationError: The key belongs to another application.
        IntegrityError: The row is not authentic, or it belongs to another key.
    """
    if record.application != application and "application" not in record.unreadable:
        raise WrongApplicationError(
            f"key {key_id} belongs to application {record.application!r}, not to {application!r}",
            expected=application,
            found=record.application,
        )
    if seals is None:
        raise IntegrityError(
            f"key {key_id} has a row, but application {application!r} has no store key: somebody deleted it",
            remedy=RESTORE_STORE_KEY,
            key_id=key_id,
        )
    seals.check(record)
    if record.revoked_as == "unproven":
        raise IntegrityError(
            f"the leaf of key {key_id} in the revocation tree was edited: it does not match the change mark",
            remedy=REMEDY,
            key_id=key_id,
        )
    # A MAC proves that a keyring wrote the row, but not that this is the latest row (docs/decisions/0025).
    if record.revoked_as is not None and is_set_back(record):
        raise set_back(record, least_state(record.revoked_as))
    if record.key_id != key_id:
        raise IntegrityError(
            f"the key store returned the row of key {record.key_id} for key {key_id}",
            remedy=restore_remedy(),
            key_id=key_id,
        )


def _check_purpose(record: KeyRecord, purpose: KeyPurpose) -> None:
    if record.purpose is not purpose:
        raise IntegrityError(
            f"key {record.key_id} is of purpose {record.purpose}, so it {_MISUSE[purpose]}",
            remedy=restore_remedy() if purpose is KeyPurpose.BRANCH else _FOREIGN,
            key_id=record.key_id,
        )


def mark_deleted(application: str) -> IntegrityError:
    """
    Return the error of an application whose change mark was deleted.

    The store key, which was stored with the change mark, still exists.
    """
    return IntegrityError(
        f"application {application!r} has a store key but no change mark: somebody deleted it",
        remedy=RESTORE_MARK,
    )


def store_key_deleted(application: str) -> IntegrityError:
    """
    Return the error of an application whose store key was deleted.

    The change mark, which was stored with the store key, still exists.
    """
    return IntegrityError(
        f"application {application!r} has a change mark but no store key: somebody deleted it",
        remedy=RESTORE_STORE_KEY,
    )


class KeyringCounters:
    """
    Totals since the keyring was created, or since the process was forked.

    Attributes:
        kms_calls: Calls to KMS adapters that left the process. A batch is one call.
        store_queries: Calls to the key store.
        hits: Keys that were returned from memory. A lock would make a hit a third slower, so none is used.
            With several threads, the total may be slightly low.
        misses: Keys that were not in memory.
        missing_wrappings: Wrappings that new keys were stored without, as the quorum allows.
            :meth:`eventseal.keys.Keyring.rewrap` adds them.
    """

    __slots__ = ("_lock", "hits", "kms_calls", "misses", "missing_wrappings", "store_queries")

    def __init__(self) -> None:
        self.kms_calls = 0
        self.store_queries = 0
        self.hits = 0
        self.misses = 0
        self.missing_wrappings = 0
        self._lock = threading.Lock()

    def count_kms_calls(self, calls: int) -> None:
        """Count calls that left the process."""
        with self._lock:
            self.kms_calls += calls

    def count_store_query(self) -> None:
        """Count a call to the key store."""
        with self._lock:
            self.store_queries += 1

    def count_misses(self, keys: int) -> None:
        """Count keys that were not in memory."""
        with self._lock:
            self.misses += keys

    def count_missing_wrappings(self, wrappings: int) -> None:
        """Count the wrappings of new keys that a KEK did not create."""
        with self._lock:
            self.missing_wrappings += wrappings

    def __repr__(self) -> str:
        return (
            f"<KeyringCounters kms_calls={self.kms_calls} store_queries={self.store_queries} "
            f"hits={self.hits} misses={self.misses} missing_wrappings={self.missing_wrappings}>"
        )


class _CountedStore:
    """Passes calls to a key store, and counts each call."""

    def __init__(self, store: KeyStore, counters: KeyringCounters) -> None:
        self._store = store
        self._counters = counters

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        self._counters.count_store_query()
        return found


def counted(store: KeyStore, counters: KeyringCounters) -> KeyStore:
    """Return *store* with every call counted."""
    return cast("KeyStore", _CountedStore(store, counters))


class CheckedStore:
    """
    The key store as a keyring reads it.

    Each row has the entry of its key in the revocation tree.

    Args:
        revocations: Reads the revocation tree.
        store_key: Returns the application's MACs.

    Attributes:
        unchecked: The key store, for rows that open nothing, and for data that is not a row of a key.
        revocations: Reads the revocation tree.
    """

    def __init__(self, unchecked: KeyStore, revocations: Revocations, store_key: StoreKey) -> None:
        self.unchecked = unchecked
        self.revocations = revocations
        self._store_key = store_key

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose
    ) -> dict[str, KeyRecord]:
        """Return the record in each scope's slot."""
        found = self.unchecked.active(application, scopes, purpose=purpose)
        checked = self._checked(found.values())
        if any(checked[record.key_id].active_scope != record.active_scope for record in found.values()):
            # A key was replaced as compromised after its row was read. Read once more, but not repeatedly.
            found = self.unchecked.active(application, scopes, purpose=purpose)
            checked = self._checked(found.values())
        return {scope: checked[record.key_id] for scope, record in found.items()}

    def get(self, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
        """Return records by id."""
        found = self.unchecked.get(key_ids)
        checked = self._checked(found.values())
        return {key_id: checked[record.key_id] for key_id, record in found.items()}

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """Return every key and tombstone of a scope."""
        return list(self._checked(self.unchecked.of_scope(application, scope), by_scope=False).values())

    def page(self, application: str, *, after: UUID | None, limit: int) -> list[KeyRecord]:
        """Return records in order of id."""
        return list(self._checked(self.unchecked.page(application, after=after, limit=limit)).values())

    @contextmanager
    def changing(self) -> Iterator[KeyStore]:
        """Yield the key store for changes of key states. Afterwards the leaves of the tree are read again."""
        try:
            yield self.unchecked
        finally:
            self.revocations.has_changed()

    def _checked(self, records: Iterable[KeyRecord], *, by_scope: bool = True) -> dict[UUID, KeyRecord]:
        """
        Return records with their keys' entries in the revocation tree.

        The records keep their order.

        Args:
            records: The records that the key store returned.
            by_scope: Whether the caller trusts ``revoked_as`` only for rows whose MACs it has checked.
        """
        found = {record.key_id: record for record in records}
        seals = self._store_key.known or self._store_key.seals() if found else None
        if seals is None:
            return found
        # The scope in a row is trusted only if the row MAC is checked as well (docs/decisions/0025).
        of_keys = self.revocations.of_rows if by_scope else self.revocations.of_keys
        revoked = of_keys(found, seals)
        told = {key_id: replace(found[key_id], revoked_as=how) for key_id, how in revoked.items() if how}
        earlier = [record.key_id for record in told.values() if is_set_back(record)]
        if earlier:  # their rows may have been read a moment before the keys were revoked
            told |= {
                key_id: replace(record, revoked_as=revoked[key_id])
                for key_id, record in self.unchecked.get(earlier).items()
            }
        return found | told

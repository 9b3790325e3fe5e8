"""Key rows as a keyring reads them: what the revocation tree says of each, and why its key is not used."""

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
from eventseal.keys.revocation_tree import REMEDY, least_state
from eventseal.keys.states import KeyPurpose, KeyState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from uuid import UUID

    from eventseal.keys.authentication.revocations import Revocations
    from eventseal.keys.authentication.row_macs import Seals
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.store_key import StoreKey
    from eventseal.keys.store import KeyStore


REMEDY_OF_SET_BACK = (
    "Find out who changed the key tables, or which backup was restored; destroyed keys stay destroyed."
)


def set_back(record: KeyRecord, seen: KeyState) -> IntegrityError:
    """The error of a row that shows an earlier state than one that is known."""
    return IntegrityError(
        f"the row of key {record.key_id} says {record.state}, but it was {seen}: an old row was put back",
        remedy=REMEDY_OF_SET_BACK,
        key_id=record.key_id,
    )


_MISUSE = {
    KeyPurpose.DATA: "seals and opens no items",
    KeyPurpose.FIELD: "seals and opens no fields",
    KeyPurpose.BRANCH: "wraps no other keys",
}
_FOREIGN = "Do not use what names it: such a key cannot have sealed it."
_REMEDY = "Find out who changed the key tables, and restore the key's row from a backup."


def why_not(
    record: KeyRecord | None,
    key_id: UUID,
    *,
    application: str,
    seals: Seals | None,
    purpose: KeyPurpose,
) -> EventSealError | None:
    """
    Say why a row's key must not be used to open; ``None`` if it may.

    The application comes before the seal, which is under the owner's store key; the seal before the state, so
    that nobody can forge an erasure.

    Args:
        record: As the key store gave it for *key_id*.
        key_id: The one that was asked for.
        application: Whose keys are looked for.
        seals: The application's; ``None`` if it has no store key.
        purpose: Of the keys that are looked for.
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
    Say why the key that holds a scope's slot must not be used to seal; ``None`` if it may.

    Args:
        record: As the key store gave it for *scope*.
        scope: The one that was asked for.
        application: Whose keys are looked for.
        seals: The application's.
        purpose: Of the keys that are looked for.
    """
    refusal = why_not(record, record.key_id, application=application, seals=seals, purpose=purpose)
    if refusal is not None:
        return refusal
    if (record.scope, record.active_scope, record.state) != (scope, scope, KeyState.ACTIVE):
        return IntegrityError(
            f"key {record.key_id} holds the slot of scope {scope!r}, "
            f"but its sealed row is {record.state} and of scope {record.scope!r}",
            remedy=_REMEDY,
            key_id=record.key_id,
        )
    return None


def destroyed(record: KeyRecord) -> KeyDestroyedError:
    """The error of a tombstone whose seal was checked."""
    closed = record.active_scope is not None
    return KeyDestroyedError(
        f"key {record.key_id} of scope {record.scope!r} was {record.destroyed_by}"
        + (", and the scope is closed" if closed else ""),
        key_id=record.key_id,
        scope=record.scope,
        destroyed_by=record.destroyed_by,
    )


def is_set_back(record: KeyRecord) -> bool:
    """Whether a row shows an earlier state than the revocation tree says."""
    how = record.revoked_as
    return how != "unproven" and not least_state(how).may_become(record.state)


def closed_scope(scope: str) -> KeyDestroyedError:
    """The error of a scope that the revocation tree has as closed, and whose slot no tombstone holds."""
    return KeyDestroyedError(
        f"scope {scope!r} was shredded, and is closed", scope=scope, destroyed_by="shredded"
    )


def lives_in_closed_scope(record: KeyRecord) -> IntegrityError:
    """The error of a live key in a scope that the revocation tree has as closed: no shred leaves one."""
    return IntegrityError(
        f"key {record.key_id} is {record.state}, but its scope {record.scope!r} was shredded and closed: "
        "the key's row was hidden from the shred, or an old row was put back",
        remedy=f"Run `eventseal shred {record.scope}` again: it destroys this key. If the key was made after "
        f"a backup was restored, and is to stay: `eventseal reopen {record.scope}`.",
        key_id=record.key_id,
    )


def tombstone_of_open_scope(record: KeyRecord) -> IntegrityError:
    """The error of a slot that a tombstone holds, although the revocation tree has the scope as open."""
    return IntegrityError(
        f"the tombstone {record.key_id} holds the slot of scope {record.scope!r}, which is not closed: "
        "an old row was put back",
        remedy=_REMEDY,
        key_id=record.key_id,
    )


def check_row(record: KeyRecord, key_id: UUID, application: str, seals: Seals | None) -> None:
    """
    Check whose row it is, and that it is as a keyring sealed it.

    Args:
        record: As the key store gave it for *key_id*.
        key_id: The one that was asked for.
        application: Whose keys are looked for.
        seals: The application's; ``None`` if it has no store key.

    Raises:
        WrongApplicationError: The key is another application's.
        IntegrityError: The row is not what a keyring sealed, or that of another key.
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
            remedy="Find out who changed the key tables, and restore the store key from a backup.",
            key_id=key_id,
        )
    seals.check(record)
    if record.revoked_as == "unproven":
        raise IntegrityError(
            f"the leaf of key {key_id} in the revocation tree does not match the change mark: it was edited",
            remedy=REMEDY,
            key_id=key_id,
        )
    # A seal says that a keyring wrote the row, and not that it has written no later one
    # (docs/decisions/0025).
    if record.revoked_as is not None and is_set_back(record):
        raise set_back(record, least_state(record.revoked_as))
    if record.key_id != key_id:
        raise IntegrityError(
            f"the key store gave the row of key {record.key_id} for key {key_id}",
            remedy=_REMEDY,
            key_id=key_id,
        )


def _check_purpose(record: KeyRecord, purpose: KeyPurpose) -> None:
    if record.purpose is not purpose:
        raise IntegrityError(
            f"key {record.key_id} is of purpose {record.purpose}, and {_MISUSE[purpose]}",
            remedy=_REMEDY if purpose is KeyPurpose.BRANCH else _FOREIGN,
            key_id=record.key_id,
        )


def mark_deleted(application: str) -> IntegrityError:
    """The error of an application that has a store key, but not the change mark that was stored with it."""
    return IntegrityError(
        f"application {application!r} has a store key but no change mark: somebody deleted it",
        remedy="Find out who changed the key tables, and restore key_changes from a backup.",
    )


def store_key_deleted(application: str) -> IntegrityError:
    """The error of an application that has a change mark, but not the store key that came with it."""
    return IntegrityError(
        f"application {application!r} has a change mark but no store key: somebody deleted it",
        remedy="Find out who changed the key tables, and restore the store key from a backup.",
    )


class KeyringCounters:
    """
    Totals since the keyring was made, or since the process was forked.

    Attributes:
        kms_calls: Calls to KMS adapters that left the process; a batch is one.
        store_queries: Calls to the key store.
        hits: Keys that were answered from memory. Counted without a lock, which would cost a third of a hit:
            with several threads it may come out a little low.
        misses: Keys that were not.
        missing_wrappings: Wrappings that new keys were stored without, as the quorum allows;
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
        """Count keys that were not answered from memory."""
        with self._lock:
            self.misses += keys

    def count_missing_wrappings(self, wrappings: int) -> None:
        """Count wrappings that a KEK should have made for new keys, and did not."""
        with self._lock:
            self.missing_wrappings += wrappings

    def __repr__(self) -> str:
        return (
            f"<KeyringCounters kms_calls={self.kms_calls} store_queries={self.store_queries} "
            f"hits={self.hits} misses={self.misses} missing_wrappings={self.missing_wrappings}>"
        )


class _CountedStore:
    """Passes calls on to a key store, and counts each."""

    def __init__(self, store: KeyStore, counters: KeyringCounters) -> None:
        self._store = store
        self._counters = counters

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        self._counters.count_store_query()
        return found


def counted(store: KeyStore, counters: KeyringCounters) -> KeyStore:
    """Give *store* with every call counted."""
    return cast("KeyStore", _CountedStore(store, counters))


class CheckedStore:
    """
    The key store as a keyring reads it: each row comes with what the revocation tree says of its key.

    Args:
        unchecked: The key store.
        revocations: Say what is revoked.
        store_key: Gives the application's seals.

    Attributes:
        unchecked: As given: for rows that open nothing, and for what is no row of a key.
        revocations: As given.
    """

    def __init__(self, unchecked: KeyStore, revocations: Revocations, store_key: StoreKey) -> None:
        self.unchecked = unchecked
        self.revocations = revocations
        self._store_key = store_key

    def active(
        self, application: str, scopes: Collection[str], *, purpose: KeyPurpose
    ) -> dict[str, KeyRecord]:
        """Give the record that holds each scope's slot."""
        found = self.unchecked.active(application, scopes, purpose=purpose)
        checked = self._checked(found.values())
        if any(checked[record.key_id].active_scope != record.active_scope for record in found.values()):
            # A key was replaced as compromised after its row was read. Read again, and only once.
            found = self.unchecked.active(application, scopes, purpose=purpose)
            checked = self._checked(found.values())
        return {scope: checked[record.key_id] for scope, record in found.items()}

    def get(self, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
        """Give records by id."""
        found = self.unchecked.get(key_ids)
        checked = self._checked(found.values())
        return {key_id: checked[record.key_id] for key_id, record in found.items()}

    def of_scope(self, application: str, scope: str) -> list[KeyRecord]:
        """Give every key and tombstone of a scope."""
        return list(self._checked(self.unchecked.of_scope(application, scope), by_scope=False).values())

    def page(self, application: str, *, after: UUID | None, limit: int) -> list[KeyRecord]:
        """Give records in order of id."""
        return list(self._checked(self.unchecked.page(application, after=after, limit=limit)).values())

    @contextmanager
    def changing(self) -> Iterator[KeyStore]:
        """Give the key store to change states of keys in: afterwards leaves of the tree are read again."""
        try:
            yield self.unchecked
        finally:
            self.revocations.has_changed()

    def _checked(self, records: Iterable[KeyRecord], *, by_scope: bool = True) -> dict[UUID, KeyRecord]:
        """
        Give records with what the revocation tree says of their keys, in their order.

        Args:
            records: As the key store gave them.
            by_scope: Whether the caller believes ``revoked_as`` only of rows whose seals it has checked.
        """
        found = {record.key_id: record for record in records}
        seals = self._store_key.known or self._store_key.seals() if found else None
        if seals is None:
            return found
        # The scope that a row names is believed only where its seal is checked as well (docs/decisions/0025).
        of_keys = self.revocations.of_rows if by_scope else self.revocations.of_keys
        revoked = of_keys(found, seals)
        told = {key_id: replace(found[key_id], revoked_as=how) for key_id, how in revoked.items() if how}
        earlier = [record.key_id for record in told.values() if is_set_back(record)]
        if earlier:  # maybe read a moment before their keys were revoked
            told |= {
                key_id: replace(record, revoked_as=revoked[key_id])
                for key_id, record in self.unchecked.get(earlier).items()
            }
        return found | told

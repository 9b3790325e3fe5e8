"""Rotate: give scopes new active keys, and mark leaked keys compromised."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, EventSealError, KeyDestroyedError
from eventseal.keys.authentication.row_checks import reopening
from eventseal.keys.authentication.row_macs import unreadable_row
from eventseal.keys.records import checked_scope, new_key_id
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.rotation.fences import record_compromised
from eventseal.rotation.results import JobResult, Run
from eventseal.rotation.sealed_store import key_pages
from eventseal.rotation.status.key_totals import expected_keys
from eventseal.storage.database.rows import chunks
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.storage.keys.rows import of_unknown_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from uuid import UUID

    from eventseal.errors import IntegrityError, StoreUnavailableError
    from eventseal.keys.records import KeyRecord
    from eventseal.keys.ring.rotating import Rotated
    from eventseal.rotation.sealed_store import SealedStore


KEY_TABLE, FENCE_TABLE = "eventseal_encryption_keys", "eventseal_key_fences"
"""The tables that failures name for rows of keys and of fences."""

_BATCH_SIZE = 100


def rotate_keys(
    store: SealedStore,
    *,
    scopes: Collection[str] | None = None,
    compromised: bool = False,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Create new active keys for scopes. Old keys then only decrypt.

    No item is changed. If it is interrupted, each scope has its old key or a new one. The next call rotates
    all scopes again.

    Args:
        store: An ``EventSeal``, or any other :class:`SealedStore`.
        scopes: Only these scopes. ``None``: every scope that has an active data key.
        compromised: Whether the old keys leaked. Their items must then be re-encrypted, and nothing is
            appended under them any more.
        progress: Called after each batch with the progress so far.

    Returns:
        The result's ``done`` counts the scopes that have a new key. Its ``failed`` counts the scopes whose
        row is not in order, and the leaked keys that must be marked again. A transaction
        that wrote under such a key was open for more than 2 seconds. Its ``by_key`` names the replaced keys.

    Raises:
        ConfigurationError: A named scope never had a key. Nothing was done.
        KeyDestroyedError: A named scope is closed. Nothing was done.
        KmsError: The KMS refused or failed. The scopes that were rotated before stay so.
        StoreError: The database refused or failed. The scopes that were rotated before stay so.
    """
    run = _Rotation(store, compromised=compromised, progress=progress)
    if scopes is None:
        if progress is not None:
            run.expected = expected_keys(store, [KeyPurpose.DATA], [KeyState.ACTIVE])
        for error in unknown_rows(store):
            run.refuse(error)
        for records in _active_keys_now(store):
            run.rotate(run.scopes_of(records))
    else:
        named = list(dict.fromkeys(map(store.keyring.tables.scope_named, scopes)))
        _refuse_closed(store, named)
        run.expected = len(named)
        run.rotate(named)
    return run.result(complete=not run.failed)


def mark_compromised(
    store: SealedStore,
    keys: Collection[UUID],
    *,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Mark keys compromised by their ids.

    The keys may have been replaced long ago. No item is changed. An active key is replaced first. Then
    nothing is appended under the keys any more. Their current items are recorded, so that a later forgery
    shows. If a key is already compromised, its items are recorded again.

    Args:
        store: An ``EventSeal``, or any other :class:`SealedStore`.
        keys: Ids of data keys and branch keys.
        progress: Called after each batch with the progress so far.

    Returns:
        The result's ``done`` counts the keys, and its ``by_key`` names them.

    Raises:
        ConfigurationError: A key has a purpose whose items cannot be found. Nothing was done.
        IntegrityError: A key's row is not authentic.
        KeyDestroyedError: A key is destroyed. Nothing was done.
        KeyNotFoundError: There is no such key. Nothing was done.
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed. Or a transaction that writes under a key stays open for
            more than 2 seconds. Then the other keys are marked. Call it again for this one.
    """
    run = _Rotation(store, compromised=True, progress=progress)
    records = store.keyring.compromise(list(dict.fromkeys(keys)))
    run.expected = len(records)
    held: dict[UUID, StoreUnavailableError] = {}
    for some in chunks(records, _BATCH_SIZE):
        held |= record_compromised(store, [each.key_id for each in some if each.purpose is KeyPurpose.DATA])
        run.count([record.key_id for record in some], done=len(some))
    for error in held.values():
        raise error
    return run.result(complete=not run.failed)


class _Rotation(Run):
    """One run of rotate: its counts and its next steps."""

    def __init__(
        self, store: SealedStore, *, compromised: bool, progress: Callable[[JobResult], None] | None
    ) -> None:
        super().__init__(verb="rotate", progress=progress)
        self._store = store
        self._compromised = compromised

    def rotate(self, scopes: Sequence[str]) -> None:
        """Rotate scopes in batches. Each batch shares the calls of the KMS."""
        for some in chunks(scopes, _BATCH_SIZE):
            rotated: list[Rotated] = []
            outcomes = self._store.keyring.rotate_many(some, compromised=self._compromised)
            for outcome in outcomes.values():
                if isinstance(outcome, EventSealError):
                    self.refuse(outcome)
                else:
                    rotated.append(outcome)
            replaced = [outcome.old for outcome in rotated if outcome.old is not None]
            if self._compromised:
                self._mark(replaced)
            self.count(replaced, done=len(rotated))

    def scopes_of(self, records: Sequence[KeyRecord]) -> list[str]:
        """Return the scopes of keys. A key whose scope is invalid counts as failed."""
        scopes: list[str] = []
        for record in records:
            try:
                scopes.append(checked_scope(record.scope))
            except ConfigurationError:
                self.refuse(unreadable_row(replace(record, unreadable=record.unreadable or ("scope",))))
        return scopes

    def count(self, key_ids: Collection[UUID], *, done: int) -> None:
        """Count finished scopes or keys, and list their old keys."""
        self.done += done
        for key_id in key_ids:
            self.note(key_id, 1)
        self.tell()

    def refuse(self, error: EventSealError) -> None:
        """Count a key whose row is not in order as failed."""
        self.fail(KEY_TABLE, getattr(error, "key_id", None), error)

    def _mark(self, key_ids: Collection[UUID]) -> None:
        """Record the items of compromised keys. A held fence stops only its key."""
        for key_id, error in record_compromised(self._store, key_ids).items():
            error.remedy = f"{error.remedy} The command: eventseal rotate --compromised --key {key_id}"
            self.fail(FENCE_TABLE, key_id, error)


def unknown_rows(store: SealedStore) -> list[IntegrityError]:
    """Return errors for keys with an unknown state or purpose. Nothing lists such keys."""
    if not isinstance(store.key_store, SQLAlchemyKeyStore):
        return []
    rows = of_unknown_kind(store.datastore.key_engine, application=store.cipher.application)
    return [unreadable_row(record) for record in rows]


def _active_keys_now(store: SealedStore) -> Iterator[list[KeyRecord]]:
    """
    Yield the active data keys, without those that this run creates.

    Key ids contain the time of creation. A database writer can change ``created_at``, but not that.
    """
    newest = new_key_id()
    pages = partial(key_pages, store.key_store, store.cipher.application, state=KeyState.ACTIVE)
    # Keys of processes whose clocks are ahead. Usually there are none.
    ahead = {record.key_id for page in pages(after=newest) for record in page}
    for page in pages():
        yield [
            record
            for record in page
            if record.purpose is KeyPurpose.DATA
            and "purpose" not in record.unreadable
            and (record.key_id <= newest or record.key_id in ahead)
        ]


def _refuse_closed(store: SealedStore, scopes: Sequence[str]) -> None:
    """Refuse scopes that have no key to replace."""
    application = store.cipher.application
    holders = store.key_store.active(application, scopes)
    for scope in scopes:
        holder = holders.get(scope)
        if holder is None:
            records = store.key_store.of_scope(application, scope)
            if all(record.purpose is not KeyPurpose.DATA for record in records):
                raise ConfigurationError(
                    f"scope {scope!r} never had a key. Nothing was rotated",
                    remedy="Check the spelling of the scope. `eventseal keys` lists the scopes with keys.",
                )
        elif holder.state is KeyState.DESTROYED:
            raise KeyDestroyedError(
                f"scope {scope!r} is closed: its keys were {holder.destroyed_by}. Nothing was rotated",
                key_id=holder.key_id,
                scope=scope,
                destroyed_by=holder.destroyed_by,
                remedy=reopening(scope),
            )

"""Rotate: every scope, or some, gets a new active key; and keys that leaked are marked compromised."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, EventSealError, KeyDestroyedError
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


KEY_TABLE, FENCE_TABLE = "encryption_keys", "key_fences"
"""Name the rows of keys and of fences in failures."""

_BATCH_SIZE = 100


def rotate_keys(
    store: SealedStore,
    *,
    scopes: Collection[str] | None = None,
    compromised: bool = False,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Give scopes new active keys; the old ones open only. No item is touched.

    Interrupted, it leaves each scope with its old key or a new one. Run again, it rotates all of them.

    Args:
        store: An ``EventSeal``, or any object with its four.
        scopes: Only these; ``None``: every scope that has an active data key.
        compromised: Whether the old keys' items must be encrypted again; nobody appends under them any more.
        progress: Called after each batch with what was done so far.

    Returns:
        ``done`` counts the scopes that have a new key, ``failed`` those whose row is not in order, and leaked
        keys that are to be marked once more: a transaction that writes under one went on for more than 2
        seconds. ``by_key`` names the keys that were replaced.

    Raises:
        ConfigurationError: No key of a named scope was ever made; nothing was done.
        KeyDestroyedError: A named scope is closed; nothing was done.
        KmsError: The KMS refused or failed; what was rotated before stays so.
        StoreError: The database refused or failed; what was rotated before stays so.
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
    Mark keys compromised by their ids, also keys that were replaced long ago. No item is touched.

    An active one is replaced first. Nobody appends under them any more, and what is under them now is
    recorded, so that a forgery that comes later shows; for a key that is compromised already it is recorded
    anew.

    Args:
        store: An ``EventSeal``, or any object with its four.
        keys: Data keys and branch keys.
        progress: Called after each batch with what was done so far.

    Returns:
        ``done`` counts the keys; ``by_key`` names them.

    Raises:
        ConfigurationError: A key is of a purpose whose items nobody finds; nothing was done.
        IntegrityError: A key's row is not what a keyring sealed.
        KeyDestroyedError: A key is destroyed; nothing was done.
        KeyNotFoundError: There is no such key; nothing was done.
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed, or a transaction that writes under a key goes on for more
            than 2 seconds: the other keys are marked, run it again for this one.
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
    """One run: what it has done so far, and how it goes on."""

    def __init__(
        self, store: SealedStore, *, compromised: bool, progress: Callable[[JobResult], None] | None
    ) -> None:
        super().__init__(verb="rotate", progress=progress)
        self._store = store
        self._compromised = compromised

    def rotate(self, scopes: Sequence[str]) -> None:
        """Rotate scopes, a batch of which shares the calls of the KMS."""
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
        """Give the scopes of keys; a key whose row says none that there can be is listed as failed."""
        scopes: list[str] = []
        for record in records:
            try:
                scopes.append(checked_scope(record.scope))
            except ConfigurationError:
                self.refuse(unreadable_row(replace(record, unreadable=record.unreadable or ("scope",))))
        return scopes

    def count(self, key_ids: Collection[UUID], *, done: int) -> None:
        """Count keys, and scopes or keys, that are done with."""
        self.done += done
        for key_id in key_ids:
            self.note(key_id, 1)
        self.tell()

    def refuse(self, error: EventSealError) -> None:
        """List a key whose row is not in order."""
        self.fail(KEY_TABLE, getattr(error, "key_id", None), error)

    def _mark(self, key_ids: Collection[UUID]) -> None:
        """Record what is under compromised keys; a fence that somebody holds keeps no other key from it."""
        for key_id, error in record_compromised(self._store, key_ids).items():
            error.remedy = f"{error.remedy} The command: eventseal rotate --compromised --key {key_id}"
            self.fail(FENCE_TABLE, key_id, error)


def unknown_rows(store: SealedStore) -> list[IntegrityError]:
    """Name the keys whose row has a state or a purpose that there is none: nothing lists them."""
    if not isinstance(store.key_store, SQLAlchemyKeyStore):
        return []
    rows = of_unknown_kind(store.datastore.key_engine, application=store.cipher.application)
    return [unreadable_row(record) for record in rows]


def _active_keys_now(store: SealedStore) -> Iterator[list[KeyRecord]]:
    """
    Give the active data keys that are there now: those that this run makes are new enough.

    Their ids tell them apart, which say when they were made. A database writer can set ``created_at``.
    """
    newest = new_key_id()
    pages = partial(key_pages, store.key_store, store.cipher.application, state=KeyState.ACTIVE)
    # Made by processes whose clocks are ahead; mostly there are none.
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
    """Refuse scopes that have no key to be replaced."""
    application = store.cipher.application
    holders = store.key_store.active(application, scopes)
    for scope in scopes:
        holder = holders.get(scope)
        if holder is None:
            records = store.key_store.of_scope(application, scope)
            if all(record.purpose is not KeyPurpose.DATA for record in records):
                raise ConfigurationError(
                    f"no key of scope {scope!r} was ever made; nothing was rotated",
                    remedy="Check how the scope is spelled: `eventseal keys` lists those that have keys.",
                )
        elif holder.state is KeyState.DESTROYED:
            raise KeyDestroyedError(
                f"scope {scope!r} is closed: its keys were {holder.destroyed_by}; nothing was rotated",
                key_id=holder.key_id,
                scope=scope,
                destroyed_by=holder.destroyed_by,
            )

"""Scopes that have keys again after a shred: reopened today, or by a release before the revocation tree."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from eventseal.cipher import ItemContext
from eventseal.erasure.ledger.entries import REOPEN
from eventseal.erasure.shredding import batches, own_ledger
from eventseal.errors import IntegrityError, JobError, SerializationError
from eventseal.items.fields import PersonalFields
from eventseal.items.item import StoredItem, UnknownPlaceNames
from eventseal.items.json import JSONTranscoder
from eventseal.items.sealed_fields import SEALED_BYTES
from eventseal.keys.states import KeyPurpose
from eventseal.rotation.fences import close_and_count
from eventseal.rotation.results import JobResult, Run
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.table_checks import refuse_unregistered_tables
from eventseal.storage.items.rows import pages
from eventseal.suites.envelope import HEADER_SIZE, envelope_problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.keys import KeyRecord
    from eventseal.keys.authentication.key_tables import OldRows
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


def list_erased(store: SealedStore, tables: Sequence[SealedTable], keys: Iterable[KeyRecord]) -> int:
    """
    Note every item that is under keys as erased: what names them afterwards, and is not listed, is tampering.

    So it does with fields in items that are not encrypted.

    Args:
        store: Has the items' database and the list.
        tables: Every one that may hold items under the keys.
        keys: That were shredded, of a scope that is about to be reopened.

    Returns:
        How many items and fields.

    Raises:
        StoreError: A database refused or failed.
    """
    keys = list(keys)
    listed = _list_fields(store, tables, {key.key_id for key in keys if key.purpose is KeyPurpose.FIELD})
    for key_ids in batches(keys):
        for table in tables:
            for page in pages(store.datastore.engine, table, key_ids=key_ids):
                items: list[tuple[bytes, bytes]] = []
                for row in page:
                    context = ItemContext(row.sequence_id, row.position, row.topic, table.collection)
                    with suppress(SerializationError):  # no reader takes an item in such a place
                        items += store.cipher.bind_many([(row.data, context)])
                store.keyring.tables.list_erased(items)
                listed += len(items)
    return listed


def _list_fields(store: SealedStore, tables: Sequence[SealedTable], key_ids: Collection[UUID]) -> int:
    """List the fields under erased keys in items that are not encrypted: of those nothing else tells."""
    listed = 0
    for table in tables if key_ids else ():
        fields = PersonalFields(store.cipher, JSONTranscoder(), UnknownPlaceNames(), table.collection)
        for page in pages(store.datastore.engine, table, key_ids=[None]) if table.has_key_ids else ():
            found: list[tuple[bytes, bytes]] = []
            for row in page:
                data: Any = row.data  # an edit may have put anything there
                if isinstance(data, bytes) and SEALED_BYTES in data:
                    with suppress(IntegrityError, SerializationError):  # no reader takes such an item
                        sealed = fields.sealed_in(StoredItem(*row), data)
                        whole = [each for each in sealed if envelope_problem(each[0]) is None]
                        erased = [each for each in whole if UUID(bytes=each[0][3:HEADER_SIZE]) in key_ids]
                        found += store.cipher.bind_fields(erased)
            store.keyring.tables.list_erased(found)
            listed += len(found)
    return listed


def reopen(store: SealedStore, scope: str, *, ledger: Ledger | None = None) -> JobResult:
    """
    Let a scope that was shredded have keys again. What was shredded stays so.

    First the fences that the shred had to leave open are closed: a transaction that has written under a
    shredded key, and is open still, would else commit what nobody can read into a scope that is open. Then
    every item under those keys is listed: only these read as erased from now on, so that nobody hides a live
    item behind a destroyed key. Then the ledger is told, so that keys made from now on outlive a restore.

    Args:
        store: An ``EventSeal``, or any object with its four.
        scope: One that is closed; nothing is done to one that is not.
        ledger: ``None``: the store's own, if it has one.

    Returns:
        ``done`` is 1 if the scope was closed until now, else 0.

    Raises:
        ConfigurationError: No key of the scope was ever made, the ledger is gone, or a table that looks
            sealed is not registered.
        IntegrityError: A row of the scope is not what a keyring sealed, or the ledger is not what was
            written; nothing was done.
        JobError: A shred of the scope was begun, and is not done.
        StoreUnavailableError: A transaction that wrote under a shredded key goes on for more than 2 seconds,
            or a database is away. The scope stays closed.
        StoreError: The key store or the ledger refused or failed.
    """
    run = Run(verb="reopen")
    scope = store.keyring.tables.scope_named(scope)
    ledger = ledger or own_ledger(store)
    refuse_unregistered_tables(store)
    tables = registered_tables(store.datastore, store.cipher.application)

    def first(shredded: Sequence[KeyRecord]) -> None:
        for key_ids in batches(shredded):
            closing = close_and_count(store.datastore.engine, (), key_ids, even_if_needed=True)
            for error in closing.held.values():
                raise error
        list_erased(store, tables, shredded)
        # Each time that the rows were read: a shred may have come between (docs/decisions/0016).
        if ledger is not None:
            _record_reopening(store, scope, ledger, shredded)

    freed = store.keyring.destroyer.reopen(scope, before_commit=first)
    return run.result(complete=True, done=int(bool(freed)))


class _IntentAdded(Exception):  # noqa: N818 - says that somebody was quicker, and is caught where it is met
    """An intent was added since the open ones were looked at."""


def _record_reopening(store: SealedStore, scope: str, ledger: Ledger, shredded: Sequence[KeyRecord]) -> None:
    keys = {record.key_id: record.purpose for record in shredded}
    while True:
        seen = ledger.last(store).open_intents
        if any(entry.scope == scope for entry in ledger.open_intents(store)):
            raise JobError(
                f"a shred of scope {scope!r} was begun and is not done; it stays closed",
                remedy=f"Finish it first: eventseal shred {scope}",
            )
        # A reopening behind the intent of another shred would leave the scope open after a restore, although
        # that shred goes on (docs/decisions/0016).
        judge = partial(_refuse_others, frozenset(seen))
        try:
            ledger.append(store, REOPEN, scope=scope, keys=keys, judge=judge)
        except _IntentAdded:
            continue
        return


def _refuse_others(seen: frozenset[int], last: LedgerEntry) -> None:
    """Refuse entries that were not open before intents were looked at: one may be of this very scope."""
    if not seen.issuperset(last.open_intents):
        raise _IntentAdded


class Upgraded(NamedTuple):
    """
    What an upgrade has taken over.

    Attributes:
        keys: Keys that are compromised or destroyed.
        erased: Items of scopes that were reopened, which are taken for erased as they were found: nothing
            proves that they were.
        edited: Rows that do not match their seals, and were left out.
    """

    keys: int
    erased: int
    edited: int


def upgrade_key_tables(store: SealedStore) -> Upgraded | None:
    """
    Upgrade the key tables of a release before the revocation tree. `eventseal init` calls it.

    The processes of that release must be stopped: one that meets the new change mark ends with an error.

    Args:
        store: An ``EventSeal``, or any object with its four, whose tables were made: ``setup_tables()``.

    Returns:
        ``None`` if there was nothing to do.

    Raises:
        ConfigurationError: A registered table is not there.
        IntegrityError: The rows are not what the old mark counts, or that of a shredded key was edited.
        StoreError: A database refused or failed, or the key tables changed meanwhile; run it again.
    """
    erased = 0

    def first(rows: OldRows) -> None:
        nonlocal erased
        if rows.reopened:
            tables = registered_tables(store.datastore, store.cipher.application)
            erased = list_erased(store, tables, rows.reopened)

    rows = store.keyring.tables.upgrade(before_commit=first)
    return None if rows is None else Upgraded(rows.keys, erased, len(rows.edited))

"""
Reopen shredded scopes, so that they can have keys again.

It also upgrades key tables in which a release before the revocation tree reopened scopes.
"""

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
from eventseal.wording import shell_word

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
    List every item under the keys as erased.

    Fields under these keys in items that are not encrypted are listed, too. An item or field that names such
    a key later, and is not listed, is tampering.

    Args:
        store: The store with the items' database and the list.
        tables: Every table that may hold items under the keys.
        keys: The shredded keys of a scope that is about to be reopened.

    Returns:
        How many items and fields were listed.

    Raises:
        StoreError: A database rejects a request or fails.
    """
    keys = list(keys)
    listed = _list_fields(store, tables, {key.key_id for key in keys if key.purpose is KeyPurpose.FIELD})
    for key_ids in batches(keys):
        for table in tables:
            for page in pages(store.datastore.engine, table, key_ids=key_ids):
                items: list[tuple[bytes, bytes]] = []
                for row in page:
                    context = ItemContext(row.sequence_id, row.position, row.topic, table.collection)
                    with suppress(SerializationError):  # no reader accepts an item at such a place
                        items += store.cipher.bind_many([(row.data, context)])
                store.keyring.tables.list_erased(items)
                listed += len(items)
    return listed


def _list_fields(store: SealedStore, tables: Sequence[SealedTable], key_ids: Collection[UUID]) -> int:
    """
    List the fields under erased keys in items that are not encrypted.

    Nothing else shows that such fields were there before.
    """
    listed = 0
    for table in tables if key_ids else ():
        fields = PersonalFields(store.cipher, JSONTranscoder(), UnknownPlaceNames(), table.collection)
        for page in pages(store.datastore.engine, table, key_ids=[None]) if table.has_key_ids else ():
            found: list[tuple[bytes, bytes]] = []
            for row in page:
                data: Any = row.data  # an edit may have put anything there
                if isinstance(data, bytes) and SEALED_BYTES in data:
                    with suppress(IntegrityError, SerializationError):  # no reader accepts such an item
                        sealed = fields.sealed_in(StoredItem(*row), data)
                        whole = [each for each in sealed if envelope_problem(each[0]) is None]
                        erased = [each for each in whole if UUID(bytes=each[0][3:HEADER_SIZE]) in key_ids]
                        found += store.cipher.bind_fields(erased)
            store.keyring.tables.list_erased(found)
            listed += len(found)
    return listed


def reopen(store: SealedStore, scope: str, *, ledger: Ledger | None = None) -> JobResult:
    """
    Let a shredded scope have keys again.

    The shredded keys stay destroyed, and their items stay erased. The steps:

    1. The fences that the shred had to leave open are closed. Otherwise, a transaction that wrote under a
       shredded key and is still open would commit unreadable items into an open scope.
    2. Every item under the shredded keys is listed. From now on, only listed items read as erased, so that
       an attacker cannot hide another item by naming a destroyed key.
    3. The ledger records the reopening, so that new keys survive a restore.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``.
        scope: The closed scope. If the scope is not closed, nothing is done.
        ledger: The erasure ledger. ``None``: the store's own ledger, if it has one.

    Returns:
        The result, in which ``done`` is 1 if the scope was closed until now, else 0.

    Raises:
        ConfigurationError: The scope never had a key, the ledger is missing, or a table that looks sealed is
            not registered.
        IntegrityError: A key row of the scope or the ledger does not authenticate. Nothing was done.
        JobError: A shred of the scope was begun and is not done.
        StoreUnavailableError: A transaction that wrote under a shredded key lasts longer than 2 seconds, or a
            database is unavailable. The scope stays closed.
        StoreError: The key store or the ledger rejects a request or fails.
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
        # Each time that the rows were read: another shred may have happened since (docs/decisions/0016).
        if ledger is not None:
            _record_reopening(store, scope, ledger, shredded)

    freed = store.keyring.destroyer.reopen(scope, before_commit=first)
    return run.result(complete=True, done=int(bool(freed)))


class _IntentAdded(Exception):  # noqa: N818 - no error: another process was quicker, and the caller retries
    """An intent was added after the open intents were read."""


def _record_reopening(store: SealedStore, scope: str, ledger: Ledger, shredded: Sequence[KeyRecord]) -> None:
    keys = {record.key_id: record.purpose for record in shredded}
    while True:
        seen = ledger.last(store).open_intents
        if any(entry.scope == scope for entry in ledger.open_intents(store)):
            named = shell_word(scope)
            raise JobError(
                f"a shred of scope {scope!r} was begun and is not done, so the scope stays closed",
                remedy=f"Run `eventseal shred {named}` to finish it. Then run `eventseal reopen {named}`.",
            )
        # A reopening after the intent of another shred would leave the scope open after a restore, although
        # that shred continues (docs/decisions/0016).
        judge = partial(_refuse_others, frozenset(seen))
        try:
            ledger.append(store, REOPEN, scope=scope, keys=keys, judge=judge)
        except _IntentAdded:
            continue
        return


def _refuse_others(seen: frozenset[int], last: LedgerEntry) -> None:
    """Refuse intents added since the check: one may be of this scope."""
    if not seen.issuperset(last.open_intents):
        raise _IntentAdded


class Upgraded(NamedTuple):
    """
    The counts of an upgrade.

    Attributes:
        keys: How many keys are compromised or destroyed.
        erased: How many items of reopened scopes were listed as erased. Nothing proves that they were erased.
        edited: How many rows were left out because their row MAC does not match.
    """

    keys: int
    erased: int
    edited: int


def upgrade_key_tables(store: SealedStore) -> Upgraded | None:
    """
    Upgrade key tables of a release before the revocation tree.

    `eventseal upgrade` calls it. Stop the processes of that release first: a process that reads the new
    change mark ends with an error.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``, whose tables ``setup_tables()`` created.

    Returns:
        The counts, or ``None`` if there was nothing to do.

    Raises:
        ConfigurationError: A registered table is missing.
        IntegrityError: The number of rows differs from the old mark, or the row of a shredded key was edited.
        StoreError: A database rejects a request or fails, or the key tables changed meanwhile. Run it again.
    """
    erased = 0

    def first(rows: OldRows) -> None:
        nonlocal erased
        if rows.reopened:
            tables = registered_tables(store.datastore, store.cipher.application)
            erased = list_erased(store, tables, rows.reopened)

    rows = store.keyring.tables.upgrade(before_commit=first)
    return None if rows is None else Upgraded(rows.keys, erased, len(rows.edited))

"""Reopen: a scope that was shredded may have keys again."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from eventseal.erasure.ledger.entries import REOPEN
from eventseal.erasure.shredding import batches, list_erased, own_ledger
from eventseal.errors import JobError
from eventseal.rotation.fence_closing import close_and_count
from eventseal.rotation.results import JobResult
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.table_checks import refuse_unregistered_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.keys import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore


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
    started = time.monotonic()
    scope = store.keyring.scope_named(scope)
    ledger = ledger or own_ledger(store)
    refuse_unregistered_tables(store)
    tables = registered_tables(store.datastore, store.cipher.application)

    def first(shredded: Sequence[KeyRecord]) -> None:
        for key_ids in batches(shredded):
            closing = close_and_count(store.datastore.engine, (), key_ids, even_if_needed=True)
            for error in closing.held.values():
                raise error
        list_erased(store, tables, shredded)
        if ledger is not None:  # again if the rows had to be read again: it may have been shredded since
            _tell(store, scope, ledger, shredded)

    freed = store.keyring.reopen(scope, first=first)
    return JobResult(
        verb="reopen",
        complete=True,
        done=int(bool(freed)),
        left=0,
        failed=0,
        seconds=time.monotonic() - started,
    )


class _IntentTold(Exception):  # noqa: N818 - says that somebody was quicker, and is caught where it is met
    """An intent was told since the open ones were looked at."""


def _tell(store: SealedStore, scope: str, ledger: Ledger, shredded: Sequence[KeyRecord]) -> None:
    keys = {record.key_id: record.purpose for record in shredded}
    while True:
        seen = ledger.last(store).open_intents
        if any(entry.scope == scope for entry in ledger.open_intents(store)):
            raise JobError(
                f"a shred of scope {scope!r} was begun and is not done; it stays closed",
                remedy=f"Finish it first: eventseal shred {scope}",
            )
        judge = partial(_refuse_others, frozenset(seen))
        try:
            ledger.append(store, REOPEN, scope=scope, keys=keys, judge=judge)
        except _IntentTold:
            continue
        return


def _refuse_others(seen: frozenset[int], last: LedgerEntry) -> None:
    """Refuse entries that were not open before intents were looked at: one may be of this very scope."""
    if not seen.issuperset(last.open_intents):
        raise _IntentTold

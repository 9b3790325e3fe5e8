"""Shred: what was sealed for one scope is never opened again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from eventseal.erasure.fences import close_scope_fences, erased_items
from eventseal.erasure.recording import Recording
from eventseal.erasure.subject_erased import SubjectErased
from eventseal.rotation.results import JobResult
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.table_checks import refuse_unregistered_tables
from eventseal.storage.physical_deletion import overwrite_deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.erasure.ledger import Ledger
    from eventseal.erasure.receipts import Receipt
    from eventseal.keys import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore


@runtime_checkable
class HasLedger(Protocol):
    """A store that has an erasure ledger; ``EventSeal`` is one."""

    @property
    def ledger(self) -> Ledger | None:
        """The ledger, if one is configured."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShredResult(JobResult):
    """
    What a shred did.

    Attributes:
        scope: The one that was shredded, as the key tables have it.
        receipt: For the data subject's file; ``None`` without a ledger, or if the shred is not complete.
    """

    scope: str
    receipt: Receipt | None = None

    def to_json(self) -> dict[str, Any]:
        """Give it as ``--json`` prints it."""
        receipt = None if self.receipt is None else self.receipt.to_json()
        return {**super(ShredResult, self).to_json(), "scope": self.scope, "receipt": receipt}


def shred(
    store: SealedStore,
    scope: str,
    *,
    ledger: Ledger | None = None,
    notify: Callable[[SubjectErased], object] | None = None,
    destroy_application_items: bool = False,
    dry_run: bool = False,
) -> ShredResult:
    """
    Destroy every key of a scope and close the scope. Nothing brings the keys back but a backup of them.

    First the ledger is told which keys are meant; if it cannot be written, nothing is destroyed. Then, in one
    transaction, every wrapping goes, and tombstones keep the scope's slots, so that nobody makes a key for
    it, on purpose or by a rotation in flight. Other processes stop opening within ``refresh_interval``. Then
    the keys' fences are closed: a stale writer's append is refused, instead of written unreadable. At last
    the ledger is told that it is done. Interrupted anywhere, it is run again. The bytes of the wrappings are
    overwritten in the database's files at hand, as far as that can be; ``leftover`` says what was in the way.

    Args:
        store: An ``EventSeal``, or any object with its four.
        scope: One that has had a key. Shredded again, it stays closed, and its fences are tried again.
        ledger: Made if it is not there and nothing was ever shredded. ``None``: the store's own, if it has
            one; without one, a restore of the key tables brings the keys back, and nobody can tell.
        notify: Called with the event when all is done, also if an earlier run had done it already. What it
            raises leaves the erasure done; run it again to have it called again.
        destroy_application_items: Whether the scope may be ``application``: every item and field for which
            no other scope was chosen.
        dry_run: Whether only to count what would be destroyed.

    Returns:
        ``done`` counts the keys that were destroyed now; ``by_key`` gives the items under each key of the
        scope that was ever shredded, ``by_table`` the same by table, as ``erased``. ``failed`` counts fences
        that are open still, and ``complete`` says that there is none: else run it again.

    Raises:
        ConfigurationError: No key of the scope was ever made, or it is ``application``; nothing was done. Or
            a table that looks sealed is not registered, or a registered one is not there. Or the ledger is
            gone.
        IntegrityError: A row of the scope is not what a keyring sealed, or the ledger is not what was
            written; nothing was destroyed.
        StoreError: The key store or the ledger refused or failed; nothing was destroyed, or it is known when
            this is run again.
    """
    started = time.monotonic()
    refuse_unregistered_tables(store)
    tables = registered_tables(store.datastore, store.cipher.application)
    scope = store.keyring.scope_named(scope)
    recording = None if dry_run else Recording.of(store, scope, ledger or own_ledger(store))

    def first(rows: Sequence[KeyRecord]) -> None:
        if recording is not None:
            recording.intend(rows)

    ended = store.keyring.shred(scope, first=first, even_default=destroy_application_items, dry_run=dry_run)
    leftover = "" if dry_run else overwrite_deleted(store.datastore.key_engine)
    if dry_run:
        fences = erased_items(store, tables, ended.keys)
    else:
        fences = close_scope_fences(store, tables, ended.shredded)
    receipt = None
    if recording is not None and not fences.failures:
        receipt = recording.finish(ended.keys, destroyed=len(ended.destroyed), by_table=fences.by_table)
    if notify is not None and not dry_run and not fences.failures:
        notify(
            SubjectErased(
                application=store.keyring.application,
                scope=scope,
                key_ids=tuple(record.key_id for record in ended.shredded),
                entry=None if receipt is None else receipt.done_entry,
            )
        )
    return ShredResult(
        verb="shred",
        complete=not fences.failures,
        done=len(ended.destroyed),
        left=0,
        failed=len(fences.failures),
        seconds=time.monotonic() - started,
        by_table={table: dict(counts) for table, counts in fences.by_table.items()},
        by_key=fences.by_key,
        failures=tuple(fences.failures),
        leftover=leftover,
        scope=scope,
        receipt=receipt,
    )


def own_ledger(store: SealedStore) -> Ledger | None:
    """Give the ledger that a store brings along, if any."""
    return store.ledger if isinstance(store, HasLedger) else None

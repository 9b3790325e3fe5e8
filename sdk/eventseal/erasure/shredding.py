"""Shred a scope: destroy its keys, close their fences, notify projections."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from eventseal.erasure.ledger.entries import DONE
from eventseal.erasure.ledger.recording import Recording
from eventseal.errors import StoreError
from eventseal.keys.states import KeyPurpose
from eventseal.rotation.fences import close_and_count
from eventseal.rotation.key_rotation import FENCE_TABLE
from eventseal.rotation.results import Failure, JobResult, Run
from eventseal.rotation.sealed_store import StoreOptions, registered_tables
from eventseal.rotation.table_checks import refuse_unregistered_tables
from eventseal.storage.database.rows import chunks
from eventseal.storage.database.transactions import read
from eventseal.storage.items.key_counts import count_under
from eventseal.storage.keys.wrapping_rows import overwrite_deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    from eventseal.erasure.ledger.entries import LedgerEntry
    from eventseal.erasure.ledger.ledger import Ledger
    from eventseal.erasure.receipts import Receipt
    from eventseal.keys import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


_BATCH_SIZE = 100


@dataclass(frozen=True, slots=True)
class ErasedItems:
    """
    The items under keys that were shredded.

    Attributes:
        items: The number of items in each table, by key.
        failures: One failure for each key whose fence is still open.
    """

    items: dict[UUID, Counter[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @property
    def by_table(self) -> dict[str, dict[str, int]]:
        """How many items each table has, as ``erased``."""
        every = sum(self.items.values(), Counter[str]())
        return {table: {"erased": count} for table, count in every.items()}


def close_scope_fences(
    store: SealedStore, tables: Sequence[SealedTable], shredded: Iterable[KeyRecord]
) -> ErasedItems:
    """
    Close the fences of shredded keys, and count their items.

    A fence that cannot be closed is a failure in the result.

    Args:
        store: The store with the items' database.
        tables: Every table that may hold items under the keys.
        shredded: The shredded keys.
    """
    found = ErasedItems()
    for key_ids in batches(shredded):
        try:
            closing = close_and_count(store.datastore.engine, tables, key_ids, even_if_needed=True)
        except StoreError as error:  # the keys are destroyed anyway
            found.failures.extend([Failure.of_key(FENCE_TABLE, key_id, error) for key_id in key_ids])
            continue
        found.failures.extend(
            [Failure.of_key(FENCE_TABLE, key_id, error) for key_id, error in closing.held.items()]
        )
        found.items.update(closing.closed)
    return found


def erased_items(store: SealedStore, tables: Sequence[SealedTable], keys: Iterable[KeyRecord]) -> ErasedItems:
    """
    Count the items under keys, without closing fences.

    See :func:`close_scope_fences`.

    Raises:
        StoreError: The items' database rejects a request or fails.
    """
    found = ErasedItems()
    for key_ids in batches(keys):
        count = partial(count_under, tables=tables, key_ids=key_ids)
        counts = read(store.datastore.engine, count, doing="counting items of a scope")
        found.items.update({key_id: counts.get(key_id, Counter()) for key_id in key_ids})
    return found


def batches(records: Iterable[KeyRecord]) -> Iterator[list[UUID]]:
    """
    Yield the ids of data keys in batches: only these have items.

    Values under keys of other purposes are nested inside items.
    """
    key_ids = [record.key_id for record in records if record.purpose is KeyPurpose.DATA]
    return chunks(key_ids, _BATCH_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectErased:
    """
    The notification that a scope was shredded.

    Read models, search indexes and caches must now drop their plaintext copies of its data. The notification
    arrives at least once, so dropping the data again must do no harm.

    Attributes:
        application: The application that owned the keys.
        scope: The shredded scope, such as ``subject:<id>``, in the form that the key tables use. If these
            hold digests, compare it with ``keyring.stored_scope(...)``.
        key_ids: The ids of its keys and tombstones.
        entry: The number of the ledger entry that records the erasure. ``None`` without a ledger.
    """

    application: str
    scope: str
    key_ids: tuple[UUID, ...]
    entry: int | None

    @classmethod
    def of(cls, entry: LedgerEntry) -> Self:
        """Create the notification from the ledger entry of a finished erasure."""
        return cls(
            application=entry.application,
            scope=entry.scope or "",
            key_ids=tuple(entry.keys),
            entry=entry.number,
        )


def erased_subjects(store: SealedStore, ledger: Ledger, *, after: int = 0) -> Iterator[SubjectErased]:
    """
    Yield the erasures in a ledger.

    Use it for projections in processes that get no call of ``notify``.

    Args:
        store: The store with the application and its KEKs.
        ledger: The application's ledger.
        after: The number of the last entry that the projection has processed. 0: from the beginning.

    Raises:
        EventSealError: An error of :meth:`eventseal.erasure.Ledger.entries`.
    """
    for entry in ledger.entries(store, after=after):
        if entry.kind == DONE and entry.scope is not None:
            yield SubjectErased.of(entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShredResult(JobResult):
    """
    The result of a shred.

    Attributes:
        scope: The shredded scope, in the form that the key tables use.
        receipt: The receipt for the data subject's file. ``None`` without a ledger, or if the shred is not
            complete.
    """

    scope: str
    receipt: Receipt | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that ``--json`` prints."""
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
    Destroy every key of a scope, and close the scope.

    Only a backup of the keys can bring them back. The steps:

    1. The ledger records which keys will be destroyed. If it cannot be written, nothing is destroyed.
    2. In one transaction, every wrapping is deleted. Tombstones occupy the scope's slots, so that no process
       can create a key for the scope, neither on purpose nor by a rotation in progress. Other processes stop
       opening items within ``refresh_interval``.
    3. The fences of the keys are closed, so that an append of a stale writer is refused instead of stored
       unreadable.
    4. The ledger records that the erasure is done.

    If a run is interrupted, run it again. The bytes of the wrappings are overwritten in the database files as
    far as possible. The ``leftover`` of the result says what prevented it.

    Args:
        store: An ``EventSeal``, or another ``SealedStore``.
        scope: A scope that has or had a key. If it was shredded before, it stays closed, and EventSeal tries
            again to close its fences.
        ledger: The erasure ledger, which is created if it is missing and nothing was ever shredded. ``None``:
            the store's own ledger, if it has one. Without a ledger, a restore of the key tables brings the
            keys back, and nothing shows it.
        notify: Called with a :class:`SubjectErased` when all is done, even if an earlier run did it. If it
            raises, the erasure stays done. Run the shred again to repeat the call.
        destroy_application_items: Whether the scope may be ``application``, which holds every item and field
            without another scope.
        dry_run: Whether to only count the items and keys that would be destroyed.

    Returns:
        The result:

        - ``done`` counts the keys that this run destroyed.
        - ``by_key`` counts the items under each key of the scope that was ever shredded.
        - ``by_table`` counts the same items by table, as ``erased``.
        - ``failed`` counts the fences that are still open.
        - ``complete`` is true if no fence is open. Otherwise, run the shred again.

    Raises:
        ConfigurationError: The scope never had a key, or it is ``application``. Nothing was done. It is also
            raised if a table that looks sealed is not registered, or a registered table or the ledger is
            missing.
        IntegrityError: A key row of the scope or the ledger does not authenticate. Nothing was destroyed.
        StoreError: The key store or the ledger rejects a request or fails. Either nothing was destroyed, or
            the next run detects what was.
    """
    run = Run(verb="shred")
    refuse_unregistered_tables(store)
    tables = registered_tables(store.datastore, store.cipher.application)
    scope = store.keyring.tables.scope_named(scope)
    ledger = None if dry_run else ledger or own_ledger(store)
    recording = None if ledger is None else Recording(store, scope, ledger)
    ended = store.keyring.shred(
        scope,
        before_commit=None if recording is None else recording.intend,  # see docs/decisions/0013
        even_default=destroy_application_items,
        dry_run=dry_run,
    )
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
    facts = run.facts(
        complete=not fences.failures,
        done=len(ended.destroyed),
        failed=len(fences.failures),
        by_table=fences.by_table,
        by_key={key_id: items.total() for key_id, items in fences.items.items()},
        failures=tuple(fences.failures),
        leftover=leftover,
    )
    return ShredResult(**facts, scope=scope, receipt=receipt)


def own_ledger(store: SealedStore) -> Ledger | None:
    """Return the ledger of a store, if it has one."""
    ledger: Ledger | None = StoreOptions.of(store).ledger
    return ledger

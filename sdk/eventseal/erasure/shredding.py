"""Shred: the keys of a scope are destroyed, their fences closed, and projections told of it."""

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
    What is under keys that were shredded.

    Attributes:
        items: By key its items in each table.
        failures: One for each key whose fence is open still.
    """

    items: dict[UUID, Counter[str]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @property
    def by_table(self) -> dict[str, dict[str, int]]:
        """How many items there are in each table, as ``erased``."""
        every = sum(self.items.values(), Counter[str]())
        return {table: {"erased": count} for table, count in every.items()}


def close_scope_fences(
    store: SealedStore, tables: Sequence[SealedTable], shredded: Iterable[KeyRecord]
) -> ErasedItems:
    """
    Close the fences of keys that were shredded, as many as can be, and count what is under them.

    Args:
        store: Has the items' database.
        tables: Every one that may hold items under the keys.
        shredded: The keys.
    """
    found = ErasedItems()
    for key_ids in batches(shredded):
        try:
            closing = close_and_count(store.datastore.engine, tables, key_ids, even_if_needed=True)
        except StoreError as error:  # the keys are destroyed all the same
            found.failures.extend([Failure.of_key(FENCE_TABLE, key_id, error) for key_id in key_ids])
            continue
        found.failures.extend(
            [Failure.of_key(FENCE_TABLE, key_id, error) for key_id, error in closing.held.items()]
        )
        found.items.update(closing.closed)
    return found


def erased_items(store: SealedStore, tables: Sequence[SealedTable], keys: Iterable[KeyRecord]) -> ErasedItems:
    """
    Count what is under keys, and close no fence; see :func:`close_scope_fences`.

    Raises:
        StoreError: The items' database refused or failed.
    """
    found = ErasedItems()
    for key_ids in batches(keys):
        count = partial(count_under, tables=tables, key_ids=key_ids)
        counts = read(store.datastore.engine, count, doing="counting items of a scope")
        found.items.update({key_id: counts.get(key_id, Counter()) for key_id in key_ids})
    return found


def batches(records: Iterable[KeyRecord]) -> Iterator[list[UUID]]:
    """Give the keys under which items may be written, a few at a time: others are nested inside those."""
    key_ids = [record.key_id for record in records if record.purpose is KeyPurpose.DATA]
    return chunks(key_ids, _BATCH_SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectErased:
    """
    A scope was shredded: read models, search indexes and caches that hold its data in plain drop it now.

    It is told at least once, so dropping again must do no harm.

    Attributes:
        application: Whose keys these were.
        scope: The one that was shredded: ``subject:<id>``, or what else it was. As the key tables have it, so
            compare it with ``keyring.stored_scope(...)`` if these hold digests.
        key_ids: Its keys and tombstones.
        entry: The number of the ledger's entry that says so; ``None`` without a ledger.
    """

    application: str
    scope: str
    key_ids: tuple[UUID, ...]
    entry: int | None

    @classmethod
    def of(cls, entry: LedgerEntry) -> Self:
        """Read the event from the ledger's entry of an erasure that is done."""
        return cls(
            application=entry.application,
            scope=entry.scope or "",
            key_ids=tuple(entry.keys),
            entry=entry.number,
        )


def erased_subjects(store: SealedStore, ledger: Ledger, *, after: int = 0) -> Iterator[SubjectErased]:
    """
    Read from a ledger what was erased: for projections in processes that nobody calls back.

    Args:
        store: Whose application and KEKs.
        ledger: The application's.
        after: The number of the last entry that the projection has followed; 0: from the beginning.

    Raises:
        EventSealError: As :meth:`eventseal.erasure.Ledger.entries` raises.
    """
    for entry in ledger.entries(store, after=after):
        if entry.kind == DONE and entry.scope is not None:
            yield SubjectErased.of(entry)


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
    """Give the ledger that a store brings along, if any."""
    ledger: Ledger | None = StoreOptions.of(store).ledger
    return ledger

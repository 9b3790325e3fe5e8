"""Re-encrypt items under their scopes' active keys, while applications run."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError
from eventseal.keys.states import KeyState
from eventseal.rotation.item_checks import ItemChecks, Tally
from eventseal.rotation.jobs.collections import finish_move, opened_page, refuse_move
from eventseal.rotation.jobs.jobs import REENCRYPT, begun_job, by_table, collection_of, keys_of, resumed_job
from eventseal.rotation.jobs.passes import Passes
from eventseal.rotation.jobs.sources import moved_sources, table_sources
from eventseal.rotation.jobs.workers import Workers
from eventseal.rotation.results import JobResult, Run
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.set_aside_rows import SET_ASIDE, AsideRows
from eventseal.rotation.status.key_totals import settles_at
from eventseal.rotation.table_checks import refuse_old_key_tables, refuse_unregistered_tables
from eventseal.storage.items.places import TablePlace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from concurrent.futures import Executor
    from uuid import UUID

    from eventseal.rotation.jobs.sources import TableSources
    from eventseal.rotation.sealed_store import SealedStore


def reencrypt(
    store: SealedStore,
    *,
    keys: Collection[UUID] | None = None,
    tables: Collection[str] | None = None,
    to_collection: str | None = None,
    batch: int = 1000,
    items_per_second: float | None = None,
    shards: int = 1,
    executor: Executor | None = None,
    open_store: Callable[[], SealedStore] | None = None,
    resume: UUID | None = None,
    dry_run: bool = False,
    progress: Callable[[JobResult], None] | None = None,
) -> JobResult:
    """
    Encrypt items again under the active keys of their scopes.

    Other processes can append and read meanwhile. The new key is always the one that is active at that
    moment, and no key is created. If it is interrupted, the same call continues the unfinished job. Two calls
    at the same time share its work.

    Args:
        store: An ``EventSeal``, or any other :class:`SealedStore`.
        keys: Only items under these keys. ``None``: all items whose key is not the active key of their scope.
            Items with another suite or compression than the cipher's are also encrypted again. Uncompressed
            items stay so.
        tables: Only these tables, by name. ``None``: all registered tables.
        to_collection: Moves the one named table to this collection, which its record class already names.
            Every item that is bound to the former collection is encrypted again. If none fails, readers then
            accept only the new name.
        batch: The most items in one transaction, from 1 to 100,000.
        items_per_second: The highest rate of all workers together, at least 0.001. ``None``: no limit, or the
            rate of the unfinished job that this call continues.
        shards: The number of workers to run in the *executor*, 1 or more.
        executor: Runs the workers. ``None``: one worker runs in this thread.
        open_store: Opens the store in a worker. Workers in other processes need it and must be able to import
            it.
        resume: Only continue this job, with the keys and tables that it began with.
        dry_run: Whether only to count, and to estimate the duration from a sample.
        progress: Called from time to time with the progress so far.

    Returns:
        The result's ``done`` counts the items that were encrypted again. Its ``failed`` counts the items that
        do not open, are suspected forgeries, have a scope without an active key, or are neither envelopes nor
        accepted plaintext. Its ``left`` counts the items still to do.

        It is ``complete`` if a look at all key ids found nothing more to do. This look began after every
        process had noticed the last rotation. Until that time, ``settles_at``, processes may append under an
        old key. ``by_table`` counts by outcome, and ``by_key`` by the former key of the items.

    Raises:
        ConfigurationError: An argument is wrong, a table is not registered, or a key is unknown, active or
            destroyed.
        JobError: *resume* is no job, or another release created it in another format.
        KmsError: The KMS refused or failed. The next call continues the job.
        StoreError: The database refused or failed. The next call continues the job.
        StoreReadOnlyError: An earlier release created the key tables. Run `eventseal upgrade` first.
    """
    workers = Workers(
        batch=batch,
        shards=shards,
        items_per_second=items_per_second,
        executor=executor,
        open_store=open_store,
    )
    if resume is not None and (
        keys is not None or tables is not None or to_collection is not None or dry_run
    ):
        raise ConfigurationError("a resumed job has its own keys and tables", remedy="Pass only resume=.")
    if to_collection is not None and (keys is not None or tables is None or len(tables) != 1):
        raise ConfigurationError(
            "only one table can be moved to another collection at a time, with all of its keys",
            remedy="Pass one table (--table), and no keys (--key).",
        )
    if not dry_run:
        refuse_old_key_tables(store)
    refuse_unregistered_tables(store)
    if resume is None:
        found = registered_tables(store.datastore, store.cipher.application, tables)
        if keys is not None:
            _refuse_keys(store, keys)
        sources: Sequence[TableSources]
        if to_collection is not None:
            refuse_move(store, found[0], to_collection)
            sources = moved_sources(store, found[0], None)
        else:
            sources = table_sources(store, found, keys)
        if dry_run:
            return with_unsealed(store, sources, estimate(store, sources, workers))
        options: dict[str, Any] = {
            "keys": None if keys is None else sorted(map(str, keys)),
            "tables": None if tables is None else sorted(tables),
            # The first bytes of envelopes that may stay. With another suite or compression, it is another
            # job.
            "heads": None
            if keys is not None or to_collection is not None
            else [head.hex() for head in store.cipher.heads],
        }
        if to_collection is not None:
            options["collection"] = to_collection
        job = begun_job(
            store,
            options=options,
            items_per_second=items_per_second,
            total=sum(source.pending for source in sources),
        )
    else:
        job = resumed_job(store, resume, items_per_second=items_per_second)
        found = registered_tables(store.datastore, store.cipher.application, job.options["tables"])
    moved_from = keys_of(job)
    collection = collection_of(job)
    moves = collection is not None
    if collection is not None:
        refuse_move(store, found[0], collection)
    passes = Passes(
        store,
        job,
        found,
        workers,
        look=partial(moved_sources, store, found[0], job)
        if moves
        else partial(table_sources, store, found, moved_from),
        settles=(lambda: None) if moves else partial(settles_at, store, moved_from),
        heads=store.cipher.heads if moved_from is None and not moves else (),
        progress=progress,
    )
    result = passes.run()
    result = with_unsealed(store, passes.report.sources, result)
    return finish_move(store, found[0], result) if moves else result


def _refuse_keys(store: SealedStore, keys: Collection[UUID]) -> None:
    """Refuse keys whose items cannot or need not be re-encrypted."""
    records = store.key_store.get(keys)
    for key_id in sorted(keys):
        record = records.get(key_id)
        if record is None or record.application != store.cipher.application:
            raise ConfigurationError(
                f"application {store.cipher.application} has no key {key_id}",
                remedy="To list the keys, run `eventseal keys`.",
            )
        if record.state is KeyState.ACTIVE:
            raise ConfigurationError(
                f"key {key_id} is the active key of scope {record.scope!r}, so its items need no new key",
                remedy=f"First run `eventseal rotate --scope {shlex.quote(record.scope)}`. Then run this "
                "again.",
            )
        if record.state is KeyState.DESTROYED:
            raise ConfigurationError(
                f"key {key_id} was destroyed ({record.destroyed_by}), so its items cannot be re-encrypted",
                remedy="Leave the key out.",
            )


def with_unsealed(store: SealedStore, sources: Sequence[TableSources], result: JobResult) -> JobResult:
    """
    Check the rows that a result counts as plaintext, like ``verify``.

    Such rows may fail, or be set aside.

    Args:
        store: The store whose readers accept plaintext.
        sources: The contents of each table at the last look.
        result: The result of a re-encryption or of its dry run.

    Raises:
        StoreError: The database refused or failed.
    """
    found = Tally()
    aside = AsideRows.of_store(store, [source.table for source in sources])
    for source in sources:
        for selection in source.unsealed():
            found.add(ItemChecks(store, source.table, only=selection, aside=aside).run_all())
    shown = {table: dict(counts) for table, counts in result.by_table.items()}
    for name, counts in found.by_table.items():
        for outcome in ("failed", SET_ASIDE):
            if items := counts[outcome]:
                shown[name][outcome] = shown[name].get(outcome, 0) + items
                shown[name]["plain"] = max(0, shown[name]["plain"] - items)
    return replace(result.with_failures(found.failures, found.total("failed")), by_table=shown)


_SAMPLE = 1000


_WHOLE = 4
"""
The whole work's duration, relative to reading and opening a page.

An item is opened, sealed and opened again. Its row is read, found again, written and indexed twice. This
estimate was cautious on the measured machines.
"""


def estimate(store: SealedStore, sources: Sequence[TableSources], workers: Workers) -> JobResult:
    """
    Count the items to re-encrypt, and open a sample. Change nothing.

    Args:
        store: The store of the items and keys.
        sources: The contents of each table.
        workers: The workers that would share the work.
    """
    run = Run(verb=REENCRYPT)
    items = sum(source.pending for source in sources)
    seconds = sum(_seconds_each(store, source) * source.pending for source in sources if source.pending)
    by_key: Counter[UUID] = Counter()
    for source in sources:
        by_key.update(source.by_key)
    return run.result(
        complete=True,
        left=items,
        by_table=by_table({}, [source.table for source in sources], sources),
        by_key=dict(by_key),
        estimated_seconds=workers.in_time(items, seconds),
    )


def _seconds_each(store: SealedStore, source: TableSources) -> float:
    selection = next(iter(source.selections(())))[1]
    store.keyring.opening_keys(list(source.by_key)[:_SAMPLE])  # one call of the KMS, not one for each item
    started = time.perf_counter()
    page = TablePlace(store.datastore.engine, source.table).pages(selection, None, _SAMPLE)
    if not page:
        return 0.0
    opened_page(store, page, source.table.collection)
    return _WHOLE * (time.perf_counter() - started) / len(page)

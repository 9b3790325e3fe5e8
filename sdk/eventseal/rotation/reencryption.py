"""Re-encrypt: items under old keys are sealed again under their scopes' active keys, while all goes on."""

from __future__ import annotations

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
    Seal items again under the active keys of their scopes, while others append and read.

    The target is always the key that is active at the moment; no key is made. It may be interrupted anywhere:
    the same call goes on with the unfinished job, and two at once share its work.

    Args:
        store: An ``EventSeal``, or any object with its four.
        keys: Only items under these; ``None``: all that are not under the active key of their scope, or not
            in the cipher's suite, or not in its compression (what is not compressed stays so).
        tables: Only these, by name; ``None``: all that are registered.
        to_collection: Moves the one table that is named to this collection, which its record class says by
            now: every item that is bound to its former one is sealed again. If none failed, readers accept
            the new name alone from then on.
        batch: Items in a transaction at most, from 1 to 100,000.
        items_per_second: Over all workers, at least 0.001; ``None``: as fast as they can, or, where an
            unfinished job is gone on with, as before.
        shards: Workers to give the *executor*.
        executor: Runs the workers; ``None``: one in this thread.
        open_store: Opens the store in a worker; must be importable there. Other processes need it.
        resume: Only go on with this job. Its keys and tables are those that it was begun with.
        dry_run: Whether only to count, and to measure on a sample how long it would take.
        progress: Called now and then with what was done so far.

    Returns:
        ``done`` items were moved, ``failed`` ones do not open, are suspected forgeries, are of a scope
        without an active key, or are neither envelopes nor what readers take for plain; ``left`` are to be
        moved still. ``complete`` says that a look at all key ids that began when every process had noticed
        the last rotation found nothing more to move; until that time, ``settles_at``, processes may append
        under an old key. ``by_table`` counts by outcome, ``by_key`` by the key that items had.

    Raises:
        ConfigurationError: An argument is wrong, a table is not registered, or a key is not one to move from.
        JobError: *resume* is no job, or one of a release that keeps jobs in another way.
        KmsError: The KMS refused or failed; the job goes on when this is called again.
        StoreError: The database refused or failed; the job goes on when this is called again.
        StoreReadOnlyError: The key tables are of an earlier release: run `eventseal init` first.
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
        raise ConfigurationError("a resumed job has its own keys and tables", remedy="Give resume= alone.")
    if to_collection is not None and (keys is not None or tables is None or len(tables) != 1):
        raise ConfigurationError(
            "one table is moved to another collection at a time, with all of its keys",
            remedy="Name one table, and no keys.",
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
            # How envelopes begin that may stay: with another suite or compression it is other work.
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
    """Refuse keys from which nothing is moved."""
    records = store.key_store.get(keys)
    for key_id in sorted(keys):
        record = records.get(key_id)
        if record is None or record.application != store.cipher.application:
            raise ConfigurationError(
                f"application {store.cipher.application} has no key {key_id}",
                remedy="List the keys with `eventseal keys`.",
            )
        if record.state is KeyState.ACTIVE:
            raise ConfigurationError(
                f"key {key_id} is the active one of scope {record.scope!r}: its items are where they belong",
                remedy="Rotate the key first; then its items can be moved to the new one.",
            )
        if record.state is KeyState.DESTROYED:
            raise ConfigurationError(
                f"key {key_id} is destroyed ({record.destroyed_by}): nothing can be moved from it",
                remedy="Leave it out.",
            )


def with_unsealed(store: SealedStore, sources: Sequence[TableSources], result: JobResult) -> JobResult:
    """
    Count rows of a result that were counted as plain as ``verify`` does: they may fail, or be set aside.

    Args:
        store: Whose readers they are.
        sources: What each table held at the last look.
        result: Of a re-encryption, or of its dry run.

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
"""How often opening a page, and how often reading it, stands for all of the work: an item is opened, sealed,
opened again; its row is read, found again, written, and indexed twice. Cautious on the machines measured."""


def estimate(store: SealedStore, sources: Sequence[TableSources], workers: Workers) -> JobResult:
    """
    Count what would be moved, and open a sample of it; nothing is changed.

    Args:
        store: Its items and keys.
        sources: What each table holds.
        workers: That would share the work.
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
    store.keyring.opening_keys(list(source.by_key)[:_SAMPLE])  # the KMS is asked once, not for each item
    started = time.perf_counter()
    page = TablePlace(store.datastore.engine, source.table).pages(selection, None, _SAMPLE)
    if not page:
        return 0.0
    opened_page(store, page, source.table.collection)
    return _WHOLE * (time.perf_counter() - started) / len(page)

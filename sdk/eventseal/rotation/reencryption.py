"""Re-encrypt: items under old keys are sealed again under their scopes' active keys, while all goes on."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from eventseal.errors import ConfigurationError
from eventseal.keys.states import KeyState
from eventseal.rotation.jobs.collections import finish_move, moved_sources, refuse_move
from eventseal.rotation.jobs.jobs import begun_job, resumed_job
from eventseal.rotation.jobs.passes import Passes
from eventseal.rotation.jobs.resealers import collection_of, keys_of
from eventseal.rotation.jobs.sources import table_sources
from eventseal.rotation.outcomes import JobReport, estimate, with_unsealed
from eventseal.rotation.sealed_store import registered_tables
from eventseal.rotation.settling import settles_at
from eventseal.rotation.table_checks import refuse_old_key_tables, refuse_unregistered_tables
from eventseal.storage.database.column_types import LEAST_RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from concurrent.futures import Executor
    from uuid import UUID

    from eventseal.rotation.jobs.sources import TableSources
    from eventseal.rotation.results import JobResult
    from eventseal.rotation.sealed_store import SealedStore


MOST_IN_A_BATCH = 100_000
"""A page is cut by its bytes long before."""


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
    check_work(batch, items_per_second, shards, executor, open_store)
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
            would = estimate(store, sources, workers=shards, items_per_second=items_per_second)
            return with_unsealed(store, sources, would)
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
            total=sum(source.moving for source in sources),
        )
    else:
        job = resumed_job(store, resume, items_per_second=items_per_second)
        found = registered_tables(store.datastore, store.cipher.application, job.options["tables"])
    report = JobReport(store, found)
    moved_from = keys_of(job)
    moves = (collection := collection_of(job)) is not None
    if collection is not None:
        refuse_move(store, found[0], collection)
    passes = Passes(
        store,
        job,
        found,
        look=partial(moved_sources, store, found[0], job)
        if moves
        else partial(table_sources, store, found, moved_from),
        settles=(lambda: None) if moves else partial(settles_at, store, moved_from),
        heads=store.cipher.heads if moved_from is None and not moves else (),
        batch=batch,
        shards=shards,
        executor=executor,
        open_store=open_store,
        run=uuid4().hex,
        progress=progress,
        report=report,
    )
    result = passes.run()
    result = with_unsealed(store, report.sources, result)
    return finish_move(store, found[0], result) if moves else result


def check_work(
    batch: int,
    items_per_second: float | None,
    shards: int,
    executor: Executor | None,
    open_store: Callable[[], SealedStore] | None,
) -> None:
    """
    Refuse arguments of a job that cannot be; those of :func:`reencrypt`.

    Raises:
        ConfigurationError: One of them is wrong.
    """
    if not 1 <= batch <= MOST_IN_A_BATCH:
        raise ConfigurationError(f"batch is {batch}; it must be from 1 to {MOST_IN_A_BATCH:,}")
    if shards < 1:
        raise ConfigurationError(f"shards is {shards}; it must be at least 1")
    if items_per_second is not None and not LEAST_RATE <= items_per_second < math.inf:
        raise ConfigurationError(
            f"items_per_second is {items_per_second}; it must be {LEAST_RATE} or more, and a finite number",
            remedy="Leave it out to go as fast as the workers can.",
        )
    if isinstance(executor, ProcessPoolExecutor) and open_store is None:
        raise ConfigurationError(
            "workers in other processes cannot be given this store: no key travels",
            remedy="Give open_store=, a function that they can import, such as EventSeal.from_settings.",
        )


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

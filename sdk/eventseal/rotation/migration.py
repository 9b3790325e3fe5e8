"""
Migrate: items in older formats become envelopes, in the rows where they are, while all goes on.

Three steps: ``begin_migration`` lets readers take both, ``migrate`` moves what is old, ``finish_migration``
proves that nothing old is left and lets readers refuse it from then on. ``abandon_migration`` lets them
refuse it without that proof.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, JobError
from eventseal.keys.records import DEFAULT_SCOPE, checked_scope
from eventseal.rotation.jobs.jobs import MIGRATE, begun_job, list_jobs, resumed_job, verb_of
from eventseal.rotation.jobs.older_formats import scope_rule, stored_rule
from eventseal.rotation.jobs.passes import Passes
from eventseal.rotation.jobs.sources import foreign, old_sources
from eventseal.rotation.jobs.workers import Workers
from eventseal.rotation.old_samples import (
    looked_at,
    named_formats,
    refuse_wrong_id_types,
    sampled,
    with_foreign,
)
from eventseal.rotation.results import JobResult, Run
from eventseal.rotation.sealed_store import configured_formats, own_tables
from eventseal.rotation.table_checks import (
    refuse_absent_tables,
    refuse_old_key_tables,
    refuse_unregistered_tables,
)
from eventseal.storage.database.rows import UNREADABLE
from eventseal.storage.database.transactions import write
from eventseal.storage.items.registry import set_old_formats
from eventseal.storage.jobs import jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from concurrent.futures import Executor
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.items.acceptance import AcceptedFormats
    from eventseal.rotation.jobs.older_formats import ScopeOf
    from eventseal.rotation.jobs.sources import OldSources
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable


def begin_migration(
    store: SealedStore, *, tables: Collection[str] | None = None, dry_run: bool = False
) -> JobResult:
    """
    Let readers take the older formats that the store is configured with, beside envelopes.

    A sample of the items is opened first, so that no wrong key is found out later. Begun again, it takes the
    formats that are configured then.

    Args:
        store: With ``accepted_formats``, as an ``EventSeal`` has them.
        tables: Only these, by name; ``None``: all that are registered.
        dry_run: Whether only to look.

    Returns:
        ``left`` items are to be migrated; ``by_table`` says how many, and how many of a sample are in which
        format; ``failures`` are rows of the sample that do not open.

    Raises:
        ConfigurationError: No format is configured, a key is wrong, or a table is not registered.
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed.
        StoreReadOnlyError: The key tables are of an earlier release: run `eventseal init` first.
    """
    run = Run(verb=MIGRATE)
    if not dry_run:
        refuse_old_key_tables(store)
    accepted = configured_formats(store)
    refuse_unregistered_tables(store)
    found = own_tables(store.datastore, store.cipher.application, tables)
    sources = old_sources(store, found)
    samples = sampled(store, sources, accepted, registered=False)
    if not dry_run:
        names = [old.name for old in accepted.formats]
        _accept(store, dict.fromkeys(found, names))
    return looked_at(store, sources, samples, run)


def migrate(
    store: SealedStore,
    *,
    key_scope: str | ScopeOf | None = None,
    tables: Collection[str] | None = None,
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
    Seal the items that are in older formats, each in its row, as a re-encryption moves items.

    It may be interrupted anywhere: the same call goes on with the unfinished job, and two at once share its
    work. A row that somebody changes meanwhile is looked at again. What does not open stays as it is.

    Args:
        store: With ``accepted_formats``, as an ``EventSeal`` has them.
        key_scope: Whose keys seal the items: a scope, or a function of an item's place and its JSON, at the
            top of a module; it must give what the mapper expects of the item on reading. ``None``: those of
            ``application``, unless the application has sealed items there under another scope.
        tables: Only these, by name; ``None``: all that are registered.
        batch: Items in a transaction at most, from 1 to 100,000.
        items_per_second: Over all workers; ``None``: as fast as they can.
        shards: Workers to give the *executor*.
        executor: Runs the workers; ``None``: one in this thread.
        open_store: Opens the store in a worker; must be importable there. Other processes need it.
        resume: Only continue this job, with its own tables and scope. If it was begun with a function, give
            the same one again: nothing that the job's row names is imported.
        dry_run: Whether only to count, to open a sample, and to guess how long it would take.
        progress: Called now and then with what was done so far.

    Returns:
        ``done`` items are envelopes now; ``failed`` ones do not open, or are another application's
        envelopes; ``left`` are to be migrated still. ``complete`` says that a last look found nothing more,
        but for what failed.

    Raises:
        ConfigurationError: An argument is wrong, a table is not registered, a key is wrong, ids are of
            another type than ``originator_id_type`` says, or *key_scope* has to be given; nothing was
            written.
        JobError: The migration has not begun, or *resume* is no job of one.
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
    if resume is not None and (tables is not None or dry_run):
        raise ConfigurationError("a resumed job has its own tables", remedy="Give resume= alone.")
    if isinstance(key_scope, str):
        checked_scope(key_scope)
    run = Run(verb=MIGRATE)
    if not dry_run:
        refuse_old_key_tables(store)
    accepted = configured_formats(store)
    refuse_unregistered_tables(store)
    if resume is None:
        found = tables_in_migration(own_tables(store.datastore, store.cipher.application, tables), accepted)
        sources = old_sources(store, found)
        refuse_wrong_id_types(store, sources)
        if key_scope is None:
            _refuse_other_scopes(sources)
        options = {
            "verb": MIGRATE,
            "keys": None,
            "tables": None if tables is None else sorted(tables),
            "heads": None,
            "key_scope": stored_rule(DEFAULT_SCOPE if key_scope is None else key_scope),
            "formats": named_formats(accepted),
        }
        samples = sampled(store, sources, accepted, registered=True)
        if dry_run:
            return looked_at(store, sources, samples, run, workers)
        if key_scope is None:
            _refuse_other_rules(store, options)
        total = sum(source.pending for source in sources)
        job = begun_job(store, options=options, items_per_second=items_per_second, total=total)
    else:
        job = resumed_job(
            store,
            resume,
            items_per_second=items_per_second,
            verb=MIGRATE,
            check=partial(scope_rule, key_scope=key_scope),
        )
        found = tables_in_migration(
            own_tables(store.datastore, store.cipher.application, job.options["tables"]), accepted
        )
    passes = Passes(
        store,
        job,
        found,
        workers,
        look=partial(old_sources, store, found),
        scope_of=scope_rule(job, key_scope),
        progress=progress,
    )
    return with_foreign(store, passes.run(), old_sources(store, found))


def finish_migration(
    store: SealedStore, *, tables: Collection[str] | None = None, dry_run: bool = False
) -> JobResult:
    """
    Prove that nothing old is left, and let readers refuse it from then on.

    Each row must name a key that the key store has. Readers that run notice within
    ``cache_refresh_interval``, and ``verify`` counts whatever is no envelope as failed.

    Args:
        store: Its items and keys.
        tables: Only these, by name; ``None``: all that are registered.
        dry_run: Whether only to look.

    Returns:
        ``by_table`` counts the envelopes.

    Raises:
        ConfigurationError: A table is not registered, or one that the settings list is not there.
        JobError: Rows are left that are no envelopes of this application; the message counts and places them.
        StoreError: The database refused or failed.
        StoreReadOnlyError: The key tables are of an earlier release: run `eventseal init` first.
    """
    run = Run(verb=MIGRATE)
    if not dry_run:
        refuse_old_key_tables(store)
    refuse_unregistered_tables(store)
    refuse_absent_tables(store, every=True)
    found = own_tables(store.datastore, store.cipher.application, tables)
    _refuse_left(store, found)  # before readers notice anything
    if not dry_run:
        _accept(store, dict.fromkeys(found, ()))
        try:
            _refuse_left(store, found)  # what was written in between, which nobody reads any more
        except BaseException:
            _accept(store, {table: table.old_formats for table in found if table.old_formats})
            raise
        _end_jobs(store)
    return _refused(run, {table.table: 0 for table in found})


def abandon_migration(
    store: SealedStore, *, tables: Collection[str] | None = None, dry_run: bool = False
) -> JobResult:
    """
    Let readers refuse the older formats again, although items are left in them.

    What was sealed stays sealed. Items that are left stay in their rows, and no reader takes them until
    ``begin_migration``. It needs no key of an older format. Readers that run notice within
    ``cache_refresh_interval``, and jobs whose tables all refuse older formats end.

    Args:
        store: Its items and keys.
        tables: Only these, by name; ``None``: all that are registered.
        dry_run: Whether only to look.

    Returns:
        ``left`` items are in older formats; ``by_table`` says how many in which table.

    Raises:
        ConfigurationError: A table is not registered.
        JobError: No migration has begun.
        StoreError: The database refused or failed.
        StoreReadOnlyError: The key tables are of an earlier release: run `eventseal init` first.
    """
    run = Run(verb=MIGRATE)
    if not dry_run:
        refuse_old_key_tables(store)
    found = _in_migration(own_tables(store.datastore, store.cipher.application, tables))
    if not dry_run:
        _accept(store, dict.fromkeys(found, ()))
        _end_jobs(store)
    left = {source.table.table: source.pending for source in old_sources(store, found)}
    return _refused(run, left)


def _refused(run: Run, left: Mapping[str, int]) -> JobResult:
    """Give how many items of each table readers refuse from now on."""
    by_table = {table: {"left": count} for table, count in left.items()}
    return run.result(complete=True, left=sum(left.values()), by_table=by_table)


def _accept(store: SealedStore, names: Mapping[SealedTable, Collection[str]]) -> None:
    def work(connection: Connection) -> None:
        for table, accepted in names.items():
            set_old_formats(connection, table, accepted)

    write(store.datastore.key_engine, work, doing="saying which formats are accepted")


def _end_jobs(store: SealedStore) -> None:
    """End migrations that stopped and whose tables others have migrated since: nothing resumes them."""
    begun = {
        table.table
        for table in own_tables(store.datastore, store.cipher.application, None)
        if table.old_formats
    }

    def work(connection: Connection) -> None:
        jobs.one_at_a_time(connection)
        for job in jobs.load_jobs(connection, store.cipher.application):
            tables = job.options["tables"]
            if (
                not job.unreadable
                and verb_of(job.options) == MIGRATE
                and job.state != jobs.FINISHED
                and begun.isdisjoint(begun if tables is None else tables)
            ):
                jobs.finish_job(connection, job.job_id)

    write(store.datastore.engine, work, doing="ending jobs")


def tables_in_migration(tables: list[SealedTable], accepted: AcceptedFormats) -> list[SealedTable]:
    """
    Leave out tables that accept no older format.

    Args:
        tables: From the registry.
        accepted: The formats that this process is configured with.

    Raises:
        ConfigurationError: A table accepts a format that is not configured.
        JobError: No table accepts an older format: no migration has begun.
    """
    configured = {old.name for old in accepted.formats}
    found = _in_migration(tables)
    for table in found:
        missing = sorted({*table.old_formats} - configured)
        if missing:
            raise ConfigurationError(
                f"{table.table} accepts {', '.join(missing)}, which old_formats does not name",
                remedy="Configure this process as those that read, or begin the migration anew.",
            )
    return found


def _in_migration(tables: list[SealedTable]) -> list[SealedTable]:
    found = [table for table in tables if table.old_formats]
    if not found:
        raise JobError(
            "no migration has begun: the registry says of no table that it may hold older formats",
            remedy="Begin it with `eventseal migrate begin`; then start the processes that read both.",
        )
    return found


def _refuse_other_scopes(sources: Sequence[OldSources]) -> None:
    """Guess no scope where the application has one of its own: its mapper would read none of the items."""
    for source in sources:
        if source.pending and source.has_scopes:
            raise ConfigurationError(
                f"in {source.table.table} the application seals under other scopes than {DEFAULT_SCOPE}, and "
                "it was not said whose keys are to seal the older items. Nothing was written",
                remedy="If its mapper has a key_scope, or its classes have one, give the same rule: "
                "--key-scope-function MODULE:FUNCTION. If they belong under one scope: --key-scope SCOPE.",
            )


def _refuse_other_rules(store: SealedStore, options: Mapping[str, object]) -> None:
    """Begin no second migration of the same tables if the first has a function, and none is given."""
    for job in list_jobs(store):
        is_same = {**job.options, "key_scope": None} == {**options, "key_scope": None}
        if is_same and job.state not in {jobs.FINISHED, UNREADABLE}:
            scope_rule(job, None)  # refuses a function


def _refuse_left(store: SealedStore, tables: Sequence[SealedTable]) -> None:
    sources = old_sources(store, tables)
    left = {source.table.table: source.pending for source in sources if source.pending}
    if left:
        counts = ", ".join([f"{count:,} in {table}" for table, count in left.items()])
        raise JobError(
            f"items are left that are no envelopes under a key of {store.cipher.application}: {counts}",
            remedy="Migrate them with `eventseal migrate`, which names those that it cannot; older formats "
            "stay accepted until then.",
        )
    for source in sources:
        for error in foreign(source, store.cipher.application):
            raise JobError(str(error), remedy=error.remedy)

"""
Migrate: encrypt items in older formats in their rows, while applications run.

It takes three steps:

- ``begin_migration`` lets readers accept both formats.
- ``migrate`` encrypts the older items.
- ``finish_migration`` proves that none is left, and lets readers refuse older formats from then on.

To let readers refuse them without that proof, call ``abandon_migration``.
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
from eventseal.wording import counted

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
    Let readers accept the configured older formats as well as envelopes.

    It first opens a sample of the items, so that a wrong key is found early. If you call it again, it
    accepts the formats that are configured then.

    Args:
        store: A store with ``accepted_formats``, like an ``EventSeal``.
        tables: Only these tables, by name. ``None``: all registered tables.
        dry_run: Whether only to check.

    Returns:
        The result's ``left`` counts the items to migrate. Its ``by_table`` has their number by table, and how
        many of a sample are in which format. Its ``failures`` are rows of the sample that do not open.

    Raises:
        ConfigurationError: No format is configured, a key is wrong, or a table is not registered.
        KmsError: The KMS refused or failed.
        StoreError: The database refused or failed.
        StoreReadOnlyError: An earlier release created the key tables. Run `eventseal upgrade` first.
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
    Encrypt the items that are in older formats, each in its row.

    If it is interrupted, the same call continues the unfinished job. Two calls at the same time share its
    work. A row that changes meanwhile is checked again. An item that does not open stays as it is.

    Args:
        store: A store with ``accepted_formats``, like an ``EventSeal``.
        key_scope: The scope whose keys seal the items, or a function of an item's place and its JSON. The
            function must be at the top of a module, and return the scope that the mapper expects when it
            reads the item. If it is ``None``, the scope is ``application``. It is required if the application
            has sealed items there under another scope.
        tables: Only these tables, by name. ``None``: all registered tables.
        batch: The most items in one transaction, from 1 to 100,000.
        items_per_second: The highest rate of all workers together, at least 0.001. ``None``: no limit, or the
            rate of the unfinished job that this call continues.
        shards: The number of workers to run in the *executor*, 1 or more.
        executor: Runs the workers. ``None``: one worker runs in this thread.
        open_store: Opens the store in a worker. Workers in other processes need it and must be able to import
            it.
        resume: Only continue this job, with its own tables and scope. If it began with a function, pass the
            same one again: nothing that the job's row names is imported.
        dry_run: Whether only to count, to open a sample, and to estimate the duration.
        progress: Called from time to time with the progress so far.

    Returns:
        The result's ``done`` counts the items that are envelopes now. Its ``failed`` counts the items that do
        not open, or are envelopes of another application. Its ``left`` counts the items still to migrate. It
        is ``complete`` if a last look found nothing more, apart from failed items.

    Raises:
        ConfigurationError: An argument or a key is wrong, a table is not registered, or ids have another type
            than ``originator_id_type`` says. Or *key_scope* is required. Nothing was written.
        JobError: The migration has not begun, or *resume* is not a job of a migration.
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
    if resume is not None and (tables is not None or dry_run):
        raise ConfigurationError("a resumed job has its own tables", remedy="Pass only resume=.")
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
    Prove that no older item is left. Readers then refuse older formats.

    Each row must name a key that the key store has. Running readers notice within
    ``cache_refresh_interval``. From then on, ``verify`` counts every row that is no envelope as failed.

    Args:
        store: The store of the items and keys.
        tables: Only these tables, by name. ``None``: all registered tables.
        dry_run: Whether only to check.

    Returns:
        The result's ``by_table`` names the tables, each with 0 items left.

    Raises:
        ConfigurationError: A table is not registered, or a table that the settings list does not exist.
        JobError: Some rows are no envelopes of this application. The message has their number and tables.
        StoreError: The database refused or failed.
        StoreReadOnlyError: An earlier release created the key tables. Run `eventseal upgrade` first.
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
            _refuse_left(store, found)  # rows that were written in between, which readers now refuse
        except BaseException:
            _accept(store, {table: table.old_formats for table in found if table.old_formats})
            raise
        _end_jobs(store)
    return _refused(run, {table.table: 0 for table in found})


def abandon_migration(
    store: SealedStore, *, tables: Collection[str] | None = None, dry_run: bool = False
) -> JobResult:
    """
    Let readers refuse the older formats again, although older items are left.

    Encrypted items stay encrypted. Remaining older items stay in their rows, and no reader accepts them until
    ``begin_migration``. It needs no key of an older format. Running readers notice within
    ``cache_refresh_interval``. Jobs whose tables all refuse older formats end.

    Args:
        store: The store of the items and keys.
        tables: Only these tables, by name. ``None``: all registered tables.
        dry_run: Whether only to check.

    Returns:
        The result's ``left`` counts the items in older formats, and its ``by_table`` counts them by table.

    Raises:
        ConfigurationError: A table is not registered.
        JobError: No migration has begun.
        StoreError: The database refused or failed.
        StoreReadOnlyError: An earlier release created the key tables. Run `eventseal upgrade` first.
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
    """Return the number of items that readers now refuse, by table."""
    by_table = {table: {"left": count} for table, count in left.items()}
    return run.result(complete=True, left=sum(left.values()), by_table=by_table)


def _accept(store: SealedStore, names: Mapping[SealedTable, Collection[str]]) -> None:
    def work(connection: Connection) -> None:
        for table, accepted in names.items():
            set_old_formats(connection, table, accepted)

    write(store.datastore.key_engine, work, doing="saying which formats are accepted")


def _end_jobs(store: SealedStore) -> None:
    """End stopped migrations of tables that others have migrated: nothing resumes them."""
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
    Drop the tables that accept no older format.

    Args:
        tables: Registered tables.
        accepted: The formats that this process is configured with.

    Raises:
        ConfigurationError: A table accepts a format that is not configured.
        JobError: No table accepts an older format, so no migration has begun.
    """
    configured = {old.name for old in accepted.formats}
    found = _in_migration(tables)
    for table in found:
        missing = sorted({*table.old_formats} - configured)
        if missing:
            raise ConfigurationError(
                f"{table.table} accepts {', '.join(missing)}, which old_formats does not name",
                remedy="Configure this process like the readers, or begin the migration again.",
            )
    return found


def _in_migration(tables: list[SealedTable]) -> list[SealedTable]:
    found = [table for table in tables if table.old_formats]
    if not found:
        raise JobError(
            "no migration has begun: in the registry, no table accepts older formats",
            remedy="To begin one, run `eventseal migrate begin`. Then start the processes that read both "
            "formats.",
        )
    return found


def _refuse_other_scopes(sources: Sequence[OldSources]) -> None:
    """
    Require a scope if the application has scopes other than the default.

    If the scope were guessed, the application's mapper could not read the items.
    """
    for source in sources:
        if source.pending and source.has_scopes:
            raise ConfigurationError(
                f"in {source.table.table} the application encrypts under scopes other than {DEFAULT_SCOPE}, "
                "so you must choose the scope of the older items. Nothing was written",
                remedy="If its mapper or its classes have a key_scope, pass the same rule: "
                "--key-scope-function MODULE:FUNCTION. If all items belong to one scope: --key-scope SCOPE.",
            )


def _refuse_other_rules(store: SealedStore, options: Mapping[str, object]) -> None:
    """Refuse a second migration without a function if the first has one."""
    for job in list_jobs(store):
        is_same = {**job.options, "key_scope": None} == {**options, "key_scope": None}
        if is_same and job.state not in {jobs.FINISHED, UNREADABLE}:
            scope_rule(job, None)  # refuses a function


def _refuse_left(store: SealedStore, tables: Sequence[SealedTable]) -> None:
    sources = old_sources(store, tables)
    left = {source.table.table: source.pending for source in sources if source.pending}
    if left:
        counts = ", ".join([f"{counted(count, 'item')} in {table}" for table, count in left.items()])
        raise JobError(
            f"some items are not envelopes under a key of application {store.cipher.application}: {counts}. "
            "Nothing was changed",
            remedy="Run `eventseal migrate`, which lists the items that it cannot migrate.",
        )
    for source in sources:
        for error in foreign(source, store.cipher.application):
            raise JobError(str(error), remedy=error.remedy)

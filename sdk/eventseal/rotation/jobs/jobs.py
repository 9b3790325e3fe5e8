"""Re-encryption and migration jobs: begin, resume, list, pause and report them."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.errors import IntegrityError, JobError
from eventseal.keys.records import new_key_id
from eventseal.keys.states import KeyState
from eventseal.rotation.fences import miscounts
from eventseal.rotation.jobs.sources import KeyStatus
from eventseal.rotation.results import MAX_FAILURES, MAX_KEYS_LISTED, Failure, JobResult
from eventseal.rotation.set_aside_rows import SET_ASIDE
from eventseal.storage.database.rows import UNREADABLE
from eventseal.storage.database.transactions import write
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs import shards as job_shards
from eventseal.storage.jobs.jobs import FINISHED, PAUSED, RUNNING, SETTLING, Job
from eventseal.storage.jobs.tables import reencryption_failures

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from eventseal.rotation.jobs.sources import TableSources
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.tables import SealedTable
    from eventseal.storage.jobs.shards import Totals


REENCRYPT, MIGRATE = "reencrypt", "migrate"

KEPT_JOBS = 10
"""
The most finished jobs of an application to keep.

Each may have a row for every key and range.
"""


def verb_of(options: Mapping[str, Any]) -> str:
    """Return the verb of a job with these options."""
    verb: str = options.get("verb", REENCRYPT)
    return verb


def verb_command(verb: str, job_id: UUID | None, function: str | None = None) -> str:
    """
    Return the command that resumes a job.

    Args:
        verb: The job's verb.
        job_id: The job. ``None``: the command finds the unfinished job itself.
        function: The function for key scopes, which a migration needs again when it resumes.
    """
    resume = "" if job_id is None else f" --resume {job_id}"
    return f"eventseal {verb}{resume}" + ("" if function is None else f" --key-scope-function {function}")


def resume_command(job: Job) -> str:
    """
    Write the command that resumes a job, as its row describes it.

    The row's function is only shown: the command line decides which function runs.
    """
    function = job.options.get("key_scope", {}).get("function")
    if function is not None and not _FUNCTION.fullmatch(function):
        function = "MODULE:FUNCTION"
    return verb_command(verb_of(job.options), job.job_id, function)


_FUNCTION = re.compile(r"[\w.]+:[\w.]+")


def list_jobs(store: SealedStore) -> list[Job]:
    """
    Return the application's jobs, the oldest first.

    If a job's row was edited and cannot be read, its state is ``unreadable``.

    Raises:
        MissingTableError: The tables of jobs do not exist.
        StoreError: The database refused or failed.
    """
    return jobs.load_jobs(store.datastore.engine, store.cipher.application)


def pause_job(store: SealedStore, job_id: UUID) -> Job:
    """
    Pause a job, wherever it runs. You can resume it at any time.

    Its workers stop after their current batches.

    Args:
        store: The store that the job works on.
        job_id: An unfinished job. A paused job stays paused.

    Raises:
        IntegrityError: The job's row cannot be read because it was edited.
        JobError: There is no such job, or it is finished.
        StoreError: The database refused or failed.
    """

    def pause(connection: Connection) -> Job:
        job = _known(connection, store, job_id, locked=True)
        if job.state == FINISHED:
            raise JobError(
                f"job {job_id} is finished, so it cannot be paused", remedy="You need not do anything."
            )
        jobs.update_job(connection, job_id, state=PAUSED)
        return _known(connection, store, job_id)

    return write(store.datastore.engine, pause, doing=f"pausing job {job_id}")


def resumed_job(
    store: SealedStore,
    job_id: UUID,
    *,
    items_per_second: float | None,
    verb: str = REENCRYPT,
    check: Callable[[Job], object] = lambda _: None,
) -> Job:
    """
    Set a job running again, unless it is finished.

    Args:
        store: The store that the job works on.
        job_id: The job to resume.
        items_per_second: The job's new rate. ``None``: the rate stays.
        verb: The verb that resumes the job, which must be the job's verb.
        check: Called with the job before it runs again. It can refuse the job by raising an error.

    Raises:
        IntegrityError: The job's row cannot be read because it was edited.
        JobError: There is no such job, it belongs to another verb, or a release with other job tables
            created it.
        StoreError: The database refused or failed.
    """

    def resume(connection: Connection) -> Job:
        job = _known(connection, store, job_id, locked=True)
        if job.layout != jobs.JOB_LAYOUT:
            raise JobError(
                f"release {job.release} created job {job.job_id} in another format",
                remedy="Run the command again without the job's id. It starts a new job, "
                "and does not repeat the work that is done.",
            )
        if verb_of(job.options) != verb:
            raise JobError(
                f"job {job_id} is not a job of {verb}",
                remedy=f"Resume it with its own command: {resume_command(job)}",
            )
        check(job)  # checks the locked row, which is the row that is resumed (docs/decisions/0027)
        if job.state == FINISHED:
            return job
        return _running(connection, job, items_per_second)

    return write(store.datastore.engine, resume, doing=f"resuming job {job_id}")


def begun_job(
    store: SealedStore,
    *,
    options: Mapping[str, Any],
    items_per_second: float | None,
    total: int,
) -> Job:
    """
    Resume the unfinished job with the same arguments, or start one.

    It also replaces every unfinished re-encryption whose items are all among its own, and marks it as
    finished. Before it creates a job, it deletes the oldest finished jobs beyond ``KEPT_JOBS``.

    Args:
        store: The store that the job works on.
        options: ``keys``, ``tables`` and ``heads``. A migration also has ``verb`` and its other arguments.
        items_per_second: The job's new rate. ``None``: a resumed job keeps its rate, and a new job has none.
        total: The number of items to re-encrypt or migrate.

    Raises:
        StoreError: The database refused or failed.
    """
    new_id = new_key_id()
    gone = _destroyed_keys(store)

    def begin(connection: Connection) -> Job:
        jobs.one_at_a_time(connection)
        mine = None
        for job in jobs.load_jobs(connection, store.cipher.application):
            if (
                job.state in {FINISHED, UNREADABLE}
                or job.layout != jobs.JOB_LAYOUT
                or not (job.options == options or _takes_over(options, job.options, gone))
            ):
                continue
            # Meanwhile, another run may have begun a pass or finished the job.
            locked = jobs.lock_job(connection, job.job_id)
            if locked.state == FINISHED:
                continue
            # A settling job is done with its items, so items that exist now belong to another job.
            if locked.options == options and not (locked.state == SETTLING and total):
                mine = locked
            else:
                # After several killed runs, one job must remain to resume, not one for each run
                # (docs/decisions/0012).
                jobs.finish_job(connection, job.job_id)
        if mine is not None:
            return _running(connection, mine, items_per_second)
        jobs.drop_finished_jobs(connection, store.cipher.application, but=KEPT_JOBS)
        values = {
            "job_id": new_id,
            "application": store.cipher.application,
            "layout": jobs.JOB_LAYOUT,
            "release": version("eventseal"),
            "state": RUNNING,
            "options": dict(options),
            "items_per_second": items_per_second,
            "pass_number": 0,
            "total": total,
        }
        jobs.insert_job(connection, values)
        return _known(connection, store, new_id)

    return write(store.datastore.engine, begin, doing="beginning a job")


def _known(connection: Connection, store: SealedStore, job_id: UUID, *, locked: bool = False) -> Job:
    job = jobs.load_job(connection, store.cipher.application, job_id, locked=locked)
    if job is not None:
        return job
    raise JobError(
        f"there is no job {job_id} of application {store.cipher.application}",
        remedy="To list the jobs, run `eventseal status`. Or run the command again without a job id.",
    )


def _takes_over(options: Mapping[str, Any], others: Mapping[str, Any], gone: Collection[str]) -> bool:
    """
    Return whether a re-encryption covers all items that another one has left.

    Keys in *gone* are destroyed, so no item needs work because of them.
    """
    keys, tables = options["keys"], options["tables"]
    return (
        verb_of(options) == verb_of(others) == REENCRYPT
        and (keys is None or (others["keys"] is not None and {*others["keys"]} <= {*keys, *gone}))
        and others.get("collection") in {None, options.get("collection")}
        and (tables is None or (others["tables"] is not None and {*others["tables"]} <= {*tables}))
    )


def _destroyed_keys(store: SealedStore) -> set[str]:
    """Return destroyed keys of unfinished jobs. They never have items again."""
    named = {
        UUID(key_id)
        for job in list_jobs(store)
        if job.state != FINISHED
        for key_id in job.options["keys"] or ()
    }
    records = store.key_store.get(named)
    return {str(key_id) for key_id, record in records.items() if record.state is KeyState.DESTROYED}


def _running(connection: Connection, job: Job, items_per_second: float | None) -> Job:
    if items_per_second is None:  # a run that does not set a rate must not lift another run's limit
        items_per_second = job.items_per_second
    changed: dict[str, Any] = {"state": RUNNING, "items_per_second": items_per_second}
    if items_per_second != job.items_per_second:
        changed["paced_until"] = None  # this time was reserved at another rate
    jobs.update_job(connection, job.job_id, **changed)
    return jobs.lock_job(connection, job.job_id)


def keys_of(job: Job) -> list[UUID] | None:
    """Return the keys to re-encrypt. ``None``: all but each scope's active key."""
    keys = job.options["keys"]
    return None if keys is None else [UUID(key_id) for key_id in keys]


def collection_of(job: Job) -> str | None:
    """Return the collection that a job moves its table to, or ``None``."""
    collection: str | None = job.options.get("collection")
    return collection


OUTCOMES = ("done", "failed", "suspected", "skipped", "plain", "foreign", "erased", "left")
"""
The outcomes that ``by_table`` counts.

- ``done``: re-encrypted or migrated.
- ``failed``: not done, for any reason. This includes ``suspected`` and ``skipped``.
- ``suspected``: suspected forgeries.
- ``skipped``: items whose scope has no active key.
- ``plain``: plaintext items, where readers accept them.
- ``foreign``: items of another application.
- ``erased``: items whose key was shredded.
- ``left``: items still to do.

Rows that are set aside are counted only if there are any.
"""


@dataclass(eq=False)
class JobReport:
    """
    Creates the results of one call of ``reencrypt`` or ``migrate``.

    Attributes:
        store: The store that the job works on.
        tables: The tables of the job.
        verb: The job's verb.
    """

    store: SealedStore
    tables: Sequence[SealedTable]
    verb: str

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self.sources: Sequence[TableSources] = ()
        """The contents of the tables at the last check. Empty before the first."""
        self._done_then = 0

    def counted(self, sources: Sequence[TableSources], totals: Totals) -> int:
        """
        Note the current contents of the tables.

        Returns:
            The number of items that a pass could re-encrypt or migrate.
        """
        self.sources = sources
        self._done_then = _sum(totals, "done")
        return sum(left_of(totals.by_table, source) for source in sources)

    def result(self, job: Job, *, complete: bool = False, settled: datetime | None = None) -> JobResult:
        """
        Return the progress of a job.

        Args:
            job: The job as it was read.
            complete: Whether a last check found nothing more to do, after all processes had noticed the new
                keys.
            settled: When all processes will have noticed the new keys. ``None``: they have.
        """
        totals = job_shards.load_totals(self.store.datastore.engine, job)
        failures = self._failures(job)
        done, failed = _sum(totals, "done"), _sum(totals, "failed")
        aside = _sum(totals, SET_ASIDE)
        if self.sources:
            left = sum(left_of(totals.by_table, source) for source in self.sources) - (done - self._done_then)
        else:  # this call has only continued a pass that an earlier call began
            left = job.total - done - failed - aside
        miscounted: list[Failure] = []
        if not totals.open_shards and self.verb == REENCRYPT:
            miscounted = self._miscounted()
        return JobResult(
            verb=self.verb,
            complete=complete,
            done=done,
            left=max(0, left),
            failed=failed + len(miscounted),
            seconds=time.monotonic() - self._started,
            job_id=job.job_id,
            by_table=by_table(totals.by_table, self.tables, self.sources),
            by_key=dict(islice(totals.by_key.items(), MAX_KEYS_LISTED)),
            failures=tuple([*miscounted, *failures][:MAX_FAILURES]),
            settles_at=settled,
        )

    def _failures(self, job: Job) -> list[Failure]:
        listed = job_shards.load_failures(self.store.datastore.engine, job, limit=MAX_FAILURES)
        return [_listed_failure(said, job) for said in listed]

    def _miscounted(self) -> list[Failure]:
        """Check the item counts of keys that are still compromised."""
        found = miscounts(self.store, self.tables)
        records = self.store.key_store.get({miscount.key_id for miscount in found})
        return [
            Failure.of_key(miscount.table, miscount.key_id, miscount.error())
            for miscount in found
            if miscount.key_id in records and records[miscount.key_id].state is KeyState.COMPROMISED
        ]


def by_table(
    counted: Mapping[str, Counter[str]], tables: Sequence[SealedTable], sources: Sequence[TableSources]
) -> dict[str, dict[str, int]]:
    """
    Combine the job's counts with the contents of the tables.

    Args:
        counted: The job's counts, by table and outcome.
        tables: The tables of the job.
        sources: The contents of each table, if they were counted.
    """
    shown = {table.table: Counter(counted.get(table.table, {})) for table in tables}
    for source in sources:
        counts = shown[source.table.table]
        counts["left"] = left_of(counted, source)
        counts["plain"] = source.items.get(None, 0) + source.items.get(KeyStatus.CHANCE, 0)
        counts["foreign"] = source.items.get(KeyStatus.FOREIGN, 0)
        counts["erased"] = source.items.get(KeyStatus.ERASED, 0)
    return {
        table: {outcome: counts[outcome] for outcome in (*OUTCOMES, *[SET_ASIDE] * bool(counts[SET_ASIDE]))}
        for table, counts in shown.items()
    }


def left_of(counted: Mapping[str, Counter[str]], source: TableSources) -> int:
    """Return how many items are left, without those no pass can change."""
    return max(0, source.pending - counted.get(source.table.table, Counter())["stuck"])


def _listed_failure(said: Any, job: Job) -> Failure:
    """Read a failure that a job stores. If it was edited, return a failure saying so."""
    try:
        return Failure.from_record(said)
    except (AttributeError, TypeError, ValueError, LookupError):
        error = IntegrityError(
            f"an entry of eventseal_reencryption_failures for job {job.job_id} was edited and cannot be read",
            remedy=f"To list the failures again, run `eventseal {verb_of(job.options)}` again.",
        )
        return Failure.of(reencryption_failures.name, {"job_id": str(job.job_id)}, None, error)


def _sum(totals: Totals, outcome: str) -> int:
    return sum(counts[outcome] for counts in totals.by_table.values())

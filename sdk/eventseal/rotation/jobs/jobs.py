"""Jobs of re-encryption and of migration: begun, found again, listed, paused, and reported."""

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
"""Finished jobs of an application that are kept; each may have a row for every key and range."""


def verb_of(options: Mapping[str, Any]) -> str:
    """Name the verb that a job with these options is of."""
    verb: str = options.get("verb", REENCRYPT)
    return verb


def verb_command(verb: str, job_id: UUID | None, function: str | None = None) -> str:
    """
    Write the command that resumes a job.

    Args:
        verb: The job's verb.
        job_id: The job; ``None``: the command looks for an unfinished job itself.
        function: The function for key scopes, which a migration must be given again.
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
    Give the application's jobs, the oldest first; one whose row was edited so has the state ``unreadable``.

    Raises:
        MissingTableError: The tables of jobs are not there.
        StoreError: The database refused or failed.
    """
    return jobs.load_jobs(store.datastore.engine, store.cipher.application)


def pause_job(store: SealedStore, job_id: UUID) -> Job:
    """
    Stop a job, wherever it runs, behind the batches that are going on; resume it whenever.

    Args:
        store: What the job works on.
        job_id: Of an unfinished job; a paused one stays so.

    Raises:
        IntegrityError: The job's row was edited so that it cannot be read.
        JobError: There is no such job, or it is finished.
        StoreError: The database refused or failed.
    """

    def pause(connection: Connection) -> Job:
        job = _known(connection, store, job_id, locked=True)
        if job.state == FINISHED:
            raise JobError(f"job {job_id} is finished; there is nothing to pause")
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
    Set a job running again; a finished one stays finished.

    Args:
        store: What the job works on.
        job_id: Under which it was begun.
        verb: Of the job.
        items_per_second: From now on; ``None``: as before.
        check: Is given the job before it is set running, and may refuse it.

    Raises:
        IntegrityError: The job's row was edited so that it cannot be read.
        JobError: There is no such job, it is another verb's, or a release with other tables of jobs made it.
        StoreError: The database refused or failed.
    """

    def resume(connection: Connection) -> Job:
        job = _known(connection, store, job_id, locked=True)
        if job.layout != jobs.JOB_LAYOUT:
            raise JobError(
                f"job {job.job_id} was made by release {job.release}, which keeps jobs in another way",
                remedy="Run the command anew without the job's id: it begins a new job, "
                "and what was done already is not done again.",
            )
        if verb_of(job.options) != verb:
            raise JobError(
                f"job {job_id} is no job of {verb}",
                remedy=f"Go on with it: {resume_command(job)}",
            )
        check(job)  # of the locked row: it is the one that is resumed (docs/decisions/0027)
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
    Go on with the unfinished job that was begun with the same arguments, or begin one.

    It takes over every unfinished re-encryption whose items are all among its own: those jobs are finished.
    Where one is begun, the oldest of those that are finished are forgotten.

    Args:
        store: What the job works on.
        options: ``keys``, ``tables`` and ``heads``, and for a migration ``verb`` and what else it needs.
        items_per_second: From now on; ``None``: as before, or as fast as it can where it is begun.
        total: Items that are to be moved.

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
            # Another run may have begun a pass since, or ended the job.
            locked = jobs.lock_job(connection, job.job_id)
            if locked.state == FINISHED:
                continue
            # Of one that settles all was moved: what there is now is another job's.
            if locked.options == options and not (locked.state == SETTLING and total):
                mine = locked
            else:
                # Taken over: after runs that were killed there is one job to resume, and not one a run
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
        remedy="List the jobs with `eventseal status`, or run the command anew without a job's id.",
    )


def _takes_over(options: Mapping[str, Any], others: Mapping[str, Any], gone: Collection[str]) -> bool:
    """Whether a re-encryption moves all that another one has left; what is under keys that are gone, none."""
    keys, tables = options["keys"], options["tables"]
    return (
        verb_of(options) == verb_of(others) == REENCRYPT
        and (keys is None or (others["keys"] is not None and {*others["keys"]} <= {*keys, *gone}))
        and others.get("collection") in {None, options.get("collection")}
        and (tables is None or (others["tables"] is not None and {*others["tables"]} <= {*tables}))
    )


def _destroyed_keys(store: SealedStore) -> set[str]:
    """Name the keys of unfinished jobs that are destroyed by now: those never have items to move again."""
    named = {
        UUID(key_id)
        for job in list_jobs(store)
        if job.state != FINISHED
        for key_id in job.options["keys"] or ()
    }
    records = store.key_store.get(named)
    return {str(key_id) for key_id, record in records.items() if record.state is KeyState.DESTROYED}


def _running(connection: Connection, job: Job, items_per_second: float | None) -> Job:
    if items_per_second is None:  # who joins unasked must not undo what spares the applications
        items_per_second = job.items_per_second
    changed: dict[str, Any] = {"state": RUNNING, "items_per_second": items_per_second}
    if items_per_second != job.items_per_second:
        changed["paced_until"] = None  # time that was taken at another pace
    jobs.update_job(connection, job.job_id, **changed)
    return jobs.lock_job(connection, job.job_id)


def keys_of(job: Job) -> list[UUID] | None:
    """Give the keys that a job was asked for; ``None``: all that are not the active one of their scope."""
    keys = job.options["keys"]
    return None if keys is None else [UUID(key_id) for key_id in keys]


def collection_of(job: Job) -> str | None:
    """Give the collection that a job moves its table to; ``None``: items stay in theirs."""
    collection: str | None = job.options.get("collection")
    return collection


OUTCOMES = ("done", "failed", "suspected", "skipped", "plain", "foreign", "erased", "left")
"""
What ``by_table`` counts: moved; not moved, for whatever reason, among them suspected forgeries and those
whose scope has no active key; in plain, where readers take that; another application's; shredded; still to
be moved. Rows that are set aside are counted only where there are some.
"""


@dataclass(eq=False)
class JobReport:
    """
    Makes the results of one call of ``reencrypt``, or of ``migrate``.

    Attributes:
        store: What the job works on.
        tables: Those of the job.
        verb: Of the job.
    """

    store: SealedStore
    tables: Sequence[SealedTable]
    verb: str

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self.sources: Sequence[TableSources] = ()
        """What the tables held at the last look; empty before one."""
        self._done_then = 0

    def counted(self, sources: Sequence[TableSources], totals: Totals) -> int:
        """
        Note what the tables hold now.

        Returns:
            How many items a pass could move.
        """
        self.sources = sources
        self._done_then = _sum(totals, "done")
        return sum(left_of(totals.by_table, source) for source in sources)

    def result(self, job: Job, *, complete: bool = False, settled: datetime | None = None) -> JobResult:
        """
        Say how far a job is.

        Args:
            job: As it was read.
            complete: Whether a last look found nothing more to move, when all had noticed the new keys.
            settled: When they will have.
        """
        totals = job_shards.load_totals(self.store.datastore.engine, job)
        failures = self._failures(job)
        done, failed = _sum(totals, "done"), _sum(totals, "failed")
        aside = _sum(totals, SET_ASIDE)
        if self.sources:
            left = sum(left_of(totals.by_table, source) for source in self.sources) - (done - self._done_then)
        else:  # it has only gone on with a pass that was begun before
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
        """Compare the marks of keys that are compromised still with what is left of their items."""
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
    Put together what was counted while moving, and what is in the tables.

    Args:
        counted: By table and outcome, as the job has it.
        tables: Those of the job.
        sources: What each of them holds, if that was counted.
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
    """Say how many items of a table are to be moved still, without those that no pass can move."""
    return max(0, source.pending - counted.get(source.table.table, Counter())["stuck"])


def _listed_failure(said: Any, job: Job) -> Failure:
    """Give a failure as a job keeps it; an edited one says so, and costs no other."""
    try:
        return Failure.from_record(said)
    except (AttributeError, TypeError, ValueError, LookupError):
        error = IntegrityError(
            f"an entry of reencryption_failures for job {job.job_id} was edited and cannot be read",
            remedy=f"Run `eventseal {verb_of(job.options)}` again: it finds what still fails.",
        )
        return Failure.of(reencryption_failures.name, {"job_id": str(job.job_id)}, None, error)


def _sum(totals: Totals, outcome: str) -> int:
    return sum(counts[outcome] for counts in totals.by_table.values())

"""Jobs of re-encryption and of migration: begun, found again, listed, paused."""

from __future__ import annotations

import re
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.errors import JobError
from eventseal.keys.records import new_key_id
from eventseal.keys.states import KeyState
from eventseal.storage.database.rows import UNREADABLE
from eventseal.storage.database.transactions import read, write
from eventseal.storage.jobs import jobs
from eventseal.storage.jobs.jobs import FINISHED, PAUSED, RUNNING, SETTLING, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy.engine import Connection

    from eventseal.rotation.sealed_store import SealedStore


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
    look = partial(jobs.load_jobs, application=store.cipher.application)
    return read(store.datastore.engine, look, doing="listing jobs")


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
        _refuse_other_layout(job)
        if verb_of(job.options) != verb:
            raise JobError(
                f"job {job_id} is no job of {verb}",
                remedy=f"Go on with it: {resume_command(job)}",
            )
        check(job)
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
    if items_per_second is None:
        items_per_second = (
            job.items_per_second
        )  # who joins unasked must not undo what spares the applications
    changed: dict[str, Any] = {"state": RUNNING, "items_per_second": items_per_second}
    if items_per_second != job.items_per_second:
        changed["paced_until"] = None  # time that was taken at another pace
    jobs.update_job(connection, job.job_id, **changed)
    return jobs.lock_job(connection, job.job_id)


def _refuse_other_layout(job: Job) -> None:
    if job.layout != jobs.JOB_LAYOUT:
        raise JobError(
            f"job {job.job_id} was made by release {job.release}, which keeps jobs in another way",
            remedy="Run the command anew without the job's id: it begins a new job, "
            "and what was done already is not done again.",
        )


__all__ = [
    "FINISHED",
    "PAUSED",
    "RUNNING",
    "SETTLING",
    "Job",
    "begun_job",
    "list_jobs",
    "pause_job",
    "resumed_job",
]

"""A re-encryption as commands run it: shown, shared by processes, and resumable when it is interrupted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

from eventseal.cli.interruption import RUN_AGAIN, resumable
from eventseal.cli.output import print_columns, print_json
from eventseal.cli.progress import shown_progress
from eventseal.cli.results import print_failures
from eventseal.cli.worker_processes import worker_processes
from eventseal.configuration import EventSeal
from eventseal.rotation import reencrypt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from uuid import UUID

    from eventseal.cli.options import Options
    from eventseal.rotation import JobResult

_COLUMNS = ("done", "failed", "suspected", "skipped", "plain", "foreign", "erased", "left")


def reencrypt_shown(
    options: Options,
    seal: EventSeal,
    *,
    keys: Collection[UUID] | None = None,
    tables: Collection[str] | None = None,
    batch: int = 1000,
    items_per_second: float | None = None,
    workers: int = 1,
    resume: UUID | None = None,
) -> JobResult:
    """
    Re-encrypt, show how far it is, and if it is interrupted say how to go on.

    Args:
        options: Of the run.
        seal: The store.
        keys: Only items under these.
        tables: Only these.
        batch: Items in a transaction at most.
        items_per_second: Over all workers.
        workers: Processes that share the work.
        resume: Only go on with this job.

    Raises:
        VerbInterrupt: It was interrupted; the job resumes.
    """
    begun = BegunJob(resume)
    with (
        resumable(begun.remedy),
        shown_progress("reencrypt", "items") as progress,
        worker_processes(1 if options.dry_run else workers) as executor,
    ):
        try:
            return reencrypt(
                seal,
                keys=keys,
                tables=tables,
                batch=batch,
                items_per_second=items_per_second,
                shards=workers,
                executor=executor,
                open_store=partial(EventSeal.from_settings, options.config),
                resume=resume,
                dry_run=options.dry_run,
                progress=begun.noting(progress),
            )
        except KeyboardInterrupt:
            if options.as_json and begun.last is not None:
                print_json(begun.last.to_json())
            raise


def print_reencrypted(result: JobResult, *, dry_run: bool) -> None:
    """
    Tell people what a re-encryption did.

    Args:
        result: Of it.
        dry_run: Whether it only counted.
    """
    shown = [name for name in _COLUMNS if any(counts.get(name) for counts in result.by_table.values())]
    if shown:
        heading = ("TABLE", *(name.upper() for name in shown))
        rows = [
            (table, *(f"{counts.get(name, 0):,}" for name in shown))
            for table, counts in result.by_table.items()
        ]
        print_columns(heading, rows, numbers=frozenset(heading[1:]))
    print_failures(result.failures)
    if dry_run:
        typer.echo(f"{result.left:,} items would be sealed again{_estimate(result)}")
        return
    typer.echo(
        f"{result.done:,} items were sealed again in {result.seconds:.1f} s, {result.failed:,} failed, "
        f"{result.left:,} are left"
    )
    if result.settles_at is not None:
        typer.echo(
            f"until {result.settles_at.isoformat(timespec='seconds')} processes that have not noticed the "
            "rotation may append under an old key: run it again then"
        )
    elif not result.complete and result.job_id is not None:
        typer.echo(f"it is not complete; to go on: eventseal reencrypt --resume {result.job_id}")


def _estimate(result: JobResult) -> str:
    if result.estimated_seconds is None:
        return ""
    minutes, seconds = divmod(round(result.estimated_seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f", in about {hours}:{minutes:02}:{seconds:02} by a sample"


class BegunJob:
    """
    What is known of a job while it runs.

    Args:
        job_id: If it is resumed.
        verb: The command that goes on with it.
    """

    def __init__(self, job_id: UUID | None, verb: str = "reencrypt") -> None:
        self.last: JobResult | None = None
        self._job_id = job_id
        self._verb = verb

    def noting(self, progress: Callable[[JobResult], None]) -> Callable[[JobResult], None]:
        """Give what notes a result, and shows it."""

        def note(result: JobResult) -> None:
            self.last = result
            self._job_id = result.job_id or self._job_id
            progress(result)

        return note

    def remedy(self) -> str:
        """Say how to go on."""
        if self._job_id is None:
            return RUN_AGAIN
        return f"What was done stays done. To go on: eventseal {self._verb} --resume {self._job_id}"

"""A re-encryption as commands run it, and as people are told of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

from eventseal.cli.output import print_columns
from eventseal.cli.results import print_failures
from eventseal.cli.shown_job import shown_job
from eventseal.rotation import reencrypt
from eventseal.rotation.jobs.jobs import REENCRYPT, verb_command
from eventseal.rotation.rows_set_aside import SET_ASIDE

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from eventseal.cli.options import Options
    from eventseal.configuration import EventSeal
    from eventseal.rotation import JobResult

_COLUMNS = ("done", "failed", "suspected", "skipped", "plain", "foreign", "erased", SET_ASIDE, "left")


def reencrypt_shown(
    options: Options,
    seal: EventSeal,
    *,
    keys: Collection[UUID] | None = None,
    tables: Collection[str] | None = None,
    to_collection: str | None = None,
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
        to_collection: What the one table is moved to.
        batch: Items in a transaction at most.
        items_per_second: Over all workers.
        workers: Processes that share the work.
        resume: Only go on with this job.

    Raises:
        VerbInterrupt: It was interrupted; the job resumes.
    """
    verb = partial(
        reencrypt,
        seal,
        keys=keys,
        tables=tables,
        to_collection=to_collection,
        batch=batch,
        items_per_second=items_per_second,
    )
    return shown_job(options, REENCRYPT, verb, workers=workers, resume=resume)


def print_reencrypted(result: JobResult, *, dry_run: bool) -> None:
    """
    Tell people what a re-encryption did.

    Args:
        result: Of it.
        dry_run: Whether it only counted.
    """
    shown = [name for name in _COLUMNS if any(counts.get(name) for counts in result.by_table.values())]
    if shown:
        heading = ("TABLE", *(name.replace("_", " ").upper() for name in shown))
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
    if result.unfinished:
        typer.echo(f"Not complete. To continue: {verb_command(REENCRYPT, result.job_id)}")


def _estimate(result: JobResult) -> str:
    if result.estimated_seconds is None:
        return ""
    minutes, seconds = divmod(round(result.estimated_seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f", in about {hours}:{minutes:02}:{seconds:02} by a sample"

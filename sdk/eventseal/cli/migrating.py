"""A migration as the command runs it, and as people are told of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

from eventseal.cli.output import print_columns
from eventseal.cli.progress import shown_progress
from eventseal.cli.results import print_failures
from eventseal.cli.shown_job import shown_job
from eventseal.configuration.stores import old_database
from eventseal.rotation import copy_items
from eventseal.rotation import migrate as migrate_store
from eventseal.rotation.jobs.jobs import MIGRATE, verb_command

if TYPE_CHECKING:
    from uuid import UUID

    from eventseal.cli.options import Options
    from eventseal.configuration import EventSeal
    from eventseal.rotation import JobResult
    from eventseal.rotation.jobs.old_items import ScopeOf


def copied(
    options: Options,
    seal: EventSeal,
    *,
    table: str,
    into: str,
    columns: dict[str, str],
    only: dict[str, str],
    scope: str | ScopeOf,
    batch: int,
) -> JobResult:
    """Copy a table, and show how far it is; the arguments are those of ``copy_items``."""
    with shown_progress("migrate", "items", _share_of_copy) as progress:
        return copy_items(
            seal,
            source=old_database(seal.settings),
            table=table,
            into=into,
            columns=columns,
            only=only,
            key_scope=scope,
            batch=batch,
            dry_run=options.dry_run,
            progress=progress,
        )


def _share_of_copy(result: JobResult) -> tuple[int, int]:
    """How many rows were looked at, and of how many: those that were there already took no copying."""
    there = sum(counts.get("there", 0) for counts in result.by_table.values())
    looked_at = result.done + result.failed + there
    return looked_at, looked_at + result.left


def migrated(
    options: Options,
    seal: EventSeal,
    *,
    table: list[str] | None,
    scope: str | ScopeOf | None,
    batch: int,
    items_per_second: float | None,
    workers: int,
    resume: UUID | None,
    function: str | None,
) -> JobResult:
    """
    Migrate, show how far it is, and if it is interrupted say how to go on.

    The arguments are those of ``eventseal.rotation.migrate``, and the function for scopes as the command
    line names it.

    Raises:
        VerbInterrupt: It was interrupted; the job resumes.
    """
    verb = partial(
        migrate_store, seal, key_scope=scope, tables=table, batch=batch, items_per_second=items_per_second
    )
    return shown_job(options, MIGRATE, verb, workers=workers, resume=resume, function=function)


def print_migrated(result: JobResult, said: str) -> None:
    """
    Tell people what was done.

    Args:
        result: Of it.
        said: The last line.
    """
    names = dict.fromkeys(name for counts in result.by_table.values() for name in counts)
    shown = [name for name in names if any(counts.get(name) for counts in result.by_table.values())]
    if shown:
        heading = ("TABLE", *(name.upper() for name in shown))
        rows = [
            (table, *(f"{counts.get(name, 0):,}" for name in shown))
            for table, counts in result.by_table.items()
        ]
        print_columns(heading, rows, numbers=frozenset(heading[1:]))
    print_failures(result.failures)
    typer.echo(said)


def said_of_beginning(result: JobResult, *, dry_run: bool) -> str:
    """Sum the first step up."""
    left = f"{result.left:,} items are to be migrated"
    if dry_run:
        return left
    return (
        f"{left}; readers take both now: start the processes that write envelopes, then `eventseal migrate`"
    )


def said_of_migration(result: JobResult, *, dry_run: bool, function: str | None = None) -> str:
    """Sum a migration up; the command that resumes it must name its function for key scopes."""
    if dry_run:
        minutes, seconds = divmod(round(result.estimated_seconds or 0), 60)
        return f"{result.left:,} items would be sealed, in about {minutes}:{seconds:02} minutes by a sample"
    said = (
        f"{result.done:,} items were sealed in {result.seconds:.1f} s, {result.failed:,} failed, "
        f"{result.left:,} are left"
    )
    if not result.complete:
        return f"{said}\nNot complete. To continue: {verb_command(MIGRATE, result.job_id, function)}"
    if result.failed:
        return f"{said}\nwhat failed stays as it is; mend it, and run this again"
    return f"{said}\nwhen no process writes the older formats any more: eventseal migrate --finish"


def said_of_copy(result: JobResult, *, dry_run: bool) -> str:
    """Sum a copy up."""
    if dry_run:
        return f"{result.left:,} items would be copied, but for those that are there"
    return (
        f"{result.done:,} items were copied in {result.seconds:.1f} s, {result.failed:,} failed; run it "
        "again when the old application has stopped: it copies what is not there yet"
    )


def said_of_end(result: JobResult, *, dry_run: bool) -> str:
    """Sum the last step up."""
    del result
    if dry_run:
        return "nothing old is left"
    return (
        "nothing old is left, and readers refuse it from now on: take old_formats out of the settings, "
        "and destroy the old keys"
    )

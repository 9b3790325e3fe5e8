"""``eventseal reencrypt``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID  # noqa: TC003 - read at run time, for the options' types

import typer

from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.output import print_json
from eventseal.cli.reencrypting import print_reencrypted, reencrypt_shown
from eventseal.cli.results import finish
from eventseal.errors import ConfigurationError
from eventseal.rotation import pause_job
from eventseal.rotation.did_you_mean import known_keys
from eventseal.rotation.jobs.jobs import resume_command, verb_of

if TYPE_CHECKING:
    from eventseal.configuration import EventSeal

EXAMPLES = """\b
Examples:
  eventseal reencrypt --dry-run
  eventseal reencrypt --workers 4 --items-per-second 5000
  eventseal reencrypt --key 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0a
  eventseal reencrypt --table timestamp_sequenced_items --to-collection timestamp_items
  eventseal reencrypt --pause 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0b
  eventseal reencrypt --resume 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0b
"""


def reencrypt(
    context: typer.Context,
    *,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only items under this key; several times.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this registered table; several times.")
    ] = None,
    to_collection: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Move the table to the collection that its record class says."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Items in a transaction at most.")] = 1000,
    items_per_second: Annotated[
        float | None, typer.Option(metavar="RATE", help="Not faster than this, all workers together.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the work.")] = 1,
    resume: Annotated[
        UUID | None, typer.Option(metavar="JOB", help="Go on with this job; `status` lists them.")
    ] = None,
    pause: Annotated[
        UUID | None, typer.Option(metavar="JOB", help="Stop this job, wherever it runs; it can be resumed.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Seal items again that are not under the active key of their scope.

    It runs beside the application, in small transactions, and may be stopped
    anywhere: the same command goes on with the unfinished job, and two at once
    share it. Each item is opened, sealed, and opened again before its row is
    replaced. A row that does not open stays, is named, and makes the exit code 1.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
    _refuse_both(resume, pause, key=key, table=table, to=to_collection, dry_run=options.dry_run)
    with options.open_seal() as seal:
        if pause is not None:
            _pause(options, seal, pause)
            return
        result = reencrypt_shown(
            options,
            seal,
            keys=known_keys(seal.datastore, seal.settings.application, key) if key else None,
            tables=table,
            to_collection=to_collection,
            batch=batch,
            items_per_second=items_per_second,
            workers=workers,
            resume=resume,
        )
    finish(options, result, lambda: print_reencrypted(result, dry_run=options.dry_run))


def _refuse_both(
    resume: UUID | None,
    pause: UUID | None,
    *,
    key: list[str] | None,
    table: list[str] | None,
    to: str | None,
    dry_run: bool,
) -> None:
    given = {"--key": key, "--table": table, "--to-collection": to, "--dry-run": dry_run}
    named = [name for name, value in given.items() if value]
    if resume is not None and pause is not None:
        raise ConfigurationError("--resume and --pause exclude each other")
    for option, value in (("--resume", resume), ("--pause", pause)):
        if value is not None and named:
            raise ConfigurationError(
                f"{option} and {', '.join(named)} exclude each other",
                remedy="A job keeps the keys and tables that it was begun with: name the job alone.",
            )


def _pause(options: Options, seal: EventSeal, job_id: UUID) -> None:
    job = pause_job(seal, job_id)
    if options.as_json:
        print_json({"verb": verb_of(job.options), "job_id": str(job.job_id), "state": job.state})
        return
    typer.echo(f"job {job_id} is {job.state}; to go on: {resume_command(job)}")

"""``eventseal reencrypt``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated
from uuid import UUID  # noqa: TC003 - read at run time, for the options' types

import typer

from eventseal.cli.long_runs import run_job
from eventseal.cli.output import nonzero, print_counts, print_failures, print_json, report
from eventseal.cli.shared_options import Batch, Options, Rate, ResumedJob, Tables, Workers, with_options
from eventseal.errors import ConfigurationError
from eventseal.rotation import pause_job
from eventseal.rotation import reencrypt as reencrypt_items
from eventseal.rotation.did_you_mean import known_keys
from eventseal.rotation.jobs.jobs import REENCRYPT, resume_command, verb_command, verb_of
from eventseal.rotation.set_aside_rows import SET_ASIDE
from eventseal.wording import counted, moment

if TYPE_CHECKING:
    from datetime import datetime

    from eventseal.configuration import EventSeal
    from eventseal.rotation import JobResult

_COLUMNS = ("done", "failed", "suspected", "skipped", "plain", "foreign", "erased", SET_ASIDE, "left")

EXAMPLES = """\b
Examples:
  eventseal reencrypt --dry-run
  eventseal reencrypt --workers 4 --items-per-second 5000
  eventseal reencrypt --key 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0a
  eventseal reencrypt --table timestamp_sequenced_items --to-collection timestamp_items
  eventseal reencrypt --pause 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0b
  eventseal reencrypt --resume 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0b
"""


@with_options("yes", "dry_run")
def reencrypt(
    options: Options,
    *,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only items under this key. Repeatable.")
    ] = None,
    table: Tables = None,
    to_collection: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Bind the items of --table to NAME, the new collection of their record class.",
        ),
    ] = None,
    batch: Batch = 1000,
    items_per_second: Rate = None,
    workers: Workers = 1,
    resume: ResumedJob = None,
    pause: Annotated[
        UUID | None, typer.Option(metavar="JOB", help="Pause this job, wherever it runs. You can resume it.")
    ] = None,
) -> None:
    """
    Re-encrypt items that are not under their scope's active key.

    It runs while the application runs, in small transactions. You can stop it at
    any time: the same command continues the unfinished job, and two commands that
    run together share it.

    Each item is decrypted, encrypted, and decrypted again before its row is
    replaced. If a row does not open, it stays as it is, the output names it, and
    the exit code is 1.
    """
    given = {
        "--key": key,
        "--table": table,
        "--to-collection": to_collection,
        "--dry-run": options.dry_run,
    }
    _refuse_together(resume, pause, [name for name, value in given.items() if value])
    with options.open_seal() as seal:
        if pause is not None:
            _pause(options, seal, pause)
            return
        verb = partial(
            reencrypt_items,
            seal,
            keys=known_keys(seal.datastore, seal.settings.application, key) if key else None,
            tables=table,
            to_collection=to_collection,
            batch=batch,
            items_per_second=items_per_second,
        )
        result = run_job(options, REENCRYPT, verb, workers=workers, resume=resume)
        now = None if result.settles_at is None else seal.key_store.now()
    report(options, result, lambda: print_reencrypted(result, dry_run=options.dry_run, now=now))


def _refuse_together(resume: UUID | None, pause: UUID | None, named: list[str]) -> None:
    if resume is not None and pause is not None:
        raise ConfigurationError("--resume and --pause exclude each other", remedy="Leave one of them out.")
    if named and (resume is not None or pause is not None):
        raise ConfigurationError(
            f"{'--pause' if resume is None else '--resume'} and {', '.join(named)} exclude each other",
            remedy="Pass only the job: it keeps the keys and tables with which it began.",
        )


def _pause(options: Options, seal: EventSeal, job_id: UUID) -> None:
    job = pause_job(seal, job_id)
    if options.as_json:
        print_json({"verb": verb_of(job.options), "job_id": str(job.job_id), "state": job.state})
        return
    typer.echo(f"Job {job_id} is {job.state}. To continue: {resume_command(job)}")


def print_reencrypted(
    result: JobResult, *, dry_run: bool, now: datetime | None = None, repeats: bool = False
) -> None:
    """
    Show people the result of a re-encryption.

    Args:
        result: The result.
        dry_run: Whether the run only counted.
        now: The present by the database's clock.
        repeats: Whether the caller repeats the run itself, after every process has noticed a rotation.
    """
    print_counts(result, nonzero(result, _COLUMNS))
    print_failures(result.failures)
    if dry_run:
        typer.echo(f"{counted(result.left, 'item')} would be re-encrypted{_estimate(result)}")
        return
    typer.echo(
        f"Re-encrypted {counted(result.done, 'item')} in {result.seconds:.1f} s. Failed: {result.failed:,}. "
        f"Left: {result.left:,}."
    )
    if result.settles_at is not None and not repeats:
        typer.echo(
            f"Other processes may still write with an old key until {moment(result.settles_at, now)}. "
            "Run `eventseal reencrypt` again after that."
        )
    if result.unfinished:
        typer.echo(f"Not complete. To continue: {verb_command(REENCRYPT, result.job_id)}")


def _estimate(result: JobResult) -> str:
    if result.estimated_seconds is None:
        return ""
    minutes, seconds = divmod(round(result.estimated_seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f", in about {hours}:{minutes:02}:{seconds:02}, estimated from a sample"

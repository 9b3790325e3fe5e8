"""``eventseal migrate``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated
from uuid import UUID  # noqa: TC003 - read at run time, for the options' types

import typer

from eventseal.cli.interruption import resumable
from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.output import print_columns, print_json
from eventseal.cli.progress import shown_progress
from eventseal.cli.reencrypting import BegunJob
from eventseal.cli.results import finish, print_failures
from eventseal.cli.worker_processes import worker_processes
from eventseal.configuration import EventSeal
from eventseal.errors import ConfigurationError
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.rotation import begin_migration, finish_migration
from eventseal.rotation import migrate as migrate_store
from eventseal.rotation.movers import scope_rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventseal.rotation import JobResult
    from eventseal.rotation.old_items import ScopeOf

EXAMPLES = """\b
Examples:
  eventseal migrate --begin
  eventseal migrate --dry-run
  eventseal migrate --workers 4 --items-per-second 5000
  eventseal migrate --key-scope-function shop.migration:tenant_of
  eventseal migrate --finish
"""


def migrate(
    context: typer.Context,
    *,
    begin: Annotated[
        bool, typer.Option("--begin", help="First: let readers take the formats of old_formats too.")
    ] = False,
    finish_it: Annotated[
        bool, typer.Option("--finish", help="Last: prove that nothing old is left, then refuse it.")
    ] = False,
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this registered table; several times.")
    ] = None,
    key_scope: Annotated[
        str, typer.Option(metavar="SCOPE", help="Whose keys seal the items.")
    ] = DEFAULT_SCOPE,
    key_scope_function: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Gives an item's scope from its place and its JSON."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Items in a transaction at most.")] = 1000,
    items_per_second: Annotated[
        float | None, typer.Option(metavar="RATE", help="Not faster than this, all workers together.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the work.")] = 1,
    resume: Annotated[
        UUID | None, typer.Option(metavar="JOB", help="Go on with this job; `status` lists them.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Bring items in plain, or of older ciphers, under the keys of a KMS.

    In three steps, while the application runs: --begin, then, when every process
    reads both and writes envelopes, the migration itself, then --finish. The
    setting old_formats names the formats, and where their keys are: no key stands
    on a command line. Items of the eventsourcing library's releases 8 and 9 stay
    in their rows; tables of older releases are copied with --copy.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
    work = {
        "--key-scope": key_scope != DEFAULT_SCOPE,
        "--key-scope-function": key_scope_function,
        "--items-per-second": items_per_second,
        "--workers": workers != 1,
        "--resume": resume,
    }
    _refuse_together(begin=begin, finish_it=finish_it, work=work)
    with options.open_seal() as seal:
        if begin:
            result = begin_migration(seal, tables=table, dry_run=options.dry_run)
        elif finish_it:
            result = finish_migration(seal, tables=table, dry_run=options.dry_run)
        else:
            result = _migrated(
                options,
                seal,
                table=table,
                scope=key_scope if key_scope_function is None else _function(key_scope_function),
                batch=batch,
                items_per_second=items_per_second,
                workers=workers,
                resume=resume,
            )
    said = _said_of_beginning if begin else _said_of_end if finish_it else _said_of_migration
    finish(options, result, lambda: _print(result, said(result, dry_run=options.dry_run)))


def _refuse_together(*, begin: bool, finish_it: bool, work: Mapping[str, object]) -> None:
    if begin and finish_it:
        raise ConfigurationError("--begin and --finish exclude each other")
    named = [name for name, given in work.items() if given]
    if (begin or finish_it) and named:
        raise ConfigurationError(
            f"{'--begin' if begin else '--finish'} and {', '.join(named)} exclude each other",
            remedy="Those are for the migration itself: eventseal migrate.",
        )
    if work["--key-scope"] and work["--key-scope-function"]:
        raise ConfigurationError("--key-scope and --key-scope-function exclude each other")


def _function(name: str) -> ScopeOf:
    return scope_rule({"function": name})


def _migrated(
    options: Options,
    seal: EventSeal,
    *,
    table: list[str] | None,
    scope: str | ScopeOf,
    batch: int,
    items_per_second: float | None,
    workers: int,
    resume: UUID | None,
) -> JobResult:
    begun = BegunJob(resume, "migrate")
    with (
        resumable(begun.remedy),
        shown_progress("migrate", "items") as progress,
        worker_processes(1 if options.dry_run else workers) as executor,
    ):
        try:
            return migrate_store(
                seal,
                key_scope=scope,
                tables=table,
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


def _print(result: JobResult, said: str) -> None:
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


def _said_of_beginning(result: JobResult, *, dry_run: bool) -> str:
    left = f"{result.left:,} items are to be migrated"
    if dry_run:
        return left
    return (
        f"{left}; readers take both now: start the processes that write envelopes, then `eventseal migrate`"
    )


def _said_of_migration(result: JobResult, *, dry_run: bool) -> str:
    if dry_run:
        minutes, seconds = divmod(round(result.estimated_seconds or 0), 60)
        return f"{result.left:,} items would be sealed, in about {minutes}:{seconds:02} minutes by a sample"
    said = (
        f"{result.done:,} items were sealed in {result.seconds:.1f} s, {result.failed:,} failed, "
        f"{result.left:,} are left"
    )
    if not result.complete:
        return f"{said}\nit is not complete; to go on: eventseal migrate --resume {result.job_id}"
    if result.failed:
        return f"{said}\nwhat failed stays as it is; mend it, and run this again"
    return f"{said}\nwhen no process writes the older formats any more: eventseal migrate --finish"


def _said_of_end(result: JobResult, *, dry_run: bool) -> str:
    del result
    if dry_run:
        return "nothing old is left"
    return (
        "nothing old is left, and readers refuse it from now on: take old_formats out of the settings, "
        "and destroy the old keys"
    )

"""``eventseal migrate``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.long_runs import run_job, shown_progress
from eventseal.cli.output import confirm, counted, print_counts, print_failures, report
from eventseal.cli.shared_options import (
    Batch,
    Options,
    Rate,
    ResumedJob,
    Tables,
    Workers,
    command_group,
    pairs,
    with_options,
    working_directory_last,
)
from eventseal.configuration.assembly import old_database
from eventseal.errors import ConfigurationError
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.rotation import abandon_migration, begin_migration, copy_items, finish_migration
from eventseal.rotation import migrate as migrate_store
from eventseal.rotation.jobs.jobs import MIGRATE, verb_command
from eventseal.rotation.jobs.older_formats import function_named

if TYPE_CHECKING:
    from eventseal.rotation import JobResult
    from eventseal.rotation.jobs.older_formats import ScopeOf

_HELP = """Bring items in plain, or of older ciphers, under the keys of a KMS.

In three steps, while the application runs: begin, then, when every process
reads both and writes envelopes, run, then finish. `eventseal migrate` alone is
`eventseal migrate run`. The setting old_formats names the formats, and where
their keys are: no key stands on a command line. Items of the eventsourcing
library's releases 8 and 9 stay in their rows; copy the tables of older
releases.
"""

EXAMPLES = """\b
Examples:
  eventseal migrate begin
  eventseal migrate run --dry-run
  eventseal migrate run --workers 4 --items-per-second 5000
  eventseal migrate run --key-scope-function shop.migration:tenant_of
  eventseal migrate finish
  eventseal migrate abandon --dry-run
  eventseal migrate copy integer_sequenced_items
"""

KeyScope = Annotated[
    str | None,
    typer.Option(metavar="SCOPE", help="Whose keys seal the items; by default those of application."),
]
KeyScopeFunction = Annotated[
    str | None,
    typer.Option(metavar="MODULE:FUNCTION", help="Gives an item's scope from its place and its JSON."),
]

migrate = command_group("migrate", _HELP, EXAMPLES)


@migrate.command(epilog=EXAMPLES)
@with_options("yes", "dry_run")
def begin(options: Options, *, table: Tables = None) -> None:
    """
    First: let readers take the formats of old_formats, too.

    It opens a sample of the items, so that a wrong key is found before anything is
    written.
    """
    with options.open_seal(event_modules=True) as seal:
        result = begin_migration(seal, tables=table, dry_run=options.dry_run)
    said = f"{result.left:,} items are to be migrated"
    if not options.dry_run:
        said += "; readers take both now: start the processes that write envelopes, then `eventseal migrate`"
    report(options, result, lambda: _print(result, said))


@migrate.command(epilog=EXAMPLES)
@with_options("yes", "dry_run")
def run(
    options: Options,
    *,
    table: Tables = None,
    key_scope: KeyScope = None,
    key_scope_function: KeyScopeFunction = None,
    batch: Batch = 1000,
    items_per_second: Rate = None,
    workers: Workers = 1,
    resume: ResumedJob = None,
) -> None:
    """
    Then: seal what is in an older format, each item in its row.

    It runs beside the application, in small transactions. You may stop it anywhere:
    the same command continues the unfinished job. An item that does not open stays,
    is named, and makes the exit code 1.
    """
    scope = _scope(key_scope, key_scope_function)
    with options.open_seal(event_modules=True) as seal:
        verb = partial(
            migrate_store, seal, key_scope=scope, tables=table, batch=batch, items_per_second=items_per_second
        )
        result = run_job(options, MIGRATE, verb, workers=workers, resume=resume, function=key_scope_function)
    said = said_of_run(result, dry_run=options.dry_run, function=key_scope_function)
    report(options, result, lambda: _print(result, said))


@migrate.command(epilog=EXAMPLES)
@with_options("yes", "dry_run")
def finish(options: Options, *, table: Tables = None) -> None:
    """
    Last: prove that nothing old is left, then let readers refuse it.

    The exit code is 4 as long as an item in an older format is left.
    """
    with options.open_seal() as seal:
        result = finish_migration(seal, tables=table, dry_run=options.dry_run)
    said = "nothing old is left"
    if not options.dry_run:
        said += (
            ", and readers refuse it from now on: take old_formats out of the settings, and destroy the old "
            "keys"
        )
    report(options, result, lambda: _print(result, said))


@migrate.command(epilog=EXAMPLES)
@with_options("yes", "dry_run")
def abandon(options: Options, *, table: Tables = None) -> None:
    """
    Instead of finishing: let readers refuse the older formats although items are left.

    Items that are sealed stay sealed. Items in older formats stay in their rows, but
    no reader takes them until you begin again. It asks before it does that.
    """
    with options.open_seal() as seal:
        result = abandon_migration(seal, tables=table, dry_run=True)
        if not options.dry_run:
            confirm(options, f"Readers are about to refuse {result.left:,} items in older formats.")
            result = abandon_migration(seal, tables=table)
    said = f"{result.left:,} items in older formats {'would be' if options.dry_run else 'are'} refused"
    if not options.dry_run:
        said += "; to take them again: eventseal migrate begin"
    report(options, result, lambda: _print(result, said))


@migrate.command(epilog=EXAMPLES)
@with_options("yes", "dry_run")
def copy(
    options: Options,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="In the database of old_store_url.")],
    *,
    into: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="A table of the store's own; the same name by default."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="What a column is called there; several times."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only rows with this value; several times."),
    ] = None,
    key_scope: KeyScope = None,
    key_scope_function: KeyScopeFunction = None,
    batch: Batch = 500,
) -> None:
    """
    Copy a table of the eventsourcing library's releases 1 to 7, sealed.

    The old table is only read. Run it again when the old application has stopped: it
    copies what is not there yet.
    """
    columns = pairs("--column", column, example="data=body")
    values = pairs("--only", only, example="application_name=orders")
    scope = _scope(key_scope, key_scope_function)
    with (
        options.open_seal(event_modules=True) as seal,
        shown_progress("migrate", "items", _share_of_copy) as progress,
    ):
        result = copy_items(
            seal,
            source=old_database(seal.settings),
            table=table,
            into=into or table,
            columns=columns,
            only=values,
            key_scope=DEFAULT_SCOPE if scope is None else scope,
            batch=batch,
            dry_run=options.dry_run,
            progress=progress,
        )
    if options.dry_run:
        said = f"{result.left:,} items would be copied, but for those that are there"
    else:
        said = (
            f"{result.done:,} items were copied in {result.seconds:.1f} s, {result.failed:,} failed; run it "
            "again when the old application has stopped: it copies what is not there yet"
        )
    report(options, result, lambda: _print(result, said))


def _scope(key_scope: str | None, function: str | None) -> str | ScopeOf | None:
    if key_scope and function:
        raise ConfigurationError("--key-scope and --key-scope-function exclude each other")
    if function is None:
        return key_scope
    with working_directory_last():
        return function_named(function)


def _share_of_copy(result: JobResult) -> tuple[int, int]:
    """How many rows were looked at, and of how many: those that were there already took no copying."""
    there = sum(counts.get("there", 0) for counts in result.by_table.values())
    looked_at = result.done + result.failed + there
    return looked_at, looked_at + result.left


def _print(result: JobResult, said: str) -> None:
    names = dict.fromkeys(name for counts in result.by_table.values() for name in counts)
    print_counts(result, counted(result, [*names]))
    print_failures(result.failures)
    typer.echo(said)


def said_of_run(result: JobResult, *, dry_run: bool, function: str | None = None) -> str:
    """
    Sum a migration up for people.

    Args:
        result: Of it.
        dry_run: Whether it only looked.
        function: The function for key scopes, which the command that continues must name again.
    """
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
    return f"{said}\nwhen no process writes the older formats any more: eventseal migrate finish"

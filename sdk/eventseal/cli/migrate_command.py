"""``eventseal migrate``."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.long_runs import run_job, shown_progress
from eventseal.cli.output import confirm, nonzero, print_counts, print_failures, report
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
from eventseal.wording import counted

if TYPE_CHECKING:
    from eventseal.rotation import JobResult
    from eventseal.rotation.jobs.older_formats import ScopeOf

_HELP = """Encrypt plaintext items, or items of older ciphers.

There are three steps, while the application runs. First run `begin`. When every
process reads both formats and writes envelopes, run `run`. Then run `finish`.
`eventseal migrate` alone means `eventseal migrate run`.

The setting old_formats names the formats, and where their keys are. Never pass
a key on a command line. Items of releases 8 and 9 of the eventsourcing library
stay in their rows. For older releases, copy the tables with `copy`.
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
    typer.Option(metavar="SCOPE", help="The scope of the items. The default is application."),
]
KeyScopeFunction = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION", help="A function that returns an item's scope from its place and JSON."
    ),
]

migrate = command_group("migrate", _HELP, EXAMPLES)


@migrate.command(epilog=EXAMPLES)
@with_options("yes", "dry_run")
def begin(options: Options, *, table: Tables = None) -> None:
    """
    First step: let readers accept the formats in old_formats too.

    It opens a sample of the items, so that you learn of a wrong key before
    anything is written.
    """
    with options.open_seal(event_modules=True) as seal:
        result = begin_migration(seal, tables=table, dry_run=options.dry_run)
    said = f"Items to migrate: {result.left:,}."
    if not options.dry_run:
        said += (
            " Readers accept both formats now.\n"
            "Next: start the processes that write envelopes, then run `eventseal migrate`."
        )
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
    Second step: encrypt the items in older formats, each in its row.

    It runs while the application runs, in small transactions. You can stop it at
    any time: the same command continues the unfinished job. If an item does not
    open, it stays as it is, the output names it, and the exit code is 1.
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
    Last step: prove that no old items remain, then refuse them.

    As long as an item in an older format is left, the exit code is 4.
    """
    with options.open_seal() as seal:
        result = finish_migration(seal, tables=table, dry_run=options.dry_run)
    said = "No item is in an older format."
    if not options.dry_run:
        said += (
            " Readers refuse the older formats from now on.\n"
            "Next: remove old_formats from the settings, and destroy the keys of the older formats."
        )
    report(options, result, lambda: _print(result, said))


@migrate.command(epilog=EXAMPLES)
@with_options("yes", "dry_run")
def abandon(options: Options, *, table: Tables = None) -> None:
    """
    Abandon the migration: readers refuse the items that are left.

    Encrypted items stay encrypted. Items in older formats stay in their rows, but
    no reader accepts them until you begin again. It asks before it does that.
    """
    with options.open_seal() as seal:
        result = abandon_migration(seal, tables=table, dry_run=True)
        if not options.dry_run:
            items = counted(result.left, "item")
            confirm(options, f"Readers are about to refuse {items} in older formats.")
            result = abandon_migration(seal, tables=table)
    items = f"{counted(result.left, 'item')} in older formats"
    said = f"Readers {'would refuse' if options.dry_run else 'refuse'} {items}."
    if not options.dry_run:
        said += " To accept them again: eventseal migrate begin"
    report(options, result, lambda: _print(result, said))


@migrate.command(epilog=EXAMPLES)
@with_options("yes", "dry_run")
def copy(
    options: Options,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table in the database old_store_url.")],
    *,
    into: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="The table to copy into. The default is the same name."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="The name of a column in the old table. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only rows with this value. Repeatable."),
    ] = None,
    key_scope: KeyScope = None,
    key_scope_function: KeyScopeFunction = None,
    batch: Batch = 500,
) -> None:
    """
    Copy and encrypt a table of eventsourcing 1 to 7.

    The old table is only read. When the old application has stopped, run the command
    again: it copies the items that are still missing.
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
        said = (
            f"At most {counted(result.left, 'item')} would be copied. Items that exist already are skipped."
        )
    else:
        said = (
            f"Copied {counted(result.done, 'item')} in {result.seconds:.1f} s. Failed: {result.failed:,}.\n"
            "Next: when the old application has stopped, run this again to copy the items still missing."
        )
    report(options, result, lambda: _print(result, said))


def _scope(key_scope: str | None, function: str | None) -> str | ScopeOf | None:
    if key_scope and function:
        raise ConfigurationError(
            "--key-scope and --key-scope-function exclude each other", remedy="Leave one of them out."
        )
    if function is None:
        return key_scope
    with working_directory_last():
        return function_named(function)


def _share_of_copy(result: JobResult) -> tuple[int, int]:
    """Return how many rows were read, and how many there are. Existing copies count as read."""
    there = sum(counts.get("there", 0) for counts in result.by_table.values())
    looked_at = result.done + result.failed + there
    return looked_at, looked_at + result.left


def _print(result: JobResult, said: str) -> None:
    names = dict.fromkeys(name for counts in result.by_table.values() for name in counts)
    print_counts(result, nonzero(result, [*names]))
    print_failures(result.failures)
    typer.echo(said)


def said_of_run(result: JobResult, *, dry_run: bool, function: str | None = None) -> str:
    """
    Return the summary of a migration for people.

    Args:
        result: The result of the run.
        dry_run: Whether the run only counted.
        function: The function for key scopes, which the command that continues must name again.
    """
    if dry_run:
        would = f"{counted(result.left, 'item')} would be encrypted"
        lasts = timedelta(seconds=round(result.estimated_seconds or 0))
        return f"{would}, in about {lasts}, estimated from a sample"
    said = (
        f"Encrypted {counted(result.done, 'item')} in {result.seconds:.1f} s. Failed: {result.failed:,}. "
        f"Left: {result.left:,}."
    )
    if not result.complete:
        return f"{said}\nNot complete. To continue: {verb_command(MIGRATE, result.job_id, function)}"
    if result.failed:
        return f"{said}\nThe items that failed were not changed. Repair them, then run this again."
    return f"{said}\nNext: when no process writes the older formats any more, run `eventseal migrate finish`."

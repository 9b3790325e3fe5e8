"""``eventseal repair``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.confirmation import confirm
from eventseal.cli.interruption import RUN_AGAIN, resumable
from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.output import print_columns
from eventseal.cli.progress import shown_progress
from eventseal.cli.results import finish, print_failures
from eventseal.erasure import Backup
from eventseal.erasure import repair as repair_store
from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from eventseal.erasure import RepairResult

EXAMPLES = """\b
Examples:
  eventseal repair --from-backup sqlite:///backups/monday.sqlite --dry-run
  eventseal repair --from-backup postgresql://backup.example/shop_monday
  eventseal repair --from-backup sqlite:///old.sqlite --renamed orders=order_items
"""

_SHOWN = 20


def repair(
    context: typer.Context,
    *,
    from_backup: Annotated[
        str | None, typer.Option(metavar="URL", help="The database with the backup's items and keys.")
    ] = None,
    backup_keys: Annotated[
        str | None,
        typer.Option("--backup-keys", metavar="URL", help="The backup's key tables, if they are elsewhere."),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this registered table; several times.")
    ] = None,
    renamed: Annotated[
        list[str] | None,
        typer.Option(metavar="TABLE=NAME", help="What a table is called in the backup; several times."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Replace rows that do not open by those of a backup.

    It opens every item, and looks in the backup for those that do not open. Where
    only the key id beside an item is wrong, it puts that right without a backup.
    Only today's key tables and the erasure ledger say what a key may open in the
    backup: nothing that was erased comes back. It lists the rows and asks. The
    ledger notes each row before it is replaced; without a ledger, only --dry-run
    works. The backup is only read. Do not put a password into the URL, where other
    users of the machine see it: PostgreSQL takes it from PGPASSWORD or ~/.pgpass.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
    names = _renamed(renamed)
    if from_backup is None and (backup_keys or names):
        raise ConfigurationError(
            "--backup-keys and --renamed say something of a backup: name it, --from-backup"
        )
    with (
        options.open_seal() as seal,
        resumable(lambda: RUN_AGAIN),
        ExitStack() as opened,
        ExitStack() as shown,
    ):
        backup = None
        if from_backup is not None:
            backup = Backup(seal, from_backup, keys_url=backup_keys, renamed=names)
            opened.enter_context(backup)
        progress = shown.enter_context(shown_progress("repair", "items"))

        def ask(would: RepairResult) -> None:
            shown.close()
            if not options.as_json and not options.yes:
                _print(would, dry_run=True)
            by = "" if backup is None else f" by those of {backup.name}"
            confirm(options, f"{would.left:,} rows are about to be replaced{by}.")

        result = repair_store(
            seal, backup, tables=table, dry_run=options.dry_run, confirm=ask, progress=progress
        )
    finish(options, result, lambda: _print(result, dry_run=options.dry_run))


def _renamed(given: list[str] | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given or ()]
    if any(not (name and separator and value) for name, separator, value in pairs):
        raise ConfigurationError(
            "--renamed takes two names of a table with = between them: orders=order_items"
        )
    return {name: value for name, _, value in pairs}


def _print(result: RepairResult, *, dry_run: bool) -> None:
    if result.places:
        print_columns(("TABLE", "SEQUENCE", "POSITION"), [tuple(place) for place in result.places[:_SHOWN]])
        more = result.done + result.left - min(_SHOWN, len(result.places))
        if more > 0:
            typer.echo(f"and {more:,} more; --json lists up to 1,000")
    print_failures(result.failures)
    if dry_run:
        typer.echo(f"{result.left:,} rows can be repaired, {result.failed:,} cannot")
        return
    changed = f", {result.left:,} were changed meanwhile: run it again" if result.left else ""
    typer.echo(f"{result.done:,} rows were repaired, {result.failed:,} cannot be repaired{changed}")
    if result.done:
        typer.echo("Next: eventseal verify")

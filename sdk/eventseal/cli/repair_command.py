"""``eventseal repair``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.long_runs import shown_progress
from eventseal.cli.output import confirm, print_columns, print_failures, report
from eventseal.cli.shared_options import Options, Tables, pairs, with_options
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


@with_options("yes", "dry_run")
def repair(
    options: Options,
    *,
    from_backup: Annotated[
        str | None, typer.Option(metavar="URL", help="The database with the backup's items and keys.")
    ] = None,
    backup_keys: Annotated[
        str | None,
        typer.Option("--backup-keys", metavar="URL", help="The backup's key tables, if they are elsewhere."),
    ] = None,
    table: Tables = None,
    renamed: Annotated[
        list[str] | None,
        typer.Option(metavar="TABLE=NAME", help="What a table is called in the backup; several times."),
    ] = None,
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
    names = pairs("--renamed", renamed, example="orders=order_items")
    if from_backup is None and (backup_keys or names):
        raise ConfigurationError(
            "--backup-keys and --renamed say something of a backup: name it, --from-backup"
        )
    with options.open_seal() as seal, ExitStack() as opened, ExitStack() as shown:
        backup = None
        if from_backup is not None:
            backup = Backup(seal, from_backup, keys_url=backup_keys, renamed=names)
            opened.enter_context(backup)
        progress = shown.enter_context(shown_progress("repair", "items"))

        def ask(would: RepairResult) -> None:
            shown.close()
            by = "" if backup is None else f" by those of {backup.name}"
            what = f"{would.left:,} rows are about to be replaced{by}."
            confirm(options, what, show=lambda: _print(would, dry_run=True))

        result = repair_store(
            seal, backup, tables=table, dry_run=options.dry_run, confirm=ask, progress=progress
        )
    report(options, result, lambda: _print(result, dry_run=options.dry_run))


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

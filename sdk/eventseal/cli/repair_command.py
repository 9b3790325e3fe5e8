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
from eventseal.wording import counted

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
        typer.Option(
            "--backup-keys", metavar="URL", help="The backup's key tables, if another database has them."
        ),
    ] = None,
    table: Tables = None,
    renamed: Annotated[
        list[str] | None,
        typer.Option(metavar="TABLE=NAME", help="The name of a table in the backup. Repeatable."),
    ] = None,
) -> None:
    """
    Replace rows that do not open with the rows of a backup.

    It opens every item, and searches the backup for the items that do not open. If
    only an item's key_id column is wrong, it corrects the column without a backup.

    Only the current key tables and the erasure ledger decide which items of the
    backup a key may open: erased data does not come back. It lists the rows and
    asks. The ledger records each row before it is replaced. Without a ledger, only
    --dry-run works. The backup is only read.

    Do not put a password into the URL, where other users of the machine see it:
    PostgreSQL takes it from PGPASSWORD or ~/.pgpass.
    """
    names = pairs("--renamed", renamed, example="orders=order_items")
    if from_backup is None and (backup_keys or names):
        raise ConfigurationError(
            "--backup-keys and --renamed need a backup", remedy="Add the backup: --from-backup URL"
        )
    with options.open_seal() as seal, ExitStack() as opened, ExitStack() as shown:
        backup = None
        if from_backup is not None:
            backup = Backup(seal, from_backup, keys_url=backup_keys, renamed=names)
            opened.enter_context(backup)
        progress = shown.enter_context(shown_progress("repair", "items"))

        def ask(would: RepairResult) -> None:
            shown.close()
            by = "" if backup is None else f" with rows of {backup.name}"
            rows = counted(would.left, "row is", "rows are")
            what = f"{rows} about to be replaced{by}."
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
            typer.echo(f"and {more:,} more. --json lists up to 1,000.")
    print_failures(result.failures)
    if dry_run:
        typer.echo(f"Rows that can be repaired: {result.left:,}. Rows that cannot: {result.failed:,}.")
        return
    typer.echo(f"Rows repaired: {result.done:,}. Rows that cannot be repaired: {result.failed:,}.")
    if result.left:
        changed = counted(result.left, "row was", "rows were")
        typer.echo(f"{changed} changed by another process meanwhile. Run `eventseal repair` again.")
    if result.done:
        typer.echo("Next: eventseal verify")

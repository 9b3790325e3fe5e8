"""``eventseal set-aside``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.long_runs import shown_progress
from eventseal.cli.output import confirm, print_failures, print_json, print_rows_set_aside, report
from eventseal.cli.shared_options import Options, Position, SequenceId, with_options
from eventseal.erasure.setting_aside import required_ledger, withdraw
from eventseal.erasure.setting_aside import set_aside as set_aside_found
from eventseal.errors import ConfigurationError, JobError
from eventseal.rotation.did_you_mean import typed_place
from eventseal.rotation.row_damage import damaged_row, damaged_rows
from eventseal.rotation.sealed_store import registered_tables
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.configuration import EventSeal
    from eventseal.rotation.row_damage import DamagedRows
    from eventseal.rotation.set_aside_rows import SetAside

EXAMPLES = """\b
Examples:
  eventseal set-aside --table integer_sequenced_items --position 0 \\
      --sequence 0b0e0c4e-5b1c-4a53-8f2e-8a1f3f6e6f0a --reason "disk failure"
  eventseal set-aside --table snapshots --every-damaged-row \\
      --reason "disk failure on 2 May, no backup" --dry-run
  eventseal set-aside --list
  eventseal set-aside --undo --table snapshots
"""


_SEE = "See `eventseal set-aside --help` for examples."


@with_options("yes", "dry_run")
def set_aside(
    options: Options,
    *,
    table: Annotated[str | None, typer.Option(metavar="TABLE", help="The registered table.")] = None,
    sequence: SequenceId = None,
    position: Position = None,
    every_damaged_row: Annotated[
        bool, typer.Option("--every-damaged-row", help="Instead of one row: all damaged rows of the table.")
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Why the rows cannot be repaired. The ledger keeps it."),
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Withdraw the entry for one row, or for all rows of the table.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the rows that are set aside.")] = False,
) -> None:
    """
    Accept damaged rows that no backup has, so `verify` passes.

    First run `eventseal repair` to restore the rows that a backup has. Then this
    command records in the erasure ledger which rows are lost, and why.

    It opens each row first. It refuses a row that opens, and a row that may be
    undamaged because only a key or a KMS is missing. Only exactly these rows are
    excused: a row that is changed or deleted later fails again. Readers get the
    same error as before.
    """
    place = _place(sequence, position)
    _refuse(table, place, reason, every=every_damaged_row, undo=undo, listed=listed)
    with options.open_seal() as seal:
        required_ledger(seal)
        if listed:
            _show(options, [row for row in seal.rows_set_aside() if table in {None, row.table}])
        elif undo:
            _undo(options, seal, str(table), place)
        else:
            _set_aside(options, seal, _found(seal, str(table), place), str(reason))


def _place(sequence: str | None, position: str | None) -> tuple[str, str] | None:
    if sequence is None and position is None:
        return None
    if sequence is None or position is None:
        raise ConfigurationError(
            "a row needs all three options: --table, --sequence and --position", remedy=_SEE
        )
    return sequence, position


def _refuse(
    table: str | None,
    place: tuple[str, str] | None,
    reason: str | None,
    *,
    every: bool,
    undo: bool,
    listed: bool,
) -> None:
    """Refuse options that exclude or miss each other."""
    if listed and (undo or every or reason is not None or place is not None):
        raise ConfigurationError("--list accepts only --table", remedy=_SEE)
    if listed:
        return
    if table is None:
        raise ConfigurationError("--table is missing", remedy=_SEE)
    if undo and (every or reason is not None):
        raise ConfigurationError("--undo excludes --every-damaged-row and --reason", remedy=_SEE)
    if undo:
        return
    if every == (place is not None):
        raise ConfigurationError(
            "set-aside needs one row (--sequence and --position) or --every-damaged-row", remedy=_SEE
        )
    if reason is None:
        raise ConfigurationError(
            "--reason is missing: the ledger records why the rows cannot be repaired",
            remedy='Add it, such as --reason "disk failure, no backup".',
        )


def _found(seal: EventSeal, table: str, place: tuple[str, str] | None) -> DamagedRows:
    if place is not None:
        return damaged_row(seal, table, *place)
    with shown_progress("set-aside", "items") as progress:
        return damaged_rows(seal, table, progress=progress)


def _set_aside(options: Options, seal: EventSeal, found: DamagedRows, reason: str) -> None:
    if found.rows and not options.as_json:
        print_failures([row.failure(row.error) for row in found.rows])
    if found.rows and not options.dry_run:
        confirm(options, f"{counted(len(found.rows), 'row is', 'rows are')} about to be set aside as lost.")
    result = set_aside_found(seal, found, reason=reason, dry_run=options.dry_run)

    def show() -> None:
        print_failures(result.failures)
        did = "Rows that would be set aside" if options.dry_run else "Rows set aside"
        already = f" Set aside before: {found.already:,}." * bool(found.already)
        typer.echo(f"{did}: {result.done:,}.{already} Failed: {result.failed:,}.")

    report(options, result, show)


def _undo(options: Options, seal: EventSeal, table: str, place: tuple[str, str] | None) -> None:
    rows = [row for row in seal.rows_set_aside() if row.table == table]
    if place is not None:
        rows = _at(seal, table, place, rows)
    if not rows:
        raise JobError(
            f"no such row of {table} is set aside",
            remedy="List the rows that are set aside: eventseal set-aside --list",
        )
    if not options.as_json:
        print_rows_set_aside(rows)
    if not options.dry_run:
        still = counted(len(rows), "row is", "rows are")
        confirm(options, f"{still} about to count as failed again, if still damaged.")
    result = withdraw(seal, rows, dry_run=options.dry_run)
    did = "Rows that would no longer be set aside" if options.dry_run else "Rows no longer set aside"
    report(options, result, lambda: typer.echo(f"{did}: {result.done:,}"))


def _at(seal: EventSeal, table: str, place: tuple[str, str], rows: Sequence[SetAside]) -> list[SetAside]:
    """Find the row at a place, as `verify` or `set-aside` writes places."""
    # Some places exist only after an edit, and the table may be deleted. Then only the text of `verify` can
    # name the row.
    written = [row for row in rows if tuple(row.row.values()) == place]
    if written:
        return written
    (sealed_table,) = registered_tables(seal.datastore, seal.cipher.application, [table])
    typed = typed_place(sealed_table, *place)
    return [row for row in rows if row.place == typed]


def _show(options: Options, rows: Sequence[SetAside]) -> None:
    if options.as_json:
        print_json({"verb": "set-aside", "set_aside": [row.to_json() for row in rows]})
        return
    print_rows_set_aside(rows)
    typer.echo(f"{counted(len(rows), 'row is', 'rows are')} set aside")

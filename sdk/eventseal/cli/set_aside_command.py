"""``eventseal set-aside``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.long_runs import shown_progress
from eventseal.cli.output import confirm, print_failures, print_json, print_rows_set_aside, report
from eventseal.cli.shared_options import Options, Position, SequenceId, with_options
from eventseal.erasure.setting_aside import required_ledger, set_aside, withdraw
from eventseal.errors import ConfigurationError, JobError
from eventseal.rotation.did_you_mean import typed_place
from eventseal.rotation.row_damage import damaged_row, damaged_rows
from eventseal.rotation.sealed_store import registered_tables

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


@with_options("yes", "dry_run")
def set_aside_rows(
    options: Options,
    *,
    table: Annotated[str | None, typer.Option(metavar="TABLE", help="The registered table.")] = None,
    sequence: SequenceId = None,
    position: Position = None,
    every_damaged_row: Annotated[
        bool, typer.Option("--every-damaged-row", help="In place of one row: all of the table that fail.")
    ] = False,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why nothing can save the rows. The ledger keeps it.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Withdraw it, for one row or for all of the table.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show what is set aside.")] = False,
) -> None:
    """
    Accept damaged rows that nothing can save, so that `verify` passes again.

    First restore what a backup has. Then this writes into the erasure ledger which
    rows are lost, and why. It opens each row first, and refuses one that opens, or
    that may be sound because only a key or a KMS is missing. Only exactly these
    rows are excused: one that is changed or deleted fails again. Readers get the
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
        raise ConfigurationError("a row takes all three: --table, --sequence and --position")
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
    """Refuse words that say nothing together."""
    see = "See `eventseal set-aside --help` for examples."
    if listed and (undo or every or reason is not None or place is not None):
        raise ConfigurationError("--list takes --table and nothing else", remedy=see)
    if listed:
        return
    if table is None:
        raise ConfigurationError("name the table: --table", remedy=see)
    if undo and (every or reason is not None):
        raise ConfigurationError("--undo excludes --every-damaged-row and --reason", remedy=see)
    if undo:
        return
    if every == (place is not None):
        raise ConfigurationError(
            "name one row by --sequence and --position, or all by --every-damaged-row", remedy=see
        )
    if reason is None:
        raise ConfigurationError(
            "say why nothing can save the rows: --reason",
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
        confirm(options, f"{_rows(len(found.rows))} about to be set aside as lost.")
    result = set_aside(seal, found, reason=reason, dry_run=options.dry_run)

    def show() -> None:
        print_failures(result.failures)
        did = "would be" if options.dry_run else "were"
        already = f", {found.already:,} were before" * bool(found.already)
        typer.echo(f"{result.done:,} rows {did} set aside{already}, {result.failed:,} failed")

    report(options, result, show)


def _undo(options: Options, seal: EventSeal, table: str, place: tuple[str, str] | None) -> None:
    rows = [row for row in seal.rows_set_aside() if row.table == table]
    if place is not None:
        rows = _at(seal, table, place, rows)
    if not rows:
        raise JobError(f"no such row of {table} is set aside", remedy="List them: eventseal set-aside --list")
    if not options.as_json:
        print_rows_set_aside(rows)
    if not options.dry_run:
        confirm(options, f"{_rows(len(rows))} about to be failures again, unless they open.")
    result = withdraw(seal, rows, dry_run=options.dry_run)
    did = "would be" if options.dry_run else "were"
    report(options, result, lambda: typer.echo(f"{result.done:,} rows {did} withdrawn"))


def _at(seal: EventSeal, table: str, place: tuple[str, str], rows: Sequence[SetAside]) -> list[SetAside]:
    """Find the row at a place that is written as `verify` writes it, or else as `set-aside` reads it."""
    # Only an edit makes some places, and the table may be gone: then what `verify` wrote is all there is.
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
    typer.echo(f"{len(rows):,} rows are set aside")


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"

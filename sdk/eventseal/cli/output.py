"""What a run prints: JSON for programs, columns and results for people, and what it asks them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

from eventseal.cli.exits import ExitCode
from eventseal.errors import ConfigurationError, JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from eventseal.cli.shared_options import Options
    from eventseal.rotation import Failure, JobResult
    from eventseal.rotation.set_aside_rows import SetAside

_SHOWN = 20


def print_json(value: Mapping[str, Any]) -> None:
    """
    Print one JSON object.

    Args:
        value: Of what JSON knows.
    """
    typer.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """
    Show what would move a terminal's cursor or colour its text as escapes.

    Args:
        text: What a row or a person may have put anything into.
    """
    return "".join([char if char.isprintable() else char.encode("unicode_escape").decode() for char in text])


def time_text(moment: datetime | None) -> str:
    """Write a moment to the second; ``""`` if there is none."""
    return "" if moment is None else moment.isoformat(timespec="seconds")


def print_columns(heading: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """
    Print a table in columns, those of numbers flush right.

    Args:
        heading: One word or more for each column.
        rows: As many texts or numbers in each.
    """
    numbers = [any(isinstance(row[column], int) for row in rows) for column in range(len(heading))]
    lines = [
        [f"{cell:,}" if isinstance(cell, int) else printable(cell) for cell in row]
        for row in (heading, *rows)
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for line in lines:
        cells = [
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(line, widths, numbers, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def print_counts(result: JobResult, names: Sequence[str]) -> None:
    """
    Print what a run counted in each table.

    Args:
        result: Of the run.
        names: Of the counts, in the order of the columns.
    """
    if names:
        heading = ("TABLE", *(name.replace("_", " ").upper() for name in names))
        tables = result.by_table.items()
        print_columns(
            heading, [(table, *(counts.get(name, 0) for name in names)) for table, counts in tables]
        )


def counted(result: JobResult, names: Sequence[str]) -> list[str]:
    """Choose those counts that are not zero in every table."""
    return [name for name in names if any(counts.get(name) for counts in result.by_table.values())]


def print_wrappings(result: JobResult) -> None:
    """Print how many wrappings each KEK has."""
    if result.by_kek:
        print_columns(("KEK", "WRAPPINGS"), sorted(result.by_kek.items()))


def print_failures(failures: Sequence[Failure]) -> None:
    """
    Show the first failures, and the first of each class with what it means.

    Args:
        failures: Of a result.
    """
    explained: set[str] = set()
    unseen = 0
    for number, failure in enumerate(failures):
        is_first = failure.error not in explained
        if number >= _SHOWN and not is_first:
            unseen += 1
            continue
        key = "no key" if failure.key_id is None else f"key {failure.key_id}"
        typer.echo(printable(f"{failure.error}: {failure.table} {_place(failure)} ({key})"))
        if is_first:
            explained.add(failure.error)
            typer.echo(f"  {printable(failure.message)}\n  remedy: {printable(failure.remedy)}")
    if unseen:
        typer.echo(f"and {unseen:,} more; --json lists up to 1,000")


def print_rows_set_aside(rows: Sequence[SetAside]) -> None:
    """
    Show the first rows that are set aside, each with its reason.

    Args:
        rows: As the ledger says.
    """
    for row in rows[:_SHOWN]:
        typer.echo(
            printable(f"set aside: {row.table} {_place(row)}, since {time_text(row.at)}: {row.reason}")
        )
    if len(rows) > _SHOWN:
        typer.echo(f"and {len(rows) - _SHOWN:,} more; `eventseal set-aside --list --json` has all")


def _place(row: Failure | SetAside) -> str:
    return " ".join([f"{name}={value}" for name, value in row.row.items()])


def report(options: Options, result: JobResult, print_result: Callable[[], None]) -> None:
    """
    Show what a run did, and exit with what a script needs to know; the arguments are `show_result`'s.

    Raises:
        typer.Exit: Items or keys failed, or are left.
    """
    show_result(options, result, print_result)
    exit_by(result)


def show_result(options: Options, result: JobResult, print_result: Callable[[], None]) -> None:
    """
    Show what a run did.

    Args:
        options: Of the run.
        result: What it did.
        print_result: Shows it to people.
    """
    if options.as_json:
        print_json({**result.to_json(), "dry_run": options.dry_run})
    else:
        print_result()
        if result.leftover:
            typer.echo(printable(result.leftover))


def exit_by(result: JobResult) -> None:
    """
    Exit with what a script needs to know, unless all is well.

    Args:
        result: Shown already.

    Raises:
        typer.Exit: Items or keys failed, or are left.
    """
    if result.failed or result.unfinished:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def confirm(options: Options, what: str, *, show: Callable[[], None] | None = None) -> None:
    """
    Ask a person before anything that cannot be undone; ``--yes`` answers.

    Args:
        options: Of the run.
        what: What is about to happen, as a sentence.
        show: Shows to the person what it concerns.

    Raises:
        ConfigurationError: Nobody can be asked.
        JobError: The person said no.
    """
    if options.yes:
        return
    if show is not None and not options.as_json:
        show()
    if options.as_json or not is_anybody_there():
        why = "The output is JSON" if is_anybody_there() else "Not a terminal"
        raise ConfigurationError(
            f"{what} {why}, so confirmation is impossible. Nothing was changed.",
            remedy="Pass --yes to proceed.",
        )
    if not typer.confirm(f"{what} Is that meant?", err=True):
        raise JobError("Not confirmed. Nothing was changed.", remedy="Nothing has to be done.")


def is_anybody_there() -> bool:
    """Whether standard input is a person's."""
    return sys.stdin.isatty()

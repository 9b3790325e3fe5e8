"""The output of runs: JSON for programs, text and questions for people."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import typer

from eventseal.cli.exits import ExitCode
from eventseal.errors import ConfigurationError, EventSealError, JobError
from eventseal.wording import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from eventseal.cli.shared_options import Options
    from eventseal.rotation import Failure, JobResult
    from eventseal.rotation.set_aside_rows import SetAside

_SHOWN = 20
_LOCAL = "local://"
_key_files: dict[str, str] = {}


def name_key_files(kms_key: Sequence[str]) -> None:
    """
    Show the key files of a setting by their names.

    All later output for people shows them so. The key tables know a key file only by the check value of its
    key.
    """
    from eventseal.kms.key_uris import adapter_class

    _key_files.clear()
    paths = [uri.removeprefix(_LOCAL) for uri in kms_key]
    names = Counter(PurePath(path).name for path in paths)
    for uri, path in zip(kms_key, paths, strict=True):
        if uri.startswith(_LOCAL):
            # The command that needs the file reports that it is missing or refused.
            with suppress(EventSealError, ImportError):
                kind: Any = adapter_class(uri)
                stored = kind.stored_uri(uri)
                name = PurePath(path).name
                _key_files[stored] = f"{name if names[name] == 1 else path} ({stored[: len(_LOCAL) + 4]}…)"


def print_json(value: Mapping[str, Any]) -> None:
    """
    Print one JSON object.

    Args:
        value: A mapping that JSON can represent.
    """
    typer.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """
    Return text as people read it, with key files by name.

    Args:
        text: Text from a row or a person, which may contain anything.
    """
    for stored, name in _key_files.items():
        text = text.replace(stored, name)
    return verbatim(text)


def verbatim(text: str) -> str:
    """
    Return a remedy or command as people read it, with whole URIs.

    People copy commands and URIs from it. Control characters become escapes, since they could move the
    terminal's cursor or colour the text.

    Args:
        text: Text from a row or a person, which may contain anything.
    """
    return "".join([char if char.isprintable() else char.encode("unicode_escape").decode() for char in text])


def time_text(at: datetime | None) -> str:
    """Return a time to the second for JSON, or ``""`` for ``None``."""
    return "" if at is None else at.isoformat(timespec="seconds")


def time_shown(at: datetime | None) -> str:
    """Return a time in UTC for people, or ``""`` for ``None``."""
    return "" if at is None else moment(at)


def print_columns(heading: Sequence[str], rows: Sequence[Sequence[str | int]]) -> None:
    """
    Print a table in columns, with numbers aligned to the right.

    Args:
        heading: The titles of the columns.
        rows: The rows, each with a text or a number for every column.
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
    Print the counts of a run for each table.

    Args:
        result: The result of the run.
        names: The names of the counts, in the order of the columns.
    """
    if names:
        heading = ("TABLE", *(name.replace("_", " ").upper() for name in names))
        tables = result.by_table.items()
        print_columns(
            heading, [(table, *(counts.get(name, 0) for name in names)) for table, counts in tables]
        )


def nonzero(result: JobResult, names: Sequence[str]) -> list[str]:
    """Return the names of counts that are not zero in every table."""
    return [name for name in names if any(counts.get(name) for counts in result.by_table.values())]


def print_wrappings(result: JobResult) -> None:
    """Print the number of wrappings for each KEK."""
    if result.by_kek:
        print_columns(("KMS KEY", "WRAPPINGS"), sorted(result.by_kek.items()))


def print_failures(failures: Sequence[Failure]) -> None:
    """
    Show the first failures, and explain the first of each class.

    Args:
        failures: The failures of a result.
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
            typer.echo(f"  {printable(failure.message)}\n  remedy: {verbatim(failure.remedy)}")
    if unseen:
        typer.echo(f"and {unseen:,} more. --json lists up to 1,000.")


def print_rows_set_aside(rows: Sequence[SetAside]) -> None:
    """
    Show the first rows that are set aside, each with its reason.

    Args:
        rows: The rows from the ledger.
    """
    for row in rows[:_SHOWN]:
        typer.echo(printable(f"set aside: {row.table} {_place(row)}, since {moment(row.at)}: {row.reason}"))
    if len(rows) > _SHOWN:
        typer.echo(f"and {len(rows) - _SHOWN:,} more. To list all: eventseal set-aside --list --json")


def _place(row: Failure | SetAside) -> str:
    return " ".join([f"{name}={value}" for name, value in row.row.items()])


def report(options: Options, result: JobResult, print_result: Callable[[], None]) -> None:
    """
    Show the result of a run, and exit with its code.

    The arguments are those of `show_result`.

    Raises:
        typer.Exit: Items or keys failed, or are left.
    """
    show_result(options, result, print_result)
    exit_by(result)


def show_result(options: Options, result: JobResult, print_result: Callable[[], None]) -> None:
    """
    Show the result of a run.

    Args:
        options: The global options of the run.
        result: The result.
        print_result: A function that shows the result to people.
    """
    if options.as_json:
        print_json({**result.to_json(), "dry_run": options.dry_run})
    else:
        print_result()
        if result.leftover:
            typer.echo(printable(result.leftover))


def exit_by(result: JobResult) -> None:
    """
    Exit with the code that scripts need, unless the run did everything.

    Args:
        result: The result, which was shown before.

    Raises:
        typer.Exit: Items or keys failed, or are left.
    """
    if result.failed or result.unfinished:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def confirm(options: Options, what: str, *, show: Callable[[], None] | None = None) -> None:
    """
    Ask a person before an action that cannot be undone.

    With ``--yes`` no question is asked.

    Args:
        options: The global options of the run.
        what: A sentence that says what is about to happen.
        show: A function that shows to the person what is concerned.

    Raises:
        ConfigurationError: Nobody can answer: the output is JSON, or there is no terminal.
        JobError: The person did not confirm.
    """
    if options.yes:
        return
    if show is not None and not options.as_json:
        show()
    if options.as_json or not is_anybody_there():
        why = "The output is JSON" if is_anybody_there() else "Not a terminal"
        raise ConfigurationError(
            f"{what[:1].lower()}{what[1:]} {why}, so confirmation is impossible. Nothing was changed.",
            remedy="Pass --yes to proceed.",
        )
    if not typer.confirm(f"{printable(what)} Continue?", err=True):
        raise JobError("Not confirmed. Nothing was changed.", remedy="You need not do anything.")


def is_anybody_there() -> bool:
    """Check whether a person can answer: standard input is a terminal."""
    return sys.stdin.isatty()

"""Results of the verbs, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from eventseal.cli.exit_codes import ExitCode
from eventseal.cli.output import print_json, printable
from eventseal.rotation.uncertain_rows import GIVE_UP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eventseal.cli.options import Options
    from eventseal.rotation import Failure, JobResult
    from eventseal.rotation.rows_set_aside import SetAside

_SHOWN_FAILURES = 20


def tell(options: Options, result: JobResult, print_result: Callable[[], None]) -> None:
    """
    Tell what a verb did.

    Args:
        options: Of the run.
        result: What it did.
        print_result: Tells it to people.
    """
    if options.as_json:
        print_json({**result.to_json(), "dry_run": options.dry_run})
    else:
        print_result()
        if result.leftover:
            typer.echo(printable(result.leftover))


def finish(options: Options, result: JobResult, print_result: Callable[[], None]) -> None:
    """
    Tell what a verb did, and exit with what a script needs to know; the arguments are those of :func:`tell`.

    Raises:
        typer.Exit: Items or keys failed, or are left.
    """
    tell(options, result, print_result)
    exit_by(result)


def exit_by(result: JobResult) -> None:
    """
    Exit with what a script needs to know, unless all is well.

    Args:
        result: Told already.

    Raises:
        typer.Exit: Items or keys failed, or are left.
    """
    if result.failed or result.unfinished:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


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
        if number >= _SHOWN_FAILURES and not is_first:
            unseen += 1
            continue
        typer.echo(printable(_line(failure)))
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
    for row in rows[:_SHOWN_FAILURES]:
        place = " ".join([f"{name}={value}" for name, value in row.row.items()])
        since = row.at.isoformat(timespec="seconds")
        typer.echo(printable(f"set aside: {row.table} {place}, since {since}: {row.reason}"))
    if len(rows) > _SHOWN_FAILURES:
        typer.echo(f"and {len(rows) - _SHOWN_FAILURES:,} more; `eventseal set-aside --list --json` has all")


def print_retired_rows(result: JobResult, *, did: str) -> None:
    """
    Show the rows that are set aside and that a retire met.

    Args:
        result: Of the retire.
        did: ``were``, or ``would be``.
    """
    print_rows_set_aside(result.given_up or result.set_aside)
    if result.given_up:
        typer.echo(f"{len(result.given_up):,} rows that are set aside {did} given up with their keys")
    if result.set_aside:
        typer.echo(f"{len(result.set_aside):,} rows that are set aside keep keys. {GIVE_UP}")


def _line(failure: Failure) -> str:
    place = " ".join([f"{name}={value}" for name, value in failure.row.items()])
    key = "no key" if failure.key_id is None else f"key {failure.key_id}"
    return f"{failure.error}: {failure.table} {place} ({key})"

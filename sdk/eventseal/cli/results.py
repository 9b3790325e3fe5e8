"""Results of the verbs, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from eventseal.cli.output import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.rotation import Failure

_SHOWN_FAILURES = 20


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


def _line(failure: Failure) -> str:
    place = " ".join([f"{name}={value}" for name, value in failure.row.items()])
    key = "no key" if failure.key_id is None else f"key {failure.key_id}"
    return f"{failure.error}: {failure.table} {place} ({key})"

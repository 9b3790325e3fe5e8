"""What goes to standard output: JSON for programs, columns for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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


def print_columns(
    heading: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: frozenset[str] = frozenset()
) -> None:
    """
    Print a table in columns.

    Args:
        heading: One word or more for each column.
        rows: As many texts in each.
        numbers: Which columns are flush right, by heading.
    """
    lines = [[printable(text) for text in row] for row in (heading, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for line in lines:
        cells = [
            text.rjust(width) if name in numbers else text.ljust(width)
            for text, width, name in zip(line, widths, heading, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def print_facts(facts: Mapping[str, str]) -> None:
    """
    Print names and values, one a line.

    Args:
        facts: In the order in which they are printed.
    """
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name.ljust(width)}  {printable(value)}")

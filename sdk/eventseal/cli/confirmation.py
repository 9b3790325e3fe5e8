"""Asking before anything that cannot be undone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from eventseal.errors import ConfigurationError, JobError

if TYPE_CHECKING:
    from eventseal.cli.options import Options


def confirm(options: Options, what: str) -> None:
    """
    Ask a person whether *what* is meant; with ``--yes`` it is.

    Args:
        options: Of the run.
        what: Is about to happen, as a sentence.

    Raises:
        ConfigurationError: Nobody can be asked.
        JobError: The person said no.
    """
    if options.yes:
        return
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

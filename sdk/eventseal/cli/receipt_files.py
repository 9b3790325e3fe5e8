"""Where a command puts its receipt: refused before anything is done, and never in place of another."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from eventseal.errors import ConfigurationError, JobError

ReceiptFile = Annotated[
    Path | None,
    typer.Option(
        "--receipt", metavar="FILE", help="Write the receipt: JSON if it ends in .json, else a page."
    ),
]


class Receipt(Protocol):
    """A receipt in its two forms."""

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        ...

    def to_html(self) -> str:
        """Give it as a page."""
        ...


def refuse_receipt_file(file: Path | None) -> None:
    """
    Refuse a place where no receipt can be written, before there is anything to tell in it.

    Args:
        file: As it was named, if it was.

    Raises:
        ConfigurationError: It is there already, or its folder is not, or takes no file.
    """
    if file is None:
        return
    if os.path.lexists(file):
        raise ConfigurationError(f"{file} is there already; a receipt is never overwritten")
    if not file.parent.is_dir():
        raise ConfigurationError(f"there is no folder {file.parent} for the receipt")
    try:
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise ConfigurationError(
            f"the receipt {file} could not be written: {error.strerror}",
            remedy="Name a file in a folder that you may write to.",
        ) from error


def write_receipt(file: Path | None, receipt: Receipt | None, *, done: str, remedy: str) -> None:
    """
    Write the receipt of what was done, for its owner alone to read; where there is none, say so.

    Args:
        file: As it was named, if it was.
        receipt: Of what was done; ``None`` if it is not complete.
        done: What stays done if the receipt cannot be written.
        remedy: How to come by it then.

    Raises:
        JobError: It cannot be written.
    """
    if file is None:
        return
    if receipt is None:
        typer.echo(f"it is not complete, and no receipt was written to {file}: run it again", err=True)
        return
    text = json.dumps(receipt.to_json(), indent=2) if file.suffix == ".json" else receipt.to_html()
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JobError(_unwritten(file, error, done), remedy=remedy) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
    except OSError as error:
        file.unlink()  # half a receipt would look like one
        raise JobError(_unwritten(file, error, done), remedy=remedy) from error


def _unwritten(file: Path, error: OSError, done: str) -> str:
    return f"{done}, but the receipt {file} cannot be written: {error.strerror}"

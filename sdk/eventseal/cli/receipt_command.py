"""``eventseal receipt``, and writing receipts for other commands."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.exits import ExitCode
from eventseal.cli.output import print_json, printable
from eventseal.cli.shared_options import Options, command_group, with_options
from eventseal.erasure.receipt_checks import check_receipt
from eventseal.errors import ConfigurationError, JobError

if TYPE_CHECKING:
    from eventseal.erasure.epoch_receipt import EpochReceipt
    from eventseal.erasure.receipt_checks import CheckedReceipt
    from eventseal.erasure.receipts import Receipt, VerifyReceipt

EXAMPLES = """\b
Examples:
  eventseal receipt check verification.json
  eventseal receipt check customer-42.json --json
"""

ReceiptFile = Annotated[
    Path | None,
    typer.Option(
        "--receipt", metavar="FILE", help="Write the receipt to FILE: JSON if it ends in .json, else HTML."
    ),
]

receipt = command_group("receipt", "Check the receipts that other commands write.", EXAMPLES)


@receipt.command(epilog=EXAMPLES)
@with_options()
def check(
    options: Options,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The receipt, as JSON.")],
) -> None:
    """
    Check that a receipt is authentic, field by field.

    The receipt of a verification has a MAC. The receipt of an erasure or an epoch is
    compared with the entry of the ledger that it names. The exit code is 1 if a
    field was changed, or if an authentic receipt reports a failure.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error.strerror}",
            remedy="Name a receipt that exists and that you can read.",
        ) from None
    with options.open_seal() as seal:
        checked = check_receipt(seal, text, ledger=seal.ledger)
    if options.as_json:
        print_json(
            {
                "verb": "receipt check",
                "receipt": checked.kind,
                "authentic": checked.is_authentic,
                "by": checked.by,
                "partial": checked.is_partial,
                "failed": checked.failed if checked.is_authentic else None,
                "differs": list(checked.differs),
            }
        )
    else:
        _print(file, checked)
    if not checked.is_authentic or checked.failed:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def _print(file: Path, checked: CheckedReceipt) -> None:
    if not checked.is_authentic:
        fields = printable(", ".join(checked.differs))
        differing = f"Fields that differ from the ledger: {fields}"
        how = "Its MAC does not match." if checked.by == "mac" else differing
        typer.echo(
            f"{printable(str(file))} is not authentic. {how}\n"
            "It was changed, or belongs to another application or ledger."
        )
        return
    typer.echo(f"{printable(str(file))} is authentic ({printable(checked.kind)})")
    if checked.is_partial:
        typer.echo("It is partial: the run did not open every item of every table.")
    if checked.failed:
        typer.echo(f"The verification failed. Items, keys or tables with a failure: {checked.failed:,}")


def refuse_receipt_file(file: Path | None) -> None:
    """
    Refuse a receipt file that cannot be written.

    The command calls it before it does anything else.

    Args:
        file: The file that was named, or ``None``.

    Raises:
        ConfigurationError: The file exists already, its directory does not exist, or the directory cannot be
            written.
    """
    if file is None:
        return
    if os.path.lexists(file):
        raise ConfigurationError(
            f"the receipt {file} exists already, and EventSeal does not overwrite it",
            remedy="Name another file.",
        )
    if not file.parent.is_dir():
        raise ConfigurationError(
            f"there is no directory {file.parent} for the receipt", remedy="Create it, or name another file."
        )
    try:
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise ConfigurationError(
            f"the receipt {file} cannot be written: {error.strerror}",
            remedy="Choose a file in a directory that you can write to.",
        ) from error


def write_receipt(
    file: Path | None, receipt: EpochReceipt | Receipt | VerifyReceipt | None, *, done: str, remedy: str
) -> None:
    """
    Write a receipt, which only its owner can read.

    If there is no receipt, report that on standard error.

    Args:
        file: The file that was named, or ``None``.
        receipt: The receipt, or ``None`` if the run is not complete.
        done: A clause that says what is done, even if the receipt cannot be written.
        remedy: A sentence that says how to get the receipt in that case.

    Raises:
        JobError: The receipt cannot be written.
    """
    if file is None:
        return
    if receipt is None:
        typer.echo(f"Not complete, so no receipt was written to {file}. Run the command again.", err=True)
        return
    text = json.dumps(receipt.to_json(), indent=2) if file.suffix == ".json" else receipt.to_html()
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        raise JobError(_unwritten(file, error, done), remedy=remedy) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
    except OSError as error:
        file.unlink()  # half a receipt would look like a whole one
        raise JobError(_unwritten(file, error, done), remedy=remedy) from error


def _unwritten(file: Path, error: OSError, done: str) -> str:
    return f"{done}, but the receipt {file} cannot be written: {error.strerror}"

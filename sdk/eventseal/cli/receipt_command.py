"""``eventseal receipt``, and how other commands write the receipts that it checks."""

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
        "--receipt", metavar="FILE", help="Write the receipt: JSON if it ends in .json, else a page."
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
    Compare every field of a receipt with what was written then.

    A verification is compared by its MAC; an erasure or an epoch with the entry of
    the ledger that it names. The exit code is 1 if a field was changed, or if the
    receipt is authentic and says that something had failed.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
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
        typer.echo(
            f"{file} is not authentic, by the {'MAC' if checked.by == 'mac' else 'ledger'}: {fields}\n"
            "It was changed, or belongs to another application or ledger."
        )
        return
    typer.echo(f"{file} is authentic ({checked.kind})")
    if checked.is_partial:
        typer.echo("It is partial: not every item of every table was opened.")
    if checked.failed:
        typer.echo(f"The verification failed: {checked.failed:,} items, keys or tables.")


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


def write_receipt(
    file: Path | None, receipt: EpochReceipt | Receipt | VerifyReceipt | None, *, done: str, remedy: str
) -> None:
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

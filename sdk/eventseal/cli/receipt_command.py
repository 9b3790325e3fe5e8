"""``eventseal receipt``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read at run time, for the options' types
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.exit_codes import ExitCode
from eventseal.cli.options import Config, Json, Options
from eventseal.cli.output import print_json, printable
from eventseal.erasure.receipt_checks import check_receipt
from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from eventseal.erasure.receipt_checks import CheckedReceipt

EXAMPLES = """\b
Examples:
  eventseal receipt check verification.json
  eventseal receipt check customer-42.json --json
"""

receipt = typer.Typer(
    name="receipt",
    help="Check the receipts that other commands write.",
    epilog=EXAMPLES,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
)


@receipt.command(epilog=EXAMPLES)
def check(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The receipt, as JSON.")],
    *,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """
    Compare every field of a receipt with what was written then.

    A verification is compared by its MAC; an erasure or an epoch with the entry of
    the ledger that it names. The exit code is 1 if a field was changed, or if the
    receipt is authentic and says that something had failed.
    """
    options = Options.of(context, config=config, as_json=as_json)
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

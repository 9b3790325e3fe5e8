"""``eventseal reopen``."""

from __future__ import annotations

from typing import Annotated

import typer

from eventseal.cli.output import printable, report
from eventseal.cli.shared_options import Options, with_options
from eventseal.cli.shred_command import refuse_unknown_scope
from eventseal.erasure import reopen as reopen_scope
from eventseal.errors import ConfigurationError

EXAMPLES = """\b
Examples:
  eventseal reopen subject:customer-42
"""


@with_options("yes")
def reopen(
    options: Options,
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="One that was shredded.")],
) -> None:
    """
    Let a scope that was shredded have keys again. What was shredded stays so.

    The ledger is told, so that what is sealed from now on outlives a restore.
    """
    if options.dry_run:  # before the command it is every command's, and here it would be ignored
        raise ConfigurationError("reopen has no dry run: it destroys nothing", remedy="Leave out --dry-run.")
    with options.open_seal() as seal:
        refuse_unknown_scope(seal, scope)
        result = reopen_scope(seal, scope)
    did = "is open again" if result.done else "was open"
    report(options, result, lambda: typer.echo(f"scope {printable(scope)} {did}"))

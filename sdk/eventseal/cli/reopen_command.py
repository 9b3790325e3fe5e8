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
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="A scope that was shredded.")],
) -> None:
    """
    Let a shredded scope have keys again. Its erased items stay erased.

    The ledger records it, so that new items of the scope survive a restore.
    """
    if options.dry_run:  # given before the command, where every command accepts it
        raise ConfigurationError(
            "reopen has no --dry-run, because it destroys nothing", remedy="Leave out --dry-run."
        )
    with options.open_seal() as seal:
        refuse_unknown_scope(seal, scope)
        result = reopen_scope(seal, scope)
    did = "is open again" if result.done else "was open already"
    report(options, result, lambda: typer.echo(f"Scope {printable(scope)} {did}."))

"""``eventseal reopen``."""

from __future__ import annotations

from typing import Annotated

import typer

from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.output import printable
from eventseal.cli.results import finish
from eventseal.erasure import reopen as reopen_scope
from eventseal.errors import ConfigurationError
from eventseal.rotation.did_you_mean import refuse_unknown_scopes

EXAMPLES = """\b
Examples:
  eventseal reopen subject:customer-42
"""


def reopen(
    context: typer.Context,
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="One that was shredded.")],
    *,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Let a scope that was shredded have keys again. What was shredded stays so.

    The ledger is told, so that what is sealed from now on outlives a restore.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
    if options.dry_run:
        raise ConfigurationError("reopen has nothing to show before it is done: it destroys nothing")
    with options.open_seal() as seal:
        refuse_unknown_scopes(
            seal.datastore,
            seal.settings.application,
            [scope],
            stored_as=seal.keyring.scope_named,
            guess=False,
        )
        result = reopen_scope(seal, scope)

    def show() -> None:
        did = "is open again" if result.done else "was open"
        typer.echo(f"scope {printable(scope)} {did}")

    finish(options, result, show)

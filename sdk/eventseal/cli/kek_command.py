"""``eventseal kek``."""

from __future__ import annotations

from typing import Annotated

import typer

from eventseal.cli.output import print_json
from eventseal.cli.shared_options import Options, command_group, with_options
from eventseal.erasure.epoch_keks import refuse_needed_by_ledger
from eventseal.rotation import refuse_needed_kek

EXAMPLES = """\b
Examples:
  eventseal kek check local://old.key
  eventseal kek check aws-kms://arn:aws:kms:eu-west-1:111122223333:key/...
"""

kek = command_group("kek", "Ask about KMS keys that wrap data keys.", EXAMPLES)


@kek.command(epilog=EXAMPLES)
@with_options()
def check(
    options: Options,
    uri: Annotated[str, typer.Argument(metavar="URI", help="The KMS key, as the setting names it.")],
    *,
    kek_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Whether this version of it may go.")
    ] = None,
) -> None:
    """
    Say whether a KMS key, or a version of it, may go. It destroys nothing.

    It opens every live key without that KMS key. The exit code is 0 if all opened,
    else 4: keep the KMS key then.
    """
    with options.open_seal() as seal:
        left = refuse_needed_kek(seal, uri, kek_version)
        refuse_needed_by_ledger(seal, uri, kek_version)
    if options.as_json:
        # "retire": scripts know this answer from when it was an option of that command.
        print_json({"verb": "retire", "kek": uri, "kek_version": kek_version, "needed": 0, "wrappings": left})
        return
    what = uri if kek_version is None else f"version {kek_version} of {uri}"
    typer.echo(f"{what} may go: {'no live key needs it' if left else 'no key is wrapped under it'}")
    if left:
        typer.echo(f"{left:,} wrappings under it are left; every key was just opened without it")

"""``eventseal kek``."""

from __future__ import annotations

from typing import Annotated

import typer

from eventseal.cli.output import print_json, printable
from eventseal.cli.shared_options import Options, command_group, with_options
from eventseal.erasure.epoch_keks import refuse_needed_by_ledger
from eventseal.kms.key_uris import without_query
from eventseal.rotation import refuse_needed_kek

EXAMPLES = """\b
Examples:
  eventseal kek check local://old.key
  eventseal kek check aws-kms://arn:aws:kms:eu-west-1:111122223333:key/...
"""

kek = command_group("kek", "Check the KMS keys that wrap data keys.", EXAMPLES)


@kek.command(epilog=EXAMPLES)
@with_options()
def check(
    options: Options,
    uri: Annotated[str, typer.Argument(metavar="URI", help="The KMS key, as in the setting kms_key.")],
    *,
    kek_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Check only this version of the KMS key.")
    ] = None,
) -> None:
    """
    Check whether you can delete a KMS key or a version.

    It unwraps every key of the application that is not destroyed, without using
    that KMS key or version. If all keys open, the exit code is 0. If not, it is 4,
    and you must keep the KMS key. The command deletes nothing.
    """
    with options.open_seal() as seal:
        left = refuse_needed_kek(seal, uri, kek_version)
        refuse_needed_by_ledger(seal, uri, kek_version)
    uri = without_query(uri)
    if options.as_json:
        # "retire": this check was once an option of that command, and scripts know its output.
        print_json({"verb": "retire", "kek": uri, "kek_version": kek_version, "needed": 0, "wrappings": left})
        return
    if kek_version is None:
        typer.echo(f"You can delete {printable(uri)}. If kms_key lists it, remove it there first.")
    else:
        typer.echo(f"You can delete version {kek_version} of {printable(uri)}.")
    if not left:
        typer.echo("No key is wrapped under it.")
        return
    typer.echo("No key needs it: every key was just unwrapped without it.")
    typer.echo(f"Wrappings under it that remain in the key tables: {left:,}")

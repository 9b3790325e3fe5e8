"""The command's root: its global options, its subcommands and its entry point."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

from eventseal.cli import (
    doctor_command,
    fields_command,
    init_command,
    inspect_command,
    keys_command,
    migrate_command,
    receipt_command,
    reencrypt_command,
    reopen_command,
    repair_command,
    retire_command,
    rewrap_command,
    roll_epoch_command,
    rotate_command,
    set_aside_command,
    shred_command,
    status_command,
    verify_command,
)
from eventseal.cli.group import EventSealGroup
from eventseal.cli.options import Config, DryRun, Json, Options, Yes

_HELP = """Seal event stores under keys of a KMS, and look after the keys.

\b
Settings come from eventseal.toml (or --config, or EVENTSEAL_CONFIG) and from
EVENTSEAL_* variables, which win. The global options may also stand behind
the command.

\b
Begin with:
  eventseal init --kms-key local://dev.key --store-url sqlite:///shop.sqlite
  eventseal doctor
  eventseal rotate --reencrypt --retire
"""

_EXIT_CODES = """\b
Exit codes: 0 done; 1 done, but items or keys failed; 2 wrong use, settings
or rights; 3 try again, the KMS or the database is away; 4 refused, something
still needs what was to go; 130 interrupted.
"""

app = typer.Typer(
    name="eventseal",
    cls=EventSealGroup,
    help=_HELP,
    epilog=_EXIT_CODES,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    # A traceback with locals would show keys and plaintext.
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eventseal {version('eventseal')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    *,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    del show_version  # its callback did all
    context.obj = Options(config=config, as_json=as_json, yes=yes, dry_run=dry_run)


app.command(epilog=init_command.EXAMPLES)(init_command.init)
app.command(epilog=doctor_command.EXAMPLES)(doctor_command.doctor)
app.command(epilog=keys_command.EXAMPLES)(keys_command.keys)
app.command(epilog=inspect_command.EXAMPLES)(inspect_command.inspect)
app.command(epilog=rotate_command.EXAMPLES)(rotate_command.rotate)
app.command(epilog=rewrap_command.EXAMPLES)(rewrap_command.rewrap)
app.command(epilog=roll_epoch_command.EXAMPLES)(roll_epoch_command.roll_epoch)
app.command(epilog=reencrypt_command.EXAMPLES)(reencrypt_command.reencrypt)
app.command(epilog=migrate_command.EXAMPLES)(migrate_command.migrate)
app.command(epilog=retire_command.EXAMPLES)(retire_command.retire)
app.command(epilog=verify_command.EXAMPLES)(verify_command.verify)
app.command(epilog=repair_command.EXAMPLES)(repair_command.repair)
app.command("set-aside", epilog=set_aside_command.EXAMPLES)(set_aside_command.set_aside_rows)
app.command(epilog=shred_command.EXAMPLES)(shred_command.shred)
app.command(epilog=reopen_command.EXAMPLES)(reopen_command.reopen)
app.command(epilog=status_command.EXAMPLES)(status_command.status)
app.command(epilog=fields_command.EXAMPLES)(fields_command.fields)
app.add_typer(receipt_command.receipt)


def run() -> None:
    """Run the command."""
    # Workers begin with `python -c`, which would look for every module in the working directory first.
    os.environ["PYTHONSAFEPATH"] = "1"
    app()

"""``eventseal init``."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventseal.cli.output import print_json, printable
from eventseal.cli.shared_options import Options, load_modules, with_options
from eventseal.configuration.assembly import DEFAULT_NAME, default_ledger
from eventseal.configuration.initialise import initialise
from eventseal.configuration.loading import (
    DEFAULT_FILE,
    environment_names,
    load_settings,
    settings_file,
    settings_from,
    with_urls_hidden,
)
from eventseal.configuration.setup_sql import setup_sql
from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from eventseal.configuration.upgrade import SetupStep

_QUESTIONS = {
    "kms_key": ("The KMS key, as a key URI (local://dev.key creates a key file, for development)", None),
    "store_url": ("The items' database, as an SQLAlchemy URL", "sqlite:///events.sqlite"),
    "application": ("The application's name", "default"),
}

_LEDGER_QUESTION = 'The erasure ledger: a file, or the URL of a separate database ("none" for no ledger)'
_NO_LEDGER = "none"

EXAMPLES = """\b
Examples:
  eventseal init
  eventseal init --kms-key local://dev.key --store-url sqlite:///shop.sqlite
  eventseal init --kms-key aws-kms://arn:aws:kms:eu-west-1:111122223333:key/... \\
      --store-url postgresql://shop@db/shop --application shop --yes
  eventseal init --ledger /var/lib/shop/erasures.jsonl --scope-digest
  eventseal init --dry-run --json
  eventseal init --sql | psql shop
"""


@with_options("yes", "dry_run")
def init(
    options: Options,
    *,
    kms_key: Annotated[
        list[str] | None,
        typer.Option(metavar="URI", help="The KMS key. Repeatable: the first one creates new keys."),
    ] = None,
    store_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The items' database, as an SQLAlchemy URL.")
    ] = None,
    key_store_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The keys' database, if it is not the items' database.")
    ] = None,
    application: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The application's name. Every key and item is bound to it."),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:CLASS", help="A record class that you wrote. Repeatable."),
    ] = None,
    eventsourcing_table: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A table of the eventsourcing library. Repeatable."),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="The erasure ledger: a file, or the URL of a separate database."),
    ] = None,
    scope_digest: Annotated[
        bool,
        typer.Option("--scope-digest", help="Store digests of scopes, which may be personal. Permanent."),
    ] = False,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL that creates what is missing, then exit.")
    ] = False,
) -> None:
    """
    Write settings, check the KMS, create tables and first keys.

    It checks everything before it writes anything. Existing things stay as they
    are: if you run it again, it changes nothing and says so. It adds triggers and
    an index to tables of the eventsourcing library. If an earlier release created
    the store, run `eventseal upgrade` instead. If only an administrator may create
    tables, run the SQL that --sql prints as that administrator, then run `init`.
    """
    given = {
        "kms_key": kms_key[0] if kms_key and len(kms_key) == 1 else kms_key,
        "store_url": store_url,
        "key_store_url": key_store_url,
        "application": application,
        "tables": table,
        "eventsourcing_tables": eventsourcing_table,
        "ledger": ledger,
        "scope_digest": scope_digest,
    }
    settings = {name: value for name, value in given.items() if value}
    load_modules(tables=table or ())
    with suppress(ConfigurationError):  # `initialise` checks the file, together with the options
        options.settings()
    if sql:
        _print_sql(setup_sql(options.config, **settings), options)
        return
    steps = initialise(options.config, dry_run=options.dry_run, **_asked(settings, options))
    if not options.dry_run:
        options.settings()  # the key file exists now, and is shown by its name
    if options.as_json:
        print_json(_as_json(steps, dry_run=options.dry_run))
    else:
        _print(steps, dry_run=options.dry_run)
    _mention_ledger(options)


def _print_sql(statements: dict[str, list[str]], options: Options) -> None:
    if options.as_json:
        print_json({"verb": "init", "sql": statements})
        return
    for database, missing in statements.items():
        typer.echo(f"-- {printable(database)}{'' if missing else ' (nothing is missing)'}")
        for statement in missing:
            typer.echo(f"{statement};")


def _asked(settings: dict[str, Any], options: Options) -> dict[str, Any]:
    """
    Ask a person for the settings that a new settings file needs.

    With ``--yes`` the ledger gets its default.
    """
    file = settings_file(options.config) or Path(DEFAULT_FILE)
    if file.exists() or options.as_json:
        return settings
    in_environment = environment_names().keys()
    asks = not options.yes and sys.stdin.isatty()
    for name, (question, default) in _QUESTIONS.items() if asks else ():
        if name not in {*settings, *in_environment}:
            settings[name] = typer.prompt(question, default=default, err=True)
    is_written = bool(settings.keys() - in_environment)  # else the environment has everything, also a ledger
    if is_written and (asks or options.yes) and "ledger" not in {*settings, *in_environment}:
        place = default_ledger(settings_from(None, **with_urls_hidden(settings)), file)
        if asks:
            place = typer.prompt(_LEDGER_QUESTION, default=place or _NO_LEDGER, err=True)
        if place not in {None, _NO_LEDGER}:
            settings["ledger"] = place
    return settings


def _mention_ledger(options: Options) -> None:
    """If there is no ledger, print how to configure one."""
    file = settings_file(options.config) or Path(DEFAULT_FILE)
    if not options.dry_run and load_settings(options.config).ledger is None:
        typer.echo(
            "No erasure ledger is configured. Without one, a restore of the keys undoes erasures, and you "
            f'cannot set damaged rows aside. Add a line to {file}: ledger = "{DEFAULT_NAME}". Then run '
            "`eventseal init` again.",
            err=True,
        )


def _as_json(steps: list[SetupStep], *, dry_run: bool) -> dict[str, Any]:
    return {
        "verb": "init",
        "dry_run": dry_run,
        "changed": any(step.changed for step in steps),
        "steps": [{"name": step.name, "changed": step.changed, "detail": step.detail} for step in steps],
    }


def _print(steps: list[SetupStep], *, dry_run: bool) -> None:
    created = "would create" if dry_run else "created"
    for step in steps:
        typer.echo(f"{created if step.changed else 'exists':{len(created)}}  {printable(step.detail)}")
    if not any(step.changed for step in steps):
        typer.echo("Nothing was changed: everything exists.")

"""``eventseal migrate``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated
from uuid import UUID  # noqa: TC003 - read at run time, for the options' types

import typer

from eventseal.cli.application_modules import working_directory_last
from eventseal.cli.migrating import (
    copied,
    migrated,
    print_migrated,
    said_of_beginning,
    said_of_copy,
    said_of_end,
    said_of_migration,
)
from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.results import finish
from eventseal.errors import ConfigurationError
from eventseal.keys.records import DEFAULT_SCOPE
from eventseal.rotation import begin_migration, finish_migration
from eventseal.rotation.jobs.resealers import function_named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eventseal.rotation.jobs.old_items import ScopeOf

EXAMPLES = """\b
Examples:
  eventseal migrate --begin
  eventseal migrate --dry-run
  eventseal migrate --workers 4 --items-per-second 5000
  eventseal migrate --key-scope-function shop.migration:tenant_of
  eventseal migrate --finish
  eventseal migrate --copy integer_sequenced_items
"""


def migrate(
    context: typer.Context,
    *,
    begin: Annotated[
        bool, typer.Option("--begin", help="First: let readers take the formats of old_formats too.")
    ] = False,
    finish_it: Annotated[
        bool, typer.Option("--finish", help="Last: prove that nothing old is left, then refuse it.")
    ] = False,
    copy: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="Copy this table of releases 1 to 7, from old_store_url."),
    ] = None,
    into: Annotated[
        str | None, typer.Option(metavar="TABLE", help="With --copy: a table of the store's own.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="With --copy: what a column is called there; several times."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="With --copy: only rows with this value; several times."),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this registered table; several times.")
    ] = None,
    key_scope: Annotated[
        str | None,
        typer.Option(metavar="SCOPE", help="Whose keys seal the items; by default those of application."),
    ] = None,
    key_scope_function: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Gives an item's scope from its place and its JSON."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Items in a transaction at most; 1000, or 500 with --copy.")
    ] = None,
    items_per_second: Annotated[
        float | None, typer.Option(metavar="RATE", help="Not faster than this, all workers together.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the work.")] = 1,
    resume: Annotated[
        UUID | None, typer.Option(metavar="JOB", help="Go on with this job; `status` lists them.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Bring items in plain, or of older ciphers, under the keys of a KMS.

    In three steps, while the application runs: --begin, then, when every process
    reads both and writes envelopes, the migration itself, then --finish. The
    setting old_formats names the formats, and where their keys are: no key stands
    on a command line. Items of the eventsourcing library's releases 8 and 9 stay
    in their rows; tables of older releases are copied with --copy.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
    work = {
        "--key-scope": key_scope,
        "--key-scope-function": key_scope_function,
        "--items-per-second": items_per_second,
        "--workers": workers != 1,
        "--resume": resume,
    }
    of_copies = {"--into": into, "--column": column, "--only": only}
    _refuse_together(begin=begin, finish_it=finish_it, work=work)
    _check_copying(
        copy,
        begin or finish_it,
        of_copies,
        {**work, "--table": table, "--key-scope": None, "--key-scope-function": None},
    )
    scope: str | ScopeOf | None = key_scope
    if key_scope_function is not None:
        with working_directory_last():
            scope = function_named(key_scope_function)
    with options.open_seal(event_modules=not finish_it) as seal:
        if copy is not None:
            result = copied(
                options,
                seal,
                table=copy,
                into=into or copy,
                columns=_pairs("--column", column),
                only=_pairs("--only", only),
                scope=DEFAULT_SCOPE if scope is None else scope,
                batch=batch or 500,
            )
        elif begin:
            result = begin_migration(seal, tables=table, dry_run=options.dry_run)
        elif finish_it:
            result = finish_migration(seal, tables=table, dry_run=options.dry_run)
        else:
            result = migrated(
                options,
                seal,
                table=table,
                scope=scope,
                batch=batch or 1000,
                items_per_second=items_per_second,
                workers=workers,
                resume=resume,
                function=key_scope_function,
            )
    said: Callable[..., str] = partial(said_of_migration, function=key_scope_function)
    if copy is not None:
        said = said_of_copy
    elif begin or finish_it:
        said = said_of_beginning if begin else said_of_end
    finish(options, result, lambda: print_migrated(result, said(result, dry_run=options.dry_run)))


def _refuse_together(*, begin: bool, finish_it: bool, work: Mapping[str, object]) -> None:
    if begin and finish_it:
        raise ConfigurationError("--begin and --finish exclude each other")
    named = [name for name, given in work.items() if given]
    if (begin or finish_it) and named:
        raise ConfigurationError(
            f"{'--begin' if begin else '--finish'} and {', '.join(named)} exclude each other",
            remedy="Those are for the migration itself: eventseal migrate.",
        )
    if work["--key-scope"] and work["--key-scope-function"]:
        raise ConfigurationError("--key-scope and --key-scope-function exclude each other")


def _check_copying(
    copy: str | None, other: bool, of_copies: Mapping[str, object], of_others: Mapping[str, object]
) -> None:
    unfit = of_copies if copy is None else of_others
    named = [name for name, given in unfit.items() if given]
    if copy is not None and other:
        named = ["--begin or --finish", *named]
    if named:
        raise ConfigurationError(
            f"{', '.join(named)} {'only goes with' if copy is None else 'does not go with'} --copy"
        )


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given or ()]
    for name, separator, value in pairs:
        if not (name and separator and value):
            raise ConfigurationError(f"{option} takes a name and a value with = between them")
    return {name: value for name, _, value in pairs}

"""``eventseal retire``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.confirmation import confirm
from eventseal.cli.interruption import RUN_AGAIN, resumable
from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.output import print_columns, print_json
from eventseal.cli.progress import shown_progress
from eventseal.cli.results import (
    finish,
    print_failures,
    print_retired_rows,
    print_rows_set_aside,
    tell,
)
from eventseal.erasure.keks import refuse_needed_by_ledger
from eventseal.errors import ConfigurationError, JobError, StoreUnavailableError
from eventseal.rotation import refuse_needed_kek
from eventseal.rotation import retire as retire_keys
from eventseal.rotation.did_you_mean import known_keys

if TYPE_CHECKING:
    from eventseal.configuration import EventSeal
    from eventseal.rotation import JobResult

EXAMPLES = """\b
Examples:
  eventseal retire --dry-run
  eventseal retire --yes
  eventseal retire --give-up-set-aside --dry-run
  eventseal retire --key 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0a
  eventseal retire --kek aws-kms://arn:aws:kms:eu-west-1:111122223333:key/...
"""


def retire(
    context: typer.Context,
    *,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only this key; several times.")
    ] = None,
    kek: Annotated[
        str | None, typer.Option(metavar="URI", help="Say whether this KEK may go, and destroy nothing.")
    ] = None,
    kek_version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="With --kek: whether this version of it may go.")
    ] = None,
    give_up_set_aside: Annotated[
        bool,
        typer.Option("--give-up-set-aside", help="Rows that are set aside keep no key: their keys go."),
    ] = False,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Destroy keys that seal no more and that nothing needs: no item and no key.

    A key that is needed stays, and is counted; if it was named, the exit code is
    4. Rows that are set aside keep their keys, unless --give-up-set-aside ends them
    for good. It asks before it destroys; --dry-run only counts. With --kek it destroys
    nothing: it opens every live key without that KMS key, or version of it, and
    says by its exit code whether it may go: 0 if all opened, else 4.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
    if kek is not None and (key or give_up_set_aside):
        raise ConfigurationError("--kek excludes --key and --give-up-set-aside: it destroys no key")
    if kek is None and kek_version is not None:
        raise ConfigurationError("--kek-version needs --kek: a version of which KEK?")
    with options.open_seal() as seal:
        if kek is not None:
            _ask_for_kek(options, seal, kek, kek_version)
        else:
            _retire(options, seal, key, give_up=give_up_set_aside)


def _retire(options: Options, seal: EventSeal, typed: list[str] | None, *, give_up: bool) -> None:
    keys = known_keys(seal.datastore, seal.settings.application, typed) if typed else None
    verb = partial(retire_keys, seal, keys=keys, give_up_set_aside=give_up)
    try:
        if not options.dry_run:
            would = verb(dry_run=True)
            if would.done:
                confirm(
                    options, f"{would.done:,} keys are about to be destroyed for good.{_lost(options, would)}"
                )
        with resumable(lambda: RUN_AGAIN), shown_progress("retire", "keys") as progress:
            result = verb(dry_run=options.dry_run, progress=progress)
    except (JobError, StoreUnavailableError) as error:
        # A named key stays; what became of the others goes with the error.
        others = getattr(error, "result", None)
        if others is not None:
            tell(options, others, lambda: _print(others, dry_run=options.dry_run))
        raise
    finish(options, result, lambda: _print(result, dry_run=options.dry_run))


def _lost(options: Options, would: JobResult) -> str:
    """Name the rows that are given up, before anybody is asked."""
    if not would.given_up:
        return ""
    if not (options.as_json or options.yes):
        print_rows_set_aside(would.given_up)
    return f" {len(would.given_up):,} rows that are set aside are given up with them."


def _ask_for_kek(options: Options, seal: EventSeal, kek: str, version: str | None) -> None:
    left = refuse_needed_kek(seal, kek, version)
    refuse_needed_by_ledger(seal, kek, version)
    if options.as_json:
        print_json({"verb": "retire", "kek": kek, "kek_version": version, "needed": 0, "wrappings": left})
        return
    what = kek if version is None else f"version {version} of {kek}"
    typer.echo(f"{what} may go: {'no live key needs it' if left else 'no key is wrapped under it'}")
    if left:
        typer.echo(f"{left:,} wrappings under it are left; every key was just opened without it")


def _print(result: JobResult, *, dry_run: bool) -> None:
    needed = [(str(key_id), f"{count:,}") for key_id, count in result.by_key.items() if count]
    if needed:
        print_columns(("KEY THAT STAYS", "NEEDED BY"), needed, numbers=frozenset({"NEEDED BY"}))
    print_failures(result.failures)
    did = "would be" if dry_run else "were"
    typer.echo(f"{result.done:,} keys {did} destroyed, {result.left:,} stay, {result.failed:,} failed")
    print_retired_rows(result, did=did)
    if result.left and (not result.set_aside or any("left" in counts for counts in result.by_table.values())):
        typer.echo("to free them: eventseal reencrypt")

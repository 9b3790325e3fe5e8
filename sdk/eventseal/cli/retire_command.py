"""``eventseal retire``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.long_runs import shown_progress
from eventseal.cli.output import (
    confirm,
    print_columns,
    print_failures,
    print_rows_set_aside,
    report,
    show_result,
)
from eventseal.cli.shared_options import Options, with_options
from eventseal.errors import JobError, StoreUnavailableError
from eventseal.rotation import retire as retire_keys
from eventseal.rotation.did_you_mean import known_keys
from eventseal.rotation.table_checks import GIVE_UP

if TYPE_CHECKING:
    from eventseal.rotation import JobResult

EXAMPLES = """\b
Examples:
  eventseal retire --dry-run
  eventseal retire --yes
  eventseal retire --give-up-set-aside --dry-run
  eventseal retire --key 0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0a
"""


@with_options("yes", "dry_run")
def retire(
    options: Options,
    *,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only this key; several times.")
    ] = None,
    give_up_set_aside: Annotated[
        bool,
        typer.Option("--give-up-set-aside", help="Rows that are set aside keep no key: their keys go."),
    ] = False,
) -> None:
    """
    Destroy keys that seal no more and that nothing needs: no item and no key.

    A key that is needed stays, and is counted; if it was named, the exit code is
    4. Rows that are set aside keep their keys, unless --give-up-set-aside ends them
    for good. It asks before it destroys; --dry-run only counts.
    """
    with options.open_seal() as seal:
        keys = known_keys(seal.datastore, seal.settings.application, key) if key else None
        verb = partial(retire_keys, seal, keys=keys, give_up_set_aside=give_up_set_aside)
        try:
            if not options.dry_run:
                _confirm(options, verb(dry_run=True))
            with shown_progress("retire", "keys") as progress:
                result = verb(dry_run=options.dry_run, progress=progress)
        except (JobError, StoreUnavailableError) as error:
            # A named key stays; what became of the others goes with the error.
            others = getattr(error, "result", None)
            if others is not None:
                show_result(options, others, lambda: _print(others, dry_run=options.dry_run))
            raise
    report(options, result, lambda: _print(result, dry_run=options.dry_run))


def _confirm(options: Options, would: JobResult) -> None:
    if not would.done:
        return
    lost = ""
    if would.given_up:
        lost = f" {len(would.given_up):,} rows that are set aside are given up with them."
    confirm(
        options,
        f"{would.done:,} keys are about to be destroyed for good.{lost}",
        show=lambda: print_rows_set_aside(would.given_up),
    )


def _print(result: JobResult, *, dry_run: bool) -> None:
    needed = [(str(key_id), count) for key_id, count in result.by_key.items() if count]
    if needed:
        print_columns(("KEY THAT STAYS", "NEEDED BY"), needed)
    print_destroyed(result, did="would be" if dry_run else "were")
    if result.left and (not result.set_aside or any("left" in counts for counts in result.by_table.values())):
        typer.echo("to free them: eventseal reencrypt")


def print_destroyed(result: JobResult, *, did: str) -> None:
    """
    Show what became of keys, and of the rows that are set aside under them.

    Args:
        result: Of a retire.
        did: ``were``, or ``would be``.
    """
    print_failures(result.failures)
    typer.echo(f"{result.done:,} keys {did} destroyed, {result.left:,} stay, {result.failed:,} failed")
    print_rows_set_aside(result.given_up or result.set_aside)
    if result.given_up:
        typer.echo(f"{len(result.given_up):,} rows that are set aside {did} given up with their keys")
    if result.set_aside:
        typer.echo(f"{len(result.set_aside):,} rows that are set aside keep keys. {GIVE_UP}")

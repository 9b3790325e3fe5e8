"""``eventseal verify --after-restore``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from eventseal.cli.confirmation import confirm
from eventseal.cli.interruption import RUN_AGAIN, resumable
from eventseal.cli.output import print_columns, printable
from eventseal.cli.progress import shown_progress
from eventseal.cli.results import finish, print_failures
from eventseal.erasure import after_restore

if TYPE_CHECKING:
    from eventseal.cli.options import Options
    from eventseal.configuration import EventSeal
    from eventseal.erasure import RestoreResult

_NUMBERS = frozenset({"KEYS BACK", "TOMBSTONES LOST", "UNKNOWN KEYS"})


def shred_after_restore(options: Options, seal: EventSeal) -> None:
    """
    Show what a restore has undone, ask, and shred it again.

    Args:
        options: Of the run.
        seal: The store that was restored.
    """
    with shown_progress("after-restore", "entries") as progress:
        would = after_restore(seal, dry_run=True, progress=progress)
    if options.dry_run or not would.scopes:
        finish(options, would, lambda: _print(would, dry_run=True))
        return
    if not options.as_json:
        _print_scopes(would)
    confirm(
        options,
        f"In {len(would.scopes):,} scopes {would.done:,} keys are about to be destroyed again, or have their "
        "tombstones put back.",
    )
    with resumable(lambda: RUN_AGAIN), shown_progress("after-restore", "entries") as progress:
        result = after_restore(seal, progress=progress)
    finish(options, result, lambda: _print(result, dry_run=False))


def _print(result: RestoreResult, *, dry_run: bool) -> None:
    if dry_run:
        _print_scopes(result)
    print_failures(result.failures)
    typer.echo(f"{result.entries:,} entries of the ledger were verified")
    if not result.scopes:
        typer.echo("all that it says was shredded is gone")
        return
    did = "would be" if dry_run else "were"
    scopes = f"{result.done:,} keys of {len(result.scopes):,} scopes"
    typer.echo(f"{scopes} {did} destroyed again, {result.failed:,} failed")


def _print_scopes(result: RestoreResult) -> None:
    if result.scopes:
        rows = [
            (
                printable(scope.scope),
                "begun, not done" if scope.intent_open else "closed" if scope.closed else "reopened",
                f"{len(scope.alive):,}",
                f"{len(scope.lost):,}",
                f"{len(scope.strangers):,}",
            )
            for scope in result.scopes
        ]
        print_columns(("SCOPE", "IS", "KEYS BACK", "TOMBSTONES LOST", "UNKNOWN KEYS"), rows, numbers=_NUMBERS)

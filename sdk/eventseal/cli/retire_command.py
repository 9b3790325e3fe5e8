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
from eventseal.wording import counted

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
    key: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Only this key. Repeatable.")] = None,
    give_up_set_aside: Annotated[
        bool,
        typer.Option("--give-up-set-aside", help="Destroy keys even if rows that are set aside need them."),
    ] = False,
) -> None:
    """
    Destroy old keys that no item and no other key needs.

    An old key encrypts no new items. A key that is needed stays, and the output
    counts it. If you named such a key, the exit code is 4. Rows that are set aside
    keep their keys, unless --give-up-set-aside destroys these keys permanently. It
    asks before it destroys keys. --dry-run only counts.
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
            # A named key stays. The error carries the result for the other keys.
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
        rows = counted(len(would.given_up), "row that is set aside becomes", "rows that are set aside become")
        lost = f" {rows} permanently unreadable."
    confirm(
        options,
        f"{counted(would.done, 'key is', 'keys are')} about to be destroyed permanently.{lost}",
        show=lambda: print_rows_set_aside(would.given_up),
    )


def _print(result: JobResult, *, dry_run: bool) -> None:
    needed = [(str(key_id), count) for key_id, count in result.by_key.items() if count]
    if needed:
        print_columns(("KEY THAT STAYS", "ITEMS OR KEYS UNDER IT"), needed)
    print_destroyed(result, dry_run=dry_run)
    if result.left and (not result.set_aside or any("left" in counts for counts in result.by_table.values())):
        typer.echo("Next: run `eventseal reencrypt`, then `eventseal retire` again.")


def print_destroyed(result: JobResult, *, dry_run: bool) -> None:
    """Show the counts of keys and the rows set aside."""
    print_failures(result.failures)
    destroyed = "Keys that would be destroyed" if dry_run else "Keys destroyed"
    typer.echo(f"{destroyed}: {result.done:,}. Kept: {result.left:,}. Failed: {result.failed:,}.")
    print_rows_set_aside(result.given_up or result.set_aside)
    if result.given_up:
        did = "would be" if dry_run else "were"
        typer.echo(f"Rows that are set aside and {did} given up with their keys: {len(result.given_up):,}")
    if result.set_aside:
        typer.echo(f"Rows that are set aside and keep their keys: {len(result.set_aside):,}. {GIVE_UP}")

"""``eventseal verify``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.exit_codes import ExitCode
from eventseal.cli.options import Config, DryRun, Json, Options, Yes
from eventseal.cli.output import print_columns, print_json
from eventseal.cli.progress import shown_progress
from eventseal.cli.restore_checking import shred_after_restore
from eventseal.cli.results import print_failures
from eventseal.errors import ConfigurationError
from eventseal.rotation import verify as verify_store
from eventseal.rotation.verify import FORMER, OUTCOMES

if TYPE_CHECKING:
    from eventseal.rotation import JobResult

EXAMPLES = """\b
Examples:
  eventseal verify
  eventseal verify --table integer_sequenced_items --sample 0.05
  eventseal verify --json | jq .failures
  eventseal verify --after-restore
"""


def verify(
    context: typer.Context,
    *,
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this registered table; several times.")
    ] = None,
    sample: Annotated[
        float, typer.Option(metavar="SHARE", help="The share of the items to open, at random: 0.01 for 1 %.")
    ] = 1.0,
    after_restore: Annotated[
        bool,
        typer.Option("--after-restore", help="Instead, shred again what a restore of the keys brought back."),
    ] = False,
    config: Config = None,
    as_json: Json = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """
    Open every item of every registered table, and count.

    It changes nothing, except with --after-restore: that compares the key tables
    with the erasure ledger, shows what a restore has undone, asks, and shreds it
    again. Every data key is checked too, whether items name it or
    not. Items in plain, and erased ones, are counted apart. The exit code is 1 if anything does not
    open; an outage of the KMS or the database is 3, and says nothing about items.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
    if after_restore:
        if table or sample != 1.0:
            raise ConfigurationError("--after-restore looks at all keys: it excludes --table and --sample")
        with options.open_seal() as seal:
            shred_after_restore(options, seal)
        return
    shown = shown_progress("verify", "items", partial(_share, sample=sample))
    with options.open_seal() as seal, shown as progress:
        result = verify_store(seal, tables=table, sample=sample, progress=progress)
    if options.as_json:
        print_json(result.to_json())
    else:
        _print(result)
    if result.failed:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


def _share(result: JobResult, sample: float) -> tuple[int, int]:
    """How many items were looked at, and of how many."""
    counts = result.by_table.values()
    looked_at = sum(count for table in counts for outcome, count in table.items() if outcome != "left")
    return looked_at, max(looked_at, round((looked_at + result.left) * sample))


def _print(result: JobResult) -> None:
    heading = ("TABLE", *(outcome.upper() for outcome in OUTCOMES))
    rows = [
        (table, *(f"{counts[outcome]:,}" for outcome in OUTCOMES))
        for table, counts in result.by_table.items()
    ]
    print_columns(heading, rows, numbers=frozenset(heading[1:]))
    print_failures(result.failures)
    keys = f"under {len(result.by_key):,} keys"
    erased = sum(counts["erased"] for counts in result.by_table.values())
    beside = f"{erased:,} were erased, " if erased else ""
    typer.echo(
        f"{result.done:,} items opened {keys} in {result.seconds:.1f} s, {beside}{result.failed:,} failed"
    )
    former = sum(counts.get(FORMER, 0) for counts in result.by_table.values())
    if former:
        typer.echo(
            f"{former:,} of them are bound to a former collection of their table: see `eventseal doctor`"
        )

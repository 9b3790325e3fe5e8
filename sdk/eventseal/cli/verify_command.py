"""``eventseal verify``."""

from __future__ import annotations

from functools import partial
from pathlib import Path  # noqa: TC003 - read at run time, for the options' types
from typing import TYPE_CHECKING, Annotated

import typer

from eventseal.cli.interruption import resumable
from eventseal.cli.options import Config, DryRun, Json, Options, Yes, opened_in_worker
from eventseal.cli.output import print_columns, print_json
from eventseal.cli.progress import shown_progress
from eventseal.cli.receipt_files import ReceiptFile, refuse_receipt_file, write_receipt
from eventseal.cli.restore_checking import shred_after_restore
from eventseal.cli.results import exit_by, print_failures
from eventseal.cli.state_files import StateFile
from eventseal.cli.worker_processes import worker_processes
from eventseal.erasure.receipts import VerifyReceipt
from eventseal.errors import ConfigurationError
from eventseal.rotation import verify as verify_store
from eventseal.rotation.item_checks import FORMER, OUTCOMES
from eventseal.rotation.rows_set_aside import SET_ASIDE

if TYPE_CHECKING:
    from eventseal.rotation import JobResult

EXAMPLES = """\b
Examples:
  eventseal verify
  eventseal verify --table integer_sequenced_items --sample 0.05
  eventseal verify --json | jq .failures
  eventseal verify --workers 4 --resume verify.state
  eventseal verify --receipt verification.json
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
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the work.")] = 1,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep how far it is in this file; if it is there, go on from it."),
    ] = None,
    receipt: ReceiptFile = None,
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
    again. Every data key is checked, and every field inside of items. An item that
    is not encrypted fails, unless always_encrypt is false or its migration has
    begun. The exit code is 1 if anything fails. An outage of the KMS or the
    database is 3, and says nothing about items. A KEK that is missing is 2.
    """
    options = Options.of(context, config=config, as_json=as_json, yes=yes, dry_run=dry_run)
    if after_restore:
        if table or sample != 1.0 or workers != 1 or resume or receipt:
            raise ConfigurationError(
                "--after-restore looks at all keys: it excludes --table, --sample, --workers, --resume and "
                "--receipt"
            )
        with options.open_seal() as seal:
            shred_after_restore(options, seal)
        return
    refuse_receipt_file(receipt)
    state = None if resume is None else StateFile(resume)
    stored = None if state is None else state.read()
    with options.open_seal() as seal:
        with (
            resumable(lambda: _AGAIN if state is None else _RESUME.format(file=state.path)),
            shown_progress("verify", "items", partial(_share, sample=sample)) as progress,
            worker_processes(workers) as executor,
        ):
            result = verify_store(
                seal,
                tables=table,
                sample=sample,
                shards=workers,
                executor=executor,
                open_store=partial(opened_in_worker, options.config),
                resume=stored,
                keep=None if state is None else state.keep,
                progress=progress,
            )
        if options.as_json:
            print_json(result.to_json())
        else:
            _print(result)
        if receipt is not None:
            written = VerifyReceipt.of(seal, result)
            write_receipt(
                receipt, written, done="all was verified", remedy="Name another file, and run it again."
            )
    if state is not None:
        state.remove()
    exit_by(result)


_AGAIN = "Run it again. To continue an interrupted run instead, name a file: --resume FILE"
_RESUME = "Run the same command again: it goes on from {file}."


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
    aside = sum(counts.get(SET_ASIDE, 0) for counts in result.by_table.values())
    if aside:
        typer.echo(f"{aside:,} damaged rows are set aside: see `eventseal set-aside --list`")
    former = sum(counts.get(FORMER, 0) for counts in result.by_table.values())
    if former:
        typer.echo(
            f"{former:,} of them are bound to a former collection of their table: see `eventseal doctor`"
        )

"""``eventseal verify``."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventseal.cli.exits import resumable
from eventseal.cli.long_runs import shown_progress, worker_processes
from eventseal.cli.output import (
    confirm,
    exit_by,
    print_columns,
    print_counts,
    print_failures,
    print_json,
    report,
)
from eventseal.cli.receipt_command import ReceiptFile, refuse_receipt_file, write_receipt
from eventseal.cli.shared_options import Options, Tables, Workers, opened_in_worker, with_options
from eventseal.erasure import after_restore as shred_again
from eventseal.erasure.receipts import VerifyReceipt
from eventseal.errors import ConfigurationError
from eventseal.rotation import verify as verify_store
from eventseal.rotation.item_checks import FORMER, OUTCOMES
from eventseal.rotation.set_aside_rows import SET_ASIDE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventseal.configuration import EventSeal
    from eventseal.erasure import RestoreResult
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


@with_options("yes", "dry_run")
def verify(
    options: Options,
    *,
    table: Tables = None,
    sample: Annotated[
        float, typer.Option(metavar="SHARE", help="The share of the items to open, at random: 0.01 for 1 %.")
    ] = 1.0,
    workers: Workers = 1,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep how far it is in this file; if it is there, go on from it."),
    ] = None,
    receipt: ReceiptFile = None,
    after_restore: Annotated[
        bool,
        typer.Option("--after-restore", help="Instead, shred again what a restore of the keys brought back."),
    ] = False,
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
    if after_restore:
        if table or sample != 1.0 or workers != 1 or resume or receipt:
            raise ConfigurationError(
                "--after-restore looks at all keys: it excludes --table, --sample, --workers, --resume and "
                "--receipt"
            )
        with options.open_seal() as seal:
            _shred_after_restore(options, seal)
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
    print_counts(result, OUTCOMES)
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


class StateFile:
    """
    The file of ``--resume``: how far a run is. What it says is authenticated elsewhere.

    Args:
        path: Of the file, whose folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """
        Give what was kept; ``None`` if there is no such file.

        Raises:
            ConfigurationError: The file holds no state, or cannot be read, or its folder is not there.
        """
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"there is no folder {self.path.parent} for {self.path.name}")
        try:
            stored = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict):
            raise ConfigurationError(
                f"{self.path} does not hold how far a run was",
                remedy="Name another file, or delete this one.",
            )
        return stored

    def keep(self, state: Mapping[str, Any]) -> None:
        """
        Put a state in the place of the last one, for its owner alone to read.

        Raises:
            ConfigurationError: It cannot be written; the last state stays.
        """
        try:
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                    json.dump(state, opened)
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink()
                raise
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be written: {error.strerror}") from None

    def remove(self) -> None:
        """Remove the file: the run has ended."""
        self.path.unlink(missing_ok=True)


def _shred_after_restore(options: Options, seal: EventSeal) -> None:
    """Show what a restore has undone, ask, and shred it again."""
    with shown_progress("after-restore", "entries") as progress:
        would = shred_again(seal, dry_run=True, progress=progress)
    if options.dry_run or not would.scopes:
        report(options, would, lambda: _print_restored(would, dry_run=True))
        return
    if not options.as_json:
        _print_scopes(would)
    confirm(
        options,
        f"In {len(would.scopes):,} scopes {would.done:,} keys are about to be destroyed again, or have their "
        "tombstones put back.",
    )
    with shown_progress("after-restore", "entries") as progress:
        result = shred_again(seal, progress=progress)
    report(options, result, lambda: _print_restored(result, dry_run=False))


def _print_restored(result: RestoreResult, *, dry_run: bool) -> None:
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
                scope.scope,
                "begun, not done" if scope.intent_open else "closed" if scope.closed else "reopened",
                len(scope.alive),
                len(scope.lost),
                len(scope.strangers),
            )
            for scope in result.scopes
        ]
        print_columns(("SCOPE", "IS", "KEYS BACK", "TOMBSTONES LOST", "UNKNOWN KEYS"), rows)

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
from eventseal.wording import counted

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
        float, typer.Option(metavar="SHARE", help="Open only this random share of the items: 0.01 for 1 %.")
    ] = 1.0,
    workers: Workers = 1,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the progress in this file. If it exists, continue from it."),
    ] = None,
    receipt: ReceiptFile = None,
    after_restore: Annotated[
        bool,
        typer.Option(
            "--after-restore", help="Do not verify items: shred again the keys that a restore brought back."
        ),
    ] = False,
) -> None:
    """
    Open every item of every registered table, and count results.

    It checks every data key, and every encrypted field inside items. An item
    that is not encrypted fails, unless always_encrypt is false or its migration has
    begun.

    It changes nothing, except with --after-restore: that compares the key tables
    with the erasure ledger. It shows the erasures that a restore has undone, asks,
    and shreds these keys again.

    The exit code is 1 if anything fails, and 2 if a KMS key is missing. It is 3 if
    the KMS or the database is unavailable, which says nothing about items.
    """
    if after_restore:
        if table or sample != 1.0 or workers != 1 or resume or receipt:
            raise ConfigurationError(
                "--after-restore checks all keys: it excludes --table, --sample, --workers, --resume and "
                "--receipt",
                remedy="Leave the other options out.",
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
                receipt, written, done="the verification ended", remedy="Run it again with another file."
            )
    if state is not None:
        state.remove()
    exit_by(result)


_AGAIN = "Run it again from the start. To be able to continue an interrupted run, pass --resume FILE."
_RESUME = "Run the same command again. It continues from {file}."


def _share(result: JobResult, sample: float) -> tuple[int, int]:
    """Return how many items were checked, and the total."""
    counts = result.by_table.values()
    looked_at = sum(count for table in counts for outcome, count in table.items() if outcome != "left")
    return looked_at, max(looked_at, round((looked_at + result.left) * sample))


def _print(result: JobResult) -> None:
    print_counts(result, OUTCOMES)
    print_failures(result.failures)
    opened = f"Opened {counted(result.done, 'item')} under {counted(len(result.by_key), 'key')}"
    erased = sum(counts["erased"] for counts in result.by_table.values())
    others = f" Erased: {erased:,}." if erased else ""
    typer.echo(f"{opened} in {result.seconds:.1f} s.{others} Failed: {result.failed:,}.")
    aside = sum(counts.get(SET_ASIDE, 0) for counts in result.by_table.values())
    if aside:
        rows = counted(aside, "damaged row is", "damaged rows are")
        typer.echo(f"{rows} set aside. To list them: eventseal set-aside --list")
    former = sum(counts.get(FORMER, 0) for counts in result.by_table.values())
    if former:
        items = counted(former, "opened item is", "opened items are")
        typer.echo(f"{items} bound to a former collection of the table. Next: eventseal doctor")


class StateFile:
    """
    The file of ``--resume``, which keeps the progress of a run.

    Other code authenticates its content.

    Args:
        path: The path of the file. Its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """
        Return the stored state, or ``None`` if the file does not exist.

        Raises:
            ConfigurationError: The file holds no state or cannot be read, or its directory does not exist.
        """
        if not self.path.parent.is_dir():
            raise ConfigurationError(
                f"there is no directory {self.path.parent} for {self.path.name}",
                remedy="Create it, or name another file.",
            )
        try:
            stored = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} cannot be read: {error.strerror}",
                remedy="Name another file that you can read and write, or a new one.",
            ) from None
        except (ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict):
            raise ConfigurationError(
                f"{self.path} does not hold the progress of a run",
                remedy="Pass another file, or delete this one.",
            )
        return stored

    def keep(self, state: Mapping[str, Any]) -> None:
        """
        Replace the stored state. Only its owner can read it.

        Raises:
            ConfigurationError: The file cannot be written. The last state stays.
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
            raise ConfigurationError(
                f"{self.path} cannot be written: {error.strerror}",
                remedy="Choose a file in a directory that you can write to.",
            ) from None

    def remove(self) -> None:
        """Remove the file: the run has ended."""
        self.path.unlink(missing_ok=True)


def _shred_after_restore(options: Options, seal: EventSeal) -> None:
    """Show the erasures that a restore has undone, ask, and shred again."""
    with shown_progress("after-restore", "entries") as progress:
        would = shred_again(seal, dry_run=True, progress=progress)
    if options.dry_run or not would.scopes:
        report(options, would, lambda: _print_restored(would, dry_run=True))
        return
    if not options.as_json:
        _print_scopes(would)
    confirm(
        options,
        f"{counted(would.done, 'key')} in {counted(len(would.scopes), 'scope')} will be destroyed "
        "again, or get back the tombstones that prevent new keys.",
    )
    with shown_progress("after-restore", "entries") as progress:
        result = shred_again(seal, progress=progress)
    report(options, result, lambda: _print_restored(result, dry_run=False))


def _print_restored(result: RestoreResult, *, dry_run: bool) -> None:
    if dry_run:
        _print_scopes(result)
    print_failures(result.failures)
    typer.echo(f"Entries of the ledger that were verified: {result.entries:,}")
    if not result.scopes:
        typer.echo("Every erasure in the ledger is in force.")
        return
    did = "Keys that would be destroyed again" if dry_run else "Keys destroyed again"
    scopes = counted(len(result.scopes), "scope")
    typer.echo(f"{did}: {result.done:,}, in {scopes}. Failed: {result.failed:,}.")


def _print_scopes(result: RestoreResult) -> None:
    if result.scopes:
        rows = [
            (
                scope.scope,
                "unfinished" if scope.intent_open else "closed" if scope.closed else "reopened",
                len(scope.alive),
                len(scope.lost),
                len(scope.strangers),
            )
            for scope in result.scopes
        ]
        print_columns(("SCOPE", "STATE", "KEYS BACK", "TOMBSTONES LOST", "UNKNOWN KEYS"), rows)

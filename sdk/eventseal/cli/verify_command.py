"""``eventseal verify``."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eventseal.cli.exit_codes import ExitCode
from eventseal.cli.options import Config, Json, Options
from eventseal.cli.output import print_columns, print_json, printable
from eventseal.rotation import verify as verify_store
from eventseal.rotation.verify import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from eventseal.rotation import Failure, JobResult

_SHOWN_FAILURES = 20

EXAMPLES = """\b
Examples:
  eventseal verify
  eventseal verify --table integer_sequenced_items --sample 0.05
  eventseal verify --json | jq .failures
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
    config: Config = None,
    as_json: Json = False,
) -> None:
    """
    Open every item of every registered table, and count.

    It changes nothing. Every data key is checked too, whether items name it or
    not. Items in plain are counted apart. The exit code is 1 if anything does not
    open; an outage of the KMS or the database is 3, and says nothing about items.
    """
    options = Options.of(context, config=config, as_json=as_json)
    with options.open_seal() as seal, _progress(sample) as progress:
        result = verify_store(seal, tables=table, sample=sample, progress=progress)
    if options.as_json:
        print_json(result.to_json())
    else:
        _print(result)
    if result.failed:
        raise typer.Exit(ExitCode.FAILED_ITEMS)


@contextmanager
def _progress(sample: float) -> Iterator[Callable[[JobResult], None]]:
    """A bar on a terminal, a line for each tenth of the work elsewhere; both on standard error."""
    if not sys.stderr.isatty():
        yield _Log(sample)
        return
    columns = (TextColumn("verify"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verify", total=None)

        def show(result: JobResult) -> None:
            looked_at, total = _share(result, sample)
            bar.update(task, completed=looked_at, total=total)

        yield show


class _Log:
    def __init__(self, sample: float) -> None:
        self._sample = sample
        self._tenths = 0

    def __call__(self, result: JobResult) -> None:
        looked_at, total = _share(result, self._sample)
        tenths = 10 * looked_at // max(total, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            typer.echo(f"verify: {looked_at:,} of {total:,} items, {result.failed:,} failed", err=True)


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
    _print_failures(result.failures)
    keys = f"under {len(result.by_key):,} keys"
    typer.echo(f"{result.done:,} items opened {keys} in {result.seconds:.1f} s, {result.failed:,} failed")


def _print_failures(failures: Sequence[Failure]) -> None:
    """Show the first failures, and the first of each class with what it means."""
    explained: set[str] = set()
    unseen = 0
    for number, failure in enumerate(failures):
        is_first = failure.error not in explained
        if number >= _SHOWN_FAILURES and not is_first:
            unseen += 1
            continue
        typer.echo(printable(_line(failure)))
        if is_first:
            explained.add(failure.error)
            typer.echo(f"  {printable(failure.message)}\n  remedy: {printable(failure.remedy)}")
    if unseen:
        typer.echo(f"and {unseen:,} more; --json lists up to 1,000")


def _line(failure: Failure) -> str:
    place = " ".join([f"{name}={value}" for name, value in failure.row.items()])
    key = "no key" if failure.key_id is None else f"key {failure.key_id}"
    return f"{failure.error}: {failure.table} {place} ({key})"

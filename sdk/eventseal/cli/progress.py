"""Progress on standard error: a bar on a terminal, a line for each tenth of the work elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from eventseal.rotation import JobResult

    Share = Callable[[JobResult], tuple[int, int]]


def share(result: JobResult) -> tuple[int, int]:
    """
    Tell how much was dealt with, and of how much.

    Args:
        result: So far.
    """
    done = result.done + result.failed
    return done, done + result.left


@contextmanager
def shown_progress(verb: str, what: str, share: Share = share) -> Iterator[Callable[[JobResult], None]]:
    """
    Show how far a verb is while the block runs.

    Args:
        verb: What is going on.
        what: It counts, in the plural.
        share: How much was dealt with, and of how much.
    """
    console = Console(stderr=True)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield _Log(verb, what, share)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(verb, total=None)

        def show(result: JobResult) -> None:
            done, total = share(result)
            bar.update(task, completed=done, total=total)

        yield show


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


class _Log:
    def __init__(self, verb: str, what: str, share: Share) -> None:
        self._verb = verb
        self._what = what
        self._share = share
        self._tenths = 0

    def __call__(self, result: JobResult) -> None:
        done, total = self._share(result)
        tenths = 10 * done // max(total, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            rate = f", {done / result.seconds:,.0f}/s" if result.seconds else ""
            failed = f", {result.failed:,} failed"
            typer.echo(f"{self._verb}: {done:,} of {total:,} {self._what}{failed}{rate}", err=True)

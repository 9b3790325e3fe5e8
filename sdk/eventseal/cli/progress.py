"""Progress on standard error: a bar on a terminal, a line for each tenth of the work elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

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
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[rest]}"),
    )
    pace = _Pace()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(verb, total=None, rate="", rest="")

        def show(result: JobResult) -> None:
            done, total = share(result)
            rate = pace.of(done, result.seconds)
            rest = f"{timedelta(seconds=round((total - done) / rate))} left" if rate else ""
            bar.update(task, completed=done, total=total, rate=_shown(rate), rest=rest)

        yield show


class _Pace:
    """How fast it goes in this run: what a resumed job has done before took no time of this one."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def of(self, done: int, seconds: float) -> float | None:
        """Give the rate for each second; ``None`` as long as it is not known."""
        if self._first is None:
            self._first = (done, seconds)
        done_before, began = self._first
        if done == done_before or seconds <= began:
            return None
        return (done - done_before) / (seconds - began)


def _shown(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f}/s"


class _Log:
    def __init__(self, verb: str, what: str, share: Share) -> None:
        self._verb = verb
        self._what = what
        self._share = share
        self._pace = _Pace()
        self._tenths = 0

    def __call__(self, result: JobResult) -> None:
        done, total = self._share(result)
        rate = _shown(self._pace.of(done, result.seconds))
        tenths = 10 * done // max(total, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            line = f"{self._verb}: {done:,} of {total:,} {self._what}, {result.failed:,} failed"
            typer.echo(f"{line}, {rate}" if rate else line, err=True)

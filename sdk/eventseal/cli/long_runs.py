"""Long runs: their progress, the processes that share them, and how an interrupted job continues."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from eventseal.cli.exits import RUN_AGAIN, ExitCode, resumable
from eventseal.cli.output import print_json
from eventseal.cli.shared_options import opened_in_worker, working_directory_last
from eventseal.rotation.jobs.jobs import MIGRATE, verb_command
from eventseal.rotation.jobs.older_formats import function_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Event
    from uuid import UUID

    from eventseal.cli.shared_options import Options
    from eventseal.rotation import JobResult

    Share = Callable[[JobResult], tuple[int, int]]


def run_job(
    options: Options,
    name: str,
    verb: Callable[..., JobResult],
    *,
    workers: int,
    resume: UUID | None = None,
    function: str | None = None,
) -> JobResult:
    """
    Run a job, show how far it is, and if it is interrupted say how to continue.

    Args:
        options: Of the run.
        name: The command that continues it.
        verb: Of ``eventseal.rotation``, with the arguments that are its own.
        workers: Processes that share the work.
        resume: Only continue this job.
        function: The function for key scopes, as the command line names it.

    Raises:
        VerbInterrupt: It was interrupted; the job resumes.
    """
    last: JobResult | None = None
    job_id = resume

    def remedy() -> str:
        if job_id is None:
            return RUN_AGAIN
        return f"What was done stays done. To go on: {verb_command(name, job_id, function)}"

    with (
        resumable(remedy),
        shown_progress(name, "items") as show,
        worker_processes(1 if options.dry_run else workers, function=function) as executor,
    ):

        def progress(result: JobResult) -> None:
            nonlocal last, job_id
            last, job_id = result, result.job_id or job_id
            show(result)

        try:
            return verb(
                shards=workers,
                executor=executor,
                open_store=partial(opened_in_worker, options.config, event_modules=name == MIGRATE),
                resume=resume,
                dry_run=options.dry_run,
                progress=progress,
            )
        except KeyboardInterrupt:
            if options.as_json and last is not None:
                print_json(last.to_json())
            raise


def share(result: JobResult) -> tuple[int, int]:
    """
    Say how much was dealt with, and of how much.

    Args:
        result: So far.
    """
    done = result.done + result.failed
    return done, done + result.left


@contextmanager
def shown_progress(verb: str, what: str, share: Share = share) -> Iterator[Callable[[JobResult], None]]:
    """
    Show how far a verb is: a bar on a terminal, a line for each tenth of the work elsewhere.

    Args:
        verb: What is being done.
        what: What it counts, in the plural.
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
    """How fast this run is: what a resumed job did before took no time of this run."""

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


@contextmanager
def worker_processes(count: int, *, function: str | None = None) -> Iterator[Executor | None]:
    """
    Give processes that share the work, or ``None`` for this one alone; they end with the command.

    Args:
        count: Processes, 1 or more; 1: this one.
        function: A function of the application that their work needs, as ``module:function``.
    """
    if count == 1:
        yield None
        return
    # Not forked: threads and connections of this process would come along.
    context = get_context("spawn")
    alive, ended = context.Pipe(duplex=False)
    all_started = context.Event()
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_begin, initargs=(alive, all_started, function)
    )
    try:
        with _deaf_children():
            for _ in range(count):  # each starts one process, as long as none of the others is idle
                pool.submit(os.getpid)
        all_started.set()
        yield pool
    except BaseException:
        ended.close()  # ends the processes, wherever they are: what they have not committed is undone
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown()
        ended.close()
        alive.close()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Keep the terminal's interrupt, which goes to all processes, from those that are started meanwhile."""
    # Blocked, not ignored: a child keeps the mask from its first instruction, and the command loses none.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(alive: Connection, all_started: Event, function: str | None) -> None:
    """Heed the command's process alone; begin with the others."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # the command has shown them already
    if function is not None:
        with working_directory_last():
            function_named(function)  # the work that arrives names it
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    all_started.wait()


def _end_with(alive: Connection) -> None:
    # Nothing is ever sent: it answers when the other end is closed, also by kill -9 of the command.
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(ExitCode.INTERRUPTED)

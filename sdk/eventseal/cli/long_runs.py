"""Long runs: progress, worker processes, and how to continue an interrupted job."""

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
from eventseal.errors import ConfigurationError
from eventseal.rotation.jobs.jobs import MIGRATE, verb_command
from eventseal.rotation.jobs.older_formats import function_named
from eventseal.wording import counted

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
    Run a job and show its progress.

    If the run is interrupted, the error says how to continue the job.

    Args:
        options: The global options of the run.
        name: The command that continues the job.
        verb: A function of ``eventseal.rotation``, with its own arguments bound.
        workers: The number of processes that share the work.
        resume: The id of a job. If it is given, only continue this job.
        function: The function for key scopes, as the command line names it.

    Raises:
        VerbInterrupt: The run was interrupted. You can resume the job.
    """
    last: JobResult | None = None
    job_id = resume

    def remedy() -> str:
        if job_id is None:
            return RUN_AGAIN
        return f"Finished work is kept. To continue: {verb_command(name, job_id, function)}"

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
    Return how many items or keys are processed, and the total.

    Failed ones count as processed.

    Args:
        result: The result so far.
    """
    done = result.done + result.failed
    return done, done + result.left


@contextmanager
def shown_progress(verb: str, what: str, share: Share = share) -> Iterator[Callable[[JobResult], None]]:
    """
    Show the progress of a run.

    A terminal gets a bar, and any other output gets a line for each tenth of the work.

    Args:
        verb: The name of the run.
        what: The plural noun of the things that it counts.
        share: A function that returns how many are done, and how many there are.
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
    """The speed of this run, without earlier work of its job."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def of(self, done: int, seconds: float) -> float | None:
        """Return the rate per second, or ``None`` if it is unknown."""
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
            singular = "entry" if self._what == "entries" else self._what.removesuffix("s")
            what = counted(total, singular, self._what)
            line = f"{self._verb}: {done:,} of {what}, {result.failed:,} failed"
            typer.echo(f"{line}, {rate}" if rate else line, err=True)


@contextmanager
def worker_processes(count: int, *, function: str | None = None) -> Iterator[Executor | None]:
    """
    Start the processes that share the work. They end with the command.

    Args:
        count: The number of processes, 1 or more. If it is 1, the block gets ``None`` and this process works
            alone.
        function: A function of the application that the work needs, as ``module:function``.

    Raises:
        ConfigurationError: *count* is more than 1, and this system has no signal masks of POSIX.
    """
    if count == 1:
        yield None
        return
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        raise ConfigurationError(
            "several worker processes need the signal masks of POSIX, which this system does not have",
            remedy="Run the command again without --workers.",
        )
    # Not forked: the children would inherit threads and connections of this process.
    context = get_context("spawn")
    alive, ended = context.Pipe(duplex=False)
    all_started = context.Event()
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_begin, initargs=(alive, all_started, function)
    )
    try:
        with _deaf_children():
            for _ in range(count):  # each call starts one process, as long as no other one is idle
                pool.submit(os.getpid)
        all_started.set()
        yield pool
    except BaseException:
        ended.close()  # ends the processes wherever they are, and rolls back the work they did not commit
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown()
        ended.close()
        alive.close()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """
    Block the terminal's interrupt for processes that the block starts.

    A terminal sends it to all processes, but only the command must react.
    """
    # Blocked, not ignored: a child has the mask from its first instruction on, and the command misses no
    # interrupt.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(alive: Connection, all_started: Event, function: str | None) -> None:
    """
    Prepare a worker, which ends with the command's process.

    It starts its work together with the other workers.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")  # the command has shown the same warnings
    if function is not None:
        with working_directory_last():
            function_named(function)  # the pickled work names this function
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    all_started.wait()


def _end_with(alive: Connection) -> None:
    # Nothing is ever sent: this returns when the other end closes, even if `kill -9` ends the command.
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(ExitCode.INTERRUPTED)

"""Processes that share a verb's work; they end with the command, however it ends."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import TYPE_CHECKING

from eventseal.cli.application_modules import working_directory_last
from eventseal.cli.exit_codes import ExitCode
from eventseal.rotation.jobs.resealers import function_named

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Event


@contextmanager
def worker_processes(count: int, *, function: str | None = None) -> Iterator[Executor | None]:
    """
    Give processes that share the work, or ``None`` for this one alone.

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
    warnings.simplefilter("ignore")  # told by the command already
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

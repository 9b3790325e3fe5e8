"""How a run ends: the exit codes, which error gives which, and what an interrupted run says."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

from eventseal.errors import (
    ConfigurationError,
    EventSealError,
    ItemNotFoundError,
    JobError,
    KmsError,
    KmsForbiddenError,
    KmsKeyStateError,
    StoreError,
    StoreReadOnlyError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN_AGAIN = "Run it again: what was done stays done."


class ExitCode(IntEnum):
    """
    What a script does next.

    ``DONE``: nothing. ``FAILED_ITEMS``: look at the items or keys that failed or are left. ``USAGE``: correct
    the command, the settings or the rights. ``TRY_AGAIN``: the KMS or the database is away. ``REFUSED``: a
    guard says what still needs what was to go. ``INTERRUPTED``: run it again, it continues.
    """

    DONE = 0
    FAILED_ITEMS = 1
    USAGE = 2
    TRY_AGAIN = 3
    REFUSED = 4
    INTERRUPTED = 130


_BY_ERROR: tuple[tuple[type[EventSealError], ExitCode], ...] = (
    # The first that fits counts, so subclasses stand before their bases.
    (ConfigurationError, ExitCode.USAGE),
    (KmsForbiddenError, ExitCode.USAGE),
    (KmsKeyStateError, ExitCode.USAGE),
    (StoreReadOnlyError, ExitCode.USAGE),
    (ItemNotFoundError, ExitCode.USAGE),
    (KmsError, ExitCode.TRY_AGAIN),
    (StoreError, ExitCode.TRY_AGAIN),
    (JobError, ExitCode.REFUSED),
)


def exit_code(error: EventSealError) -> ExitCode:
    """
    Choose the exit code of an error that ends a command.

    Args:
        error: What ended it.

    Returns:
        Its code; what concerns single items or keys gives ``FAILED_ITEMS``.
    """
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED_ITEMS


class VerbInterrupt(KeyboardInterrupt):
    """
    An interruption of a run that can be continued.

    Args:
        remedy: How to continue.
    """

    def __init__(self, remedy: str) -> None:
        super().__init__("interrupted")
        self.remedy = remedy


def heed_termination() -> None:
    """Treat SIGTERM as an interrupt from the keyboard: a service manager sends it to stop a run."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def resumable(remedy: Callable[[], str]) -> Iterator[None]:
    """
    Say how to continue if the block is interrupted; without it, the command says `RUN_AGAIN`.

    Args:
        remedy: Called only on an interruption.

    Raises:
        VerbInterrupt: The block was interrupted.
    """
    try:
        yield
    except VerbInterrupt:
        raise
    except KeyboardInterrupt:
        raise VerbInterrupt(remedy()) from None

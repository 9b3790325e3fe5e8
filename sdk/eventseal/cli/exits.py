"""The end of a run: exit codes, their errors, and interruptions."""

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
    StoreForbiddenError,
    StoreReadOnlyError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN_AGAIN = "Run it again. Finished work is kept."


class ExitCode(IntEnum):
    """
    The exit codes. Each means a different next step for a script.

    - ``DONE``: nothing to do.
    - ``FAILED_ITEMS``: look at the items or keys that failed or are left.
    - ``USAGE``: correct the command, the settings or the permissions.
    - ``TRY_AGAIN``: the KMS or the database is unavailable.
    - ``REFUSED``: the error says why, such as an item that still needs a key.
    - ``INTERRUPTED``: run the command again to continue.
    """

    DONE = 0
    FAILED_ITEMS = 1
    USAGE = 2
    TRY_AGAIN = 3
    REFUSED = 4
    INTERRUPTED = 130


_BY_ERROR: tuple[tuple[type[EventSealError], ExitCode], ...] = (
    # The first match counts, so subclasses come before their bases.
    (ConfigurationError, ExitCode.USAGE),
    (KmsForbiddenError, ExitCode.USAGE),
    (KmsKeyStateError, ExitCode.USAGE),
    (StoreReadOnlyError, ExitCode.USAGE),
    (StoreForbiddenError, ExitCode.USAGE),
    (ItemNotFoundError, ExitCode.USAGE),
    (KmsError, ExitCode.TRY_AGAIN),
    (StoreError, ExitCode.TRY_AGAIN),
    (JobError, ExitCode.REFUSED),
)


def exit_code(error: EventSealError) -> ExitCode:
    """
    Choose the exit code of an error that ends a command.

    Args:
        error: The error that ended the command.

    Returns:
        The exit code. An error of single items or keys gives ``FAILED_ITEMS``.
    """
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED_ITEMS


class VerbInterrupt(KeyboardInterrupt):
    """
    An interruption of a run that can continue.

    Args:
        remedy: A sentence that says how to continue.
    """

    def __init__(self, remedy: str) -> None:
        super().__init__("interrupted")
        self.remedy = remedy


def heed_termination() -> None:
    """Treat SIGTERM as an interrupt from the keyboard. A service manager sends it to stop a run."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def resumable(remedy: Callable[[], str]) -> Iterator[None]:
    """
    Add a hint how to continue if the block is interrupted.

    Outside of such a block the command says `RUN_AGAIN`.

    Args:
        remedy: A function that returns a sentence that says how to continue. It is called only on an
            interruption.

    Raises:
        VerbInterrupt: The block was interrupted.
    """
    try:
        yield
    except VerbInterrupt:
        raise
    except KeyboardInterrupt:
        raise VerbInterrupt(remedy()) from None

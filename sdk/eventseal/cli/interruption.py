"""What an interruption from outside leaves: something to go on with, and the command that does."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN_AGAIN = "Run it again: what was done stays done."


class VerbInterrupt(KeyboardInterrupt):
    """
    An interruption of a verb that can be gone on with.

    Args:
        remedy: How.
    """

    def __init__(self, remedy: str) -> None:
        super().__init__("interrupted")
        self.remedy = remedy


def heed_termination() -> None:
    """Take SIGTERM as an interruption from the keyboard: whoever stops a service sends it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def resumable(remedy: Callable[[], str]) -> Iterator[None]:
    """
    Say, if the block is interrupted, how to go on.

    Args:
        remedy: Asked for only then.
    """
    try:
        yield
    except VerbInterrupt:
        raise
    except KeyboardInterrupt:
        raise VerbInterrupt(remedy()) from None

"""The exit codes of the command, and which error gives which."""

from __future__ import annotations

from enum import IntEnum

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


class ExitCode(IntEnum):
    """
    What a script does next.

    ``DONE``: nothing. ``FAILED_ITEMS``: look at the items or keys that failed or are left. ``USAGE``: correct
    the command, the settings or the rights. ``TRY_AGAIN``: the KMS or the database is away. ``REFUSED``: a
    guard says what still needs what was to go. ``INTERRUPTED``: run it again, it goes on.
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
    Tell which exit code an error gives when it ends a command.

    Args:
        error: What ended it.

    Returns:
        Its code; what concerns single items or keys gives ``FAILED_ITEMS``.
    """
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED_ITEMS

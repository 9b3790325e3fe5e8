"""How a table's trigger says, through the library's recorders, that an event's key was retired."""

from __future__ import annotations

CLOSED_FENCE = "closed: seal the item again"
"""What the trigger's message holds, on every database."""


def is_closed_fence(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the trigger's: the statement was rolled back."""
    while error is not None:
        if CLOSED_FENCE in str(error):
            return True
        error = error.__cause__
    return False

"""The wording of messages: counts with their nouns, times, and suggestions."""

from __future__ import annotations

import difflib
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIMILAR = 0.6  # below it, a suggestion names something else: "application" for "tenant:none"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """
    Return a count with its noun: "1 key", "2,000 keys".

    Args:
        count: How many.
        noun: The noun in the singular.
        plural: Its plural, if it is not the noun with an "s".
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def did_you_mean(
    name: str, known: Iterable[str], otherwise: str, *, prefix: str = "", least: float = _SIMILAR
) -> str:
    """
    Return a remedy that suggests the most similar known name.

    Args:
        name: The unknown name, as the user wrote it.
        known: The names that exist.
        otherwise: The remedy if none of them is similar: it says where the names are listed.
        prefix: Text that all names begin with. It is shown, but it does not make names more similar.
        least: The least similarity, from 0 to 1. Raise it for names that are alike without a typo.
    """
    similar = difflib.get_close_matches(name, list(known), n=1, cutoff=least)
    return f"Did you mean {prefix}{similar[0]}?" if similar else otherwise


def shell_word(text: str) -> str:
    """
    Return text as one argument of a printed command.

    A scope, a path or a table name may hold anything, and people copy the command into a shell.

    Args:
        text: The argument as the command must receive it.
    """
    quoted = shlex.quote(text)
    return f"-- {quoted}" if text.startswith("-") else quoted


def moment(at: datetime, now: datetime | None = None) -> str:
    """
    Return a time in UTC with its distance from *now*.

    An example is "2026-03-01 16:45:47 UTC (in 60 s)".

    Args:
        at: The time, with its zone.
        now: The present by the same clock. Without it, the distance is left out.
    """
    shown = f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return shown if now is None else f"{shown} ({_distance((at - now).total_seconds())})"


def _distance(seconds: float) -> str:
    """Return "in 60 s" or "3 h ago", in the largest unit."""
    size = abs(round(seconds))
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    unit, name = next((unit for unit in units if size >= 2 * unit[0]), units[-1])
    shown = f"{round(size / unit)} {name}"
    return f"{shown} ago" if seconds < 0 else f"in {shown}"

"""What a diagnosis finds: one line each, with how bad it is and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from eventseal.errors import EventSealError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Severity(StrEnum):
    """
    How bad a finding is.

    ``OK``: looked at, and as it should be. ``NOTE``: worth knowing, nothing to do. ``WARNING``: it works now,
    and will not always, or not everywhere. ``ERROR``: something does not work.
    """

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def asks_for_action(self) -> bool:
        """Whether somebody has to do something."""
        return self in {Severity.WARNING, Severity.ERROR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    One thing that was looked at.

    Attributes:
        severity: How bad it is.
        area: Where: ``settings``, ``database``, ``tables``, ``registry``, ``fences``, ``clock``, ``kms``,
            ``keys``, ``ledger``, ``migration`` or ``jobs``.
        text: What was found, on one line; never a secret.
        remedy: What to do, with the statement or the command to paste; empty if there is nothing to do.
        cause: The error that using it would end in, if there is one; says what a script does next.
    """

    severity: Severity
    area: str
    text: str
    remedy: str = ""
    cause: EventSealError | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, error: EventSealError, area: str, *, severity: Severity = Severity.ERROR) -> Finding:
        """
        Turn an error into a finding.

        Args:
            error: What looking, or using, ended in.
            area: Where.
            severity: How bad it is.
        """
        text = " ".join(str(error).split())
        return cls(severity=severity, area=area, text=text, remedy=error.remedy, cause=error)

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "severity": self.severity.value,
            "area": self.area,
            "finding": self.text,
            "remedy": self.remedy,
            "error": None if self.cause is None else type(self.cause).__name__,
        }


def guarded(area: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """
    Run a check, and make a finding of the error that ends it.

    Args:
        area: Of the check.
        check: Gives findings.
    """
    try:
        yield from check()
    except EventSealError as error:
        yield Finding.of(error, area)
    except ImportError as error:
        # An extra that is not installed; its message has the install command.
        yield Finding(
            severity=Severity.ERROR,
            area=area,
            text=f"{type(error).__name__}: {error}",
            remedy="Install what the message names in the environment that runs this command.",
        )

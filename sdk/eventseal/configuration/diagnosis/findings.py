"""What a diagnosis finds: one line each, with how bad it is and what to do; and its areas."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from eventseal.errors import EventSealError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

P = ParamSpec("P")


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

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "severity": self.severity.value,
            "area": self.area,
            "finding": self.text,
            "remedy": self.remedy,
            "error": None if self.cause is None else type(self.cause).__name__,
        }


@dataclass(frozen=True, slots=True)
class Area:
    """
    One subject of the diagnosis: it makes the findings of its checks.

    Attributes:
        name: See :attr:`Finding.area`.
    """

    name: str

    def ok(self, text: str) -> Finding:
        """Say that something is as it should be."""
        return Finding(severity=Severity.OK, area=self.name, text=text)

    def note(self, text: str, remedy: str) -> Finding:
        """Say what is worth knowing."""
        return Finding(severity=Severity.NOTE, area=self.name, text=text, remedy=remedy)

    def warning(self, text: str, remedy: str) -> Finding:
        """Say what will not always work, or not everywhere."""
        return Finding(severity=Severity.WARNING, area=self.name, text=text, remedy=remedy)

    def error(
        self, kind: type[EventSealError], text: str, remedy: str, severity: Severity = Severity.ERROR
    ) -> Finding:
        """Say what does not work, and in which kind of error using it would end."""
        return self.raised(kind(text, remedy=remedy), severity)

    def raised(self, error: EventSealError, severity: Severity = Severity.ERROR) -> Finding:
        """Turn an error, in which looking ended, into a finding."""
        text = " ".join(str(error).split())
        return Finding(severity=severity, area=self.name, text=text, remedy=error.remedy, cause=error)

    def check(self, find: Callable[P, Iterable[Finding]]) -> Callable[P, Iterator[Finding]]:
        """Make a finding of the error that ends a check: the checks after it still run."""

        @wraps(find)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Iterator[Finding]:
            try:
                yield from find(*args, **kwargs)
            except EventSealError as error:
                yield self.raised(error)
            except ImportError as error:
                # An extra that is not installed; its message has the install command.
                yield Finding(
                    severity=Severity.ERROR,
                    area=self.name,
                    text=f"{type(error).__name__}: {error}",
                    remedy="Install what the message names in the environment that runs this command.",
                )

        return guarded


SETTINGS, KMS, DATABASE, CLOCK = map(Area, ("settings", "kms", "database", "clock"))
TABLES, REGISTRY, FENCES = map(Area, ("tables", "registry", "fences"))
KEYS, LEDGER, MIGRATION, JOBS = map(Area, ("keys", "ledger", "migration", "jobs"))

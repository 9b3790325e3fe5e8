"""The findings of a diagnosis, and the areas that they belong to."""

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
    The severity of a finding.

    - ``OK``: checked, and correct.
    - ``NOTE``: worth knowing. You need not do anything.
    - ``WARNING``: it works now, but it will not work always or everywhere.
    - ``ERROR``: something does not work.
    """

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def asks_for_action(self) -> bool:
        """Whether a person must act."""
        return self in {Severity.WARNING, Severity.ERROR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    The result of one check.

    Attributes:
        severity: The severity.
        area: The area: ``settings``, ``database``, ``tables``, ``registry``, ``fences``, ``clock``, ``kms``,
            ``keys``, ``ledger``, ``migration`` or ``jobs``.
        text: One line that says what the check found. It never contains a secret.
        remedy: The next step, with a statement or a command that can be pasted. Empty if there is no step.
        cause: The error that a use would raise, if there is one. It decides the exit code.
    """

    severity: Severity
    area: str
    text: str
    remedy: str = ""
    cause: EventSealError | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON has it."""
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
    One area of the diagnosis, which creates the findings of its checks.

    Attributes:
        name: The name, as in :attr:`Finding.area`.
    """

    name: str

    def ok(self, text: str) -> Finding:
        """Return a finding that something is correct."""
        return Finding(severity=Severity.OK, area=self.name, text=text)

    def note(self, text: str, remedy: str) -> Finding:
        """Return a finding that is worth knowing."""
        return Finding(severity=Severity.NOTE, area=self.name, text=text, remedy=remedy)

    def warning(self, text: str, remedy: str) -> Finding:
        """Return a finding of something that does not work always or everywhere."""
        return Finding(severity=Severity.WARNING, area=self.name, text=text, remedy=remedy)

    def problem(
        self, kind: type[EventSealError], text: str, remedy: str, severity: Severity = Severity.ERROR
    ) -> Finding:
        """
        Return a finding of something that does not work.

        Its cause is the error that a use would raise.
        """
        return self.raised(kind(text, remedy=remedy), severity)

    def raised(self, error: EventSealError, severity: Severity = Severity.ERROR) -> Finding:
        """Turn the error that ended a check into a finding."""
        text = " ".join(str(error).split())
        return Finding(severity=severity, area=self.name, text=text, remedy=error.remedy, cause=error)

    def check(self, find: Callable[P, Iterable[Finding]]) -> Callable[P, Iterator[Finding]]:
        """Turn an error into a finding, so that later checks still run."""

        @wraps(find)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> Iterator[Finding]:
            try:
                yield from find(*args, **kwargs)
            except EventSealError as error:
                yield self.raised(error)
            except ImportError as error:
                # An extra is not installed. The message has the install command.
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

"""``eventseal doctor``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from eventseal.cli.exits import ExitCode, exit_code
from eventseal.cli.output import print_json, printable
from eventseal.cli.shared_options import Options, with_options
from eventseal.configuration.diagnosis import Finding, Severity, diagnose
from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH = max(len(severity) for severity in Severity)
_WORST_FIRST = (ExitCode.USAGE, ExitCode.TRY_AGAIN, ExitCode.FAILED_ITEMS)

EXAMPLES = """\b
Examples:
  eventseal doctor
  eventseal doctor --json | jq '.findings[] | select(.severity == "error")'
"""


@with_options()
def doctor(
    options: Options,
) -> None:
    """
    Look at everything that EventSeal needs, and say what is amiss.

    It checks the settings, the databases, their tables, the registry, the fences,
    the clocks, what each KEK grants, and the key tables. It changes nothing. What
    is amiss stands with the statement or the command to paste. The exit code is 0
    if there is nothing to do; 2 if settings or rights are wrong, 3 if the KMS or
    the database is away, 1 for everything else.
    """
    with suppress(ConfigurationError):  # which is a finding
        options.settings()
    found: list[Finding] = []
    for finding in diagnose(options.config):
        found.append(finding)
        if not options.as_json:
            _print(finding)
    if options.as_json:
        print_json(_as_json(found))
    else:
        _print_totals(found)
    code = _exit_code(found)
    if code is not ExitCode.DONE:
        raise typer.Exit(code)


def _exit_code(found: Sequence[Finding]) -> ExitCode:
    """What has to be corrected comes before what may pass by itself."""
    codes = {
        ExitCode.FAILED_ITEMS if finding.cause is None else exit_code(finding.cause)
        for finding in found
        if finding.severity.asks_for_action
    }
    return next((code for code in _WORST_FIRST if code in codes), ExitCode.DONE)


def _as_json(found: Sequence[Finding]) -> dict[str, Any]:
    return {
        "verb": "doctor",
        "healthy": not any(finding.severity.asks_for_action for finding in found),
        "findings": [finding.to_json() for finding in found],
    }


def _print(finding: Finding) -> None:
    typer.echo(f"{finding.severity:{_WIDTH}}  {finding.area:8}  {printable(finding.text)}")
    if finding.remedy:
        first, *rest = [printable(line) for line in finding.remedy.splitlines()]
        typer.echo(f"{'':{_WIDTH}}  remedy: {first}")
        for line in rest:
            typer.echo(line)


def _print_totals(found: Sequence[Finding]) -> None:
    counts = {severity: sum(finding.severity is severity for finding in found) for severity in Severity}
    if not counts[Severity.ERROR] and not counts[Severity.WARNING]:
        typer.echo("\nnothing has to be done")
        return
    typer.echo(f"\n{counts[Severity.ERROR]} errors, {counts[Severity.WARNING]} warnings")

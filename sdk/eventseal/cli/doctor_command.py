"""``eventseal doctor``."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventseal.cli.exits import ExitCode, exit_code
from eventseal.cli.output import print_json, printable, verbatim
from eventseal.cli.shared_options import Options, with_options
from eventseal.configuration.diagnosis import Finding, Severity, diagnose
from eventseal.configuration.roles import Role  # noqa: TC001 - read at run time, for the option's type
from eventseal.errors import ConfigurationError
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH = max(len(severity) for severity in Severity)
_WORST_FIRST = (ExitCode.USAGE, ExitCode.TRY_AGAIN, ExitCode.FAILED_ITEMS)

EXAMPLES = """\b
Examples:
  eventseal doctor
  eventseal doctor --json | jq '.findings[] | select(.severity == "error")'
  eventseal doctor --role reader
"""


@with_options()
def doctor(
    options: Options,
    *,
    role: Annotated[Role | None, typer.Option(help="Check only what this role needs.")] = None,
) -> None:
    """
    Check everything that EventSeal needs, and report problems.

    It checks the settings, the databases and their tables, the registry, the
    fences and the clocks. It also checks the permissions on each KMS key, the key
    tables, the ledger, migrations and jobs. It changes nothing. Each problem comes
    with a statement or a command that you can paste.

    With --role, it checks that this process and its database user can do the work of
    one role: see `eventseal policy`.

    If there is nothing to do, the exit code is 0. It is 2 if settings or
    permissions are wrong, and 3 if the KMS or the database is unavailable. For every
    other problem it is 1.
    """
    with suppress(ConfigurationError):  # the diagnosis reports it as a finding
        options.settings()
    found: list[Finding] = []
    for finding in diagnose(options.config, role=role):
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
    """Choose the exit code. A problem to correct comes before a problem that may pass without action."""
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
        first, *rest = [verbatim(line) for line in finding.remedy.splitlines()]
        typer.echo(f"{'':{_WIDTH}}  remedy: {first}")
        for line in rest:
            typer.echo(line)


def _print_totals(found: Sequence[Finding]) -> None:
    counts = {severity: sum(finding.severity is severity for finding in found) for severity in Severity}
    if not counts[Severity.ERROR] and not counts[Severity.WARNING]:
        typer.echo("\nNo problems found.")
        return
    errors, warnings = counted(counts[Severity.ERROR], "error"), counted(counts[Severity.WARNING], "warning")
    typer.echo(f"\n{errors}, {warnings}")

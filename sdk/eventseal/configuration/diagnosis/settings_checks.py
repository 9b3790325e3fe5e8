"""Checks of the settings: that they can be read and built, and that nobody else reads their file."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from eventseal.configuration.assembly import configured_keks
from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.configuration.loading import environment_names, settings_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from eventseal.configuration.settings import Settings

AREA = "settings"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LOCAL = "local://"


def check_settings(path: Path | None, settings: Settings) -> Iterator[Finding]:
    """
    Say where the settings come from, and what is doubtful about them.

    Args:
        path: The file that the caller named, if any.
        settings: As they were read.

    Raises:
        ConfigurationError: No KEK is configured, or fewer than the quorum.
    """
    file = settings_file(path)
    variables = sorted(environment_names().values())
    sources = [str(file)] if file is not None else []
    if variables:
        sources.append(f"{len(variables)} variables: {', '.join(variables)}")
    yield Finding(
        severity=Severity.OK,
        area=AREA,
        text=f"application {settings.application}, from {' and '.join(sources) or 'defaults alone'}",
    )
    if file is not None:
        yield from _check_mode(file)
    yield from _check_keks(configured_keks(settings))


def _check_mode(file: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & _OTHERS:
        yield Finding(
            severity=Severity.WARNING,
            area=AREA,
            text=f"{file} may hold passwords, and its mode is {mode:04o}: others than its owner may use it",
            remedy=f"chmod 600 {file}",
        )


def _check_keks(uris: tuple[str, ...]) -> Iterator[Finding]:
    local = [uri for uri in uris if uri.startswith(_LOCAL)]
    if local:
        yield Finding(
            severity=Severity.NOTE,
            area=AREA,
            text=f"{', '.join(local)} is a key file: for development, not for production",
            remedy="Name a KMS key before it in kms_key, then run: eventseal rewrap",
        )

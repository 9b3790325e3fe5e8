"""Which releases of the eventsourcing library this works under."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from eventseal.errors import ConfigurationError

SUPPORTED = ">=9.3,<10"
_LOWEST, _BELOW = (9, 3), (10, 0)
_INSTALL = "pip install 'eventseal[eventsourcing]'"
_RELEASE = re.compile(r"(\d+)\.(\d+)")


def check_release() -> None:
    """
    Refuse a release of the library that this was not made for.

    Raises:
        ConfigurationError: It is older or newer, or not installed.
    """
    try:
        installed = version("eventsourcing")
    except PackageNotFoundError:
        raise ConfigurationError(
            "the eventsourcing library is not installed", remedy=f"Run: {_INSTALL}"
        ) from None
    found = _RELEASE.match(installed)
    if found is None or not _LOWEST <= (int(found[1]), int(found[2])) < _BELOW:
        raise ConfigurationError(
            f"release {installed} of the eventsourcing library is installed; EventSeal supports {SUPPORTED}",
            remedy=f"Run: {_INSTALL}; or, where an old release wrote the events: eventseal migrate.",
        )

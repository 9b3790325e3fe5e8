"""The ``eventseal`` command: a thin shell over the library."""

from __future__ import annotations

import sys

from eventseal.cli.exits import heed_termination


def main() -> None:
    """Run the command; what ``pyproject.toml`` installs as ``eventseal``."""
    heed_termination()
    try:
        # Not at the top: this import takes a moment, and an interrupt during it must show no traceback.
        from eventseal.cli.app import run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:  # before the command began
        sys.stderr.write(
            "eventseal: error: interrupted\neventseal: remedy: Run it again: nothing was done.\n"
        )
        sys.exit(130)

"""The ``eventseal`` command, a thin layer over the library."""

from __future__ import annotations

import sys

from eventseal.cli.exits import heed_termination


def main() -> None:
    """Run the command that ``pyproject.toml`` installs as ``eventseal``."""
    heed_termination()
    try:
        # Imported here: the import takes a moment, and an interrupt during it must show no traceback.
        from eventseal.cli.app import run

        run()
    except KeyboardInterrupt:  # before the command began
        sys.stderr.write(
            "eventseal: error: interrupted\neventseal: remedy: Nothing was changed. Run it again.\n"
        )
        sys.exit(130)

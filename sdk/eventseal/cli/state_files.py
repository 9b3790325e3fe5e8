"""The file in which a command keeps how far it is, so that it goes on from there after an interruption."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping


class StateFile:
    """
    Holds the state of one run. What it says is authenticated elsewhere.

    Args:
        path: Of the file, whose folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """
        Give what was kept; ``None`` if there is no such file.

        Raises:
            ConfigurationError: The file holds no state, or cannot be read, or its folder is not there.
        """
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"there is no folder {self.path.parent} for {self.path.name}")
        try:
            stored = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict):
            raise ConfigurationError(
                f"{self.path} does not hold how far a run was",
                remedy="Name another file, or delete this one.",
            )
        return stored

    def keep(self, state: Mapping[str, Any]) -> None:
        """
        Put a state in the place of the last one, for its owner alone to read.

        Raises:
            ConfigurationError: It cannot be written; the last state stays.
        """
        try:
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                    json.dump(state, opened)
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink()
                raise
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be written: {error.strerror}") from None

    def remove(self) -> None:
        """Remove the file: the run has ended."""
        self.path.unlink(missing_ok=True)

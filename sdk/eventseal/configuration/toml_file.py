"""Writing the settings file: once, and never over one that is there."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, TypeAlias

from eventseal.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Value: TypeAlias = "str | int | bool | Sequence[str]"

_HEADING = """\
# Settings of EventSeal. EVENTSEAL_* variables win over this file; it may hold passwords, so it is for
# its owner alone.
"""


def write_settings_file(path: Path, values: Mapping[str, Value]) -> None:
    """
    Write a new settings file, mode 0600.

    Args:
        path: Must not exist; its folder must.
        values: As of :func:`as_toml`, in the order in which they are written.

    Raises:
        ConfigurationError: The path is taken, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigurationError(f"settings file {path} is already there, and is never overwritten") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"settings file {path} cannot be written: {reason}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(as_toml(values))


def as_toml(values: Mapping[str, Value]) -> str:
    """
    Give the text of a settings file.

    Args:
        values: Texts, whole numbers, yes or no, and lists of texts, by name.
    """
    return _HEADING + "".join([f"{name} = {_as_toml(value)}\n" for name, value in values.items()])


def _as_toml(value: Value) -> str:
    if isinstance(value, int):
        return json.dumps(value)  # also true and false
    if isinstance(value, str):
        # JSON's strings are TOML's, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join([_as_toml(entry) for entry in value])}]"

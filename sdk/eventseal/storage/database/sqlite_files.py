"""The reasons why SQLite cannot open a file."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy import event

from eventseal.errors import ConfigurationError
from eventseal.wording import shell_word

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Engine, ExceptionContext

_NAME_A_FILE = "Correct store_url or key_store_url: its path must be that of a file."
_PRIMARY_CODE = 0xFF


def make_folder(folder: Path) -> str:
    """Return the remedy for a missing folder."""
    return (
        "If the folder is on a volume, mount the volume. Otherwise correct the path, or create the folder: "
        f"mkdir -p {shell_word(str(folder))}"
    )


def opening_fault(file: Path) -> ConfigurationError | None:
    """
    Return the reason why SQLite cannot open or create a file.

    It only looks at the names and the rights. If this process opened and closed the file itself, it would
    lose the locks of its other connections.

    Args:
        file: The path of the file.

    Returns:
        The error, or ``None`` if nothing is wrong with the path.
    """
    folder = file.parent
    target, right = (file, os.R_OK) if _may(os.F_OK, file) else (folder, os.W_OK | os.X_OK)
    if not _may(os.F_OK, folder):
        fault, remedy = f"there is no folder {folder}", make_folder(folder)
    elif not folder.is_dir():
        fault, remedy = f"{folder} is not a folder", _NAME_A_FILE
    elif not _may(right, target):
        fault, remedy = f"this user has no access to {target}", "Grant this user access to it."
    elif file.is_dir():
        fault, remedy = "the path is a folder", _NAME_A_FILE
    else:
        return None
    return ConfigurationError(f"SQLite cannot open {file}: {fault}", remedy=remedy)


def explain_failed_opening(engine: Engine, file: Path) -> None:
    """
    Let an engine say why it cannot open its SQLite file.

    It raises a configuration error until it has opened the file once. After that, the path is right: if the
    file disappears later, for example because a volume was unmounted, that is an outage. Before that, nothing
    distinguishes an unmounted volume from a wrong path, so the remedy names both.

    Args:
        engine: The engine of the database.
        file: The file that the engine opens.
    """

    def explain(context: ExceptionContext) -> None:
        code = getattr(context.original_exception, "sqlite_errorcode", 0) & _PRIMARY_CODE
        fault = opening_fault(file) if code == sqlite3.SQLITE_CANTOPEN else None
        if fault is not None:
            raise fault

    def opened(*_: object) -> None:
        event.remove(engine, "handle_error", explain)

    event.listen(engine, "handle_error", explain)
    event.listen(engine, "connect", opened, once=True)


def _may(right: int, path: Path) -> bool:
    return os.access(path, right, effective_ids=os.access in os.supports_effective_ids)

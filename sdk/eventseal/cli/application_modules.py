"""Imports the application's own modules: only these may also be in the working directory."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eventseal.configuration.stores import record_classes
from eventseal.items.event_modules import EventModules

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def working_directory_last() -> Iterator[None]:
    """
    Let modules be found in the working directory, after all other places, while the block runs.

    Not longer: an attacker who can write there could put a module in place of an optional package.
    """
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:  # `python -m eventseal`
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def load_modules(*, tables: Sequence[str] = (), event_modules: Sequence[str] = ()) -> None:
    """
    Import the modules that the settings of these names list.

    Raises:
        ConfigurationError: A module or a class is not there.
    """
    with working_directory_last():
        record_classes(tables)
        EventModules(event_modules).load()

"""The application's own modules: the only ones that the command also looks for in the working directory."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eventseal.configuration.stores import record_classes
from eventseal.items.topics import EventModules

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def working_directory_last() -> Iterator[None]:
    """
    Let modules be found in the working directory, behind all others, while the block runs.

    Not longer: an optional package that is not installed would be taken from there by whoever writes there.
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
    Import the modules that settings of these names list.

    Raises:
        ConfigurationError: A module or a class is not there.
    """
    with working_directory_last():
        record_classes(tables)
        EventModules(event_modules).load()

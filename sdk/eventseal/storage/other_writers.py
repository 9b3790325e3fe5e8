"""Whether others write to an SQLite file meanwhile: all that write there wait for one lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.storage.engines import is_in_memory
from eventseal.storage.faults import translated

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_DOING = "looking whether others write"


class OtherWriters:
    """
    Tells whether another connection has committed since one's own last commit, at next to no cost.

    It follows SQLite's ``data_version``, on a connection of its own. Elsewhere writers do not wait for each
    other, and it says no.

    Args:
        engine: Of the database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asks = engine.dialect.name == "sqlite" and not is_in_memory(engine.url)
        self._connection: Connection | None = None
        self._seen: int | None = None

    def begin(self) -> None:
        """Look from here on: one's own commit has just been made."""
        if self._asks:
            self._seen = self._version()

    def wrote(self) -> bool:
        """Say whether another connection has committed since ``begin``; no, if that was never called."""
        return self._seen is not None and self._version() != self._seen

    def close(self) -> None:
        """Give up the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _version(self) -> int:
        with translated(_DOING):
            if self._connection is None:
                self._connection = self._engine.connect()
                self._connection.detach()  # the pool may have room for one only
            version: int = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
            self._connection.rollback()
            return version

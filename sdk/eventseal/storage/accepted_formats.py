"""The older formats that readers accept now, according to the registry."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from eventseal.storage.datastore import SQLAlchemyDatastore


class AcceptedNow:
    """
    Returns the older formats that a collection accepts.

    An answer is at most *interval* seconds old.

    Args:
        datastore: The datastore whose registry is read.
        application: The application that owns the tables.
        interval: Seconds for which an answer stays valid.
        clock: A function that returns the current time in seconds.
    """

    def __init__(
        self,
        datastore: SQLAlchemyDatastore,
        application: str,
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._datastore = datastore
        self._application = application
        self._interval = interval
        self._clock = clock
        self._known: tuple[float, dict[str, set[str]]] | None = None

    def __call__(self, collection: str) -> Collection[str]:
        """
        Return the names of the accepted formats.

        Args:
            collection: The collection of the item.

        Raises:
            StoreError: The database refused or failed, and the last answer is too old.
        """
        known, now = self._known, self._clock()
        if known is None or now - known[0] >= self._interval:
            accepted: dict[str, set[str]] = {}
            # If a table's row was edited, the table accepts no older format. Its envelopes still open.
            for table in self._datastore.registry(self._application).tables:
                accepted.setdefault(table.collection, set()).update(table.old_formats)
            known = self._known = now, accepted
        return known[1].get(collection, frozenset())

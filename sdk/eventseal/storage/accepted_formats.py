"""Which older formats the registry says are accepted now: asked where an item is met that is no envelope."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from eventseal.storage.datastore import SQLAlchemyDatastore


class AcceptedNow:
    """
    Gives the formats that are accepted in a collection, as of at most *interval* seconds ago.

    Args:
        datastore: Its registry is read.
        application: Whose tables.
        interval: Seconds for which an answer holds.
        clock: Seconds.
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
        self._known: tuple[float, Mapping[str, frozenset[str]]] | None = None

    def __call__(self, collection: str) -> Collection[str]:
        """
        Name the formats.

        Args:
            collection: Of the item.

        Raises:
            StoreError: The database refused or failed, and what is known is too old.
        """
        known, now = self._known, self._clock()
        if known is None or now - known[0] >= self._interval:
            known = self._known = now, self._read()
        return known[1].get(collection, frozenset())

    def _read(self) -> Mapping[str, frozenset[str]]:
        accepted: dict[str, frozenset[str]] = {}
        # A table whose row was edited accepts no older format; its envelopes open all the same.
        for table in self._datastore.registry(self._application).tables:
            accepted[table.collection] = accepted.get(table.collection, frozenset()) | {*table.old_formats}
        return accepted

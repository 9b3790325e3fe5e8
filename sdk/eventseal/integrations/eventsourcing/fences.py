"""Fences for the library's tables: its recorders know nothing of keys, so they are made before the INSERT."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from eventseal.storage.fences import CLOSED, fence_states, open_fences
from eventseal.storage.transactions import write
from eventseal.suites.envelope import HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy.engine import Connection

    from eventseal.storage import SQLAlchemyDatastore

MOST_REMEMBERED = 100_000
"""Keys whose fence is known to be there; when there are more, all are forgotten and asked for again."""

_KEY_ID = slice(3, HEADER_SIZE)


class KnownFences:
    """
    Makes an open fence for each key that this process seals under, before anything under it is handed out.

    So the row that a retirement closes is there, and the trigger on the table refuses whatever comes late.

    Args:
        datastore: Of the database that the library writes to.
    """

    def __init__(self, datastore: SQLAlchemyDatastore) -> None:
        self._datastore = datastore
        self._known: set[bytes] = set()

    def is_known(self, envelope: bytes) -> bool:
        """Whether the fence of an envelope's key is known to be there."""
        return envelope[_KEY_ID] in self._known

    def closed_among(self, envelopes: Iterable[bytes]) -> list[UUID]:
        """
        Make the fences that are not known yet.

        Returns:
            The envelopes' keys that were retired already.

        Raises:
            StoreError: The database refused or failed; a missing table is a ``MissingTableError``.
        """
        unknown = {envelope[_KEY_ID] for envelope in envelopes} - self._known
        if not unknown:
            return []
        key_ids = [UUID(bytes=raw) for raw in unknown]
        states = write(
            self._datastore.engine,
            lambda own: _opened(own, key_ids),
            doing="making the fences of keys",
            filtered=True,
        )
        closed = sorted(key_id for key_id, state in states.items() if state == CLOSED)
        if len(self._known) + len(unknown) > MOST_REMEMBERED:
            self._known.clear()
        self._known |= unknown - {key_id.bytes for key_id in closed}
        return closed


def _opened(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, str]:
    open_fences(connection, key_ids)
    return fence_states(connection, key_ids)

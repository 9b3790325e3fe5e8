"""Registered tables as places of items, with the swaps of each database."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from eventseal.errors import ConfigurationError, KeyClosedError
from eventseal.items.sealed_places import refuse_other_purposes
from eventseal.keys.states import KeyPurpose
from eventseal.storage import items
from eventseal.storage.database.transactions import read, write
from eventseal.storage.items.fences import close_fences, open_fences, share_fences
from eventseal.storage.items.key_counts import count_needed
from eventseal.storage.items.swaps_on_sqlite import SQLiteSwaps

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection, Engine

    from eventseal.items.sealed_places import Change, Page, Place, Selection
    from eventseal.storage.items.swaps_on_postgresql import PostgreSQLSwaps
    from eventseal.storage.items.tables import SealedTable


def item_swaps(engine: Engine, table: SealedTable) -> SQLiteSwaps | PostgreSQLSwaps:
    """
    Return the object that reads and swaps the rows of *table*.

    Raises:
        ConfigurationError: The PostgreSQL driver is not psycopg.
    """
    if engine.dialect.name == "sqlite":
        return SQLiteSwaps(engine.dialect, table)
    if engine.dialect.driver != "psycopg":
        raise ConfigurationError(
            f"the driver {engine.dialect.driver} cannot carry a page of items in binary",
            remedy="Use psycopg: begin the database's URL with postgresql:// or postgresql+psycopg://.",
        )
    return items.PostgreSQLSwaps(engine, table)


class TablePlace:
    """
    A registered table as a place.

    Args:
        engine: The engine of the items' database, which has the fences.
        table: The table, from the registry.
    """

    def __init__(self, engine: Engine, table: SealedTable) -> None:
        self._engine = engine
        self._table = table

    @property
    def name(self) -> str:
        """The table's name."""
        return self._table.table

    @property
    def collection(self) -> str:
        """The logical name that is bound to its items."""
        return self._table.collection

    def close_fence(self, key_ids: Collection[UUID]) -> None:
        """Close the fences of keys, which all tables of the database share. See ``SealedPlace``."""
        close_fences(self._engine, key_ids)

    def count_by_key(
        self, key_ids: Collection[UUID], *, purpose: KeyPurpose = KeyPurpose.DATA
    ) -> Mapping[UUID, int]:
        """Count the rows that need keys. See ``SealedPlace``."""
        refuse_other_purposes(purpose)
        counts = count_needed(self._engine, [self._table], key_ids)
        return {key_id: items.total() for key_id, items in counts.items()}

    def pages(self, selection: Selection, after: Place | None, limit: int) -> Page:
        """Read rows in the order of their places. See ``SealedPlace``."""
        page = partial(
            item_swaps(self._engine, self._table).page,
            selection=selection,
            after=after,
            upto=None,
            limit=limit,
        )
        return read(self._engine, page, doing=f"reading {self.name}")

    def swap(self, change: Change) -> Sequence[int]:
        """Store new envelopes in rows. See ``SealedPlace``."""
        swaps = item_swaps(self._engine, self._table)
        swap = swaps.prepare(change.page, change.envelopes)
        # Committed before the items, or whoever waits for such a row would wait for all items.
        open_fences(self._engine, change.fences)

        def work(connection: Connection) -> list[int]:
            closed = share_fences(connection, change.fences)
            if closed:
                raise KeyClosedError(
                    f"nothing was changed in {self.name}. Keys were retired meanwhile: "
                    f"{', '.join(map(str, closed))}",
                    key_ids=tuple(sorted(closed)),
                )
            numbers = swaps.swap(connection, swap)
            if change.cursor is not None:
                change.cursor(connection, numbers)
            change.sources(connection, numbers)
            return numbers

        return write(self._engine, work, doing=f"changing items of {self.name}")

"""Rows that the ledger sets aside, and whether each is still unchanged."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from eventseal.errors import IntegrityError
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.rows import stored_row

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.engine import Connection, Engine

    from eventseal.items.sealed_places import Place
    from eventseal.rotation.sealed_store import SealedStore
    from eventseal.storage.items.rows import StoredRow
    from eventseal.storage.items.tables import SealedTable


SET_ASIDE = "set_aside"
"""Unchanged rows that are set aside. Counted only if there are any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """
    The entry of the ledger for one row.

    Attributes:
        table: The registered table of the row.
        place: The row's sequence id and position, as pages return them.
        sha256: The digest of the row when it was set aside, in hex. See ``StoredRow.digest``.
        reason: The reason that the operator gave.
        at: The time by the key store's clock, in UTC.
        entry: The number of the ledger's entry.
    """

    table: str
    place: Place
    sha256: str
    reason: str
    at: datetime
    entry: int

    @property
    def row(self) -> dict[str, str]:
        """Return the row's primary key as text, as failures have it."""
        sequence_id, position = map(str, self.place)
        return {"sequence_id": sequence_id, "position": position}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {
            "table": self.table,
            "row": self.row,
            "sha256": self.sha256,
            "reason": self.reason,
            "at": self.at.isoformat(timespec="seconds"),
            "entry": self.entry,
        }


def rows_set_aside(store: SealedStore) -> Sequence[SetAside]:
    """
    Return the rows that are set aside in a store. Without a ledger, none are.

    Raises:
        EventSealError: The ledger was edited or cannot be read.
    """
    said: Sequence[SetAside] = getattr(store, "rows_set_aside", tuple)()
    return said


class AsideHere(NamedTuple):
    """A row that is set aside and unchanged."""

    said: SetAside
    stored: StoredRow


class AsideRows:
    """
    Compares the ledger's rows with the current rows.

    Args:
        engine: The engine of the items' database.
        tables: Registered tables. Rows in other tables are unknown here.
        load: Returns the ledger's rows. It is called when they are first needed.
    """

    def __init__(
        self, engine: Engine, tables: Collection[SealedTable], load: Callable[[], Collection[SetAside]]
    ) -> None:
        self._engine = engine
        self._tables = {table.table: table for table in tables}
        self._load = load
        self._here: dict[str, list[AsideHere]] = {}

    @classmethod
    def of_store(cls, store: SealedStore, tables: Collection[SealedTable]) -> AsideRows:
        """Return the rows that a store's ledger sets aside."""
        return cls(store.datastore.engine, tables, partial(rows_set_aside, store))

    @cached_property
    def _said(self) -> Mapping[str, Mapping[Place, SetAside]]:
        by_table: dict[str, dict[Place, SetAside]] = {name: {} for name in self._tables}
        for row in self._load():
            if row.table in by_table:
                by_table[row.table][row.place] = row
        return by_table

    def at(self, table: str, place: Place) -> bool:
        """Return whether the row at a place is set aside and unchanged."""
        said = self._said[table].get(place)
        if said is None:
            return False
        return _still(self._engine, self._tables[table], said) is not None

    def of(self, table: str) -> Sequence[AsideHere]:
        """Return a table's unchanged rows, as they were at the first call."""
        if table not in self._here:
            said = self._said[table].values()
            self._here[table] = _all_still(self._engine, self._tables[table], said) if said else []
        return self._here[table]

    def of_keys(self, key_ids: Collection[UUID]) -> list[AsideHere]:
        """Return the rows that need one of these keys."""
        wanted = frozenset(key_ids)
        return [here for table in self._tables for here in self.of(table) if here.stored.keys & wanted]

    def count_needed(self, connection: Connection, key_ids: Collection[UUID]) -> Mapping[UUID, Counter[str]]:
        """
        Count the rows that need each key, by key and table.

        It counts like ``key_counts.count_needed``, but only these rows. It reads each row again, so a row
        that was changed a moment ago keeps its key.

        Args:
            connection: A connection in the transaction that counts all items.
            key_ids: Any number of key ids.
        """
        found: dict[UUID, Counter[str]] = {}
        for here in self.of_keys(key_ids):
            now = _still(connection, self._tables[here.said.table], here.said)
            for key_id in () if now is None else now.keys.intersection(key_ids):
                found.setdefault(key_id, Counter())[here.said.table] += 1
        return found


def lapsed_rows(
    engine: Engine, tables: Mapping[str, SealedTable], said: Iterable[SetAside]
) -> Iterator[tuple[SetAside, IntegrityError]]:
    """
    Find rows that are set aside but have changed since.

    This includes rows that open now. Otherwise, damage that somebody restores later would be excused
    (docs/decisions/0026).

    Args:
        engine: The engine of the items' database.
        tables: The registered tables, by name. A row in any other table counts as missing.
        said: The ledger's rows.
    """
    for row in said:
        table = tables.get(row.table)
        now = None if table is None else stored_row(engine, table, row.place)
        if now is None:
            yield row, _lapsed(row, "is missing", "Find out who deleted it. If nobody needs it,")
        elif now.digest != row.sha256:
            yield row, _lapsed(row, "has changed since", "Find out who changed it. Then")


def _lapsed(row: SetAside, what: str, todo: str) -> IntegrityError:
    command = ["eventseal", "set-aside", "--undo", "--table", row.table]
    command += ["--sequence", row.row["sequence_id"], "--position", row.row["position"]]
    return IntegrityError(
        f"the row {what}. Entry {row.entry} of the ledger set it aside",
        remedy=f"{todo} withdraw that entry for the row: {shlex.join(command)}",
    )


def _still(connection: Connection | Engine, table: SealedTable, said: SetAside) -> StoredRow | None:
    now = stored_row(connection, table, said.place)
    return now if now is not None and now.digest == said.sha256 else None


@reads("reading {table.table}")
def _all_still(connection: Connection, table: SealedTable, said: Iterable[SetAside]) -> list[AsideHere]:
    rows = [(row, _still(connection, table, row)) for row in said]
    return [AsideHere(row, now) for row, now in rows if now is not None]

"""Rows that the ledger excuses, and whether each is still what it was when it was set aside."""

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
"""Counted only where there are such rows: they do not open, and the ledger says so of exactly these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """
    What the ledger says of one row.

    Attributes:
        table: Its registered table.
        place: Sequence id and position, as pages give them.
        sha256: The digest of the row as it was, in hex; see ``StoredRow.digest``.
        reason: Why it was set aside.
        at: When; the key store's clock, UTC.
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
        """Its primary key as texts, as failures have it."""
        sequence_id, position = map(str, self.place)
        return {"sequence_id": sequence_id, "position": position}

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
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
    Give what is set aside in a store; none if it has no ledger.

    Raises:
        EventSealError: The ledger is not what was written, or cannot be read.
    """
    said: Sequence[SetAside] = getattr(store, "rows_set_aside", tuple)()
    return said


class AsideHere(NamedTuple):
    """A row that is set aside and is still what it was."""

    said: SetAside
    stored: StoredRow


class AsideRows:
    """
    Compares what the ledger says of rows with the rows as they are now.

    Args:
        engine: Of the items' database.
        tables: From the registry; of rows in other tables nothing is known here.
        load: Gives what the ledger says, at the first question.
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
        """Give those that a store's ledger excuses."""
        return cls(store.datastore.engine, tables, partial(rows_set_aside, store))

    @cached_property
    def _said(self) -> Mapping[str, Mapping[Place, SetAside]]:
        by_table: dict[str, dict[Place, SetAside]] = {name: {} for name in self._tables}
        for row in self._load():
            if row.table in by_table:
                by_table[row.table][row.place] = row
        return by_table

    def at(self, table: str, place: Place) -> bool:
        """Whether the row at a place is set aside, as it is now."""
        said = self._said[table].get(place)
        if said is None:
            return False
        return _still(self._engine, self._tables[table], said) is not None

    def of(self, table: str) -> Sequence[AsideHere]:
        """Give the rows of a table that are still what they were, as they were at the first question."""
        if table not in self._here:
            said = self._said[table].values()
            self._here[table] = _all_still(self._engine, self._tables[table], said) if said else []
        return self._here[table]

    def of_keys(self, key_ids: Collection[UUID]) -> list[AsideHere]:
        """Give those for whose sake keys stay."""
        wanted = frozenset(key_ids)
        return [here for table in self._tables for here in self.of(table) if here.stored.keys & wanted]

    def count_needed(self, connection: Connection, key_ids: Collection[UUID]) -> Mapping[UUID, Counter[str]]:
        """
        Count by key and table the rows for whose sake keys stay, as ``key_counts.count_needed`` counts all.

        Each row is read again: what was changed a moment ago keeps its key.

        Args:
            connection: In the transaction that counts all.
            key_ids: Any number.
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
    Find rows that are set aside and are no longer what they were, also those that open now.

    Damage that somebody puts back later would be excused else (docs/decisions/0026).

    Args:
        engine: Of the items' database.
        tables: From the registry, by name; what is in no other table is gone.
        said: What the ledger says.
    """
    for row in said:
        table = tables.get(row.table)
        now = None if table is None else stored_row(engine, table, row.place)
        if now is None:
            yield row, _lapsed(row, "is gone", "Find out who deleted it. If nobody needs it, withdraw")
        elif now.digest != row.sha256:
            yield row, _lapsed(row, "was changed since", "Find out who changed it. Then withdraw")


def _lapsed(row: SetAside, what: str, todo: str) -> IntegrityError:
    command = ["eventseal", "set-aside", "--undo", "--table", row.table]
    command += ["--sequence", row.row["sequence_id"], "--position", row.row["position"]]
    return IntegrityError(
        f"the row was set aside by entry {row.entry} of the ledger, and {what}",
        remedy=f"{todo} what the ledger says of it: {shlex.join(command)}",
    )


def _still(connection: Connection | Engine, table: SealedTable, said: SetAside) -> StoredRow | None:
    now = stored_row(connection, table, said.place)
    return now if now is not None and now.digest == said.sha256 else None


@reads("reading {table.table}")
def _all_still(connection: Connection, table: SealedTable, said: Iterable[SetAside]) -> list[AsideHere]:
    rows = [(row, _still(connection, table, row)) for row in said]
    return [AsideHere(row, now) for row, now in rows if now is not None]

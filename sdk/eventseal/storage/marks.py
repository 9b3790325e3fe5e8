"""What is known of compromised keys: their items when they were marked, and the envelopes replaced since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import BigInteger, Integer, func, literal_column, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError

from eventseal.storage.faults import has_no_such_column
from eventseal.storage.item_rows import described
from eventseal.storage.job_tables import compromised_marks, replaced_envelopes
from eventseal.storage.types import DatabaseClock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.engine import Connection

    from eventseal.storage.registry import SealedTable

_HORIZON = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
_FULL_XMIN = f"({_HORIZON} - mod({_HORIZON} - xmin::text::bigint, 4294967296))"
"""A row has the low 32 bits of its transaction's id only, and was written in the past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """
    What a table held under a key when that was marked as compromised.

    Attributes:
        key_id: The key.
        table: The table.
        items: Rows under the key.
        high_water: In the database's own order of writing: what was there is not above it, what comes later
            is. ``None`` where a table has no such order.
        replaced_before: Envelopes of the key and the table that had been replaced by then.
        recorded_at: By the database's clock.
    """

    key_id: UUID
    table: str
    items: int
    high_water: int | None
    replaced_before: int
    recorded_at: datetime

    def covers(self, written: int | None) -> bool:
        """Whether a row was there, by when it was written."""
        return self.high_water is None or written is None or written <= self.high_water


class Replaced(NamedTuple):
    """An envelope that gave way to one under another key: what is kept of it."""

    key_id: UUID
    table: str
    sha256: bytes
    sequence_id: str
    position: str


def record_mark(connection: Connection, table: SealedTable, key_id: UUID) -> None:
    """
    Record what a table holds under a key, in place of an earlier mark.

    Args:
        connection: In a READ COMMITTED transaction that closed the key's fence in an earlier statement; on
            SQLite in one that holds the write lock.
        table: From the registry.
        key_id: That is compromised.
    """
    found = described(table)
    on_postgresql = connection.dialect.name == "postgresql"
    count = select(func.count()).select_from(found.table).where(found.key_id == key_id)
    if on_postgresql:
        # One statement, hence one snapshot: what it does not see is not below the mark.
        horizon = literal_column(f"{_HORIZON} - 1", BigInteger)
        items, high_water = connection.execute(select(count.scalar_subquery(), horizon)).one()
    else:
        items, high_water = connection.execute(count).scalar_one(), _highest_rowid(connection, found.table)
    replaced = select(func.count()).where(
        replaced_envelopes.c.key_id == key_id, replaced_envelopes.c.table_name == table.table
    )
    values = {
        "items_found": items,
        "high_water": high_water,
        "replaced_before": connection.execute(replaced).scalar_one(),
        "recorded_at": DatabaseClock(),
    }
    insertion: Any = (postgresql if on_postgresql else sqlite).insert(compromised_marks)
    connection.execute(
        insertion.values(key_id=key_id, table_name=table.table, **values).on_conflict_do_update(
            index_elements=["key_id", "table_name"], set_=values
        )
    )


def count_below(connection: Connection, table: SealedTable, mark: Mark) -> int:
    """Count the rows under a marked key that were there when it was marked."""
    found = described(table)
    conditions = [found.key_id == mark.key_id]
    if mark.high_water is not None:
        on_postgresql = connection.dialect.name == "postgresql"
        written: ColumnElement[int] = literal_column(_FULL_XMIN if on_postgresql else "rowid", BigInteger)
        conditions.append(written <= mark.high_water)
    query = select(func.count()).select_from(found.table).where(*conditions)
    return connection.execute(query).scalar_one()


def load_marks(connection: Connection, table: str) -> dict[UUID, Mark]:
    """Read the marks of a table, by key."""
    query = select(compromised_marks).where(compromised_marks.c.table_name == table)
    return {
        row.key_id: Mark(
            key_id=row.key_id,
            table=row.table_name,
            items=row.items_found,
            high_water=row.high_water,
            replaced_before=row.replaced_before,
            recorded_at=row.recorded_at,
        )
        for row in connection.execute(query)
    }


def add_replaced(connection: Connection, replaced: Sequence[Replaced]) -> None:
    """Keep the digests of envelopes that were just replaced."""
    rows = [
        {
            "key_id": each.key_id,
            "table_name": each.table,
            "sha256": each.sha256,
            "sequence_id": each.sequence_id,
            "position": each.position,
        }
        for each in replaced
    ]
    if rows:
        insertion: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(
            replaced_envelopes
        )
        connection.execute(insertion.values(replaced_at=DatabaseClock()).on_conflict_do_nothing(), rows)


def count_replaced(connection: Connection, table: str) -> dict[UUID, int]:
    """Count the envelopes of a table that were replaced, by key."""
    columns = replaced_envelopes.c
    query = select(columns.key_id, func.count()).where(columns.table_name == table).group_by(columns.key_id)
    return {row[0]: row[1] for row in connection.execute(query)}


def _highest_rowid(connection: Connection, table: Table) -> int | None:
    highest = func.max(literal_column("rowid", Integer))
    try:
        return connection.execute(select(func.coalesce(highest, 0)).select_from(table)).scalar_one()
    except OperationalError as error:
        if not has_no_such_column(error):
            raise
        return None  # made WITHOUT ROWID

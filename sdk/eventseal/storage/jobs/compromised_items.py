"""
What is known of compromised keys: their items when they were marked, and the envelopes replaced since.

PostgreSQL's rows say themselves when they were written. On SQLite the tag of each envelope is noted
(docs/decisions/0012).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    LargeBinary,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
)

from eventseal.storage.database.column_types import DatabaseClock, HoldsUUID
from eventseal.storage.database.rows import chunks, insert_unless_there, insertion, read_rows
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.items.swaps import TAG_SIZE
from eventseal.storage.items.table_queries import described
from eventseal.storage.jobs.tables import compromised_marks, marked_envelopes, replaced_envelopes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Page
    from eventseal.storage.items.tables import SealedTable


_HORIZON = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
_FULL_XMIN = f"({_HORIZON} - mod({_HORIZON} - xmin::text::bigint, 4294967296))"
"""A row has the low 32 bits of its transaction's id only, and was written in the past."""

_COLUMNS = marked_envelopes.c
_FORGET = delete(marked_envelopes).where(
    _COLUMNS.key_id == bindparam("of_key"),
    _COLUMNS.table_name == bindparam("of_table"),
    _COLUMNS.tag == bindparam("of_tag"),
)


class Envelopes(NamedTuple):
    """How many envelopes were kept of a key and were not replaced since, and how many of those are there."""

    expected: int
    found: int


def _keep_envelopes(connection: Connection, table: SealedTable, key_ids: Collection[UUID]) -> None:
    """Note every envelope that a table holds under some keys, in place of what was noted before."""
    _drop_envelopes(connection, key_ids, table=table.table)
    columns = described(table)
    key_id, tag = columns.key_id, _tag(columns["data"])
    # In the order of the primary key: out of it a million rows take ten times as long.
    there = select(key_id, literal(table.table), tag).where(key_id.in_(key_ids)).order_by(key_id, tag)
    noting = insert(marked_envelopes).prefix_with("OR IGNORE")  # a copied row is there twice
    connection.execute(noting.from_select(["key_id", "table_name", "tag"], there))


def _kept_envelopes(connection: Connection, table: str, page: Page) -> list[int]:
    """Give the numbers of rows whose envelope was noted, and not replaced since."""
    by_key: dict[UUID, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, sealed in enumerate(page.envelopes):
        key_id = page.key_id(number)
        if key_id is not None and isinstance(sealed, bytes):  # an edit may have put anything there
            by_key[key_id][sealed[-TAG_SIZE:]].append(number)
    kept: list[int] = []
    for key_id, numbers in by_key.items():
        for chunk in chunks(numbers):
            query = select(_COLUMNS.tag).where(
                _COLUMNS.key_id == key_id, _COLUMNS.table_name == table, _COLUMNS.tag.in_(chunk)
            )
            for tag in connection.execute(query).scalars():
                kept += numbers[tag]
    return sorted(kept)


def forget_replaced(connection: Connection, table: str, replaced: Page) -> None:
    """Forget the envelopes of rows that were just replaced: who puts one back is noticed."""
    gone = [
        {"of_key": replaced.key_id(number), "of_table": table, "of_tag": sealed[-TAG_SIZE:]}
        for number, sealed in enumerate(replaced.envelopes)
    ]
    if gone:
        connection.execute(_FORGET, gone)


def _drop_envelopes(connection: Connection, key_ids: Collection[UUID], *, table: str | None = None) -> None:
    """Forget what was noted of some keys, in one table or in all."""
    for chunk in chunks(key_ids):
        dropping = delete(marked_envelopes).where(_COLUMNS.key_id.in_(chunk))
        connection.execute(dropping if table is None else dropping.where(_COLUMNS.table_name == table))


def _count_envelopes(connection: Connection, table: SealedTable) -> dict[UUID, Envelopes]:
    """Compare the envelopes that were noted, and not replaced since, with those that a table holds."""
    of_table = _COLUMNS.table_name == table.table
    has_id = HoldsUUID(_COLUMNS.key_id)
    noted = select(_COLUMNS.key_id, func.count()).where(of_table, has_id).group_by(_COLUMNS.key_id)
    expected = {row[0]: row[1] for row in connection.execute(noted)}
    columns = described(table)
    is_noted = (
        select(literal(1))
        .where(of_table, _COLUMNS.key_id == columns.key_id, _COLUMNS.tag == _tag(columns["data"]))
        .exists()
    )
    found: dict[UUID, int] = {}
    for chunk in chunks(expected):
        there = select(columns.key_id, func.count()).where(columns.key_id.in_(chunk), is_noted)
        found.update({row[0]: row[1] for row in connection.execute(there.group_by(columns.key_id))})
    return {key_id: Envelopes(number, found.get(key_id, 0)) for key_id, number in expected.items()}


def _tag(data: ColumnElement[Any]) -> ColumnElement[bytes]:
    return cast(func.substr(data, -TAG_SIZE), LargeBinary)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompromisedItems:
    """
    What a table held under a key when that was marked as compromised.

    Attributes:
        key_id: The key.
        table: The table.
        items: Rows under the key.
        high_water: In the database's own order of writing: what was there is not above it, what comes later
            is. ``None`` where the database has no such order: there the envelopes are noted.
        replaced_before: Envelopes of the key and the table that had been replaced by then.
        recorded_at: By the database's clock.
        unreadable: The columns that somebody edited. Then the other fields are stand-ins, and nothing was
            there for certain.
    """

    key_id: UUID
    table: str
    items: int
    high_water: int | None
    replaced_before: int
    recorded_at: datetime | None
    unreadable: tuple[str, ...] = ()

    def covers(self, written: int | None) -> bool:
        """Whether a row was there, by when it was written."""
        if self.unreadable:
            return False
        return self.high_water is None or written is None or written <= self.high_water


class Replaced(NamedTuple):
    """An envelope that gave way to one under another key: what is kept of it."""

    key_id: UUID
    table_name: str
    sha256: bytes
    sequence_id: str
    position: str


def record_compromised_items(connection: Connection, table: SealedTable, key_ids: Collection[UUID]) -> None:
    """
    Record what a table holds under some keys, in place of earlier marks.

    Args:
        connection: In a READ COMMITTED transaction that closed the keys' fences in an earlier statement; on
            SQLite in one that holds the write lock.
        table: From the registry.
        key_ids: That are compromised; a few hundred at most.
    """
    on_postgresql = connection.dialect.name == "postgresql"
    high_water, items = (_items_below if on_postgresql else _items)(connection, table, key_ids)
    if not on_postgresql:
        _keep_envelopes(connection, table, key_ids)
    replaced = count_replaced(connection, table.table, key_ids)
    inserting = insertion(connection, compromised_marks)
    noted = ("items_found", "high_water", "replaced_before", "recorded_at")
    connection.execute(
        inserting.values(recorded_at=DatabaseClock()).on_conflict_do_update(
            index_elements=["key_id", "table_name"],
            set_={name: inserting.excluded[name] for name in noted},
        ),
        [
            {
                "key_id": key_id,
                "table_name": table.table,
                "items_found": items.get(key_id, 0),
                "high_water": high_water,
                "replaced_before": replaced.get(key_id, 0),
            }
            for key_id in sorted(key_ids)
        ],
    )


@writes("forgetting the marks of destroyed keys")
def drop_compromised_items(connection: Connection, key_ids: Collection[UUID]) -> None:
    """Forget the marks of keys that are destroyed: nothing is ever moved from under them any more."""
    for chunk in chunks(key_ids):
        connection.execute(delete(compromised_marks).where(compromised_marks.c.key_id.in_(chunk)))
    _drop_envelopes(connection, key_ids)


@reads("reading the marks of compromised keys")
def were_there(
    connection: Connection, table: str, marks: Mapping[UUID, CompromisedItems], page: Page
) -> list[int]:
    """
    Tell which rows were there, as they are, when their keys were marked; those of unmarked keys too.

    Args:
        connection: In a transaction.
        table: The table's name.
        marks: Of the table.
        page: With the rows' order of writing, where the database has one.

    Returns:
        Their numbers.
    """
    of_rows = [
        None if (key_id := page.key_id(number)) is None else marks.get(key_id) for number in range(len(page))
    ]
    if page.written:
        by_order = zip(of_rows, page.written, strict=True)
        return [number for number, (mark, at) in enumerate(by_order) if mark is None or mark.covers(at)]
    kept = set(_kept_envelopes(connection, table, page))
    return [
        number
        for number, mark in enumerate(of_rows)
        if mark is None or (not mark.unreadable and number in kept)
    ]


@reads("reading the digests of replaced envelopes")
def recorded(connection: Connection, table: str, page: Page) -> list[int]:
    """
    Tell which envelopes of compromised keys are known to be older than the mark of their key.

    Their digest was kept when they were replaced, or, on SQLite, their tag was noted when the key was marked.

    Args:
        connection: In a transaction.
        table: The table's name.
        page: Rows under compromised keys, of this table or of a backup of it.

    Returns:
        Their numbers.
    """
    numbers: dict[tuple[UUID | None, bytes], list[int]] = defaultdict(list)
    for number, sealed in enumerate(page.envelopes):
        numbers[page.key_id(number), sha256(sealed).digest()].append(number)
    columns = replaced_envelopes.c
    found = set(_kept_envelopes(connection, table, page))
    for chunk in chunks({digest for _, digest in numbers}):
        query = select(columns.key_id, columns.sha256).where(
            columns.table_name == table, columns.sha256.in_(chunk), HoldsUUID(columns.key_id)
        )
        for key_id, digest in connection.execute(query):
            found.update(numbers.get((key_id, digest), ()))
    return sorted(found)


@reads("counting {table.table}")
def count_below(connection: Connection, table: SealedTable) -> dict[UUID, Envelopes]:
    """
    Compare, for each marked key, what is left of what was there then with what should be.

    Args:
        connection: In a transaction.
        table: From the registry.
    """
    if connection.dialect.name != "postgresql":
        return _count_envelopes(connection, table)
    marks = load_compromised_items(connection, table.table)
    replaced = count_replaced(connection, table.table)
    together: dict[int | None, list[UUID]] = defaultdict(list)  # a hundred that were marked at once
    for key_id, mark in marks.items():
        if mark.unreadable:
            continue  # each of its items is reported
        together[mark.high_water].append(key_id)
    column = described(table).key_id
    written = literal_column(_FULL_XMIN, BigInteger)
    counting = select(column, func.count()).group_by(column)
    found: dict[UUID, int] = {}
    for high_water, key_ids in together.items():
        for chunk in chunks(key_ids):
            below = counting.where(column.in_(chunk), written <= high_water)
            found.update({row[0]: row[1] for row in connection.execute(below)})
    return {
        key_id: Envelopes(each.items - (replaced.get(key_id, 0) - each.replaced_before), found.get(key_id, 0))
        for key_id, each in marks.items()
        if not each.unreadable
    }


@reads("reading the marks of compromised keys")
def load_compromised_items(connection: Connection, table: str) -> dict[UUID, CompromisedItems]:
    """Read the marks of a table, by key."""
    query = select(compromised_marks).where(
        compromised_marks.c.table_name == table, HoldsUUID(compromised_marks.c.key_id)
    )
    return {
        row.values["key_id"]: CompromisedItems(
            key_id=row.values["key_id"],
            table=table,
            items=row.values.get("items_found", 0),
            high_water=row.values.get("high_water"),
            replaced_before=row.values.get("replaced_before", 0),
            recorded_at=row.values.get("recorded_at"),
            unreadable=row.unreadable,
        )
        for row in read_rows(connection, query)
    }


def add_replaced(connection: Connection, replaced: Sequence[Replaced]) -> None:
    """Keep the digests of envelopes that were just replaced."""
    if replaced:
        inserting = insert_unless_there(connection, replaced_envelopes)
        rows = [each._asdict() for each in replaced]
        connection.execute(inserting.values(replaced_at=DatabaseClock()), rows)


def count_replaced(
    connection: Connection, table: str, key_ids: Collection[UUID] | None = None
) -> dict[UUID, int]:
    """Count the envelopes of a table that were replaced, by key; ``None``: of every key."""
    columns = replaced_envelopes.c
    query = (
        select(columns.key_id, func.count())
        .where(columns.table_name == table, HoldsUUID(columns.key_id))
        .group_by(columns.key_id)
    )
    if key_ids is not None:
        query = query.where(columns.key_id.in_(key_ids))
    return {row[0]: row[1] for row in connection.execute(query)}


def _items(
    connection: Connection, table: SealedTable, key_ids: Collection[UUID]
) -> tuple[int | None, dict[UUID, int]]:
    column = described(table).key_id
    query = select(column, func.count()).where(column.in_(key_ids)).group_by(column)
    return None, {row[0]: row[1] for row in connection.execute(query)}


def _items_below(
    connection: Connection, table: SealedTable, key_ids: Collection[UUID]
) -> tuple[int | None, dict[UUID, int]]:
    """Count rows, and read the horizon, in one statement, hence one snapshot: what is later is above it."""
    column = described(table).key_id
    horizon = literal_column(f"{_HORIZON} - 1", BigInteger)
    counted = select(column, func.count(), horizon).where(column.in_(key_ids)).group_by(column)
    alone = select(cast(null(), column.type), literal(0), horizon)
    (*_, high_water), *counts = connection.execute(alone.union_all(counted)).all()
    return high_water, {row[0]: row[1] for row in counts}

"""
The items of compromised keys, and their envelopes that were replaced.

The items are those at the time when their key was marked. PostgreSQL's rows show themselves when they were
written. On SQLite the tag of each envelope is stored (docs/decisions/0012).
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
"""
The 64-bit transaction id of a row.

A row has only the low 32 bits, and was written in the past.
"""

_COLUMNS = marked_envelopes.c
_FORGET = delete(marked_envelopes).where(
    _COLUMNS.key_id == bindparam("of_key"),
    _COLUMNS.table_name == bindparam("of_table"),
    _COLUMNS.tag == bindparam("of_tag"),
)


class Envelopes(NamedTuple):
    """
    The envelopes of a key that were stored and not replaced.

    ``expected`` counts all of them. ``found`` counts those that are still in the table.
    """

    expected: int
    found: int


def _keep_envelopes(connection: Connection, table: SealedTable, key_ids: Collection[UUID]) -> None:
    """
    Store the tag of every envelope under some keys.

    The tags replace those that were stored for the table before.
    """
    _drop_envelopes(connection, key_ids, table=table.table)
    columns = described(table)
    key_id, tag = columns.key_id, _tag(columns["data"])
    # In the order of the primary key. In another order, a million rows take ten times as long.
    there = select(key_id, literal(table.table), tag).where(key_id.in_(key_ids)).order_by(key_id, tag)
    noting = insert(marked_envelopes).prefix_with("OR IGNORE")  # a copied row occurs twice
    connection.execute(noting.from_select(["key_id", "table_name", "tag"], there))


def _kept_envelopes(connection: Connection, table: str, page: Page) -> list[int]:
    """Return the numbers of rows whose envelope was stored and not replaced."""
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
    """Delete the tags of envelopes that were just replaced. If somebody puts one back, it is noticed."""
    gone = [
        {"of_key": replaced.key_id(number), "of_table": table, "of_tag": sealed[-TAG_SIZE:]}
        for number, sealed in enumerate(replaced.envelopes)
    ]
    if gone:
        connection.execute(_FORGET, gone)


def _drop_envelopes(connection: Connection, key_ids: Collection[UUID], *, table: str | None = None) -> None:
    """Delete the stored tags of keys, in one table or all."""
    for chunk in chunks(key_ids):
        dropping = delete(marked_envelopes).where(_COLUMNS.key_id.in_(chunk))
        connection.execute(dropping if table is None else dropping.where(_COLUMNS.table_name == table))


def _count_envelopes(connection: Connection, table: SealedTable) -> dict[UUID, Envelopes]:
    """
    Compare the envelopes that were stored with those in a table.

    Envelopes that were replaced since do not count.
    """
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
    The items under a key when it was marked as compromised.

    A table has one such record for each key.

    Attributes:
        key_id: The key.
        table: The table.
        items: The number of rows under the key.
        high_water: The limit in the database's own order of writing. Existing rows are not above it, later
            rows are. ``None`` if the database has no such order. Then the envelopes are stored instead.
        replaced_before: The number of envelopes of the key in this table that had been replaced by then.
        recorded_at: The time by the database's clock.
        unreadable: The columns that somebody edited. If there are any, the other fields are placeholders, and
            no item is certain to have been there.
    """

    key_id: UUID
    table: str
    items: int
    high_water: int | None
    replaced_before: int
    recorded_at: datetime | None
    unreadable: tuple[str, ...] = ()

    def covers(self, written: int | None) -> bool:
        """Return whether a row was there, by the time of its writing."""
        if self.unreadable:
            return False
        return self.high_water is None or written is None or written <= self.high_water


class Replaced(NamedTuple):
    """The record of an envelope that another key's envelope replaced."""

    key_id: UUID
    table_name: str
    sha256: bytes
    sequence_id: str
    position: str


def record_compromised_items(connection: Connection, table: SealedTable, key_ids: Collection[UUID]) -> None:
    """
    Record the items that a table holds under some keys.

    The records replace earlier marks.

    Args:
        connection: A connection in a READ COMMITTED transaction that closed the keys' fences in an earlier
            statement. On SQLite, it holds the write lock.
        table: The table, from the registry.
        key_ids: The compromised keys, a few hundred at most.
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
    """Delete the marks of destroyed keys. No items are re-encrypted from them any more."""
    for chunk in chunks(key_ids):
        connection.execute(delete(compromised_marks).where(compromised_marks.c.key_id.in_(chunk)))
    _drop_envelopes(connection, key_ids)


@reads("reading the marks of compromised keys")
def were_there(
    connection: Connection, table: str, marks: Mapping[UUID, CompromisedItems], page: Page
) -> list[int]:
    """
    Return the rows that were there, unchanged, when their keys were marked.

    Rows of unmarked keys are included.

    Args:
        connection: A connection in a transaction.
        table: The table's name.
        marks: The marks of the table.
        page: The page, with the order of writing if the database has one.

    Returns:
        The numbers of the rows.
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
    Return the envelopes that are known to be older than their mark.

    They are sealed under compromised keys. Their digest was stored when they were replaced. Or, on SQLite,
    their tag was stored when the key was marked.

    Args:
        connection: A connection in a transaction.
        table: The table's name.
        page: Rows under compromised keys, of this table or of a backup of it.

    Returns:
        The numbers of the rows.
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
    Compare the remaining items of marked keys with the expected ones.

    The items are those that were there when the key was marked. *table* comes from the registry.
    """
    if connection.dialect.name != "postgresql":
        return _count_envelopes(connection, table)
    marks = load_compromised_items(connection, table.table)
    replaced = count_replaced(connection, table.table)
    together: dict[int | None, list[UUID]] = defaultdict(list)  # keys that were marked together
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
    """Read the marks of a table by key."""
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
    """Store the digests of envelopes that were just replaced."""
    if replaced:
        inserting = insert_unless_there(connection, replaced_envelopes)
        rows = [each._asdict() for each in replaced]
        connection.execute(inserting.values(replaced_at=DatabaseClock()), rows)


def count_replaced(
    connection: Connection, table: str, key_ids: Collection[UUID] | None = None
) -> dict[UUID, int]:
    """Count the replaced envelopes of a table by key. Without *key_ids*, count those of every key."""
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
    """
    Count rows, and read the horizon.

    One statement does both, so both belong to one snapshot. Later rows are above the horizon.
    """
    column = described(table).key_id
    horizon = literal_column(f"{_HORIZON} - 1", BigInteger)
    counted = select(column, func.count(), horizon).where(column.in_(key_ids)).group_by(column)
    alone = select(cast(null(), column.type), literal(0), horizon)
    (*_, high_water), *counts = connection.execute(alone.union_all(counted)).all()
    return high_water, {row[0]: row[1] for row in counts}

"""
What was under compromised keys when those were marked, where rows do not say when they were written.

SQLite's do not: an UPDATE leaves no trace there, and anybody may choose a row's number. So the tags of the
envelopes are kept: no other envelope has one of them, not even one that was made with the key.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import LargeBinary, bindparam, cast, delete, func, insert, literal, select

from eventseal.storage.engines import chunks
from eventseal.storage.item_rows import described
from eventseal.storage.item_swaps import TAG_SIZE
from eventseal.storage.job_tables import marked_envelopes
from eventseal.storage.types import HoldsUUID

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any
    from uuid import UUID

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Page
    from eventseal.storage.sealed_table import SealedTable

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


def keep_envelopes(connection: Connection, table: SealedTable, key_ids: Collection[UUID]) -> None:
    """
    Note every envelope that a table holds under some keys, in place of what was noted before.

    Args:
        connection: In a transaction that holds the write lock.
        table: From the registry.
        key_ids: A few hundred at most.
    """
    drop_envelopes(connection, key_ids, table=table.table)
    columns = described(table)
    key_id, tag = columns.key_id, _tag(columns["data"])
    # In the order of the primary key: out of it a million rows take ten times as long.
    there = select(key_id, literal(table.table), tag).where(key_id.in_(key_ids)).order_by(key_id, tag)
    noting = insert(marked_envelopes).prefix_with("OR IGNORE")  # a copied row is there twice
    connection.execute(noting.from_select(["key_id", "table_name", "tag"], there))


def kept_envelopes(connection: Connection, table: str, page: Page) -> list[int]:
    """
    Tell which rows of a page hold an envelope that was noted, and not replaced since.

    Args:
        connection: In a transaction.
        table: The table's name.
        page: Rows under compromised keys.

    Returns:
        Their numbers.
    """
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


def drop_envelopes(connection: Connection, key_ids: Collection[UUID], *, table: str | None = None) -> None:
    """Forget what was noted of some keys, in one table or in all."""
    for chunk in chunks(key_ids):
        dropping = delete(marked_envelopes).where(_COLUMNS.key_id.in_(chunk))
        connection.execute(dropping if table is None else dropping.where(_COLUMNS.table_name == table))


def count_envelopes(connection: Connection, table: SealedTable) -> Mapping[UUID, Envelopes]:
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

"""Counts rows by key, and finds rows that no count can place."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import func, or_, select

from eventseal.storage.database.rows import chunks
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.rows import ItemRow
from eventseal.storage.items.table_queries import described

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from uuid import UUID

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

    from eventseal.items.sealed_places import Place
    from eventseal.storage.items.table_queries import DescribedTable
    from eventseal.storage.items.tables import SealedTable

_JSON_FORMATS = frozenset({"plain-json"})
_BEFORE_JSON = [bytes([byte]) for byte in b"{ \t\n\v\f\r"]
"""The first bytes of a JSON object, including white space."""


@reads("counting the items of keys")
def count_under(
    connection: Connection, tables: Iterable[SealedTable], key_ids: Collection[UUID]
) -> dict[UUID, Counter[str]]:
    """
    Count the items under keys, as their envelopes' headers name them.

    Args:
        connection: A connection to the tables' database. In a READ COMMITTED transaction, each statement also
            counts the items that were committed since the statement before.
        tables: The tables, from the registry.
        key_ids: The keys, any number.

    Returns:
        The items in each table, by key. A key without items is left out.
    """
    found: dict[UUID, Counter[str]] = {}
    for table in tables:
        # By the header, because anybody who can write to the database can set the column
        # (docs/decisions/0020).
        _add_counts(found, connection, table, described(table).key_id, key_ids)
    return found


def count_misnamed(
    connection: Connection, tables: Iterable[SealedTable], key_ids: Collection[UUID]
) -> dict[UUID, Counter[str]]:
    """
    Count the rows that name keys only in their column.

    They are counted as by :func:`count_under`. Before such a row is restored, nobody knows which of its two
    ids is right. So the row keeps both keys.
    """
    found: dict[UUID, Counter[str]] = {}
    for table in tables:
        if table.has_key_ids:
            columns = described(table)
            # A partial index has exactly these rows: none in an undamaged store (docs/decisions/0020).
            _add_counts(found, connection, table, columns[KEY_ID], key_ids, columns.differs)
    return found


def _add_counts(
    found: dict[UUID, Counter[str]],
    connection: Connection,
    table: SealedTable,
    column: ColumnElement[UUID],
    key_ids: Collection[UUID],
    *conditions: ColumnElement[bool],
) -> None:
    for chunk in chunks(sorted(key_ids)):
        query = select(column, func.count()).where(*conditions, column.in_(chunk)).group_by(column)
        for named, items in connection.execute(query):
            found.setdefault(named, Counter())[table.table] += items


@reads("counting the items of keys")
def count_needed(
    connection: Connection, tables: Iterable[SealedTable], key_ids: Collection[UUID]
) -> dict[UUID, Counter[str]]:
    """
    Count the rows that need keys.

    These are the rows that are sealed under a key, and those that only name it.

    Args:
        connection: A connection to the items' database.
        tables: The tables, from the registry.
        key_ids: The keys, any number.

    Returns:
        The rows in each table, by key. A key that no row needs is left out.
    """
    tables = list(tables)
    items = count_under(connection, tables, key_ids)
    for key_id, counts in count_misnamed(connection, tables, key_ids).items():
        items.setdefault(key_id, Counter()).update(counts)
    return items


@reads("counting {table.table}")
def count_differing(connection: Connection, table: SealedTable) -> dict[UUID | None, int]:
    """
    Count the rows of :func:`differing_rows` by the key in their header.

    Rows that are not envelopes count under ``None``.
    """
    columns = described(table)
    query = select(columns.key_id, func.count()).where(columns.differs).group_by(columns.key_id)
    return {row[0]: row[1] for row in connection.execute(query)} if table.has_key_ids else {}


@reads("comparing the key ids of {table.table}")
def differing_rows(connection: Connection, table: SealedTable, *, limit: int) -> tuple[int, list[ItemRow]]:
    """
    Find the rows whose column and header name different keys.

    A row also differs if only one of the two names a key.

    Args:
        connection: A connection to the table's database.
        table: The table, from the registry.
        limit: The maximum number of returned rows.

    Returns:
        The number of such rows, and some of them with the key of their header.
    """
    columns = described(table)
    return _count_and_some(connection, columns, columns.differs, limit) if table.has_key_ids else (0, [])


@reads("looking for damaged rows of {table.table}")
def rows_without_envelope(
    connection: Connection, table: SealedTable, *, limit: int
) -> tuple[int, list[ItemRow]]:
    """
    Find the rows whose data is not an envelope.

    The limit and the result are as for :func:`differing_rows`.
    """
    columns = described(table)
    return _count_and_some(connection, columns, columns.key_id.is_(None), limit)


@reads("counting {table.table}")
def count_unreadable(connection: Connection, table: SealedTable, *, place: Place | None = None) -> int:
    """
    Count rows that no reader of plaintext or older formats accepts.

    It is for a table that accepts plaintext items or an older format. Such rows are not envelopes. They begin
    like no accepted item, or name a key in their column. This does not decrypt anything, so `verify` finds
    more.

    Args:
        connection: A connection to the table's database.
        table: The table, from the registry.
        place: Check only the row at this place. With ``None``, check all rows.
    """
    columns = described(table)
    data = columns["data"]
    fits: ColumnElement[bool] = func.substr(data, 1, 1, type_=data.type).in_(_BEFORE_JSON)
    if not _JSON_FORMATS.issuperset(table.old_formats):  # other formats begin with any byte
        fits = func.typeof(data) == "blob" if connection.dialect.name == "sqlite" else data.is_not(None)
    query = select(func.count()).where(columns.key_id.is_(None), or_(fits.is_not(True), columns.differs))
    if place is not None:
        query = query.where(columns["sequence_id"] == place[0], columns["position"] == place[1])
    return int(connection.execute(query).scalar_one())


def _count_and_some(
    connection: Connection, columns: DescribedTable, condition: ColumnElement[bool], limit: int
) -> tuple[int, list[ItemRow]]:
    found = connection.execute(select(func.count()).select_from(columns.table).where(condition)).scalar_one()
    if not found:
        return 0, []
    wanted = *(columns[role] for role in ItemRow._fields[:-1]), columns.key_id
    some = select(*wanted).where(condition).order_by(*columns.place).limit(limit)
    return found, [ItemRow._make(row) for row in connection.execute(some)]


@reads("counting {table.table}")
def count_by_key(connection: Connection, table: SealedTable) -> dict[UUID | None, int]:
    """
    Count a table's items by the key in their header.

    Rows that are not envelopes count under ``None``. This reads the whole table.
    """
    key_id = described(table).key_id
    counts: Counter[UUID | None] = Counter()  # an edited column may have several values for one key id
    for found, count in connection.execute(select(key_id, func.count()).group_by(key_id)):
        counts[found] += count
    return dict(counts)


@reads("counting {table.table}")
def count_plain(connection: Connection, table: SealedTable) -> int:
    """
    Count the rows that do not begin like an envelope.

    It uses the index on the key ids in headers.
    """
    key_id = described(table).key_id
    return int(connection.execute(select(func.count()).where(key_id.is_(None))).scalar_one())


@reads("counting {table.table}")
def count_without_place(connection: Connection, table: SealedTable) -> int:
    """
    Count the rows that no range of places contains.

    A part of their place is NULL.
    """
    sequence_id, position = described(table).place
    query = select(func.count()).where(or_(sequence_id.is_(None), position.is_(None)))
    return int(connection.execute(query).scalar_one())

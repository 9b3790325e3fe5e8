"""Rows of any registered table: read in pages, cut into ranges, and replaced from a backup."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import bindparam, func, literal_column, select, tablesample, text, type_coerce, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import NullType

from eventseal.storage.database.faults import has_no_such_column
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.columns import comes_after
from eventseal.storage.items.table_queries import DescribedTable, described
from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.engine import Connection, Engine

    from eventseal.items.sealed_places import Place
    from eventseal.storage.items.tables import SealedTable


_SAMPLE_PAGES = 200
_SAMPLE_ROWS = 1000
_PLACE = ("sequence_id", "position")
_Row = TypeVar("_Row", bound=tuple[Any, ...])


class ItemRow(NamedTuple):
    """
    An item as its table has it, whatever its columns are called.

    What an edit put into a column that does not hold such a value is given as it is, or, as a key id, as
    :data:`NIL_KEY_ID`: so one such row does not hide the others.
    """

    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    key_id: UUID | None


@reads("reading {table.table}")
def row_at(connection: Connection, table: SealedTable, sequence_id: Any, position: Any) -> ItemRow | None:
    """
    Read one item of a table, if it is there.

    Args:
        connection: To the database that the table is in.
        table: From the registry.
        sequence_id: In the column's own type, like *position*.
        position: In the sequence.
    """
    columns = described(table)
    query = select(*(columns[role] for role in ItemRow._fields)).where(
        columns["sequence_id"] == sequence_id, columns["position"] == position
    )
    return next(map(ItemRow._make, connection.execute(query)), None)


def pages(
    engine: Engine, table: SealedTable, *, key_ids: Collection[UUID | None] | None = None, size: int = 1000
) -> Iterator[list[ItemRow]]:
    """
    Read a table in order of sequence id and position, each page in a short transaction of its own.

    Args:
        engine: Of the database that the table is in.
        table: From the registry.
        key_ids: Only rows whose envelopes name one of these, a few hundred at most; a ``None`` among them
            stands for rows that are no envelopes. ``None``: all rows.
        size: Rows in a page.
    """
    columns = described(table)
    query = select(*(columns[role] for role in ItemRow._fields)).order_by(*columns.place).limit(size)
    if key_ids is not None:
        named = columns.key_id.in_([key_id for key_id in key_ids if key_id is not None])
        query = query.where(named | columns.key_id.is_(None) if None in key_ids else named)
    return pages_behind(lambda after: _page(engine, columns, query, after), size)


def pages_behind(
    read_page: Callable[[tuple[Any, ...] | None], list[_Row]], size: int
) -> Iterator[list[_Row]]:
    """
    Give pages of *size* rows, until one is shorter.

    Args:
        read_page: Reads the page behind the first two values of a row; ``None``: the first page.
        size: Rows in a page.
    """
    after = None
    while True:
        page = read_page(after)
        if page:
            yield page
        if len(page) < size:
            return
        after = page[-1][:2]


@reads("reading {columns.table}")
def _page(
    connection: Connection, columns: DescribedTable, query: Select[Any], after: tuple[Any, ...] | None
) -> list[ItemRow]:
    if after is not None:
        query = query.where(comes_after(columns.place, after))
    return [ItemRow._make(row) for row in connection.execute(query)]


@reads("sampling {sealed_table.table}")
def range_bounds(connection: Connection, sealed_table: SealedTable, ranges: int) -> list[Place]:
    """
    Find the places that cut a table into *ranges* of about the same size.

    Args:
        connection: In a transaction.
        sealed_table: From the registry.
        ranges: At least 1.

    Returns:
        The last place of each range but the last, in the database's own order; fewer if the table is small.
    """
    if ranges == 1:
        return []
    sampled = _on_sqlite if connection.dialect.name == "sqlite" else _on_postgresql
    sample = sampled(connection, sealed_table)
    steps = [len(sample) * number // ranges for number in range(1, ranges)]
    return list(dict.fromkeys([sample[step] for step in steps])) if len(sample) > ranges else []


def _on_postgresql(connection: Connection, sealed_table: SealedTable) -> list[Place]:
    found = described(sealed_table).table
    name = connection.dialect.identifier_preparer.format_table(found)
    size = text(
        "SELECT coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(:name)), "
        "pg_relation_size(:name)) / current_setting('block_size')::bigint"
    )
    page_count = int(connection.execute(size, {"name": name}).scalar_one())
    share = min(100.0, 100.0 * _SAMPLE_PAGES / max(page_count, 1))
    sample = tablesample(found, func.system(literal_column(f"{share:f}")))
    place = [sample.c["sequence_id"], sample.c["position"]]
    return [(row[0], row[1]) for row in connection.execute(select(*place).order_by(*place))]


def _on_sqlite(connection: Connection, sealed_table: SealedTable) -> list[Place]:
    found = described(sealed_table)
    place = found.place
    rowid: ColumnElement[int] = literal_column("rowid")
    ends: Any = select(func.min(rowid), func.max(rowid)).select_from(found.table)
    try:
        first, last = connection.execute(ends).one()
    except OperationalError as error:
        if not has_no_such_column(error):
            raise
        return []  # made WITHOUT ROWID: one range then
    if last is None:
        return []
    step = max(1, (last - first) // _SAMPLE_ROWS)
    rows: Any = select(*place).where(rowid.in_(range(first, last + 1, step))).order_by(*place)
    return [(row[0], row[1]) for row in connection.execute(rows)]


class StoredRow(NamedTuple):
    """
    One row. The first three values are the driver's own, since an edit may have put anything there.

    Attributes:
        topic: Of its event.
        data: Its envelope, or whatever is there.
        key_id: What is in the column of key ids; ``None`` where there is no such column.
        header_key: The key that the envelope's header names; ``None``: the data is no envelope.
        named_key: The key that readers take: the column's, where there is one.
        differs: Whether the column says something else than the header.
    """

    topic: Any
    data: Any
    key_id: Any
    header_key: UUID | None
    named_key: UUID | None
    differs: bool

    @property
    def digest(self) -> str:
        """SHA-256 over topic, data and key id with their types, in hex: any change of them changes it."""
        return digest_of(self.topic, self.data, self.key_id)

    def is_still(self, row: ItemRow) -> bool:
        """Whether it says what it said when *row* was read."""
        return (self.topic, self.data, self.named_key) == (row.topic, row.data, row.key_id)

    @property
    def keys(self) -> frozenset[UUID]:
        """The keys for whose sake ``count_needed`` counts the row."""
        named = {self.header_key, self.named_key} if self.differs else {self.header_key}
        return frozenset(key_id for key_id in named if key_id is not None)


def digest_of(topic: Any, data: Any, key_id: Any) -> str:
    """Give the digest of a row that has these values; see :attr:`StoredRow.digest`."""
    parts = [part for value in (topic, data, key_id) for part in _typed(value)]
    return sha256(length_prefixed(b"eventseal row", *parts)).hexdigest()


@reads("reading {table.table}")
def stored_row(
    connection: Connection, table: SealedTable, place: Place, *, lock: bool = False
) -> StoredRow | None:
    """
    Read one row, if it is there.

    Args:
        connection: To the database that the table is in.
        table: From the registry.
        place: As pages give it.
        lock: Whether nobody else changes it before the transaction ends. SQLite's write lock sees to that.
    """
    sequence_id, position = place
    parameters = {"at_sequence_id": sequence_id, "at_position": position}
    query = _query(table).with_for_update() if lock else _query(table)
    found = connection.execute(query, parameters).first()
    if found is None:
        return None
    row = StoredRow._make(found)
    return row if table.has_key_ids else row._replace(key_id=None)


@reads("reading {table.table}")
def stored_rows(
    connection: Connection, table: SealedTable, places: Sequence[Place]
) -> list[StoredRow | None]:
    """Read the rows at some places, in their order; ``None`` stands for one that is not there."""
    return [stored_row(connection, table, place) for place in places]


@lru_cache(maxsize=64)
def _query(table: SealedTable) -> Select[Any]:
    """Write the query of a table once: to compile it takes longer than to read a row."""
    columns = described(table)
    wanted: list[Any] = [type_coerce(columns[role], NullType()) for role in ("topic", "data", KEY_ID)]
    wanted += [columns.key_id, columns[KEY_ID], columns.differs]
    places = [columns[role] == bindparam(f"at_{role}", type_=columns[role].type) for role in _PLACE]
    return select(*wanted).where(*places)


def _typed(value: Any) -> tuple[bytes, bytes]:
    """Give a value with its type. A UUID is its 16 bytes, so that a row is the same on each database."""
    if value is None:
        return b"null", b""
    if isinstance(value, UUID):
        return b"bytes", value.bytes
    if isinstance(value, bytes | memoryview):
        return b"bytes", bytes(value)
    if isinstance(value, str):
        return b"text", value.encode("utf-8", "surrogatepass")
    return b"number", repr(value).encode()  # of SQLite: a whole number, or one with a point


class RowChange(NamedTuple):
    """
    A row that is to be replaced.

    Attributes:
        place: Its sequence id and position.
        old: Its digest as it was read; see ``StoredRow.digest``.
        new: What is to be in its place.
    """

    place: Place
    old: str
    new: ItemRow

    def new_digest(self, table: SealedTable) -> str:
        """Give the digest that the row is to have."""
        return digest_of(self.new.topic, self.new.data, self.new.key_id if table.has_key_ids else None)


def replace_rows(connection: Connection, table: SealedTable, changes: Sequence[RowChange]) -> list[int]:
    """
    Replace rows as a whole, each only if it is still exactly as it was read.

    Args:
        connection: In a transaction that holds the fences of the new keys; on SQLite also the write lock.
        table: From the registry.
        changes: At places that differ.

    Returns:
        The numbers of those that hold the new row now.
    """
    columns = described(table)
    replaced: list[int] = []
    for number, change in enumerate(changes):
        # Compared here and not in SQL: an edit may have put anything into the columns.
        found = stored_row(connection, table, change.place, lock=True)
        digest = None if found is None else found.digest
        if digest == change.old:
            values: dict[Any, Any] = {"topic": change.new.topic, "data": change.new.data}
            if table.has_key_ids:
                values[KEY_ID] = change.new.key_id
            at = [column == value for column, value in zip(columns.place, change.place, strict=True)]
            connection.execute(update(columns.table).where(*at).values(values))
        # It is there already if an earlier COMMIT of this transaction was not answered.
        if digest in {change.old, change.new_digest(table)}:
            replaced.append(number)
    return replaced

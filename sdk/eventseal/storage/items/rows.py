"""Reading, splitting and replacing rows of any registered table."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import bindparam, func, literal_column, select, tablesample, text, type_coerce, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import NullType

from eventseal.storage.database.faults import has_no_such_column
from eventseal.storage.database.layout import quoted_name
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
    An item as its table has it, whatever the columns are called.

    An edit may have put other values into a column. They are returned as they are, or as
    :data:`NIL_KEY_ID` in place of a key id. So one such row does not hide the others.
    """

    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    key_id: UUID | None


@reads("reading {table.table}")
def row_at(connection: Connection, table: SealedTable, sequence_id: Any, position: Any) -> ItemRow | None:
    """
    Read one item of a table, if it exists.

    Args:
        connection: A connection to the table's database.
        table: The table, from the registry.
        sequence_id: The sequence id, in the column's own type, like *position*.
        position: The position in the sequence.
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
    Read a table in pages, in order of sequence id and position.

    Each page is read in its own short transaction.

    Args:
        engine: The engine of the table's database.
        table: The table, from the registry.
        key_ids: Read only rows whose envelopes name one of these keys, a few hundred at most. A ``None``
            among them includes rows that are not envelopes. ``None`` instead of a collection reads all rows.
        size: The number of rows in a page.
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
    Yield pages of *size* rows, until one is shorter.

    *read_page* reads the page after a place: the first two values of a row. With ``None``, it reads the first
    page.
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
    Find the places that cut a table into *ranges* of similar size.

    Args:
        connection: A connection in a transaction.
        sealed_table: The table, from the registry.
        ranges: The number of ranges, at least 1.

    Returns:
        The last place of each range except the last one, in the database's own order. If the table is small,
        there are fewer.
    """
    if ranges == 1:
        return []
    sampled = _on_sqlite if connection.dialect.name == "sqlite" else _on_postgresql
    sample = sampled(connection, sealed_table)
    steps = [len(sample) * number // ranges for number in range(1, ranges)]
    return list(dict.fromkeys([sample[step] for step in steps])) if len(sample) > ranges else []


def _on_postgresql(connection: Connection, sealed_table: SealedTable) -> list[Place]:
    found = described(sealed_table).table
    name = quoted_name(connection, found.name, found.schema)
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
        return []  # created WITHOUT ROWID, so it is one range
    if last is None:
        return []
    step = max(1, (last - first) // _SAMPLE_ROWS)
    rows: Any = select(*place).where(rowid.in_(range(first, last + 1, step))).order_by(*place)
    return [(row[0], row[1]) for row in connection.execute(rows)]


class StoredRow(NamedTuple):
    """
    One row of a table of items.

    The first three values are as the driver returns them, because an edit may have put anything there.

    Attributes:
        topic: The topic of the event.
        data: The envelope, or whatever is there.
        key_id: The value in the column of key ids, or ``None`` if there is no such column.
        header_key: The key that the envelope's header names, or ``None`` if the data is not an envelope.
        named_key: The key that readers use: the column's key, if there is a column.
        differs: Whether the column of key ids differs from the header.
    """

    topic: Any
    data: Any
    key_id: Any
    header_key: UUID | None
    named_key: UUID | None
    differs: bool

    @property
    def digest(self) -> str:
        """
        The SHA-256 of the row's values and types, in hex.

        It covers topic, data and key id. Any change of them changes it.
        """
        return digest_of(self.topic, self.data, self.key_id)

    def is_still(self, row: ItemRow) -> bool:
        """Return whether the row is as it was when *row* was read."""
        return (self.topic, self.data, self.named_key) == (row.topic, row.data, row.key_id)

    @property
    def keys(self) -> frozenset[UUID]:
        """The keys for which ``count_needed`` counts the row."""
        named = {self.header_key, self.named_key} if self.differs else {self.header_key}
        return frozenset(key_id for key_id in named if key_id is not None)


def digest_of(topic: Any, data: Any, key_id: Any) -> str:
    """Return the digest that a row with these values has. See :attr:`StoredRow.digest`."""
    parts = [part for value in (topic, data, key_id) for part in _typed(value)]
    return sha256(length_prefixed(b"eventseal row", *parts)).hexdigest()


@reads("reading {table.table}")
def stored_row(
    connection: Connection, table: SealedTable, place: Place, *, lock: bool = False
) -> StoredRow | None:
    """
    Read one row, if it exists.

    Args:
        connection: A connection to the table's database.
        table: The table, from the registry.
        place: The place, as pages return it.
        lock: Whether to keep others from changing the row before the transaction ends. On SQLite, the write
            lock does that.
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
    """Read the rows at some places, in that order. A missing row is ``None``."""
    return [stored_row(connection, table, place) for place in places]


@lru_cache(maxsize=64)
def _query(table: SealedTable) -> Select[Any]:
    """Build the query of a table once. Compiling it takes longer than reading a row."""
    columns = described(table)
    wanted: list[Any] = [type_coerce(columns[role], NullType()) for role in ("topic", "data", KEY_ID)]
    wanted += [columns.key_id, columns[KEY_ID], columns.differs]
    places = [columns[role] == bindparam(f"at_{role}", type_=columns[role].type) for role in _PLACE]
    return select(*wanted).where(*places)


def _typed(value: Any) -> tuple[bytes, bytes]:
    """Return a value with its type. A UUID is 16 bytes, so that a row is the same on each database."""
    if value is None:
        return b"null", b""
    if isinstance(value, UUID):
        return b"bytes", value.bytes
    if isinstance(value, bytes | memoryview):
        return b"bytes", bytes(value)
    if isinstance(value, str):
        return b"text", value.encode("utf-8", "surrogatepass")
    return b"number", repr(value).encode()  # from SQLite: a whole number or a floating-point number


class RowChange(NamedTuple):
    """
    A row to replace.

    Attributes:
        place: The row's sequence id and position.
        old: The row's digest when it was read. See ``StoredRow.digest``.
        new: The new row.
    """

    place: Place
    old: str
    new: ItemRow

    def new_digest(self, table: SealedTable) -> str:
        """Return the digest of the new row."""
        return digest_of(self.new.topic, self.new.data, self.new.key_id if table.has_key_ids else None)


def replace_rows(connection: Connection, table: SealedTable, changes: Sequence[RowChange]) -> list[int]:
    """
    Replace whole rows that have not changed since they were read.

    Args:
        connection: A connection in a transaction that holds the fences of the new keys. On SQLite, it also
            holds the write lock.
        table: The table, from the registry.
        changes: The changes, each at another place.

    Returns:
        The numbers of the changes whose new row is stored now.
    """
    columns = described(table)
    replaced: list[int] = []
    for number, change in enumerate(changes):
        # Compared here and not in SQL, because an edit may have put anything into the columns.
        found = stored_row(connection, table, change.place, lock=True)
        digest = None if found is None else found.digest
        if digest == change.old:
            values: dict[Any, Any] = {"topic": change.new.topic, "data": change.new.data}
            if table.has_key_ids:
                values[KEY_ID] = change.new.key_id
            at = [column == value for column, value in zip(columns.place, change.place, strict=True)]
            connection.execute(update(columns.table).where(*at).values(values))
        # The new row is there already if an earlier COMMIT of this transaction was not answered.
        if digest in {change.old, change.new_digest(table)}:
            replaced.append(number)
    return replaced

"""Rows of any registered table: counted by key, read in pages, and cut into ranges."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    CHAR,
    Column,
    MetaData,
    Table,
    false,
    func,
    literal_column,
    or_,
    select,
    tablesample,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import TypeDecorator

from eventseal.errors import IntegrityError, SerializationError
from eventseal.storage.database.column_types import (
    NIL_KEY_ID,
    BinaryUUID,
    DatabaseText,
    ExactDecimal,
    ExactInteger,
    ExactText,
)
from eventseal.storage.database.faults import has_no_such_column
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.database.transactions import read, reads
from eventseal.storage.items.columns import comes_after
from eventseal.storage.items.header_key_ids import KeyIdInHeader, KeyIdsDiffer
from eventseal.storage.items.tables import ColumnKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.engine import Connection, Dialect, Engine
    from sqlalchemy.types import TypeEngine

    from eventseal.items.sealed_places import Place
    from eventseal.storage.items.tables import SealedTable


_HEX_DIGITS = 32


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


@reads("counting {table.table}")
def count_by_key(connection: Connection, table: SealedTable) -> dict[UUID | None, int]:
    """
    Count a table's items by the key in their header; what is no envelope stands under ``None``.

    It reads the whole table.

    Args:
        connection: To the database that the table is in.
        table: From the registry.
    """
    key_id = described(table).key_id
    counts: Counter[UUID | None] = Counter()
    for found, count in connection.execute(select(key_id, func.count()).group_by(key_id)):
        counts[found] += count
    return dict(counts)


@reads("counting {table.table}")
def count_plain(connection: Connection, table: SealedTable) -> int:
    """
    Count the rows of a table that begin like no envelope, by the index on the headers' key ids.

    Args:
        connection: To the database that the table is in.
        table: From the registry.
    """
    key_id = described(table).key_id
    return int(connection.execute(select(func.count()).where(key_id.is_(None))).scalar_one())


def count_without_place(connection: Connection, table: SealedTable) -> int:
    """
    Count the rows that no range of places has, since a part of theirs is NULL.

    Args:
        connection: To the database that the table is in.
        table: From the registry.
    """
    sequence_id, position = described(table).place
    query = select(func.count()).where(or_(sequence_id.is_(None), position.is_(None)))
    return int(connection.execute(query).scalar_one())


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
    after: tuple[Any, Any] | None = None
    while True:
        rest = query if after is None else query.where(comes_after(columns.place, after))
        page = read(engine, partial(_page, rest), doing=f"reading {table.table}")
        if page:
            yield page
        if len(page) < size:
            return
        after = page[-1][:2]


def _page(query: Select[Any], connection: Connection) -> list[ItemRow]:
    return [ItemRow._make(row) for row in connection.execute(query)]


@dataclass(frozen=True, slots=True)
class DescribedTable:
    """
    A registered table for queries, in types that give what an edit put there as it is.

    Attributes:
        table: With its columns by role.
        key_id: The id of a row's key, read from its envelope's header; NULL for what is no envelope.
    """

    table: Table
    key_id: ColumnElement[Any]

    def __getitem__(self, role: str) -> Any:
        """Give what readers take for a role: for a key id the column, if there is one, which may differ."""
        return self.key_id if role == KEY_ID and KEY_ID not in self.table.c else self.table.c[role]

    @property
    def differs(self) -> ColumnElement[bool]:
        """Whether the column of key ids, if there is one, says something else than the header."""
        return KeyIdsDiffer(self["data"], self[KEY_ID]) if KEY_ID in self.table.c else false()

    @property
    def place(self) -> tuple[Column[Any], Column[Any]]:
        """Sequence id and position."""
        return self["sequence_id"], self["position"]


def described(table: SealedTable) -> DescribedTable:
    """Describe a registered table. Every query that asks for the keys of its rows begins here."""
    schema, _, name = table.table.rpartition(".")
    found = Table(
        name,
        MetaData(),
        *(Column(column.name, _type(role, column.kind), key=role) for role, column in table.columns.items()),
        schema=schema or None,
    )
    return DescribedTable(found, KeyIdInHeader(found.c["data"], _KeyId()))


def _type(role: str, kind: ColumnKind) -> TypeEngine[Any]:
    if role == KEY_ID and kind is ColumnKind.UUID:
        return _KeyId()
    as_found = _AS_FOUND.get(kind)
    return kind.type if as_found is None else as_found()


class _AsFound(TypeDecorator[Any]):
    """
    Gives what such a column cannot hold as it is, for others to refuse, and takes it in a condition.

    Only SQLite lets an edit put anything anywhere.
    """

    __abstract__ = True
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        try:
            return super().process_bind_param(value, dialect)
        except SerializationError:
            return value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        try:
            return super().process_result_value(value, dialect)
        except IntegrityError:
            return value


class _UUIDAsFound(_AsFound, BinaryUUID):
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Let text pass that an edit put there: the driver's way of binding bytes would refuse it."""
        bind = super().bind_processor(dialect)
        return lambda value: value if bind is None or isinstance(value, str) else bind(value)


class _GenericUUIDAsFound(_AsFound):
    impl = CHAR
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        return dialect.type_descriptor(CHAR(_HEX_DIGITS))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value.hex if isinstance(value, UUID) and dialect.name != "postgresql" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if dialect.name == "postgresql" or not isinstance(value, str):
            return value
        try:
            found = UUID(value)
        except ValueError:
            return value
        return found if found.hex == value else value


class _IntegerAsFound(_AsFound, ExactInteger):
    cache_ok = True


class _DecimalAsFound(_AsFound, ExactDecimal):
    cache_ok = True


class _TextAsFound(_AsFound, ExactText):
    cache_ok = True


class _DatabaseTextAsFound(_AsFound, DatabaseText):
    cache_ok = True


_AS_FOUND: dict[ColumnKind, type[_AsFound]] = {
    ColumnKind.UUID: _UUIDAsFound,
    ColumnKind.GENERIC_UUID: _GenericUUIDAsFound,
    ColumnKind.INTEGER: _IntegerAsFound,
    ColumnKind.DECIMAL: _DecimalAsFound,
    ColumnKind.TEXT: _TextAsFound,
    ColumnKind.DATABASE_TEXT: _DatabaseTextAsFound,
}


class _KeyId(BinaryUUID):
    """The column of key ids, in which one that is no UUID is the nil UUID: no key has that."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        try:
            return super().process_result_value(value, dialect)
        except IntegrityError:
            return NIL_KEY_ID


_SAMPLE_PAGES = 200
_SAMPLE_ROWS = 1000


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
    pages = int(connection.execute(size, {"name": name}).scalar_one())
    share = min(100.0, 100.0 * _SAMPLE_PAGES / max(pages, 1))
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

"""
Tables of other libraries.

EventSeal finds them by name and reads them in order. It registers those that it fills.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import (
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Uuid,
    and_,
    func,
    inspect,
    or_,
    select,
    text,
)

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.storage.database.layout import schema_of
from eventseal.storage.database.table_setup import column_indexes, columns_of, has_table
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.tables import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.unregistered import EVENTSOURCING_COLUMNS as COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection
    from sqlalchemy.types import TypeEngine


_NAMES: Mapping[str, tuple[str, ...]] = {
    "sequence_id": ("sequence_id", "originator_id"),
    "position": ("position", "originator_version", "timestamp"),
    "topic": ("topic", "event_type"),
    "data": ("data", "state"),
}
"""The column names that releases 1 to 7 use, by role."""

SHARED_BY = ("application_name", "pipeline_id")
"""Columns that tell applications apart if they share a table."""

_UUID_SIZE = 16


class OldRow(NamedTuple):
    """A row with the values of its table. Text in the table is text here."""

    sequence_id: Any
    position: Any
    topic: Any
    data: Any


class OldTable:
    """
    A table of another library.

    Args:
        connection: A connection to the table's database.
        name: The table's name. For a table outside the default schema, write its schema and a dot first.
        columns: By role, the names of columns that have other names than usual.
        only: By column, the one value that the rows to read have.

    Raises:
        ConfigurationError: There is no such table or column, or several applications share the table.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        columns: Mapping[str, str],
        only: Mapping[str, str],
    ) -> None:
        schema, _, table = name.rpartition(".")
        if not has_table(connection, name):
            raise ConfigurationError(
                f"there is no table {name} to copy from",
                remedy="Correct the name of the table, or set old_store_url to the database that has it.",
            )
        self.name = name
        # Without types, the driver returns and takes values as they are.
        found: list[Column[Any]] = [Column(column) for column in columns_of(connection, name)]
        self._table = Table(table, MetaData(), *found, schema=schema or None)
        self._columns = [self._column(role, columns) for role in OldRow._fields]
        self._only = [self._named(column) == value for column, value in only.items()]
        for shared in SHARED_BY:
            if shared in self._table.c and shared not in only:
                self._refuse_shared(connection, shared)

    def count(self, connection: Connection) -> int:
        """Count the rows to read."""
        query = select(func.count()).select_from(self._table).where(*self._only)
        return int(connection.execute(query).scalar_one())

    def page(self, connection: Connection, *, after: tuple[Any, Any] | None, limit: int) -> list[OldRow]:
        """
        Read rows in order of sequence and position.

        Args:
            connection: A connection to the table's database.
            after: The place after which the page begins, as it was read.
            limit: The maximum number of rows.
        """
        place = self._columns[:2]
        query = select(*self._columns).where(*self._only).order_by(*place).limit(limit)
        if after is not None:
            query = query.where(_behind(place, after))
        return [OldRow._make(row) for row in connection.execute(query)]

    def _column(self, role: str, given: Mapping[str, str]) -> Column[Any]:
        if role in given:
            return self._named(given[role])
        for name in _NAMES[role]:
            if name in self._table.c:
                return self._table.c[name]
        raise ConfigurationError(
            f"{self.name} has no column {' or '.join(_NAMES[role])}",
            remedy=f"Add --column {role}=NAME, with one of its columns: {', '.join(self._table.c.keys())}.",
        )

    def _named(self, name: str) -> Column[Any]:
        if name not in self._table.c:
            raise ConfigurationError(
                f"{self.name} has no column {name}",
                remedy=f"Use one of its columns: {', '.join(self._table.c.keys())}.",
            )
        return self._table.c[name]

    def _refuse_shared(self, connection: Connection, name: str) -> None:
        column = self._table.c[name]
        found = list(connection.execute(select(column).where(*self._only).distinct().limit(3)).scalars())
        if len(found) > 1:
            raise ConfigurationError(
                f"{self.name} holds rows with several values of {name}: {', '.join(map(str, found))}",
                remedy=f"Copy the rows of one value at a time, for example with --only {name}={found[0]}.",
            )


def uuid_of(value: Any) -> UUID:
    """
    Return a sequence id as a UUID.

    Raises:
        SerializationError: The id is not a UUID.
    """
    if isinstance(value, UUID):
        return value
    try:
        if isinstance(value, bytes) and len(value) == _UUID_SIZE:
            return UUID(bytes=value)
        if isinstance(value, str):
            return UUID(value)
    except ValueError:
        pass
    raise SerializationError(
        "a sequence id is not a UUID", remedy="Copy into a table whose sequence ids are text."
    )


def text_of(value: Any) -> str:
    """
    Return a sequence id as text, a UUID in its canonical form.

    Raises:
        SerializationError: The id is neither text nor a UUID.
    """
    if isinstance(value, str):
        return value
    return str(uuid_of(value))


def whole_number_of(value: Any) -> int:
    """
    Return a position as a whole number.

    Raises:
        SerializationError: The position is not a whole number.
    """
    if isinstance(value, int | Decimal) and not isinstance(value, bool) and value == int(value):
        return int(value)
    raise SerializationError(
        "a position is not a whole number", remedy="Copy into a table whose positions are times."
    )


def time_of(value: Any) -> Decimal:
    """
    Return a position as a time, rounded to the microsecond.

    Raises:
        SerializationError: The position is not a number.
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return Decimal(str(value)).quantize(Decimal("0.000001"))
    raise SerializationError(
        "a position is not a time", remedy="Copy into a table whose positions are whole numbers."
    )


def _behind(place: list[Column[Any]], after: tuple[Any, Any]) -> ColumnElement[bool]:
    # Not SQL's comparison of rows, which would compare a time that SQLite stores as a number differently.
    first, second = place
    return or_(first > after[0], and_(first == after[0], second > after[1]))


OriginatorIdType: TypeAlias = Literal["uuid", "text"]
"""The type of an application's aggregate ids. The eventsourcing library calls it ``ORIGINATOR_ID_TYPE``."""

_SNAPSHOTS = "snapshots"
_SAMPLE = 1000


@reads("reading the definition of {name}")
def eventsourcing_table(
    connection: Connection,
    name: str,
    *,
    application: str | None,
    id_type: OriginatorIdType | None = None,
) -> SealedTable | None:
    """
    Describe a table that the eventsourcing library created.

    Args:
        connection: A connection to the items' database.
        name: The table's name. For a table outside the default schema, write its schema and a dot first. A
            name that ends with ``snapshots`` means that the table holds snapshots.
        application: The application whose items the table holds. With ``None``, it holds items of every
            application.
        id_type: The type of the aggregate ids. With ``None``, the column decides. On SQLite, where both types
            are text, ``None`` means ``uuid``.

    Returns:
        ``None`` if the table does not exist (yet).

    Raises:
        ConfigurationError: The table belongs to another program, or holds ids of another type.
    """
    if not has_table(connection, name):
        return None
    types = columns_of(connection, name)
    missing = [column for column in COLUMNS.values() if column not in types]
    if missing:
        raise _not_theirs(name, f"it has no column {', '.join(missing)}")
    _check_types(name, types)
    _check_places(connection, name)
    kind = _id_kind(connection, name, types[COLUMNS["sequence_id"]], id_type)
    return SealedTable(
        application=application,
        table=name,
        collection=_SNAPSHOTS if holds_snapshots(name) else "items",
        columns={
            "sequence_id": SealedColumn(COLUMNS["sequence_id"], kind),
            "position": SealedColumn(COLUMNS["position"], ColumnKind.INTEGER),
            "topic": SealedColumn(COLUMNS["topic"], ColumnKind.DATABASE_TEXT),
            "data": SealedColumn(COLUMNS["data"], ColumnKind.BINARY),
        },
    )


def holds_snapshots(name: str) -> bool:
    """Return whether a table of the library holds snapshots, by its name."""
    return name.endswith(_SNAPSHOTS)


def _check_types(name: str, types: Mapping[str, TypeEngine[Any]]) -> None:
    wanted: dict[str, tuple[type[TypeEngine[Any]], ...]] = {
        "sequence_id": (Uuid, String),
        "position": (Integer,),
        "topic": (String,),
        "data": (LargeBinary,),
    }
    for role, kinds in wanted.items():
        found = types[COLUMNS[role]]
        if not isinstance(found, kinds):
            raise _not_theirs(name, f"its column {COLUMNS[role]} is {found!r}")


def _check_places(connection: Connection, name: str) -> None:
    """
    Refuse a table in which two rows can have the same place.

    Eventsourcing-sqlalchemy keeps places unique by an index, the library itself by the primary key.
    """
    schema, _, table = name.rpartition(".")
    place = {COLUMNS["sequence_id"], COLUMNS["position"]}
    found = inspect(connection).get_pk_constraint(table, schema=schema_of(connection, schema or None))
    key = found["constrained_columns"]
    if set(key) == place:
        return
    indexes = column_indexes(connection, table, schema or None)
    if not any(index.unique and set(index.columns) == place for index in indexes):
        raise _not_theirs(name, f"its primary key is {', '.join(key) or 'absent'}")


def _id_kind(
    connection: Connection, name: str, column: TypeEngine[Any], id_type: OriginatorIdType | None
) -> ColumnKind:
    if connection.dialect.name == "postgresql":
        there: OriginatorIdType = "uuid" if isinstance(column, Uuid) else "text"
        if id_type not in {None, there}:
            raise ConfigurationError(
                f"{name}.{COLUMNS['sequence_id']} is {there}, but originator_id_type is {id_type}",
                remedy="Remove the setting originator_id_type. On PostgreSQL the column shows the type.",
            )
        return ColumnKind.GENERIC_UUID if there == "uuid" else ColumnKind.DATABASE_TEXT
    if id_type == "text":
        return ColumnKind.DATABASE_TEXT
    other = _id_that_is_no_uuid(connection, name)
    if other is not None:
        raise ConfigurationError(
            f"{name} holds ids that are not UUIDs",
            remedy='If its application has ORIGINATOR_ID_TYPE=text, set originator_id_type = "text".',
        )
    return ColumnKind.GENERIC_UUID


def _id_that_is_no_uuid(connection: Connection, name: str) -> object:
    quoted = connection.dialect.identifier_preparer.quote(name)
    column = COLUMNS["sequence_id"]
    query = (
        f"SELECT {column} FROM (SELECT {column} FROM {quoted} LIMIT {_SAMPLE}) "  # noqa: S608 - quoted
        f"WHERE length({column}) <> 32 OR {column} GLOB '*[^0-9a-f]*' LIMIT 1"
    )
    return connection.execute(text(query)).scalar()


def _not_theirs(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} is not a table that the eventsourcing library, release 8 or 9, creates: {why}",
        remedy=f"Remove {name} from eventsourcing_tables. "
        "To copy a table of an older release, run `eventseal migrate`.",
    )

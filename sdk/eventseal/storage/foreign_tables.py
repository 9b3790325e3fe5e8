"""Tables of other libraries: found by name, read in order, registered where EventSeal fills them."""

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
from eventseal.storage.database.table_setup import column_indexes, has_table
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.tables import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.unregistered import EVENTSOURCING_COLUMNS as COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection, Inspector
    from sqlalchemy.types import TypeEngine


_NAMES: Mapping[str, tuple[str, ...]] = {
    "sequence_id": ("sequence_id", "originator_id"),
    "position": ("position", "originator_version", "timestamp"),
    "topic": ("topic", "event_type"),
    "data": ("data", "state"),
}
"""By role, what columns are called in releases 1 to 7."""

SHARED_BY = ("application_name", "pipeline_id")
"""Columns that tell applications apart which share a table."""

_UUID_SIZE = 16


class OldRow(NamedTuple):
    """A row as its table has it; what is text there is text here."""

    sequence_id: Any
    position: Any
    topic: Any
    data: Any


class OldTable:
    """
    A table of another library.

    Args:
        connection: To its database.
        name: With its schema before a dot if that is not the default one.
        columns: By role, where they are called otherwise.
        only: By column, the one value that rows have which are read.

    Raises:
        ConfigurationError: There is no such table or column, or several applications share it.
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
            raise ConfigurationError(f"there is no table {name} to copy from")
        self.name = name
        # Without their types: values come and go as the driver has them.
        found: list[Column[Any]] = [
            Column(column["name"]) for column in inspect(connection).get_columns(table, schema=schema or None)
        ]
        self._table = Table(table, MetaData(), *found, schema=schema or None)
        self._columns = [self._column(role, columns) for role in OldRow._fields]
        self._only = [self._named(column) == value for column, value in only.items()]
        for shared in SHARED_BY:
            if shared in self._table.c and shared not in only:
                self._refuse_shared(connection, shared)

    def count(self, connection: Connection) -> int:
        """Count the rows that are read."""
        query = select(func.count()).select_from(self._table).where(*self._only)
        return int(connection.execute(query).scalar_one())

    def page(self, connection: Connection, *, after: tuple[Any, Any] | None, limit: int) -> list[OldRow]:
        """
        Read rows in order of sequence and position.

        Args:
            connection: To the database.
            after: Behind this place, as it was read.
            limit: Rows at most.
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
            remedy=f"Say which it is: {role}=NAME. It has {', '.join(self._table.c.keys())}.",
        )

    def _named(self, name: str) -> Column[Any]:
        if name not in self._table.c:
            raise ConfigurationError(
                f"{self.name} has no column {name}", remedy=f"It has {', '.join(self._table.c.keys())}."
            )
        return self._table.c[name]

    def _refuse_shared(self, connection: Connection, name: str) -> None:
        column = self._table.c[name]
        found = list(connection.execute(select(column).where(*self._only).distinct().limit(3)).scalars())
        if len(found) > 1:
            raise ConfigurationError(
                f"{self.name} holds rows of several values of {name}: {', '.join(map(str, found))}",
                remedy=f"Copy those of one of them: {name}={found[0]}.",
            )


def uuid_of(value: Any) -> UUID:
    """
    Give a sequence id as the UUID that it is.

    Raises:
        SerializationError: It is none.
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
    raise SerializationError("a sequence id is no UUID", remedy="Copy into a table whose ids are text.")


def text_of(value: Any) -> str:
    """
    Give a sequence id as text; a UUID in its canonical form.

    Raises:
        SerializationError: It is neither.
    """
    if isinstance(value, str):
        return value
    return str(uuid_of(value))


def whole_number_of(value: Any) -> int:
    """
    Give a position as a whole number.

    Raises:
        SerializationError: It is none.
    """
    if isinstance(value, int | Decimal) and not isinstance(value, bool) and value == int(value):
        return int(value)
    raise SerializationError("a position is no whole number", remedy="Copy into a table of times.")


def time_of(value: Any) -> Decimal:
    """
    Give a position as a time, to the microsecond, as those tables keep it.

    Raises:
        SerializationError: It is none.
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return Decimal(str(value)).quantize(Decimal("0.000001"))
    raise SerializationError("a position is no time", remedy="Copy into a table of whole numbers.")


def _behind(place: list[Column[Any]], after: tuple[Any, Any]) -> ColumnElement[bool]:
    # Not a comparison of rows: it would compare a time that SQLite keeps as a number in another way.
    first, second = place
    return or_(first > after[0], and_(first == after[0], second > after[1]))


OriginatorIdType: TypeAlias = Literal["uuid", "text"]
"""What that library calls ``ORIGINATOR_ID_TYPE``: what an application names its aggregates by."""

_SNAPSHOTS = "snapshots"
_SAMPLE = 1000


@reads("looking at {name}")
def eventsourcing_table(
    connection: Connection,
    name: str,
    *,
    application: str | None,
    id_type: OriginatorIdType | None = None,
) -> SealedTable | None:
    """
    Describe a table that the library made.

    Args:
        connection: To the items' database.
        name: Of the table, its schema before a dot if that is not the default one; one that ends with
            ``snapshots`` holds those.
        application: Whose items; ``None``: of every application.
        id_type: Of its aggregates; ``None``: as the column says or, on SQLite, where both are text, ``uuid``.

    Returns:
        ``None`` if there is no such table (yet).

    Raises:
        ConfigurationError: The table is another program's, or holds ids of another type.
    """
    if not has_table(connection, name):
        return None
    inspector = inspect(connection)
    schema, _, table = name.rpartition(".")
    types = {column["name"]: column["type"] for column in inspector.get_columns(table, schema=schema or None)}
    missing = [column for column in COLUMNS.values() if column not in types]
    if missing:
        raise _not_theirs(name, f"it has no column {', '.join(missing)}")
    _check_types(name, types)
    _check_places(connection, inspector, name)
    kind = _id_kind(connection, name, types[COLUMNS["sequence_id"]], id_type)
    return SealedTable(
        application=application,
        table=name,
        collection=_SNAPSHOTS if table.endswith(_SNAPSHOTS) else "items",
        columns={
            "sequence_id": SealedColumn(COLUMNS["sequence_id"], kind),
            "position": SealedColumn(COLUMNS["position"], ColumnKind.INTEGER),
            "topic": SealedColumn(COLUMNS["topic"], ColumnKind.DATABASE_TEXT),
            "data": SealedColumn(COLUMNS["data"], ColumnKind.BINARY),
        },
    )


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


def _check_places(connection: Connection, inspector: Inspector, name: str) -> None:
    """Refuse a table in which a place may be taken twice; eventsourcing-sqlalchemy says so by an index."""
    schema, _, table = name.rpartition(".")
    place = {COLUMNS["sequence_id"], COLUMNS["position"]}
    key = inspector.get_pk_constraint(table, schema=schema or None)["constrained_columns"]
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
                f"{name}.{COLUMNS['sequence_id']} is {there}, and originator_id_type says {id_type}",
                remedy="Leave originator_id_type out: on PostgreSQL the column says it.",
            )
        return ColumnKind.GENERIC_UUID if there == "uuid" else ColumnKind.DATABASE_TEXT
    if id_type == "text":
        return ColumnKind.DATABASE_TEXT
    other = _id_that_is_no_uuid(connection, name)
    if other is not None:
        raise ConfigurationError(
            f"{name} holds ids that are not UUIDs",
            remedy='Its application has ORIGINATOR_ID_TYPE=text: set originator_id_type = "text".',
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
        f"{name} is not a table that the eventsourcing library, release 8 or 9, makes: {why}",
        remedy="Take it out of eventsourcing_tables: those of older releases, `eventseal migrate` copies.",
    )

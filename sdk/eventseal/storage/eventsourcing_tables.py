"""Tables of the eventsourcing library, releases 8 and 9: found, checked, and described for the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sqlalchemy import Integer, LargeBinary, String, Uuid, inspect, text

from eventseal.errors import ConfigurationError
from eventseal.storage.sealed_table import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.table_setup import column_indexes
from eventseal.storage.unregistered import EVENTSOURCING_COLUMNS as COLUMNS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Connection, Inspector
    from sqlalchemy.types import TypeEngine

OriginatorIdType: TypeAlias = Literal["uuid", "text"]
"""What that library calls ``ORIGINATOR_ID_TYPE``: what an application names its aggregates by."""

_SNAPSHOTS = "snapshots"
_SAMPLE = 1000


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
    inspector = inspect(connection)
    schema, _, table = name.rpartition(".")
    if not inspector.has_table(table, schema=schema or None):
        return None
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

"""
Finds tables that seem to hold sealed items but are not registered.

Retiring keys would lose their items.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ARRAY, BINARY, CHAR, VARBINARY, LargeBinary, Uuid, inspect, text

from eventseal.storage.database.layout import own_name, schema_of
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.database.transactions import reads
from eventseal.storage.items.table_queries import key_id_in_header
from eventseal.storage.jobs.tables import job_metadata
from eventseal.storage.keys.tables import fence_metadata, key_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.types import TypeEngine

    from eventseal.storage.items.tables import SealedTable


OWN_TABLES = frozenset({*key_metadata.tables, *fence_metadata.tables, *job_metadata.tables})
"""EventSeal's own tables. They have key ids but hold no items."""

EVENTSOURCING_COLUMNS: Mapping[str, str] = MappingProxyType(
    {"sequence_id": "originator_id", "position": "originator_version", "topic": "topic", "data": "state"}
)
"""By role, the columns of the eventsourcing library's tables. These tables have no ``key_id``."""

_PARTITIONS = text(
    "SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE relispartition AND relkind <> 'i' AND relkind <> 'I'"
)
_HEX_DIGITS = 32

_COLUMNS_AT_ONCE = 100
"""SQLite limits expressions to a depth of 1,000. A table may have 2,000 columns."""


class _Unnamed(NamedTuple):
    """An unregistered table: its display name, its location and its columns."""

    name: str
    schema: str
    table: str
    columns: Sequence[str]


@reads("looking for tables that are not registered")
def unregistered_tables(
    connection: Connection, registered: Iterable[SealedTable], *, unsealed_tables: Collection[str] = ()
) -> list[str]:
    """
    Find tables that seem to hold sealed items but are not registered.

    Args:
        connection: A connection to a database of items.
        registered: The tables that the registry lists for this database.
        unsealed_tables: The names of tables that are known to hold no sealed items.

    Returns:
        The names of tables that have a ``key_id`` of a UUID type and a binary column. EventSeal's own tables
        are left out. A table outside the default schema is named with its schema and a dot first.
    """
    return _names(_unnamed(connection, registered, unsealed_tables, _looks_sealed))


@reads("looking for tables that are not registered")
def unregistered_eventsourcing_tables(
    connection: Connection, registered: Iterable[SealedTable], *, unsealed_tables: Collection[str] = ()
) -> list[str]:
    """
    Find unregistered tables of the eventsourcing library.

    Nothing shows whether they hold sealed items.

    Args:
        connection: A connection to a database of items.
        registered: The tables that the registry lists for this database.
        unsealed_tables: The names of tables that are known to hold no sealed items.

    Returns:
        The names of tables in which that library, from release 8, keeps states. A table outside the default
        schema is named with its schema and a dot first.
    """
    return _names(_unnamed(connection, registered, unsealed_tables, _looks_theirs))


@reads("looking for tables that hold envelopes")
def copies_of_items(
    connection: Connection, registered: Iterable[SealedTable], *, unsealed_tables: Collection[str] = ()
) -> list[str]:
    """
    Find unregistered tables that hold envelopes, by their contents.

    On PostgreSQL a copy has the column types of the original, and :func:`unregistered_tables` finds it. On
    SQLite a column of any declared type may hold a blob. There every column of these tables is read, up to
    the first envelope.

    Args:
        connection: A connection to a database of items.
        registered: The tables that the registry lists for this database.
        unsealed_tables: The names of tables whose envelopes nobody needs.

    Returns:
        The names of the tables.
    """
    if connection.dialect.name != "sqlite":
        return []
    unnamed = _unnamed(connection, registered, unsealed_tables, bool)
    return [table.name for table in unnamed if _holds_envelopes(connection, table)]


@reads("looking for events by tags")
def tables_of_tagged_events(connection: Connection, *, unsealed_tables: Collection[str] = ()) -> list[str]:
    """
    Find tables in which the eventsourcing library keeps events by tags.

    No registered table has their columns.

    Args:
        connection: A connection to a database of items.
        unsealed_tables: The names of tables that are known to hold no sealed items.

    Returns:
        The names of the tables. A table outside the default schema is named with its schema and a dot first.
    """
    return _names(_unnamed(connection, (), unsealed_tables, _looks_tagged))


def _unnamed(
    connection: Connection,
    registered: Iterable[SealedTable],
    unsealed_tables: Collection[str],
    looks_so: Callable[[dict[str, TypeEngine[Any]]], bool],
) -> list[_Unnamed]:
    inspector = inspect(connection)
    default = f"{schema_of(connection, None) or inspector.default_schema_name}."
    own = [own_name(connection, name) for name in OWN_TABLES]
    known = {*own, *unsealed_tables, *(table.table.removeprefix(default) for table in registered)}
    parts = _partitions(connection)
    return sorted(
        _Unnamed(name, schema, table, tuple(column["name"] for column in columns))
        for schema in filter(_is_users, inspector.get_schema_names())
        for (_, table), columns in inspector.get_multi_columns(schema=schema).items()
        if (schema, table) not in parts
        and (name := f"{schema}.{table}".removeprefix(default)) not in known
        and looks_so({column["name"]: column["type"] for column in columns})
    )


def _partitions(connection: Connection) -> set[tuple[str, str]]:
    """Return the partitions of PostgreSQL's tables. Their items are those of the whole table."""
    if connection.dialect.name != "postgresql":
        return set()
    return {(row[0], row[1]) for row in connection.execute(_PARTITIONS)}


def _names(tables: Iterable[_Unnamed]) -> list[str]:
    return [table.name for table in tables]


def _holds_envelopes(connection: Connection, table: _Unnamed) -> bool:
    quote = connection.dialect.identifier_preparer.quote_identifier
    place = f"{quote(table.schema)}.{quote(table.table)}"
    for start in range(0, len(table.columns), _COLUMNS_AT_ONCE):
        columns = map(quote, table.columns[start : start + _COLUMNS_AT_ONCE])
        headers = [key_id_in_header(connection.dialect, column) for column in columns]
        is_one = " OR ".join([f"{header} IS NOT NULL" for header in headers])
        if connection.exec_driver_sql(f"SELECT 1 FROM {place} WHERE {is_one} LIMIT 1").first():  # noqa: S608
            return True
    return False


def _is_users(schema: str) -> bool:
    return schema != "information_schema" and not schema.startswith("pg_")


def _looks_sealed(types: dict[str, TypeEngine[Any]]) -> bool:
    key_id = types.pop(KEY_ID, None)
    return key_id is not None and _may_hold_uuid(key_id) and any(map(_is_binary, types.values()))


def _looks_theirs(types: dict[str, TypeEngine[Any]]) -> bool:
    data = EVENTSOURCING_COLUMNS["data"]
    return types.keys() >= set(EVENTSOURCING_COLUMNS.values()) and _is_binary(types[data])


def _looks_tagged(types: dict[str, TypeEngine[Any]]) -> bool:
    return (
        types.keys() >= {"type", "data", "tags"}
        and _is_binary(types["data"])
        and isinstance(types["tags"], ARRAY)
    )


def _may_hold_uuid(kind: TypeEngine[Any]) -> bool:
    # These are SQLite's types: BinaryUUID is a BLOB there, SQLAlchemy's own Uuid is CHAR(32).
    return (
        isinstance(kind, Uuid) or _is_binary(kind) or (isinstance(kind, CHAR) and kind.length == _HEX_DIGITS)
    )


def _is_binary(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, LargeBinary | BINARY | VARBINARY)

"""Tables that look as if they held sealed items, and that nobody named: what is in them would be lost."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, BINARY, CHAR, VARBINARY, LargeBinary, Uuid, inspect
from sqlalchemy.types import NullType

from eventseal.storage.header_key_ids import key_id_in_header
from eventseal.storage.item_columns import KEY_ID
from eventseal.storage.job_tables import job_metadata
from eventseal.storage.key_tables import fence_metadata, key_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from sqlalchemy.engine import Connection
    from sqlalchemy.types import TypeEngine

    from eventseal.storage.registry import SealedTable

OWN_TABLES = frozenset({*key_metadata.tables, *fence_metadata.tables, *job_metadata.tables})
"""EventSeal's own tables, which have key ids and hold no items."""

EVENTSOURCING_COLUMNS: Mapping[str, str] = MappingProxyType(
    {"sequence_id": "originator_id", "position": "originator_version", "topic": "topic", "data": "state"}
)
"""By role, the columns of the eventsourcing library's tables, which have no ``key_id``."""

_HEX_DIGITS = 32


def unregistered_tables(
    connection: Connection, registered: Iterable[SealedTable], *, unsealed_tables: Collection[str] = ()
) -> list[str]:
    """
    Find tables that look as if they held sealed items, but that nobody named.

    Args:
        connection: To a database of items.
        registered: What the registry says of this database.
        unsealed_tables: Names of tables that are known to hold none.

    Returns:
        The names of tables, not EventSeal's own, with a ``key_id`` of a UUID type beside a binary column;
        before those outside the default schema stands theirs.
    """
    return _unnamed(connection, registered, unsealed_tables, _looks_sealed)


def unregistered_eventsourcing_tables(
    connection: Connection, registered: Iterable[SealedTable], *, unsealed_tables: Collection[str] = ()
) -> list[str]:
    """
    Find tables of the eventsourcing library that nobody named: whether they hold sealed items, none says.

    Args:
        connection: To a database of items.
        registered: What the registry says of this database.
        unsealed_tables: Names of tables that are known to hold none.

    Returns:
        The names of tables in which that library, from release 8 on, keeps states; before those outside the
        default schema stands theirs.
    """
    return _unnamed(connection, registered, unsealed_tables, _looks_theirs)


def copies_of_items(
    connection: Connection, registered: Iterable[SealedTable], *, unsealed_tables: Collection[str] = ()
) -> list[str]:
    """
    Find tables that hold envelopes and that nobody named, by what is in them.

    On PostgreSQL a copy has the types of the original, and :func:`unregistered_tables` finds it. On SQLite
    ``CREATE TABLE ... AS`` drops them. There every column that is declared binary, or as nothing, is read, of
    these tables alone, and up to the first envelope.

    Args:
        connection: To a database of items.
        registered: What the registry says of this database.
        unsealed_tables: Names of tables of which nobody needs the envelopes.

    Returns:
        The names of tables.
    """
    if connection.dialect.name != "sqlite":
        return []
    quote = connection.dialect.identifier_preparer.quote
    unnamed = _unnamed(
        connection, registered, unsealed_tables, lambda types: any(map(_is_blob, types.values()))
    )
    found = []
    for table in unnamed:
        for column in inspect(connection).get_columns(table):
            if _is_blob(column["type"]):
                header = key_id_in_header(connection.dialect, quote(column["name"]))
                query = f"SELECT 1 FROM {quote(table)} WHERE {header} IS NOT NULL LIMIT 1"  # noqa: S608 - quoted
                if connection.exec_driver_sql(query).first():
                    found.append(table)
                    break
    return found


def tables_of_tagged_events(connection: Connection, *, unsealed_tables: Collection[str] = ()) -> list[str]:
    """
    Find tables in which the eventsourcing library keeps events by tags: no registered table is like them.

    Args:
        connection: To a database of items.
        unsealed_tables: Names of tables that are known to hold no sealed items.

    Returns:
        Their names; before those outside the default schema stands theirs.
    """
    return _unnamed(connection, (), unsealed_tables, _looks_tagged)


def _unnamed(
    connection: Connection,
    registered: Iterable[SealedTable],
    unsealed_tables: Collection[str],
    looks_so: Callable[[dict[str, TypeEngine[Any]]], bool],
) -> list[str]:
    inspector = inspect(connection)
    default = f"{inspector.default_schema_name}."
    known = {*OWN_TABLES, *unsealed_tables, *(table.table.removeprefix(default) for table in registered)}
    return sorted(
        name
        for schema in filter(_is_users, inspector.get_schema_names())
        for (_, table), columns in inspector.get_multi_columns(schema=schema).items()
        if (name := f"{schema}.{table}".removeprefix(default)) not in known
        and looks_so({column["name"]: column["type"] for column in columns})
    )


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
    # As SQLite keeps them: BinaryUUID is a BLOB there, SQLAlchemy's own Uuid is CHAR(32).
    return (
        isinstance(kind, Uuid) or _is_binary(kind) or (isinstance(kind, CHAR) and kind.length == _HEX_DIGITS)
    )


def _is_blob(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, NullType) or _is_binary(kind)


def _is_binary(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, LargeBinary | BINARY | VARBINARY)

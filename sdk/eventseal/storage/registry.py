"""The registry: which tables hold sealed items. It is data, kept beside the keys, not configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, Uuid, select, update
from sqlalchemy.dialects import postgresql, sqlite

from eventseal.errors import IntegrityError
from eventseal.storage.item_columns import KEY_ID, ROLES, is_text
from eventseal.storage.key_tables import EVERY_APPLICATION, sealed_tables
from eventseal.storage.types import BinaryUUID, DatabaseText, ExactDecimal, ExactInteger, ExactText

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy.engine import Connection, Row
    from sqlalchemy.types import TypeEngine

    from eventseal.storage.item_columns import ItemColumns

ELSEWHERE = "elsewhere"
"""Stands in place of a database for places that are no tables of one."""

DEFAULT_DATABASE = "items"
"""The logical name of the database that is configured for the items."""


class ColumnKind(StrEnum):
    """
    How a column holds its values; the registry's word for a type.

    ``GENERIC_UUID`` is SQLAlchemy's own: native on PostgreSQL, 32 hexadecimal digits elsewhere.
    ``DATABASE_TEXT`` is text that is compared byte for byte, but sorted as the database sorts it.
    """

    UUID = "uuid"
    GENERIC_UUID = "generic-uuid"
    TEXT = "text"
    DATABASE_TEXT = "database-text"
    INTEGER = "integer"
    DECIMAL = "decimal"
    BINARY = "binary"

    @property
    def type(self) -> TypeEngine[Any]:
        """SQLAlchemy's type that reads and writes such a column."""
        return _TYPES[self]

    @classmethod
    def of(cls, kind: TypeEngine[Any]) -> ColumnKind:
        """Name the kind of a column type that items may have."""
        for name, known in ((cls.UUID, BinaryUUID), (cls.GENERIC_UUID, Uuid), (cls.DECIMAL, ExactDecimal)):
            if isinstance(kind, known):
                return name
        if isinstance(kind, LargeBinary):
            return cls.BINARY
        return cls.TEXT if is_text(kind) else cls.INTEGER


_TYPES: Mapping[ColumnKind, TypeEngine[Any]] = MappingProxyType(
    {
        ColumnKind.UUID: BinaryUUID(),
        ColumnKind.GENERIC_UUID: Uuid(),
        ColumnKind.TEXT: ExactText(),
        ColumnKind.DATABASE_TEXT: DatabaseText(),
        ColumnKind.INTEGER: ExactInteger(),
        ColumnKind.DECIMAL: ExactDecimal(),
        ColumnKind.BINARY: LargeBinary(),
    }
)


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column of a registered table: its name in the database, and how it holds its values."""

    name: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedTable:
    """
    A table that holds sealed items.

    Attributes:
        application: Whose; ``None``: of every application that writes there.
        database: The logical name of the database it is in.
        table: Its name, with its schema before a dot if it has one.
        collection: The logical name that is bound to its items.
        columns: By role: ``sequence_id``, ``position``, ``topic``, ``data``, ``key_id``. A table without the
            last is one that another program writes: the id of a row's key is read from its envelope's header.
        old_formats: What its readers accept beside envelopes, while a migration lasts.
        is_migrated: Whether a migration has ended: every row must be an envelope.
        is_others: Whether only other applications registered it.
    """

    application: str | None = None
    database: str = DEFAULT_DATABASE
    table: str
    collection: str
    columns: Mapping[str, SealedColumn] = field(hash=False)
    old_formats: tuple[str, ...] = ()
    is_migrated: bool = False
    is_others: bool = False

    @property
    def has_key_ids(self) -> bool:
        """Whether a column names the key of each row; if not, its envelope's header alone does."""
        return KEY_ID in self.columns

    @property
    def may_mislead(self) -> bool:
        """Whether a row may look like an envelope, under a key that there never was, and be none."""
        return bool(self.old_formats) and not self.has_key_ids

    @classmethod
    def of(
        cls, columns: ItemColumns, application: str | None, *, database: str = DEFAULT_DATABASE
    ) -> SealedTable:
        """
        Describe the table of a record class.

        Args:
            columns: Of a table with a ``key_id``.
            application: Whose items; ``None``: of every application.
            database: The logical name of the database it is in.
        """
        by_role = dict(zip((*ROLES, KEY_ID), (*columns.columns[: len(ROLES)], columns.key_id), strict=True))
        return cls(
            application=application,
            database=database,
            table=columns.table.fullname,
            collection=columns.collection,
            columns={
                role: SealedColumn(column.name, ColumnKind.of(column.type))
                for role, column in by_role.items()
                if column is not None
            },
        )


_ANY_COLUMNS = {role: SealedColumn(role, ColumnKind.BINARY) for role in ROLES}
"""What the registry says of the columns of a place that is no table."""


def register(connection: Connection, tables: Iterable[SealedTable]) -> None:
    """
    Write tables into the registry, where it does not say the same already.

    What readers accept beside envelopes stays as it is there: :func:`set_old_formats` changes it.

    Args:
        connection: To the database of the keys, in a transaction.
        tables: Any number.
    """
    known = [_as_given(table) for table in registered(connection)]
    # In one order, and as an upsert: other processes may register the same tables at this moment.
    for table in sorted(tables, key=lambda table: (table.database, table.table)):
        if _as_given(table) in known:
            continue
        key = {
            "application": EVERY_APPLICATION if table.application is None else table.application,
            "database_name": table.database,
            "table_name": table.table,
        }
        columns = {role: [column.name, column.kind.value] for role, column in table.columns.items()}
        said = {"collection": table.collection, "columns": columns}
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        connection.execute(
            insert(sealed_tables)
            .values(**key, **said)
            .on_conflict_do_update(index_elements=list(key), set_=said)
        )


def forget_statement(table: SealedTable) -> str:
    """Write the statement that takes a table out of the registry, for somebody who dropped it on purpose."""
    name, database = (text.replace("'", "''") for text in (table.table, table.database))
    return f"DELETE FROM sealed_tables WHERE table_name = '{name}' AND database_name = '{database}';"  # noqa: S608


def register_place(connection: Connection, application: str, name: str, collection: str) -> None:
    """
    Write a place that is no table of the items' database into the registry, if it is not there.

    Args:
        connection: To the database of the keys, in a transaction.
        application: Whose items it holds.
        name: Of the place.
        collection: The logical name that is bound to its items.
    """
    register(
        connection,
        [
            SealedTable(
                application=application,
                database=ELSEWHERE,
                table=name,
                collection=collection,
                columns=_ANY_COLUMNS,
            )
        ],
    )


def registered_places(connection: Connection) -> list[str]:
    """
    Name the places of every application that are no tables of the items' database, in order.

    Args:
        connection: To the database of the keys.
    """
    columns = sealed_tables.c
    query = select(columns.table_name).where(columns.database_name == ELSEWHERE).distinct()
    return list(connection.execute(query.order_by(columns.table_name)).scalars())


def set_old_formats(connection: Connection, table: SealedTable, old_formats: Collection[str]) -> None:
    """
    Write down what the readers of a registered table accept beside envelopes.

    Args:
        connection: To the database of the keys, in a transaction.
        table: From the registry.
        old_formats: Their names; none: every row must be an envelope.
    """
    columns = sealed_tables.c
    connection.execute(
        update(sealed_tables)
        .where(columns.database_name == table.database, columns.table_name == table.table)
        .values(old_formats=sorted(old_formats))
    )


def registered(connection: Connection, application: str | None = None) -> list[SealedTable]:
    """
    Read the registry, in order of database and table.

    Args:
        connection: To the database of the keys.
        application: Only what may hold its items; ``None``: everything.

    Raises:
        IntegrityError: A row is not one that was registered.
    """
    query = (
        select(sealed_tables)
        .where(sealed_tables.c.database_name != ELSEWHERE)
        .order_by(sealed_tables.c.database_name, sealed_tables.c.table_name, sealed_tables.c.application)
    )
    if application is not None:
        query = query.where(sealed_tables.c.application.in_([application, EVERY_APPLICATION]))
    try:
        return [_sealed_table(row) for row in connection.execute(query)]
    except (AttributeError, TypeError, ValueError):
        raise IntegrityError(
            "a row of sealed_tables says nothing that can be read of its table: it was edited",
            remedy="Restore the row from a backup, or delete it and run `eventseal init`.",
        ) from None


def _sealed_table(row: Row[Any]) -> SealedTable:
    return SealedTable(
        application=None if row.application == EVERY_APPLICATION else row.application,
        database=row.database_name,
        table=row.table_name,
        collection=row.collection,
        columns={role: SealedColumn(name, ColumnKind(kind)) for role, (name, kind) in row.columns.items()},
        old_formats=tuple(row.old_formats or ()),
        is_migrated=row.old_formats == [],
    )


def _as_given(table: SealedTable) -> SealedTable:
    """Leave out what only the registry knows of a table."""
    return replace(table, old_formats=(), is_migrated=False)

"""
Alembic: leave EventSeal's tables alone, and create and upgrade them in migrations.

``env.py`` passes :func:`include_object` and :func:`render_item` to Alembic. Migrations that import this
module have the operations ``op.create_eventseal_tables()``, ``op.upgrade_eventseal_tables()`` and
``op.drop_eventseal_tables()``.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import literal, select
from sqlalchemy.schema import DropTable

from eventseal.erasure.ledger.lines import ledger_metadata
from eventseal.errors import ConfigurationError
from eventseal.storage.database.column_types import DatabaseText
from eventseal.storage.database.layout import OLDER_NAMES, PREFIX
from eventseal.storage.database.table_setup import add_columns, compare_tables, create_tables, creation
from eventseal.storage.items.tables import OWN_RECORDS
from eventseal.storage.jobs.tables import job_metadata
from eventseal.storage.keys.tables import fence_metadata, key_metadata
from eventseal.storage.renaming import rename_tables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from alembic.autogenerate.api import AutogenContext
    from sqlalchemy import Connection, Table

Part = Literal["items", "keys", "ledger"]
"""A part of a store that a database may hold."""

_METADATA = {"items": (fence_metadata, job_metadata), "keys": (key_metadata,), "ledger": (ledger_metadata,)}
_ITEM_TABLES = frozenset(record.__tablename__ for record in OWN_RECORDS)
_TYPES = DatabaseText.__module__


def include_object(
    _object: Any,
    name: str | None,
    type_: str,
    reflected: bool,
    compare_to: object,
) -> bool:
    """
    Return whether autogenerate compares an object.

    Pass this function to ``context.configure``. It leaves out the tables that EventSeal created and your
    metadata does not have, and EventSeal's indexes on your tables.
    """
    if not reflected or compare_to is not None or name is None:
        return True
    if type_ == "table":
        return not (name.startswith(PREFIX) or name in _ITEM_TABLES or name in OLDER_NAMES)
    return type_ != "index" or not name.startswith(PREFIX)


def render_item(type_: str, object_: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """
    Write one of EventSeal's column types into a migration, with its import.

    Pass this function to ``context.configure``. It leaves everything else to Alembic.
    """
    if type_ != "type" or type(object_).__module__ != _TYPES:
        return False
    autogen_context.imports.add(f"from {_TYPES} import {type(object_).__name__}")
    return repr(object_)


class _OnTables(MigrateOperation):
    """
    An operation on EventSeal's own tables in one database.

    Args:
        holds: The database's parts: ``items``, ``keys``, ``ledger`` or several of them. By default, it
            holds the items and the keys.
        schema: The PostgreSQL schema of the tables, as the setting ``database_schema``.
    """

    def __init__(self, holds: Collection[Part] = ("items", "keys"), schema: str | None = None) -> None:
        if isinstance(holds, str) or not set(holds) <= _METADATA.keys():
            raise ConfigurationError(
                f"holds is {holds!r}, but a database holds some of {', '.join(_METADATA)}",
                remedy='Give a list, such as holds=["items", "keys"].',
            )
        self.holds = tuple(holds)
        self.schema = schema

    @property
    def tables(self) -> list[Table]:
        """The tables, in an order in which they can be created."""
        return [
            table
            for part, every in _METADATA.items()
            if part in self.holds
            for metadata in every
            for table in metadata.sorted_tables
        ]

    @contextmanager
    def connection(self, operations: Operations) -> Iterator[Connection]:
        """
        Lend the migration's connection, with the schema chosen.

        Raises:
            ConfigurationError: Alembic only writes SQL, so there is no connection.
        """
        if operations.migration_context.as_sql:
            raise ConfigurationError(
                "this operation must look into the database, so it cannot be written as SQL",
                remedy="Run `alembic upgrade` or `alembic downgrade` without --sql.",
            )
        connection = operations.get_bind()
        before = connection.get_execution_options().get("schema_translate_map")
        connection.execution_options(schema_translate_map={**(before or {}), None: self.schema})
        try:
            yield connection
        finally:
            connection.execution_options(schema_translate_map=before)


@Operations.register_operation("create_eventseal_tables")
class CreateTables(_OnTables):
    """Creates EventSeal's own tables in one database. Existing tables stay as they are."""

    @classmethod
    def create_eventseal_tables(
        cls,
        operations: Operations,
        holds: Collection[Part] = ("items", "keys"),
        *,
        schema: str | None = None,
    ) -> None:
        """
        Create EventSeal's own tables in one database. Existing tables stay as they are.

        Tables of items are yours: your metadata or ``eventseal init`` creates them.

        Args:
            operations: Alembic passes it.
            holds: The database's parts: ``items``, ``keys``, ``ledger`` or several of them. By default,
                it holds the items and the keys.
            schema: The PostgreSQL schema of the tables, as the setting ``database_schema``.

        Raises:
            ConfigurationError: A table belongs to another program, or an earlier release created it.
        """
        operations.invoke(cls(holds, schema))

    def reverse(self) -> DropTables:
        """Return the operation that drops the tables."""
        return DropTables(self.holds, self.schema)


@Operations.register_operation("upgrade_eventseal_tables")
class UpgradeTables(_OnTables):
    """Brings EventSeal's own tables of an earlier release up to date."""

    @classmethod
    def upgrade_eventseal_tables(
        cls,
        operations: Operations,
        holds: Collection[Part] = ("items", "keys"),
        *,
        schema: str | None = None,
    ) -> None:
        """
        Rename EventSeal's own tables of earlier releases, and create what they lack.

        The arguments are those of ``create_eventseal_tables``. Afterwards run ``eventseal upgrade``: it
        builds indexes without blocking writers, which a migration cannot, and upgrades the contents of the
        key tables. No downgrade undoes this, because no earlier release can use the tables.

        Raises:
            ConfigurationError: A table belongs to another program, or Alembic only writes SQL.
        """
        operations.invoke(cls(holds, schema))


@Operations.register_operation("drop_eventseal_tables")
class DropTables(_OnTables):
    """Drops EventSeal's own tables in one database, if they are empty."""

    @classmethod
    def drop_eventseal_tables(
        cls,
        operations: Operations,
        holds: Collection[Part] = ("items", "keys"),
        *,
        schema: str | None = None,
    ) -> None:
        """
        Drop EventSeal's own tables in one database, if they are empty.

        The arguments are those of ``create_eventseal_tables``.

        Raises:
            ConfigurationError: A table has rows. Without them, items could not be decrypted, or erasures not
                be proved. Or Alembic only writes SQL.
        """
        operations.invoke(cls(holds, schema))

    def reverse(self) -> CreateTables:
        """Return the operation that creates the tables."""
        return CreateTables(self.holds, self.schema)


@Operations.implementation_for(CreateTables)
def _create(operations: Operations, operation: CreateTables) -> None:
    if operations.migration_context.as_sql:
        if operation.schema is not None:
            raise ConfigurationError(
                "a schema cannot be written as SQL here",
                remedy="Print the SQL with `eventseal init --sql`.",
            )
        for table in operation.tables:
            for element in creation(table):
                operations.execute(element)
        return
    with operation.connection(operations) as connection:
        create_tables(connection, operation.tables)


@Operations.implementation_for(UpgradeTables)
def _upgrade(operations: Operations, operation: UpgradeTables) -> None:
    with operation.connection(operations) as connection:
        rename_tables(connection, operation.tables)
        add_columns(connection, operation.tables)
        create_tables(connection, operation.tables)


@Operations.implementation_for(DropTables)
def _drop(operations: Operations, operation: DropTables) -> None:
    with operation.connection(operations) as connection:
        missing = compare_tables(connection, operation.tables).missing
        there = [table for table in operation.tables if table not in missing]
        for table in there:
            if connection.execute(select(literal(1)).select_from(table).limit(1)).first() is not None:
                raise ConfigurationError(
                    f"the table {table.name} has rows, so no table was dropped. Without the keys, no item "
                    "can be decrypted",
                    remedy="Remove drop_eventseal_tables() from the downgrade. If you really give up every "
                    "encrypted item, drop the tables yourself.",
                )
        for table in reversed(there):
            connection.execute(DropTable(table))

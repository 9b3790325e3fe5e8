"""
The registry: which tables hold sealed items.

It is data, stored with the keys, and not configuration.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select, update

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.storage.database.column_types import is_utf8
from eventseal.storage.database.layout import own_name
from eventseal.storage.database.rows import (
    are_texts,
    as_sql,
    deletion,
    insert_unless_there,
    insertion,
    read_rows,
)
from eventseal.storage.database.table_setup import KEY_ID, one_setup_at_a_time
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.items.columns import ROLES
from eventseal.storage.items.tables import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.keys.tables import EVERY_APPLICATION, sealed_tables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.engine import Connection, Engine

    from eventseal.storage.database.rows import Checks


ELSEWHERE = "elsewhere"
"""Replaces the database name of places that are not tables."""


@writes("registering tables")
def register(connection: Connection, tables: Iterable[SealedTable]) -> None:
    """
    Write tables into the registry where its entries differ.

    The older formats that readers accept stay as they are. :func:`set_old_formats` changes them.

    Args:
        connection: A connection to the database of the keys, in a transaction.
        tables: The tables, any number.

    Raises:
        ConfigurationError: Another table has the collection of one of them. Nothing was written.
    """
    one_setup_at_a_time(connection)
    tables = list(tables)
    # Edited rows are not in the list, so this writes them again, as far as it writes at all.
    known = [_as_given(table) for table in read_registry(connection).tables]
    refuse_taken_collections(known, tables)
    # In a fixed order and as an upsert, because other processes may register the same tables now.
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
        inserting = insertion(connection, sealed_tables).values(**key, **said)
        connection.execute(inserting.on_conflict_do_update(index_elements=list(key), set_=said))


def refuse_taken_collections(known: Sequence[SealedTable], tables: Sequence[SealedTable]) -> None:
    """
    Refuse a table that has the collection of another table.

    Otherwise a row that is copied from one table to the other would open. Tables that already share a
    collection in the registry may be registered again. Tables of other libraries are left out, because their
    items are not bound to the table's own name.

    Args:
        known: The tables in the registry.
        tables: The tables to register.

    Raises:
        ConfigurationError: Two tables would share a collection.
    """
    for number, table in enumerate(tables):
        there = entry_of(known, table.table, table.application)
        if there is not None and there.collection == table.collection:
            continue
        for other in (*known, *tables[:number]):
            if table.shares_collection_with(other):
                raise ConfigurationError(
                    f"the table {table.table} cannot be registered: its collection {table.collection!r} is "
                    f"that of {other.table}, so a row copied from there would open. Nothing was written",
                    remedy=f"Set another collection on the record class of {table.table}, such as "
                    f"__collection__ = {table.table!r}. Then run this again.",
                )


def entry_of(known: Sequence[SealedTable], table: str, application: str | None) -> SealedTable | None:
    """
    Return the registry's entry for a table.

    The entry of the application takes precedence over the entry of all applications.
    """
    mine = {entry.application: entry for entry in known if entry.table == table}
    return mine.get(application) or mine.get(None)


@writes("registering {table.table}")
def move_collection(connection: Connection, table: SealedTable, application: str) -> None:
    """
    Record that every item of a table is bound to its collection.

    Readers then accept no other name.

    Args:
        connection: A connection to the database of the keys, in a transaction.
        table: The table as its record class describes it.
        application: The application whose items were re-encrypted.
    """
    register(connection, [replace(table, application=application, former_collection=None)])
    if table.old_formats or table.is_migrated:
        set_old_formats(connection, table, table.old_formats)


def forget_statement(database: Engine | Connection, table: SealedTable) -> str:
    """
    Return the statement that removes a table from the registry.

    It is for a user who dropped the table on purpose.

    Args:
        database: The database of the keys.
        table: The table, from the registry.
    """
    name, of = (as_sql(database, text) for text in (table.table, table.database))
    return deletion(database, sealed_tables, f"table_name = {name} AND database_name = {of}")


@writes("registering {name}", filtered=True)
def register_place(connection: Connection, application: str, name: str, collection: str) -> None:
    """
    Add a place that is not a table to the registry.

    Nothing changes if the registry has the place already.

    Args:
        connection: A connection to the database of the keys, in a transaction.
        application: The application whose items the place holds.
        name: The name of the place.
        collection: The logical name that is bound to its items.
    """
    # This row makes a program that does not know the place refuse to retire keys (docs/decisions/0020).
    place = {"application": application, "database_name": ELSEWHERE, "table_name": name}
    said = {"collection": collection, "columns": {}}
    connection.execute(insert_unless_there(connection, sealed_tables).values(**place, **said))


@reads("reading the registry of places", filtered=True)
def registered_places(connection: Connection) -> list[str]:
    """
    Return the names of the registered places that are not tables.

    They are those of every application, in order. It needs a connection to the database of the keys.
    """
    columns = sealed_tables.c
    query = select(columns.table_name).where(columns.database_name == ELSEWHERE).distinct()
    return list(connection.execute(query.order_by(columns.table_name)).scalars())


@writes("storing which formats are accepted")
def set_old_formats(connection: Connection, table: SealedTable, old_formats: Collection[str]) -> None:
    """
    Store the older formats that the readers of a registered table accept.

    Args:
        connection: A connection to the database of the keys, in a transaction.
        table: The table, from the registry.
        old_formats: The names of the formats. If there are none, every row must be an envelope.
    """
    columns = sealed_tables.c
    connection.execute(
        update(sealed_tables)
        .where(columns.database_name == table.database, columns.table_name == table.table)
        # An empty list is not NULL. It says that a migration has ended permanently (docs/decisions/0017).
        .values(old_formats=sorted(old_formats))
    )


class UnreadableTable(NamedTuple):
    """
    A row of the registry that an edit made unreadable.

    Attributes:
        table: The table's name, if it can be read.
        problem: The error that names the row.
    """

    table: str | None
    problem: IntegrityError


class Registry(NamedTuple):
    """
    The readable part of the registry.

    Attributes:
        tables: The tables, in order of database and table.
        unreadable: The edited rows. Nobody knows what their tables hold.
    """

    tables: list[SealedTable]
    unreadable: list[UnreadableTable]

    def complete(self) -> list[SealedTable]:
        """
        Return all tables, for callers that must not miss any.

        Raises:
            IntegrityError: A row was edited. The message names its database and its table.
        """
        for row in self.unreadable:
            raise row.problem
        return self.tables


@reads("reading the registry of sealed tables")
def read_registry(connection: Connection, application: str | None = None) -> Registry:
    """
    Read the registry, in order of database and table.

    Args:
        connection: A connection to the database of the keys.
        application: Read only tables that may hold items of this application. With ``None``, read all.
    """
    query = (
        select(sealed_tables)
        .where(sealed_tables.c.database_name != ELSEWHERE)
        .order_by(sealed_tables.c.database_name, sealed_tables.c.table_name, sealed_tables.c.application)
    )
    if application is not None:
        # A superfluous table costs a count. A missing one costs a key that is needed (docs/decisions/0002).
        query = query.where(sealed_tables.c.application.in_([application, EVERY_APPLICATION]))
    found = Registry([], [])
    for row in read_rows(connection, query, _CHECKS):
        if row.unreadable:
            known = {name: value for name, value in row.values.items() if name not in row.unreadable}
            problem = _problem(connection, known, row.unreadable)
            found.unreadable.append(UnreadableTable(known.get("table_name"), problem))
        else:
            found.tables.append(_sealed_table(row.values))
    return found


@reads("reading the registry of sealed tables", filtered=True)
def read_visible_registry(connection: Connection, application: str | None = None) -> Registry:
    """Read the rows that row-level security lets an application see."""
    return read_registry(connection, application)


def _sealed_table(values: Mapping[str, Any]) -> SealedTable:
    old_formats = values["old_formats"]
    return SealedTable(
        application=None if values["application"] == EVERY_APPLICATION else values["application"],
        database=values["database_name"],
        table=values["table_name"],
        collection=values["collection"],
        columns={
            role: SealedColumn(name, ColumnKind(kind)) for role, (name, kind) in values["columns"].items()
        },
        old_formats=tuple(old_formats or ()),
        is_migrated=old_formats == [],
    )


def _problem(connection: Connection, known: Mapping[str, Any], unreadable: Sequence[str]) -> IntegrityError:
    table, registry = known.get("table_name"), own_name(connection, sealed_tables.name)
    rows = "the row"
    if table is not None:
        rows = f"the row whose table_name is {as_sql(connection, table)}"
    return IntegrityError(
        f"the row of {registry} for table {table or '?'} in database {known.get('database_name', '?')} "
        f"was edited: its {', '.join(unreadable)} cannot be read",
        remedy="Find out who changed the key tables, and restore this row from a backup. If you have none, "
        f"delete {rows} from {registry}, and run `eventseal init`, which writes it again.",
        table=table,
    )


def other_columns(database: Engine | Connection, table: SealedTable) -> UnreadableTable:
    """
    Return an error for a row with other columns than its table.

    The row can be read, but its columns are not those of the table that the store describes.
    """
    problem = IntegrityError(
        f"the row of {own_name(database, sealed_tables.name)} for table {table.table} of application "
        f"{table.application or 'all'} was edited: its columns are not those of the table's record class",
        remedy="Find out who changed the key tables. Then run `eventseal init` for that application, which "
        "writes the row again.",
        table=table.table,
    )
    return UnreadableTable(table.table, problem)


def _are_columns(value: Any) -> bool:
    """
    Return whether a row names one column for each role.

    Each column has a known kind, and occurs only once.
    """
    if type(value) is not dict or not {*ROLES} <= value.keys() <= {*ROLES, KEY_ID}:
        return False
    return all(
        type(column) is list
        and [type(each) for each in column] == [str, str]
        and _is_name(column[0])
        and column[1] in list(ColumnKind)
        for column in value.values()
    ) and len({column[0] for column in value.values()}) == len(value)


def _are_names(value: Any) -> bool:
    return are_texts(value) and all(map(_is_name, value))


def _is_name(value: Any) -> bool:
    return bool(value) and "\0" not in value and is_utf8(value)


_CHECKS: Checks = {
    "database_name": _is_name,
    "table_name": _is_name,
    "collection": _is_name,
    "columns": _are_columns,
    "old_formats": lambda value: value is None or _are_names(value),
}


def _as_given(table: SealedTable) -> SealedTable:
    """Return a table without the facts that only the registry has."""
    return replace(table, old_formats=(), is_migrated=False, former_collection=None)

"""The registry: which tables hold sealed items. It is data, kept beside the keys, not configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select, update

from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.storage.database.column_types import is_utf8
from eventseal.storage.database.rows import are_texts, as_sql, insert_unless_there, insertion, read_rows
from eventseal.storage.database.table_setup import KEY_ID, one_setup_at_a_time
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.items.columns import ROLES
from eventseal.storage.items.tables import ColumnKind, SealedColumn, SealedTable
from eventseal.storage.keys.tables import EVERY_APPLICATION, sealed_tables

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from eventseal.storage.database.rows import Checks


ELSEWHERE = "elsewhere"
"""Stands in place of a database for places that are no tables of one."""


@writes("registering tables")
def register(connection: Connection, tables: Iterable[SealedTable]) -> None:
    """
    Write tables into the registry, where it does not say the same already.

    What readers accept beside envelopes stays as it is there: :func:`set_old_formats` changes it.

    Args:
        connection: To the database of the keys, in a transaction.
        tables: Any number.

    Raises:
        ConfigurationError: Another table has the collection of one of them; nothing was written.
    """
    one_setup_at_a_time(connection)
    tables = list(tables)
    # What was edited is known to nobody: it is written anew, as far as this writes.
    known = [_as_given(table) for table in read_registry(connection).tables]
    refuse_taken_collections(known, tables)
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
        inserting = insertion(connection, sealed_tables).values(**key, **said)
        connection.execute(inserting.on_conflict_do_update(index_elements=list(key), set_=said))


def refuse_taken_collections(known: Sequence[SealedTable], tables: Sequence[SealedTable]) -> None:
    """
    Refuse a table with the collection of another one: a row copied from one to the other would open.

    Tables that share one in the registry already may be registered again. Those of other libraries are left
    out: what their items are bound to is not the table's own name.

    Args:
        known: The registry.
        tables: That are to be registered.

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
                    f"that of {other.table}, and a row copied from there would open. Nothing was written",
                    remedy=f"Give the record class of {table.table} a name of its own, such as "
                    f"__collection__ = {table.table!r}; then run this again.",
                )


def entry_of(known: Sequence[SealedTable], table: str, application: str | None) -> SealedTable | None:
    """Give what the registry says of a table: the application's own entry before that of all."""
    mine = {entry.application: entry for entry in known if entry.table == table}
    return mine.get(application) or mine.get(None)


@writes("registering {table.table}")
def move_collection(connection: Connection, table: SealedTable, application: str) -> None:
    """
    Write down that every item of a table is bound to its collection: readers accept no other name any more.

    Args:
        connection: To the database of the keys, in a transaction.
        table: As its record class describes it.
        application: Whose items were moved.
    """
    register(connection, [replace(table, application=application, former_collection=None)])
    if table.old_formats or table.is_migrated:
        set_old_formats(connection, table, table.old_formats)


def forget_statement(table: SealedTable) -> str:
    """Write the statement that takes a table out of the registry, for somebody who dropped it on purpose."""
    name, database = (text.replace("'", "''") for text in (table.table, table.database))
    return f"DELETE FROM sealed_tables WHERE table_name = '{name}' AND database_name = '{database}';"  # noqa: S608


@writes("registering {name}", filtered=True)
def register_place(connection: Connection, application: str, name: str, collection: str) -> None:
    """
    Write a place that is no table of the items' database into the registry, if it is not there.

    Args:
        connection: To the database of the keys, in a transaction.
        application: Whose items it holds.
        name: Of the place.
        collection: The logical name that is bound to its items.
    """
    # By this row a program that never heard of the place refuses to retire keys (docs/decisions/0020).
    place = {"application": application, "database_name": ELSEWHERE, "table_name": name}
    said = {"collection": collection, "columns": {}}
    connection.execute(insert_unless_there(connection, sealed_tables).values(**place, **said))


@reads("reading the registry of places", filtered=True)
def registered_places(connection: Connection) -> list[str]:
    """
    Name the places of every application that are no tables of the items' database, in order.

    Args:
        connection: To the database of the keys.
    """
    columns = sealed_tables.c
    query = select(columns.table_name).where(columns.database_name == ELSEWHERE).distinct()
    return list(connection.execute(query.order_by(columns.table_name)).scalars())


@writes("saying which formats are accepted")
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
        # An empty list is not NULL: it says that a migration has ended, for good (docs/decisions/0017).
        .values(old_formats=sorted(old_formats))
    )


class UnreadableTable(NamedTuple):
    """
    A row of the registry that somebody edited so that it says nothing of its table.

    Attributes:
        table: The table's name, if that can be read.
        problem: Names the row.
    """

    table: str | None
    problem: IntegrityError


class Registry(NamedTuple):
    """
    The registry, as far as it can be read.

    Attributes:
        tables: In order of database and table.
        unreadable: The rows that were edited. Nobody knows what their tables hold.
    """

    tables: list[SealedTable]
    unreadable: list[UnreadableTable]

    def complete(self) -> list[SealedTable]:
        """
        Give all tables, for those who may pass over none.

        Raises:
            IntegrityError: A row was edited; the message names its database and its table.
        """
        for row in self.unreadable:
            raise row.problem
        return self.tables


@reads("reading the registry of sealed tables")
def read_registry(connection: Connection, application: str | None = None) -> Registry:
    """
    Read the registry, in order of database and table.

    Args:
        connection: To the database of the keys.
        application: Only what may hold its items; ``None``: everything.
    """
    query = (
        select(sealed_tables)
        .where(sealed_tables.c.database_name != ELSEWHERE)
        .order_by(sealed_tables.c.database_name, sealed_tables.c.table_name, sealed_tables.c.application)
    )
    if application is not None:
        # A table too many costs a count. One too few costs a key that is needed (docs/decisions/0002).
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
    """Read what policies of row-level security let an application see; see :func:`read_registry`."""
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
    table = known.get("table_name")
    rows = "the row"
    if table is not None:
        rows = f"the row whose table_name is {as_sql(connection, table)}"
    return IntegrityError(
        f"the row of sealed_tables for table {table or '?'} in database {known.get('database_name', '?')} "
        f"was edited: its {', '.join(unreadable)} cannot be read",
        remedy="Find out who changed the key tables, and restore this row from a backup. If you have none, "
        f"delete {rows} from sealed_tables, and run `eventseal init`, which writes it anew.",
        table=table,
    )


def other_columns(table: SealedTable) -> UnreadableTable:
    """Say of a row that can be read that its columns are not those of the table that the store describes."""
    problem = IntegrityError(
        f"the row of sealed_tables for table {table.table} of application {table.application or 'all'} was "
        "edited: its columns are not those of the table's record class",
        remedy="Find out who changed the key tables. Then run `eventseal init` for that application, which "
        "writes the row anew.",
        table=table.table,
    )
    return UnreadableTable(table.table, problem)


def _are_columns(value: Any) -> bool:
    """Whether a row names a column and its kind for each role of an item's table, each another one."""
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
    """Leave out what only the registry knows of a table."""
    return replace(table, old_formats=(), is_migrated=False, former_collection=None)

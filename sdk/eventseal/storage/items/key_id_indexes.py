"""
The indexes on key ids in headers and on differing rows.

The column of a differing row does not name the key that its header names. Retiring proves by the
headers alone that no item needs a key (docs/decisions/0020).
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import text

from eventseal.storage.database.faults import translated
from eventseal.storage.database.layout import quoted_name
from eventseal.storage.database.table_setup import KEY_ID, column_indexes, has_table
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.items.fences import fitting_name
from eventseal.storage.items.table_queries import key_id_in_header, key_ids_differ
from eventseal.storage.items.tables import ColumnKind

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.engine import Connection, Dialect, Engine

    from eventseal.storage.items.tables import SealedTable


_ON_SERVER = text(
    "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table)"
)
_IN_FILE = text("SELECT name, 1 FROM sqlite_master WHERE type = 'index' AND tbl_name = :table")
_IN_HEADER, _DIFFER = "eventseal_key_id_", "eventseal_differ_"
_IS_PARTITIONED = text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:table)")


def has_key_id_indexes(connection: Connection, table: SealedTable) -> bool:
    """
    Return whether queries by key find their indexes.

    The indexes must be on this release's expressions, and complete.
    """
    there = _there(connection, table)
    return all(there.get(name) for name in _definitions(connection, table))


@reads("looking at the indexes of {table.table}")
def is_unindexed(connection: Connection, table: SealedTable, *, keeps: bool) -> bool:
    """
    Return whether :func:`make_key_id_indexes` would change a table.

    It cannot change a table that does not exist. *keeps* says whether the table's record class declares an
    index on the column itself.
    """
    return has_table(connection, table.table) and (
        not has_key_id_indexes(connection, table) or bool(_obsolete(connection, table, keeps=keeps))
    )


def create_key_id_indexes(connection: Connection, table: SealedTable, concurrently: str = "") -> bool:
    """
    Create the missing indexes while other connections wait.

    It is for a new table, and for SQLite.

    Args:
        connection: A connection to the items' database, in a transaction.
        table: The table, from the registry.
        concurrently: The SQL word that lets others continue. With it, use no transaction.

    Returns:
        Whether an index was missing.
    """
    missing = missing_key_id_indexes(connection, table, concurrently)
    for statement in missing:
        connection.exec_driver_sql(statement)
    return bool(missing)


def missing_key_id_indexes(connection: Connection, table: SealedTable, concurrently: str = "") -> list[str]:
    """
    Return the statements that create the missing indexes. The arguments are as before.

    An incomplete index is left over from an interrupted attempt, and is dropped first.
    """
    there = _there(connection, table)
    statements = []
    for name, definition in _definitions(connection, table).items():
        if name in there and not there[name]:
            statements.append(f"DROP INDEX {concurrently}{quoted_name(connection, name, table.schema)}")
        if not there.get(name):
            statements.append(f"CREATE INDEX {concurrently}{definition}")
    return statements


def make_key_id_indexes(engine: Engine, table: SealedTable, *, keeps: bool = False) -> bool:
    """
    Create the missing indexes and drop those that they replace.

    Earlier releases created the indexes that are dropped. On PostgreSQL others can write meanwhile, unless
    the table is partitioned. On SQLite they wait.

    Args:
        engine: The engine of the items' database.
        table: The table, from the registry.
        keeps: Whether the table's record class declares an index on the column itself.

    Returns:
        Whether an index was created or dropped.

    Raises:
        StoreError: The database refused or failed. Run it again.
    """
    if engine.dialect.name == "sqlite":
        return _make_in_file(engine, table, keeps=keeps)
    doing = f"creating the indexes on the key ids of {table.table}"
    # Not in a transaction, because CONCURRENTLY runs several of them.
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with translated(doing), autocommit.connect() as connection:
        return _make_on_server(connection, table, keeps=keeps)


@reads("comparing the indexes of {table.table} with its rows")
def damage(connection: Connection, table: SealedTable) -> str | None:
    """
    Compare a SQLite table with all of its indexes.

    An attacker who can write to the file can forge the indexes. This reads the whole table, and takes no lock
    that keeps others from writing.

    Args:
        connection: A connection to the items' database.
        table: The table, from the registry.

    Returns:
        The first difference, in SQLite's words. It is ``None`` if there is no difference, or on PostgreSQL,
        where only a superuser can forge an index.
    """
    if connection.dialect.name != "sqlite":
        return None
    *schema, name = (connection.dialect.identifier_preparer.quote(p) for p in table.table.rsplit(".", 1))
    check = f"{'.'.join([*schema, 'integrity_check'])}({name})"
    said = connection.exec_driver_sql(f"PRAGMA {check}").scalars().first()
    return None if said == "ok" else str(said)


def reindex_statement(dialect: Dialect, table: SealedTable) -> str:
    """Return the statement with which SQLite rebuilds all indexes of a table."""
    return f"REINDEX {'.'.join(map(dialect.identifier_preparer.quote, table.table.rsplit('.', 1)))}"


def index_name(database: Engine | Connection, table: SealedTable) -> str:
    """
    Return the name of the index on the key ids in headers.

    The name depends on the expression. So a release with another expression creates its own index.
    """
    return next(iter(_definitions(database, table)))


@writes("creating the indexes on the key ids of {table.table}")
def _make_in_file(connection: Connection, table: SealedTable, *, keeps: bool) -> bool:
    made = create_key_id_indexes(connection, table)
    return _drop(connection, table, _obsolete(connection, table, keeps=keeps)) or made


def _make_on_server(connection: Connection, table: SealedTable, *, keeps: bool) -> bool:
    quoted = quoted_name(connection, table.name, table.schema)
    concurrently = concurrently_word(connection, table.name, table.schema)
    made = create_key_id_indexes(connection, table, concurrently)
    if made:  # before that, the planner has no statistics about the expression
        connection.exec_driver_sql(f"ANALYZE {quoted}")
    return _drop(connection, table, _obsolete(connection, table, keeps=keeps), concurrently) or made


def concurrently_word(connection: Connection, name: str, schema: str | None) -> str:
    """Return the SQL word that lets others write meanwhile, or nothing."""
    if connection.dialect.name == "sqlite":
        return ""
    # PostgreSQL cannot create or drop the index of a partitioned table concurrently.
    named = quoted_name(connection, name, schema)
    return "" if connection.execute(_IS_PARTITIONED, {"table": named}).scalar() else "CONCURRENTLY "


def _drop(connection: Connection, table: SealedTable, names: Collection[str], concurrently: str = "") -> bool:
    for name in names:
        # The index is in the schema of its table.
        index = quoted_name(connection, name, table.schema)
        connection.exec_driver_sql(f"DROP INDEX {concurrently}{index}")
    return bool(names)


def _obsolete(connection: Connection, table: SealedTable, *, keeps: bool) -> list[str]:
    """
    Return the names of the indexes that earlier releases created.

    They are on the column alone, or on another expression.
    """
    on_column = (table.columns[KEY_ID].name,) if table.has_key_ids and not keeps else None
    wanted = _definitions(connection, table)
    return [
        index.name
        for index in column_indexes(connection, table.name, table.schema)
        if index.name.startswith("ix_") and index.columns == on_column
    ] + [
        index
        for index in _there(connection, table)
        if index.startswith((_IN_HEADER, _DIFFER)) and index not in wanted
    ]


def _there(connection: Connection, table: SealedTable) -> dict[str, bool]:
    """Return, for each index of a table, whether it is complete."""
    query, named = _IN_FILE, table.table
    if connection.dialect.name == "postgresql":
        query, named = _ON_SERVER, quoted_name(connection, table.name, table.schema)
    return {row[0]: bool(row[1]) for row in connection.execute(query, {"table": named})}


def _definitions(database: Engine | Connection, table: SealedTable) -> dict[str, str]:
    """Return what follows CREATE INDEX, by name. The index on the key ids in headers comes first."""
    dialect = database.dialect
    quote = dialect.identifier_preparer.quote
    data, quoted = quote(table.columns["data"].name), quoted_name(database, table.name, table.schema)
    header = key_id_in_header(dialect, data)
    name = _named(_IN_HEADER, header, table)
    found = {name: f"{quote(name)} ON {quoted} (({header}))"}
    if table.has_key_ids:
        column = table.columns[KEY_ID]
        key_id = quote(column.name)
        differ = key_ids_differ(dialect, data, key_id, as_text=column.kind is ColumnKind.GENERIC_UUID)
        name = _named(_DIFFER, differ, table)
        found[name] = f"{quote(name)} ON {quoted} ({key_id}) WHERE {differ}"
    return found


def _named(prefix: str, expression: str, table: SealedTable) -> str:
    return fitting_name(prefix.rstrip("_"), sha256(expression.encode()).hexdigest()[:8], table.name)

"""The indexes on the key ids in headers, and on the rows whose column of key ids says something else."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import inspect, text

from eventseal.storage.database.faults import translated
from eventseal.storage.database.table_setup import KEY_ID, column_indexes
from eventseal.storage.database.transactions import write
from eventseal.storage.items.fence_triggers import fitting_name
from eventseal.storage.items.header_key_ids import key_id_in_header, key_ids_differ
from eventseal.storage.items.tables import ColumnKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Dialect, Engine

    from eventseal.storage.items.tables import SealedTable


_IS_VALID = text(
    "SELECT indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table) AND relname = :name"
)
_IS_THERE = text("SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = :name AND tbl_name = :table")
_ALL_ON_SERVER = text(
    "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
    " WHERE indrelid = to_regclass(:table)"
)
_ALL_IN_FILE = text("SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = :table")
_IN_HEADER, _DIFFER = "eventseal_key_id_", "eventseal_differ_"
_IS_PARTITIONED = text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:table)")


def has_key_id_indexes(connection: Connection, table: SealedTable) -> bool:
    """
    Whether queries by key find their indexes: on this release's expressions, and whole.

    Args:
        connection: To the items' database.
        table: From the registry.
    """
    return all(_found(connection, table, name) for name in _definitions(connection.dialect, table))


def is_unindexed(connection: Connection, table: SealedTable, *, keeps: bool) -> bool:
    """
    Whether :func:`make_key_id_indexes` would change a table; one that is not there it cannot.

    Args:
        connection: To the items' database.
        table: From the registry.
        keeps: Whether the table's record class declares an index on the column itself.
    """
    schema, _, name = table.table.rpartition(".")
    return inspect(connection).has_table(name, schema=schema or None) and (
        not has_key_id_indexes(connection, table) or bool(_obsolete(connection, table, keeps=keeps))
    )


def create_key_id_indexes(connection: Connection, table: SealedTable) -> bool:
    """
    Make the indexes that are not there, while others wait: for a table that was just made, and on SQLite.

    Args:
        connection: To the items' database, in a transaction.
        table: From the registry.

    Returns:
        Whether there was anything to make.
    """
    missing = [
        definition
        for name, definition in _definitions(connection.dialect, table).items()
        if not _found(connection, table, name)
    ]
    for definition in missing:
        connection.exec_driver_sql(f"CREATE INDEX {definition}")
    return bool(missing)


def make_key_id_indexes(engine: Engine, table: SealedTable, *, keeps: bool = False) -> bool:
    """
    Make the indexes, if they are not there, and drop those of earlier releases that they replace.

    On PostgreSQL others write meanwhile, unless the table is partitioned; on SQLite they wait.

    Args:
        engine: Of the items' database.
        table: From the registry.
        keeps: Whether the table's record class declares an index on the column itself.

    Returns:
        Whether there was anything to make or to drop.

    Raises:
        StoreError: The database refused or failed; run it again.
    """
    doing = f"making the indexes on the key ids of {table.table}"
    if engine.dialect.name == "sqlite":
        return write(engine, lambda connection: _make_in_file(connection, table, keeps=keeps), doing=doing)
    # Not in a transaction: CONCURRENTLY is several of them.
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with translated(doing), autocommit.connect() as connection:
        return _make_on_server(connection, table, keeps=keeps)


def damage(connection: Connection, table: SealedTable) -> str | None:
    """
    Compare a SQLite table with all of its indexes. An attacker who can write the file can forge them.

    It reads the whole table, and takes no lock that keeps others from writing.

    Args:
        connection: To the items' database.
        table: From the registry.

    Returns:
        The first difference, in SQLite's words; ``None``: there is none, or the database is PostgreSQL,
        where nobody but a superuser can forge an index.
    """
    if connection.dialect.name != "sqlite":
        return None
    *schema, name = (connection.dialect.identifier_preparer.quote(p) for p in table.table.rsplit(".", 1))
    check = f"{'.'.join([*schema, 'integrity_check'])}({name})"
    said = connection.exec_driver_sql(f"PRAGMA {check}").scalars().first()
    return None if said == "ok" else str(said)


def reindex_statement(dialect: Dialect, table: SealedTable) -> str:
    """Write the statement with which SQLite makes all indexes of a table anew."""
    return f"REINDEX {_quoted(dialect, table)}"


def index_name(dialect: Dialect, table: SealedTable) -> str:
    """Name the index on the key ids in headers by its expression: a release with another makes its own."""
    return next(iter(_definitions(dialect, table)))


def _make_in_file(connection: Connection, table: SealedTable, *, keeps: bool) -> bool:
    made = create_key_id_indexes(connection, table)
    obsolete = _obsolete(connection, table, keeps=keeps)
    for name in obsolete:
        connection.exec_driver_sql(f"DROP INDEX {connection.dialect.identifier_preparer.quote(name)}")
    return made or bool(obsolete)


def _make_on_server(connection: Connection, table: SealedTable, *, keeps: bool) -> bool:
    quoted = _quoted(connection.dialect, table)
    # PostgreSQL cannot do that with the index of a partitioned table.
    alone = connection.execute(_IS_PARTITIONED, {"table": quoted}).scalar()
    concurrently = "" if alone else "CONCURRENTLY "
    made = False
    for name, definition in _definitions(connection.dialect, table).items():
        found = _found(connection, table, name)
        if found:
            continue
        if found is not None:  # what an interrupted attempt has left
            connection.exec_driver_sql(f"DROP INDEX {concurrently}{_beside(connection.dialect, table, name)}")
        connection.exec_driver_sql(f"CREATE INDEX {concurrently}{definition}")
        made = True
    if made:  # the planner knows nothing of an expression before
        connection.exec_driver_sql(f"ANALYZE {quoted}")
    obsolete = _obsolete(connection, table, keeps=keeps)
    for name in obsolete:
        connection.exec_driver_sql(f"DROP INDEX {concurrently}{_beside(connection.dialect, table, name)}")
    return made or bool(obsolete)


def _obsolete(connection: Connection, table: SealedTable, *, keeps: bool) -> list[str]:
    """Name the indexes that earlier releases made: on the column alone, or on another expression."""
    schema, _, name = table.table.rpartition(".")
    on_column = (table.columns[KEY_ID].name,) if table.has_key_ids and not keeps else None
    query, named = _ALL_IN_FILE, table.table
    if connection.dialect.name == "postgresql":
        query, named = _ALL_ON_SERVER, _quoted(connection.dialect, table)
    wanted = _definitions(connection.dialect, table)
    return [
        index.name
        for index in column_indexes(connection, name, schema or None)
        if index.name.startswith("ix_") and index.columns == on_column
    ] + [
        index
        for index in connection.execute(query, {"table": named}).scalars()
        if index.startswith((_IN_HEADER, _DIFFER)) and index not in wanted
    ]


def _found(connection: Connection, table: SealedTable, name: str) -> bool | None:
    """Whether an index is whole; ``None``: there is none."""
    if connection.dialect.name == "sqlite":
        found = connection.execute(_IS_THERE, {"name": name, "table": table.table}).scalar()
    else:
        quoted = _quoted(connection.dialect, table)
        found = connection.execute(_IS_VALID, {"name": name, "table": quoted}).scalar()
    return None if found is None else bool(found)


def _definitions(dialect: Dialect, table: SealedTable) -> dict[str, str]:
    """Give by name what follows CREATE INDEX, the index on the key ids in headers first."""
    return dict(_indexes(dialect, table))


def _indexes(dialect: Dialect, table: SealedTable) -> Iterator[tuple[str, str]]:
    quote = dialect.identifier_preparer.quote
    data, quoted = quote(table.columns["data"].name), _quoted(dialect, table)
    header = key_id_in_header(dialect, data)
    name = _named(_IN_HEADER, header, table)
    yield name, f"{quote(name)} ON {quoted} (({header}))"
    if table.has_key_ids:
        column = table.columns[KEY_ID]
        key_id = quote(column.name)
        differ = key_ids_differ(dialect, data, key_id, as_text=column.kind is ColumnKind.GENERIC_UUID)
        name = _named(_DIFFER, differ, table)
        yield name, f"{quote(name)} ON {quoted} ({key_id}) WHERE {differ}"


def _named(prefix: str, expression: str, table: SealedTable) -> str:
    _, _, name = table.table.rpartition(".")
    return fitting_name(prefix.rstrip("_"), sha256(expression.encode()).hexdigest()[:8], name)


def _beside(dialect: Dialect, table: SealedTable, index: str) -> str:
    """Quote the name of an index, which is in the schema of its table."""
    schema, _, _ = table.table.rpartition(".")
    return ".".join(dialect.identifier_preparer.quote(part) for part in (schema, index) if part)


def _quoted(dialect: Dialect, table: SealedTable) -> str:
    return ".".join(dialect.identifier_preparer.quote(part) for part in table.table.rsplit(".", 1))

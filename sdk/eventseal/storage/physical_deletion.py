"""Deleted wrappings leave bytes in the database's files: this has those at hand overwritten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from eventseal.storage.key_tables import key_wrappings

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

PATIENCE = 2000
"""Milliseconds that are waited for others who use the database."""

_MAINTAIN_SINCE = 170000
"""PostgreSQL 17 has a privilege that lets others than the owner vacuum a table."""


def overwrite_deleted(engine: Engine) -> str:
    """
    Have the bytes of deleted wrappings overwritten: best effort, after the transaction that deleted them.

    On SQLite, deleted content is zeroed as it is deleted, and the write-ahead log, which has it still, is
    emptied into the file. On PostgreSQL the table is vacuumed. Copies elsewhere stay: archives of the log,
    replicas, backups, blocks that the disk has put aside.

    Args:
        engine: Of the key tables; the calling thread is in no transaction of it.

    Returns:
        Why bytes may be left in the files at hand; empty if there is nothing to say.
    """
    try:
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            if engine.dialect.name == "sqlite":
                return _empty_log(connection)
            return _vacuum(connection)
    except SQLAlchemyError as error:
        return f"the database refused to clear what was deleted: {type(error).__name__}. {_AGAIN}"


_AGAIN = "Run it again when nobody else holds the database, or clear it as docs/epoch.md tells."


def _empty_log(connection: Connection) -> str:
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {PATIENCE}")
    try:
        is_busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(patience)}")
    return f"somebody uses the SQLite file, and its log could not be emptied. {_AGAIN}" if is_busy else ""


def _vacuum(connection: Connection) -> str:
    if not _may_vacuum(connection):
        return (
            f"the database user does not own {key_wrappings.name} and could not vacuum it. Leave it to "
            "autovacuum, or vacuum it as its owner."
        )
    connection.execute(text(f"SET lock_timeout = {PATIENCE}"))
    try:
        connection.execute(text(f"VACUUM {key_wrappings.name}"))
    finally:
        connection.execute(text("RESET lock_timeout"))
    return ""


def _may_vacuum(connection: Connection) -> bool:
    """Whether VACUUM would do anything: to others than the owner it only says a warning."""
    owns = "pg_has_role(relowner, 'USAGE')"
    (version,) = connection.execute(text("SELECT current_setting('server_version_num')::int")).one()
    if version >= _MAINTAIN_SINCE:
        owns += " OR has_table_privilege(oid, 'MAINTAIN')"
    query = f"SELECT {owns} FROM pg_class WHERE oid = to_regclass(:table)"  # noqa: S608 - constants
    return bool(connection.execute(text(query), {"table": key_wrappings.name}).scalar())

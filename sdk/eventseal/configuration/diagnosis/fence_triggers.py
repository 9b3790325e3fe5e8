"""A trigger that takes the fence for a program that writes items without EventSeal's record strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from eventseal.storage.fences import CLOSED, OPEN

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect

    from eventseal.storage.registry import SealedTable

PREFIX = "eventseal_fence_"

# The id is the header's, bytes 4 to 19: the column beside it is what a writer may forget.
_ON_POSTGRESQL = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $fence$
DECLARE id uuid := encode(substring(NEW.{data} FROM 4 FOR 16), 'hex')::uuid;
BEGIN
  INSERT INTO key_fences (key_id, state) VALUES (id, '{open}') ON CONFLICT DO NOTHING;
  PERFORM FROM key_fences WHERE key_id = id AND state = '{open}' FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'key % is closed: seal the item again', id USING ERRCODE = '23000';
  END IF;
  RETURN NEW;
END $fence$;
CREATE TRIGGER {trigger} BEFORE INSERT OR UPDATE OF {data} ON {table}
FOR EACH ROW WHEN (NEW.{key_id} IS NOT NULL) EXECUTE FUNCTION {function}();"""
_ON_SQLITE = """\
CREATE TRIGGER {trigger} BEFORE INSERT ON {table} WHEN NEW.{key_id} IS NOT NULL
BEGIN
  INSERT INTO key_fences (key_id, state) VALUES (substr(NEW.{data}, 4, 16), '{open}') ON CONFLICT DO NOTHING;
  SELECT RAISE(ABORT, 'the key is closed: seal the item again')
  FROM key_fences WHERE key_id = substr(NEW.{data}, 4, 16) AND state = '{closed}';
END;"""


def trigger_statement(dialect: Dialect, table: SealedTable) -> str:
    """
    Write the statement that makes a table's trigger.

    Args:
        dialect: SQLite's or PostgreSQL's.
        table: From the registry; its fences are in the same database.
    """
    quote = dialect.identifier_preparer.quote
    schema, _, name = table.table.rpartition(".")
    trigger = quote(PREFIX + name)
    template = _ON_POSTGRESQL if dialect.name == "postgresql" else _ON_SQLITE
    return template.format(
        trigger=trigger,
        function=f"{quote(schema)}.{trigger}" if schema else trigger,
        table=f"{quote(schema)}.{quote(name)}" if schema else quote(name),
        data=quote(table.columns["data"].name),
        key_id=quote(table.columns["key_id"].name),
        open=OPEN,
        closed=CLOSED,
    )


def has_trigger(connection: Connection, table: SealedTable) -> bool:
    """
    Whether a table has the trigger, and it is not disabled.

    Args:
        connection: To the items' database.
        table: From the registry.
    """
    if connection.dialect.name == "postgresql":
        query = text(
            "SELECT count(*) FROM pg_trigger"
            " WHERE tgrelid = to_regclass(:table) AND tgname = :name AND tgenabled <> 'D'"
        )
        schema, _, name = table.table.rpartition(".")
        quote = connection.dialect.identifier_preparer.quote
        place = f"{quote(schema)}.{quote(name)}" if schema else quote(name)
    else:
        query = text("SELECT count(*) FROM sqlite_master WHERE tbl_name = :table AND name = :name")
        place = name = table.table
    return bool(connection.execute(query, {"table": place, "name": PREFIX + name}).scalar_one())

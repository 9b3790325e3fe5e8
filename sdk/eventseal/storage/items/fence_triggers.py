"""
Triggers that take the fences for programs that write items without EventSeal's record strategy.

The id of the key is read from the envelope's header: a column beside it is what such a writer may forget. On
PostgreSQL a trigger shares the open fence of each key of a statement until the transaction ends, and makes
one that is not there; a closed one refuses the statement. On SQLite the write lock, which the statement
holds, is the fence: the trigger only refuses keys whose fence is closed.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import text

from eventseal.storage.items.fences import CLOSED, HOLDS_FENCES, OPEN, PATIENCE
from eventseal.storage.items.header_key_ids import key_id_in_header
from eventseal.storage.keys.tables import key_fences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from eventseal.storage.items.tables import SealedTable


FENCE_CONSTRAINT = "eventseal_key_fence"
"""What a refusal on PostgreSQL names as the violated constraint."""

_PREFIX = "eventseal_fence"
_LONGEST_NAME = 63
_REFUSED = re.compile(r"eventseal: (?:the key|key [0-9a-f-]{36}) is closed:")

# A SECURITY DEFINER: a program that writes items needs no right on the fences, and cannot open a closed one.
_FUNCTION = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fence${body}$fence$"""
_TAKE_FENCE = """\
    PERFORM FROM {fences} WHERE key_id = id AND state = '{open}' FOR SHARE;
    IF NOT FOUND THEN
      INSERT INTO {fences} (key_id, state) VALUES (id, '{open}') ON CONFLICT DO NOTHING;
      PERFORM FROM {fences} WHERE key_id = id AND state = '{open}' FOR SHARE;
      IF NOT FOUND THEN
        RAISE EXCEPTION 'eventseal: key % is closed: seal the item again', id USING
          ERRCODE = 'integrity_constraint_violation', CONSTRAINT = '{constraint}',
          SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
      END IF;
    END IF;"""
# Keys in order, as whoever closes fences has it: no two of them wait for each other.
_AFTER_INSERT = """
DECLARE id uuid;
BEGIN
  FOR id IN SELECT DISTINCT {key_id} FROM written WHERE {key_id} IS NOT NULL ORDER BY 1 LOOP
{take_fence}
  END LOOP;
  RETURN NULL;
END """
_BEFORE_UPDATE = """
DECLARE id uuid := {new_key_id};
BEGIN
  IF id IS NOT NULL THEN
{take_fence}
  END IF;
  RETURN NEW;
END """
_INSERT_TRIGGER = """\
CREATE TRIGGER {trigger} AFTER INSERT ON {table} REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION {function}()"""
_UPDATE_TRIGGER = """\
CREATE TRIGGER {trigger} BEFORE UPDATE OF {data} ON {table}
FOR EACH ROW WHEN (
  NEW.{data} IS DISTINCT FROM OLD.{data} AND current_setting('{holds_fences}', true) IS DISTINCT FROM 'on'
) EXECUTE FUNCTION {function}()"""
_ON_SQLITE = """\
CREATE TRIGGER {trigger} BEFORE {event} ON {table}
BEGIN
  SELECT RAISE(ABORT, 'eventseal: the key is closed: seal the item again')
  FROM {fences} WHERE key_id = {new_key_id} AND state = '{closed}';
END"""
_FOUND_ON_POSTGRESQL = text(
    "SELECT tgname, prosrc FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid"
    " WHERE tgrelid = to_regclass(:table) AND tgenabled IN ('O', 'A') AND NOT tgisinternal"
)
_FOUND_ON_SQLITE = text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table")
_FENCES_ARE_IN = text(
    "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE pg_class.oid = to_regclass(:fences)"
)


class FenceTriggers:
    """
    The triggers of one table, as they are to be.

    Args:
        connection: To the items' database, which has the fences.
        table: From the registry.
    """

    def __init__(self, connection: Connection, table: SealedTable) -> None:
        self._connection = connection
        self._table = table
        self._on_postgresql = connection.dialect.name == "postgresql"
        quote = connection.dialect.identifier_preparer.quote
        schema, _, name = table.table.rpartition(".")
        self._name = name
        self._quoted = f"{quote(schema)}.{quote(name)}" if schema else quote(name)
        self._schema = f"{quote(schema)}." if schema else ""
        data = quote(table.columns["data"].name)
        self._words = {
            "table": self._quoted,
            "data": data,
            "key_id": key_id_in_header(connection.dialect, data),
            "new_key_id": key_id_in_header(connection.dialect, f"NEW.{data}"),
            "fences": self._fences(),
            "constraint": FENCE_CONSTRAINT,
            "holds_fences": HOLDS_FENCES,
            "open": OPEN,
            "closed": CLOSED,
        }

    def are_there(self) -> bool:
        """Whether the table has them, as they are to be, and none is disabled."""
        wanted = self._bodies() if self._on_postgresql else self._sqlite_triggers()
        return wanted.items() <= self._found().items()

    def statements(self) -> list[str]:
        """Give the statements that make them, in one transaction, in place of what is there of them."""
        there = self._found()
        return list(self._on_server(there) if self._on_postgresql else self._in_file(there))

    def _on_server(self, there: dict[str, str]) -> Iterator[str]:
        quote = self._connection.dialect.identifier_preparer.quote
        triggers = (_INSERT_TRIGGER, _UPDATE_TRIGGER)
        for (name, body), template in zip(self._bodies().items(), triggers, strict=True):
            function = f"{self._schema}{quote(name)}"
            yield _FUNCTION.format(function=function, body=body)
            if name not in there:
                yield f"DROP TRIGGER IF EXISTS {quote(name)} ON {self._quoted}"
                yield template.format(trigger=quote(name), function=function, **self._words)

    def _in_file(self, there: dict[str, str]) -> Iterator[str]:
        quote = self._connection.dialect.identifier_preparer.quote
        for name, statement in self._sqlite_triggers().items():
            if there.get(name) != statement:
                yield f"DROP TRIGGER IF EXISTS {quote(name)}"
                yield statement

    def _bodies(self) -> dict[str, str]:
        """Give the functions' bodies by the names of the triggers, which are those of the functions."""
        bodies = {"insert": _AFTER_INSERT, "update": _BEFORE_UPDATE}
        take_fence = _TAKE_FENCE.format(**self._words)
        return {
            self._named(event): body.format(take_fence=take_fence, **self._words)
            for event, body in bodies.items()
        }

    def _sqlite_triggers(self) -> dict[str, str]:
        quote = self._connection.dialect.identifier_preparer.quote
        events = {"insert": "INSERT", "update": f"UPDATE OF {self._words['data']}"}
        names = {event: self._named(event) for event in events}
        return {
            names[event]: _ON_SQLITE.format(trigger=quote(names[event]), event=words, **self._words)
            for event, words in events.items()
        }

    def _named(self, event: str) -> str:
        return fitting_name(_PREFIX, event, self._name)

    def _found(self) -> dict[str, str]:
        query, table = _FOUND_ON_SQLITE, self._name
        if self._on_postgresql:
            query, table = _FOUND_ON_POSTGRESQL, self._quoted
        return {row[0]: row[1] for row in self._connection.execute(query, {"table": table})}

    def _fences(self) -> str:
        if not self._on_postgresql:
            return key_fences.name
        quote = self._connection.dialect.identifier_preparer.quote
        schema = self._connection.execute(_FENCES_ARE_IN, {"fences": key_fences.name}).scalar()
        return f"{quote(schema)}.{key_fences.name}" if schema else key_fences.name


def has_fence_triggers(connection: Connection, table: SealedTable) -> bool:
    """
    Whether a table has its triggers, as this release makes them.

    Args:
        connection: To the items' database.
        table: From the registry.
    """
    return FenceTriggers(connection, table).are_there()


def install_fence_triggers(connection: Connection, table: SealedTable) -> None:
    """
    Make a table's triggers, if they are not there as this release makes them.

    On PostgreSQL this waits, for :data:`PATIENCE` seconds, for open transactions that write the table: those
    have taken no fence.

    Args:
        connection: To the items' database, in a transaction.
        table: From the registry.
    """
    triggers = FenceTriggers(connection, table)
    if triggers.are_there():
        return
    if connection.dialect.name == "postgresql":
        # Who comes meanwhile waits behind this: not for long.
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
    for statement in triggers.statements():
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def is_fence_refusal(error: BaseException | None) -> bool:
    """
    Whether a database refused items because the fence of their key is closed.

    Args:
        error: What the writing program got, from the driver or from a library that wrapped that.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _REFUSED.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def fitting_name(*parts: str) -> str:
    """Join the parts of an identifier; one that PostgreSQL would cut ends with a digest instead."""
    name = "_".join(parts)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = sha256(name.encode()).hexdigest()[:8]
    kept = name.encode()[: _LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
    return f"{kept}_{digest}"

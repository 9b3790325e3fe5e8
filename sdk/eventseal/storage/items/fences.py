"""
Fences: rows that appends lock and the destruction of a key closes.

They keep items from being committed, or re-encrypted, under a key that is being destroyed.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select, text

from eventseal.errors import IntegrityError
from eventseal.keys.states import KeyState
from eventseal.storage.database.column_types import BinaryUUID
from eventseal.storage.database.layout import own_name, quoted_name, schema_of
from eventseal.storage.database.rows import (
    UNREADABLE,
    as_sql,
    chunks,
    deletion,
    insert_unless_there,
    insertion,
    read_rows,
)
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.items.table_queries import key_id_in_header
from eventseal.storage.keys.tables import encryption_keys, key_fences

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection

    from eventseal.storage.database.rows import Checks
    from eventseal.storage.items.tables import SealedTable

OPEN, CLOSED = "open", "closed"
_CHECKS: Checks = {"state": lambda value: value in {OPEN, CLOSED}}
PATIENCE = 2
"""Seconds that closing a fence waits for transactions under the key."""

HOLDS_FENCES = "eventseal.holds_fences"
"""
The PostgreSQL setting of transactions that hold all their fences.

If it is ``on``, the triggers need not lock the fences again for each row.
"""


@writes("creating the fences of keys")
def open_fences(connection: Connection, key_ids: Collection[UUID]) -> None:
    """
    Create an open fence for each key that has none.

    A closed fence stays closed. On PostgreSQL, commit before you write items, because other transactions wait
    for the insert of the row.
    """
    rows = [{"key_id": key_id, "state": OPEN} for key_id in sorted(key_ids)]
    if rows:
        connection.execute(insert_unless_there(connection, key_fences), rows)


def close_fence(connection: Connection, key_id: UUID) -> None:
    """
    Close a key's fence permanently.

    Once this has committed, no item is written under the key in this database. It waits for every transaction
    that wrote under the key (on PostgreSQL as long as ``lock_timeout`` allows). Count the remaining items in
    a later statement of the same transaction, and roll back if there are any.

    Args:
        connection: A connection in a READ COMMITTED transaction. On SQLite, it holds the write lock.
        key_id: The key. It may never have had a fence here.
    """
    inserting = insertion(connection, key_fences)
    closing = inserting.on_conflict_do_update(index_elements=["key_id"], set_={"state": CLOSED})
    connection.execute(closing, {"key_id": key_id, "state": CLOSED})


@writes("closing the fences of keys")
def close_fences(connection: Connection, key_ids: Collection[UUID]) -> None:
    """
    Close the fences of several keys without a long wait.

    The fences are closed in order of key id, each as by :func:`close_fence`.

    Args:
        connection: As for :func:`close_fence`. On SQLite it holds the write lock already, so it never waits.
        key_ids: The keys. They may never have had a fence here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
    for key_id in sorted(key_ids):
        close_fence(connection, key_id)


@reads("reading the fences")
def fence_states(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, str]:
    """Return ``open``, ``closed`` or ``unreadable`` by key. Keys without a fence are left out."""
    states: dict[UUID, str] = {}
    for chunk in chunks(sorted(key_ids)):
        query = select(key_fences).where(key_fences.c.key_id.in_(chunk))
        rows = read_rows(connection, query, _CHECKS)
        # An edited fence does not count as open, so nothing is written under its key.
        states |= {
            row.values["key_id"]: UNREADABLE if row.unreadable else row.values["state"] for row in rows
        }
    return states


@reads("reading the fences of keys")
def unreadable_fences(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, IntegrityError]:
    """Return, by key, an error for each fence that was edited. An edited fence is neither open nor closed."""
    edited = [key_id for key_id, state in fence_states(connection, key_ids).items() if state == UNREADABLE]
    named = own_name(connection, key_fences.name)
    return {
        key_id: IntegrityError(
            f"the fence of key {key_id} in {named} was edited: its state cannot be read",
            remedy=f"Find out who changed {named}. If `eventseal keys` shows the key as active "
            "or deactivated, delete the fence, and the next append creates another: "
            f"{deletion(connection, key_fences, f'key_id = {as_sql(connection, key_id)}')}",
            key_id=key_id,
        )
        for key_id in edited
    }


_KEY_IDS = bindparam("key_ids", expanding=True, type_=BinaryUUID())

# Built once, because each batch runs both.
_OPEN_FENCES = (
    select(key_fences.c.key_id)
    .where(key_fences.c.key_id.in_(_KEY_IDS), key_fences.c.state == OPEN)
    .order_by(key_fences.c.key_id)
    .with_for_update(read=True)
)

# Spares a batch the triggers, which would lock its fences again for each row (docs/decisions/0019).
_SAY_THAT_THEY_ARE_HELD = text(f"SELECT set_config('{HOLDS_FENCES}', 'on', true)")
_LIVE_KEYS = (
    select(encryption_keys.c.key_id)
    .where(encryption_keys.c.key_id.in_(_KEY_IDS), encryption_keys.c.state != KeyState.DESTROYED)
    .order_by(encryption_keys.c.key_id)
    .with_for_update(read=True)
)


def share_fences(connection: Connection, key_ids: Collection[UUID]) -> set[UUID]:
    """
    Share the open fences of keys until the transaction ends.

    None of these fences closes before. The keys are locked in order.

    Args:
        connection: A connection in a transaction. On SQLite, it holds the write lock, which is the fence.
        key_ids: The keys under which items will be written.

    Returns:
        The keys whose fence is not open, or missing. An edited fence is not open.
    """
    missing = _missing(connection, _OPEN_FENCES, key_ids)
    if not missing and connection.dialect.name == "postgresql":
        connection.execute(_SAY_THAT_THEY_ARE_HELD)
    return missing


def share_live_keys(connection: Connection, key_ids: Collection[UUID]) -> set[UUID]:
    """
    Share the rows of keys until the transaction ends.

    Nobody destroys one of these keys before. The rows are locked in order.

    Args:
        connection: A connection to a database that also holds the keys. Call this as late in the transaction
            as possible.
        key_ids: The keys.

    Returns:
        The keys that are destroyed or missing.
    """
    return _missing(connection, _LIVE_KEYS, key_ids)


def _missing(connection: Connection, shared: Select[Any], key_ids: Collection[UUID]) -> set[UUID]:
    missing = set(key_ids)
    for chunk in chunks(sorted(missing)):
        missing.difference_update(connection.execute(shared, {"key_ids": chunk}).scalars())
    return missing


FENCE_CONSTRAINT = "eventseal_key_fence"
"""The constraint that PostgreSQL reports as violated if a fence is closed."""

FENCE_PREFIX = "eventseal_fence"
"""How the names of the triggers and their functions begin."""

_LONGEST_NAME = 63
_REFUSED = re.compile(r"eventseal: (?:the key|key [0-9a-f-]{36}) is closed:")

# SECURITY DEFINER: a program that writes items needs no right on the fences, and cannot open a closed one
# (docs/decisions/0019).
_FUNCTION = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fence${body}$fence$"""

# The trigger creates a missing fence, so that a retire also waits for programs that do not know of fences.
# The refusal is an integrity violation, because after an operational error the eventsourcing library would
# send the same envelope again (docs/decisions/0019).
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

# Once for a statement, because a trigger for each row costs 5 µs a row (docs/decisions/0019).
# Keys in order, as in close_fences, so that the two never wait for each other.
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

# The write lock is the fence, so the trigger only refuses, and creates no row (docs/decisions/0019).
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


@reads("looking for triggers")
def missing_fence_triggers(connection: Connection, table: SealedTable) -> list[str]:
    """
    Return the statements that create or replace a table's triggers.

    Run them in one transaction.

    Args:
        connection: A connection to the items' database, which has the fences.
        table: The table, from the registry.

    Returns:
        An empty list if the triggers are as this release creates them, and none is disabled.
    """
    missing = _missing_on_postgresql if connection.dialect.name == "postgresql" else _missing_on_sqlite
    return missing(connection, table, connection.dialect.identifier_preparer.quote)


@reads("looking for triggers")
def has_fence_triggers(connection: Connection, table: SealedTable) -> bool:
    """Return whether a table has its triggers, as :func:`missing_fence_triggers` checks."""
    return not missing_fence_triggers(connection, table)


@writes("creating the triggers of {table.table}")
def install_fence_triggers(connection: Connection, table: SealedTable) -> None:
    """
    Create a table's triggers, unless they are as this release creates them.

    On PostgreSQL this waits, for :data:`PATIENCE` seconds, for open transactions that write the table. They
    have locked no fence. It needs a connection to the items' database, in a transaction.
    """
    missing = missing_fence_triggers(connection, table)
    if missing and connection.dialect.name == "postgresql":
        # Whoever writes meanwhile waits for this lock, so it must not wait long itself (docs/decisions/0019).
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
    for statement in missing:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _missing_on_postgresql(
    connection: Connection, table: SealedTable, quote: Callable[[str], str]
) -> list[str]:
    data, quoted = quote(table.columns["data"].name), quoted_name(connection, table.name, table.schema)
    named, schema = own_name(connection, key_fences.name), schema_of(connection, table.schema)
    fences = quoted_name(connection, key_fences.name)
    fences_in = connection.execute(_FENCES_ARE_IN, {"fences": fences}).scalar()
    words = {
        "table": quoted,
        "data": data,
        "key_id": key_id_in_header(connection.dialect, data),
        "new_key_id": key_id_in_header(connection.dialect, f"NEW.{data}"),
        "fences": f"{quote(fences_in)}.{named}" if fences_in else fences,
        "constraint": FENCE_CONSTRAINT,
        "holds_fences": HOLDS_FENCES,
        "open": OPEN,
    }
    take_fence = _TAKE_FENCE.format(**words)
    there = {row[0]: row[1] for row in connection.execute(_FOUND_ON_POSTGRESQL, {"table": quoted})}
    missing: list[str] = []
    for event, template, making in (
        ("insert", _AFTER_INSERT, _INSERT_TRIGGER),
        ("update", _BEFORE_UPDATE, _UPDATE_TRIGGER),
    ):
        name = fitting_name(FENCE_PREFIX, event, table.name)
        # A trigger and its function have the same name.
        trigger, function = quote(name), ".".join(map(quote, filter(None, (schema, name))))
        body = template.format(take_fence=take_fence, **words)
        if there.get(name) != body:
            missing.append(_FUNCTION.format(function=function, body=body))
        if name not in there:
            missing.append(f"DROP TRIGGER IF EXISTS {trigger} ON {quoted}")
            missing.append(making.format(trigger=trigger, function=function, **words))
    return missing


def _missing_on_sqlite(connection: Connection, table: SealedTable, quote: Callable[[str], str]) -> list[str]:
    data = quote(table.columns["data"].name)
    there = {row[0]: row[1] for row in connection.execute(_FOUND_ON_SQLITE, {"table": table.name})}
    missing: list[str] = []
    for event, words in (("insert", "INSERT"), ("update", f"UPDATE OF {data}")):
        name = fitting_name(FENCE_PREFIX, event, table.name)
        making = _ON_SQLITE.format(
            trigger=quote(name),
            event=words,
            table=quoted_name(connection, table.name, table.schema),
            fences=own_name(connection, key_fences.name),
            new_key_id=key_id_in_header(connection.dialect, f"NEW.{data}"),
            closed=CLOSED,
        )
        if there.get(name) != making:
            missing += [f"DROP TRIGGER IF EXISTS {quote(name)}", making]
    return missing


def is_fence_refusal(error: BaseException | None) -> bool:
    """
    Return whether a database refused items because of a closed fence.

    The error may come from the driver, or from a library that wraps the driver's error.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _REFUSED.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def fitting_name(*parts: str) -> str:
    """Join the parts of an identifier. If PostgreSQL would cut it, end it with a digest."""
    name = "_".join(parts)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = sha256(name.encode()).hexdigest()[:8]
    kept = name.encode()[: _LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
    return f"{kept}_{digest}"

"""Fences: what keeps items from being committed, or moved, under a key that is being destroyed."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select, text

from eventseal.errors import IntegrityError
from eventseal.keys.states import KeyState
from eventseal.storage.database.column_types import BinaryUUID
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
"""Seconds for which the closing of a fence waits for transactions that wrote under the key."""

HOLDS_FENCES = "eventseal.holds_fences"
"""A setting of PostgreSQL: ``on`` in a transaction that holds the fences of all that it changes, so that the
triggers need not take them again for each row."""


@writes("making the fences of keys")
def open_fences(connection: Connection, key_ids: Collection[UUID]) -> None:
    """
    Make an open fence for each key that has none; a closed one stays closed.

    On PostgreSQL the caller commits before it writes items: other transactions wait for the row's insert.
    """
    rows = [{"key_id": key_id, "state": OPEN} for key_id in sorted(key_ids)]
    if rows:
        connection.execute(insert_unless_there(connection, key_fences), rows)


def close_fence(connection: Connection, key_id: UUID) -> None:
    """
    Close a key's fence, for good: no item is written under the key in this database once this has committed.

    Waits for every transaction that wrote under it (on PostgreSQL as long as ``lock_timeout`` allows). Count
    what is left in a later statement of the same transaction, and roll back if anything is.

    Args:
        connection: In a READ COMMITTED transaction; on SQLite one that holds the write lock.
        key_id: Also one that never had a fence here.
    """
    inserting = insertion(connection, key_fences)
    closing = inserting.on_conflict_do_update(index_elements=["key_id"], set_={"state": CLOSED})
    connection.execute(closing, {"key_id": key_id, "state": CLOSED})


@writes("closing the fences of keys")
def close_fences(connection: Connection, key_ids: Collection[UUID]) -> None:
    """
    Close the fences of several keys as :func:`close_fence` does, in order of id, without waiting for long.

    Args:
        connection: As there. On SQLite it holds the write lock already, so that there is nothing to wait for.
        key_ids: Also of keys that never had a fence here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
    for key_id in sorted(key_ids):
        close_fence(connection, key_id)


@reads("reading the fences")
def fence_states(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, str]:
    """Give ``open`` or ``closed`` for each key, or ``unreadable``; one without a fence is left out."""
    states: dict[UUID, str] = {}
    for chunk in chunks(sorted(key_ids)):
        query = select(key_fences).where(key_fences.c.key_id.in_(chunk))
        rows = read_rows(connection, query, _CHECKS)
        # One that was edited is not open, so nothing is written under its key.
        states |= {
            row.values["key_id"]: UNREADABLE if row.unreadable else row.values["state"] for row in rows
        }
    return states


@reads("reading the fences of keys")
def unreadable_fences(connection: Connection, key_ids: Collection[UUID]) -> dict[UUID, IntegrityError]:
    """Say of each fence that was edited so that it is neither open nor closed what to do."""
    edited = [key_id for key_id, state in fence_states(connection, key_ids).items() if state == UNREADABLE]
    return {
        key_id: IntegrityError(
            f"the fence of key {key_id} in {key_fences.name} was edited: its state cannot be read",
            remedy=f"Find out who changed {key_fences.name}. If `eventseal keys` shows the key as active "
            "or deactivated, delete the fence, so that the next append makes another: "
            f"{deletion(key_fences, f'key_id = {as_sql(connection, key_id)}')}",
            key_id=key_id,
        )
        for key_id in edited
    }


_KEY_IDS = bindparam("key_ids", expanding=True, type_=BinaryUUID())

# Built once: a batch runs both.
_OPEN_FENCES = (
    select(key_fences.c.key_id)
    .where(key_fences.c.key_id.in_(_KEY_IDS), key_fences.c.state == OPEN)
    .order_by(key_fences.c.key_id)
    .with_for_update(read=True)
)

# Spares a batch the triggers, which would take its fences once more for each row (docs/decisions/0019).
_SAY_THAT_THEY_ARE_HELD = text(f"SELECT set_config('{HOLDS_FENCES}', 'on', true)")
_LIVE_KEYS = (
    select(encryption_keys.c.key_id)
    .where(encryption_keys.c.key_id.in_(_KEY_IDS), encryption_keys.c.state != KeyState.DESTROYED)
    .order_by(encryption_keys.c.key_id)
    .with_for_update(read=True)
)


def share_fences(connection: Connection, key_ids: Collection[UUID]) -> set[UUID]:
    """
    Share the open fences of keys until the transaction ends: none of them closes before.

    Args:
        connection: In a transaction; on SQLite one that holds the write lock, which is the fence.
        key_ids: Under which items are about to be written; locked in order.

    Returns:
        The keys whose fence is not open, or not there.
    """
    missing = _missing(connection, _OPEN_FENCES, key_ids)
    if not missing and connection.dialect.name == "postgresql":
        connection.execute(_SAY_THAT_THEY_ARE_HELD)
    return missing


def share_live_keys(connection: Connection, key_ids: Collection[UUID]) -> set[UUID]:
    """
    Share the rows of keys until the transaction ends: nobody destroys one of them before.

    Args:
        connection: To a database that holds the keys too; as late in the transaction as can be.
        key_ids: Locked in order.

    Returns:
        The keys that are destroyed, or not there.
    """
    return _missing(connection, _LIVE_KEYS, key_ids)


def _missing(connection: Connection, shared: Select[Any], key_ids: Collection[UUID]) -> set[UUID]:
    missing = set(key_ids)
    for chunk in chunks(sorted(missing)):
        missing.difference_update(connection.execute(shared, {"key_ids": chunk}).scalars())
    return missing


FENCE_CONSTRAINT = "eventseal_key_fence"
"""What a refusal on PostgreSQL names as the violated constraint."""

_PREFIX = "eventseal_fence"
_LONGEST_NAME = 63
_REFUSED = re.compile(r"eventseal: (?:the key|key [0-9a-f-]{36}) is closed:")

# A SECURITY DEFINER: a program that writes items needs no right on the fences, and cannot open a closed one
# (docs/decisions/0019).
_FUNCTION = """\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $fence${body}$fence$"""

# A fence is made where there is none, so that a retire also waits for programs that never heard of fences.
# The refusal is an integrity violation: after an operational error the eventsourcing library would send the
# same envelope again (docs/decisions/0019).
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

# Once for a statement: a trigger for each row costs 5 µs a row (docs/decisions/0019).
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

# The write lock is the fence: the trigger only refuses, and makes no row (docs/decisions/0019).
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
    Give the statements that make a table's triggers, in one transaction, in place of what is there of them.

    Args:
        connection: To the items' database, which has the fences.
        table: From the registry.

    Returns:
        Nothing if they are there as this release makes them, and none is disabled.
    """
    missing = _missing_on_postgresql if connection.dialect.name == "postgresql" else _missing_on_sqlite
    return missing(connection, table, connection.dialect.identifier_preparer.quote)


@reads("looking for triggers")
def has_fence_triggers(connection: Connection, table: SealedTable) -> bool:
    """Whether a table has its triggers, as this release makes them; see :func:`missing_fence_triggers`."""
    return not missing_fence_triggers(connection, table)


@writes("making the triggers of {table.table}")
def install_fence_triggers(connection: Connection, table: SealedTable) -> None:
    """
    Make a table's triggers, if they are not there as this release makes them.

    On PostgreSQL this waits, for :data:`PATIENCE` seconds, for open transactions that write the table: those
    have taken no fence.

    Args:
        connection: To the items' database, in a transaction.
        table: From the registry.
    """
    missing = missing_fence_triggers(connection, table)
    if missing and connection.dialect.name == "postgresql":
        # Who comes meanwhile waits behind this: not for long (docs/decisions/0019).
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}s'"))
    for statement in missing:
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def _missing_on_postgresql(
    connection: Connection, table: SealedTable, quote: Callable[[str], str]
) -> list[str]:
    data, quoted = quote(table.columns["data"].name), table.quoted(connection.dialect)
    fences_in = connection.execute(_FENCES_ARE_IN, {"fences": key_fences.name}).scalar()
    words = {
        "table": quoted,
        "data": data,
        "key_id": key_id_in_header(connection.dialect, data),
        "new_key_id": key_id_in_header(connection.dialect, f"NEW.{data}"),
        "fences": f"{quote(fences_in)}.{key_fences.name}" if fences_in else key_fences.name,
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
        name = fitting_name(_PREFIX, event, table.name)
        # A trigger and its function have one name.
        trigger, function = quote(name), ".".join(map(quote, filter(None, (table.schema, name))))
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
        name = fitting_name(_PREFIX, event, table.name)
        making = _ON_SQLITE.format(
            trigger=quote(name),
            event=words,
            table=table.quoted(connection.dialect),
            fences=key_fences.name,
            new_key_id=key_id_in_header(connection.dialect, f"NEW.{data}"),
            closed=CLOSED,
        )
        if there.get(name) != making:
            missing += [f"DROP TRIGGER IF EXISTS {quote(name)}", making]
    return missing


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

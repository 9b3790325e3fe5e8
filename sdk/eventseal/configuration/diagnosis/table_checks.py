"""Checks of the tables, their permissions, and the fences."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import Index, UniqueConstraint, inspect, select, text

from eventseal.configuration.diagnosis.findings import FENCES, TABLES, Severity
from eventseal.configuration.diagnosis.registry_checks import reachable_tables
from eventseal.configuration.roles import quoted, store_policies
from eventseal.errors import ConfigurationError, IntegrityError, MissingTableError, StoreForbiddenError
from eventseal.keys.states import KeyState
from eventseal.rotation.table_checks import differing_items
from eventseal.storage.database.column_types import HoldsUUID
from eventseal.storage.database.engines import make_engine
from eventseal.storage.database.layout import (
    UPGRADE,
    Layout,
    is_newer,
    layout_of,
    own_name,
    quoted_name,
    schema_of,
)
from eventseal.storage.database.table_setup import (
    ADDED,
    KEY_ID,
    column_addition,
    column_indexes,
    columns_of,
    has_table,
)
from eventseal.storage.database.transactions import read, reads
from eventseal.storage.items.fences import CLOSED, fence_states, missing_fence_triggers
from eventseal.storage.items.key_id_indexes import concurrently_word
from eventseal.storage.items.table_queries import described
from eventseal.storage.keys.tables import key_fences
from eventseal.wording import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from uuid import UUID

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection, Engine

    from eventseal.configuration.assembly import Stores
    from eventseal.configuration.diagnosis.findings import Finding
    from eventseal.configuration.roles import Grant, Role
    from eventseal.keys.records import KeyRecord
    from eventseal.storage import SQLAlchemyDatastore
    from eventseal.storage.items.tables import SealedTable


_INIT = "eventseal init"
_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_OBJECT = {"TABLE": "to_regclass", "SEQUENCE": "to_regclass", "SCHEMA": "to_regnamespace"}


@TABLES.check
def check_tables(datastore: SQLAlchemyDatastore, role: Role | None) -> Iterator[Finding]:
    """
    Compare the existing tables with the needed ones.

    Args:
        datastore: The datastore, which lists the items' tables.
        role: The role that is checked. With ``None``, missing rights are worth a note.
    """
    items, keys = datastore.needed_tables()
    if datastore.key_engine is datastore.engine:
        yield from _check(datastore.engine, "items and keys", items + keys, role)
    else:
        yield from _check(datastore.engine, "items", items, role)
        yield from _check(datastore.key_engine, "keys", keys, role)


def _check(engine: Engine, what: str, tables: Sequence[Table], role: Role | None) -> Iterator[Finding]:
    look = partial(_differences, tables=tables, role=role)
    found = read(engine, look, doing=f"comparing the tables of the {what}")
    yield from found
    if not any(finding.severity.asks_for_action for finding in found):
        names = ", ".join(sorted(table.fullname for table in tables))
        yield TABLES.ok(f"{what}: {counted(len(tables), 'table')} as needed: {names}")


def _differences(connection: Connection, tables: Sequence[Table], role: Role | None) -> list[Finding]:
    found: list[Finding] = []
    is_older = layout_of(connection) is Layout.OLDER
    if is_older:
        text = "an earlier release created the tables: they have names without eventseal_"
        found.append(TABLES.warning(text, UPGRADE))
    for table in tables:
        if is_older and is_newer(table.name):
            continue
        if not has_table(connection, table.fullname):
            found.append(TABLES.problem(MissingTableError, f"there is no table {table.fullname}", _INIT))
            continue
        found += _missing_columns(connection, table)
        found += _missing_keys(connection, table)
        found += _missing_indexes(connection, table)
        if role is None and connection.dialect.name == "postgresql":
            found += _missing_rights(connection, table)
    return found


def _missing_columns(connection: Connection, table: Table) -> Iterator[Finding]:
    there = columns_of(connection, table.fullname)
    for column in table.columns:
        if column.name not in there:
            is_added = column.name == KEY_ID or column.info == ADDED
            remedy = UPGRADE if is_added else f"{column_addition(connection, table, column)};"
            yield TABLES.problem(
                ConfigurationError, f"table {table.fullname} has no column {column.name}", remedy
            )


def _missing_keys(connection: Connection, table: Table) -> Iterator[Finding]:
    """
    Check the unique keys of a table.

    Only they guarantee that one of two writers to the same position fails.
    """
    unique = _unique_columns(connection, table)
    wanted = [table.primary_key, *(c for c in table.constraints if isinstance(c, UniqueConstraint))]
    for constraint in wanted:
        names = [column.name for column in constraint.columns]
        if names and frozenset(names) not in unique:
            yield TABLES.problem(
                ConfigurationError,
                f"table {table.fullname} does not keep {', '.join(names)} unique: two writers "
                "may both succeed",
                _create_unique_index(connection, table, names),
            )


def _create_unique_index(connection: Connection, table: Table, names: Sequence[str]) -> str:
    quoted = connection.dialect.identifier_preparer
    name = quoted.quote("_".join([table.name, *names, "key"]))  # SQLite chooses none
    columns = ", ".join(map(quoted.quote, names))
    on = quoted_name(connection, table.name, table.schema)
    return f"CREATE UNIQUE INDEX {name} ON {on} ({columns});"


def _unique_columns(connection: Connection, table: Table) -> set[frozenset[str | None]]:
    name, schema = own_name(connection, table.name), schema_of(connection, table.schema)
    found: list[Sequence[str | None]] = [
        inspect(connection).get_pk_constraint(name, schema=schema)["constrained_columns"],
        *(index.columns for index in column_indexes(connection, name, table.schema) if index.unique),
    ]
    return {frozenset(names) for names in found}


def _missing_indexes(connection: Connection, table: Table) -> Iterator[Finding]:
    there = [index.columns for index in column_indexes(connection, table.name, table.schema)]
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        names = tuple(column.name for column in index.columns)
        if not any(found[: len(names)] == names for found in there):
            yield TABLES.warning(
                f"table {table.fullname} has no index on {', '.join(names)}: rotation reads the whole table",
                _create_index(connection, table, index),
            )


def _create_index(connection: Connection, table: Table, index: Index) -> str:
    quote = connection.dialect.identifier_preparer.quote
    # A partitioned table takes no index concurrently. For others, it does not block the application's writes.
    word = concurrently_word(connection, table.name, table.schema)
    columns = ", ".join(quote(column.name) for column in index.columns)
    on = quoted_name(connection, table.name, table.schema)
    return f"CREATE INDEX {word}{quote(str(index.name))} ON {on} ({columns});"


def _missing_rights(connection: Connection, table: Table) -> Iterator[Finding]:
    name = quoted_name(connection, table.name, table.schema)
    quote = connection.dialect.identifier_preparer.quote
    query = text("SELECT current_user, " + ", ".join(f"has_table_privilege(:t, '{r}')" for r in _RIGHTS))
    role, *granted = connection.execute(query, {"t": name}).one()
    denied = [right for right, is_granted in zip(_RIGHTS, granted, strict=True) if not is_granted]
    if denied:
        error = StoreForbiddenError(
            f"role {role} has no {', '.join(denied)} on table {table.fullname}",
            remedy=f"GRANT {', '.join(denied)} ON {name} TO {quote(role)};",
        )
        # Each service needs only the rights that it uses: a service that appends never deletes.
        is_fatal = "SELECT" in denied
        yield TABLES.raised(error, Severity.ERROR if is_fatal else Severity.NOTE)


@TABLES.check
def check_rights(stores: Stores, role: Role) -> Iterator[Finding]:
    """
    Check that each PostgreSQL user has the privileges of a role.

    Args:
        stores: The databases, and the settings.
        role: The role.
    """
    for policy in store_policies(stores, role):
        if policy.settings is None or not policy.is_on_server:
            continue
        engine = make_engine(policy.settings)
        try:
            denied = read(engine, partial(_denied, grants=policy.grants), doing="reading the privileges")
        finally:
            engine.dispose()
        for grant, user in denied:
            yield TABLES.problem(
                StoreForbiddenError,
                f"{policy.holds}: role {user} has no {', '.join(grant.privileges)} on "
                f"{grant.kind.lower()} {grant.name}, which a {role} needs",
                grant.statement(quoted(user)),
            )
        if not denied:
            yield TABLES.ok(f"{policy.holds}: all privileges that a {role} needs")


def _denied(connection: Connection, grants: Sequence[Grant]) -> list[tuple[Grant, str]]:
    """Return the privileges that the user lacks, with the user. A missing table lacks none."""
    denied: list[tuple[Grant, str]] = []
    for needed in grants:
        grant = needed._replace(name=own_name(connection, needed.name))
        rights = ", ".join(
            f"has_{grant.kind.lower()}_privilege({_OBJECT[grant.kind]}(:name)::oid, '{right}')"
            for right in grant.privileges
        )
        user, *held = connection.execute(text(f"SELECT current_user, {rights}"), {"name": grant.name}).one()
        lacking = [right for right, is_held in zip(grant.privileges, held, strict=True) if is_held is False]
        if lacking:
            denied.append((grant._replace(privileges=tuple(lacking)), user))
    return denied


MOST_KEYS = 1000
"""The most keys that are checked: a table may name millions."""

_SHOWN = 3


@FENCES.check
def check_fences(stores: Stores) -> Iterator[Finding]:
    """
    Check the fences of the items' keys, and the closed fences.

    Args:
        stores: The databases, and the settings.
    """
    tables = reachable_tables(stores)
    found = list(_check_closed(stores))
    for table in tables:
        found += _check_table(stores, table)
    yield from found
    if not found:
        yield FENCES.ok(
            f"the active keys of {counted(len(tables), 'table')} have fences, and no `retire` is unfinished"
        )


def _check_closed(stores: Stores) -> Iterator[Finding]:
    for record in _mine(stores, _closed_fences(stores.datastore.engine)).values():
        # Marking a key as compromised closes its fence, which must stay closed.
        if record.state in {KeyState.ACTIVE, KeyState.DEACTIVATED}:
            yield FENCES.warning(
                f"the fence of {record.state} key {record.key_id} is closed: a `retire` was interrupted",
                f"eventseal retire --key {record.key_id}",
            )


@reads("reading the fences")
def _closed_fences(connection: Connection) -> list[UUID]:
    """Return the newest closed fences. A key that was retired long ago certainly has its tombstone."""
    query = select(key_fences.c.key_id).where(key_fences.c.state == CLOSED, HoldsUUID(key_fences.c.key_id))
    return list(connection.execute(query.order_by(key_fences.c.key_id.desc()).limit(MOST_KEYS)).scalars())


def _check_table(stores: Stores, table: SealedTable) -> Iterator[Finding]:
    engine = stores.datastore.engine
    named = _named_keys(engine, table)
    mine = _mine(stores, named)
    yield from _check_keys(table, [key_id for key_id in named if key_id not in mine], mine, stores)
    differing, _ = differing_items(stores.datastore, stores.key_store, table, limit=0)
    if differing:
        yield FENCES.problem(
            IntegrityError,
            f"{counted(differing, f'item of {table.table} names', f'items of {table.table} name')} another "
            "key in the column than in the envelope",
            "To find them: `eventseal verify`. To repair them: `eventseal repair --from-backup URL`.",
        )
    missing = missing_fence_triggers(engine, table)
    if not missing:
        return
    if not table.has_key_ids:
        yield FENCES.warning(
            f"table {table.table}, which another program writes, has no trigger that locks the fences, so no "
            "key can be retired",
            _INIT,
        )
        return
    active = [key_id for key_id, record in mine.items() if record.state is KeyState.ACTIVE]
    fenced = fence_states(engine, active)
    unfenced = [key_id for key_id in active if key_id not in fenced]
    if unfenced:
        yield FENCES.warning(
            f"table {table.table} has items under {_listed(unfenced)} without a fence, and no trigger: its "
            "writer locks no fence, and a `retire` may lose its items",
            "".join([f"{statement};\n" for statement in missing]),
        )


def _check_keys(
    table: SealedTable, unknown: Collection[UUID], mine: dict[UUID, KeyRecord], stores: Stores
) -> Iterator[Finding]:
    # Such items may belong to another application, or have an older format that looks like an envelope.
    if unknown and table.application is not None and not table.old_formats:
        yield FENCES.problem(
            IntegrityError,
            f"items of table {table.table} name {_listed(unknown)}, which application "
            f"{stores.settings.application} does not have",
            "Restore the key tables from a backup of the same time as the items. To list the items: "
            "eventseal verify",
        )
    retired = [key_id for key_id, record in mine.items() if record.destroyed_by == "retired"]
    if retired:
        yield FENCES.problem(
            IntegrityError,
            f"items of table {table.table} name {_listed(retired)}, which was retired: nothing opens them",
            "If the items were restored, restore the keys from a backup of the same time. If not, a program "
            "wrote them without the fence. To list them: eventseal verify",
        )


def _mine(stores: Stores, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
    records = stores.key_store.get(key_ids)
    application = stores.settings.application
    return {key_id: record for key_id, record in records.items() if record.application == application}


@reads("reading the keys of {table.table}")
def _named_keys(connection: Connection, table: SealedTable) -> list[UUID]:
    """Read the index from key to key: reading every item takes hours."""
    key_id = described(table).key_id
    first = select(key_id).where(key_id.is_not(None)).order_by(key_id).limit(1).scalar_subquery()
    walk = select(first.label("key_id")).cte("walk", recursive=True)
    following = select(key_id).where(key_id > walk.c.key_id).order_by(key_id).limit(1).scalar_subquery()
    walk = walk.union_all(select(following).where(walk.c.key_id.is_not(None)))
    query = select(walk.c.key_id).where(walk.c.key_id.is_not(None)).limit(MOST_KEYS)
    return list(connection.execute(query).scalars())


def _listed(key_ids: Collection[UUID]) -> str:
    shown = ", ".join([str(key_id) for key_id in sorted(key_ids)[:_SHOWN]])
    more = len(key_ids) - _SHOWN
    return f"key {shown}" + (f" and {more:,} more" if more > 0 else "")

"""Checks of the fences: that whoever writes items takes them, and that no retire was left half done."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import select

from eventseal.configuration.diagnosis.findings import Finding, Severity
from eventseal.configuration.diagnosis.registry_checks import reachable_tables
from eventseal.errors import IntegrityError
from eventseal.keys.states import KeyState
from eventseal.rotation.table_checks import differing_items
from eventseal.storage.database.column_types import HoldsUUID
from eventseal.storage.database.transactions import read
from eventseal.storage.items.fence_triggers import FenceTriggers
from eventseal.storage.items.fences import CLOSED, fence_states
from eventseal.storage.items.rows import described
from eventseal.storage.keys.tables import key_fences

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.configuration.stores import Stores
    from eventseal.keys.records import KeyRecord
    from eventseal.storage.items.tables import SealedTable

AREA = "fences"
MOST_KEYS = 1000
"""Keys of a table that are looked at; a table may name millions."""

_SHOWN = 3


def check_fences(stores: Stores) -> Iterator[Finding]:
    """
    Look at the fences of the keys that items name, and at those that are closed.

    Args:
        stores: The databases, and the settings.
    """
    tables = reachable_tables(stores)
    found = list(_check_closed(stores))
    for table in tables:
        found += _check_table(stores, table)
    yield from found
    if not found:
        yield Finding(
            severity=Severity.OK,
            area=AREA,
            text=f"the active keys of {len(tables)} tables have fences, and no retire was left half done",
        )


def _check_closed(stores: Stores) -> Iterator[Finding]:
    closed = read(stores.datastore.engine, _closed_fences, doing="reading the fences")
    for record in _mine(stores, closed).values():
        # A compromised key's fence is closed when it is marked, and is to stay so.
        if record.state in {KeyState.ACTIVE, KeyState.DEACTIVATED}:
            yield Finding(
                severity=Severity.WARNING,
                area=AREA,
                text=f"the fence of live key {record.key_id} is closed: a retire was interrupted",
                remedy=f"eventseal retire --key {record.key_id}",
            )


def _closed_fences(connection: Connection) -> list[UUID]:
    """The newest ones: a key that was retired long ago has its tombstone for sure."""
    query = select(key_fences.c.key_id).where(key_fences.c.state == CLOSED, HoldsUUID(key_fences.c.key_id))
    return list(connection.execute(query.order_by(key_fences.c.key_id.desc()).limit(MOST_KEYS)).scalars())


def _check_table(stores: Stores, table: SealedTable) -> Iterator[Finding]:
    engine = stores.datastore.engine
    named = read(engine, partial(_named_keys, table=table), doing=f"reading the keys of {table.table}")
    mine = _mine(stores, named)
    yield from _check_keys(table, [key_id for key_id in named if key_id not in mine], mine, stores)
    differing, _ = differing_items(stores.datastore, stores.key_store, table, limit=0)
    if differing:
        items = "1 item" if differing == 1 else f"{differing:,} items"
        name = "names" if differing == 1 else "name"
        error = IntegrityError(
            f"{items} of {table.table} {name} another key in the column than in the envelope",
            remedy="To find them: `eventseal verify`. To repair them: `eventseal repair --from-backup URL`.",
        )
        yield Finding.of(error, AREA)
    missing = read(engine, partial(_missing_triggers, table=table), doing="looking for triggers")
    if not missing:
        return
    if not table.has_key_ids:
        yield Finding(
            severity=Severity.WARNING,
            area=AREA,
            text=f"table {table.table}, which another program writes, has no trigger that takes the fences: "
            "no key can be retired",
            remedy="eventseal init",
        )
        return
    active = [key_id for key_id, record in mine.items() if record.state is KeyState.ACTIVE]
    fenced = read(engine, partial(fence_states, key_ids=active), doing="reading the fences")
    unfenced = [key_id for key_id in active if key_id not in fenced]
    if unfenced:
        yield Finding(
            severity=Severity.WARNING,
            area=AREA,
            text=f"table {table.table} has items under {_listed(unfenced)}, which has no fence, and no "
            "trigger: what writes it takes none, and a retire may lose its items",
            remedy="".join([f"{statement};\n" for statement in missing]),
        )


def _missing_triggers(connection: Connection, table: SealedTable) -> list[str]:
    triggers = FenceTriggers(connection, table)
    return [] if triggers.are_there() else triggers.statements()


def _check_keys(
    table: SealedTable, unknown: Collection[UUID], mine: dict[UUID, KeyRecord], stores: Stores
) -> Iterator[Finding]:
    # They may be another application's, or of an older format that looks like an envelope by chance.
    if unknown and table.application is not None and not table.old_formats:
        error = IntegrityError(
            f"items of table {table.table} name {_listed(unknown)}, which application "
            f"{stores.settings.application} does not have",
            remedy="Restore the key tables of the same moment as the items. For each item: eventseal verify",
        )
        yield Finding.of(error, AREA)
    retired = [key_id for key_id, record in mine.items() if record.destroyed_by == "retired"]
    if retired:
        error = IntegrityError(
            f"items of table {table.table} name {_listed(retired)}, which was retired: nothing opens them",
            remedy="They were written around the fence, or restored: restore the keys too. eventseal verify",
        )
        yield Finding.of(error, AREA)


def _mine(stores: Stores, key_ids: Collection[UUID]) -> dict[UUID, KeyRecord]:
    records = stores.key_store.get(key_ids)
    application = stores.settings.application
    return {key_id: record for key_id, record in records.items() if record.application == application}


def _named_keys(connection: Connection, table: SealedTable) -> list[UUID]:
    """Walk along the index from key to key: reading every item would take hours."""
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

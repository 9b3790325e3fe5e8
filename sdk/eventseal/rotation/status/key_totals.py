"""Totals over the key tables, each by one query. Also when key changes are noticed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, literal, select

from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import BRANCH_PREFIX
from eventseal.rotation.sealed_store import key_pages, records_of
from eventseal.storage.database.column_types import HoldsUUID
from eventseal.storage.database.rows import UNREADABLE, chunks, read_rows
from eventseal.storage.database.transactions import reads
from eventseal.storage.key_store import SQLAlchemyKeyStore
from eventseal.storage.keys.state_changes import read_mark
from eventseal.storage.keys.tables import (
    DEFAULT_REFRESH_INTERVAL,
    UNKNOWN_VERSION,
    encryption_keys,
    key_changes,
    key_wrappings,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

    from eventseal.keys.policy import RotationPolicy
    from eventseal.keys.records import KeyRecord
    from eventseal.rotation.sealed_store import SealedStore


UNREADABLE_KIND = f":{UNREADABLE}"
"""The kind of a scope that cannot be read. No real kind contains a colon."""

_KEYS = encryption_keys.c
_LATER_STATES = (KeyState.DEACTIVATED, KeyState.COMPROMISED)
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTotal:
    """
    The number of keys of one kind.

    Attributes:
        purpose: The purpose of the keys, as their rows say.
        kind: The kind of their scopes: the text before the colon, or :data:`UNREADABLE_KIND`.
        state: The state of the keys, as their rows say.
        keys: The number of keys.
    """

    purpose: str
    kind: str
    state: str
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedKey:
    """
    A deactivated or compromised data key or branch key.

    Attributes:
        key_id: The key's id.
        purpose: ``data`` or ``branch``.
        scope: The key's scope.
        state: ``deactivated`` or ``compromised``.
        since: When it stopped being active, by the database's clock.
    """

    key_id: UUID
    purpose: str
    scope: str
    state: str
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverdueKeys:
    """
    Active data keys that the rotation policy would replace.

    Attributes:
        keys: The number of keys.
        scopes: The scopes of the oldest keys, at most three.
    """

    keys: int
    scopes: tuple[str, ...]


@reads("counting keys")
def keys_by_kind(connection: Connection, *, application: str) -> list[KeyTotal]:
    """
    Count keys by purpose, kind of scope and state.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the keys.
    """
    columns = _KEYS.purpose, _kind(connection).label("kind"), _KEYS.state
    query = select(*columns, func.count().label("keys")).where(_KEYS.application == application)
    rows = read_rows(connection, query.group_by(*columns).order_by(*columns))
    unreadable = {"purpose": UNREADABLE, "kind": UNREADABLE_KIND, "state": UNREADABLE}
    return [KeyTotal(**{**unreadable, **row.values}) for row in rows]


@reads("looking for keys that are no longer active")
def closed_keys(connection: Connection, *, application: str, limit: int) -> list[ClosedKey]:
    """
    List deactivated or compromised data and branch keys, the oldest first.

    They can be retired when nothing needs them.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the keys.
        limit: The most keys to list.
    """
    left = func.coalesce(_KEYS.deactivated_at, _KEYS.compromised_at).label("since")
    query = (
        select(_KEYS.key_id, _KEYS.purpose, _KEYS.scope, _KEYS.state, left)
        .where(*_of(application, [KeyPurpose.DATA, KeyPurpose.BRANCH]), HoldsUUID(_KEYS.key_id))
        .order_by(_KEYS.key_id)
        .limit(limit)
    )
    unreadable = {"scope": UNREADABLE, "since": None}
    return [ClosedKey(**{**unreadable, **row.values}) for row in read_rows(connection, query)]


@reads("looking for keys that are due for rotation")
def overdue_keys(
    connection: Connection, *, application: str, policy: RotationPolicy, now: datetime
) -> OverdueKeys:
    """
    Find active data keys that reached the policy's age or items.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the keys.
        policy: The rotation policy of the settings.
        now: The database's clock.
    """
    overdue: ColumnElement[bool] = _KEYS.items_reserved >= policy.max_items
    if policy.max_age is not None:
        overdue |= _KEYS.created_at <= now - policy.max_age
    conditions = (*_of(application, [KeyPurpose.DATA], [KeyState.ACTIVE]), overdue)
    count = connection.execute(select(func.count()).where(*conditions)).scalar_one()
    named = select(_KEYS.scope).where(*conditions).order_by(_KEYS.key_id).limit(_SHOWN)
    scopes = [row.values["scope"] for row in read_rows(connection, named) if not row.unreadable]
    return OverdueKeys(keys=count, scopes=tuple(scopes))


@reads("counting keys without a wrapping")
def keys_without_wrapping(connection: Connection, *, application: str, kek_uris: Collection[str]) -> int:
    """
    Count keys, not destroyed, that are wrapped only under other KEKs.

    A key under a branch key is not counted.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the keys.
        kek_uris: The URIs of the KEKs, as stored wrappings name them.
    """
    held = select(literal(1)).where(
        key_wrappings.c.key_id == _KEYS.key_id,
        key_wrappings.c.kek_uri.in_(list(kek_uris)) | key_wrappings.c.kek_uri.startswith(BRANCH_PREFIX),
    )
    query = select(func.count()).where(
        _KEYS.application == application, _KEYS.state != KeyState.DESTROYED, ~held.exists()
    )
    return int(connection.execute(query).scalar_one())


@reads("reading the states of keys")
def key_states(connection: Connection, *, application: str, key_ids: Collection[UUID]) -> dict[UUID, str]:
    """
    Return the states of keys, without the keys that the application lacks.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the keys.
        key_ids: Any number of key ids.
    """
    states: dict[UUID, str] = {}
    for chunk in chunks(key_ids):
        query = select(_KEYS.key_id, _KEYS.state).where(_KEYS.key_id.in_(chunk))
        rows = read_rows(connection, query.where(_KEYS.application == application))
        states.update({row.values["key_id"]: row.values.get("state", UNREADABLE) for row in rows})
    return states


@reads("counting keys")
def count_keys(
    connection: Connection, *, application: str, purposes: Collection[str], states: Collection[str]
) -> int:
    """
    Count the keys with the given purposes and states.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the keys.
        purposes: Only keys with one of these purposes.
        states: Only keys in one of these states.
    """
    query = select(func.count()).where(*_of(application, purposes, states))
    return int(connection.execute(query).scalar_one())


@reads("looking for keys that are no longer active")
def replaced_data_keys(
    connection: Connection, *, application: str, scopes: Collection[str] | None
) -> list[UUID]:
    """
    List the deactivated or compromised data keys.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the keys.
        scopes: Only keys of these scopes, as the key tables name them. ``None``: every scope.
    """
    query = select(_KEYS.key_id).where(*_of(application, [KeyPurpose.DATA]))
    queries = [query] if scopes is None else [query.where(_KEYS.scope.in_(some)) for some in chunks(scopes)]
    return [key_id for each in queries for key_id in connection.execute(each).scalars()]


@reads("reading when keys were rotated")
def last_stop(connection: Connection, *, application: str) -> datetime | None:
    """
    Return when a data key last stopped being active.

    The time is by the database's clock. Destroyed keys are left out.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the keys.
    """
    closed = _of(application, [KeyPurpose.DATA])
    columns = _KEYS.deactivated_at, _KEYS.compromised_at
    rows = read_rows(
        connection, select(*(func.max(column).label(column.name) for column in columns)).where(*closed)
    )
    if rows[0].unreadable:  # one of the times was edited, and the maximum hides the others
        rows = read_rows(connection, select(*columns).where(*closed))
    return max((time for row in rows for time in row.values.values() if time is not None), default=None)


@reads("reading the refresh interval")
def refresh_interval(connection: Connection, *, application: str) -> timedelta:
    """
    Return the longest time until every process notices a key change.

    Args:
        connection: A connection to the database of the keys.
        application: The application whose processes use the keys.

    Raises:
        IntegrityError: The interval cannot be read because its row was edited.
    """
    query = select(key_changes.c.refresh_interval).where(key_changes.c.application == application)
    row = read_mark(connection, application, query)
    return timedelta(seconds=DEFAULT_REFRESH_INTERVAL if row is None else row["refresh_interval"])


@reads("looking for a wrapping")
def key_under(
    connection: Connection, *, application: str, kek_uri: str, kek_version: str | None
) -> UUID | None:
    """
    Find the newest key, not destroyed, that one KEK version wraps.

    Args:
        connection: A connection to the database of the keys.
        application: The application that owns the key.
        kek_uri: The URI of the KEK, as the wrapping names it.
        kek_version: The KEK version, as the wrapping names it. ``None``: the wrapping names none.
    """
    query = (
        select(_KEYS.key_id)
        .join(key_wrappings, key_wrappings.c.key_id == _KEYS.key_id)
        .where(_KEYS.application == application, _KEYS.state != KeyState.DESTROYED, HoldsUUID(_KEYS.key_id))
        .where(key_wrappings.c.kek_uri == kek_uri)
        .where(key_wrappings.c.kek_version == (UNKNOWN_VERSION if kek_version is None else kek_version))
        .order_by(_KEYS.key_id.desc())
        .limit(1)
    )
    return connection.execute(query).scalar_one_or_none()


def _of(
    application: str, purposes: Collection[str], states: Collection[str] = _LATER_STATES
) -> tuple[ColumnElement[bool], ...]:
    return _KEYS.application == application, _KEYS.purpose.in_(purposes), _KEYS.state.in_(states)


def _kind(connection: Connection) -> ColumnElement[Any]:
    """Return the SQL for the text before the colon of a scope."""
    marked = _KEYS.scope + ":"
    find = func.strpos if connection.dialect.name == "postgresql" else func.instr
    return func.substr(_KEYS.scope, 1, find(marked, ":") - 1, type_=_KEYS.scope.type)


_NO_COUNTER = 2**62
"""A change mark that is never reached, so nothing has changed since."""


def settles_at(store: SealedStore, keys: Collection[UUID] | None) -> datetime | None:
    """
    Return until when items may still be added under inactive keys.

    Args:
        store: The store whose keys are checked.
        keys: The same as for :func:`noticed_at`.

    Returns:
        The time by the key store's clock, or ``None`` if it is past.

    Raises:
        StoreError: The key store refused or failed.
    """
    now = store.key_store.now()
    noticed = noticed_at(store, keys)
    return noticed if noticed is not None and noticed > now else None


def noticed_at(store: SealedStore, keys: Collection[UUID] | None = None) -> datetime | None:
    """
    Return when every process has noticed that keys are no longer active.

    The time is by the key store's clock.

    Args:
        store: The store whose keys are checked.
        keys: The keys in question. ``None``: every data key of the application.

    Returns:
        The time when the last of these keys stopped being active, plus ``refresh_interval``. ``None`` if none
        did, or all that did are destroyed.

    Raises:
        StoreError: The key store refused or failed.
    """
    key_store, application = store.key_store, store.cipher.application
    stopped: datetime | None
    if keys is None and isinstance(key_store, SQLAlchemyKeyStore):
        stopped = last_stop(store.datastore.key_engine, application=application)
    else:
        records = _replaced_keys(store) if keys is None else records_of(key_store, keys).values()
        times = [time for record in records for time in (record.deactivated_at, record.compromised_at)]
        stopped = max(filter(None, times), default=None)
    if stopped is None:
        return None
    changes = key_store.changes(application, _NO_COUNTER, ())
    interval = DEFAULT_REFRESH_INTERVAL if changes is None else changes.refresh_interval
    return stopped + timedelta(seconds=interval)


def _replaced_keys(store: SealedStore) -> Iterator[KeyRecord]:
    for state in _LATER_STATES:
        for page in key_pages(store.key_store, store.cipher.application, state=state):
            yield from page


def expected_keys(store: SealedStore, purposes: Collection[str], states: Collection[str]) -> int:
    """Count keys for progress. Return 0 if the key store cannot count."""
    if not isinstance(store.key_store, SQLAlchemyKeyStore):
        return 0
    engine, application = store.datastore.key_engine, store.cipher.application
    return count_keys(engine, application=application, purposes=purposes, states=states)

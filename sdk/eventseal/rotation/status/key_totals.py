"""Totals over the key tables, each one query, and when the last change of keys is noticed everywhere."""

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
"""Stands for the kind of a scope that cannot be read. No scope has it: a kind ends before the first colon."""

_KEYS = encryption_keys.c
_LATER_STATES = (KeyState.DEACTIVATED, KeyState.COMPROMISED)
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTotal:
    """
    How many keys there are of one kind.

    Attributes:
        purpose: As the rows say, as do the others.
        kind: Of their scopes: what stands before the colon, or :data:`UNREADABLE_KIND`.
        state: Of the keys.
        keys: How many.
    """

    purpose: str
    kind: str
    state: str
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedKey:
    """
    A data or branch key that seals no more, and was not destroyed.

    Attributes:
        key_id: Its id.
        purpose: ``data`` or ``branch``.
        scope: Whose items it sealed.
        state: ``deactivated`` or ``compromised``.
        since: When it left the active state, by the database's clock.
    """

    key_id: UUID
    purpose: str
    scope: str
    state: str
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverdueKeys:
    """
    Active data keys that the policy would replace.

    Attributes:
        keys: How many.
        scopes: Of the oldest ones.
    """

    keys: int
    scopes: tuple[str, ...]


@reads("counting keys")
def keys_by_kind(connection: Connection, *, application: str) -> list[KeyTotal]:
    """
    Count keys by purpose, kind of scope and state.

    Args:
        connection: To the database of the keys.
        application: Whose keys.
    """
    columns = _KEYS.purpose, _kind(connection).label("kind"), _KEYS.state
    query = select(*columns, func.count().label("keys")).where(_KEYS.application == application)
    rows = read_rows(connection, query.group_by(*columns).order_by(*columns))
    unreadable = {"purpose": UNREADABLE, "kind": UNREADABLE_KIND, "state": UNREADABLE}
    return [KeyTotal(**{**unreadable, **row.values}) for row in rows]


@reads("looking for keys that seal no more")
def closed_keys(connection: Connection, *, application: str, limit: int) -> list[ClosedKey]:
    """
    List data and branch keys that seal no more and may be retired one day, the oldest first.

    Args:
        connection: To the database of the keys.
        application: Whose keys.
        limit: At most so many.
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


@reads("looking for keys that are to be rotated")
def overdue_keys(
    connection: Connection, *, application: str, policy: RotationPolicy, now: datetime
) -> OverdueKeys:
    """
    Find active data keys that are older, or have sealed more, than the policy allows.

    Args:
        connection: To the database of the keys.
        application: Whose keys.
        policy: As the settings have it.
        now: By the database's clock.
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
    Count live keys that KEKs wrap, but none of these.

    Args:
        connection: To the database of the keys.
        application: Whose keys.
        kek_uris: As stored wrappings name them.
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
    Give the states of keys; those that the application does not have are left out.

    Args:
        connection: To the database of the keys.
        application: Whose keys.
        key_ids: Any number.
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
    Count keys.

    Args:
        connection: To the database of the keys.
        application: Whose keys.
        purposes: Only keys of these.
        states: Only keys in these.
    """
    query = select(func.count()).where(*_of(application, purposes, states))
    return int(connection.execute(query).scalar_one())


@reads("looking for keys that seal no more")
def replaced_data_keys(
    connection: Connection, *, application: str, scopes: Collection[str] | None
) -> list[UUID]:
    """
    List the data keys that seal no more and were not destroyed.

    Args:
        connection: To the database of the keys.
        application: Whose keys.
        scopes: Only keys of these, as the key tables name them; ``None``: of every scope.
    """
    query = select(_KEYS.key_id).where(*_of(application, [KeyPurpose.DATA]))
    queries = [query] if scopes is None else [query.where(_KEYS.scope.in_(some)) for some in chunks(scopes)]
    return [key_id for each in queries for key_id in connection.execute(each).scalars()]


@reads("reading when keys were rotated")
def last_stop(connection: Connection, *, application: str) -> datetime | None:
    """
    Tell when a data key stopped sealing last, of those that are not destroyed: by the database's clock.

    Args:
        connection: To the database of the keys.
        application: Whose keys.
    """
    closed = _of(application, [KeyPurpose.DATA])
    columns = _KEYS.deactivated_at, _KEYS.compromised_at
    rows = read_rows(
        connection, select(*(func.max(column).label(column.name) for column in columns)).where(*closed)
    )
    if rows[0].unreadable:  # one of them was edited, and hides the others
        rows = read_rows(connection, select(*columns).where(*closed))
    return max((time for row in rows for time in row.values.values() if time is not None), default=None)


@reads("reading the refresh interval")
def refresh_interval(connection: Connection, *, application: str) -> timedelta:
    """
    Read how long it takes at most until every process has seen a change.

    Args:
        connection: To the database of the keys.
        application: Whose processes.

    Raises:
        IntegrityError: It was edited so that it cannot be read.
    """
    query = select(key_changes.c.refresh_interval).where(key_changes.c.application == application)
    row = read_mark(connection, application, query)
    return timedelta(seconds=DEFAULT_REFRESH_INTERVAL if row is None else row["refresh_interval"])


@reads("looking for a wrapping")
def key_under(
    connection: Connection, *, application: str, kek_uri: str, kek_version: str | None
) -> UUID | None:
    """
    Find a live key that has a wrapping under a version of a KEK, the newest one.

    Args:
        connection: To the database of the keys.
        application: Whose key.
        kek_uri: As the wrapping names it, as does the next.
        kek_version: ``None``: the wrapping names none.
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
    """What stands before the colon of a scope, in either database's words."""
    marked = _KEYS.scope + ":"
    find = func.strpos if connection.dialect.name == "postgresql" else func.instr
    return func.substr(_KEYS.scope, 1, find(marked, ":") - 1, type_=_KEYS.scope.type)


_NO_COUNTER = 2**62
"""No change mark gets there: nothing has changed since."""


def settles_at(store: SealedStore, keys: Collection[UUID] | None) -> datetime | None:
    """
    Say until when items may still be appended under keys that seal no more; ``None`` if that is past.

    Args:
        store: Its keys.
        keys: As for :func:`noticed_at`.

    Raises:
        StoreError: The key store refused or failed.
    """
    now = store.key_store.now()
    noticed = noticed_at(store, keys)
    return noticed if noticed is not None and noticed > now else None


def noticed_at(store: SealedStore, keys: Collection[UUID] | None = None) -> datetime | None:
    """
    Say when every process has noticed that keys seal no more, by the key store's clock.

    Args:
        store: Its keys.
        keys: The keys in question; ``None``: every data key of the application.

    Returns:
        When the last of them stopped sealing, and ``refresh_interval`` later; ``None`` if none did, or those
        that did are destroyed.

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
    """Count keys for a progress report; 0 if the key store has no query for that."""
    if not isinstance(store.key_store, SQLAlchemyKeyStore):
        return 0
    engine, application = store.datastore.key_engine, store.cipher.application
    return count_keys(engine, application=application, purposes=purposes, states=states)

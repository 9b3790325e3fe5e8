"""What the key store asks of its tables: each function is one step inside the caller's transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, or_, select

from eventseal.errors import IntegrityError
from eventseal.keys.states import SUBJECT_PURPOSES, KeyPurpose, KeyState
from eventseal.storage.engines import chunks
from eventseal.storage.key_rows import load_mark, load_records
from eventseal.storage.key_tables import encryption_keys, key_changes, key_wrappings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.keys.records import ChangeMark, KeyRecord


_MOST_SHOWN = 1000


def slot_holders(
    connection: Connection,
    *,
    application: str,
    purpose: KeyPurpose,
    scopes: Iterable[str],
    wrappings: bool = True,
) -> dict[str, KeyRecord]:
    """Give the record that holds each scope's slot; a scope whose slot is free is left out."""
    ours = encryption_keys.c.application == application, encryption_keys.c.purpose == purpose
    return {
        record.active_scope: record
        for chunk in chunks(scopes)
        for record in load_records(
            connection, *ours, encryption_keys.c.active_scope.in_(chunk), wrappings=wrappings
        )
        if record.active_scope is not None
    }


def records_by_id(
    connection: Connection, *, key_ids: Iterable[UUID], wrappings: bool = True
) -> dict[UUID, KeyRecord]:
    """Give records by id; absent ones are left out."""
    return {
        record.key_id: record
        for chunk in chunks(key_ids)
        for record in load_records(connection, encryption_keys.c.key_id.in_(chunk), wrappings=wrappings)
    }


def records_in_order(connection: Connection, key_ids: Sequence[UUID]) -> list[KeyRecord]:
    """Give the records of *key_ids*, which are all there, in their order."""
    found = records_by_id(connection, key_ids=key_ids)
    return [found[key_id] for key_id in key_ids]


def locked_mark(connection: Connection, application: str) -> ChangeMark:
    """
    Lock an application's mark: before any key, by whoever changes states, so that no two of them deadlock.

    Raises:
        IntegrityError: There is none, though there are keys.
    """
    mark = load_mark(connection, application, lock=True)
    if mark is None:
        raise IntegrityError(
            f"application {application!r} has keys, but its row of key_changes is gone",
            remedy="Find out who changed the database, and restore the row from a backup.",
        )
    return mark


def locked_records(connection: Connection, key_ids: Sequence[UUID]) -> dict[UUID, KeyRecord]:
    """Lock keys, in order of id, and give their records without wrappings."""
    for chunk in chunks(sorted(key_ids)):
        ids = encryption_keys.c.key_id
        connection.execute(select(ids).where(ids.in_(chunk)).order_by(ids).with_for_update())
    return records_by_id(connection, key_ids=key_ids, wrappings=False)


def others_live(connection: Connection, application: str, scope: str, key_ids: Collection[UUID]) -> bool:
    """Whether a scope has a key of a subject's that is not destroyed, besides *key_ids*."""
    live = select(encryption_keys.c.key_id).where(
        encryption_keys.c.application == application,
        encryption_keys.c.scope == scope,
        encryption_keys.c.purpose.in_(SUBJECT_PURPOSES),
        encryption_keys.c.state != KeyState.DESTROYED,
    )
    return not set(key_ids).issuperset(connection.execute(live).scalars())


def orphans(connection: Connection, *, limit: int) -> list[KeyRecord]:
    """Give keys that live and that nothing wraps, and those of applications that have no change mark."""
    its_wrappings = select(key_wrappings.c.key_id).where(key_wrappings.c.key_id == encryption_keys.c.key_id)
    return load_records(
        connection,
        or_(
            and_(encryption_keys.c.state != KeyState.DESTROYED, ~its_wrappings.exists()),
            encryption_keys.c.application.not_in(select(key_changes.c.application)),
        ),
        limit=limit,
        wrappings=False,
    )


def of_unknown_kind(connection: Connection, *, application: str) -> list[KeyRecord]:
    """Give the first 1,000 rows of an application whose state or purpose is none that there is."""
    return load_records(
        connection,
        encryption_keys.c.application == application,
        or_(
            encryption_keys.c.state.not_in(list(KeyState)),
            encryption_keys.c.purpose.not_in(list(KeyPurpose)),
        ),
        limit=_MOST_SHOWN,
        wrappings=False,
    )

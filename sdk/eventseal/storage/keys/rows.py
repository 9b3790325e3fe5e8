"""
Rows of keys as records: reading, inserting and changing them.

Each function is one step in a transaction. A scope has one slot for each purpose of keys. Its active key
holds the slot, or a tombstone that closes the scope.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import and_, bindparam, delete, func, insert, or_, select, update

from eventseal.keys.records import MOST_WRAPPINGS, KeyRecord
from eventseal.keys.states import SUBJECT_PURPOSES, KeyPurpose, KeyState
from eventseal.kms.adapter import WrappedKey
from eventseal.storage.database.column_types import NIL_KEY_ID, DatabaseClock
from eventseal.storage.database.rows import ReadRow, chunks, insert_unless_there, read_rows
from eventseal.storage.database.transactions import reads
from eventseal.storage.keys.kek_fences import hold_branches, refuse_closed
from eventseal.storage.keys.tables import UNKNOWN_VERSION, encryption_keys, key_changes, key_wrappings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection


_MOST_SHOWN = 1000
E = TypeVar("E", KeyPurpose, KeyState)

_TIMES = {
    KeyState.ACTIVE: encryption_keys.c.created_at,
    KeyState.DEACTIVATED: encryption_keys.c.deactivated_at,
    KeyState.COMPROMISED: encryption_keys.c.compromised_at,
    KeyState.DESTROYED: encryption_keys.c.destroyed_at,
}
_STORED = frozenset(field.name for field in fields(KeyRecord)).intersection(encryption_keys.c.keys())
_AS_STORED = _STORED - {"purpose", "state"}
_INSERTED = _STORED - {"destroyed_by"} - {column.name for column in _TIMES.values()}
"""The columns that an inserted record sets itself. The database's clock sets the times."""


def load_records(
    connection: Connection,
    *conditions: ColumnElement[bool],
    limit: int | None = None,
    wrappings: bool = True,
) -> list[KeyRecord]:
    """
    Read the records that meet all conditions, in order of id.

    A row that an edit made unreadable is returned as a record too.

    Args:
        connection: A connection in the caller's transaction.
        conditions: Conditions on ``eventseal_encryption_keys``.
        limit: The maximum number of records.
        wrappings: Whether to read the wrappings of the keys too.
    """
    query = select(encryption_keys).where(*conditions).order_by(encryption_keys.c.key_id).limit(limit)
    rows = read_rows(connection, query)
    ids = [row.values["key_id"] for row in rows if "key_id" in row.values]
    wrapped = _load_wrappings(connection, ids) if wrappings else {}
    records: list[KeyRecord] = []
    for row in rows:
        key_id = row.values.get("key_id", NIL_KEY_ID)
        its = wrapped.get(key_id, [])
        records.append(_record(row, its[:MOST_WRAPPINGS], more=_unread(connection, key_id, its)))
    return records


def insert_records(connection: Connection, records: Sequence[KeyRecord], *, change: int) -> None:
    """
    Insert new keys, unless their id or their scope's slot is taken.

    Args:
        connection: A connection in the caller's transaction.
        records: The records. Their times are ignored.
        change: The application's counter of the change that creates them, or 0 if there is none.
    """
    ordered = sorted(records, key=lambda record: record.scope)  # so that no two calls deadlock
    statement = insert_unless_there(connection, encryption_keys).values(created_at=DatabaseClock())
    connection.execute(statement, [_values(record, change) for record in ordered])


def insert_tombstones(connection: Connection, tombstones: Sequence[KeyRecord], *, change: int) -> None:
    """
    Insert tombstones that were never keys.

    If a slot is taken, the database raises an error.

    Args:
        connection: A connection in the caller's transaction.
        tombstones: The tombstones. Their times are ignored.
        change: The application's counter of this change.
    """
    if tombstones:
        ordered = sorted(tombstones, key=lambda record: record.purpose)
        times = {"created_at": DatabaseClock(), "destroyed_at": DatabaseClock()}
        connection.execute(
            insert(encryption_keys).values(**times),
            [{**_values(record, change), "destroyed_by": record.destroyed_by} for record in ordered],
        )


def insert_wrappings(connection: Connection, records: Iterable[KeyRecord]) -> None:
    """
    Insert the wrappings of keys that were just inserted.

    Raises:
        KeyDestroyedError: A branch key that wraps one of them was destroyed meanwhile, or a KEK was closed.
    """
    records = list(records)
    hold_branches(connection, [wrapped for record in records for wrapped in record.wrappings])
    values = [wrapping_row(record.key_id, wrapped) for record in records for wrapped in record.wrappings]
    if values:
        statement = insert_unless_there(connection, key_wrappings).values(created_at=DatabaseClock())
        connection.execute(statement, values)
    refuse_closed(connection, [wrapped for record in records for wrapped in record.wrappings])


def update_records(
    connection: Connection, records: Sequence[KeyRecord], *, change: int, new_state: bool
) -> None:
    """
    Store the new state of keys. Destroyed keys lose their wrappings.

    Args:
        connection: A connection in the caller's transaction. It has locked the rows and just read their
            versions.
        records: At least one record. All have the same new state, each with its version and row MAC.
        change: The application's counter of this change.
        new_state: Whether the state changes. If so, the time of the database's clock is stored.
    """
    ids = encryption_keys.c.key_id
    state = records[0].state
    times = {_TIMES[state].name: DatabaseClock()} if new_state else {}
    statement = update(encryption_keys).where(ids == bindparam("of_key", type_=ids.type)).values(times)
    connection.execute(
        statement,
        [
            {
                "of_key": record.key_id,
                "state": record.state,
                "active_scope": record.active_scope,
                "destroyed_by": record.destroyed_by,
                "row_version": record.row_version,
                "change": change,
                "seal": record.seal,
            }
            for record in records
        ],
    )
    if state is KeyState.DESTROYED:
        for chunk in chunks(record.key_id for record in records):
            connection.execute(delete(key_wrappings).where(key_wrappings.c.key_id.in_(chunk)))


def _load_wrappings(connection: Connection, key_ids: Sequence[UUID]) -> dict[UUID, list[ReadRow]]:
    """
    Read the wrappings of keys.

    If somebody added thousands to one key, only one more than :data:`MOST_WRAPPINGS` is read.
    """
    found: dict[UUID, list[ReadRow]] = defaultdict(list)
    for chunk in chunks(key_ids):
        most = len(chunk) * MOST_WRAPPINGS
        rows = _newest_wrappings(connection, chunk, most + 1)
        if len(rows) > most:  # the wrappings of one key may have left no room for those of others
            rows = [
                r for key_id in chunk for r in _newest_wrappings(connection, [key_id], MOST_WRAPPINGS + 1)
            ]
        for row in rows:
            found[row.values["key_id"]].append(row)  # readable, because the row was found by it
    return found


def _newest_wrappings(connection: Connection, key_ids: Sequence[UUID], limit: int) -> list[ReadRow]:
    columns = key_wrappings.c
    # The newest come first. Of several from the same moment, an unverified one comes first. Otherwise nobody
    # would ever try it (docs/decisions/0009).
    order = (
        columns.created_at.desc(),
        columns.verified_at.is_not(None),
        columns.kek_uri,
        columns.kek_version,
    )
    query = select(key_wrappings).where(columns.key_id.in_(key_ids)).order_by(*order).limit(limit)
    return read_rows(connection, query)


def _unread(connection: Connection, key_id: UUID, rows: Sequence[ReadRow]) -> int:
    """Count the wrappings that a key's record leaves out. There are none, unless somebody added thousands."""
    if len(rows) <= MOST_WRAPPINGS:
        return 0
    query = select(func.count()).select_from(key_wrappings).where(key_wrappings.c.key_id == key_id)
    return connection.execute(query).scalar_one() - MOST_WRAPPINGS


def _record(row: ReadRow, wrapped: Sequence[ReadRow], *, more: int) -> KeyRecord:
    purpose = _member(KeyPurpose, row.values.get("purpose"))
    state = _member(KeyState, row.values.get("state"))
    unreadable = [*row.unreadable, *(name for each in wrapped for name in each.unreadable)]
    unreadable += [name for name, value in (("purpose", purpose), ("state", state)) if value is None]
    if unreadable or purpose is None or state is None:
        readable = {name: value for name, value in row.values.items() if name not in unreadable}
        return _unreadable(readable, dict.fromkeys(unreadable), purpose, state)
    verified = [_wrapping(each.values) for each in wrapped if each.values["verified_at"] is not None]
    return KeyRecord(
        **{name: row.values[name] for name in _AS_STORED},
        purpose=purpose,
        state=state,
        wrappings=tuple([_wrapping(each.values) for each in wrapped]),
        more_wrappings=more,
        verified=frozenset(verified),
    )


def _unreadable(
    values: Mapping[str, Any], names: Iterable[str], purpose: KeyPurpose | None, state: KeyState | None
) -> KeyRecord:
    """
    Return a record with an empty row MAC, which never matches.

    The readable values of the row identify its key.
    """
    return KeyRecord(
        key_id=values.get("key_id", NIL_KEY_ID),
        application=values.get("application", ""),
        scope=values.get("scope", ""),
        active_scope=values.get("active_scope"),
        purpose=purpose or KeyPurpose.DATA,
        state=state or KeyState.DEACTIVATED,  # not destroyed, or nobody would look at the row any more
        binding=b"",
        seal=b"",
        unreadable=tuple(names),
    )


def wrapping_row(key_id: UUID, wrapped: WrappedKey) -> dict[str, Any]:
    """Return the values of a wrapping's row."""
    return {
        "key_id": key_id,
        "kek_uri": wrapped.kek_uri,
        "kek_version": wrapped.kek_version or UNKNOWN_VERSION,
        "wrapped": wrapped.ciphertext,
    }


def _wrapping(values: Mapping[str, Any]) -> WrappedKey:
    version = values["kek_version"] or None  # UNKNOWN_VERSION is empty
    return WrappedKey(kek_uri=values["kek_uri"], kek_version=version, ciphertext=values["wrapped"])


def _member(kind: type[E], value: Any) -> E | None:
    return kind(value) if value in list(kind) else None


def _values(record: KeyRecord, change: int) -> dict[str, Any]:
    return {**{name: getattr(record, name) for name in _INSERTED}, "change": change}


@reads("reading active keys", filtered=True)
def slot_holders(
    connection: Connection,
    *,
    application: str,
    purpose: KeyPurpose,
    scopes: Iterable[str],
    wrappings: bool = True,
) -> dict[str, KeyRecord]:
    """Return the record in the slot of each scope. Scopes with a free slot are left out."""
    ours = encryption_keys.c.application == application, encryption_keys.c.purpose == purpose
    return {
        record.active_scope: record
        for chunk in chunks(scopes)
        for record in load_records(
            connection, *ours, encryption_keys.c.active_scope.in_(chunk), wrappings=wrappings
        )
        if record.active_scope is not None
    }


@reads("reading keys", filtered=True)
def records_by_id(
    connection: Connection, *, key_ids: Iterable[UUID], wrappings: bool = True
) -> dict[UUID, KeyRecord]:
    """Return records by id. Missing ones are left out."""
    return {
        record.key_id: record
        for chunk in chunks(key_ids)
        for record in load_records(connection, encryption_keys.c.key_id.in_(chunk), wrappings=wrappings)
    }


def records_in_order(connection: Connection, key_ids: Sequence[UUID]) -> list[KeyRecord]:
    """Return the records of *key_ids* in that order. All of them must exist."""
    found = records_by_id(connection, key_ids=key_ids)
    return [found[key_id] for key_id in key_ids]


def locked_records(connection: Connection, key_ids: Sequence[UUID]) -> dict[UUID, KeyRecord]:
    """Lock keys in order of id, and return their records without wrappings."""
    for chunk in chunks(sorted(key_ids)):
        ids = encryption_keys.c.key_id
        connection.execute(select(ids).where(ids.in_(chunk)).order_by(ids).with_for_update())
    return records_by_id(connection, key_ids=key_ids, wrappings=False)


def others_live(connection: Connection, application: str, scope: str, key_ids: Collection[UUID]) -> bool:
    """Return whether a scope has other keys of a subject than *key_ids*. Destroyed keys do not count."""
    live = select(encryption_keys.c.key_id).where(
        encryption_keys.c.application == application,
        encryption_keys.c.scope == scope,
        encryption_keys.c.purpose.in_(SUBJECT_PURPOSES),
        encryption_keys.c.state != KeyState.DESTROYED,
    )
    return not set(key_ids).issuperset(connection.execute(live).scalars())


@reads("looking for keys without a wrapping or a change mark")
def orphans(connection: Connection, *, limit: int) -> list[KeyRecord]:
    """
    Return keys that lost their wrappings or their change mark.

    A key that is not destroyed needs a wrapping. Its application needs a change mark.
    """
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


@reads("looking for rows of unknown kinds")
def of_unknown_kind(connection: Connection, *, application: str) -> list[KeyRecord]:
    """Return the first 1,000 rows with an unknown state or purpose."""
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

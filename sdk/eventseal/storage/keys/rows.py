"""Branch keys that have wrapped others: held while a wrapping is stored, so that none of them ends then."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from eventseal.errors import IntegrityError, KeyDestroyedError
from eventseal.keys.records import MOST_WRAPPINGS, ChangeMark, KeyRecord
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import named_branch
from eventseal.kms.adapter import WrappedKey
from eventseal.storage.database.column_types import NIL_KEY_ID, DatabaseClock
from eventseal.storage.database.edited_rows import ReadRow, as_sql, read_rows
from eventseal.storage.database.engines import chunks
from eventseal.storage.keys.kek_fences import refuse_closed
from eventseal.storage.keys.tables import UNKNOWN_VERSION, encryption_keys, key_changes, key_wrappings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import ColumnElement, Select, Table
    from sqlalchemy.engine import Connection


def hold_branches(connection: Connection, wrappings: Iterable[WrappedKey]) -> None:
    """
    Share the rows of the branch keys that *wrappings* name until the transaction ends.

    Who destroys a branch key locks its row first and counts what it wraps then: so a wrapping is either
    counted, or refused here. On SQLite the write lock does it.

    Args:
        connection: In the caller's transaction, which is about to insert *wrappings*.
        wrappings: Under branch keys or KEKs.

    Raises:
        KeyDestroyedError: A branch key was destroyed since the caller had it. Nothing may be stored.
    """
    branch_ids = {named_branch(wrapped) for wrapped in wrappings} - {None}
    if not branch_ids:
        return
    ids, state = encryption_keys.c.key_id, encryption_keys.c.state
    # KEY SHARE: it stands in the way of the FOR UPDATE before every change of a state, and of nothing else.
    held = (
        select(ids, state).where(ids.in_(branch_ids)).order_by(ids).with_for_update(read=True, key_share=True)
    )
    for row in connection.execute(held):
        if row.state == KeyState.DESTROYED:
            raise KeyDestroyedError(
                f"branch key {row.key_id} was destroyed before what it has wrapped was stored",
                key_id=row.key_id,
                remedy="Try again: the branch has another key by now.",
            )


E = TypeVar("E", KeyPurpose, KeyState)

_AS_STORED = (
    "key_id",
    "application",
    "scope",
    "active_scope",
    "binding",
    "items_reserved",
    "row_version",
    "seal",
    "created_at",
    "deactivated_at",
    "compromised_at",
    "destroyed_at",
    "destroyed_by",
)
_TIMES = {
    KeyState.ACTIVE: encryption_keys.c.created_at,
    KeyState.DEACTIVATED: encryption_keys.c.deactivated_at,
    KeyState.COMPROMISED: encryption_keys.c.compromised_at,
    KeyState.DESTROYED: encryption_keys.c.destroyed_at,
}

_RESTORE_MARK = "Find out who changed the key tables, and restore this row from a backup."
_SET_INTERVAL = (
    "Find out who changed the key tables, then set the interval, in seconds: "
    "UPDATE key_changes SET refresh_interval = 60 WHERE application = "
)


def load_records(
    connection: Connection,
    *conditions: ColumnElement[bool],
    limit: int | None = None,
    wrappings: bool = True,
) -> list[KeyRecord]:
    """
    Read the records that meet all conditions, in order of id; an edited row that cannot be read is one too.

    Args:
        connection: In the caller's transaction.
        conditions: On ``encryption_keys``.
        limit: At most so many.
        wrappings: Whether they come with them.
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
    Insert new keys, each unless its id or its scope's slot is taken.

    Args:
        connection: In the caller's transaction.
        records: Without regard to their times.
        change: The application's counter of a change that made them; 0 if none did.
    """
    ordered = sorted(records, key=lambda record: record.scope)  # so that no two calls deadlock
    statement = insert_unless_there(connection, encryption_keys).values(created_at=DatabaseClock())
    connection.execute(statement, [_values(record, change) for record in ordered])


def insert_tombstones(connection: Connection, tombstones: Sequence[KeyRecord], *, change: int) -> None:
    """
    Insert tombstones that were never keys; a slot that is taken is an error of the database's.

    Args:
        connection: In the caller's transaction.
        tombstones: Without regard to their times.
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
        KeyDestroyedError: The branch key of one was destroyed meanwhile, or its KEK closed.
    """
    records = list(records)
    hold_branches(connection, [wrapped for record in records for wrapped in record.wrappings])
    values = [
        {
            "key_id": record.key_id,
            "kek_uri": wrapped.kek_uri,
            "kek_version": UNKNOWN_VERSION if wrapped.kek_version is None else wrapped.kek_version,
            "wrapped": wrapped.ciphertext,
        }
        for record in records
        for wrapped in record.wrappings
    ]
    if values:
        statement = insert_unless_there(connection, key_wrappings).values(created_at=DatabaseClock())
        connection.execute(statement, values)
    refuse_closed(connection, [wrapped for record in records for wrapped in record.wrappings])


def move_records(
    connection: Connection, records: Sequence[KeyRecord], *, change: int, new_state: bool
) -> None:
    """
    Write the new state of keys; destroyed keys lose their wrappings.

    Args:
        connection: In the caller's transaction, which has locked the rows and found the versions just before.
        records: At least one, all of one new state, each with its version and seal.
        change: The application's counter of this change.
        new_state: Whether the state is another than before; the database's clock is then noted.
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


def load_mark(connection: Connection, application: str, *, lock: bool = False) -> ChangeMark | None:
    """Read an application's mark, and lock its row until the transaction ends if asked to."""
    query = select(key_changes).where(key_changes.c.application == application)
    values = read_mark(connection, application, query.with_for_update() if lock else query)
    return None if values is None else mark_of(values)


def read_mark(connection: Connection, application: str, query: Select[Any]) -> Mapping[str, Any] | None:
    """
    Read an application's row of ``key_changes``.

    Args:
        connection: In the caller's transaction.
        application: Whose.
        query: Selects the row, maybe with more.

    Returns:
        ``None`` if there is none.

    Raises:
        IntegrityError: A cell of it cannot be read. No process can go on without it.
    """
    rows = read_rows(connection, query)
    if not rows:
        return None
    (row,) = rows
    if row.unreadable:
        only_interval = row.unreadable == ("refresh_interval",)
        raise IntegrityError(
            f"the row of application {application!r} in key_changes was edited: its "
            f"{', '.join(row.unreadable)} cannot be read",
            remedy=_SET_INTERVAL + f"{as_sql(connection, application)};" if only_interval else _RESTORE_MARK,
        )
    return row.values


def mark_of(values: Mapping[str, Any]) -> ChangeMark:
    """Make the mark of a row of ``key_changes``."""
    return ChangeMark(**{name: values[name] for name in ("application", "counter", "revoked", "seal")})


def insert_mark(connection: Connection, mark: ChangeMark) -> None:
    """Insert an application's first mark, unless there is one."""
    connection.execute(insert_unless_there(connection, key_changes), _mark_values(mark))


def store_mark(connection: Connection, mark: ChangeMark) -> None:
    """Write an application's next mark."""
    connection.execute(
        update(key_changes).where(key_changes.c.application == mark.application).values(_mark_values(mark))
    )


def insert_unless_there(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Begin an INSERT that leaves out a row whose key, or other unique value, is taken."""
    on_postgresql = connection.dialect.name == "postgresql"
    return (postgresql.insert(table) if on_postgresql else sqlite.insert(table)).on_conflict_do_nothing()


def _load_wrappings(connection: Connection, key_ids: Sequence[UUID]) -> dict[UUID, list[ReadRow]]:
    """Read the wrappings of keys; of a key to which somebody added thousands, one more than count."""
    found: dict[UUID, list[ReadRow]] = defaultdict(list)
    for chunk in chunks(key_ids):
        most = len(chunk) * MOST_WRAPPINGS
        rows = _newest_wrappings(connection, chunk, most + 1)
        if len(rows) > most:  # those of one key may have left no room for the others'
            rows = [
                r for key_id in chunk for r in _newest_wrappings(connection, [key_id], MOST_WRAPPINGS + 1)
            ]
        for row in rows:
            found[row.values["key_id"]].append(row)  # readable, since it was found by it
    return found


def _newest_wrappings(connection: Connection, key_ids: Sequence[UUID], limit: int) -> list[ReadRow]:
    columns = key_wrappings.c
    # The newest first; of those of one moment the one that nobody has tried, or nobody ever would.
    order = (
        columns.created_at.desc(),
        columns.verified_at.is_not(None),
        columns.kek_uri,
        columns.kek_version,
    )
    query = select(key_wrappings).where(columns.key_id.in_(key_ids)).order_by(*order).limit(limit)
    return read_rows(connection, query)


def _unread(connection: Connection, key_id: UUID, rows: Sequence[ReadRow]) -> int:
    """Count the wrappings that are left out of a key's record: none, unless somebody added thousands."""
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
    """Make a record that no seal fits: what can be read of the row says whose it is."""
    return KeyRecord(
        key_id=values.get("key_id", NIL_KEY_ID),
        application=values.get("application", ""),
        scope=values.get("scope", ""),
        active_scope=values.get("active_scope"),
        purpose=purpose or KeyPurpose.DATA,
        state=state or KeyState.DEACTIVATED,  # not destroyed: then nobody would look at the row any more
        binding=b"",
        seal=b"",
        unreadable=tuple(names),
    )


def _wrapping(values: Mapping[str, Any]) -> WrappedKey:
    version = None if values["kek_version"] == UNKNOWN_VERSION else values["kek_version"]
    return WrappedKey(kek_uri=values["kek_uri"], kek_version=version, ciphertext=values["wrapped"])


def _member(kind: type[E], value: Any) -> E | None:
    return kind(value) if value in list(kind) else None


def _values(record: KeyRecord, change: int) -> dict[str, Any]:
    return {
        "key_id": record.key_id,
        "application": record.application,
        "scope": record.scope,
        "purpose": record.purpose,
        "state": record.state,
        "active_scope": record.active_scope,
        "binding": record.binding,
        "items_reserved": record.items_reserved,
        "row_version": record.row_version,
        "change": change,
        "seal": record.seal,
    }


def _mark_values(mark: ChangeMark) -> dict[str, Any]:
    return {
        "application": mark.application,
        "counter": mark.counter,
        "revoked": mark.revoked,
        "seal": mark.seal,
    }

"""
State changes of keys, all or none.

They also store the change mark, which shows the change to every process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, type_coerce, update
from sqlalchemy.exc import IntegrityError as ConstraintError
from sqlalchemy.types import NullType

from eventseal.errors import IntegrityError
from eventseal.keys.authentication.row_macs import RESTORE_MARK
from eventseal.keys.records import ChangeMark, Changes
from eventseal.keys.revocation_tree import ROOT
from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.keys.wrapping.branches import branch_uri
from eventseal.storage.database.column_types import DatabaseClock
from eventseal.storage.database.layout import own_name, quoted_name
from eventseal.storage.database.rows import as_sql, chunks, insert_unless_there, insertion, read_rows
from eventseal.storage.database.transactions import reads
from eventseal.storage.keys.rows import (
    insert_records,
    insert_tombstones,
    insert_wrappings,
    load_records,
    locked_records,
    others_live,
    records_in_order,
    slot_holders,
    update_records,
)
from eventseal.storage.keys.tables import (
    encryption_keys,
    erased_items,
    key_changes,
    key_wrappings,
    revocation_nodes,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection

    from eventseal.keys.records import Admission, KeyRecord, NextMark, Replacement


_MARK = ("application", "counter", "revoked", "seal")
_SET_INTERVAL = (
    "Find out who changed the key tables, then set the interval, in seconds: "
    "UPDATE {table} SET refresh_interval = 60 WHERE application = {application}"
)


def change_states(
    connection: Connection,
    *,
    application: str,
    records: Sequence[KeyRecord],
    tombstones: Sequence[KeyRecord],
    next_mark: NextMark,
    whole_scope: str | None,
    left_out: Collection[UUID],
    again: bool,
) -> list[KeyRecord]:
    """
    Store the states that *records* carry, and insert *tombstones*.

    See ``KeyStore.set_states``.

    Args:
        connection: A connection in its own READ COMMITTED transaction. On SQLite, it holds the write lock.
        application: The application that owns the keys.
        records: The records. The version of each is one above the stored version.
        tombstones: New rows that were never keys.
        next_mark: Returns the change mark to store.
        whole_scope: The scope of which no key may be left out, unless it is destroyed.
        left_out: Keys that may be left out, whatever their rows contain. They lose their slots.
        again: Whether an earlier attempt may have done all of it, although its COMMIT was not answered.

    Returns:
        The records as stored. If something was in the way, the list is empty, and the transaction was rolled
        back.
    """
    wanted = [*records, *tombstones]
    key_ids = [record.key_id for record in wanted]
    mark = locked_mark(connection, application)
    stored = locked_records(connection, key_ids)
    if again and all(_is_same(record, stored.get(record.key_id)) for record in wanted):
        return records_in_order(connection, key_ids)
    if not all(_follows(record, stored.get(record.key_id)) for record in records):
        return []
    if whole_scope is not None and others_live(connection, application, whole_scope, [*key_ids, *left_out]):
        return []
    if _wraps_others(connection, records):
        return []
    following = store_next_mark(connection, mark, next_mark)
    for chunk in chunks(left_out):
        ids = encryption_keys.c.key_id
        connection.execute(update(encryption_keys).where(ids.in_(chunk)).values(active_scope=None))
    try:
        for record in sorted(records, key=lambda record: record.key_id):
            new_state = stored[record.key_id].state is not record.state
            update_records(connection, [record], change=following.counter, new_state=new_state)
        insert_tombstones(connection, tombstones, change=following.counter)
    except ConstraintError:  # another key has taken a slot that one of the records keeps
        connection.rollback()
        return []
    return records_in_order(connection, key_ids)


def _wraps_others(connection: Connection, records: Sequence[KeyRecord]) -> bool:
    """
    Return whether a branch key that will be destroyed still wraps keys.

    A process that wraps another key waits for the branch key's locked row.
    """
    uris = [
        branch_uri(record.key_id)
        for record in records
        if record.purpose is KeyPurpose.BRANCH and record.state is KeyState.DESTROYED
    ]
    return any(
        connection.execute(
            select(key_wrappings.c.key_id).where(key_wrappings.c.kek_uri.in_(chunk)).limit(1)
        ).first()
        for chunk in chunks(uris)
    )


def _follows(record: KeyRecord, stored: KeyRecord | None) -> bool:
    return stored is not None and not stored.unreadable and stored.row_version == record.row_version - 1


def _is_same(record: KeyRecord, stored: KeyRecord | None) -> bool:
    return stored is not None and (stored.row_version, stored.seal) == (record.row_version, record.seal)


def replace_active_keys(
    connection: Connection, replacements: Sequence[Replacement], *, next_mark: NextMark
) -> dict[str, KeyRecord]:
    """
    Replace the active keys of scopes with new ones.

    See ``KeyStore.replace_all_active``. After an attempt whose COMMIT was not answered, it finds the new keys
    in their slots.

    Args:
        connection: A connection in its own READ COMMITTED transaction. On SQLite, it holds the write lock.
        replacements: At least one replacement.
        next_mark: Returns the change mark to store.

    Returns:
        The record in the slot of each scope.

    Raises:
        KeyDestroyedError: A wrapping is under a branch key that was destroyed meanwhile.
    """
    old, new = [each.old for each in replacements], [each.new for each in replacements]
    application, purpose = old[0].application, old[0].purpose
    mark = locked_mark(connection, application)
    stored = locked_records(connection, [record.key_id for record in old])
    if all(_is_active(each, stored.get(each.old.key_id)) for each in replacements):
        following = store_next_mark(connection, mark, next_mark)
        closed = [each.closed for each in replacements]
        update_records(connection, closed, change=following.counter, new_state=True)
        insert_records(connection, new, change=following.counter)
        insert_wrappings(connection, new)
    scopes = [record.scope for record in old]
    return slot_holders(connection, application=application, purpose=purpose, scopes=scopes)


def _is_active(replacement: Replacement, stored: KeyRecord | None) -> bool:
    """Return whether the old key is unchanged and holds its slot."""
    return (
        stored is not None
        and not stored.unreadable
        and stored.active_scope == replacement.old.scope
        and stored.row_version == replacement.closed.row_version - 1
    )


def load_mark(connection: Connection, application: str, *, lock: bool = False) -> ChangeMark | None:
    """Read an application's change mark. With *lock*, its row is locked until the transaction ends."""
    query = select(key_changes).where(key_changes.c.application == application)
    values = read_mark(connection, application, query.with_for_update() if lock else query)
    return None if values is None else mark_of(values)


def read_mark(connection: Connection, application: str, query: Select[Any]) -> Mapping[str, Any] | None:
    """
    Read an application's row of ``eventseal_key_changes``.

    Args:
        connection: A connection in the caller's transaction.
        application: The application.
        query: The query, which selects the row and maybe more.

    Returns:
        The values of the row, or ``None`` if there is no row.

    Raises:
        IntegrityError: A cell of the row cannot be read. No process can continue without it.
    """
    rows = read_rows(connection, query)
    if not rows:
        return None
    (row,) = rows
    if row.unreadable:
        only_interval = row.unreadable == ("refresh_interval",)
        table, name = quoted_name(connection, key_changes.name), as_sql(connection, application)
        raise IntegrityError(
            f"the row of application {application!r} in {own_name(connection, key_changes.name)} was edited: "
            f"its {', '.join(row.unreadable)} cannot be read",
            remedy=_SET_INTERVAL.format(table=table, application=name) if only_interval else RESTORE_MARK,
        )
    return row.values


def mark_of(values: Mapping[str, Any]) -> ChangeMark:
    """Return the change mark in a row of ``eventseal_key_changes``."""
    return ChangeMark(**{name: values[name] for name in _MARK})


def insert_mark(connection: Connection, mark: ChangeMark) -> None:
    """Insert an application's first change mark, unless there is one."""
    connection.execute(insert_unless_there(connection, key_changes), _mark_values(mark))


def store_mark(connection: Connection, mark: ChangeMark) -> None:
    """Store an application's next change mark."""
    connection.execute(
        update(key_changes).where(key_changes.c.application == mark.application).values(_mark_values(mark))
    )


def _mark_values(mark: ChangeMark) -> dict[str, Any]:
    return {name: getattr(mark, name) for name in _MARK}


def load_nodes(connection: Connection, application: str, paths: Collection[bytes]) -> dict[bytes, bytes]:
    """Read nodes by path. Missing ones are left out."""
    columns = revocation_nodes.c
    query = select(type_coerce(columns.path, NullType), type_coerce(columns.content, NullType)).where(
        columns.application == application
    )
    nodes: dict[Any, Any] = {}
    for chunk in chunks(sorted(paths)):
        nodes.update(connection.execute(query.where(columns.path.in_(chunk))).all())
    # Untyped columns are read faster. An edited value that is not bytes counts as a missing node.
    return {path: content for path, content in nodes.items() if isinstance(content, bytes)}


def is_admitted(connection: Connection, application: str, admit: Admission) -> bool:
    """Return whether keys that this transaction inserted may stay. The current revocations decide."""
    mark = load_mark(connection, application)
    if mark is None:
        return False
    return mark.revoked == admit.revoked or admit(mark, load_nodes(connection, application, admit.paths))


def list_erased(connection: Connection, application: str, digests: Collection[bytes]) -> None:
    """Add digests of erased items. Existing ones stay."""
    rows = [{"application": application, "digest": digest} for digest in sorted(set(digests))]
    if rows:
        connection.execute(insert_unless_there(connection, erased_items), rows)


@reads("looking for erased items", filtered=True)
def find_erased(connection: Connection, application: str, digests: Collection[bytes]) -> set[bytes]:
    """Return the digests that are listed as those of erased items."""
    columns = erased_items.c
    return {
        digest
        for chunk in chunks(digests)
        for digest in connection.execute(
            select(columns.digest).where(columns.application == application, columns.digest.in_(chunk))
        ).scalars()
    }


def store_next_mark(connection: Connection, mark: ChangeMark, next_mark: NextMark) -> ChangeMark:
    """
    Store the next change mark with its tree nodes.

    Args:
        connection: A connection in a transaction that has locked *mark*.
        mark: The stored mark.
        next_mark: Returns the next mark and the changed nodes.

    Returns:
        The mark that was stored.
    """
    # The key tables of the release before the tree may lack its table. *next_mark* refuses their mark.
    wanted = next_mark.paths if mark.has_tree else ()
    nodes = load_nodes(connection, mark.application, wanted) if wanted else {}
    following, changed = next_mark(mark, nodes)
    if changed:
        inserting = insertion(connection, revocation_nodes)
        connection.execute(
            inserting.on_conflict_do_update(
                index_elements=["application", "path"], set_={"content": inserting.excluded.content}
            ),
            [
                {"application": mark.application, "path": path, "content": content}
                for path, content in sorted(changed.items())
            ],
        )
    store_mark(connection, following)
    return following


def locked_mark(connection: Connection, application: str) -> ChangeMark:
    """
    Lock an application's change mark.

    Whoever changes states locks it before any key, so that two of them do not deadlock.

    Raises:
        IntegrityError: The mark is missing, although there are keys.
    """
    mark = load_mark(connection, application, lock=True)
    if mark is None:
        raise IntegrityError(
            f"application {application!r} has keys, but its row of eventseal_key_changes is missing",
            remedy=RESTORE_MARK,
        )
    return mark


@reads("reading the changes of the keys", filtered=True)
def changes_since(
    connection: Connection, *, application: str, since: int, key_ids: Collection[UUID]
) -> Changes | None:
    """
    Read an application's change mark and the changes after counter *since*.

    Args:
        connection: A connection in one snapshot.
        application: The application that owns the keys.
        since: A counter. If it is the mark's counter, there are no changes.
        key_ids: The keys whose records are returned if they changed.

    Returns:
        ``None`` if the application has no mark, and so no store key.
    """
    row = read_mark(connection, application, _mark_query(application))
    if row is None:
        return None
    found = Changes(mark=mark_of(row), refresh_interval=row["refresh_interval"], now=row["now"])
    if row["counter"] == since:
        return found
    moved = encryption_keys.c.application == application, encryption_keys.c.change > since
    records = [
        record
        for chunk in chunks(sorted(key_ids))
        for record in load_records(connection, *moved, encryption_keys.c.key_id.in_(chunk), wrappings=False)
    ]
    # The key tables of the release before the tree may lack its table.
    nodes = load_nodes(connection, application, [ROOT]) if found.mark.has_tree else {}
    return replace(found, records=tuple(records), root=nodes.get(ROOT, b""))


@lru_cache(maxsize=16)  # every refresh uses it
def _mark_query(application: str) -> Select[Any]:
    return select(key_changes, DatabaseClock().label("now")).where(key_changes.c.application == application)

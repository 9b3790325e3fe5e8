"""What the key store and a refresh read from the tables. Each function is one step in a transaction."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, or_, select, type_coerce
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import NullType

from eventseal.errors import IntegrityError
from eventseal.keys.records import Changes
from eventseal.keys.revocation_tree import ROOT
from eventseal.keys.states import SUBJECT_PURPOSES, KeyPurpose, KeyState
from eventseal.storage.database.column_types import DatabaseClock
from eventseal.storage.database.engines import chunks
from eventseal.storage.keys.rows import (
    insert_unless_there,
    load_mark,
    load_records,
    mark_of,
    read_mark,
    store_mark,
)
from eventseal.storage.keys.tables import (
    encryption_keys,
    erased_items,
    key_changes,
    key_wrappings,
    revocation_nodes,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.engine import Connection

    from eventseal.keys.records import Admission, ChangeMark, KeyRecord, NextMark


def load_nodes(connection: Connection, application: str, paths: Collection[bytes]) -> dict[bytes, bytes]:
    """Read nodes by path; absent ones are left out."""
    columns = revocation_nodes.c
    query = select(type_coerce(columns.path, NullType), type_coerce(columns.content, NullType)).where(
        columns.application == application
    )
    nodes: dict[Any, Any] = {}
    for chunk in chunks(sorted(paths)):
        nodes.update(connection.execute(query.where(columns.path.in_(chunk))).all())
    # Untyped columns are read faster. What somebody edited into no bytes is like a node that is gone.
    return {path: content for path, content in nodes.items() if isinstance(content, bytes)}


def is_admitted(connection: Connection, application: str, admit: Admission) -> bool:
    """Whether keys that this transaction has inserted may stay, by what is revoked now."""
    mark = load_mark(connection, application)
    if mark is None:
        return False
    return mark.revoked == admit.revoked or admit(mark, load_nodes(connection, application, admit.paths))


def list_erased(connection: Connection, application: str, digests: Collection[bytes]) -> None:
    """Add digests of items that were erased; those that are there stay."""
    rows = [{"application": application, "digest": digest} for digest in sorted(set(digests))]
    if rows:
        connection.execute(insert_unless_there(connection, erased_items), rows)


def find_erased(connection: Connection, application: str, digests: Collection[bytes]) -> set[bytes]:
    """Say which of some digests are listed."""
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
    Write the mark that follows a locked one, and the nodes that go with it.

    Args:
        connection: In a transaction that has locked *mark*.
        mark: As it is stored.
        next_mark: Gives what follows.

    Returns:
        The mark that was written.
    """
    # Tables of the release before the tree may lack its table; *next_mark* refuses their mark.
    wanted = next_mark.paths if mark.has_tree else ()
    nodes = load_nodes(connection, mark.application, wanted) if wanted else {}
    following, changed = next_mark(mark, nodes)
    if changed:
        on_postgresql = connection.dialect.name == "postgresql"
        insertion: Any = (postgresql if on_postgresql else sqlite).insert(revocation_nodes)
        connection.execute(
            insertion.on_conflict_do_update(
                index_elements=["application", "path"], set_={"content": insertion.excluded.content}
            ),
            [
                {"application": mark.application, "path": path, "content": content}
                for path, content in sorted(changed.items())
            ],
        )
    store_mark(connection, following)
    return following


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


def changes_since(
    connection: Connection, *, application: str, since: int, key_ids: Collection[UUID]
) -> Changes | None:
    """
    Read an application's mark and, unless its counter is *since*, what changed after that.

    Args:
        connection: In one snapshot.
        application: Whose keys.
        since: A counter.
        key_ids: Whose records are given if they changed.

    Returns:
        ``None`` if the application has no mark, hence no store key.
    """
    row = read_mark(connection, application, _mark_of(application))
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
    # Tables of the release before the tree may lack its table.
    nodes = load_nodes(connection, application, [ROOT]) if found.mark.has_tree else {}
    return replace(found, records=tuple(records), root=nodes.get(ROOT, b""))


@lru_cache(maxsize=16)  # every refresh asks it
def _mark_of(application: str) -> Select[Any]:
    return select(key_changes, DatabaseClock().label("now")).where(key_changes.c.application == application)

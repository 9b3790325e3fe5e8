"""The revocation tree's nodes and the list of erased items: each function is one step in a transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select, type_coerce
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import NullType

from eventseal.storage.engines import chunks
from eventseal.storage.key_rows import insert_unless_there, load_mark, store_mark
from eventseal.storage.key_tables import erased_items, revocation_nodes

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.engine import Connection

    from eventseal.keys.records import Admission, ChangeMark, NextMark


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

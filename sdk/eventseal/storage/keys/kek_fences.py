"""
Fences of KEKs and branch keys.

No wrapping is stored under a KEK or branch key whose fence is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select, text

from eventseal.errors import KeyDestroyedError
from eventseal.keys.states import KeyState
from eventseal.keys.wrapping.branches import BRANCH_PREFIX, named_branch
from eventseal.storage.database.column_types import DatabaseClock
from eventseal.storage.database.layout import quoted_name
from eventseal.storage.database.rows import insert_unless_there
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.keys.tables import EVERY_VERSION, encryption_keys, kek_fences, key_wrappings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection

    from eventseal.kms.adapter import WrappedKey

    KekVersions = Mapping[str, Collection[str] | None]

PATIENCE = "2s"
"""The time that closing waits for others who are storing wrappings."""

NO_KEY = "(no row in eventseal_encryption_keys)"
"""Replaces the application of wrappings whose key has no row."""

_CLOSED = (
    "Try again, because the KMS key now wraps under a newer version. If the error returns, "
    "`eventseal roll-epoch` has replaced the KMS key. Then configure only its successor."
)


def refuse_closed(connection: Connection, wrappings: Iterable[WrappedKey]) -> None:
    """
    Refuse wrappings that were just stored, if their KEK was closed meanwhile.

    A process that closes a KEK keeps others from storing wrappings until it has committed, and counts the
    stored wrappings. So a wrapping is either counted, or refused here (docs/decisions/0014). Wrappings under
    branch keys need no query.

    Args:
        connection: A connection in the caller's transaction. It has inserted *wrappings* in an earlier
            statement.
        wrappings: The wrappings, under KEKs or branch keys.

    Raises:
        KeyDestroyedError: A KEK, or the version that created a wrapping, is closed. The caller rolls back.
    """
    by_kek = [wrapped for wrapped in wrappings if not wrapped.kek_uri.startswith(BRANCH_PREFIX)]
    if not by_kek:
        return
    query = select(kek_fences.c.kek_uri, kek_fences.c.kek_version).where(
        kek_fences.c.kek_uri.in_({wrapped.kek_uri for wrapped in by_kek})
    )
    closed = {(row.kek_uri, row.kek_version) for row in connection.execute(query)}
    for wrapped in by_kek:
        if {(wrapped.kek_uri, EVERY_VERSION), (wrapped.kek_uri, wrapped.kek_version)} & closed:
            version = "" if wrapped.kek_version is None else f" (version {wrapped.kek_version})"
            raise KeyDestroyedError(
                f"{wrapped.kek_uri}{version} was closed before a wrapping under it was stored",
                kek_uri=wrapped.kek_uri,
                remedy=_CLOSED,
            )


def hold_branches(connection: Connection, wrappings: Iterable[WrappedKey]) -> None:
    """
    Share the rows of branch keys until the transaction ends.

    A process that destroys a branch key locks its row first and then counts the wrappings under it. So a
    wrapping is either counted, or refused here (docs/decisions/0010). On SQLite the write lock ensures this.

    Args:
        connection: A connection in the caller's transaction, before it inserts *wrappings*.
        wrappings: The wrappings, under branch keys or KEKs.

    Raises:
        KeyDestroyedError: A branch key was destroyed since the caller read it. Nothing may be stored.
    """
    branch_ids = {named_branch(wrapped) for wrapped in wrappings} - {None}
    if not branch_ids:
        return
    ids, state = encryption_keys.c.key_id, encryption_keys.c.state
    # KEY SHARE blocks the FOR UPDATE that precedes every change of a state, and nothing else.
    held = (
        select(ids, state).where(ids.in_(branch_ids)).order_by(ids).with_for_update(read=True, key_share=True)
    )
    for row in connection.execute(held):
        if row.state == KeyState.DESTROYED:
            raise KeyDestroyedError(
                f"branch key {row.key_id} was destroyed before a wrapping under it was stored",
                key_id=row.key_id,
                remedy="Try again: the branch now has another key.",
            )


@writes("closing KEKs")
def close_keks(connection: Connection, keks: KekVersions) -> dict[str, int]:
    """
    Close KEKs permanently, unless they wrap keys of any application.

    Args:
        connection: A connection to the key tables, or their engine.
        keks: The versions to close, by the KEK's name in wrappings. ``None`` means all versions.

    Returns:
        By application, the number of wrappings under the KEKs. Wrappings of keys without a row count under
        :data:`NO_KEY`. If there are wrappings, nothing was closed. If it is empty, all are closed.

    Raises:
        StoreUnavailableError: Others store wrappings for longer than 2 seconds.
        StoreError: The database refused or failed.
    """
    if not keks:
        return {}
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
        named = quoted_name(connection, key_wrappings.name)
        connection.execute(text(f"LOCK TABLE {named} IN SHARE ROW EXCLUSIVE MODE"))
    hanging = hanging_on(connection, keks)  # after the lock, a new statement sees all that was stored
    if not hanging:
        _insert(connection, keks)
    return hanging


@reads("counting the wrappings under KEKs")
def hanging_on(connection: Connection, keks: KekVersions) -> dict[str, int]:
    """
    Count the wrappings under KEKs.

    Args:
        connection: A connection to the key tables, or their engine.
        keks: As for :func:`close_keks`.

    Returns:
        The number of wrappings by application, for all applications that share the tables.
    """
    if not keks:
        return {}
    # The wrappings of keys without a row count too, because a backup may have the row.
    applications = func.coalesce(encryption_keys.c.application, NO_KEY)
    query = (
        select(applications, func.count())
        .join_from(key_wrappings, encryption_keys, isouter=True)
        .where(or_(*[_is_under(uri, versions) for uri, versions in keks.items()]))
        .group_by(applications)
    )
    return {str(application): int(count) for application, count in connection.execute(query)}


def _insert(connection: Connection, keks: KekVersions) -> None:
    rows = [
        {"kek_uri": uri, "kek_version": version}
        for uri, versions in keks.items()
        for version in ([EVERY_VERSION] if versions is None else versions)
    ]
    if rows:
        statement = insert_unless_there(connection, kek_fences).values(closed_at=DatabaseClock())
        connection.execute(statement, rows)


def _is_under(uri: str, versions: Collection[str] | None) -> ColumnElement[bool]:
    under = key_wrappings.c.kek_uri == uri
    return under if versions is None else and_(under, key_wrappings.c.kek_version.in_(versions))

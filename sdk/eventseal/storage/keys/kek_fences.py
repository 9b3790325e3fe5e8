"""Fences of KEKs and branch keys: once one is closed, no wrapping under it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select, text

from eventseal.errors import KeyDestroyedError
from eventseal.keys.states import KeyState
from eventseal.keys.wrapping.branches import BRANCH_PREFIX, named_branch
from eventseal.storage.database.column_types import DatabaseClock
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
"""How long a closing waits for those who store wrappings at that moment."""

NO_KEY = "(no row in encryption_keys)"
"""Stands for the application of wrappings whose key has no row."""

_CLOSED = (
    "Try again: the KEK wraps under a newer version by now. If it goes on, the KEK was replaced by "
    "`eventseal roll-epoch`: configure its successor alone."
)


def refuse_closed(connection: Connection, wrappings: Iterable[WrappedKey]) -> None:
    """
    Refuse what was just stored, if its KEK was closed meanwhile.

    Who closes a KEK keeps others from storing wrappings until it has committed, and counts what is there: so
    a wrapping is either counted, or refused here (docs/decisions/0014). What branch keys have wrapped costs
    nothing.

    Args:
        connection: In the caller's transaction, which has inserted *wrappings* in an earlier statement.
        wrappings: Under KEKs or branch keys.

    Raises:
        KeyDestroyedError: A KEK, or the version that made a wrapping, is closed. The caller rolls back.
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
                f"{wrapped.kek_uri}{version} was closed before what it has wrapped was stored",
                kek_uri=wrapped.kek_uri,
                remedy=_CLOSED,
            )


def hold_branches(connection: Connection, wrappings: Iterable[WrappedKey]) -> None:
    """
    Share the rows of the branch keys that *wrappings* name until the transaction ends.

    Who destroys a branch key locks its row first and counts what it wraps then: so a wrapping is either
    counted, or refused here (docs/decisions/0010). On SQLite the write lock does it.

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


@writes("closing KEKs")
def close_keks(connection: Connection, keks: KekVersions) -> dict[str, int]:
    """
    Close KEKs for good, unless something hangs on them; whatever application's it is.

    Args:
        connection: To the key tables, or their engine.
        keks: The versions to close by the KEK's name in wrappings; ``None``: all of its versions.

    Returns:
        By application, the wrappings that hang there: then nothing was closed; under :data:`NO_KEY` those of
        keys that have no row. Empty: all is closed.

    Raises:
        StoreUnavailableError: Somebody stores wrappings for longer than 2 seconds.
        StoreError: The database refused or failed.
    """
    if not keks:
        return {}
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
        connection.execute(text(f"LOCK TABLE {key_wrappings.name} IN SHARE ROW EXCLUSIVE MODE"))
    hanging = hanging_on(connection, keks)  # a statement after the lock sees what was stored until then
    if not hanging:
        _insert(connection, keks)
    return hanging


@reads("counting what hangs on KEKs")
def hanging_on(connection: Connection, keks: KekVersions) -> dict[str, int]:
    """
    Count the wrappings under KEKs.

    Args:
        connection: To the key tables, or their engine.
        keks: As for :func:`close_keks`.

    Returns:
        By application, of all that share the tables.
    """
    if not keks:
        return {}
    # Also those whose key has no row: a backup may have it.
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

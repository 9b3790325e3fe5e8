"""Closing KEKs and versions of KEKs: first is counted what hangs on them, whatever application's it is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, and_, func, or_, select, text

from eventseal.storage.database.column_types import DatabaseClock
from eventseal.storage.database.transactions import read, write
from eventseal.storage.keys.rows import insert_unless_there
from eventseal.storage.keys.tables import EVERY_VERSION, encryption_keys, kek_fences, key_wrappings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy.engine import Connection, Engine


if TYPE_CHECKING:
    Places = Mapping[str, Collection[str] | None]

PATIENCE = "2s"
"""How long a closing waits for those who store wrappings at that moment."""

NO_KEY = "(no row in encryption_keys)"
"""Stands for the application of wrappings whose key has no row."""


def close_keks(engine: Engine, places: Places) -> dict[str, int]:
    """
    Close KEKs for good, unless something hangs on them; whatever application's it is.

    Args:
        engine: Of the key tables.
        places: The versions to close by the KEK's name in wrappings; ``None``: all of its versions.

    Returns:
        By application, the wrappings that hang there: then nothing was closed; under :data:`NO_KEY` those of
        keys that have no row. Empty: all is closed.

    Raises:
        StoreUnavailableError: Somebody stores wrappings for longer than 2 seconds.
        StoreError: The database refused or failed.
    """

    def close(connection: Connection) -> dict[str, int]:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
            connection.execute(text(f"LOCK TABLE {key_wrappings.name} IN SHARE ROW EXCLUSIVE MODE"))
        hanging = _count(connection, places)  # a statement after the lock: it sees what was stored until then
        if not hanging:
            _insert(connection, places)
        return hanging

    return write(engine, close, doing="closing KEKs") if places else {}


def hanging_on(engine: Engine, places: Places) -> dict[str, int]:
    """
    Count the wrappings under KEKs.

    Args:
        engine: Of the key tables.
        places: As for :func:`close_keks`.

    Returns:
        By application, of all that share the tables.
    """
    return read(engine, partial(_count, places=places), doing="counting what hangs on KEKs") if places else {}


def _insert(connection: Connection, places: Places) -> None:
    rows = [
        {"kek_uri": uri, "kek_version": version}
        for uri, versions in places.items()
        for version in ([EVERY_VERSION] if versions is None else versions)
    ]
    if rows:
        statement = insert_unless_there(connection, kek_fences).values(closed_at=DatabaseClock())
        connection.execute(statement, rows)


def _count(connection: Connection, places: Places) -> dict[str, int]:
    # Also those whose key has no row: a backup may have it.
    applications = func.coalesce(encryption_keys.c.application, NO_KEY)
    query = (
        select(applications, func.count())
        .join_from(key_wrappings, encryption_keys, isouter=True)
        .where(or_(*[_is_under(uri, versions) for uri, versions in places.items()]))
        .group_by(applications)
    )
    return {str(application): int(count) for application, count in connection.execute(query)}


def _is_under(uri: str, versions: Collection[str] | None) -> ColumnElement[bool]:
    under = key_wrappings.c.kek_uri == uri
    return under if versions is None else and_(under, key_wrappings.c.kek_version.in_(versions))

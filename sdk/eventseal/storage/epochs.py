"""The roll of an application's epoch that is under way: from when it is, and which KEK versions it made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, delete, select, update

from eventseal.errors import IntegrityError, StoreError
from eventseal.storage.edited_rows import as_sql, deletion, read_rows
from eventseal.storage.key_rows import insert_unless_there
from eventseal.storage.key_tables import encryption_keys, epochs
from eventseal.storage.transactions import read, write
from eventseal.storage.types import DatabaseClock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.engine import Connection, Engine


_DOING = "beginning to roll the epoch"


class Epoch(NamedTuple):
    """
    A roll that is under way.

    Attributes:
        begun_at: By the key store's clock. Keys made since then are the roll's own.
        kek_versions: By KEK, the version that the roll has made.
    """

    begun_at: datetime
    kek_versions: Mapping[str, str]


def is_rolling(engine: Engine, application: str) -> bool:
    """
    Say whether a roll was begun and is not done.

    Raises:
        StoreError: The database refused or failed.
    """
    query = select(epochs.c.application).where(epochs.c.application == application)
    return read(engine, lambda connection: connection.execute(query).first() is not None, doing=_DOING)


def begin_epoch(engine: Engine, application: str) -> Epoch:
    """
    Begin a roll, or go on with one that was interrupted.

    One that was interrupted is begun anew if a key was shredded since: a backup taken after its beginning may
    hold that key under what the roll had made.

    Args:
        engine: Of the key tables.
        application: Whose epoch.

    Raises:
        IntegrityError: The row of the roll was edited so that it cannot be read.
        StoreError: The database refused or failed.
    """

    def begin(connection: Connection) -> Epoch:
        mine = epochs.c.application == application
        found = _read(connection, select(epochs).where(mine).with_for_update(), application)
        if found is not None and not _shredded_since(connection, application, found.begun_at):
            return found
        connection.execute(delete(epochs).where(mine))
        values = {"application": application, "begun_at": DatabaseClock(), "kek_versions": {}}
        connection.execute(insert_unless_there(connection, epochs).values(values))
        begun = _read(connection, select(epochs).where(mine), application)  # maybe another process's
        if begun is None:
            raise StoreError("the roll of the epoch that was just begun is gone")
        return begun

    return write(engine, begin, doing=_DOING)


def note_version(engine: Engine, application: str, begun_at: datetime, kek_uri: str, version: str) -> None:
    """
    Note which version of a KEK a roll has made, so that it makes no other if it goes on.

    Nothing is noted in a roll that was begun anew meanwhile: to that one the version is as old as any, and a
    backup from before its beginning may hold keys under it.

    Args:
        engine: Of the key tables.
        application: Whose epoch.
        begun_at: When the roll began that has made it.
        kek_uri: The KEK.
        version: Its version.

    Raises:
        StoreError: The database refused or failed.
    """

    def note(connection: Connection) -> None:
        mine = _is_roll(application, begun_at)
        found = _read(connection, select(epochs).where(mine).with_for_update(), application)
        if found is not None:
            made = {**found.kek_versions, kek_uri: version}
            connection.execute(update(epochs).where(mine).values(kek_versions=made))

    write(engine, note, doing="noting a KEK's new version")


def finish_epoch(engine: Engine, application: str, begun_at: datetime) -> datetime:
    """
    Forget a roll that is done; one that was begun anew meanwhile is not.

    Args:
        engine: Of the key tables.
        application: Whose epoch.
        begun_at: When the roll began.

    Returns:
        The time, by the key store's clock.

    Raises:
        StoreError: The database refused or failed.
    """

    def finish(connection: Connection) -> datetime:
        connection.execute(delete(epochs).where(_is_roll(application, begun_at)))
        return connection.execute(select(DatabaseClock())).scalar_one()

    return write(engine, finish, doing="finishing the roll of the epoch")


def is_shredded_since(engine: Engine, application: str, moment: datetime) -> bool:
    """
    Say whether a key was shredded since a moment of the key store's clock.

    Raises:
        StoreError: The database refused or failed.
    """
    return read(engine, lambda connection: _shredded_since(connection, application, moment), doing=_DOING)


def _is_roll(application: str, begun_at: datetime) -> ColumnElement[bool]:
    return and_(epochs.c.application == application, epochs.c.begun_at == begun_at)


def _read(connection: Connection, query: Select[Any], application: str) -> Epoch | None:
    rows = read_rows(connection, query)
    if not rows:
        return None
    unreadable = [*rows[0].unreadable]
    versions = rows[0].values.get("kek_versions", {})
    if type(versions) is not dict or not all(type(version) is str for version in versions.values()):
        unreadable.append("kek_versions")
    if unreadable:
        raise IntegrityError(
            f"the row of application {application!r} in epochs was edited: its {', '.join(unreadable)} "
            "cannot be read",
            remedy="Find out who changed the key tables, then delete the row, so that the roll begins anew: "
            f"{deletion(epochs, f'application = {as_sql(connection, application)}')}",
        )
    return Epoch(rows[0].values["begun_at"], versions)


def _shredded_since(connection: Connection, application: str, moment: datetime) -> bool:
    # Compared in the database: a time that was edited counts as late there, or is left out.
    shredded = select(encryption_keys.c.application).where(
        encryption_keys.c.application == application,
        encryption_keys.c.destroyed_by == "shredded",
        encryption_keys.c.destroyed_at >= moment,
    )
    return connection.execute(shredded.limit(1)).first() is not None

"""
The newest roll of an application's epoch.

The row has the time when the roll began, and the branch keys and KEK versions that it created. It is
authenticated under the store key. Otherwise an attacker who can write to the database would get a receipt for
a roll that ended nothing (docs/decisions/0014). When the roll is done, the row stays, because of its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select, update

from eventseal.errors import IntegrityError
from eventseal.storage.database.column_types import DatabaseClock
from eventseal.storage.database.layout import own_name
from eventseal.storage.database.rows import as_sql, deletion, insert_unless_there, read_rows
from eventseal.storage.database.transactions import reads, writes
from eventseal.storage.keys.tables import epochs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.engine import Connection

    from eventseal.keys.authentication.row_macs import Seals


_DOING = "beginning to roll the epoch"
_NUMBER_SIZE = 8


class Epoch(NamedTuple):
    """
    A roll of the epoch.

    Attributes:
        number: It grows by 1 when a roll begins and when it is done, so no two states of the row share one.
        begun_at: The time of the beginning, by the key store's clock.
        kek_versions: By KEK, the version that the roll has created.
        shreds: How often keys of the application had been shredded when the roll began. The revocation tree
            counts this, and no clock affects it.
        branch_keys: The ids of the branch keys that the roll has created, as text.
        finished_at: The time of the end, by the key store's clock. ``None`` while the roll is under way.
    """

    number: int
    begun_at: datetime
    kek_versions: Mapping[str, str]
    shreds: int
    branch_keys: Sequence[str] = ()
    finished_at: datetime | None = None


@reads(_DOING)
def is_rolling(connection: Connection, application: str) -> bool:
    """
    Return whether a roll has begun and is not done.

    The row is not authenticated here. :func:`begin_epoch` does that.

    Raises:
        StoreError: The database refused or failed.
    """
    mine = epochs.c.application == application, epochs.c.finished_at.is_(None)
    query = select(epochs.c.application).where(*mine)
    return connection.execute(query).first() is not None


@writes(_DOING)
def begin_epoch(connection: Connection, application: str, seals: Seals, *, shreds: int) -> Epoch:
    """
    Begin a roll, or resume one that was interrupted.

    If a key was shredded since the interrupted roll began, a new roll begins. A backup from after that
    beginning may hold the shredded key under keys that the old roll had created.

    Args:
        connection: A connection to the key tables, or their engine.
        application: The application that owns the epoch. It has a store key.
        seals: The object that computes the application's row MACs.
        shreds: How often the application's keys have been shredded: ``KeyTables.count_shreds()``.

    Raises:
        IntegrityError: The row was edited.
        StoreError: The database refused or failed.
    """
    found = _newest(connection, application, seals, lock=True)
    if found is not None and found.finished_at is None and found.shreds == shreds:
        return found
    number = 1 if found is None else found.number + 1
    begun = Epoch(number, _now(connection), {}, shreds, [])
    _store(connection, application, seals, begun)
    return _newest(connection, application, seals) or begun  # maybe of another process, which was first


@writes("storing the new version of a KEK")
def note_version(
    connection: Connection, application: str, seals: Seals, number: int, kek_uri: str, version: str
) -> None:
    """
    Store the KEK version that a roll has created.

    So a resumed roll creates no other version.

    Nothing is stored if a new roll has begun meanwhile. To that roll the version is as old as any other, and
    a backup from before its beginning may hold keys under the version.

    Args:
        connection: A connection to the key tables, or their engine.
        application: The application that owns the epoch.
        seals: The object that computes the application's row MACs.
        number: The number of the roll that has created the version.
        kek_uri: The KEK.
        version: The version of the KEK.

    Raises:
        IntegrityError: The row was edited.
        StoreError: The database refused or failed.
    """
    found = _newest(connection, application, seals, lock=True)
    if found is not None and found.number == number:
        made = {**found.kek_versions, kek_uri: version}
        _store(connection, application, seals, found._replace(kek_versions=made))


@writes("storing new branch keys")
def note_branch_keys(
    connection: Connection, application: str, seals: Seals, number: int, made: Sequence[UUID]
) -> None:
    """
    Store the branch keys that a roll has created.

    So a resumed roll creates no other keys. A time would not identify them, because an attacker who can write
    to the database can set ``created_at``. Arguments and errors are those of :func:`note_version`.
    """
    found = _newest(connection, application, seals, lock=True)
    if found is not None and found.number == number:
        _store(connection, application, seals, found._replace(branch_keys=sorted(map(str, made))))


@writes("finishing the roll of the epoch")
def finish_epoch(connection: Connection, application: str, seals: Seals, number: int) -> datetime:
    """
    Store that a roll is done.

    Nothing is stored if a new roll has begun meanwhile.

    Args:
        connection: A connection to the key tables, or their engine.
        application: The application that owns the epoch.
        seals: The object that computes the application's row MACs.
        number: The number of the roll.

    Returns:
        The time, by the key store's clock.

    Raises:
        IntegrityError: The row was edited.
        StoreError: The database refused or failed.
    """
    found, now = _newest(connection, application, seals, lock=True), _now(connection)
    if found is not None and found.number == number:
        _store(connection, application, seals, found._replace(number=number + 1, finished_at=now))
    return now


def _newest(connection: Connection, application: str, seals: Seals, *, lock: bool = False) -> Epoch | None:
    """
    Read the row and authenticate it. Only this function decides whether a row counts.

    If an earlier release wrote the row without a MAC, it counts as missing, so a new roll begins.
    """
    query = select(epochs).where(epochs.c.application == application)
    rows = read_rows(connection, query.with_for_update() if lock else query)
    if not rows:
        return None
    row, unreadable = rows[0].values, [*rows[0].unreadable]
    if not unreadable:
        if row["number"] is None and row["seal"] is None:
            return None
        found = Epoch(*[row[name] for name in Epoch._fields])
        unreadable = _unfit(found)
        if not unreadable and seals.fits_epoch(row["seal"] or b"", *_parts(found)):
            return found
    raise IntegrityError(
        f"the row of application {application!r} in {own_name(connection, epochs.name)} was edited: "
        + (f"its {', '.join(unreadable)} cannot be read" if unreadable else "it does not match its MAC"),
        remedy="Find out who changed the key tables, then delete the row, so that a new roll begins: "
        f"{deletion(connection, epochs, f'application = {as_sql(connection, application)}')}",
    )


def _unfit(epoch: Epoch) -> list[str]:
    """Return the columns with values that no roll writes."""
    versions: Any = epoch.kek_versions
    branch_keys: Any = epoch.branch_keys
    fits = {
        "number": type(epoch.number) is int and epoch.number >= 0,
        "shreds": type(epoch.shreds) is int and epoch.shreds >= 0,
        "kek_versions": type(versions) is dict and all(type(version) is str for version in versions.values()),
        "branch_keys": type(branch_keys) is list and all(type(key_id) is str for key_id in branch_keys),
    }
    return [name for name, fit in fits.items() if not fit]


def _store(connection: Connection, application: str, seals: Seals, epoch: Epoch) -> None:
    values: dict[str, Any] = {**epoch._asdict(), "seal": seals.epoch_seal(*_parts(epoch))}
    mine = update(epochs).where(epochs.c.application == application)
    if not connection.execute(mine.values(values)).rowcount:
        connection.execute(insert_unless_there(connection, epochs).values(application=application, **values))


def _parts(epoch: Epoch) -> list[bytes]:
    """Return the parts that the row MAC covers, in a fixed order."""
    begun, ended = (
        "" if moment is None else moment.isoformat(timespec="microseconds")
        for moment in (epoch.begun_at, epoch.finished_at)
    )
    many = len(epoch.branch_keys)
    numbers = [number.to_bytes(_NUMBER_SIZE) for number in (epoch.number, epoch.shreds, many)]
    branch_keys = [key_id.encode() for key_id in epoch.branch_keys]
    versions = [text.encode() for made in sorted(epoch.kek_versions.items()) for text in made]
    return [*numbers, begun.encode(), ended.encode(), *branch_keys, *versions]


def _now(connection: Connection) -> datetime:
    return connection.execute(select(DatabaseClock())).scalar_one()

"""The set-ups of erasures with a ledger, of restores, and of the check that makes up for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol.ending import Rotator
from tests.protocol.memory import Refreshes
from tests.protocol.reading import Reader
from tests.protocol.recording import RecordedReopener, RecordedShredder
from tests.protocol.reencrypting import Reencrypter
from tests.protocol.restoring import Backups, Check, Forger, Restores
from tests.protocol.state import Budget
from tests.protocol.world import Crashes, Time, World
from tests.protocol.writing import FirstUse, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.checker import Model

ONE, TWO = ((0, 0),), ((0, 0), (0, 0))
"""Places of items: in scope 0 and database 0."""


def _recorded(*, name: str, writes: int, rotations: int, sqlite: bool = False) -> World:
    return World(
        name=name,
        actors=(
            Writer("writer", *range(writes)),
            RecordedShredder("shredder"),
            RecordedReopener("reopener"),
            Rotator("rotator"),
            Crashes("process of the shredder", 1),
            Crashes("process of the reopener", 2),
        ),
        places=ONE * writes,
        retires=False,
        sqlite=sqlite,
        budget=Budget(rotations=rotations, shreds=1, reopens=1, crashes=1, timeouts=1),
    )


def recorded_shred() -> World:
    """A scope is shredded and reopened, with a ledger, while somebody appends and rotates; one is killed."""
    return _recorded(name="recorded shred", writes=1, rotations=1)


def recorded_shred_of_two_items() -> World:
    """The same with two items and rotations."""
    return _recorded(name="recorded shred of two items", writes=2, rotations=2)


def recorded_shred_on_sqlite() -> World:
    """The same where one transaction writes at a time, keys and items in one file."""
    return _recorded(name="recorded shred on SQLite", writes=2, rotations=1, sqlite=True)


def recorded_shred_in_two_databases() -> World:
    """Items in two databases, keys in a third: a fence may be held in either."""
    return World(
        name="recorded shred in two databases",
        actors=(
            Writer("writer", 0, 1),
            RecordedShredder("shredder"),
            RecordedReopener("reopener"),
            Crashes("process of the shredder", 1),
            Crashes("process of the reopener", 2),
        ),
        places=((0, 0), (0, 1)),
        databases=2,
        keys_apart=True,
        retires=False,
        budget=Budget(shreds=1, reopens=1, crashes=1, timeouts=2),
    )


def recorded_shred_with_a_process() -> World:
    """A process appends, reads and re-encrypts with its memory meanwhile."""
    return World(
        name="recorded shred with a process",
        actors=(
            Writer("writer", 0, process=0),
            Reader("reader", 0, process=0),
            Refreshes(0, 0, 1),
            Reencrypter("job"),
            RecordedShredder("shredder"),
            RecordedReopener("reopener"),
            Rotator("rotator"),
            Crashes("process of the shredder", 4),
            Time(),
        ),
        places=ONE,
        processes=1,
        retires=False,
        budget=Budget(rotations=1, shreds=1, reopens=1, crashes=1),
    )


def _meeting(*, name: str, shreds: int, reopens: int, crashes: int = 0) -> World:
    return World(
        name=name,
        actors=(
            FirstUse("writer"),
            RecordedShredder("shredder"),
            RecordedShredder("other shredder"),
            RecordedReopener("reopener"),
            Crashes("process of the shredder", 1),
            Crashes("process of the reopener", 3),
        ),
        places=(),
        retires=False,
        reopened=True,
        budget=Budget(shreds=shreds, reopens=reopens, crashes=crashes),
    )


def meeting_shreds() -> World:
    """Two shreds and a reopening of one scope meet, after it was shredded and reopened before."""
    return _meeting(name="meeting shreds", shreds=2, reopens=1)


def many_meeting_shreds() -> World:
    """The same with one reopening more, and a crash."""
    return _meeting(name="many meeting shreds", shreds=2, reopens=2, crashes=1)


def meeting_reopenings() -> World:
    """Two reopenings meet a shred."""
    return World(
        name="meeting reopenings",
        actors=(
            FirstUse("writer"),
            RecordedShredder("shredder"),
            RecordedReopener("reopener"),
            RecordedReopener("other reopener"),
            Crashes("process of the reopener", 2),
        ),
        places=(),
        retires=False,
        reopened=True,
        budget=Budget(shreds=2, reopens=2, crashes=1),
    )


def _restored(
    *,
    name: str,
    rotations: int = 0,
    reopens: int = 0,
    crashes: int = 0,
    forgeries: int = 0,
    restores: int = 1,
    shreds: int = 1,
    items_too: bool = False,
    is_early: bool = False,
) -> World:
    return World(
        name=name,
        actors=(
            Writer("writer", 0, is_early=is_early),
            RecordedShredder("shredder", is_early=True),
            RecordedReopener("reopener"),
            Check("check"),
            Rotator("rotator"),
            Backups(),
            Restores(),
            Forger(),
            Crashes("process of the shredder", 1),
            Crashes("process of the reopener", 2),
            Crashes("process of the check", 3),
        ),
        places=ONE,
        retires=False,
        items_too=items_too,
        budget=Budget(
            rotations=rotations,
            shreds=shreds,
            reopens=reopens,
            crashes=crashes,
            forgeries=forgeries,
            backups=1,
            restores=restores,
        ),
    )


def restore_of_keys() -> World:
    """The key tables are restored at any moment of a shred; the check, too, is killed."""
    return _restored(name="restore of keys", crashes=1)


def restore_and_rotation() -> World:
    """A rotation has made a key that the backup does not have, or that the intent does."""
    return _restored(name="restore and rotation", rotations=1)


def restore_and_reopening() -> World:
    """What was reopened stays open, and what was closed is closed again."""
    return _restored(name="restore and reopening", reopens=1, is_early=True)


def restore_with_items() -> World:
    """The items come back with their keys."""
    return _restored(name="restore with items", items_too=True)


def restore_and_forger() -> World:
    """Somebody without the KMS writes into the ledger between the restore and its check."""
    return _restored(name="restore and forger", forgeries=1)


def restore_and_all() -> World:
    """Rotation, reopening and a crash, and a writer who does not wait for the check."""
    return _restored(name="restore and all", rotations=1, reopens=1, crashes=1, is_early=True)


def restore_with_items_and_all() -> World:
    """The same with the items."""
    return _restored(name="restore with items and all", rotations=1, reopens=1, crashes=1, items_too=True)


def two_restores() -> World:
    """One backup is restored twice, and the scope shredded twice."""
    return _restored(name="two restores", restores=2, shreds=2, reopens=1)


def restore_of_two_scopes() -> World:
    """The check takes one scope after the other, and may be killed between them."""
    return World(
        name="restore of two scopes",
        actors=(
            FirstUse("writer a", 0),
            FirstUse("writer b", 1),
            RecordedShredder("shredder a", 0),
            RecordedShredder("shredder b", 1),
            RecordedReopener("reopener b", 1),
            Check("check"),
            Backups(),
            Restores(),
            Crashes("process of shredder a", 2),
            Crashes("process of the check", 5),
        ),
        places=(),
        scopes=2,
        retires=False,
        budget=Budget(shreds=2, reopens=1, crashes=1, backups=1, restores=1),
    )


SHORT: tuple[Callable[[], Model], ...] = (
    recorded_shred,
    meeting_shreds,
    restore_of_keys,
    restore_and_rotation,
    restore_and_reopening,
    restore_with_items,
    restore_and_forger,
)
"""For every run of the tests."""

LONG: tuple[Callable[[], Model], ...] = (
    recorded_shred_of_two_items,
    recorded_shred_on_sqlite,
    recorded_shred_in_two_databases,
    recorded_shred_with_a_process,
    many_meeting_shreds,
    meeting_reopenings,
    restore_and_all,
    restore_with_items_and_all,
    restore_of_two_scopes,
    two_restores,
)
"""Millions of states."""

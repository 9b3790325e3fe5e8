"""Protocols with one mistake each, and what the explorer has to find in them: they try it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from tests.protocol.attacked import AttackMistake
from tests.protocol.attacks import closed_scope, counted, old_rows, reopened_scope, shredded_again, upgraded
from tests.protocol.configurations import ONE, branch_keys, opposite_rewraps, rewraps
from tests.protocol.ending import Marker, Reopener, Retirer, Rotator, Shredder
from tests.protocol.epochs import EpochMistake
from tests.protocol.erasures import (
    meeting_shreds,
    recorded_shred,
    restore_and_forger,
    restore_and_rotation,
    restore_of_keys,
)
from tests.protocol.memory import Refreshes
from tests.protocol.reading import Reader
from tests.protocol.reencrypting import Reencrypter
from tests.protocol.rolls import edited_dates, meeting_rolls, roll, two_backups
from tests.protocol.state import Budget
from tests.protocol.world import Crashes, Mistake, Time, World
from tests.protocol.wrappings import WrappingMistake
from tests.protocol.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.attacked import AttackedWorld
    from tests.protocol.epochs import EpochWorld
    from tests.protocol.wrappings import WrappingWorld

    Setup = World | WrappingWorld | EpochWorld | AttackedWorld


class Seeded(NamedTuple):
    """A set-up for a mistake, right but for that, and the invariant that the mistake breaks."""

    mistake: Mistake | WrappingMistake | EpochMistake | AttackMistake
    setup: Callable[[], Setup]
    breaks: str

    def mistaken(self) -> Setup:
        """Make the set-up, with the mistake."""
        return replace(self.setup(), mistake=self.mistake)  # type: ignore[arg-type]


def _rotation() -> World:
    return World(
        name="rotation",
        actors=(Writer("writer", 0, 0), Rotator("rotator"), Retirer("retirer"), Reencrypter("job")),
        places=ONE,
        budget=Budget(rotations=2),
    )


def _one_append() -> World:
    return World(
        name="one append",
        actors=(Writer("writer", 0), Rotator("rotator"), Retirer("retirer"), Reencrypter("job")),
        places=ONE,
        budget=Budget(rotations=1),
    )


def _first_use() -> World:
    return World(
        name="first use",
        actors=(Writer("writer", 0, process=0), Refreshes(0, 0), Crashes("process", 0, process=0)),
        places=ONE,
        processes=1,
        retires=False,
        budget=Budget(crashes=1),
    )


def _read() -> World:
    return World(
        name="read",
        actors=(
            Writer("writer", 0),
            Reader("reader", 0, process=0),
            Refreshes(0, 1),
            Shredder("shredder"),
            Time(),
        ),
        places=ONE,
        processes=1,
        retires=False,
        budget=Budget(shreds=1),
    )


def _erasure() -> World:
    return World(
        name="erasure",
        actors=(
            Writer("writer", 0, 0),
            Shredder("shredder"),
            Reopener("reopener"),
            Rotator("rotator"),
            Reencrypter("job"),
        ),
        places=ONE,
        retires=False,
        budget=Budget(rotations=1, shreds=2, reopens=1),
    )


def _emergency() -> World:
    return World(
        name="emergency",
        actors=(
            Writer("writer", 0),
            Rotator("rotator"),
            Marker("marker"),
            Reencrypter("job"),
            Retirer("retirer"),
        ),
        places=ONE,
        budget=Budget(compromises=1),
    )


RETIRED = "item 0 is lost: its key was retired"
PLAINTEXT = "a read that began after the refresh bound got shredded plaintext"
UNTOLD = "scope 0 is shredded, and the ledger has it as open"
TOLD_AS_CLOSED = "the ledger has scope 0 as closed, and key "
OPENS_AGAIN = "key 0 is destroyed, and opens again"
MADE_IN_CLOSED = "was made in a scope that is closed"
READS_AS_ERASED = "item 1 was sealed after a reopening, and reads as erased"
STUCK = "the work cannot be completed any more"
BEGUN = "the restore was checked, and a shred of scope 0 is begun"

SEEDED = (
    Seeded(Mistake.NO_FENCE_LOCK, _one_append, RETIRED),
    Seeded(Mistake.FOR_KEY_SHARE, _one_append, RETIRED),
    Seeded(Mistake.COUNT_BEFORE_LOCK, _one_append, RETIRED),
    Seeded(Mistake.WRONG_ISOLATION, _one_append, RETIRED),
    Seeded(Mistake.DESTROY_BEFORE_FENCES, _one_append, RETIRED),
    Seeded(Mistake.NO_TARGET_FENCE, _rotation, RETIRED),
    Seeded(Mistake.SWAP_ON_KEY_ID, _rotation, "item 0 was overwritten by an older content"),
    Seeded(
        Mistake.CACHED_BEFORE_COMMIT,
        _first_use,
        "item 0 is under a key that nobody has: its row was never committed",
    ),
    Seeded(Mistake.LOAD_NOT_RECHECKED, _read, PLAINTEXT),
    Seeded(Mistake.KEPT_DURING_REFRESH, _read, PLAINTEXT),
    Seeded(Mistake.TOMBSTONE_WITHOUT_SLOT, _erasure, "key 1 lives in a scope that was closed"),
    Seeded(Mistake.SHRED_WITHOUT_WHOLE_SCOPE, _erasure, "lives in a scope that was closed"),
    Seeded(Mistake.REPLACE_WITHOUT_VERSION, _erasure, "lives in a scope that was closed"),
    Seeded(Mistake.SOURCE_READ_FIRST, _erasure, "item 0 was erased and opens again"),
    Seeded(Mistake.REENCRYPTION_MAKES_KEYS, _erasure, "a re-encryption made a key"),
    Seeded(
        Mistake.REOPEN_BEFORE_FENCES,
        _erasure,
        "item 0 was committed under a shredded key, and its scope is open again",
    ),
    Seeded(
        Mistake.MARKS_BEFORE_FENCE,
        _emergency,
        "item 0 is honest, and was committed behind its compromised key's mark",
    ),
    Seeded(Mistake.SHRED_BEFORE_INTENT, recorded_shred, UNTOLD),
    Seeded(Mistake.DONE_BEFORE_SHRED, recorded_shred, TOLD_AS_CLOSED),
    Seeded(Mistake.INTENT_WITHOUT_NEW_KEY, recorded_shred, "key 1 is destroyed, and no intent names it"),
    Seeded(Mistake.INTENT_USED_AGAIN, meeting_shreds, UNTOLD),
    Seeded(Mistake.DONE_CLOSES_LATER, meeting_shreds, UNTOLD),
    Seeded(Mistake.CLOSED_SCOPE_LEFT_ALONE, meeting_shreds, UNTOLD),
    Seeded(Mistake.HOLDER_MOVED_ALONE, meeting_shreds, UNTOLD),
    Seeded(Mistake.REOPEN_NOT_TOLD, recorded_shred, TOLD_AS_CLOSED),
    Seeded(Mistake.REOPEN_TOLD_LATE, recorded_shred, TOLD_AS_CLOSED),
    Seeded(Mistake.REOPEN_TOLD_ONCE, meeting_shreds, TOLD_AS_CLOSED),
    Seeded(Mistake.REOPEN_BESIDE_INTENT, meeting_shreds, UNTOLD),
    Seeded(Mistake.CHECK_TAKES_FORGED, restore_and_forger, "is destroyed, and no verified entry names it"),
    Seeded(Mistake.CHECK_BY_SCOPE, restore_and_rotation, "is destroyed, and no verified entry names it"),
    Seeded(Mistake.CHECK_WITHOUT_TOMBSTONES, restore_and_rotation, BEGUN),
    Seeded(Mistake.CHECK_LEAVES_INTENTS, restore_of_keys, BEGUN),
    Seeded(
        Mistake.CHECK_LEAVES_SLOTS,
        restore_of_keys,
        "scope 0 was closed, and the restore's check leaves it open",
    ),
    Seeded(Mistake.CHECK_OF_DONE_ALONE, restore_of_keys, BEGUN),
    Seeded(WrappingMistake.DROPPED_BEFORE_VERIFIED, rewraps, "key 0 lost its last verified wrapping"),
    Seeded(WrappingMistake.DROPPED_WITHOUT_LOOKING, opposite_rewraps, "lives, and no wrapping opens it"),
    Seeded(WrappingMistake.BRANCH_NOT_HELD, branch_keys, "lives, and no wrapping opens it"),
    Seeded(WrappingMistake.GUARD_TAKES_UNVERIFIED, rewraps, "key 0 lives, and no wrapping opens it"),
    Seeded(WrappingMistake.DESTROYED_TAKES_WRAPPINGS, rewraps, "key 0 was destroyed and has a wrapping"),
    Seeded(EpochMistake.OLD_BRANCHES_FIRST, roll, "key 1 lives, and no wrapping opens it"),
    Seeded(EpochMistake.OLD_BRANCH_NOT_HELD, roll, "key 3 lives, and no wrapping opens it"),
    Seeded(EpochMistake.OLD_BRANCHES_LIVE, roll, "is in a useless backup, and opens from it"),
    Seeded(EpochMistake.KEK_BEFORE_BRANCHES, two_backups, "is in a useless backup, and opens from it"),
    Seeded(EpochMistake.VERSION_OF_BEFORE, roll, "is in a useless backup, and opens from it"),
    Seeded(EpochMistake.ENDED_BEFORE_GUARD, roll, "key 3 lives, and no wrapping opens it"),
    Seeded(EpochMistake.ENDED_UNCLOSED, roll, "key 3 lives, and no wrapping opens it"),
    Seeded(EpochMistake.LEDGER_LEFT_BEHIND, roll, "nobody can read the ledger any more"),
    Seeded(EpochMistake.NOT_BEGUN_ANEW, meeting_rolls, "key 0 was shredded, and opens from it"),
    Seeded(EpochMistake.NOTED_IN_ANOTHER_ROLL, meeting_rolls, "key 0 was shredded, and opens from it"),
    Seeded(EpochMistake.BORN_BY_COLUMN, edited_dates, "is in a useless backup, and opens from it"),
    Seeded(AttackMistake.ROWS_BELIEVED, old_rows, OPENS_AGAIN),
    Seeded(AttackMistake.RETIRED_NOT_LISTED, old_rows, OPENS_AGAIN),
    Seeded(AttackMistake.REFRESH_BY_ROWS, old_rows, OPENS_AGAIN),
    Seeded(AttackMistake.EARLIER_MARK_TAKEN, old_rows, OPENS_AGAIN),
    Seeded(AttackMistake.LEAVES_BELIEVED, upgraded, OPENS_AGAIN),
    Seeded(AttackMistake.OLD_FORMAT_TAKEN, upgraded, OPENS_AGAIN),
    Seeded(AttackMistake.OPEN_BY_SLOT, closed_scope, MADE_IN_CLOSED),
    Seeded(AttackMistake.LOOKED_AT_ONCE, closed_scope, MADE_IN_CLOSED),
    Seeded(AttackMistake.SLOT_LEFT, closed_scope, MADE_IN_CLOSED),
    Seeded(AttackMistake.SHRED_ONCE, closed_scope, STUCK),
    Seeded(AttackMistake.STOPPED_BY_EDITS, shredded_again, STUCK),
    Seeded(AttackMistake.LISTED_LATE, reopened_scope, READS_AS_ERASED),
    Seeded(AttackMistake.ERASED_UNLISTED, reopened_scope, READS_AS_ERASED),
    Seeded(AttackMistake.COUNT_BY_COLUMN, counted, RETIRED),
    Seeded(AttackMistake.OWN_TABLES_ALONE, counted, RETIRED),
    Seeded(AttackMistake.REGISTRY_BELIEVED, counted, RETIRED),
)

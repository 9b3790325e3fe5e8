"""Two clients at work at once: one stands still at each of its calls in turn, while the other acts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lifecycle.attacker import play
from tests.lifecycle.attacks import (
    AFTER_ALL,
    AHEAD,
    LONG_AGO,
    BringBack,
    DateKey,
    FreeSlots,
    HideTable,
    JunkOverItem,
    MisleadColumn,
)
from tests.lifecycle.audit import Place
from tests.lifecycle.client import EVENTS, SNAPSHOTS, Noted, Terms, stream_of
from tests.lifecycle.erasing import Reopen, RollBesideDatedKeys, RollEpoch, RollOverEditedRow, Shred
from tests.lifecycle.maintenance import Reencrypt, Replace, Retire, RotateKeys, Verify
from tests.lifecycle.operations import Operation, Prepare, Refresh, Rotate
from tests.lifecycle.playing import TENANT, Schedule, an_append, append, does, in_turn
from tests.lifecycle.reading import ReadOne, Replay
from tests.lifecycle.traffic import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lifecycle.attacker import Scene
    from tests.lifecycle.world import World

A, B, C = 0, 1, 2


def replace_snapshot(slot: int) -> Callable[[World], object]:
    def act(world: World) -> object:
        place = max(place for place in world.model.items if place.table == SNAPSHOTS)
        event = Noted(place.sequence_id, place.position, TENANT, world.text())
        return world.do(slot, Replace({place: event}))

    return act


def everybody_reads(world: World) -> None:
    for slot in world.free():
        for table in (EVENTS, SNAPSHOTS):
            world.do(slot, Replay(TENANT, table))


def _advance(seconds: float) -> Callable[[World], object]:
    return lambda world: world.advance(seconds)


def _restores(number: int) -> Callable[[World], object]:
    return lambda world: world.backups.restore(world.backups[number], C)


def _back_up(world: World) -> None:
    world.backups.take()


def _restored(world: World) -> Operation:
    """Put the first backup back; who looks at it then is interrupted, and looks at it again."""
    return world.backups.put_back(world.backups[0])


def _check_again(world: World) -> None:
    world.backups.restore(world.backups[0], C)


def _attacks(*attacks: Callable[[Scene], None]) -> Callable[[World], object]:
    """Attack before a client that has seen what went before, and before one that has seen nothing."""

    def act(world: World) -> None:
        for number, attack in enumerate(attacks):
            play(world, (A, C)[number % 2], attack)

    return act


_ROLLS = Terms(versions=True, branches=2)

# A has the first key in memory, and does not know that B has replaced it.
_old_key_in_memory = in_turn(append(A), does(B, lambda: Rotate(TENANT)))
_old_key_empty = in_turn(_old_key_in_memory, does(B, Reencrypt))

SCHEDULES: dict[str, Schedule] = {
    "a stale append against a retirement": Schedule(
        _old_key_empty, A, an_append(), beside=does(C, Retire), after=everybody_reads
    ),
    "a retirement against a stale append": Schedule(
        _old_key_empty, C, lambda _: Retire(), beside=append(A), after=everybody_reads
    ),
    "a stale append against a shredding": Schedule(
        _old_key_in_memory, A, an_append(), beside=does(C, lambda: Shred(TENANT)), after=everybody_reads
    ),
    "a shredding against a stale append": Schedule(
        _old_key_in_memory, C, lambda _: Shred(TENANT), beside=append(A), after=everybody_reads
    ),
    "a rotation against a shredding": Schedule(
        append(A),
        B,
        lambda _: Rotate(TENANT),
        beside=does(C, lambda: Shred(TENANT)),
        after=in_turn(everybody_reads, append(B)),
    ),
    "a first use against a first use": Schedule(
        append(B, "application"), A, an_append(), beside=append(B), after=in_turn(append(C), everybody_reads)
    ),
    "a first use against a shredding": Schedule(
        in_turn(append(B), does(B, lambda: Shred(TENANT))),
        A,
        an_append(),
        beside=does(C, lambda: Shred(TENANT)),
        after=everybody_reads,
    ),
    "a re-encryption against a snapshot that is replaced": Schedule(
        in_turn(append(A, table=SNAPSHOTS), does(A, lambda: Rotate(TENANT)), does(A, Refresh)),
        B,
        lambda _: Reencrypt(),
        beside=replace_snapshot(A),
        after=everybody_reads,
    ),
    "a re-encryption against a snapshot that a stale client replaces": Schedule(
        in_turn(append(A, table=SNAPSHOTS), does(B, lambda: Rotate(TENANT))),
        B,
        lambda _: Reencrypt(),
        beside=replace_snapshot(A),
        after=everybody_reads,
    ),
    "a re-encryption against the retirement of its target": Schedule(
        _old_key_in_memory,
        B,
        lambda _: Reencrypt(),
        beside=in_turn(does(C, lambda: Rotate(TENANT)), does(C, Retire)),
        after=everybody_reads,
    ),
    "a re-encryption against a shredding": Schedule(
        _old_key_in_memory,
        B,
        lambda _: Reencrypt(),
        beside=does(C, lambda: Shred(TENANT)),
        after=everybody_reads,
    ),
    "a read against a re-encryption and a retirement": Schedule(
        _old_key_in_memory,
        C,
        lambda _: Replay(TENANT),
        beside=in_turn(does(B, Reencrypt), does(B, Retire)),
        after=everybody_reads,
    ),
    "a verification against a re-encryption and a retirement": Schedule(
        _old_key_in_memory,
        C,
        lambda _: Verify(),
        beside=in_turn(does(B, Reencrypt), does(B, Retire)),
    ),
    "one item read against a re-encryption and a retirement": Schedule(
        _old_key_in_memory,
        C,
        lambda _: ReadOne(Place(EVENTS, stream_of(TENANT), 0)),
        beside=in_turn(does(B, Reencrypt), does(B, Retire)),
        after=everybody_reads,
    ),
    "a re-encryption against a re-encryption and a retirement": Schedule(
        _old_key_in_memory,
        C,
        lambda world: Reencrypt(keys=frozenset(world.model.closed_keys())),
        beside=in_turn(does(B, Reencrypt), does(B, Retire)),
        after=everybody_reads,
    ),
    "a compromised key against a stale append": Schedule(
        append(A),
        B,
        lambda _: RotateKeys(compromised=True),
        beside=append(A),
        after=in_turn(does(C, Reencrypt), everybody_reads),
    ),
    "a load against a shredding that its process has seen": Schedule(
        append(B),
        A,
        lambda _: Replay(TENANT),
        beside=in_turn(does(C, lambda: Shred(TENANT)), lambda world: world.refresh_beside(A)),
        after=everybody_reads,
    ),
    "a slow refresh against a rotation": Schedule(
        in_turn(append(A), does(A, Refresh)),
        A,
        lambda _: Refresh(),
        beside=in_turn(does(B, lambda: Rotate(TENANT)), _advance(50)),
        after=in_turn(_advance(55), append(A)),
    ),
    "a slow refresh against a shredding": Schedule(
        in_turn(append(A), does(A, Refresh)),
        A,
        lambda _: Refresh(),
        beside=in_turn(does(B, lambda: Shred(TENANT)), _advance(50)),
        after=in_turn(_advance(55), everybody_reads),
    ),
    "a first use that fails once": Schedule(
        append(B, "application"),
        A,
        an_append(),
        after=in_turn(append(A), everybody_reads),
        fault=Fault(0, "fail", database="full"),
    ),
    "an append whose answers are lost": Schedule(
        append(A),
        A,
        an_append(),
        after=in_turn(append(A), everybody_reads),
        fault=Fault(0, "fail", database="lost"),
    ),
    "a rotation whose answers are lost": Schedule(
        append(A),
        A,
        lambda _: Rotate(TENANT),
        after=in_turn(does(A, lambda: Rotate(TENANT)), append(A), everybody_reads),
        fault=Fault(0, "fail", database="lost"),
    ),
    "a re-encryption whose process ends": Schedule(
        _old_key_in_memory,
        B,
        lambda _: Reencrypt(batch=1),
        after=in_turn(does(B, Reencrypt), does(B, Retire), everybody_reads),
        fault=Fault(0, "crash"),
    ),
    "a retirement whose process ends": Schedule(
        _old_key_empty,
        B,
        lambda _: Retire(),
        after=in_turn(append(A), does(B, Retire), everybody_reads),
        fault=Fault(0, "crash"),
    ),
    "a shredding whose process ends": Schedule(
        _old_key_in_memory,
        B,
        lambda _: Shred(TENANT),
        after=in_turn(append(A), does(B, lambda: Shred(TENANT)), everybody_reads),
        fault=Fault(0, "crash"),
    ),
    "keys that are prepared by a process that ends": Schedule(
        append(B, "application"),
        A,
        lambda _: Prepare((TENANT,)),
        after=in_turn(append(A), append(B), everybody_reads),
        fault=Fault(0, "crash"),
    ),
    "a shredding against a rotation": Schedule(
        append(A),
        C,
        lambda _: Shred(TENANT),
        beside=does(B, lambda: Rotate(TENANT)),
        after=everybody_reads,
    ),
    "a reopening against a shredding": Schedule(
        in_turn(append(A), does(A, lambda: Shred(TENANT))),
        B,
        lambda _: Reopen(TENANT),
        beside=does(C, lambda: Shred(TENANT)),
        after=in_turn(_back_up, _restores(0), everybody_reads),
    ),
    "a reopening whose process ends": Schedule(
        in_turn(append(A), does(B, lambda: Shred(TENANT)), _back_up),
        B,
        lambda _: Reopen(TENANT),
        after=in_turn(append(B), _back_up, _restores(1), everybody_reads, _restores(0), append(A)),
        fault=Fault(0, "crash"),
    ),
    "a backup that is restored after a shredding whose process ended": Schedule(
        in_turn(append(A), append(A, "application"), _back_up, append(A)),
        B,
        lambda _: Shred(TENANT),
        after=in_turn(_restores(0), everybody_reads, append(A)),
        fault=Fault(0, "crash"),
    ),
    "the look at a restored backup, whose process ends": Schedule(
        in_turn(_old_key_in_memory, _back_up, does(B, lambda: Shred(TENANT))),
        C,
        _restored,
        after=in_turn(_check_again, everybody_reads, append(A)),
        fault=Fault(0, "crash"),
    ),
    "a roll of the epoch whose process ends": Schedule(
        in_turn(append(A), append(B, "application"), _back_up, does(B, lambda: Shred(TENANT))),
        B,
        lambda _: RollEpoch(),
        after=in_turn(append(A, "application"), does(C, RollEpoch), everybody_reads),
        fault=Fault(0, "crash"),
        terms=_ROLLS,
    ),
    "a roll of the epoch against a first use and a shredding": Schedule(
        in_turn(append(A), _back_up),
        B,
        lambda _: RollEpoch(),
        beside=in_turn(append(A, "application"), does(C, lambda: Shred(TENANT))),
        after=in_turn(does(C, RollEpoch), everybody_reads),
        terms=_ROLLS,
    ),
    "a first use against a roll of the epoch": Schedule(
        in_turn(append(A, "application"), _back_up),
        A,
        an_append(),
        beside=does(B, RollEpoch),
        after=everybody_reads,
        terms=_ROLLS,
    ),
    "a read against a roll of the epoch": Schedule(
        in_turn(append(A), _back_up),
        B,
        lambda _: Replay(TENANT),
        beside=does(C, RollEpoch),
        after=everybody_reads,
        terms=_ROLLS,
    ),
    "old rows of a retired key": Schedule(
        _old_key_empty,
        B,
        lambda _: Retire(),
        after=_attacks(BringBack(TENANT, "retired"), BringBack(TENANT, "shredded")),
        fault=Fault(0, "crash"),
    ),
    "old nodes after a shredding": Schedule(
        in_turn(_old_key_empty, does(B, Retire), does(B, lambda: Rotate(TENANT))),
        B,
        lambda _: Shred(TENANT),
        after=_attacks(
            BringBack(TENANT, "compromised", nodes="older", depth=1),
            BringBack(TENANT, "retired", rows=False, nodes="deleted"),
        ),
        fault=Fault(0, "crash"),
    ),
    "the slots of a closed scope": Schedule(
        append(A), B, lambda _: Shred(TENANT), after=_attacks(FreeSlots(TENANT)), fault=Fault(0, "crash")
    ),
    "the registry after a re-encryption": Schedule(
        _old_key_in_memory,
        B,
        lambda _: Reencrypt(batch=1),
        after=_attacks(HideTable(TENANT, EVENTS, delete=False), HideTable(TENANT, EVENTS, delete=True)),
        fault=Fault(0, "crash"),
    ),
    "the column of key ids after a re-encryption": Schedule(
        _old_key_in_memory,
        B,
        lambda _: Reencrypt(batch=1),
        after=_attacks(MisleadColumn(TENANT, null=True), MisleadColumn(TENANT, null=False)),
        fault=Fault(0, "crash"),
    ),
    "an item of a reopened scope": Schedule(
        in_turn(append(A), does(B, lambda: Shred(TENANT))),
        B,
        lambda _: Reopen(TENANT),
        after=_attacks(JunkOverItem(TENANT)),
        fault=Fault(0, "crash"),
    ),
    "the time of a rotated key": Schedule(
        append(A),
        B,
        lambda _: Rotate(TENANT),
        after=_attacks(DateKey(0, LONG_AGO), DateKey(1, AHEAD), DateKey(0, AFTER_ALL)),
        fault=Fault(0, "crash"),
    ),
    "the times of branch keys": Schedule(
        in_turn(append(A), _back_up),
        B,
        lambda _: RollEpoch(),
        after=in_turn(append(A), _back_up, does(C, RollBesideDatedKeys), everybody_reads),
        fault=Fault(0, "crash"),
        terms=_ROLLS,
    ),
    "the row of a roll": Schedule(
        append(A),
        B,
        lambda _: RollEpoch(),
        after=in_turn(
            does(B, RollEpoch),
            _back_up,
            does(C, lambda: RollOverEditedRow(forged=True)),
            does(C, lambda: RollOverEditedRow(number=1, forged=False)),
        ),
        fault=Fault(0, "crash"),
        terms=Terms(versions=True),
    ),
}

"""Who rolls the epoch, and who makes, shreds and backs up keys meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.epochs import (
    BRANCH,
    KEK,
    Backup,
    EpochMistake,
    Hand,
    Home,
    Roll,
    Row,
    lives,
    opens_now,
)
from tests.protocol.state import ACTIVE, DEACTIVATED, IDLE, NONE, RETIRED, SHREDDED, bit, put

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.protocol.epochs import Epochs, EpochWorld

    Moves = Iterator[tuple[Label, Epochs]]


class _Actor:
    def __init__(self, name: str) -> None:
        self.name = name
        self.index = NONE

    def _to(self, state: Epochs, step: str, hand: Hand, note: str = "") -> tuple[Label, Epochs]:
        return Label(self.name, step, note), state._replace(hands=put(state.hands, self.index, hand))


class Roller(_Actor):
    """
    Rolls the epoch; whatever it left when it was killed, another run goes on with.

    Args:
        name: For the trace.
        joins: Only takes up what another has begun.
    """

    def __init__(self, name: str, *, joins: bool = False) -> None:
        super().__init__(name)
        self._joins = joins

    def moves(self, world: EpochWorld, state: Epochs) -> Moves:
        """Replace branch keys, make a version, move to it, close and end the others."""
        hand = state.hands[self.index]
        if hand.at == IDLE:
            if state.roll or (state.budget.rolls and not self._joins):
                yield self._begun(world, state)
            return
        if state.budget.crashes:
            budget = state.budget._replace(crashes=state.budget.crashes - 1)
            hands = put(state.hands, self.index, Hand())
            yield Label(self.name, steps.CRASH, fault=True), state._replace(budget=budget, hands=hands)
        if hand.at == "retiring":
            yield from self._retired(world, state, hand)
            return
        step: dict[str, Callable[[EpochWorld, Epochs, Hand], tuple[Label, Epochs]]] = {
            "begun": self._holder_read,
            "replacing": self._replaced,
            "replaced": self._old_read,
            "below branches": self._looked_below_branches,
            "below KEKs": self._looked_below_keks,
            "page read": self._wrapped,
            "wrapped": self._put,
            "put": self._dropped,
            "to make a version": self._version_made,
            "version made": self._noted,
            "closing": self._closed,
            "to move the ledger": self._ledger_moved,
            "ending": self._ended,
            "to finish": self._finished,
        }
        yield step[hand.at](world, state, hand)

    def _begun(self, world: EpochWorld, state: Epochs) -> tuple[Label, Epochs]:
        goes_on = not state.shredded_since or world.mistake is EpochMistake.NOT_BEGUN_ANEW
        if state.roll is not None and goes_on:
            after, note = state, "goes on"
        else:
            left = state.budget.rolls - (state.roll is None)
            after = state._replace(
                roll=Roll(state.begun + 1),
                begun=state.begun + 1,
                shredded_since=False,
                budget=state.budget._replace(rolls=left),
            )
            note = f"roll {after.begun}"
        hand = Hand("begun", after.roll, gone=state.shredded)
        return self._to(after, steps.BEGIN_EPOCH, hand, note)

    # --- branch keys ---

    def _holder_read(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        assert hand.roll is not None
        holder = _active_branch(state)
        if holder == NONE:
            return self._to(state, steps.RENEW_BRANCHES, hand._replace(at="to make a version"), "none")
        row = state.rows[holder]
        born = row.dated if world.mistake is EpochMistake.BORN_BY_COLUMN else row.born
        if born >= hand.roll.number:
            return self._to(state, steps.RENEW_BRANCHES, hand._replace(at="replaced"), "has a new one")
        wrapped = hand._replace(at="replacing", key=holder, target=Home(KEK, state.newest))
        return self._to(state, steps.RENEW_BRANCHES, wrapped, f"key {holder}")

    def _replaced(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        assert hand.target is not None
        moved = hand._replace(at="replaced", key=NONE, target=None)
        if state.rows[hand.key].state != ACTIVE:
            return self._to(state, steps.REPLACE_ACTIVE, moved, "another was first")
        if hand.target.number < state.closed:
            begun = hand._replace(at="begun", key=NONE, target=None)
            return self._to(state, steps.REPLACE_ACTIVE, begun, "the version was closed: once more")
        after = _with_new_branch(state, hand.key, hand.target)
        return self._to(after, steps.REPLACE_ACTIVE, moved, f"key {hand.key}")

    def _old_read(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        old = tuple(n for n, row in enumerate(state.rows) if row.is_branch and row.state == DEACTIVATED)
        read = hand._replace(at="below branches", key=0, old=old, successor=_active_branch(state))
        if world.mistake is EpochMistake.OLD_BRANCHES_FIRST:
            read = read._replace(at="retiring")
        elif world.mistake is EpochMistake.KEK_BEFORE_BRANCHES and not hand.version:
            read = read._replace(at="to make a version", key=NONE)
        return self._to(state, steps.OF_SCOPE, read, f"keys {old}")

    def _retired(self, world: EpochWorld, state: Epochs, hand: Hand) -> Moves:
        mistake = world.mistake
        if mistake is not EpochMistake.OLD_BRANCH_NOT_HELD and any(
            other.at == "held" and other.target is not None and other.target.number in hand.old
            for other in state.hands
        ):
            return  # waits for who shares a branch key's row
        users = any(
            home.kind == BRANCH and home.number in hand.old for row in state.rows for home in row.homes
        )
        if users and mistake is not EpochMistake.OLD_BRANCHES_FIRST:
            again = hand._replace(at="below branches", key=0)
            yield self._to(state, steps.RETIRE, again, "still needed: once more")
            return
        rows = state.rows
        for number in hand.old if mistake is not EpochMistake.OLD_BRANCHES_LIVE else ():
            rows = put(rows, number, rows[number]._replace(state=RETIRED, homes=()))
        at = "closing" if hand.version else "to make a version"
        moved = hand._replace(at=at, key=NONE, old=(), successor=NONE)
        yield self._to(state._replace(rows=rows), steps.RETIRE, moved, f"keys {hand.old}")

    # --- the KEK ---

    def _version_made(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        assert hand.roll is not None
        below = hand._replace(at="below KEKs", key=0)
        if world.mistake is EpochMistake.VERSION_OF_BEFORE:
            kept = below._replace(version=state.newest)
            return self._to(state, steps.MAKE_VERSIONS, kept, "none")
        if hand.roll.made and hand.roll.made == state.newest:
            kept = below._replace(version=hand.roll.made)
            return self._to(state, steps.MAKE_VERSIONS, kept, "there is one")
        version = state.newest + 1
        made = hand._replace(at="version made", version=version)
        return self._to(state._replace(newest=version), steps.MAKE_VERSIONS, made, f"version {version}")

    def _noted(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        assert hand.roll is not None
        below = hand._replace(at="below KEKs", key=0)
        any_roll = world.mistake is EpochMistake.NOTED_IN_ANOTHER_ROLL
        if state.roll is None or not (any_roll or state.roll.number == hand.roll.number):
            return self._to(state, steps.NOTE_VERSION, below, "another roll is under way")
        after = state._replace(roll=state.roll._replace(made=hand.version))
        return self._to(after, steps.NOTE_VERSION, below, f"version {hand.version}")

    def _closed(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        counts = world.mistake is not EpochMistake.ENDED_BEFORE_GUARD
        if counts and any(_old_versions(row, hand.version) for row in state.rows):
            again = hand._replace(at="below KEKs", key=0)
            return self._to(state, steps.CLOSE_KEKS, again, "still needed: once more")
        if world.mistake is not EpochMistake.ENDED_UNCLOSED:
            state = state._replace(closed=max(state.closed, hand.version))
        left_behind = world.mistake is EpochMistake.LEDGER_LEFT_BEHIND
        moved = hand._replace(at="ending" if left_behind else "to move the ledger", key=NONE)
        return self._to(state, steps.CLOSE_KEKS, moved, f"versions before {hand.version}")

    def _ledger_moved(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        return self._to(state._replace(ledger=state.newest), steps.REWRAP_LEDGER, hand._replace(at="ending"))

    def _ended(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        after = state._replace(ended=max(state.ended, hand.version))
        return self._to(
            after, steps.END_VERSIONS, hand._replace(at="to finish"), f"before version {hand.version}"
        )

    def _finished(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        assert hand.roll is not None
        is_own = state.roll is not None and state.roll.number == hand.roll.number
        after = state._replace(
            roll=None if is_own else state.roll,
            covered=max(state.covered, hand.roll.number),
            promised=state.promised | hand.gone,
        )
        return self._to(after, steps.FINISH_EPOCH, Hand(), f"roll {hand.roll.number}")

    # --- rewraps ---

    def _looked_below_branches(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        for number in range(hand.key, len(state.rows)):
            homes = state.rows[number].homes
            if any(home.kind == BRANCH and home.number != hand.successor for home in homes):
                target = Home(BRANCH, hand.successor)
                page = hand._replace(at="page read", key=number, homes=homes, target=target)
                return self._to(state, steps.REWRAP_PAGE, page, f"key {number}")
        return self._to(state, steps.REWRAP_PAGE, hand._replace(at="retiring", key=NONE), "no more")

    def _looked_below_keks(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        for number in range(hand.key, len(state.rows)):
            homes = state.rows[number].homes
            if _old_versions(state.rows[number], state.newest):
                target = Home(KEK, state.newest)
                page = hand._replace(at="page read", key=number, homes=homes, target=target)
                return self._to(state, steps.REWRAP_PAGE, page, f"key {number}")
        at, key = "closing", NONE
        if hand.old and world.mistake is EpochMistake.KEK_BEFORE_BRANCHES:
            at, key = "below branches", 0
        return self._to(state, steps.REWRAP_PAGE, hand._replace(at=at, key=key), "no more")

    def _wrapped(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        if not opens_now(state, hand.key):
            return self._to(state, steps.MOVE, _next(hand), f"key {hand.key} was destroyed")
        return self._to(state, steps.MOVE, hand._replace(at="wrapped"), f"key {hand.key}")

    def _put(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        row, target = state.rows[hand.key], hand.target
        assert target is not None
        if not lives(row):
            return self._to(state, steps.PUT_WRAPPINGS, _next(hand), f"key {hand.key} was destroyed")
        if target.kind == BRANCH and not lives(state.rows[target.number]):
            return self._to(state, steps.PUT_WRAPPINGS, _again(hand, state), "the branch key was destroyed")
        if target.kind == KEK and target.number < state.closed:
            return self._to(state, steps.PUT_WRAPPINGS, _again(hand, state), "the version was closed")
        homes = tuple(sorted({*row.homes, target}))
        after = state._replace(rows=put(state.rows, hand.key, row._replace(homes=homes)))
        return self._to(after, steps.PUT_WRAPPINGS, hand._replace(at="put"), f"key {hand.key}")

    def _dropped(self, world: EpochWorld, state: Epochs, hand: Hand) -> tuple[Label, Epochs]:
        row = state.rows[hand.key]
        if hand.target not in row.homes:
            return self._to(state, steps.DROP_WRAPPINGS, _next(hand), "the better one is not there: nothing")
        homes = tuple(home for home in row.homes if home == hand.target or home not in hand.homes)
        after = state._replace(rows=put(state.rows, hand.key, row._replace(homes=homes)))
        return self._to(after, steps.DROP_WRAPPINGS, _next(hand), f"key {hand.key}")


class LazyMaker(_Actor):
    """
    Makes new data keys, by whatever it holds.

    Args:
        name: For the trace.
        under: ``BRANCH``: a branch key, however stale. ``KEK``: the version that wraps at that moment.
    """

    def __init__(self, name: str, under: str) -> None:
        super().__init__(name)
        self._under = under

    def moves(self, world: EpochWorld, state: Epochs) -> Moves:
        """Wrap, hold the branch key or look at what is closed, commit; refused, it makes another one."""
        hand = state.hands[self.index]
        if hand.at == IDLE:
            if state.budget.new_keys:
                budget = state.budget._replace(new_keys=state.budget.new_keys - 1)
                for home in self._homes(state):
                    made = Hand("made", target=home)
                    note = f"{home.kind} {home.number}"
                    yield self._to(state._replace(budget=budget), steps.GENERATE, made, note)
            return
        assert hand.target is not None
        if hand.at == "made" and self._under == BRANCH:
            if lives(state.rows[hand.target.number]):
                yield self._to(state, steps.HOLD_BRANCHES, hand._replace(at="held"))
            else:
                yield self._refused(state, steps.HOLD_BRANCHES)
        elif self._under == KEK and hand.target.number < state.closed:
            yield self._refused(state, steps.REFUSE_CLOSED)
        else:
            rows = (*state.rows, Row(False, (hand.target,)))
            yield self._to(state._replace(rows=rows), steps.ADD_ACTIVE, Hand(), f"key {len(state.rows)}")

    def _homes(self, state: Epochs) -> list[Home]:
        if self._under == KEK:
            return [Home(KEK, state.newest)]
        return [Home(BRANCH, number) for number, row in enumerate(state.rows) if row.is_branch]

    def _refused(self, state: Epochs, step: str) -> tuple[Label, Epochs]:
        budget = state.budget._replace(new_keys=state.budget.new_keys + 1)
        return self._to(state._replace(budget=budget), step, Hand(), "the key is made again")


class BranchOperator(_Actor):
    """Rotates the branch key beside a roll, which knows nothing of it."""

    def moves(self, world: EpochWorld, state: Epochs) -> Moves:
        """Wrap a new key, and replace the active one, unless another was first or the version was closed."""
        hand = state.hands[self.index]
        if hand.at == IDLE:
            if state.budget.rotations:
                budget = state.budget._replace(rotations=state.budget.rotations - 1)
                made = Hand("made", key=_active_branch(state), target=Home(KEK, state.newest))
                yield self._to(state._replace(budget=budget), steps.ROTATE_BRANCHES, made)
            return
        assert hand.target is not None
        if state.rows[hand.key].state != ACTIVE or hand.target.number < state.closed:
            yield self._to(state, steps.REPLACE_ACTIVE, Hand(), "refused")
        else:
            after = _with_new_branch(state, hand.key, hand.target)
            yield self._to(after, steps.REPLACE_ACTIVE, Hand(), f"key {hand.key}")


class DataShredder(_Actor):
    """Shreds data keys."""

    def moves(self, world: EpochWorld, state: Epochs) -> Moves:
        """Destroy one, at any time."""
        if not state.budget.shreds:
            return
        budget = state.budget._replace(shreds=state.budget.shreds - 1)
        for number, row in enumerate(state.rows):
            if not row.is_branch and lives(row):
                rows = put(state.rows, number, row._replace(state=SHREDDED, homes=()))
                after = state._replace(
                    rows=rows,
                    shredded=state.shredded | bit(number),
                    shredded_since=True,
                    budget=budget,
                )
                yield Label(self.name, steps.SET_STATES, f"key {number}"), after


class KeyBackups(_Actor):
    """Takes backups of the key tables."""

    def moves(self, world: EpochWorld, state: Epochs) -> Moves:
        """Take one, at any time."""
        if state.budget.backups:
            backup = Backup(tuple(row.homes for row in state.rows), state.begun)
            budget = state.budget._replace(backups=state.budget.backups - 1)
            yield (
                Label(self.name, steps.BACK_UP),
                state._replace(backups=(*state.backups, backup), budget=budget),
            )


class DateEditor(_Actor):
    """Writes to the database, and cannot call the KMS."""

    def moves(self, world: EpochWorld, state: Epochs) -> Moves:
        """Set the date of a branch key to the past, or to the future."""
        if not state.budget.dates:
            return
        budget = state.budget._replace(dates=state.budget.dates - 1)
        for number, row in enumerate(state.rows):
            for dated, when in ((0, "the past"), (99, "the future")):
                if row.is_branch and dated != row.dated:
                    rows = put(state.rows, number, row._replace(dated=dated))
                    label = Label(self.name, steps.SET_CREATED_AT, f"key {number}: {when}", fault=True)
                    yield label, state._replace(rows=rows, budget=budget)


def _active_branch(state: Epochs) -> int:
    active = (n for n, row in enumerate(state.rows) if row.is_branch and row.state == ACTIVE)
    return next(active, NONE)


def _with_new_branch(state: Epochs, old: int, home: Home) -> Epochs:
    rows = put(state.rows, old, state.rows[old]._replace(state=DEACTIVATED))
    return state._replace(rows=(*rows, Row(True, (home,), born=state.begun, dated=state.begun)))


def _old_versions(row: Row, version: int) -> bool:
    return any(home.kind == KEK and home.number < version for home in row.homes)


def _next(hand: Hand) -> Hand:
    """Go on with the next key of the pass."""
    assert hand.target is not None
    at = "below branches" if hand.target.kind == BRANCH else "below KEKs"
    return hand._replace(at=at, key=hand.key + 1, homes=(), target=None)


def _again(hand: Hand, state: Epochs) -> Hand:
    """Go on with the same key, and what is current now."""
    after = _next(hand)
    return after._replace(key=hand.key, successor=_active_branch(state) if hand.successor != NONE else NONE)

"""Who makes, moves, verifies and drops wrappings, and who takes KEKs and branch keys away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.checker import Label
from tests.protocol.state import IDLE, NONE, put
from tests.protocol.wrappings import BRANCHES, Hand, WrappedKey, Wrapping, WrappingMistake

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.wrappings import Wrappings, WrappingWorld

    Moves = Iterator[tuple[Label, Wrappings]]


class _Actor:
    def __init__(self, name: str) -> None:
        self.name = name
        self.index = NONE

    def _to(self, state: Wrappings, step: str, hand: Hand, note: str = "") -> tuple[Label, Wrappings]:
        return Label(self.name, step, note), state._replace(hands=put(state.hands, self.index, hand))

    def _rest(self, state: Wrappings, step: str, note: str = "") -> tuple[Label, Wrappings]:
        return self._to(state, step, Hand(), note)


class Rewrapper(_Actor):
    """
    Gives every key a wrapping at its target, and drops the others once that one is verified.

    Args:
        name: For the trace.
        target: A KEK or a branch key.
        inside: The KMS rewraps by itself, so the new wrapping is not verified yet; what comes back may be
            garbled. Else the key is unwrapped, wrapped, and the new wrapping unwrapped once more.
    """

    def __init__(self, name: str, target: str, *, inside: bool = False) -> None:
        super().__init__(name)
        self._target = target
        self._inside = inside

    def moves(self, world: WrappingWorld, state: Wrappings) -> Moves:
        """Read a page, make, put, drop; a crash between them leaves what the next run finds."""
        hand = state.hands[self.index]
        if hand.at == IDLE:
            for number, key in enumerate(state.keys):
                if key.lives and {wrapping.home for wrapping in key.wrappings} != {self._target}:
                    page = Hand("page read", number, key.wrappings)
                    yield self._to(state, steps.REWRAP_PAGE, page, f"key {number}")
            return
        crashed = state._replace(hands=put(state.hands, self.index, Hand()))
        yield Label(self.name, steps.CRASH, fault=True), crashed
        if hand.at == "page read":
            yield from self._made(world, state, hand)
        elif hand.at == "made":
            yield self._put(world, state, hand)
        else:
            yield self._dropped(world, state, hand)

    def _made(self, world: WrappingWorld, state: Wrappings, hand: Hand) -> Moves:
        current = next((wrapping for wrapping in hand.read if wrapping.home == self._target), None)
        careless = world.mistake is WrappingMistake.DROPPED_BEFORE_VERIFIED
        if current is not None and (current.verified or careless):
            yield self._to(state, steps.REWRAP, hand._replace(at="to drop", wrapping=current))
            return
        unwraps = any(w.opens and world.is_there(state, w.home) for w in hand.read)
        may_make = unwraps and world.is_there(state, self._target)
        if current is not None and (self._inside or self._target not in BRANCHES):
            yield self._rest(state, steps.REWRAP, "awaits verification")
        elif may_make:
            new = Wrapping(self._target, _unused(state, hand.key), verified=not self._inside)
            yield self._to(state, steps.MOVE, hand._replace(at="made", wrapping=new), f"key {hand.key}")
            if self._inside and state.garbled:
                after = state._replace(garbled=state.garbled - 1)
                made = hand._replace(at="made", wrapping=new._replace(opens=False))
                yield self._to(after, steps.MOVE, made, f"key {hand.key}: garbled")
        else:
            yield self._rest(state, steps.REWRAP, "nothing to be done now")

    def _put(self, world: WrappingWorld, state: Wrappings, hand: Hand) -> tuple[Label, Wrappings]:
        key, new = state.keys[hand.key], hand.wrapping
        assert new is not None
        if not key.lives and world.mistake is not WrappingMistake.DESTROYED_TAKES_WRAPPINGS:
            return self._rest(state, steps.PUT_WRAPPINGS, "destroyed meanwhile")
        if new.home in BRANCHES and not world.is_there(state, new.home):
            return self._rest(state, steps.PUT_WRAPPINGS, "the branch key was destroyed meanwhile")
        there = next((wrapping for wrapping in key.wrappings if wrapping.home == new.home), None)
        if there is not None and (there.verified or not new.verified):
            return self._rest(state, steps.PUT_WRAPPINGS, "there is one: awaits")
        others = tuple(wrapping for wrapping in key.wrappings if wrapping is not there)
        keys = put(state.keys, hand.key, key._replace(wrappings=tuple(sorted((*others, new)))))
        after = state._replace(keys=keys)
        if new.verified or world.mistake is WrappingMistake.DROPPED_BEFORE_VERIFIED:
            return self._to(after, steps.PUT_WRAPPINGS, hand._replace(at="to drop"))
        return self._rest(after, steps.PUT_WRAPPINGS, "awaits verification")

    def _dropped(self, world: WrappingWorld, state: Wrappings, hand: Hand) -> tuple[Label, Wrappings]:
        key, keep = state.keys[hand.key], hand.wrapping
        assert keep is not None
        stored = {(wrapping.home, wrapping.bytes): wrapping for wrapping in key.wrappings}
        better = stored.get((keep.home, keep.bytes))
        looks = world.mistake is not WrappingMistake.DROPPED_WITHOUT_LOOKING
        needs_verified = world.mistake is not WrappingMistake.DROPPED_BEFORE_VERIFIED
        if looks and (better is None or (needs_verified and not better.verified)):
            return self._rest(state, steps.DROP_WRAPPINGS, "the better one is not there: nothing")
        old = {(wrapping.home, wrapping.bytes) for wrapping in hand.read if wrapping.home != keep.home}
        left = tuple(w for w in key.wrappings if (w.home, w.bytes) not in old)
        lost = any(w.verified for w in key.wrappings) and not any(w.verified for w in left)
        after = state._replace(keys=put(state.keys, hand.key, key._replace(wrappings=left)))
        if lost and key.lives:
            after = after._replace(broken=f"key {hand.key} lost its last verified wrapping")
        return self._rest(after, steps.DROP_WRAPPINGS, f"key {hand.key}")


class Verifier(_Actor):
    """A process that unwraps keys, and notes which of their wrappings open."""

    def moves(self, world: WrappingWorld, state: Wrappings) -> Moves:
        """Read and unwrap, then note."""
        hand = state.hands[self.index]
        if hand.at == IDLE:
            for number, key in enumerate(state.keys):
                for wrapping in key.wrappings:
                    if wrapping.opens and not wrapping.verified and world.is_there(state, wrapping.home):
                        opened = Hand("unwrapped", number, wrapping=wrapping)
                        yield self._to(state, steps.UNWRAP, opened, f"key {number}, {wrapping.home}")
            return
        key = state.keys[hand.key]
        marked = tuple(w._replace(verified=True) if w == hand.wrapping else w for w in key.wrappings)
        after = state._replace(keys=put(state.keys, hand.key, key._replace(wrappings=marked)))
        yield self._rest(after, steps.MARK_VERIFIED, f"key {hand.key}")


class Maker(_Actor):
    """
    Makes new keys.

    Args:
        name: For the trace.
        homes: KEKs that wrap them; none: a branch key that the process holds, however stale.
    """

    def __init__(self, name: str, *homes: str) -> None:
        super().__init__(name)
        self._homes = homes

    def moves(self, world: WrappingWorld, state: Wrappings) -> Moves:
        """Wrap, hold the branch key, commit."""
        hand = state.hands[self.index]
        if hand.at == IDLE:
            if not state.new_keys:
                return
            fewer = state._replace(new_keys=state.new_keys - 1)
            if not self._homes:
                for home in BRANCHES[: len(state.branches)]:
                    yield self._to(fewer, steps.GENERATE, Hand("wrapped", wrapping=Wrapping(home, 0)), home)
            elif all(world.is_there(state, home) for home in self._homes):
                yield self._to(fewer, steps.GENERATE, Hand("held", read=_wrappings(self._homes)))
        elif hand.at == "wrapped":
            assert hand.wrapping is not None
            if world.is_there(state, hand.wrapping.home):
                held = hand._replace(at="held", read=(hand.wrapping,))
                yield self._to(state, steps.HOLD_BRANCHES, held, hand.wrapping.home)
            else:
                refused = state._replace(new_keys=state.new_keys + 1)
                yield self._rest(refused, steps.HOLD_BRANCHES, "destroyed: the key is made again")
        else:
            new = WrappedKey(True, hand.read)
            yield self._rest(state._replace(keys=(*state.keys, new)), steps.ADD_ACTIVE)


class BranchRotator(_Actor):
    """Rotates the branch key, once, and retires the old one when nothing is wrapped under it."""

    def moves(self, world: WrappingWorld, state: Wrappings) -> Moves:
        """Rotate; then lock, count, destroy: one transaction."""
        if state.branches == ("active",):
            yield Label(self.name, steps.ROTATE_BRANCHES), state._replace(branches=("deactivated", "active"))
        elif state.branches[0] == "deactivated" and not self._is_held(world, state):
            users = [key for key in state.keys if any(w.home == BRANCHES[0] for w in key.wrappings)]
            if not users:
                yield (
                    Label(self.name, steps.SET_STATES, BRANCHES[0]),
                    state._replace(branches=("retired", "active")),
                )

    def _is_held(self, world: WrappingWorld, state: Wrappings) -> bool:
        if world.mistake is WrappingMistake.BRANCH_NOT_HELD:
            return False
        return any(
            hand.at == "held" and any(wrapping.home == BRANCHES[0] for wrapping in hand.read)
            for hand in state.hands
        )


class KekRemover(_Actor):
    """
    Asks whether a KEK may go, and takes it away if so. By then no process makes keys under it alone.

    Args:
        name: For the trace.
        kek: Which.
    """

    def __init__(self, name: str, kek: str) -> None:
        super().__init__(name)
        self._kek = kek

    def moves(self, world: WrappingWorld, state: Wrappings) -> Moves:
        """Ask the guard; then, any time later, delete the KEK."""
        if state.hands[self.index].at != IDLE:
            yield self._rest(state._replace(gone=state.gone | {self._kek}), steps.DELETE_KEK, self._kek)
        elif self._kek not in state.gone and not any(self._needs(world, key) for key in state.keys):
            yield self._to(state, steps.REFUSE_NEEDED_KEK, Hand("may go"), self._kek)

    def _needs(self, world: WrappingWorld, key: WrappedKey) -> bool:
        takes_any = world.mistake is WrappingMistake.GUARD_TAKES_UNVERIFIED
        return any(w.home == self._kek for w in key.wrappings) and not any(
            w.home != self._kek and (w.verified or takes_any) for w in key.wrappings
        )


class KeyDestroyer(_Actor):
    """Retires the first key: its wrappings go with it."""

    def moves(self, world: WrappingWorld, state: Wrappings) -> Moves:
        """Destroy it, at any time."""
        key = state.keys[0]
        if key.lives:
            keys = put(state.keys, 0, key._replace(lives=False, wrappings=()))
            yield Label(self.name, steps.SET_STATES, "key 0"), state._replace(keys=keys)


def _unused(state: Wrappings, key: int) -> int:
    """Number new bytes: a number that nobody refers to any more is as good as one that never was."""
    used = {wrapping.bytes for wrapping in state.keys[key].wrappings}
    for hand in state.hands:
        if hand.key == key:
            used.update(wrapping.bytes for wrapping in (*hand.read, *filter(None, [hand.wrapping])))
    return min(set(range(len(used) + 1)) - used)


def _wrappings(homes: tuple[str, ...]) -> tuple[Wrapping, ...]:
    return tuple(Wrapping(home, number) for number, home in enumerate(homes))

"""What a process has seen of the states of keys, so that none goes back. Locked by its owner."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import IntegrityError
from eventseal.keys.records import Revocation
from eventseal.keys.seals import REVOKED_SIZE
from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from eventseal.keys.records import ChangeMark, Changes, KeyRecord
    from eventseal.keys.seals import Seals

_MOST_SEEN = 100_000
_REMEDY = "Find out who changed the key tables, or which backup was restored; destroyed keys stay destroyed."


class Moment(NamedTuple):
    """
    What was known when a query began.

    Attributes:
        moves: Refreshes that had found the counter moved.
        noted: States that had been noted.
        floor: The lowest counter that the store may still show.
    """

    moves: int
    noted: int
    floor: int


class Moves(NamedTuple):
    """
    The way from the revoked keys that are known to those that a later mark counts.

    Attributes:
        added: Keys that are revoked now, and were not, or in another way.
        removed: The reverse.
        set_hash: Of those that are revoked then.
        whole: Whether *added* are all of them, so that nothing of what was known is left.
    """

    added: Sequence[Revocation]
    removed: Sequence[Revocation]
    set_hash: int
    whole: bool


class _Seen(NamedTuple):
    state: KeyState
    row_version: int
    noted: int


class KnownStates:
    """
    The application's counter, the keys that are revoked, and the last seen state of each key that has moved.

    Attributes:
        counter: As of the last refresh; -1 before the first.
    """

    def __init__(self) -> None:
        self.counter = -1
        self._floor = -1
        self._refreshes = 0
        self._noted = 0
        # As bytes, which take half the room of UUIDs: there may be millions.
        self._revoked: dict[str, set[bytes]] = {"compromised": set(), "shredded": set()}
        self._set_hash = 0
        self._seen: OrderedDict[UUID, _Seen] = OrderedDict()

    def moment(self) -> Moment:
        """Say what is known now: to be asked before a query whose rows are admitted after it."""
        return Moment(self._refreshes, self._noted, self._floor)

    def admit(self, record: KeyRecord, since: Moment) -> bool:
        """
        Compare a row with what was seen of it, and note it.

        Args:
            record: Read, with its seal checked, by a query that began after *since*.
            since: What was known before the query.

        Returns:
            ``False`` if states moved since the query began, so that the row must be read again.

        Raises:
            IntegrityError: A later state had been seen before the query began.
        """
        if since.moves != self._refreshes:
            return False
        seen = self._seen.get(record.key_id)
        if seen is not None and _is_earlier(record, seen):
            if seen.noted > since.noted:
                return False
            raise _set_back(record, seen.state)
        revoked_as = self._least_state(record.key_id)
        if not revoked_as.may_become(record.state):
            raise _set_back(record, revoked_as)
        self.note(record)
        return True

    def note(self, record: KeyRecord) -> None:
        """Remember the state of a key that has moved from its first one."""
        if record.state is KeyState.ACTIVE:
            return
        self._noted += 1
        self._seen[record.key_id] = _Seen(record.state, record.row_version, self._noted)
        self._seen.move_to_end(record.key_id)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    def raise_floor(self, counter: int) -> None:
        """Note a counter that this process wrote itself: the store shows no lower one afterwards."""
        self._floor = max(self._floor, counter)

    def check(self, mark: ChangeMark, since: Moment) -> None:
        """
        Compare a mark, its seal checked, with what was seen of it.

        Raises:
            IntegrityError: It is an earlier one, or another one of the same counter.
        """
        if mark.counter < since.floor:
            raise IntegrityError(
                f"the change counter of application {mark.application!r} went back "
                f"from {since.floor} to {mark.counter}",
                remedy=_REMEDY,
            )
        if mark.counter == self.counter and mark.revoked != self._set_hash.to_bytes(REVOKED_SIZE):
            raise IntegrityError(
                f"the change mark of application {mark.application!r} changed without its counter",
                remedy=_REMEDY,
            )

    def moves_to(self, changes: Changes, seals: Seals, *, whole: bool) -> Moves | None:
        """
        Compare what was revoked since the last refresh with what the mark counts.

        Args:
            changes: The mark, checked, and what is revoked.
            seals: Give the hash of a set.
            whole: Whether that is everything, not only what came since.

        Returns:
            How to get from what is known to what the mark counts, for :meth:`move`; ``None`` if *changes* do
            not lead there.
        """
        if whole:
            added, removed, total = list(changes.revoked), [], 0
        else:
            added, removed, total = [*self._news(changes)], [*self._cleared(changes)], self._set_hash
        total = seals.set_hash(total, added=added, removed=removed)
        fits = total.to_bytes(REVOKED_SIZE) == changes.mark.revoked
        return Moves(added, removed, total, whole) if fits else None

    def move(self, mark: ChangeMark, moves: Moves) -> None:
        """Accept a mark whose counter moved, and what is revoked by now."""
        if moves.whole:
            self._revoked = {how: set() for how in self._revoked}
        for revocation in moves.removed:
            self._revoked[revocation.how].remove(revocation.key_id.bytes)
        for revocation in moves.added:
            self._revoked[revocation.how].add(revocation.key_id.bytes)
        self.counter = mark.counter
        self.raise_floor(mark.counter)
        self._set_hash = moves.set_hash
        self._refreshes += 1

    def _news(self, changes: Changes) -> Iterator[Revocation]:
        for revocation in changes.revoked:
            if revocation.key_id.bytes not in self._revoked[revocation.how]:
                yield revocation

    def _cleared(self, changes: Changes) -> Iterator[Revocation]:
        """Give the compromised keys that were destroyed since: a shredded one is counted anew, as such."""
        shredded = [revocation.key_id for revocation in changes.revoked if revocation.how == "shredded"]
        for key_id in (*shredded, *changes.retired):
            if key_id.bytes in self._revoked["compromised"]:
                yield Revocation(key_id, "compromised")

    def _least_state(self, key_id: UUID) -> KeyState:
        if key_id.bytes in self._revoked["shredded"]:
            return KeyState.DESTROYED
        return KeyState.COMPROMISED if key_id.bytes in self._revoked["compromised"] else KeyState.ACTIVE


def _is_earlier(record: KeyRecord, seen: _Seen) -> bool:
    return not seen.state.may_become(record.state) or record.row_version < seen.row_version


def _set_back(record: KeyRecord, seen: KeyState) -> IntegrityError:
    return IntegrityError(
        f"the row of key {record.key_id} says {record.state}, but it was {seen}: an old row was put back",
        remedy=_REMEDY,
        key_id=record.key_id,
    )

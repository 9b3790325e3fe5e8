"""What a process has seen of the states of keys, so that none goes back. Locked by its owner."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from eventseal.errors import IntegrityError
from eventseal.keys.states import KeyState

if TYPE_CHECKING:
    from uuid import UUID

    from eventseal.keys.records import ChangeMark, KeyRecord

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


class _Seen(NamedTuple):
    state: KeyState
    row_version: int
    noted: int


class KnownStates:
    """
    The application's counter, what its mark covered then, and the last seen state of each key that has moved.

    Attributes:
        counter: As of the last refresh; -1 before the first.
    """

    def __init__(self) -> None:
        self.counter = -1
        self._floor = -1
        self._refreshes = 0
        self._noted = 0
        self._revoked = b""
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
            raise set_back(record, seen.state)
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
        if mark.counter == self.counter and mark.revoked != self._revoked:
            raise IntegrityError(
                f"the change mark of application {mark.application!r} changed without its counter",
                remedy=_REMEDY,
            )

    def move(self, mark: ChangeMark) -> None:
        """Accept a mark whose counter moved."""
        self.counter = mark.counter
        self.raise_floor(mark.counter)
        self._revoked = mark.revoked
        self._refreshes += 1


def _is_earlier(record: KeyRecord, seen: _Seen) -> bool:
    return not seen.state.may_become(record.state) or record.row_version < seen.row_version


def set_back(record: KeyRecord, seen: KeyState) -> IntegrityError:
    """The error of a row that shows an earlier state than one that is known."""
    return IntegrityError(
        f"the row of key {record.key_id} says {record.state}, but it was {seen}: an old row was put back",
        remedy=_REMEDY,
        key_id=record.key_id,
    )

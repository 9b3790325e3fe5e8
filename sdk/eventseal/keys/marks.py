"""The change mark that follows a change of states."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventseal.keys.known_states import Moment
    from eventseal.keys.memory import Memory
    from eventseal.keys.records import ChangeMark, KeyRecord, NextMark
    from eventseal.keys.seals import Seals


class Marks:
    """
    Gives the mark that follows the locked one, and remembers its counter.

    Args:
        memory: Has seen earlier marks.
        seals: Check and seal them.
        moves: Each key as it was, ``None`` if it was not, and as it is to be.
        since: The moment before the keys were read.

    Attributes:
        written: The counter of the mark that was given last.
    """

    def __init__(
        self,
        memory: Memory,
        seals: Seals,
        moves: Iterable[tuple[KeyRecord | None, KeyRecord]],
        since: Moment,
    ) -> None:
        self._memory = memory
        self._seals = seals
        self._since = since
        changed = [
            (None if old is None else old.revocation, new.revocation)
            for old, new in moves
            if old is None or old.revocation != new.revocation
        ]
        self._removed = [before for before, _ in changed if before is not None]
        self._added = [after for _, after in changed if after is not None]
        self.written = -1

    def __call__(self, mark: ChangeMark) -> ChangeMark:
        """Check *mark*, and give the one that follows it."""
        following = self._seals.next_mark(mark, added=self._added, removed=self._removed)
        self._memory.check_mark(mark, self._since)
        self.written = following.counter
        return following


if TYPE_CHECKING:
    _: type[NextMark] = Marks

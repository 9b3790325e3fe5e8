"""What the erasure ledger says, read from its entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol.state import OPENS, bit

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.protocol.state import Entry, State

INTENT, DONE, REOPEN = "intent", "done", "reopen"


def with_entry(state: State, entry: Entry) -> State:
    """Append an entry, durably."""
    erasures = state.erasures
    return state._replace(erasures=erasures._replace(ledger=(*erasures.ledger, entry)))


def open_intents(state: State, scope: int) -> tuple[int, ...]:
    """Give the numbers of the intents of a scope that are not done."""
    ledger = state.erasures.ledger
    closed = {number for entry in ledger for number in entry.closes}
    return tuple(
        number
        for number, entry in enumerate(ledger, 1)
        if entry.kind == INTENT and entry.scope == scope and number not in closed
    )


def last_reopening(state: State, scope: int) -> int:
    """Give the number of the last reopening of a scope; 0: it never was."""
    ledger = enumerate(state.erasures.ledger, 1)
    return max((n for n, entry in ledger if entry.kind == REOPEN and entry.scope == scope), default=0)


def says_closed(state: State, number: int) -> bool:
    """Whether the shred of which an entry tells was after its scope's last reopening."""
    entry = state.erasures.ledger[number - 1]
    told_by = (number,) if entry.kind == INTENT else entry.told_by
    return max(told_by, default=0) > last_reopening(state, entry.scope)


def has_as_closed(state: State, scope: int) -> bool:
    """Whether a scope is to be closed."""
    return any(
        says_closed(state, number)
        for number, entry in enumerate(state.erasures.ledger, 1)
        if entry.scope == scope and entry.kind != REOPEN
    )


def named_keys(state: State, numbers: Collection[int] | None = None) -> int:
    """Give the keys that verified entries name; of some of them, or of all."""
    named = 0
    for number, entry in enumerate(state.erasures.ledger, 1):
        if not entry.forged and (numbers is None or number in numbers):
            named |= entry.keys
    return named


def strangers(state: State, scope: int) -> list[int]:
    """Give the live keys of a scope that the ledger has as closed, and of which it knows nothing."""
    if not has_as_closed(state, scope):
        return []
    named = named_keys(state)
    return [
        n
        for n, key in enumerate(state.keys)
        if key.scope == scope and key.state in OPENS and not named & bit(n)
    ]

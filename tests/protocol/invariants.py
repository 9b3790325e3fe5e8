"""What must hold in every state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol.ledger import has_as_closed, open_intents
from tests.protocol.state import ACTIVE, GONE, OPENS, RETIRED, SHREDDED, bit

if TYPE_CHECKING:
    from tests.protocol.state import Item, State

PENDING = 99
"""Number of a key that was handed out although its row is not committed: only a mistaken protocol has one."""


def violation(state: State) -> str | None:
    """Say which invariant a state breaks."""
    if state.broken:
        return state.broken
    for place, item in enumerate(state.items):
        if item is not None and (what := _item_violation(state, item)):
            return f"item {place} {what}"
    return _key_violation(state) or _erasure_violation(state) or _memory_violation(state)


def _item_violation(state: State, item: Item) -> str | None:
    if item.key == PENDING:
        being_made = any(client.at == "adding late" for client in state.clients)
        return None if being_made else "is under a key that nobody has: its row was never committed"
    key = state.keys[item.key].state
    if item.erased:
        if key == SHREDDED or state.erasures.unchecked:
            return None
        return "was erased, and counts as lost" if key == GONE else "was erased and opens again"
    if key == RETIRED:
        return "is lost: its key was retired"
    if key == SHREDDED:
        return "is lost: its key was shredded, and its scope is open"
    return None


def _key_violation(state: State) -> str | None:
    slots = [key.scope for key in state.keys if key.slot]
    if len(slots) != len(set(slots)):
        return "two keys hold the slot of one scope"
    active = [key.scope for key in state.keys if key.state == ACTIVE]
    if len(active) != len(set(active)):
        return "two keys of one scope are active"
    for number, key in enumerate(state.keys):
        if key.state in OPENS and state.closed & bit(key.scope):
            return f"key {number} lives in a scope that was closed"
    return None


def _erasure_violation(state: State) -> str | None:
    erasures = state.erasures
    if erasures.unchecked or not erasures.ledger:
        return None
    for number, key in enumerate(state.keys):
        if key.state not in OPENS:
            continue
        if erasures.shredded & bit(number):
            return f"key {number} was shredded, and opens again"
        if has_as_closed(state, key.scope) and not open_intents(state, key.scope):
            return f"the ledger has scope {key.scope} as closed, and key {number} lives in it"
    return None


def _memory_violation(state: State) -> str | None:
    for process in state.processes:
        refused = process.refused
        for number, key in enumerate(state.keys):
            if refused & bit(number) and key.state in OPENS:
                return f"a process remembers that key {number} does not open, and it does"
    return None


def committed(state: State, place: int, item: Item, database: int) -> State:
    """Commit an item's row, and look at what that does."""
    old = state.items[place]
    what = ""
    erased = old is not None and old.erased and old.content == item.content
    if item.key != PENDING:
        key = state.keys[item.key]
        if key.state == SHREDDED and _is_being_closed(state, key.scope):
            erased = True  # written while its scope was being closed: erased with the others
        elif key.state == SHREDDED:
            what = f"item {place} was committed under a shredded key, and its scope is open again"
        if state.marks[database] & bit(item.key):
            what = f"item {place} is honest, and was committed behind its compromised key's mark"
    if old is not None and item.content < old.content:
        what = f"item {place} was overwritten by an older content"
    items = (*state.items[:place], item._replace(erased=erased), *state.items[place + 1 :])
    return state._replace(items=items, broken=what or state.broken)


def _is_being_closed(state: State, scope: int) -> bool:
    """Whether a scope is closed, or is being closed by a restore's check, which takes named keys first."""
    carried = state.erasures.unchecked and open_intents(state, scope)
    return bool(state.closed & bit(scope) or carried)

"""Who meets in the model of edited tables: a process of the application, and operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.protocol import steps
from tests.protocol.attacked import (
    ENDED,
    LATER,
    OURS,
    SCOPE,
    THEIRS,
    UNREGISTERED,
    AttackMistake,
    Item,
    Memory,
    Row,
    Stand,
    changed,
    holder_of,
    is_being_taken,
    is_closed,
    spent,
    with_stand,
)
from tests.protocol.checker import Label
from tests.protocol.state import (
    ACTIVE,
    DEACTIVATED,
    IDLE,
    NONE,
    OPENS,
    RETIRABLE,
    RETIRED,
    SHREDDED,
    bit,
    put,
)

if TYPE_CHECKING:
    from tests.protocol.attacked import Attacked, AttackedWorld, Mark, Moves


class Process:
    """
    One process of the application, with its memory; killed, it begins anew.

    Args:
        places: Of the items that it writes.
    """

    name = "process"

    def __init__(self, *places: int) -> None:
        self.index = NONE
        self._places = places

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """Refresh, open, read, or take the next step of sealing."""
        stand, memory = state.stands[self.index], state.process
        known, mark = memory.known, state.tables.mark
        if state.budget.restarts and (known or stand.at != IDLE):
            cold = with_stand(state._replace(process=Memory()), self.index, Stand())
            yield Label(self.name, steps.CRASH, fault=True), spent(cold, "restarts")
        if stand.at != IDLE:
            yield self._making(world, state, stand, known or mark)
            return
        if known != mark and world.takes(mark, known):
            yield Label(self.name, steps.LEARN_TREE), self._refreshed(world, state, mark)
        if known is None:
            return
        for key in range(len(state.tables.rows)):
            yield from self._opening(world, state, known, key)
        for place, item in enumerate(state.items):
            if item is not None:
                yield from self._reading(world, state, known, place, item)
        for place in self._places:
            if state.items[place] is None:
                yield from self._sealing(world, state, known, place)

    def _refreshed(self, world: AttackedWorld, state: Attacked, mark: Mark) -> Attacked:
        memory = state.process
        held, seat = memory.held, memory.seat
        for key, row in enumerate(state.tables.rows):
            how = world.leaf(state, mark, key)
            if world.mistake is AttackMistake.REFRESH_BY_ROWS:
                keeps = row.state in OPENS
            else:
                keeps = world.believes(state, mark, key) and row.state in OPENS and how not in ENDED
            held &= ~0 if keeps else ~bit(key)
            seat = NONE if seat == key and not (keeps and row.state == ACTIVE) else seat
        known = Memory(mark, held, seat, memory.ended | mark.ended, memory.revoked | mark.revoked)
        return state._replace(process=known)

    def _opening(self, world: AttackedWorld, state: Attacked, known: Mark, key: int) -> Moves:
        """Open what names a key: an item, or what somebody has sealed who has stolen it."""
        memory, row = state.process, state.tables.rows[key]
        after = state
        if not memory.held & bit(key):
            if not (row.state in OPENS and world.believes(state, known, key)):
                return
            after = state._replace(process=memory._replace(held=memory.held | bit(key)))
        if memory.ended & bit(key):
            after = after._replace(broken=f"key {key} is destroyed, and opens again")
        if after != state:
            yield Label(self.name, steps.READ_KEY, f"key {key}"), after

    def _reading(self, world: AttackedWorld, state: Attacked, known: Mark, place: int, item: Item) -> Moves:
        """Read an item whose key is destroyed: it was erased, or somebody has put it there."""
        row = state.tables.rows[item.key]
        held = state.process.held & bit(item.key)
        if held or row.state != SHREDDED or not world.believes(state, known, item.key):
            return
        scope = world.leaf(state, known, SCOPE)
        if scope is None:
            return
        reopened = scope and not scope[0]
        listed = (place, item.key, item.junk) in state.listed
        if reopened and not listed and world.mistake is not AttackMistake.ERASED_UNLISTED:
            return
        after = state
        if item.late and reopened:
            after = state._replace(broken=f"item {place} was sealed after a reopening, and reads as erased")
        yield Label(self.name, steps.READ_ERASED, f"item {place}"), after

    # --- sealing ---

    def _sealing(self, world: AttackedWorld, state: Attacked, known: Mark, place: int) -> Moves:
        memory = state.process
        if memory.seat != NONE:
            yield self._sealed(state, place, memory.seat)
            return
        holder = holder_of(state)
        row = state.tables.rows[holder] if holder != NONE else None
        scope: Any = ()
        as_of = state.tables.mark.tree
        if world.mistake is not AttackMistake.OPEN_BY_SLOT:
            scope = world.leaf(state, known, SCOPE)
            as_of = known.tree if scope == known.tree[SCOPE] else as_of
        if scope is None or (scope and scope[0]):
            return
        if row is None:
            stand = Stand("looked", place=place, tree=as_of)
            yield Label(self.name, steps.SETTLE_CLOSED, "open"), with_stand(state, self.index, stand)
        elif row.state == ACTIVE and world.believes(state, known, holder):
            seated = memory._replace(held=memory.held | bit(holder), seat=holder)
            yield Label(self.name, steps.SEAT, f"key {holder}"), self._used(state, seated, holder)

    def _making(
        self, world: AttackedWorld, state: Attacked, stand: Stand, known: Mark
    ) -> tuple[Label, Attacked]:
        """First use, in one transaction: the INSERT, the look at the mark, the COMMIT."""
        idle = with_stand(state, self.index, Stand())
        if stand.at == "looked":
            if holder_of(state) != NONE:
                return Label(self.name, steps.INSERT_KEY, "the slot is taken"), idle
            inserted = with_stand(state, self.index, stand._replace(at="inserted"))
            return Label(self.name, steps.INSERT_KEY), inserted
        if stand.at == "inserted":
            moved = state.tables.mark.tree != stand.tree
            if moved and world.mistake is not AttackMistake.LOOKED_AT_ONCE:
                return Label(self.name, steps.IS_ADMITTED, "something was revoked: rolled back"), idle
            return Label(self.name, steps.IS_ADMITTED), with_stand(
                state, self.index, stand._replace(at="looked again")
            )
        key = len(state.tables.rows)
        rows = (*state.tables.rows, Row())
        after = idle._replace(
            tables=state.tables._replace(rows=rows),
            truth=state.truth._replace(rows=(*state.truth.rows, Row())),
            process=state.process._replace(held=state.process.held | bit(key), seat=key),
        )
        if is_closed(state.truth.mark):
            after = after._replace(broken=f"key {key} was made in a scope that is closed")
        return Label(self.name, steps.ADD_ACTIVE, f"key {key}"), after

    def _sealed(self, state: Attacked, place: int, key: int) -> tuple[Label, Attacked]:
        label = Label(self.name, steps.COMMIT, f"item {place} under key {key}")
        if state.fenced & bit(key):  # the key moved, and this process does not know it yet
            unseated = state.process._replace(seat=NONE)
            return label, self._used(state, unseated, key)
        late = bool(state.truth.mark.tree[SCOPE]) and not is_closed(state.truth.mark)
        items = put(state.items, place, Item(key, key, late=late))
        return label, self._used(state._replace(items=items), state.process, key)

    def _used(self, state: Attacked, memory: Memory, key: int) -> Attacked:
        state = state._replace(process=memory)
        if memory.revoked & bit(key):
            state = state._replace(broken=f"key {key} is destroyed or compromised, and seals again")
        return state


class TreeRotator:
    """Rotates the scope's key; sound tables, one step."""

    name = "rotator"
    index = NONE

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """Replace the active key."""
        old, mark = holder_of(state), state.tables.mark
        if not state.budget.rotations or old == NONE or not world.believes(state, mark, old):
            return
        row = state.tables.rows[old]
        if row.state == ACTIVE and world.takes(mark, None):
            closed = Row(DEACTIVATED, slot=False, version=row.version + 1)
            after = changed(state, {old: closed, len(state.tables.rows): Row()})
            yield Label(self.name, steps.REPLACE_ACTIVE, f"key {old}"), spent(after, "rotations")


class ItemMover:
    """Re-encrypts items by their headers, in its own tables; not those whose column names another key."""

    name = "job"
    index = NONE

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """Move an item under the active key."""
        target = holder_of(state)
        if target == NONE or state.tables.rows[target].state != ACTIVE:
            return
        for place, item in enumerate(state.items):
            if item is None or item.key == target or item.key != item.column or state.fenced & bit(target):
                continue
            if state.registry[world.places[place]] == OURS and state.tables.rows[item.key].state in OPENS:
                items = put(state.items, place, item._replace(key=target, column=target))
                yield Label(self.name, steps.SWAP, f"item {place}"), state._replace(items=items)


class TreeRetirer:
    """Retires a key: fence and count, of every table and by header, then the row and the tree's entry."""

    name = "retirer"

    def __init__(self) -> None:
        self.index = NONE

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """Count, or destroy."""
        stand, mark = state.stands[self.index], state.tables.mark
        if stand.at == "counted":
            yield self._destroyed(world, state, stand)
            return
        for key, row in enumerate(state.tables.rows):
            retirable = (
                row.state in RETIRABLE and world.takes(mark, None) and world.believes(state, mark, key)
            )
            if retirable and not self._is_needed(world, state, key):
                counted = Stand("counted", key=key, rows=((key, row.version),))
                after = state._replace(fenced=state.fenced | bit(key))
                note = f"none under key {key}"
                yield Label(self.name, steps.COUNT, note), with_stand(after, self.index, counted)

    def _is_needed(self, world: AttackedWorld, state: Attacked, key: int) -> bool:
        mistake = world.mistake
        if UNREGISTERED in state.registry and mistake is not AttackMistake.REGISTRY_BELIEVED:
            return True  # refused: a table looks sealed, and is not registered
        counted = {OURS} if mistake is AttackMistake.OWN_TABLES_ALONE else {OURS, THEIRS}
        return any(
            item is not None
            and state.registry[world.places[place]] in counted
            and (item.column == key or (item.key == key and mistake is not AttackMistake.COUNT_BY_COLUMN))
            for place, item in enumerate(state.items)
        )

    def _destroyed(self, world: AttackedWorld, state: Attacked, stand: Stand) -> tuple[Label, Attacked]:
        key = stand.key
        idle = with_stand(state, self.index, Stand())
        row, mark = state.tables.rows[key], state.tables.mark
        proven = state.tables.leaves[key] == mark.tree[key] and world.takes(mark, None)
        if not proven or not world.believes(state, mark, key) or ((key, row.version),) != stand.rows:
            return Label(self.name, steps.RETIRE, "refused, or moved on"), idle
        entry = "" if world.mistake is AttackMistake.RETIRED_NOT_LISTED else RETIRED
        tombstone = Row(RETIRED, slot=False, version=row.version + 1)
        return Label(self.name, steps.RETIRE, f"key {key}"), changed(
            idle, {key: tombstone}, entries={key: entry}
        )


class TreeShredder:
    """Shreds the scope, and again if somebody has put back a row of a key that is destroyed."""

    name = "shredder"

    def __init__(self) -> None:
        self.index = NONE

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """Read the scope's rows, or destroy them."""
        stand, mark = state.stands[self.index], state.tables.mark
        if stand.at == "read":
            if stand.leaves_slot or not is_being_taken(state):  # on the slot, first use and shred meet
                yield self._destroyed(world, state, stand)
            return
        put_back = is_closed(state.truth.mark) and any(
            row.sealed and row.state in OPENS for row in state.tables.rows
        )
        if (state.budget.shreds or put_back) and world.takes(mark, None):
            read = self._read(world, state, mark)
            if read is not None:
                yield Label(self.name, steps.OF_SCOPE), with_stand(state, self.index, read)

    def _read(self, world: AttackedWorld, state: Attacked, mark: Mark) -> Stand | None:
        rows: list[tuple[int, int]] = []
        edited: list[int] = []
        if world.mistake is AttackMistake.SHRED_ONCE and is_closed(mark):
            return None
        for key, row in enumerate(state.tables.rows):
            how = world.leaf(state, mark, key)
            if how in ENDED and not row.sealed and world.mistake is not AttackMistake.STOPPED_BY_EDITS:
                edited.append(key)
            elif how is None or not row.sealed or (how not in ENDED and row.state not in LATER[how]):
                return None  # an error that names the row, or the leaf
            else:
                rows.append((key, row.version))
        held = any(state.tables.rows[key].slot for key in edited)
        leaves_slot = held and world.mistake is AttackMistake.SLOT_LEFT
        return Stand("read", rows=tuple(rows), edited=tuple(edited), leaves_slot=leaves_slot)

    def _destroyed(self, world: AttackedWorld, state: Attacked, stand: Stand) -> tuple[Label, Attacked]:
        idle, tables = with_stand(state, self.index, Stand()), state.tables
        keys = [key for key, _ in stand.rows]
        left_out = {*keys, *stand.edited}
        moved = any(tables.rows[key].version != version for key, version in stand.rows)
        others = any(row.state in OPENS for key, row in enumerate(tables.rows) if key not in left_out)
        proven = all(tables.leaves[key] == tables.mark.tree[key] for key in (*keys, SCOPE))
        if moved or others or not proven or not world.takes(tables.mark, None):
            return Label(self.name, steps.SET_STATES, "refused, or once more"), idle
        ends = [key for key in keys if tables.rows[key].state != RETIRED]
        held = [key for key in ends if tables.rows[key].slot]
        holder = NONE if stand.leaves_slot else max(held or ends, default=NONE)
        rows, fenced = {}, state.fenced
        if not stand.leaves_slot:  # whatever edited row holds it
            left = [row._replace(slot=row.slot and n in keys) for n, row in enumerate(tables.rows)]
            idle = idle._replace(tables=tables._replace(rows=tuple(left)))
        for key in keys:
            row = tables.rows[key]
            state_after = row.state if row.state in ENDED else SHREDDED
            fenced |= bit(key)
            rows[key] = Row(state_after, slot=key == holder, version=row.version + 1)
        entries = {key: SHREDDED for key in keys if tables.rows[key].state in OPENS}
        after = spent(changed(idle, rows, entries=entries, closed=True), "shreds")
        items = tuple(item and item._replace(late=False) for item in after.items)
        after = after._replace(items=items, fenced=fenced)
        return Label(self.name, steps.SET_STATES, f"keys {list(entries)}"), after


class TreeReopener:
    """Reopens the scope: what names a destroyed key of it is listed first."""

    name = "reopener"

    def __init__(self) -> None:
        self.index = NONE

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """List what is erased, and free the slot."""
        stand, mark = state.stands[self.index], state.tables.mark
        if stand.at == "listed":
            yield self._freed(world, state, stand, "")
        elif stand.at == "freed":
            yield Label(self.name, steps.LIST_ERASED), self._listed(state, Stand())
        elif state.budget.reopens and is_closed(mark) and world.takes(mark, None):
            rows = tuple(
                (key, row.version)
                for key, row in enumerate(state.tables.rows)
                if world.believes(state, mark, key)
            )
            read = Stand("listed", rows=rows)
            if world.leaf(state, mark, SCOPE) is None:
                return  # an error that names the leaf
            if world.mistake is AttackMistake.LISTED_LATE:
                yield self._freed(world, state, read, "freed")
            else:
                yield Label(self.name, steps.LIST_ERASED), self._listed(state, read)

    def _listed(self, state: Attacked, stand: Stand) -> Attacked:
        listed = {
            (place, item.key, item.junk)
            for place, item in enumerate(state.items)
            if item is not None and state.tables.rows[item.key].state == SHREDDED
        }
        return with_stand(state._replace(listed=state.listed | listed), self.index, stand)

    def _freed(
        self, world: AttackedWorld, state: Attacked, stand: Stand, then: str
    ) -> tuple[Label, Attacked]:
        idle, tables = with_stand(state, self.index, Stand()), state.tables
        proven = tables.leaves[SCOPE] == tables.mark.tree[SCOPE] and world.takes(tables.mark, None)
        if not proven or any(tables.rows[key].version != version for key, version in stand.rows):
            return Label(self.name, steps.FREE_SLOT, "refused, or once more"), idle
        rows = {
            key: tables.rows[key]._replace(slot=False, version=version + 1)
            for key, version in stand.rows
            if tables.rows[key].slot
        }
        after = spent(changed(idle, rows, closed=False), "reopens")
        return Label(self.name, steps.FREE_SLOT), with_stand(after, self.index, Stand(then or IDLE))

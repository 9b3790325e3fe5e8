"""What somebody does who edits the database, and what the remedies of the errors undo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import steps
from tests.protocol.attacked import (
    ENDED,
    OURS,
    THEIRS,
    UNREGISTERED,
    Row,
    Tables,
    holder_of,
    is_being_taken,
    spent,
)
from tests.protocol.checker import Label
from tests.protocol.state import NONE, SHREDDED, bit, put

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.attacked import Attacked, AttackedWorld, Moves


class Attacker:
    """
    Writes to the database, and cannot call the KMS.

    Args:
        kinds: Steps of :mod:`tests.protocol.steps` that it may take.
    """

    def __init__(self, *kinds: str) -> None:
        self.name = "attacker"
        self.index = NONE
        self._kinds = kinds

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """Keep a copy of the key tables, or edit a row."""
        if state.budget.copies:
            copied = spent(state._replace(copy=state.tables), "copies")
            yield Label(self.name, steps.COPY_TABLES, fault=True), copied
        if not state.budget.attacks:
            return
        for kind in self._kinds:
            for note, after in _EDITS[kind](world, state):
                yield Label(self.name, kind, note, fault=True), spent(after, "attacks")


def _rows_put_back(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    """Of keys that are revoked: what is merely deactivated can be made active again."""
    for number, old in enumerate(state.copy.rows if state.copy else ()):
        row = state.tables.rows[number]
        fits = not old.slot or row.slot or _is_free(state)  # two rows in one slot the database refuses
        if fits and state.truth.mark.revoked & bit(number) and old != row:
            yield f"key {number}: {old.state}", _with_row(state, number, old)


def _slots_freed(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    for number, row in enumerate(state.tables.rows):
        if row.slot and row.state in ENDED:
            yield f"key {number}", _with_row(state, number, row._replace(slot=False, sealed=False))


def _slots_given(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    for number, row in enumerate(state.tables.rows):
        if row.state in ENDED and _is_free(state):
            yield f"key {number}", _with_row(state, number, row._replace(slot=True, sealed=False))


def _leaves_put_back(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    for number, old in enumerate(state.copy.leaves if state.copy else ()):
        if old != state.tables.leaves[number]:
            yield f"leaf {number}", _with_leaf(state, number, old)


def _leaves_deleted(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    for number, leaf in enumerate(state.tables.leaves):
        if leaf:
            yield f"leaf {number}", _with_leaf(state, number, None)


def _old_mark_put_back(world: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    if world.old_mark and state.tables.mark != world.old_mark:
        yield "", state._replace(tables=state.tables._replace(mark=world.old_mark))


def _tables_put_back(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    if state.copy and state.copy != state.tables:
        yield "", state._replace(tables=state.copy)


def _registry_edited(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    for table, said in enumerate(state.registry):
        for other in (THEIRS, UNREGISTERED):
            if other != said:
                yield f"table {table}: {other}", state._replace(registry=put(state.registry, table, other))


def _columns_set(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    for place, item in enumerate(state.items):
        for other in (NONE, *range(len(state.tables.rows))):
            if item is not None and other != item.column:
                edited = item._replace(column=other)
                yield f"item {place}: key {other}", state._replace(items=put(state.items, place, edited))


def _junk_written(_: AttackedWorld, state: Attacked) -> Iterator[tuple[str, Attacked]]:
    for place, item in enumerate(state.items):
        for number, row in enumerate(state.tables.rows):
            if item is not None and row.state == SHREDDED:
                junk = item._replace(key=number, column=number, junk=True)
                if junk != item:
                    yield f"item {place}: key {number}", state._replace(items=put(state.items, place, junk))


_EDITS = {
    steps.PUT_ROW_BACK: _rows_put_back,
    steps.FREE_TOMBSTONE: _slots_freed,
    steps.GIVE_SLOT: _slots_given,
    steps.PUT_LEAF_BACK: _leaves_put_back,
    steps.DELETE_LEAF: _leaves_deleted,
    steps.PUT_OLD_MARK_BACK: _old_mark_put_back,
    steps.PUT_TABLES_BACK: _tables_put_back,
    steps.EDIT_REGISTRY: _registry_edited,
    steps.SET_COLUMN: _columns_set,
    steps.WRITE_JUNK: _junk_written,
}


class Repair:
    """Follows the remedies of the errors. Rows of destroyed keys stay as they are: no error asks for them."""

    name = "repair"
    index = NONE

    def moves(self, world: AttackedWorld, state: Attacked) -> Moves:
        """Restore the tree with the mark, the rows of keys that live, the registry and the columns."""
        tables, truth = state.tables, state.truth
        rows = tuple(
            row if true.state in ENDED else true for row, true in zip(tables.rows, truth.rows, strict=True)
        )
        items = tuple(item and item._replace(column=item.key) for item in state.items)
        repaired = state._replace(
            tables=Tables(rows, truth.leaves, truth.mark), items=items, registry=(OURS,) * len(state.registry)
        )
        if repaired != state:
            yield Label(self.name, steps.REPAIR), repaired


def _is_free(state: Attacked) -> bool:
    return holder_of(state) == NONE and not is_being_taken(state)


def _with_row(state: Attacked, number: int, row: Row) -> Attacked:
    return state._replace(tables=state.tables._replace(rows=put(state.tables.rows, number, row)))


def _with_leaf(state: Attacked, number: int, leaf: object) -> Attacked:
    return state._replace(tables=state.tables._replace(leaves=put(state.tables.leaves, number, leaf)))

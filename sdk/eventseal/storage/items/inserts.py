"""
The INSERTs of items, fenced by their key.

Each database gets the form that suits it best.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    LargeBinary,
    Text,
    Uuid,
    bindparam,
    column,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy import types as sqltypes

from eventseal.storage.database.column_types import BinaryUUID, ExactDecimal, ExactInteger
from eventseal.storage.items.columns import ItemColumns, is_text
from eventseal.storage.items.fences import OPEN
from eventseal.storage.keys.tables import key_fences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import BindParameter, ColumnClause, Insert, Select
    from sqlalchemy.engine import Connection
    from sqlalchemy.types import TypeEngine


Row: TypeAlias = tuple[Any, ...]
"""An item's values in the order of ``ItemInserts.columns``."""

RowsByKey: TypeAlias = "Mapping[UUID | None, Sequence[Row]]"

_FENCE, _KEY = "fence_key_id", "item_key_id"


class ItemInserts:
    """
    The INSERT statements of one table, each built once.

    Args:
        columns: The table's columns as the item class sees them.
    """

    def __init__(self, columns: ItemColumns) -> None:
        self.table = columns.table
        self.columns: tuple[Column[Any], ...] = tuple(c for c in columns.columns if c is not columns.key_id)
        self._key_id = columns.key_id
        self._names = [*map(_name, range(len(self.columns))), *([] if self._key_id is None else [_KEY])]

    def execute(self, connection: Connection, rows_by_key: RowsByKey) -> bool:
        """
        Insert all rows, those of each key in one statement.

        The keys are in order, so that two batches do not deadlock.

        Returns:
            Whether every row was inserted. If not, a fence was not open, and the caller must roll back.
        """
        self._unfenced(connection, None, rows_by_key.get(None, ()))
        return all(
            self._fenced(connection, key_id, rows_by_key[key_id])
            for key_id in sorted(key_id for key_id in rows_by_key if key_id is not None)
        )

    def _fenced(self, connection: Connection, key_id: UUID, rows: Sequence[Row]) -> bool:
        """Insert one key's rows, if its fence is open."""
        if len(rows) > 1 and connection.dialect.name == "postgresql" and self._many is not None:
            arrays = [list(values) for values in zip(*rows, strict=True)]
            inserted = connection.execute(self._many, {**self._parameters(arrays, key_id), _FENCE: key_id})
            return inserted.rowcount == len(rows)
        first = connection.execute(self._one, {**self._parameters(rows[0], key_id), _FENCE: key_id})
        if not first.rowcount:
            return False
        # The lock of the first INSERT covers the others too: a condition on every row was slower
        # (docs/decisions/0007).
        self._unfenced(connection, key_id, rows[1:])
        return True

    def _unfenced(self, connection: Connection, key_id: UUID | None, rows: Sequence[Row]) -> None:
        if rows:
            connection.execute(self._plain, [self._parameters(row, key_id) for row in rows])

    @cached_property
    def _plain(self) -> Insert:
        values: dict[Column[Any], Any] = dict(zip(self.columns, self._values, strict=True))
        return insert(self.table).values(
            values if self._key_id is None else {**values, self._key_id: self._key}
        )

    @cached_property
    def _one(self) -> Insert:
        """
        Insert one item, if its fence is open.

        On PostgreSQL it locks the fence's row. It must be FOR SHARE, because FOR KEY SHARE does not stop the
        UPDATE that closes the fence. On SQLite the write lock, which an INSERT takes, is the fence.
        """
        return self._insert_from(_open_fence(*self._values, self._key).with_for_update(read=True))

    @cached_property
    def _many(self) -> Insert | None:
        """
        Insert several items on PostgreSQL, with one lock.

        It is ``None`` if an array would change a column's values. It uses arrays instead of VALUES: there is
        only one statement to cache, and no limit on parameters (docs/decisions/0007).
        """
        # Not named `column`: Python 3.12.1 then takes the function of that name below for a variable.
        elements = [_array_element(each.type) for each in self.columns]
        if any(element is None for element in elements):
            return None
        locked = _open_fence(key_fences.c.key_id).with_for_update(read=True)
        fence = locked.cte("fence").prefix_with("MATERIALIZED")
        arrays = [
            bindparam(_name(n), type_=ARRAY(kind)) for n, kind in enumerate(elements) if kind is not None
        ]
        names: list[ColumnClause[Any]] = [column(_name(n)) for n in range(len(arrays))]
        rows = func.unnest(*arrays).table_valued(*names, name="item").render_derived()
        fenced_rows = fence.join(rows, literal_column("true"))
        return self._insert_from(select(*rows.c, self._key).select_from(fenced_rows))

    @property
    def _values(self) -> list[Any]:
        return [bindparam(_name(n), type_=column.type) for n, column in enumerate(self.columns)]

    def _insert_from(self, source: Select[Any]) -> Insert:
        statement = insert(self.table).from_select([*self.columns, self._key_column], source)
        return statement.execution_options(preserve_rowcount=True)  # by default kept for an UPDATE only

    @property
    def _key(self) -> BindParameter[Any]:
        # In the column's own type, which may differ from the type in the fences.
        return bindparam(_KEY, type_=self._key_column.type)

    @property
    def _key_column(self) -> Column[Any]:
        if self._key_id is None:
            raise TypeError("a table without key_id accepts only plaintext rows")
        return self._key_id

    def _parameters(self, values: Sequence[Any], key_id: UUID | None) -> dict[str, Any]:
        return dict(zip(self._names, [*values, key_id], strict=False))  # a plaintext table has no key


def _name(number: int) -> str:
    # Not the column's own name, because SQLAlchemy reserves those names in an INSERT.
    return f"item_{number}"


def _open_fence(*columns: Any) -> Select[Any]:
    wanted = bindparam(_FENCE, type_=key_fences.c.key_id.type)
    return select(*columns).where(
        key_fences.c.key_id == wanted, key_fences.c.state == literal_column(f"'{OPEN}'")
    )


def _array_element(kind: TypeEngine[Any]) -> TypeEngine[Any] | None:
    """
    Return the array type for a column's values.

    It is ``None`` if a cast to the type might change a value.
    """
    if is_text(kind):
        return Text()  # without a length, because a cast to VARCHAR(n) would silently cut the text
    if isinstance(kind, BinaryUUID | ExactDecimal | ExactInteger | Uuid | LargeBinary):
        return kind
    if isinstance(kind, sqltypes.Integer):
        return BigInteger()
    return None

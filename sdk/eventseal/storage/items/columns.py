"""
Finds the columns of a sequenced item from its two classes.

The two classes are the record class and the item class.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import Column, LargeBinary, Table, UniqueConstraint, Uuid, literal, tuple_
from sqlalchemy import types as sqltypes

from eventseal.errors import ConfigurationError
from eventseal.storage.database.column_types import BinaryUUID, ExactDecimal, ExactInteger, ExactText
from eventseal.storage.database.table_setup import KEY_ID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.types import TypeEngine


DEFAULT_COLLECTION = "items"
ROLES = ("sequence_id", "position", "topic", "data")
"""The meaning of the first four fields of an item, in order."""

_BINARY_COLLATIONS = frozenset({None, "BINARY", "C", "POSIX", "ucs_basic"})


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """
    A table's columns as an item class sees them.

    Attributes:
        table: The table of the items.
        fields: The fields of the item class that have a column, in the class's order.
        columns: The column of each field.
        key_id: The column of key ids, if there is one.
        collection: The record class's logical name.
        former_collection: The previous logical name, if the record class declares one.
    """

    table: Table
    fields: tuple[str, ...]
    columns: tuple[Column[Any], ...]
    key_id: Column[Any] | None
    collection: str
    former_collection: str | None = None

    @property
    def sequence_id(self) -> Column[Any]:
        """The column of sequence ids: the stream of an item."""
        return self.columns[0]

    @property
    def position(self) -> Column[Any]:
        """The column of positions in the stream."""
        return self.columns[1]

    @property
    def topic(self) -> Column[Any]:
        """The column of topics: the class of an event."""
        return self.columns[2]

    @property
    def data(self) -> Column[Any]:
        """The column of data: an envelope, or plaintext bytes."""
        return self.columns[3]

    @property
    def place(self) -> tuple[Column[Any], Column[Any]]:
        """The columns of sequence id and position. Together they are unique in the table."""
        return self.sequence_id, self.position


def item_fields(item_class: type[Any]) -> tuple[str, ...]:
    """
    Return the fields of a named tuple or a dataclass, in order.

    Raises:
        ConfigurationError: The class is neither of them, or has fewer than four fields.
    """
    names = getattr(item_class, "_fields", None)
    if names is None and dataclasses.is_dataclass(item_class):
        names = [field.name for field in dataclasses.fields(item_class)]
    if names is None or len(names) < len(ROLES):
        raise ConfigurationError(
            f"{item_class.__qualname__} is not an item class",
            remedy="Use a named tuple or a dataclass whose first four fields, under any names, are: "
            f"{', '.join(ROLES)}.",
        )
    return tuple(names)


def item_columns(record_class: type[Any], item_class: type[Any]) -> ItemColumns:
    """
    Match the item class's fields with the record class's columns, by name.

    Raises:
        ConfigurationError: A field has no column, or a column cannot hold the values of its field.
    """
    columns = _mapped_columns(record_class)
    fields = item_fields(item_class)
    missing = [name for name in fields if name not in columns and name != KEY_ID]
    if missing:
        raise ConfigurationError(
            f"{record_class.__qualname__} lacks {', '.join(missing)} of {item_class.__qualname__}",
            remedy="Rename the record class's columns to the names of the item class's fields.",
        )
    stored = tuple(name for name in fields if name in columns)
    return _checked(record_class, stored, [columns[name] for name in stored], columns.get(KEY_ID))


def sealed_columns(record_class: type[Any]) -> ItemColumns | None:
    """
    Find the item columns of a record class alone, for the registry.

    These are the columns ``sequence_id``, ``position``, ``topic`` and ``data``. If one of them is missing,
    these are the first four columns in order, without ``key_id`` and a primary key of one column.

    Returns:
        ``None`` for a table that holds no sealed items: a table without a ``key_id`` of a UUID type.

    Raises:
        ConfigurationError: There is such a ``key_id``, but the other columns are not those of an item.
    """
    columns = _mapped_columns(record_class)
    key_id = columns.get(KEY_ID)
    if key_id is None or not isinstance(key_id.type, BinaryUUID | Uuid):
        return None
    names = ROLES if columns.keys() >= set(ROLES) else _first_names(record_class, columns)
    return _checked(record_class, names, [columns[name] for name in names], key_id)


def comes_after(place: Sequence[Column[Any]], values: Sequence[Any]) -> ColumnElement[bool]:
    """Return the SQL condition that a row's place is after *values*. The order is that of *place*."""
    # Each value gets its column's type. A guessed type would send and compare it in another form.
    bounds = [literal(value, column.type) for column, value in zip(place, values, strict=True)]
    return tuple_(*place) > tuple_(*bounds)


def is_text(kind: TypeEngine[Any]) -> bool:
    """Return whether a type holds text that is compared byte for byte."""
    if isinstance(kind, ExactText):
        return True
    return (
        isinstance(kind, sqltypes.String)
        and not isinstance(kind, sqltypes.CHAR | sqltypes.Enum)
        and kind.collation in _BINARY_COLLATIONS
    )


def _mapped_columns(record_class: type[Any]) -> dict[str, Column[Any]]:
    mapper = sqlalchemy.inspect(record_class, raiseerr=False)
    table = getattr(record_class, "__table__", None)
    if mapper is None or not isinstance(table, Table):
        raise ConfigurationError(
            f"{record_class!r} is not a record class",
            remedy="Pass a declarative class that is mapped to one table.",
        )
    return {name: column for name, column in mapper.columns.items() if isinstance(column, Column)}


def _first_names(record_class: type[Any], columns: Mapping[str, Column[Any]]) -> tuple[str, ...]:
    # An item's own key has two columns, so a primary key of one column only numbers the rows.
    primary_key = {name for name, column in columns.items() if column.primary_key}
    left_out = {KEY_ID} | (primary_key if len(primary_key) == 1 else set())
    names = [name for name in columns if name not in left_out]
    if len(names) < len(ROLES):
        raise ConfigurationError(
            f"{record_class.__qualname__} has a key_id, but lacks the four columns of an item",
            remedy=f"Declare them first, in this order: {', '.join(ROLES)}. "
            "If the table holds no items, leave the class out of the tables.",
        )
    return tuple(names[: len(ROLES)])


def _checked(
    record_class: type[Any],
    fields: tuple[str, ...],
    columns: Sequence[Column[Any]],
    key_id: Column[Any] | None,
) -> ItemColumns:
    name = record_class.__qualname__
    collection = getattr(record_class, "__collection__", DEFAULT_COLLECTION)
    former = getattr(record_class, "__former_collection__", None)
    found = ItemColumns(record_class.__table__, fields, tuple(columns), key_id, collection, former)
    _require(
        name, found.sequence_id, _holds_sequence_id(found.sequence_id.type), "a UUID, an integer or text"
    )
    _require(name, found.position, _holds_position(found.position.type), "an integer or ExactDecimal()")
    _require(name, found.topic, is_text(found.topic.type), "text")
    _require(name, found.data, isinstance(found.data.type, LargeBinary), "binary")
    if key_id is not None:
        _require(name, key_id, isinstance(key_id.type, BinaryUUID | Uuid), "BinaryUUID()")
        _require(name, key_id, bool(key_id.nullable), "nullable, because a plaintext item has no key")
    if not _is_unique(found):
        raise ConfigurationError(
            f"{name}: {found.sequence_id.name} and {found.position.name} are not unique together",
            remedy="Declare them as the primary key or as a unique constraint, "
            "which stops the second of two writers.",
        )
    return found


def _require(record: str, column: Column[Any], holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigurationError(
            f"{record}.{column.name} is {column.type!r}, but must be {wanted}",
            remedy="Use the types of eventseal.storage. They keep a place exactly as it was sealed.",
        )


def _holds_sequence_id(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, BinaryUUID | Uuid) or is_text(kind) or _is_integer(kind)


def _holds_position(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, ExactDecimal) or _is_integer(kind)


def _is_integer(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, ExactInteger | sqltypes.Integer)


def _is_unique(found: ItemColumns) -> bool:
    wanted = {column.name for column in found.place}
    keys = [found.table.primary_key, *(c for c in found.table.constraints if isinstance(c, UniqueConstraint))]
    keys += [index for index in found.table.indexes if index.unique]  # type: ignore[misc]
    return any({column.name for column in key.columns} == wanted for key in keys)

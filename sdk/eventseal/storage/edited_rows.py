"""Rows that somebody edited so that a column cannot be read: each is kept from stopping those beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Label, type_coerce
from sqlalchemy.types import NullType, TypeDecorator

from eventseal.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from sqlalchemy import ColumnElement, Select, Table
    from sqlalchemy.engine import Connection, Dialect, Engine
    from sqlalchemy.types import TypeEngine

UNREADABLE = "unreadable"
"""What is shown in place of a value that cannot be read."""

_UNREADABLE: Any = object()


class ReadRow(NamedTuple):
    """
    A row as far as it can be read.

    Attributes:
        values: By the column's name.
        unreadable: The names of the columns that hold what none of their kind does.
    """

    values: Mapping[Any, Any]
    unreadable: tuple[str, ...] = ()


def read_rows(connection: Connection, query: Select[Any]) -> list[ReadRow]:
    """
    Read rows, also if somebody edited some of them.

    Args:
        connection: In the caller's transaction.
        query: Selects columns, each under a name of its own.
    """
    try:
        return list(map(ReadRow, connection.execute(query).mappings().all()))
    except IntegrityError:
        # Rare: the types give no other error for what was stored. So all is read once more.
        lenient = query.with_only_columns(*map(_as_far_as_readable, query.selected_columns))
        return [_read_row(row._asdict()) for row in connection.execute(lenient)]


def as_sql(place: Engine | Connection, value: UUID | str) -> str:
    """Write a value as a statement has it that a person types: a remedy names the row."""
    if isinstance(value, str):
        return "'{}'".format(value.replace("'", "''"))
    return f"'{value}'" if place.dialect.name == "postgresql" else f"X'{value.hex}'"


def deletion(table: Table, where: str) -> str:
    """Write the statement by which a person deletes rows."""
    return f"DELETE FROM {table.name} WHERE {where};"  # noqa: S608 - nobody runs it but who reads it


def _as_far_as_readable(column: ColumnElement[Any]) -> ColumnElement[Any]:
    of = column.element if isinstance(column, Label) else column
    return type_coerce(of, _AsFarAsReadable(column.type)).label(column.key)


def _read_row(found: Mapping[str, Any]) -> ReadRow:
    return ReadRow(
        {name: value for name, value in found.items() if value is not _UNREADABLE},
        tuple(name for name, value in found.items() if value is _UNREADABLE),
    )


class _AsFarAsReadable(TypeDecorator[Any]):
    """Reads as another type does; gives ``_UNREADABLE`` where that raises."""

    impl = NullType
    cache_ok = True

    def __init__(self, kind: TypeEngine[Any]) -> None:
        super().__init__()
        self.kind = kind

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        found = self.kind.column_expression(column)
        return column if found is None else found

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        process = self.kind.dialect_impl(dialect).result_processor(dialect, coltype)

        def read(stored: Any) -> Any:
            try:
                return stored if process is None else process(stored)
            except IntegrityError:
                return _UNREADABLE

        return read

"""Rows that somebody edited so that a column cannot be read: each is kept from stopping those beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from eventseal.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column, ColumnElement, Select, Table
    from sqlalchemy.engine import Connection


class ReadRow(NamedTuple):
    """
    A row as far as it can be read.

    Attributes:
        values: By the column's name.
        unreadable: The names of the columns that hold what none of their kind does.
    """

    values: Mapping[str, Any]
    unreadable: tuple[str, ...] = ()


def read_rows(connection: Connection, table: Table, query: Select[Any]) -> list[ReadRow]:
    """
    Read rows, also if somebody edited some of them.

    Args:
        connection: In the caller's transaction.
        table: Whose rows.
        query: Selects all columns of *table*.

    Raises:
        IntegrityError: Not even the primary key of one of them can be read.
    """
    try:
        return [ReadRow(row._asdict()) for row in connection.execute(query)]
    except IntegrityError:
        pass
    # Rare, and then slow: row by row, and column by column where a row cannot be read.
    keys = list(table.primary_key.columns)
    return [
        _read_row(connection, table, [column == value for column, value in zip(keys, key, strict=True)])
        for key in connection.execute(query.with_only_columns(*keys)).all()
    ]


def _read_row(connection: Connection, table: Table, place: list[ColumnElement[bool]]) -> ReadRow:
    values: dict[str, Any] = {}
    unreadable: list[str] = []
    for column in table.columns:
        try:
            values[column.name] = _value(connection, column, place)
        except IntegrityError:
            unreadable.append(column.name)
    return ReadRow(values, tuple(unreadable))


def _value(connection: Connection, column: Column[Any], place: list[ColumnElement[bool]]) -> Any:
    return connection.execute(select(column).where(*place)).scalar_one()

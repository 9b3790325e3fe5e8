"""Rows that somebody may have edited: column types and readers that answer an edit with one error."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import JSON, Float, Label, type_coerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeDecorator

from eventseal.errors import IntegrityError
from eventseal.storage.database.column_types import ExactText, edited, is_utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from sqlalchemy import ColumnElement, Select, Table
    from sqlalchemy.engine import Connection, Dialect, Engine
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine


# ruff: noqa: ARG002 - the signatures are SQLAlchemy's


MOST_SECONDS = 1e11
"""Over 3,000 years: a time of the database's clock and so many seconds is a time that Python has."""


LEAST_RATE = 0.001
"""Items a second: one in 17 minutes. What is slower never ends."""


class StoredText(ExactText):
    """Text in a table of EventSeal's own: an edit alone puts there what could not be written or shown."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Give the text, if it is one that could be stored."""
        text = super().process_result_value(value, dialect)
        if text is not None and ("\0" in text or not is_utf8(text)):
            raise edited("text")
        return text


class Seconds(TypeDecorator[float]):
    """A length of time, or a time since 1970: from 0 to :data:`MOST_SECONDS`."""

    impl = Float
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        """Give the number, if it is one."""
        if value is None:
            return None
        if not isinstance(value, float | int) or not 0 <= value <= MOST_SECONDS:  # nor NaN
            raise edited("seconds")
        return value


class Rate(TypeDecorator[float]):
    """Things a second: from :data:`LEAST_RATE`, and finite."""

    impl = Float
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        """Give the number, if it is one."""
        if value is None or (isinstance(value, float | int) and LEAST_RATE <= value < math.inf):
            return value
        raise edited("rates")


class StoredJSON(TypeDecorator[Any]):
    """JSON of EventSeal's own, which an edit may have turned into anything."""

    impl = JSON
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Ask for the text."""
        return _JSONAsText(column)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Read the text."""
        return _read_json


class _JSONAsText(FunctionElement[Any]):
    """The text of JSON: what a driver makes of bad JSON is not the same everywhere."""

    inherit_cache = True

    def __init__(self, column: ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(_JSONAsText)
def _as_text(element: _JSONAsText, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS TEXT)"


def _read_json(stored: Any) -> Any:
    if stored is None:
        return None
    try:
        return json.loads(stored, parse_constant=_no_constant)
    except (TypeError, ValueError, RecursionError):
        raise edited("JSON") from None


def _no_constant(constant: str) -> None:
    raise ValueError(constant)


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

"""Rows of EventSeal's own tables: read although somebody may have edited them, and inserted."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import Label, type_coerce
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import NullType, TypeDecorator

from eventseal.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from uuid import UUID

    from sqlalchemy import ColumnElement, Select, Table
    from sqlalchemy.engine import Connection, Dialect, Engine
    from sqlalchemy.types import TypeEngine

T = TypeVar("T")
_CHUNK = 500
"""Values in one IN list: far under what any database takes."""

Checks: TypeAlias = "Mapping[str, Callable[[Any], bool]]"

NO_CHECKS: Checks = MappingProxyType({})
_MOST_COUNTED = 2**62

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


def read_rows(connection: Connection, query: Select[Any], checks: Checks = NO_CHECKS) -> list[ReadRow]:
    """
    Read rows, also if somebody edited some of them.

    Args:
        connection: In the caller's transaction.
        query: Selects columns, each under a name of its own.
        checks: The table's: by column, what its type does not say of a value. One that does not fit counts as
            unreadable, and stays among the values.
    """
    try:
        rows = list(map(ReadRow, connection.execute(query).mappings().all()))
    except IntegrityError:
        # Rare: the types give no other error for what was stored. So all is read once more, and one bad row
        # costs one row (docs/decisions/0024).
        lenient = query.with_only_columns(*map(_as_far_as_readable, query.selected_columns))
        rows = [_read_row(row._asdict()) for row in connection.execute(lenient)]
    return [_checked(row, checks) for row in rows] if checks else rows


def is_count(value: int) -> bool:
    """Whether a number is a count: not negative, and with room to count on in 64 bits."""
    return 0 <= value < _MOST_COUNTED


def are_texts(value: Any) -> bool:
    """Whether a value from JSON is a list of text."""
    return type(value) is list and all(type(each) is str for each in value)


def _checked(row: ReadRow, checks: Checks) -> ReadRow:
    unfit = [name for name, fits in checks.items() if name in row.values and not fits(row.values[name])]
    return row._replace(unreadable=(*row.unreadable, *unfit)) if unfit else row


def as_sql(database: Engine | Connection, value: UUID | str) -> str:
    """Write a value as a statement has it that a person types: a remedy names the row."""
    if isinstance(value, str):
        return "'{}'".format(value.replace("'", "''"))
    return f"'{value}'" if database.dialect.name == "postgresql" else f"X'{value.hex}'"


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


def chunks(values: Iterable[T], size: int = _CHUNK) -> Iterator[list[T]]:
    """Cut *values* into lists of *size*; if nothing else is said, of as many as an IN takes."""
    rest = list(values)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


def insertion(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Begin an INSERT that may say what becomes of a row whose key is taken."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def insert_unless_there(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Begin an INSERT that leaves out a row whose key, or other unique value, is taken."""
    return insertion(connection, table).on_conflict_do_nothing()

"""Reading and inserting rows of EventSeal's own tables. Somebody may have edited the rows that are read."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import Label, dialects, type_coerce
from sqlalchemy.types import NullType, TypeDecorator

from eventseal.errors import IntegrityError
from eventseal.storage.database.layout import quoted_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from uuid import UUID

    from sqlalchemy import ColumnElement, Select, Table
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.engine import Connection, Dialect, Engine
    from sqlalchemy.types import TypeEngine

T = TypeVar("T")
_CHUNK = 500
"""Values in one IN list. It is far below the limit of any database."""

Checks: TypeAlias = "Mapping[str, Callable[[Any], bool]]"

NO_CHECKS: Checks = MappingProxyType({})
_MOST_COUNTED = 2**62

UNREADABLE = "unreadable"
"""The text in place of a value that cannot be read."""

_UNREADABLE: Any = object()


class ReadRow(NamedTuple):
    """
    The readable part of a row.

    Attributes:
        values: The values by column name.
        unreadable: The names of the columns that hold a value of another kind than their own.
    """

    values: Mapping[Any, Any]
    unreadable: tuple[str, ...] = ()


def read_rows(connection: Connection, query: Select[Any], checks: Checks = NO_CHECKS) -> list[ReadRow]:
    """
    Read rows, even if somebody edited some of them.

    Args:
        connection: A connection in the caller's transaction.
        query: The query, which selects columns under different names.
        checks: By column, a check of its values in addition to that of the type. A value that fails counts as
            unreadable, and stays in the values.
    """
    try:
        rows = list(map(ReadRow, connection.execute(query).mappings().all()))
    except IntegrityError:
        # Rare, because the types raise no other error for stored values. All rows are read once more, so that
        # one bad row costs only one row (docs/decisions/0024).
        lenient = query.with_only_columns(*map(_as_far_as_readable, query.selected_columns))
        rows = [_read_row(row._asdict()) for row in connection.execute(lenient)]
    return [_checked(row, checks) for row in rows] if checks else rows


def is_count(value: int) -> bool:
    """Return whether a number is a count. A count is not negative, and has room to grow in 64 bits."""
    return 0 <= value < _MOST_COUNTED


def are_texts(value: Any) -> bool:
    """Return whether a value from JSON is a list of text."""
    return type(value) is list and all(type(each) is str for each in value)


def _checked(row: ReadRow, checks: Checks) -> ReadRow:
    unfit = [name for name, fits in checks.items() if name in row.values and not fits(row.values[name])]
    return row._replace(unreadable=(*row.unreadable, *unfit)) if unfit else row


def as_sql(database: Engine | Connection, value: UUID | str) -> str:
    """Return a value as SQL that a person can type. A remedy names a row with it."""
    if isinstance(value, str):
        return "'{}'".format(value.replace("'", "''"))
    return f"'{value}'" if database.dialect.name == "postgresql" else f"X'{value.hex}'"


def deletion(database: Engine | Connection, table: Table, where: str) -> str:
    """Return the statement with which a person deletes rows."""
    return f"DELETE FROM {quoted_name(database, table.name)} WHERE {where};"  # noqa: S608 - for a person


def _as_far_as_readable(column: ColumnElement[Any]) -> ColumnElement[Any]:
    of = column.element if isinstance(column, Label) else column
    return type_coerce(of, _AsFarAsReadable(column.type)).label(column.key)


def _read_row(found: Mapping[str, Any]) -> ReadRow:
    return ReadRow(
        {name: value for name, value in found.items() if value is not _UNREADABLE},
        tuple(name for name, value in found.items() if value is _UNREADABLE),
    )


class _AsFarAsReadable(TypeDecorator[Any]):
    """Reads values as another type does. If that type raises, it returns ``_UNREADABLE``."""

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
    """Cut *values* into lists of *size*. By default, a list has as many values as one IN list."""
    rest = list(values)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


def insertion(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Begin an INSERT that may handle a row whose key is taken."""
    # Not imported above: an import takes 30 ms, and the engine has imported the one that its database needs.
    if connection.dialect.name == "postgresql":
        return dialects.postgresql.insert(table)
    return dialects.sqlite.insert(table)


def insert_unless_there(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """
    Begin an INSERT that skips a row whose key is taken.

    It also skips a row with another unique value that is taken.
    """
    return insertion(connection, table).on_conflict_do_nothing()

"""
Registered tables for queries, with the key of each row.

The key is read from the header of the row's envelope. Whatever counts items before a key is destroyed uses
the header. A column of key ids is for readers only, because anybody who can write to the database can change
it. Each kind of database has one expression for the key, so that the index on it serves every query
(docs/decisions/0019). The expression contains no parameter, because databases match an index by the
expression's text.

Data that does not look like an envelope has no key. Other data may look like an envelope by chance: about one
row in a million of an older cipher. Such a row names a key that no key store has. The expression accepts
more than this release opens, so that it also counts items that a later release has sealed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import CHAR, Boolean, Column, MetaData, Table, false
from sqlalchemy import types as sqltypes
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from eventseal.errors import IntegrityError, SerializationError
from eventseal.storage.database.column_types import (
    NIL_KEY_ID,
    BinaryUUID,
    DatabaseText,
    ExactDecimal,
    ExactInteger,
    ExactText,
)
from eventseal.storage.database.table_setup import KEY_ID
from eventseal.storage.items.tables import ColumnKind
from eventseal.suites.envelope import HEADER_SIZE, SMALLEST_SIZE, VERSION, SuiteId

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Dialect
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.sql.operators import OperatorType
    from sqlalchemy.types import TypeEngine

    from eventseal.storage.items.tables import SealedTable


_HEX_DIGITS = 32
_HEADS = [bytes((VERSION, suite)) for suite in sorted(SuiteId, reverse=True)]
"""The first two bytes of envelopes, for the strongest suites first."""

_COMPRESSIONS = b"\x10"
"""The limit of the third byte: it is below this."""

_ID_SIZE = 16
_ID_BEGINS = HEADER_SIZE - _ID_SIZE + 1  # SQL counts from 1
_ON_POSTGRESQL = (
    "CASE WHEN octet_length({data}) >= {size} AND substring({data} FROM 1 FOR 2) IN ({heads}) "
    "AND substring({data} FROM 3 FOR 1) < {compressions} "
    "THEN encode(substring({data} FROM {begin} FOR {length}), 'hex')::uuid END"
)

# Not IN, because SQLite would fill a table with the heads for each row that it writes, which takes 5 µs.
_ON_SQLITE = (
    "CASE WHEN typeof({data}) = 'blob' AND length({data}) >= {size} "
    "AND substr({data}, 3, 1) < {compressions} THEN CASE substr({data}, 1, 2) {heads} END END"
)

_ON_SQLITE_BY_HEAD = "WHEN {head} THEN substr({data}, {begin}, {length})"


def key_id_in_header(dialect: Dialect, data: str) -> str:
    """
    Return the SQL expression for the key id of an envelope.

    Args:
        dialect: The dialect of SQLite or PostgreSQL.
        data: The column of data, quoted for SQL.

    Returns:
        An expression of type ``uuid`` on PostgreSQL, and of a blob of 16 bytes on SQLite. It is NULL if the
        data is not an envelope.
    """
    on_postgresql = dialect.name == "postgresql"
    literal = r"'\x{}'::bytea" if on_postgresql else "x'{}'"
    heads = [literal.format(head.hex()) for head in _HEADS]
    if not on_postgresql:
        heads = [
            _ON_SQLITE_BY_HEAD.format(head=head, data=data, begin=_ID_BEGINS, length=_ID_SIZE)
            for head in heads
        ]
    return (_ON_POSTGRESQL if on_postgresql else _ON_SQLITE).format(
        data=data,
        size=SMALLEST_SIZE,
        heads=(", " if on_postgresql else " ").join(heads),
        compressions=literal.format(_COMPRESSIONS.hex()),
        begin=_ID_BEGINS,
        length=_ID_SIZE,
    )


def key_ids_differ(dialect: Dialect, data: str, key_id: str, *, as_text: bool) -> str:
    """
    Return the SQL condition that column and header differ.

    They also differ if only one of the two names a key.

    Args:
        dialect: The dialect of SQLite or PostgreSQL.
        data: The column of envelopes, quoted for SQL.
        key_id: The column of key ids, quoted for SQL.
        as_text: Whether SQLite's column holds 32 hexadecimal digits.
    """
    header = key_id_in_header(dialect, data)
    if dialect.name == "postgresql":
        return f"({header}) IS DISTINCT FROM {key_id}"
    # hex() turns NULL into an empty text.
    said = f"nullif(lower(hex({header})), '')" if as_text else f"({header})"
    return f"{said} IS NOT {key_id}"


class KeyIdInHeader(FunctionElement[UUID | None]):
    """
    The expression of :func:`key_id_in_header` for SQLAlchemy.

    Args:
        data: The column of envelopes.
        type_: The type that reads and writes a key id.
    """

    inherit_cache = True
    name = "key_id_in_header"

    def __init__(self, data: ColumnElement[Any], type_: TypeEngine[Any]) -> None:
        super().__init__(data)
        self.type = type_


@compiles(KeyIdInHeader)
def _compiled(element: KeyIdInHeader, compiler: SQLCompiler, **options: Any) -> str:
    (data,) = element.clauses
    return f"({key_id_in_header(compiler.dialect, compiler.process(data, **options))})"


class KeyIdsDiffer(FunctionElement[bool]):
    """
    The condition of :func:`key_ids_differ` for SQLAlchemy.

    Args:
        data: The column of envelopes.
        key_id: The column of key ids: a ``BinaryUUID``, or text on SQLite.
    """

    inherit_cache = True
    name = "key_ids_differ"
    type = Boolean()

    def __init__(self, data: ColumnElement[Any], key_id: ColumnElement[Any]) -> None:
        super().__init__(data, key_id)

    def self_group(self, against: OperatorType | None = None) -> KeyIdsDiffer:  # noqa: ARG002
        """Return the condition itself. SQLAlchemy would compare it with 1, which hides the index."""
        return self


@compiles(KeyIdsDiffer)
def _compiled_condition(element: KeyIdsDiffer, compiler: SQLCompiler, **options: Any) -> str:
    data, key_id = element.clauses
    sql = [compiler.process(column, **options) for column in (data, key_id)]
    return f"({key_ids_differ(compiler.dialect, *sql, as_text=not isinstance(key_id.type, BinaryUUID))})"


@dataclass(frozen=True, slots=True)
class DescribedTable:
    """
    A registered table for queries. Its types return edited values as they are.

    Attributes:
        table: The table, with its columns by role.
        key_id: The key id of a row, read from its envelope's header. NULL if the data is not an envelope.
    """

    table: Table
    key_id: ColumnElement[Any]

    def __getitem__(self, role: str) -> Any:
        """
        Return what readers use for a role.

        For a key id it is the column, if there is one. The column may differ from the header.
        """
        return self.key_id if role == KEY_ID and KEY_ID not in self.table.c else self.table.c[role]

    @property
    def differs(self) -> ColumnElement[bool]:
        """Whether the column of key ids differs from the header. It does not if there is no such column."""
        return KeyIdsDiffer(self["data"], self[KEY_ID]) if KEY_ID in self.table.c else false()

    @property
    def place(self) -> tuple[Column[Any], Column[Any]]:
        """The columns of sequence id and position."""
        return self["sequence_id"], self["position"]


def described(table: SealedTable) -> DescribedTable:
    """Describe a registered table. Every query for the keys of its rows begins here."""
    found = Table(
        table.name,
        MetaData(),
        *(Column(column.name, _type(role, column.kind), key=role) for role, column in table.columns.items()),
        schema=table.schema,
    )
    return DescribedTable(found, KeyIdInHeader(found.c["data"], _KeyId()))


def _type(role: str, kind: ColumnKind) -> TypeEngine[Any]:
    if role == KEY_ID and kind is ColumnKind.UUID:
        return _KeyId()
    return _AS_FOUND.get(kind, kind.type)


class _AsFound(TypeDecorator[Any]):
    """
    Returns values that a column cannot hold, as they are.

    It also accepts them in a condition. The caller refuses them. Only SQLite lets an edit put any value into
    any column.
    """

    __abstract__ = True
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        try:
            return super().process_bind_param(value, dialect)
        except SerializationError:
            return value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        try:
            return super().process_result_value(value, dialect)
        except IntegrityError:
            return value


class _UUIDAsFound(_AsFound, BinaryUUID):
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Accept text that an edit put there. The driver's binding of bytes would refuse it."""
        bind = super().bind_processor(dialect)
        return lambda value: value if bind is None or isinstance(value, str) else bind(value)


class _GenericUUIDAsFound(_AsFound):
    impl = CHAR
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sqltypes.UUID(as_uuid=True))
        return dialect.type_descriptor(CHAR(_HEX_DIGITS))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value.hex if isinstance(value, UUID) and dialect.name != "postgresql" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if dialect.name == "postgresql" or not isinstance(value, str):
            return value
        try:
            found = UUID(value)
        except ValueError:
            return value
        return found if found.hex == value else value


def _as_found(kind: type[TypeDecorator[Any]]) -> TypeEngine[Any]:
    found: type[TypeDecorator[Any]] = type(f"{kind.__name__}AsFound", (_AsFound, kind), {"cache_ok": True})
    return found()


_AS_FOUND: dict[ColumnKind, TypeEngine[Any]] = {
    ColumnKind.UUID: _UUIDAsFound(),
    ColumnKind.GENERIC_UUID: _GenericUUIDAsFound(),
    ColumnKind.INTEGER: _as_found(ExactInteger),
    ColumnKind.DECIMAL: _as_found(ExactDecimal),
    ColumnKind.TEXT: _as_found(ExactText),
    ColumnKind.DATABASE_TEXT: _as_found(DatabaseText),
}


class _KeyId(BinaryUUID):
    """The column of key ids. A value that is not a UUID is read as the nil UUID, which no key has."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        try:
            return super().process_result_value(value, dialect)
        except IntegrityError:
            return NIL_KEY_ID

"""
The key of a row, read from its envelope's header: whatever counts items before a key is destroyed goes by it.

A column of key ids is for readers: anybody who writes to the database can change it. There is one expression
a database, so that the index that is made on it serves every query. It holds no parameter: databases match an
index by the expression's own text. What does not look like an envelope has no key; what looks like one by
chance (one row of an older cipher in a million does) names a key that no key store has. The guard is wider
than what this release opens: what a later one has sealed counts, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Boolean
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from eventseal.storage.database.column_types import BinaryUUID
from eventseal.suites.envelope import HEADER_SIZE, SMALLEST_SIZE, VERSION, SuiteId

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Dialect
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.sql.operators import OperatorType
    from sqlalchemy.types import TypeEngine


_HEADS = [bytes((VERSION, suite)) for suite in sorted(SuiteId, reverse=True)]
"""The two bytes that an envelope begins with, those of the strongest suites first."""

_COMPRESSIONS = b"\x10"
"""The third byte is below this."""

_ID_SIZE = 16
_ID_BEGINS = HEADER_SIZE - _ID_SIZE + 1  # SQL counts from 1

_ON_POSTGRESQL = (
    "CASE WHEN octet_length({data}) >= {size} AND substring({data} FROM 1 FOR 2) IN ({heads}) "
    "AND substring({data} FROM 3 FOR 1) < {compressions} "
    "THEN encode(substring({data} FROM {begin} FOR {length}), 'hex')::uuid END"
)
# Not IN: SQLite would fill a table with the heads for each row that it writes, which takes 5 µs.
_ON_SQLITE = (
    "CASE WHEN typeof({data}) = 'blob' AND length({data}) >= {size} "
    "AND substr({data}, 3, 1) < {compressions} THEN CASE substr({data}, 1, 2) {heads} END END"
)
_ON_SQLITE_BY_HEAD = "WHEN {head} THEN substr({data}, {begin}, {length})"


def key_id_in_header(dialect: Dialect, data: str) -> str:
    """
    Write the expression that gives the key id of an envelope, or NULL for what is none.

    Args:
        dialect: SQLite's or PostgreSQL's.
        data: The column, as SQL has it.

    Returns:
        On PostgreSQL of type ``uuid``, on SQLite a blob of 16 bytes.
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
    Write the condition that a row's column of key ids says something else than its envelope's header.

    Args:
        dialect: SQLite's or PostgreSQL's.
        data: The column of envelopes, as SQL has it.
        key_id: The column of key ids, as SQL has it.
        as_text: Whether SQLite's column holds 32 hexadecimal digits.
    """
    header = key_id_in_header(dialect, data)
    if dialect.name == "postgresql":
        return f"({header}) IS DISTINCT FROM {key_id}"
    # hex() makes an empty text of NULL.
    said = f"nullif(lower(hex({header})), '')" if as_text else f"({header})"
    return f"{said} IS NOT {key_id}"


class KeyIdInHeader(FunctionElement[UUID | None]):
    """
    The same as a SQLAlchemy expression.

    Args:
        data: The column of envelopes.
        type_: Reads and writes a key id.
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
    The condition of :func:`key_ids_differ` as a SQLAlchemy expression.

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
        """Stay as it is: SQLAlchemy would compare it with 1, and SQLite not find the index then."""
        return self


@compiles(KeyIdsDiffer)
def _compiled_condition(element: KeyIdsDiffer, compiler: SQLCompiler, **options: Any) -> str:
    data, key_id = element.clauses
    sql = [compiler.process(column, **options) for column in (data, key_id)]
    return f"({key_ids_differ(compiler.dialect, *sql, as_text=not isinstance(key_id.type, BinaryUUID))})"

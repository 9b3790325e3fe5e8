"""
Column types that hold exact values, the same on SQLite and PostgreSQL.

Two values are equal in the database exactly when they are equal in the associated data of an item. A type
refuses a value that it cannot hold this way, before anything is written.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Float,
    LargeBinary,
    Numeric,
    Text,
    cast,
    type_coerce,
)
from sqlalchemy import types as sqltypes
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from eventseal.errors import IntegrityError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Dialect
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

# ruff: noqa: ARG001, ARG002 - the signatures are SQLAlchemy's


INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
DECIMAL_PLACES = 6
NIL_KEY_ID = UUID(int=0)
"""Replaces a key id that is not a UUID."""

UUID_SIZE = 16
_SQLITE_TIMESTAMP = "%Y-%m-%d %H:%M:%S.%f"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_TIME = datetime(3000, 1, 1, tzinfo=UTC)
_EXACT = Context(prec=40)
"""Enough digits for 64 bits of microseconds. The caller's own decimal context does not matter."""


class BinaryUUID(TypeDecorator[UUID]):
    """A UUID: native on PostgreSQL, 16 bytes elsewhere. Accepts a UUID or its canonical text."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(sqltypes.UUID(as_uuid=True))
        return dialect.type_descriptor(LargeBinary(UUID_SIZE))

    def process_bind_param(self, value: Any, dialect: Dialect) -> UUID | bytes | None:
        """Return a UUID, or its canonical text, in the driver's form."""
        if value is None:
            return None
        identifier = value if isinstance(value, UUID) else _uuid_from_text(value)
        return identifier if dialect.name == "postgresql" else identifier.bytes

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        """Return the driver's value as a UUID."""
        if value is None or isinstance(value, UUID):
            return value
        if not isinstance(value, bytes) or len(value) != UUID_SIZE:
            raise edited("UUIDs")
        return UUID(bytes=value)


class ExactText(TypeDecorator[str]):
    """
    Text that is compared byte for byte. A UUID is stored as its canonical text.

    It has no declared length, because databases handle longer values differently.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type with its binary collation."""
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(Text(collation=collation))

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Refuse text that two databases might store differently."""
        if value is None:
            return None
        text = str(value) if isinstance(value, UUID) else value
        if not isinstance(text, str):
            raise SerializationError(f"a {type(value).__name__} cannot be stored in a text column")
        if "\0" in text or not is_utf8(text):
            raise SerializationError("text with a NUL character or a lone surrogate cannot be stored")
        return text

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Return the text. Any other value was edited."""
        if value is None or isinstance(value, str):
            return value
        raise edited("text")


class DatabaseText(ExactText):
    """Another program's text: compared byte for byte, sorted in the database's order."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type without a collation. The column's index may have another one."""
        return dialect.type_descriptor(Text())


class ExactInteger(TypeDecorator[int]):
    """A whole number of 64 bits. Accepts an int or a Decimal without a fraction, no float or bool."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> int | None:
        """Refuse numbers that would be rounded or cut."""
        if value is None:
            return None
        return _whole_number(value, what="integer column")

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        """Return the number. Any other value was edited."""
        if value is None or isinstance(value, int):
            return value
        raise edited("integers")


class ExactBytes(TypeDecorator[bytes]):
    """Bytes. Reading any other value fails."""

    impl = LargeBinary
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> bytes | None:
        """Return the bytes. Any other value was edited."""
        if value is None or isinstance(value, bytes):
            return value
        raise edited("bytes")


class ExactDecimal(TypeDecorator[Decimal]):
    """
    A Decimal of at most 6 decimal places.

    It is ``NUMERIC(20, 6)`` on PostgreSQL, whole microseconds elsewhere. It accepts an int or a Decimal whose
    microseconds fit into 64 bits, never a float or a bool. It returns a Decimal of 6 decimal places.
    """

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(20, DECIMAL_PLACES))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Decimal | int | None:
        """Refuse numbers that would be rounded or cut."""
        if value is None:
            return None
        _refuse_inexact(value, what="decimal column")
        number = Decimal(value)
        if not number.is_finite():
            raise SerializationError(
                f"{number} cannot be stored in a decimal column: it is not a finite number"
            )
        micros = _whole_number(
            number.scaleb(DECIMAL_PLACES, _EXACT), what="decimal column of 6 places", shown=value
        )
        return _from_micros(micros) if dialect.name == "postgresql" else micros

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """Return a Decimal of 6 decimal places, on every database."""
        if value is None or isinstance(value, Decimal):
            return value
        if not isinstance(value, int):
            raise edited("decimals")
        return _from_micros(value)


class UTCTimestamp(TypeDecorator[datetime]):
    """A time in UTC: ``TIMESTAMP WITH TIME ZONE`` on PostgreSQL, sortable text elsewhere."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type."""
        kind = DateTime(timezone=True) if dialect.name == "postgresql" else Text()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        """Return an aware datetime in the driver's form."""
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).strftime(_SQLITE_TIMESTAMP)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read PostgreSQL's times as numbers. Its driver has no date for infinity (docs/decisions/0024)."""
        return _TimeAsStored(column)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return an aware datetime in UTC. Only times from 1970 to 2999 are ever stored."""
        if value is None:
            return None
        try:
            if isinstance(value, Decimal):
                found = _EPOCH + timedelta(microseconds=int(value.scaleb(6, _EXACT)))
            else:
                found = datetime.fromisoformat(value)  # it also reads forms that are never written here
                if found.isoformat(" ", "microseconds") != value:
                    raise edited("times")
                found = found.replace(tzinfo=UTC)
        except (ArithmeticError, TypeError, ValueError):
            raise edited("times") from None
        if not _EPOCH <= found < _LAST_TIME:
            raise edited("times")
        return found


class _TimeAsStored(FunctionElement[Any]):
    """A time as its database has it. Infinity and the years after 9999 are no dates to the driver."""

    inherit_cache = True

    def __init__(self, column: ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(_TimeAsStored, "postgresql")
def _seconds_since_1970(element: _TimeAsStored, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(EXTRACT(EPOCH FROM {compiler.process(element.clauses, **kw)}) AS NUMERIC)"


@compiles(_TimeAsStored)
def _as_it_is(element: _TimeAsStored, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


class HoldsUUID(FunctionElement[bool]):
    """The SQL condition that a :class:`BinaryUUID` column holds a UUID."""

    name = "holds_uuid"
    inherit_cache = True
    type = Boolean()


@compiles(HoldsUUID, "postgresql")
def _always_on_postgresql(element: HoldsUUID, compiler: SQLCompiler, **kw: Any) -> str:
    return "true"


@compiles(HoldsUUID)
def _size_of_blob(element: HoldsUUID, compiler: SQLCompiler, **kw: Any) -> str:
    column = compiler.process(element.clauses, **kw)
    return f"(typeof({column}) = 'blob' AND length({column}) = {UUID_SIZE})"


class DatabaseClock(FunctionElement[datetime]):
    """The SQL expression of the database's clock. It is the time of the statement, not of its transaction."""

    name = "database_clock"
    inherit_cache = True
    type = UTCTimestamp()


@compiles(DatabaseClock, "postgresql")
def _clock_on_postgresql(element: DatabaseClock, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(DatabaseClock, "sqlite")
def _clock_on_sqlite(element: DatabaseClock, compiler: SQLCompiler, **kw: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


def edited(what: str) -> IntegrityError:
    """Return the error for a column with another kind of value. Callers that know the row name it."""
    # SQLite stores any value in any column, but nothing that uses these types writes such a value.
    return IntegrityError(f"a column of {what} holds something else: the row was edited")


def _uuid_from_text(value: object) -> UUID:
    if isinstance(value, str):
        try:
            identifier = UUID(value)
        except ValueError:
            pass
        else:
            if str(identifier) == value:
                return identifier
    raise SerializationError(
        f"a UUID column accepts a UUID or its canonical text, not this {type(value).__name__}",
        remedy="Use a UUID as the stream's id, or store its items in a table whose sequence ids are text.",
    )


def is_utf8(text: str) -> bool:
    """Return whether the text has UTF-8 bytes. Lone surrogates have none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_inexact(value: object, *, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise SerializationError(
            f"a {type(value).__name__} cannot be stored in a {what}", remedy="Use an int or a Decimal."
        )


def _whole_number(value: object, *, what: str, shown: object = None) -> int:
    _refuse_inexact(value, what=what)
    assert isinstance(value, int | Decimal)  # noqa: S101 - checked above, repeated for the type checker
    shown = value if shown is None else shown
    if isinstance(value, Decimal) and (not value.is_finite() or value != value.to_integral_value()):
        raise SerializationError(f"{shown} cannot be stored in a {what}: it has too many decimal places")
    number = int(value)
    if not INT64_MIN <= number <= INT64_MAX:
        raise SerializationError(f"{shown} cannot be stored in a {what}: it needs more than 64 bits")
    return number


def _from_micros(micros: int) -> Decimal:
    return Decimal(micros).scaleb(-DECIMAL_PLACES, _EXACT)


MOST_SECONDS = 1e11
"""Over 3,000 years. The time of the database's clock plus so many seconds is still a time in Python."""

LEAST_RATE = 0.001
"""Items per second: one in 17 minutes. A slower job would never end."""


class StoredText(ExactText):
    """Text in EventSeal's own tables. Only an edit can store text that cannot be written or shown."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Return the text, if it is text that can be stored."""
        text = super().process_result_value(value, dialect)
        if text is not None and ("\0" in text or not is_utf8(text)):
            raise edited("text")
        return text


class Count(ExactInteger):
    """A whole number in EventSeal's own tables. Only their CHECKs keep it from being negative."""

    cache_ok = True


class Seconds(TypeDecorator[float]):
    """A duration, or a time since 1970: from 0 to :data:`MOST_SECONDS`."""

    impl = Float
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        """Return the number, if it is one."""
        if value is None:
            return None
        if not isinstance(value, float | int) or not 0 <= value <= MOST_SECONDS:  # also refuses NaN
            raise edited("seconds")
        return value


class Rate(TypeDecorator[float]):
    """A rate per second: finite, and at least :data:`LEAST_RATE`."""

    impl = Float
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:
        """Return the number, if it is one."""
        if value is None or (isinstance(value, float | int) and LEAST_RATE <= value < math.inf):
            return value
        raise edited("rates")


class StoredJSON(TypeDecorator[Any]):
    """JSON in EventSeal's own tables. An edit may have turned it into anything."""

    impl = JSON
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Read the text. Drivers return different things for bad JSON (docs/decisions/0024)."""
        return type_coerce(cast(column, Text()), column.type)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Return the function that reads the text."""
        return _read_json


@compiles(Count, "sqlite")
def _integer(kind: Count, compiler: SQLCompiler, **kw: Any) -> str:
    return "INTEGER"  # a STRICT table has no BIGINT, FLOAT or JSON (docs/decisions/0030)


@compiles(Seconds, "sqlite")
@compiles(Rate, "sqlite")
def _real(kind: Seconds | Rate, compiler: SQLCompiler, **kw: Any) -> str:
    return "REAL"


@compiles(StoredJSON, "sqlite")
def _text(kind: StoredJSON, compiler: SQLCompiler, **kw: Any) -> str:
    return "TEXT"


def _read_json(stored: Any) -> Any:
    if stored is None:
        return None
    try:
        return json.loads(stored, parse_constant=_no_constant)
    except (TypeError, ValueError, RecursionError):
        raise edited("JSON") from None


def _no_constant(constant: str) -> None:
    raise ValueError(constant)

"""
Column types of EventSeal's own tables only: whatever an edit has put there, reading it raises one error.

That error is :class:`IntegrityError`, which ``edited_rows`` turns into a row that cannot be read.
"""

# ruff: noqa: ARG002 - the signatures are SQLAlchemy's

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from eventseal.storage.types import ExactText, edited, is_utf8

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Dialect
    from sqlalchemy.sql.compiler import SQLCompiler

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

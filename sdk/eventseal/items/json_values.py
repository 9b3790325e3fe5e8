"""Value types of the standard library as JSON, and the placeholders of personal data."""

from __future__ import annotations

import re
from array import array
from base64 import b64decode, b64encode
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from eventseal.errors import REPAIR_ROW, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from eventseal.items.markers import Shape


class Refused(Exception):  # noqa: N818 - never leaves the package: it collects a path on its way out
    """
    A value has no encoding.

    Args:
        reason: Why, without the value: continues a sentence that begins with the path.
        remedy: What to do, if it is not an encoding that is missing.
    """

    def __init__(self, reason: str, *, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.path: list[str] = []


class HoldsPersonalData(Refused):
    """A value may be written only after its personal data were sealed."""


MOST_NESTED = 200
"""Arrays and objects inside one another that are written: so any reader has room for them on its stack."""

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_OPENING, _CLOSING = b"[{", b"]}"
_STEPS = bytes.maketrans(_OPENING + _CLOSING, b"\x01\x01\xff\xff")
_OTHERS = bytes(set(range(256)) - {*_OPENING, *_CLOSING})


def shallow(text: str) -> str:
    """
    Give JSON whose arrays and objects every reader can follow.

    Args:
        text: Valid JSON.

    Raises:
        Refused: More than :data:`MOST_NESTED` of them are inside one another.
    """
    if text.count("[") + text.count("{") > MOST_NESTED:  # rare, so that most texts are only counted
        steps = array("b", _STRINGS.sub(b"", text.encode()).translate(_STEPS, _OTHERS))
        if max(accumulate(steps), default=0) > MOST_NESTED:
            raise Refused(
                f"is nested too deeply: as JSON over {MOST_NESTED} levels",
                remedy="Keep such a value in a flatter form, such as a list of pairs.",
            )
    return text


def nested_too_deeply() -> SerializationError:
    """Say that JSON has more levels than can be followed here; it may be what was sealed all the same."""
    return SerializationError(
        "the item's JSON is nested too deeply to be read here",
        remedy="If an earlier release of the application wrote it, read it with a higher "
        f"sys.setrecursionlimit(). {REPAIR_ROW}",
    )


def _encode_moment(value: datetime | time) -> str | list[str | int]:
    text = value.isoformat()
    # Almost every zone's text ends in +hh:mm. Without an offset it would come back without a zone; an offset
    # with a fraction of a second, fromisoformat() misreads.
    if value.tzinfo is not None and text[-6] not in "+-":
        offset = value.utcoffset()
        if offset is None or offset.microseconds:
            raise Refused(f"is a {type(value).__name__} whose zone gives no offset of whole seconds")
    return [text, value.fold] if value.fold else text


def _decode_datetime(value: str | list[Any]) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    text, fold = value
    return datetime.fromisoformat(text).replace(fold=fold)


def _decode_time(value: str | list[Any]) -> time:
    if isinstance(value, str):
        return time.fromisoformat(value)
    text, fold = value
    return time.fromisoformat(text).replace(fold=fold)


def _encode_decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise Refused("is a Decimal that is not finite")
    return str(value)


def _encode_timedelta(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _encode_bytes(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _decode_bytes(value: str) -> bytes:
    return b64decode(value, validate=True)


STANDARD_TYPES: tuple[tuple[type[Any], str, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    (UUID, "uuid", str, UUID),
    (datetime, "datetime", _encode_moment, _decode_datetime),
    (date, "date", date.isoformat, date.fromisoformat),
    (time, "time", _encode_moment, _decode_time),
    (timedelta, "timedelta", _encode_timedelta, lambda value: timedelta(*value)),
    (Decimal, "decimal", _encode_decimal, Decimal),
    (bytes, "bytes", _encode_bytes, _decode_bytes),
)
"""Class, stored name, to JSON, from JSON."""


SEALED_MARKER = "$sealed"
MASK_MARKER = "$mask"
STATE_MARKER = "$state"


class Placeholder(NamedTuple):
    """
    Stands for a field until it is sealed.

    Attributes:
        number: Which of the item's fields it is.
        subject_path: Where its subject stands in the item: a JSON Pointer.
    """

    number: int
    subject_path: str


class Rewritten(NamedTuple):
    """
    Stands for an object, its fields replaced.

    Attributes:
        cls: The object's class.
        attributes: Its attributes.
    """

    cls: type[Any]
    attributes: dict[str, Any]


class ObjectState(dict[str, Any]):
    """
    An object's attributes outside of the object: its personal data are sealed, and a dictionary comes back.

    Args:
        attributes: By name.
        shapes: Where they hold personal data.
        names: How it calls a subject that others call by another name.
    """

    __slots__ = ("names", "shapes")

    def __init__(
        self,
        attributes: Mapping[str, Any],
        shapes: Mapping[str, Shape] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(attributes)
        self.shapes = shapes or {}
        self.names = names or {}

"""Values as JSON text, in one pass: the standard library's types, and placeholders of personal data."""

from __future__ import annotations

import re
from array import array
from base64 import b64decode, b64encode
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import lru_cache, partial
from itertools import accumulate
from json.encoder import encode_basestring
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from uuid import UUID

from eventseal.errors import REPAIR_ROW, SerializationError
from eventseal.items.markers import Masked
from eventseal.items.objects import attributes_of
from eventseal.items.personal import plan_of, refuse_personal
from eventseal.items.topics import topic_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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


def _moments(cls: type[datetime | time]) -> Callable[[str | list[Any]], datetime | time]:
    def read(value: str | list[Any]) -> datetime | time:
        if isinstance(value, str):
            return cls.fromisoformat(value)
        text, fold = value
        return cls.fromisoformat(text).replace(fold=fold)

    return read


def _encode_decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise Refused("is a Decimal that is not finite")
    return str(value)


STANDARD_TYPES: tuple[tuple[type[Any], str, Callable[[Any], Any], Callable[[Any], Any]], ...] = (
    (UUID, "uuid", str, UUID),
    (datetime, "datetime", _encode_moment, _moments(datetime)),
    (date, "date", date.isoformat, date.fromisoformat),
    (time, "time", _encode_moment, _moments(time)),
    (timedelta, "timedelta", lambda v: [v.days, v.seconds, v.microseconds], lambda value: timedelta(*value)),
    (Decimal, "decimal", _encode_decimal, Decimal),
    (bytes, "bytes", lambda value: b64encode(value).decode("ascii"), partial(b64decode, validate=True)),
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


REFUSED_ENCODING = (
    "an encoding of the type's own would write it as plaintext",
    "Leave its encoding to the transcoder: make it a dataclass.",
)
"""Why a type that holds personal data cannot be registered, and what to do instead."""


class JSONWriter:
    """
    Writes values as JSON.

    A value is written by its very class, never by a class that it inherits from: a subclass may hold more.
    """

    def __init__(self) -> None:
        self._writers: dict[type[Any], Callable[[Any], str]] = {
            str: write_string,
            int: _write_integer,
            float: _write_float,
            bool: lambda value: "true" if value else "false",
            type(None): lambda _: "null",
            dict: self._write_dict,
            list: self._write_list,
            tuple: lambda value: f'{{"$tuple":{self._write_list(value)}}}',
            set: lambda value: f'{{"$set":{self._write_sorted(value)}}}',
            frozenset: lambda value: f'{{"$frozenset":{self._write_sorted(value)}}}',
            Masked: _write_mask,
            Placeholder: _write_placeholder,
            Rewritten: self._write_object,
            ObjectState: self._write_state,
        }
        self._registered = set(self._writers)

    def register(self, cls: type[Any], marker: str, encode: Callable[[Any], Any]) -> None:
        """Write objects of *cls* as an object whose one key is *marker*."""
        head = f"{{{write_string(marker)}:"

        def write(value: Any) -> str:
            return f"{head}{self.write(encode(value))}}}"

        def write_first(value: Any) -> str:
            refuse_personal(cls, *REFUSED_ENCODING, lenient=True)  # its annotations can be resolved by now
            self._writers[cls] = write
            return write(value)

        self._writers[cls] = write_first
        self._registered.add(cls)

    def knows(self, cls: type[Any]) -> bool:
        """Whether *cls* has a form of its own."""
        return cls in self._registered

    def write(self, value: Any) -> str:
        """
        Write any value.

        Raises:
            Refused: Something in it has no encoding.
        """
        kind = type(value)
        write = self._writers.get(kind)
        if write is None:
            write = self._writers[kind] = self._writer_of(kind)
        return write(value)

    def write_attributes(self, attributes: dict[str, Any]) -> str:
        """
        Write an object's attributes. Their names are no secret: they show in the path of an error.

        Raises:
            Refused: One of them has no encoding.
        """
        if len(attributes) == 1 and is_written_as_pairs(attributes):
            return self._write_pairs(attributes)
        parts = []
        name = ""
        try:
            for name, value in attributes.items():
                kind = type(value)
                if kind is str and value.isascii():  # most attributes, and no call for them
                    parts.append(f"{_write_key(name)}{encode_basestring(value)}")
                else:
                    write = self._writers.get(kind) or self.write
                    parts.append(f"{_write_key(name)}{write(value)}")
        except Refused as exc:
            exc.path.append(f".{name}")
            raise
        return f"{{{','.join(parts)}}}"

    def _write_dict(self, value: dict[Any, Any]) -> str:
        if is_written_as_pairs(value):
            return self._write_pairs(value)
        parts: list[str] = []
        try:
            for key, inner in value.items():
                parts.append(f"{write_string(key)}:{self.write(inner)}")
        except Refused as exc:
            # A key is data, so the path counts keys instead of showing them.
            exc.path.append(f"{{{len(parts)}}}")
            raise
        return f"{{{','.join(parts)}}}"

    def _write_pairs(self, value: dict[Any, Any]) -> str:
        parts: list[str] = []
        try:
            for key, inner in value.items():
                parts.append(f"[{self.write(key)},{self.write(inner)}]")
        except Refused as exc:
            exc.path.append(f"{{{len(parts)}}}")
            raise
        return f'{{"$dict":[{",".join(parts)}]}}'

    def _write_list(self, value: Iterable[Any]) -> str:
        return f"[{','.join(self._parts(value))}]"

    def _write_sorted(self, value: Iterable[Any]) -> str:
        # The order of a set differs between processes; equal sets are equal bytes.
        return f"[{','.join(sorted(self._parts(value)))}]"

    def _parts(self, value: Iterable[Any]) -> list[str]:
        parts: list[str] = []
        try:
            for inner in value:
                parts.append(self.write(inner))  # noqa: PERF401 - how many were written tells the path
        except Refused as exc:
            exc.path.append(f"[{len(parts)}]")
            raise
        return parts

    def _write_object(self, value: Rewritten) -> str:
        return f'{{"$dataclass":[{_topic(value.cls)},{self.write_attributes(value.attributes)}]}}'

    def _write_state(self, value: ObjectState) -> str:
        if value.shapes:
            _refuse_personal(value)
        return f'{{"{STATE_MARKER}":{self.write_attributes(value)}}}'

    def _writer_of(self, kind: type[Any]) -> Callable[[Any], str]:
        if issubclass(kind, Flag):
            return lambda value: f'{{"$enum":[{_topic(kind)},{self.write(value.value)}]}}'
        if issubclass(kind, Enum):
            return lambda value: f'{{"$enum":[{_topic(kind)},{write_string(value.name)}]}}'
        if is_dataclass(kind):
            if plan_of(kind).fields:
                return _refuse_personal
            return lambda value: self._write_object(Rewritten(kind, attributes_of(value)))
        raise Refused(f"is a {kind.__module__}.{kind.__qualname__}, which has no encoding")


def is_written_as_pairs(value: dict[Any, Any]) -> bool:
    """Whether a dictionary is written as pairs: a key is no string, or it would pass for a typed value."""
    if len(value) == 1:
        (key,) = value
        return type(key) is not str or key.startswith("$")
    return any(type(key) is not str for key in value)


def write_string(value: str) -> str:
    """
    Write a string, quoted.

    Raises:
        Refused: UTF-8 has no bytes for it.
    """
    if not value.isascii():
        try:
            value.encode()
            surrogate = False
        except UnicodeEncodeError:
            surrogate = True
        if surrogate:  # raised here: the cause would hold the string
            raise Refused("holds a lone surrogate, which UTF-8 has no bytes for")
    return encode_basestring(value)


@lru_cache(maxsize=4096)
def _write_key(name: str) -> str:
    return f"{write_string(name)}:"


def _write_integer(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # more than sys.get_int_max_str_digits()
        raise Refused("is an integer of too many digits") from None


def _write_float(value: float) -> str:
    if not isfinite(value):
        raise Refused("is a float that is not finite")
    return float.__repr__(value)


def _write_mask(value: Masked) -> str:
    return f'{{"{MASK_MARKER}":[{write_string(value.scope)},{write_string(value.field)}]}}'


def _write_placeholder(value: Placeholder) -> str:
    # NUL: no JSON text holds one, since strings escape it.
    return f'{{"{SEALED_MARKER}":[{write_string(value.subject_path)},"\0{value.number}\0"]}}'


def _refuse_personal(value: object) -> NoReturn:
    raise HoldsPersonalData(
        f"is a {type(value).__qualname__}, whose personal data only a mapper seals",
        remedy="Keep it where a mapper finds it: in an attribute, a list, a tuple or a dictionary's values, "
        "not in a set, a dictionary's keys or an encoding of your own.",
    )


def _topic(kind: type[Any]) -> str:
    return write_string(topic_of(kind))

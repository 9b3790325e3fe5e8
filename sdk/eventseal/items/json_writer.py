"""Values as JSON text, in one pass, with placeholders for personal data."""

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


class Refused(Exception):  # noqa: N818 - internal to the package: it collects a path as it is raised
    """
    A value has no encoding.

    Args:
        reason: The reason, without the value. It continues a sentence that begins with the path.
        remedy: The remedy, if the cause is not a missing encoding.
    """

    def __init__(self, reason: str, *, remedy: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.path: list[str] = []


class HoldsPersonalData(Refused):
    """A value needs its personal data sealed before it can be written."""


MOST_NESTED = 200
"""The maximum nesting of arrays and objects, so that readers' stacks suffice."""

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_OPENING, _CLOSING = b"[{", b"]}"
_STEPS = bytes.maketrans(_OPENING + _CLOSING, b"\x01\x01\xff\xff")
_OTHERS = bytes(set(range(256)) - {*_OPENING, *_CLOSING})


def shallow(text: str) -> str:
    """
    Return the JSON, if every reader can follow its nesting.

    Args:
        text: Valid JSON.

    Raises:
        Refused: More than :data:`MOST_NESTED` arrays and objects are nested.
    """
    if text.count("[") + text.count("{") > MOST_NESTED:  # rare, so most texts only need the count
        steps = array("b", _STRINGS.sub(b"", text.encode()).translate(_STEPS, _OTHERS))
        if max(accumulate(steps), default=0) > MOST_NESTED:
            raise Refused(
                f"is nested too deeply: as JSON over {MOST_NESTED} levels",
                remedy="Store such a value in a flatter form, such as a list of pairs.",
            )
    return text


def nested_too_deeply() -> SerializationError:
    """Return the error of JSON that is nested too deeply to read. It may be authentic nevertheless."""
    return SerializationError(
        "the item's JSON is nested too deeply to be read here",
        remedy="If an earlier release of the application wrote it, read it with a higher "
        f"sys.setrecursionlimit(). {REPAIR_ROW}",
    )


def _encode_moment(value: datetime | time) -> str | list[str | int]:
    text = value.isoformat()
    # The text of almost every zone ends with +hh:mm. Without an offset, the value would come back without a
    # zone. fromisoformat() misreads an offset with a fraction of a second.
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
"""Class, stored name, encoder, decoder."""


SEALED_MARKER = "$sealed"
MASK_MARKER = "$mask"
STATE_MARKER = "$state"


class Placeholder(NamedTuple):
    """
    A placeholder for a field until it is sealed.

    Attributes:
        number: The number of the field in the item.
        subject_path: The place of its subject in the item: a JSON Pointer.
    """

    number: int
    subject_path: str


class Rewritten(NamedTuple):
    """
    An object whose fields are replaced.

    Attributes:
        cls: The object's class.
        attributes: Its attributes.
    """

    cls: type[Any]
    attributes: dict[str, Any]


class ObjectState(dict[str, Any]):
    """
    An object's attributes without the object, which come back as a dictionary.

    Its personal data are sealed.

    Args:
        attributes: The attributes by name.
        shapes: The places of personal data in them.
        names: The object's own names for subjects that have other names elsewhere.
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
    "Make it a dataclass, so that the transcoder encodes it.",
)
"""The reason and remedy if a type with personal data is registered."""


class JSONWriter:
    """
    Writes values as JSON.

    It writes a value by its exact class, never by a base class, because a subclass may hold more.
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
        """Write objects of *cls* as an object with the one key *marker*."""
        head = f"{{{write_string(marker)}:"

        def write(value: Any) -> str:
            return f"{head}{self.write(encode(value))}}}"

        def write_first(value: Any) -> str:
            refuse_personal(cls, *REFUSED_ENCODING, lenient=True)  # its annotations can be resolved now
            self._writers[cls] = write
            return write(value)

        self._writers[cls] = write_first
        self._registered.add(cls)

    def knows(self, cls: type[Any]) -> bool:
        """Return whether *cls* has its own form."""
        return cls in self._registered

    def write(self, value: Any) -> str:
        """
        Write any value.

        Raises:
            Refused: A part of it has no encoding.
        """
        kind = type(value)
        write = self._writers.get(kind)
        if write is None:
            write = self._writers[kind] = self._writer_of(kind)
        return write(value)

    def write_attributes(self, attributes: dict[str, Any]) -> str:
        """
        Write an object's attributes.

        Their names are not secret: an error shows them in its path.

        Raises:
            Refused: An attribute has no encoding.
        """
        if len(attributes) == 1 and is_written_as_pairs(attributes):
            return self._write_pairs(attributes)
        parts = []
        name = ""
        try:
            for name, value in attributes.items():
                kind = type(value)
                if kind is str and value.isascii():  # most attributes are strings, and need no call
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
        # Processes order a set differently, but equal sets must become equal bytes.
        return f"[{','.join(sorted(self._parts(value)))}]"

    def _parts(self, value: Iterable[Any]) -> list[str]:
        parts: list[str] = []
        try:
            for inner in value:
                parts.append(self.write(inner))  # noqa: PERF401 - the path needs the number of parts so far
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
    """
    Return whether a dictionary is written as pairs.

    It is if a key is not a string, or if the dictionary would look like a typed value.
    """
    if len(value) == 1:
        (key,) = value
        return type(key) is not str or key.startswith("$")
    return any(type(key) is not str for key in value)


def write_string(value: str) -> str:
    """
    Write a string, quoted.

    Raises:
        Refused: UTF-8 cannot encode it.
    """
    if not value.isascii():
        try:
            value.encode()
            surrogate = False
        except UnicodeEncodeError:
            surrogate = True
        if surrogate:  # raised here, because the cause would hold the string
            raise Refused("holds a lone surrogate, which UTF-8 cannot encode")
    return encode_basestring(value)


@lru_cache(maxsize=4096)
def _write_key(name: str) -> str:
    return f"{write_string(name)}:"


def _write_integer(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        raise Refused("is an integer with too many digits") from None


def _write_float(value: float) -> str:
    if not isfinite(value):
        raise Refused("is a float that is not finite")
    return float.__repr__(value)


def _write_mask(value: Masked) -> str:
    return f'{{"{MASK_MARKER}":[{write_string(value.scope)},{write_string(value.field)}]}}'


def _write_placeholder(value: Placeholder) -> str:
    # NUL, because no JSON text contains one: strings escape it.
    return f'{{"{SEALED_MARKER}":[{write_string(value.subject_path)},"\0{value.number}\0"]}}'


def _refuse_personal(value: object) -> NoReturn:
    raise HoldsPersonalData(
        f"is a {type(value).__qualname__}, whose personal data only a mapper seals",
        remedy="Store it where a mapper finds it: in an attribute, a list, a tuple or a dictionary's values. "
        "A set, a dictionary's keys or your own encoding hide it.",
    )


def _topic(kind: type[Any]) -> str:
    return write_string(topic_of(kind))

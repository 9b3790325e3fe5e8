"""
JSON with the types that events are made of.

What JSON has stands as it is. Everything else is an object with one key that begins with ``$``, such as
``{"$uuid":"..."}``; a dictionary that looks like one, or whose keys are not all strings, is written as
``{"$dict":[[key,value],...]}``, so that no dictionary of a user's is ever mistaken.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum, Flag
from json.decoder import JSONDecoder
from json.encoder import encode_basestring
from math import isfinite
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from eventseal.errors import ConfigurationError, EventSealError, SerializationError
from eventseal.items.json_types import STANDARD_TYPES, Refused
from eventseal.items.objects import attributes_of, restore
from eventseal.items.topics import resolve_topic, topic_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


class JSONTranscoder:
    """
    Turns values into compact UTF-8 and back, each type exactly as it was.

    It knows what JSON has (finite numbers only), dictionaries, lists, tuples, sets, frozen sets, bytes,
    UUIDs, decimals, datetimes with and without a zone, dates, times, time deltas, enumerations and
    dataclasses, in any depth. A subclass of one of these is another type: register it. A zone comes back as
    its offset.
    """

    def __init__(self) -> None:
        self._writers: dict[type[Any], Callable[[Any], str]] = {
            str: _write_string,
            int: _write_integer,
            float: _write_float,
            bool: _write_boolean,
            type(None): _write_null,
            dict: self._write_dict,
            list: self._write_list,
        }
        self._readers: dict[str, Callable[[Any], Any]] = {
            "$dict": _read_pairs,
            "$tuple": tuple,
            "$set": set,
            "$frozenset": frozenset,
            "$enum": _read_enum,
            "$dataclass": _read_dataclass,
        }
        self._writers[tuple] = lambda value: f'{{"$tuple":{self._write_list(value)}}}'
        self._writers[set] = lambda value: f'{{"$set":{self._write_sorted(value)}}}'
        self._writers[frozenset] = lambda value: f'{{"$frozenset":{self._write_sorted(value)}}}'
        self._decoder = JSONDecoder(object_hook=self._read_object, parse_constant=_refuse_constant)
        for cls, name, encode, decode in STANDARD_TYPES:
            self.register(cls, name, encode, decode)

    def register(
        self, cls: type[T], name: str, encode: Callable[[T], Any], decode: Callable[[Any], T]
    ) -> None:
        """
        Teach the transcoder a type.

        Args:
            cls: The very class, not its subclasses.
            name: What stored values are marked with; it must stay what it is.
            encode: Gives a value that can be encoded.
            decode: Gives the object back.

        Raises:
            ConfigurationError: The type or the name is taken.
        """
        marker = f"${name}"
        if cls in self._writers or marker in self._readers:
            raise ConfigurationError(
                f"{_type_name(cls)} as {name!r}: the type or the name is registered already"
            )
        head = f"{{{_write_string(marker)}:"
        self._writers[cls] = lambda value: f"{head}{self._write(encode(value))}}}"
        self._readers[marker] = decode

    def encode(self, value: Any) -> bytes:
        """
        Write any value.

        Raises:
            SerializationError: Something in it has no encoding; the message says where and of what type.
        """
        return self._encode(self._write, value, "value")

    def encode_attributes(self, attributes: dict[str, Any], *, owner: str) -> bytes:
        """
        Write an object's attributes.

        Args:
            attributes: By name.
            owner: Whose they are: begins the path that an error shows.

        Raises:
            SerializationError: One of them has no encoding; the message says which and of what type.
        """
        return self._encode(self._write_attributes, attributes, owner)

    def decode(self, data: bytes) -> Any:
        """
        Read what was written.

        Raises:
            SerializationError: It is not JSON of this form, or names a type that is not known here.
        """
        try:
            text = str(data, "utf-8").strip()
            value, end = self._decoder.raw_decode(text)
            if end == len(text):
                return value
        except EventSealError:
            raise
        except (ValueError, RecursionError):
            pass  # raised below: the cause would hold the plaintext
        raise SerializationError(
            f"{len(data)} bytes are not the JSON of an event",
            remedy="Read the item with the cipher that sealed it, or restore the row from a backup.",
        )

    def _encode(self, write: Callable[[Any], str], value: Any, root: str) -> bytes:
        try:
            return write(value).encode()
        except Refused as exc:
            refused = exc
        except RecursionError:
            refused = Refused("is nested too deeply, or holds itself")
        path = root + "".join(reversed(refused.path))
        raise SerializationError(f"{path} {refused.reason}", path=path)

    def _write(self, value: Any) -> str:
        kind = type(value)
        write = self._writers.get(kind)
        if write is None:
            write = self._writers[kind] = self._writer_of(kind)
        return write(value)

    def _writer_of(self, kind: type[Any]) -> Callable[[Any], str]:
        if issubclass(kind, Flag):
            return lambda value: f'{{"$enum":[{_topic(kind)},{self._write(value.value)}]}}'
        if issubclass(kind, Enum):
            return lambda value: f'{{"$enum":[{_topic(kind)},{_write_string(value.name)}]}}'
        if is_dataclass(kind):
            return lambda value: (
                f'{{"$dataclass":[{_topic(kind)},{self._write_attributes(attributes_of(value))}]}}'
            )
        raise Refused(f"is a {_type_name(kind)}, which has no encoding")

    def _write_attributes(self, attributes: dict[str, Any]) -> str:
        if len(attributes) == 1 and next(iter(attributes)).startswith("$"):
            return self._write_dict(attributes)
        parts = []
        name = ""
        try:
            for name, value in attributes.items():
                parts.append(f"{_write_string(name)}:{self._write(value)}")
        except Refused as exc:
            exc.path.append(f".{name}")
            raise
        return f"{{{','.join(parts)}}}"

    def _write_dict(self, value: dict[Any, Any]) -> str:
        if not all(type(key) is str for key in value) or (
            len(value) == 1 and next(iter(value)).startswith("$")
        ):
            return self._write_pairs(value)
        parts = []
        try:
            for key, inner in value.items():
                parts.append(f"{_write_string(key)}:{self._write(inner)}")
        except Refused as exc:
            # A key is data, so the path counts keys instead of showing them.
            exc.path.append(f"{{{len(parts)}}}")
            raise
        return f"{{{','.join(parts)}}}"

    def _write_pairs(self, value: dict[Any, Any]) -> str:
        parts: list[str] = []
        try:
            for key, inner in value.items():
                parts.append(f"[{self._write(key)},{self._write(inner)}]")
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
                parts.append(self._write(inner))  # noqa: PERF401 - what was written counts the path
        except Refused as exc:
            exc.path.append(f"[{len(parts)}]")
            raise
        return parts

    def _read_object(self, value: dict[str, Any]) -> Any:
        if len(value) != 1:
            return value
        (marker,) = value
        if not marker.startswith("$"):
            return value
        read = self._readers.get(marker)
        if read is None:
            raise SerializationError(
                f"no type is registered under {marker[1:]!r}",
                remedy="Register it with JSONTranscoder.register().",
            )
        try:
            return read(value[marker])
        except EventSealError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            pass  # raised below: the cause may hold the plaintext
        raise SerializationError(f"a stored {marker[1:]!r} cannot be read", remedy=_CHANGED_REMEDY)


_CHANGED_REMEDY = "If the class was changed, register an encoding that reads both forms."


def _write_string(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            surrogate = True
        else:
            surrogate = False
        if surrogate:  # raised here: the cause would hold the string
            raise Refused("holds a lone surrogate, which UTF-8 has no bytes for")
    return encode_basestring(value)


def _write_integer(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # over sys.get_int_max_str_digits()
        raise Refused("is an integer of too many digits") from None


def _write_float(value: float) -> str:
    if not isfinite(value):
        raise Refused("is a float that is not finite")
    return float.__repr__(value)


def _write_boolean(value: bool) -> str:
    return "true" if value else "false"


def _write_null(_: None) -> str:
    return "null"


def _topic(kind: type[Any]) -> str:
    return _write_string(topic_of(kind))


def _read_pairs(pairs: list[list[Any]]) -> dict[Any, Any]:
    return {key: value for key, value in pairs}  # noqa: C416 - dict(pairs) would take strings of two as pairs


def _read_enum(stored: list[Any]) -> Enum:
    topic, member = stored
    cls = resolve_topic(topic)
    if not issubclass(cls, Enum):
        raise SerializationError(f"topic {topic!r} does not name an enumeration", remedy=_CHANGED_REMEDY)
    return cls(member) if issubclass(cls, Flag) else cls[member]


def _read_dataclass(stored: list[Any]) -> Any:
    topic, attributes = stored
    cls = resolve_topic(topic)
    if not is_dataclass(cls):
        raise SerializationError(f"topic {topic!r} does not name a dataclass", remedy=_CHANGED_REMEDY)
    return restore(cls, attributes)


def _refuse_constant(constant: str) -> NoReturn:
    raise SerializationError(f"JSON has no {constant}")


def _type_name(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

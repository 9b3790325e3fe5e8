"""Values as JSON text, in one pass."""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum, Flag
from functools import lru_cache
from json.encoder import encode_basestring
from math import isfinite
from typing import TYPE_CHECKING, Any, NoReturn

from eventseal.items.json_values import (
    MASK_MARKER,
    SEALED_MARKER,
    STATE_MARKER,
    HoldsPersonalData,
    ObjectState,
    Placeholder,
    Refused,
    Rewritten,
)
from eventseal.items.masks import Masked
from eventseal.items.objects import attributes_of
from eventseal.items.personal import plan_of, refuse_personal
from eventseal.items.topics import topic_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


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
            bool: _write_boolean,
            type(None): _write_null,
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


def _write_boolean(value: bool) -> str:
    return "true" if value else "false"


def _write_null(_: None) -> str:
    return "null"


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

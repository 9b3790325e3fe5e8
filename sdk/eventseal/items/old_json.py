"""JSON of the eventsourcing library's releases 1 to 7, as this store's own transcoder reads it."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from json import JSONDecodeError, dumps, loads
from typing import TYPE_CHECKING, Any
from uuid import UUID

from eventseal.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

_INTERNAL = frozenset(
    {"__event_hash__", "__event_hash_method_name__", "__event_topic__", "__previous_hash__"}
)
"""What those releases kept for themselves: a chain of hashes, which the envelope's tag replaces."""


def translated(data: bytes, sequence_id: UUID | str, position: int | Decimal) -> bytes:
    """
    Write an event's JSON again, as :class:`JSONTranscoder` reads it: each value the same as it was.

    The place stands beside the data: it is left out, unless the position is a time, which a reader looks for.

    Args:
        data: The JSON of an object.
        sequence_id: Of the item.
        position: Of the item.

    Raises:
        SerializationError: It holds a value that this store's JSON has no form for; the message says which
            kind, not what it is.
    """
    try:
        attributes = loads(data, parse_constant=_refuse_constant)
        found = {
            name: _value(value)
            for name, value in attributes.items()
            if name not in _INTERNAL and name not in {"originator_id", "originator_version"}
        }
        if isinstance(position, Decimal):
            found["originator_id"] = (
                {"$uuid": str(sequence_id)} if isinstance(sequence_id, UUID) else sequence_id
            )
            found["timestamp"] = {"$decimal": str(position)}
        return dumps(_escaped(found), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except SerializationError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        JSONDecodeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        pass  # raised below: the cause may hold the plaintext
    raise SerializationError(
        "the item is not JSON as the eventsourcing library's releases 1 to 7 write it",
        remedy="Read it with the old application, and append it to the new store yourself.",
    )


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(each) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((marker, inner),) = value.items()
        if marker in _READERS:
            return _READERS[marker](inner)
    return _escaped({name: _value(each) for name, each in value.items()})


def _escaped(value: dict[str, Any]) -> dict[str, Any]:
    """Give a dictionary of the event's own, which must not be taken for a marked value."""
    if len(value) == 1 and next(iter(value)).startswith("$"):
        return {"$dict": [[name, each] for name, each in value.items()]}
    return value


def _tuple(inner: dict[str, Any]) -> dict[str, Any]:
    if inner["topic"] != "builtins#tuple":
        raise _no_form("a named tuple")
    return {"$tuple": _value(inner["state"])}


def _object(inner: dict[str, Any]) -> dict[str, Any]:
    state = {name: _value(value) for name, value in inner["state"].items()}
    return {"$dataclass": [inner["topic"], state]}


def _refuse(kind: str) -> Callable[[Any], Any]:
    def refuse(_: object) -> Any:
        raise _no_form(kind)

    return refuse


def _no_form(kind: str) -> SerializationError:
    return SerializationError(
        f"the item holds {kind}, which the store's JSON has no form for",
        remedy="Read it with the old application, and append what it stands for to the new store yourself.",
    )


def _refuse_constant(constant: str) -> Any:
    raise _no_form(f"the number {constant}")


_READERS: dict[str, Callable[[Any], Any]] = {
    "UUID": lambda text: {"$uuid": str(UUID(text))},
    "ISO8601_datetime": lambda text: {"$datetime": datetime.fromisoformat(text).isoformat()},
    "ISO8601_date": lambda text: {"$date": date.fromisoformat(text).isoformat()},
    "ISO8601_time": lambda text: {"$time": time.fromisoformat(text).isoformat()},
    "__decimal__": lambda text: {"$decimal": str(Decimal(text))},
    "__bytes__": lambda text: {"$bytes": text},
    "__set__": lambda values: {"$set": _value(values)},
    "__tuple__": _tuple,
    "__enum__": lambda inner: {"$enum": [inner["topic"], inner["name"]]},
    "__class__": _object,
    "__type__": _refuse("a class"),
    "__deque__": _refuse("a deque"),
}

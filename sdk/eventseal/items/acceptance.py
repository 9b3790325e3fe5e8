"""Which older formats a reader accepts, until when, and their JSON as the transcoder reads it."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from json import dumps, loads
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from eventseal.errors import (
    ConfigurationError,
    EncryptionRequiredError,
    EventSealError,
    IntegrityError,
    KeyNotFoundError,
    SerializationError,
    UnknownFormatError,
)
from eventseal.items.formats import OldFormat
from eventseal.suites.envelope import KEY_ID_IN_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from eventseal.cipher.context import ItemContext


@dataclass(frozen=True, slots=True)
class OldItem:
    """
    An item that opened in an older format.

    Attributes:
        plaintext: Its JSON.
        format: That it was in.
    """

    plaintext: bytes = field(repr=False)
    format: OldFormat


class Before:
    """
    An older format, at positions before the migration only: nobody slips such an item in behind them.

    Args:
        format: Of the items there.
        before: The first position at which it is refused, in any sequence; or a function of an item's place
            that says whether it is accepted there.
    """

    def __init__(self, format: OldFormat, before: int | Decimal | Callable[[ItemContext], bool]) -> None:  # noqa: A002 - what it is
        self._format = format
        self._before = before
        self.name = format.name
        self.key_id = format.key_id

    def open(self, data: bytes, context: ItemContext) -> bytes:
        """
        Open an item at such a place; see ``OldFormat``.

        Raises:
            EncryptionRequiredError: It is at another place.
        """
        before = self._before
        if before(context) if callable(before) else context.position < before:
            return self._format.open(data, context)
        raise EncryptionRequiredError(
            f"at position {context.position} no item may be in the format {self.name} any more",
            remedy="If the old application still wrote there, raise the position and migrate again; "
            "else find out who wrote the row.",
        )

    def __repr__(self) -> str:
        return f"<Before {self._format!r}>"


class AcceptedFormats:
    """
    The older formats that a reader accepts while a migration lasts. False if there are none.

    Args:
        formats: Tried in order, after the envelope, each by its own authentication or parse.
        current: Asked before one is tried: gives the names of those that are still accepted in a collection;
            ``None``: all of them, always.

    Raises:
        ConfigurationError: Something given is no format.
    """

    def __init__(
        self,
        formats: Collection[OldFormat] = (),
        *,
        current: Callable[[str], Collection[str]] | None = None,
    ) -> None:
        for given in formats:
            if not isinstance(given, OldFormat):
                raise ConfigurationError(
                    f"{type(given).__name__} is not an older format",
                    remedy="Give objects of eventseal.items.formats, such as PlainJSON().",
                )
        self.formats = tuple(formats)
        self._current = current

    @classmethod
    def of(cls, accept: AcceptedFormats | Collection[OldFormat]) -> AcceptedFormats:
        """Take what a mapper was given as ``accept=``."""
        return accept if isinstance(accept, AcceptedFormats) else cls(accept)

    def __bool__(self) -> bool:
        return bool(self.formats)

    def open(
        self, data: bytes, context: ItemContext, outcome: EventSealError, *, key_id: UUID | None = None
    ) -> OldItem | EventSealError:
        """
        Open an item that the cipher did not, or say why not: what every mapper and the migration call.

        Args:
            data: As stored.
            context: The item's place.
            outcome: What the cipher gave for it.
            key_id: What stands beside it in a column of its own, if there is one.

        Returns:
            The item; or *outcome*, if it says that this is an envelope, or names a key that is not there; or
            ``IntegrityError`` where it looks like an accepted format and does not open, with one message
            whatever failed; or ``UnknownFormatError``, or ``EncryptionRequiredError`` where none is accepted
            here or any more.
        """
        if not self.formats or not self._may_be_old(data, outcome, key_id):
            return outcome
        formats = self.formats
        if self._current is not None:
            names = self._current(context.collection)
            formats = tuple(accepted for accepted in formats if accepted.name in names)
        refusals: list[EventSealError] = []
        for accepted in formats:
            try:
                return OldItem(accepted.open(data, context), accepted)
            except EventSealError as error:
                refusals.append(error)
        if formats:
            return self._refusal(outcome, refusals)
        # Looks like an envelope: that its key is missing is what to find out, not how to accept it again.
        if isinstance(outcome, KeyNotFoundError):
            return outcome
        return EncryptionRequiredError(
            "the item is no envelope, and no older format is accepted in the collection "
            f"{context.collection}",
            remedy="Begin the migration with `eventseal migrate begin`; if it has ended, find out who "
            "wrote the row.",
        )

    def _may_be_old(self, data: bytes, outcome: EventSealError, key_id: UUID | None) -> bool:
        """Whether an older format can be meant: none says of itself what it is."""
        # Bytes are an envelope only if their key is known; about every 256th item of releases 8 and 9 begins
        # like one. What names a key in a column was an envelope: here, only a static key's can be accepted
        # (docs/decisions/0017).
        if not isinstance(outcome, UnknownFormatError | KeyNotFoundError):
            return False
        if key_id is None:
            return True
        is_accepted = any(accepted.key_id == key_id for accepted in self.formats)
        return is_accepted and data[KEY_ID_IN_HEADER] == key_id.bytes

    def _refusal(self, outcome: EventSealError, refusals: list[EventSealError]) -> EventSealError:
        names = ", ".join(accepted.name for accepted in self.formats)
        if isinstance(outcome, KeyNotFoundError):
            return KeyNotFoundError(
                f"{outcome}; nor does it open as {names}", key_id=outcome.key_id, remedy=outcome.remedy
            )
        told = [refusal for refusal in refusals if not isinstance(refusal, UnknownFormatError)]
        order = (IntegrityError, EncryptionRequiredError)
        if told:
            return copy(min(told, key=lambda refusal: [not isinstance(refusal, kind) for kind in order]))
        return UnknownFormatError(
            f"the item is neither an envelope nor {names}",
            remedy="Name the format that wrote it, with its key.",
            offset=getattr(outcome, "offset", None),
        )


NO_FORMATS = AcceptedFormats()
"""Accepts nothing but envelopes."""


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
        attributes = loads(data, parse_constant=lambda constant: _refuse_form(f"the number {constant}"))
        found = {
            name: _translated_value(value)
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
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        pass  # raised below: the cause may hold the plaintext
    raise SerializationError(
        "the item is not JSON as the eventsourcing library's releases 1 to 7 write it",
        remedy="Read it with the old application, and append it to the new store yourself.",
    )


def _translated_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_translated_value(each) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((marker, inner),) = value.items()
        if marker in _READERS:
            return _READERS[marker](inner)
    return _escaped({name: _translated_value(each) for name, each in value.items()})


def _escaped(value: dict[str, Any]) -> dict[str, Any]:
    """Give a dictionary of the event's own, which must not be taken for a marked value."""
    if len(value) == 1 and next(iter(value)).startswith("$"):
        return {"$dict": [[name, each] for name, each in value.items()]}
    return value


def _tuple(inner: dict[str, Any]) -> dict[str, Any]:
    if inner["topic"] != "builtins#tuple":
        _refuse_form("a named tuple")
    return {"$tuple": _translated_value(inner["state"])}


def _object(inner: dict[str, Any]) -> dict[str, Any]:
    state = {name: _translated_value(value) for name, value in inner["state"].items()}
    return {"$dataclass": [inner["topic"], state]}


def _refuse_form(kind: str) -> NoReturn:
    raise SerializationError(
        f"the item holds {kind}, which the store's JSON has no form for",
        remedy="Read it with the old application, and append what it stands for to the new store yourself.",
    )


_READERS: dict[str, Callable[[Any], Any]] = {
    "UUID": lambda text: {"$uuid": str(UUID(text))},
    "ISO8601_datetime": lambda text: {"$datetime": datetime.fromisoformat(text).isoformat()},
    "ISO8601_date": lambda text: {"$date": date.fromisoformat(text).isoformat()},
    "ISO8601_time": lambda text: {"$time": time.fromisoformat(text).isoformat()},
    "__decimal__": lambda text: {"$decimal": str(Decimal(text))},
    "__bytes__": lambda text: {"$bytes": text},
    "__set__": lambda values: {"$set": _translated_value(values)},
    "__tuple__": _tuple,
    "__enum__": lambda inner: {"$enum": [inner["topic"], inner["name"]]},
    "__class__": _object,
    "__type__": lambda _: _refuse_form("a class"),
    "__deque__": lambda _: _refuse_form("a deque"),
}

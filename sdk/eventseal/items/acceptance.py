"""The older formats that a reader accepts, and their translated JSON."""

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
        plaintext: The JSON of the item.
        format: The name of the format that it was in.
    """

    plaintext: bytes = field(repr=False)
    format: OldFormat


class Before:
    """
    An older format, accepted only at positions from before the migration.

    So an attacker cannot append new items in the older format.

    Args:
        format: The format of the items there.
        before: The first position at which the format is refused, in any sequence. Or a function that takes
            an item's place and returns whether the format is accepted there.
    """

    def __init__(self, format: OldFormat, before: int | Decimal | Callable[[ItemContext], bool]) -> None:  # noqa: A002 - the best name
        self._format = format
        self._before = before
        self.name = format.name
        self.key_id = format.key_id

    def open(self, data: bytes, context: ItemContext) -> bytes:
        """
        Open an item at an accepted place. See ``OldFormat``.

        Raises:
            EncryptionRequiredError: The item is at another place.
        """
        before = self._before
        if before(context) if callable(before) else context.position < before:
            return self._format.open(data, context)
        raise EncryptionRequiredError(
            f"at position {context.position} the format {self.name} is no longer accepted",
            remedy="If the old application still wrote there, raise the position and migrate again. "
            "Otherwise find out who wrote the row.",
        )

    def __repr__(self) -> str:
        return f"<Before {self._format!r}>"


class AcceptedFormats:
    """
    The older formats that a reader accepts during a migration. False if there are none.

    Args:
        formats: The formats. After the envelope, they are tried in this order, each by its authentication or
            by parsing.
        current: A function that is called before a format is tried. It returns the names of the formats that
            a collection still accepts. ``None`` means all of them, always.

    Raises:
        ConfigurationError: One of *formats* is not a format.
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
                    remedy="Pass objects of eventseal.items.formats, such as PlainJSON().",
                )
        self.formats = tuple(formats)
        self._current = current

    @classmethod
    def of(cls, accept: AcceptedFormats | Collection[OldFormat]) -> AcceptedFormats:
        """Return the formats of a mapper's ``accept=``."""
        return accept if isinstance(accept, AcceptedFormats) else cls(accept)

    def __bool__(self) -> bool:
        return bool(self.formats)

    def open(
        self, data: bytes, context: ItemContext, outcome: EventSealError, *, key_id: UUID | None = None
    ) -> OldItem | EventSealError:
        """
        Open an item that the cipher did not open, or return why.

        Every mapper and the migration call this method.

        Args:
            data: The bytes as stored.
            context: The place of the item.
            outcome: The error of the cipher.
            key_id: The key id in the row's separate column, if there is one.

        Returns:
            The item, or one of these errors:

            - *outcome*, if it says that the bytes are an envelope, or if the item names a missing key.
            - ``IntegrityError``, if the item looks like an accepted format and does not open. Its message is
              the same for every cause.
            - ``UnknownFormatError``, if it looks like none of the accepted formats.
            - ``EncryptionRequiredError``, if no format is accepted here, or no longer.
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
        # It looks like an envelope. So the user must learn that its key is missing, not how to accept it
        # again.
        if isinstance(outcome, KeyNotFoundError):
            return outcome
        return EncryptionRequiredError(
            "the item is not an envelope, and no older format is accepted in the collection "
            f"{context.collection}",
            remedy="To migrate older items, run `eventseal migrate begin`. If the migration has ended, find "
            "out who wrote the row.",
        )

    def _may_be_old(self, data: bytes, outcome: EventSealError, key_id: UUID | None) -> bool:
        """Return whether the item may be in an older format."""
        # No older format identifies itself. Bytes are an envelope only if their key is known, because about
        # every 256th item of releases 8 and 9 begins like one. An item with a key id in a column was an
        # envelope. Of those, only a static key's can be accepted (docs/decisions/0017).
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
                f"{outcome}. It does not open as {names} either", key_id=outcome.key_id, remedy=outcome.remedy
            )
        told = [refusal for refusal in refusals if not isinstance(refusal, UnknownFormatError)]
        order = (IntegrityError, EncryptionRequiredError)
        if told:
            return copy(min(told, key=lambda refusal: [not isinstance(refusal, kind) for kind in order]))
        return UnknownFormatError(
            f"the item is neither an envelope nor {names}",
            remedy="Accept the format that wrote it, with its key.",
            offset=getattr(outcome, "offset", None),
        )


NO_FORMATS = AcceptedFormats()
"""The formats of a reader that accepts only envelopes."""


_INTERNAL = frozenset(
    {"__event_hash__", "__event_hash_method_name__", "__event_topic__", "__previous_hash__"}
)
"""Internal attributes of releases 1 to 7: a hash chain. The envelope's tag replaces it."""


def translated(data: bytes, sequence_id: UUID | str, position: int | Decimal) -> bytes:
    """
    Rewrite an event's JSON in the form that :class:`JSONTranscoder` reads.

    Each value stays the same. The row holds the place, so the JSON omits it. A position that is a time stays,
    because readers need it there.

    Args:
        data: The JSON of an object.
        sequence_id: The sequence id of the item.
        position: The position of the item.

    Raises:
        SerializationError: The store's JSON has no form for a value of the item. The message names the kind
            of value, and not the value.
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
        pass  # raised below, because the cause may hold the plaintext
    raise SerializationError(
        "the item is not JSON of the eventsourcing library's releases 1 to 7",
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
    """Escape an event's own dictionary, so that it looks like no marker."""
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
        f"the item holds {kind}, for which the store's JSON has no form",
        remedy="Read it with the old application, and append its value to the new store yourself.",
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

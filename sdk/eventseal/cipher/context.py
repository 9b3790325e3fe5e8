"""
The item context: the place that an item is bound to.

The place is associated data. It is not stored in the envelope. Each part is bound as a canonical value. So
two contexts have the same bytes exactly if the database treats them as equal. The text of a UUID is that
UUID, ``Decimal("1.50")`` is 1.5, ``Decimal("3.0")`` is 3, and -0 is 0. A value without a canonical form is
refused before anything is written. See ``docs/format.md`` for the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from eventseal.errors import SerializationError
from eventseal.suites.hkdf import length_prefixed

if TYPE_CHECKING:
    from collections.abc import Sequence

DOMAIN = b"item"
MAX_PLACES = 6
"""The most decimal places of a position. For a time, the last one is a microsecond."""

_UUID_TAG, _TEXT_TAG, _DECIMAL_TAG = b"\x01", b"\x02", b"\x04"
_INTEGER_TAG = 3
_INTEGER = Struct(">Bq").pack
_INTEGER_SIZE = 9
_FRAMED_INTEGER = Struct(">IBq").pack
_FRAMED_UUID = b"\x00\x00\x00\x11" + _UUID_TAG
_UUID_TEXT_SIZE = 36
_LEAST, _MOST = -(2**63), 2**63 - 1
_DIGITS = 19
_MICRO = Decimal(1).scaleb(-MAX_PLACES)
# Wide enough for every 64-bit integer with six places. A value that does not fit exactly raises.
_EXACT = Context(prec=30, traps=[Inexact, InvalidOperation])


@dataclass(frozen=True, slots=True)
class ItemContext:
    """
    The place of an item. It must be equal when the item is opened.

    Args:
        sequence_id: The stream, as a UUID or text. The canonical text of a UUID is the same stream as the
            UUID.
        position: The position in the stream: an integer of 64 bits, or a Decimal of at most 6 places. A float
            or bool is refused.
        topic: The name of the event's class.
        collection: ``items``, ``snapshots``, or the logical name that a record class declares.
    """

    sequence_id: UUID | str
    position: int | Decimal
    topic: str
    collection: str = "items"


class StoredItems(Protocol):
    """Items of one collection with their places, column by column."""

    @property
    def sequence_ids(self) -> Sequence[Any]:
        """One for each item. It is faster if equal neighbours are one object."""
        ...

    @property
    def positions(self) -> Sequence[Any]:
        """One for each item."""
        ...

    @property
    def topics(self) -> Sequence[Any]:
        """One for each item."""
        ...

    @property
    def envelopes(self) -> Sequence[Any]:
        """One for each item, or whatever value the table has instead."""
        ...


class ItemBinder:
    """
    Writes item contexts as associated data, for one application.

    Args:
        application: The application's name, which is part of every item's associated data.
    """

    def __init__(self, application: str) -> None:
        self.application = application

    def bind(self, context: ItemContext) -> bytes:
        """
        Return the associated data of an item, without the envelope's header.

        The header precedes it.

        Returns:
            Domain, application, collection, sequence id, position and topic, each after 4 bytes of length.

        Raises:
            SerializationError: A part has no canonical value, or is of another type.
        """
        # The exact types take a short way. All other types take the long one, to the same bytes.
        sequence_id, position, topic = context.sequence_id, context.position, context.topic
        if type(sequence_id) is UUID:
            place = _FRAMED_UUID + sequence_id.bytes
        elif type(sequence_id) is str:
            place = _framed_text_id(sequence_id)
        else:
            place = length_prefixed(canonical_sequence_id(sequence_id))
        if type(position) is int and _LEAST <= position <= _MOST:
            place += _FRAMED_INTEGER(_INTEGER_SIZE, _INTEGER_TAG, position)
        else:
            place += length_prefixed(canonical_position(position))
        if type(topic) is not str or type(context.collection) is not str:
            return self._bind_unusual(context, place)
        return _framed_names(self.application, context.collection) + place + _framed_topic(topic)

    def bind_many(self, items: StoredItems, collection: str) -> list[bytes | SerializationError]:
        """
        Bind the places of items of one collection.

        It binds each as :meth:`bind` does. An item that cannot be bound has an error in its place.

        Args:
            items: Any number of items.
            collection: The collection of all items.
        """
        bound: list[bytes | SerializationError] = []
        names = _framed_names(self.application, collection)
        topics: dict[str, bytes] = {}
        stream: object = None
        stream_names = b""
        for sequence_id, position, topic in zip(
            items.sequence_ids, items.positions, items.topics, strict=True
        ):
            try:
                if sequence_id is not stream:
                    stream_names = names + _framed_sequence_id(sequence_id)
                    stream = sequence_id
                framed_topic = topics.get(topic)
                if framed_topic is None:
                    framed_topic = topics[topic] = length_prefixed(_text("topic", topic))
                if type(position) is int and _LEAST <= position <= _MOST:
                    place = _FRAMED_INTEGER(_INTEGER_SIZE, _INTEGER_TAG, position)
                else:
                    place = length_prefixed(canonical_position(position))
            except SerializationError as error:
                bound.append(error)
                stream = None
            else:
                bound.append(stream_names + place + framed_topic)
        return bound

    def _bind_unusual(self, context: ItemContext, place: bytes) -> bytes:
        topic, collection = _text("topic", context.topic), _text("collection", context.collection)
        return _framed_names(self.application, collection.decode()) + place + _framed_topic(topic.decode())


def _framed_sequence_id(sequence_id: object) -> bytes:
    if type(sequence_id) is UUID:
        return _FRAMED_UUID + sequence_id.bytes
    return length_prefixed(canonical_sequence_id(sequence_id))


def canonical_sequence_id(sequence_id: object) -> bytes:
    """
    Return a sequence id's canonical value: a tag and the bytes.

    Raises:
        SerializationError: It is neither a UUID nor text, or not every database keeps the text unchanged.
    """
    if isinstance(sequence_id, UUID):
        return _UUID_TAG + sequence_id.bytes
    if not isinstance(sequence_id, str):
        raise SerializationError(
            f"a sequence id is a UUID or a string, not {type(sequence_id).__name__}",
            remedy="Use the entity's UUID, or text, as the id of its stream.",
        )
    text = _text("sequence id", sequence_id)
    if len(text) == _UUID_TEXT_SIZE:
        try:
            value = UUID(sequence_id)
        except ValueError:
            return _TEXT_TAG + text
        if str(value) == sequence_id:
            return _UUID_TAG + value.bytes
    return _TEXT_TAG + text


def canonical_position(position: object) -> bytes:
    """
    Return a position's canonical value: a tag and the bytes.

    Raises:
        SerializationError: It is neither an integer of 64 bits, nor a Decimal in that range with at most 6
            places.
    """
    if isinstance(position, bool) or not isinstance(position, int | Decimal):
        raise SerializationError(
            f"a position is an int or a Decimal, not {type(position).__name__}",
            remedy="Number the events of a stream by integers, or use Decimal seconds with at most 6 places.",
        )
    if isinstance(position, Decimal):
        return _canonical_decimal(position)
    return _canonical_integer(int(position))


def _canonical_integer(value: int) -> bytes:
    if not _LEAST <= value <= _MOST:
        raise _out_of_range()
    return _INTEGER(_INTEGER_TAG, value)


def _canonical_decimal(position: Decimal) -> bytes:
    if not position.is_finite():
        raise SerializationError(
            "a position is not a number, or is infinite", remedy="Use a finite Decimal as the position."
        )
    if not position:
        return _canonical_integer(0)
    if position.adjusted() > _DIGITS:  # before any computation, since it may be 1E+999999
        raise _out_of_range()
    try:
        scaled = position.quantize(_MICRO, context=_EXACT).scaleb(MAX_PLACES, context=_EXACT)
    except (Inexact, InvalidOperation):
        raise SerializationError(
            f"a position has more than {MAX_PLACES} decimal places",
            remedy=f"Round it to {MAX_PLACES} places, which databases keep exactly.",
        ) from None
    whole, fraction = divmod(abs(int(scaled)), 10**MAX_PLACES)
    negative = scaled < 0
    if not fraction:
        return _canonical_integer(-whole if negative else whole)
    if whole > _MOST:
        raise _out_of_range()
    digits = f"{fraction:0{MAX_PLACES}d}".rstrip("0")
    return _DECIMAL_TAG + f"{'-' if negative else ''}{whole}.{digits}".encode()


def _out_of_range() -> SerializationError:
    return SerializationError(
        "a position does not fit into 64 bits", remedy=f"Use positions from {_LEAST} to {_MOST}."
    )


def framed_text(what: str, text: str) -> bytes:
    """
    Return text after its length in 4 bytes.

    Args:
        what: The name of the text in an error message.
        text: The text, without NUL characters and lone surrogates.

    Raises:
        SerializationError: The text holds a NUL character or a lone surrogate.
    """
    return length_prefixed(_text(what, text))


def _text(what: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise SerializationError(
            f"the {what} is of type {type(text).__name__}, not a string", remedy=f"Use text as the {what}."
        )
    if "\0" in text:
        raise SerializationError(
            f"the {what} holds a NUL character", remedy="Remove it: not every database keeps it."
        )
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise SerializationError(
            f"the {what} holds a lone surrogate", remedy="Use text that UTF-8 can encode."
        ) from None


# Parts that recur from item to item are framed once. The caches are small: topics and collections are names
# in the program, and a page of items comes from few streams.


@lru_cache(maxsize=1024)
def _framed_text_id(sequence_id: str) -> bytes:
    return length_prefixed(canonical_sequence_id(sequence_id))


@lru_cache(maxsize=1024)
def _framed_topic(topic: str) -> bytes:
    return length_prefixed(_text("topic", topic))


@lru_cache(maxsize=256)
def _framed_names(application: str, collection: str) -> bytes:
    return length_prefixed(DOMAIN, _text("application name", application), _text("collection", collection))

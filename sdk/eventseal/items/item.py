"""Sequenced items: stored events, their fields, and their place."""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from eventseal.cipher.context import canonical_position, canonical_sequence_id
from eventseal.errors import (
    OPAQUE_INTEGRITY_MESSAGE,
    ConfigurationError,
    IntegrityError,
    KekNotConfiguredError,
    KeyDestroyedError,
    KeyNotFoundError,
    SerializationError,
    WrongApplicationError,
)
from eventseal.suites.envelope import KEY_ID_IN_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from uuid import UUID

    from eventseal.errors import EventSealError


EVENTS, TIMED_EVENTS = "items", "timestamp_items"
"""The collections of EventSeal's event tables, by version and by time."""


class SequencedItem(NamedTuple):
    """
    A stored event.

    Attributes:
        sequence_id: The stream: a UUID or a string.
        position: The position in the stream: an integer or a Decimal.
        topic: The name of the event's class.
        data: An envelope, or plaintext JSON if no encryption is required.
        key_id: The data key that opens it, or ``None`` for a plaintext item.
    """

    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    key_id: UUID | None = None


def tries_compression(event_class: type[Any]) -> bool:
    """Return whether events of a class are compressed: ``__compress__`` is not False."""
    return bool(getattr(event_class, "__compress__", True))


KEY_ID = "key_id"
_PLACES = 4


class StoredItem(NamedTuple):
    """The fields of an item, with the same names for every class."""

    sequence_id: Any
    position: Any
    topic: str
    data: bytes
    key_id: UUID | None = None

    def check_place(self) -> None:
        """
        Refuse a place that has no canonical value.

        Raises:
            SerializationError: The place is invalid. A note names the event.
        """
        try:
            canonical_sequence_id(self.sequence_id)
            canonical_position(self.position)
        except SerializationError as exc:
            exc.add_note(f"event: {self.topic}")
            raise


def names_another_key(data: bytes, key_id: UUID | None, outcome: EventSealError) -> bool:
    """
    Return whether an unopened envelope names another key than its row.

    It does not matter what became of either key.

    Args:
        data: The bytes as stored.
        key_id: The key id in the row's column.
        outcome: The error of opening it.
    """
    return isinstance(outcome, _OF_THE_KEY) and data[KEY_ID_IN_HEADER] != (key_id.bytes if key_id else None)


_OF_THE_KEY = (KeyNotFoundError, KeyDestroyedError, WrongApplicationError, KekNotConfiguredError)
"""Errors about the header's key only: no outages, no changed bytes."""


class ItemFields:
    """
    Creates and reads items of one class.

    The first four fields are sequence id, position, topic and data, in this order. ``key_id`` is found by its
    name and may be missing. The other fields are copies of the event's attributes, for queries. They are not
    authenticated.

    Args:
        item_class: A named tuple or a dataclass.
        other_attr_names: The event's attributes for the other fields, by default the names of those fields.

    Raises:
        ConfigurationError: The class lacks one of these fields, or the number of names does not match.
    """

    def __init__(self, item_class: type[Any], other_attr_names: Sequence[str] = ()) -> None:
        names = field_names(item_class)
        rest = [name for name in names[_PLACES:] if name != KEY_ID]
        if other_attr_names and len(other_attr_names) != len(rest):
            raise ConfigurationError(
                f"{item_class.__qualname__} has {len(rest)} other fields ({', '.join(rest)}), "
                f"but {len(other_attr_names)} names of attributes are given"
            )
        self.names = names
        self.has_key_id = KEY_ID in names
        attributes = iter(other_attr_names or rest)
        self._rest = [None if name == KEY_ID else next(attributes) for name in names[_PLACES:]]
        self._has_no_others = self._rest == [None]
        self._item_class = item_class
        place: Callable[[Any], tuple[Any, ...]] = attrgetter(*names[:_PLACES])
        self._read: Callable[[Any], tuple[Any, ...]] = (
            attrgetter(*names[:_PLACES], KEY_ID) if self.has_key_id else lambda item: (*place(item), None)
        )

    def check_copied(self, personal: Collection[str], topic: str) -> None:
        """
        Refuse to copy personal data into columns that hold plaintext.

        Args:
            personal: The attributes that hold personal data.
            topic: The topic of the event.

        Raises:
            ConfigurationError: The item class copies one of these attributes.
        """
        copied = [name for name in self._rest if name in personal]
        if copied:
            raise ConfigurationError(
                f"{topic} says that {copied[0]!r} is personal data, but the item class copies it unencrypted",
                remedy="Remove it from the item class, or from other_attr_names.",
            )

    def make(self, draft: StoredItem, data: bytes, key_id: UUID | None, event: Any) -> Any:
        """
        Create an item.

        Args:
            draft: The place and the topic.
            data: The sealed bytes, or the plaintext.
            key_id: The key that sealed it.
            event: The event, which has the other attributes.

        Raises:
            SerializationError: The event lacks one of the other attributes.
        """
        sequence_id, position, topic = draft[:3]
        if self._has_no_others:
            return self._item_class(sequence_id, position, topic, data, key_id)
        try:
            rest = [key_id if name is None else getattr(event, name) for name in self._rest]
        except AttributeError as exc:
            raise SerializationError(
                f"{topic} has no attribute {exc.name!r}, which the item class copies",
                remedy="Add the attribute to the event, or name others with other_attr_names.",
            ) from None
        return self._item_class(sequence_id, position, topic, data, *rest)

    def read(self, item: Any) -> StoredItem:
        """
        Read an item.

        Raises:
            SerializationError: It is not an item, its topic is not text, or its data are not bytes.
            IntegrityError: Its data are not bytes, but it names the key that sealed it.
        """
        try:
            stored = _new_tuple(StoredItem, self._read(item))
        except AttributeError:
            expected = self._item_class.__qualname__
            raise SerializationError(
                f"{type(item).__name__} is not an item class of this mapper, which reads {expected}",
                remedy=f"Pass {expected} items, or create the mapper with another sequenced_item_class.",
            ) from None
        data: Any = stored.data
        if type(data) is not bytes:
            if not isinstance(data, bytearray | memoryview):
                raise _not_bytes(stored)
            stored = stored._replace(data=bytes(data))
        topic: Any = stored.topic
        if type(topic) is not str:
            raise SerializationError(f"an item's topic must be text, not {type(topic).__name__}")
        return stored


_new_tuple = tuple.__new__  # StoredItem(*values) takes twice as long


def _not_bytes(stored: StoredItem) -> EventSealError:
    place = {"sequence_id": stored.sequence_id, "position": stored.position}
    if stored.key_id is not None:
        return IntegrityError(OPAQUE_INTEGRITY_MESSAGE, **place)
    return SerializationError(
        f"an item's data must be bytes, not {type(stored.data).__name__}",
        remedy="Store the data as bytes. SQLite keeps text as text, even in a binary column.",
        **place,
    )


def field_names(item_class: type[Any]) -> tuple[str, ...]:
    """
    Return the names of an item class's fields, in order.

    Raises:
        ConfigurationError: The class is neither a named tuple nor a dataclass, or has too few fields.
    """
    if is_dataclass(item_class):
        names = tuple(field.name for field in dataclass_fields(item_class))
    elif issubclass(item_class, tuple) and hasattr(item_class, "_fields"):
        names = tuple(item_class._fields)
    else:
        raise ConfigurationError(f"{item_class!r} is neither a named tuple nor a dataclass")
    if len(names) < _PLACES or KEY_ID in names[:_PLACES]:
        raise ConfigurationError(
            f"the first fields of {item_class.__qualname__} are {', '.join(names[:_PLACES])}, "
            "but an item begins with sequence id, position, topic and data"
        )
    return names


Pair: TypeAlias = tuple[str, str]

VERSIONED: Pair = ("originator_id", "originator_version")
TIMESTAMPED: Pair = ("originator_id", "timestamp")

_NAMES_REMEDY = "Pass sequence_id_attr_name and position_attr_name to the mapper."


class PlaceNames:
    """
    Takes an event's place out of its attributes, and puts it back.

    The row holds the place, so the data omit it. Without configured names, the attributes are found for each
    event. They are the item class's first two fields, if the event has them. Otherwise they are
    ``originator_id`` with ``originator_version`` or with ``timestamp``.

    Of these, the data omit only ``originator_id`` with ``originator_version``. Another pair stays in the data
    too, so that a reader can recognise it.

    Args:
        fields: The names of the item class's fields. The first two are the place.
        sequence_id: The attribute that names the stream, or ``None``.
        position: The attribute that is the position in the stream, or ``None``.

    Raises:
        ConfigurationError: Only one of the names is given, or both are the same.
    """

    def __init__(self, fields: Sequence[str], sequence_id: str | None, position: str | None) -> None:
        if (sequence_id is None) != (position is None):
            raise ConfigurationError(
                "sequence_id_attr_name and position_attr_name need each other: pass both or neither"
            )
        if sequence_id is not None and sequence_id == position:
            raise ConfigurationError(f"{position!r} cannot be both the sequence id and the position")
        self._given: Pair | None = (
            None if sequence_id is None or position is None else (sequence_id, position)
        )
        self._fields: Pair = (fields[0], fields[1])
        self._written = (self._fields, VERSIONED, TIMESTAMPED)
        self._kept = tuple(pair for pair in (self._fields, TIMESTAMPED) if pair != VERSIONED)

    def check_apart(self, personal: Collection[str], attributes: dict[str, Any], owner: str) -> None:
        """
        Refuse an event whose place, which is stored unencrypted, is personal data.

        Args:
            personal: The attributes that hold personal data.
            attributes: All attributes of an event.
            owner: The topic of the event, for messages.

        Raises:
            ConfigurationError: The place of the event is one of *personal*.
        """
        for name in self._given or _first_in(attributes, self._written) or ():
            if name in personal:
                raise ConfigurationError(
                    f"{owner} says that {name!r} holds personal data, but it is the event's place",
                    remedy="Use sequence ids that are not personal data.",
                )

    def take(self, attributes: dict[str, Any], owner: str) -> tuple[Any, Any]:
        """
        Take the place out of *attributes*.

        Args:
            attributes: The attributes of an event. The method changes them.
            owner: The topic of the event, for messages.

        Returns:
            The sequence id and the position.

        Raises:
            SerializationError: The event lacks these attributes.
        """
        if self._given is None:
            return self._take_found(attributes, owner)
        try:
            return attributes.pop(self._given[0]), attributes.pop(self._given[1])
        except KeyError as exc:
            raise SerializationError(
                f"{owner} has no attribute {exc.args[0]!r}, which is part of its place",
                remedy="Add the attribute to the event, or pass other names to the mapper.",
            ) from None

    def put(self, attributes: dict[str, Any], sequence_id: Any, position: Any, owner: str) -> None:
        """
        Put an item's place back into *attributes*, which are from its data.

        Raises:
            SerializationError: The mapper that wrote the item had configured names, and this one has not.
        """
        names = self._given
        if names is None:
            names = _first_in(attributes, self._kept)
            if names is None:
                names = VERSIONED
                _check_version(position, owner)
        attributes[names[0]] = sequence_id
        attributes[names[1]] = position

    def whole(
        self, attributes: dict[str, Any], sequence_id: Any, position: Any, owner: str
    ) -> dict[str, Any]:
        """Return *attributes* with an item's place, to find the subjects of fields."""
        whole = dict(attributes)
        self.put(whole, sequence_id, position, owner)
        return whole

    def _take_found(self, attributes: dict[str, Any], owner: str) -> tuple[Any, Any]:
        names = _first_in(attributes, self._written)
        if names is None:
            raise SerializationError(
                f"{owner} has neither {' with '.join(self._fields)}, nor originator_id with "
                "originator_version or timestamp",
                remedy=_NAMES_REMEDY,
            )
        if names != VERSIONED:
            return attributes[names[0]], attributes[names[1]]
        _check_version(attributes[names[1]], owner)
        return attributes.pop(names[0]), attributes.pop(names[1])


class UnknownPlaceNames(PlaceNames):
    """Place names for readers of any application, which may choose any names."""

    def __init__(self) -> None:
        super().__init__(VERSIONED, None, None)

    def whole(
        self,
        attributes: dict[str, Any],
        sequence_id: Any,
        position: Any,  # noqa: ARG002 (no subject)
        owner: str,  # noqa: ARG002 (nothing is refused)
    ) -> dict[str, Any]:
        """Return *attributes* with the place. Any missing name is the sequence id."""
        return _WithSequenceId(attributes, sequence_id)


class _WithSequenceId(dict[str, Any]):
    # A wrong guess opens nothing, because the field is bound to its subject.
    def __init__(self, attributes: dict[str, Any], sequence_id: Any) -> None:
        super().__init__(attributes)
        self._sequence_id = sequence_id

    def __missing__(self, name: str) -> Any:
        return self._sequence_id


def _first_in(attributes: dict[str, Any], pairs: Sequence[Pair]) -> Pair | None:
    for names in pairs:
        if names[0] in attributes and names[1] in attributes:
            return names
    return None


def _check_version(position: Any, owner: str) -> None:
    # A Decimal is a time, and a reader without names could not find which attribute held it.
    if isinstance(position, Decimal):
        raise SerializationError(
            f"{owner} has the position {position}, which is not an originator_version", remedy=_NAMES_REMEDY
        )

"""Which attributes of an event are its place, and which key scope it belongs to."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from eventseal.errors import ConfigurationError, SerializationError
from eventseal.items.topics import class_name
from eventseal.keys.records import checked_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence


Pair: TypeAlias = tuple[str, str]

VERSIONED: Pair = ("originator_id", "originator_version")
TIMESTAMPED: Pair = ("originator_id", "timestamp")

_NAMES_REMEDY = "Give the mapper sequence_id_attr_name and position_attr_name."


class PlaceNames:
    """
    Takes an event's place out of its attributes, and puts it back.

    The place stands in the item, so it is left out of the data. Names that are not given are found at each
    event: the item class's first two fields if the event has them, else ``originator_id`` with
    ``originator_version`` or with ``timestamp``. Of these, only ``originator_id`` with ``originator_version``
    is left out; another pair stays in the data as well, which tells a reader which pair it is.

    Args:
        fields: The item class's field names; the first two are the place.
        sequence_id: The attribute that names the stream, or ``None``.
        position: The attribute that is the position in it, or ``None``.

    Raises:
        ConfigurationError: Only one of the names is given, or both are the same.
    """

    def __init__(self, fields: Sequence[str], sequence_id: str | None, position: str | None) -> None:
        if (sequence_id is None) != (position is None):
            raise ConfigurationError(
                "sequence_id_attr_name and position_attr_name are given together or not at all"
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
        Refuse an event whose place holds personal data: it stands in the item in plain.

        Args:
            personal: Attributes that hold personal data.
            attributes: All of an event.
            owner: The event's topic, for messages.

        Raises:
            ConfigurationError: Its place is one of them.
        """
        for name in self._given or _first_in(attributes, self._written) or ():
            if name in personal:
                raise ConfigurationError(
                    f"{owner} says that {name!r} holds personal data, and it is the event's place",
                    remedy="Identify streams by ids that say nothing by themselves.",
                )

    def take(self, attributes: dict[str, Any], owner: str) -> tuple[Any, Any]:
        """
        Take the place out of *attributes*.

        Args:
            attributes: Of an event; changed.
            owner: The event's topic, for messages.

        Returns:
            The sequence id and the position.

        Raises:
            SerializationError: The event has no such attributes.
        """
        if self._given is None:
            return self._take_found(attributes, owner)
        try:
            return attributes.pop(self._given[0]), attributes.pop(self._given[1])
        except KeyError as exc:
            raise SerializationError(
                f"{owner} has no attribute {exc.args[0]!r}, which is part of its place",
                remedy="Give the event the attribute, or the mapper other names.",
            ) from None

    def put(self, attributes: dict[str, Any], sequence_id: Any, position: Any, owner: str) -> None:
        """
        Put an item's place back into *attributes*, which came from its data.

        Raises:
            SerializationError: The names were given to the mapper that wrote the item, and not to this one.
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
        """Give *attributes* with an item's place, where the subjects of its fields are looked for."""
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
    """For who reads the items of any application: it may call their place what it likes."""

    def __init__(self) -> None:
        super().__init__(VERSIONED, None, None)

    def whole(
        self,
        attributes: dict[str, Any],
        sequence_id: Any,
        position: Any,  # noqa: ARG002 (no subject)
        owner: str,  # noqa: ARG002 (nothing is refused)
    ) -> dict[str, Any]:
        """Give *attributes* with an item's place; whatever they lack is the sequence id by another name."""
        return _WithSequenceId(attributes, sequence_id)


class _WithSequenceId(dict[str, Any]):
    # A wrong guess opens nothing: the field is bound to its subject.
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
    # A Decimal is a time, and a reader without names could not tell which attribute held it.
    if isinstance(position, Decimal):
        raise SerializationError(
            f"{owner} has the position {position}, which is no originator_version", remedy=_NAMES_REMEDY
        )


KeyScope: TypeAlias = "str | Callable[[Any], str]"
"""A scope, or a function that gives an event's."""

CLASS_RULE = "__key_scope__"
"""The attribute of an event class that says the key scope of its events."""

KEEPS_SCOPE = "__keeps_key_scope__"
"""The attribute of a class whose objects keep their scope, in ``key_scope``, for mappers with one for all."""

_checked = lru_cache(maxsize=4096)(checked_scope)


class ScopeRule:
    """
    Gives the scope of an event, the same when it is written and when it is read.

    An event class may have a rule of its own, ``__key_scope__``, which its subclasses inherit and ``None``
    takes back: a scope, or a function of the event, such as a method.

    Args:
        key_scope: For events whose class has no rule: a scope, or a function of the event. It uses the
            event's attributes and nothing else: an event whose scope comes out differently on reading is
            refused.

    Raises:
        ConfigurationError: It is neither, or a scope that is not allowed.
    """

    def __init__(self, key_scope: KeyScope) -> None:
        if not isinstance(key_scope, str) and not callable(key_scope):
            raise ConfigurationError(f"key_scope is a string or a function, not {type(key_scope).__name__}")
        self._key_scope = checked_scope(key_scope) if isinstance(key_scope, str) else key_scope

    def of_all(self, events: list[Any]) -> str | list[str]:
        """
        Give the scope that all events have, else that of each.

        Raises:
            ConfigurationError: A class's rule is none, or a rule gave a scope that is not allowed.
        """
        if isinstance(self._key_scope, str) and not any(
            getattr(cls, CLASS_RULE, None) is not None or getattr(cls, KEEPS_SCOPE, False)
            for cls in set(map(type, events))
        ):
            return self._key_scope
        return [self(event) for event in events]

    def __call__(self, event: Any) -> str:
        """
        Give the scope of *event*.

        Raises:
            ConfigurationError: Its class's rule is none, or a rule gave a scope that is not allowed.
        """
        rule = getattr(type(event), CLASS_RULE, None)
        if rule is None:
            rule = self._key_scope
            if isinstance(rule, str):
                kept = vars(event).get("key_scope") if getattr(type(event), KEEPS_SCOPE, False) else None
                return rule if kept is None else _scope_by(kept, event)
        return _scope_by(rule, event)


def _scope_by(rule: object, event: object) -> str:
    if callable(rule):
        scope = rule(event)
    elif isinstance(rule, str):
        scope = rule
    else:
        cls = type(event)
        raise ConfigurationError(
            f"{CLASS_RULE} of {class_name(cls)} is a {type(rule).__name__}, "
            "neither a string nor a function of the event"
        )
    try:
        return _checked(scope)
    except TypeError:  # not hashable, so not a string either
        return checked_scope(scope)

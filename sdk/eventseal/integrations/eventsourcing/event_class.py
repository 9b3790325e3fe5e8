"""What an event's class says: its collection, whether it is compressed, whether it has a key scope."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from eventsourcing.domain import CanSnapshotAggregate

from eventseal.errors import ConfigurationError
from eventseal.items.scopes import CLASS_RULE, KEEPS_SCOPE
from eventseal.items.topics import class_name

ITEMS, SNAPSHOTS = "items", "snapshots"

_COLLECTION, _COMPRESS = "__collection__", "__compress__"


class EventClass(NamedTuple):
    """
    What is to be known of a class to seal its events.

    Attributes:
        collection: Of its events where no store says it: that of snapshots if the library's
            ``CanSnapshotAggregate`` is a base of it, or if it can ``take()`` a snapshot and ``mutate()`` into
            an aggregate; any class may say ``__collection__``.
        compress: Whether compression is tried: not if it says ``__compress__ = False``.
        has_scope: Whether it says the scope of its events itself.
    """

    collection: str
    compress: bool
    has_scope: bool


def event_class(cls: type[Any]) -> EventClass:
    """
    Look at an event's class.

    Raises:
        ConfigurationError: It names a collection that the library has no table for.
    """
    return _event_class(cls)  # type: ignore[arg-type]  # mypy does not take a class for hashable


@lru_cache(maxsize=4096)
def _event_class(cls: type[Any]) -> EventClass:
    return EventClass(
        collection=_collection_of(cls),
        compress=bool(getattr(cls, _COMPRESS, True)),
        has_scope=getattr(cls, CLASS_RULE, None) is not None or bool(getattr(cls, KEEPS_SCOPE, False)),
    )


def _collection_of(cls: type[Any]) -> str:
    said = getattr(cls, _COLLECTION, None)
    if said is None:
        takes = callable(getattr(cls, "take", None)) and callable(getattr(cls, "mutate", None))
        return SNAPSHOTS if takes or issubclass(cls, CanSnapshotAggregate) else ITEMS
    if said not in (ITEMS, SNAPSHOTS):
        raise ConfigurationError(
            f"{_COLLECTION} of {class_name(cls)} is {said!r}; it can be {ITEMS!r} or {SNAPSHOTS!r}"
        )
    return str(said)

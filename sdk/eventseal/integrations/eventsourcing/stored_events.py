"""What a stored event is bound to: its collection and its place; and what its class says."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from eventsourcing.domain import CanSnapshotAggregate
from eventsourcing.persistence import ApplicationRecorder, EventStore

from eventseal.cipher import ItemContext
from eventseal.errors import ConfigurationError
from eventseal.items.places import CLASS_RULE, KEEPS_SCOPE
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from eventsourcing.persistence import StoredEvent


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


_DIGITS = re.compile("[0-9a-f]{32}")
_OTHER = {ITEMS: SNAPSHOTS, SNAPSHOTS: ITEMS}


def context_of(stored: StoredEvent, collection: str) -> ItemContext:
    """Give the place of a stored event of a collection."""
    return ItemContext(stored.originator_id, stored.originator_version, stored.topic, collection)


def otherwise(context: ItemContext, *, collection: bool, uuid: bool) -> ItemContext | None:
    """
    Give a place as it may have been bound instead; ``None``: it cannot.

    Args:
        context: As it was read.
        collection: Whether in the other collection.
        uuid: Whether by the UUID that the id's digits are.
    """
    other = with_uuid(context) if uuid else context
    if other is not None and collection:
        return replace(other, collection=_OTHER[other.collection])
    return other


def with_uuid(context: ItemContext) -> ItemContext | None:
    """Give a place whose id is the bare digits of a UUID with that UUID; ``None``: it is no such id."""
    uuid = uuid_of_digits(context.sequence_id)
    return None if uuid is None else replace(context, sequence_id=uuid)


def uuid_of_digits(an_id: object) -> UUID | None:
    """Give the UUID whose bare digits an id is; ``None``: it is no such id."""
    return UUID(an_id) if isinstance(an_id, str) and _DIGITS.fullmatch(an_id) else None


def tell_collections(mapper_class: type[Any]) -> None:
    """
    Let each of the library's event stores tell such a mapper which collection its table holds.

    A stored event does not say which table it comes from, and the library gives one mapper to the store of
    events and to that of snapshots: without this, the one would pass for the other.

    Args:
        mapper_class: Whose mappers are told, and those of its subclasses: ``over()`` gives one for a table.
    """
    make = EventStore.__init__

    @wraps(make)
    def told(self: Any, mapper: Any, recorder: Any, *rest: Any, **named: Any) -> None:
        collection = _collection_of_recorder(recorder) if isinstance(mapper, mapper_class) else None
        make(self, mapper if collection is None else mapper.over(collection), recorder, *rest, **named)

    EventStore.__init__ = told  # type: ignore[method-assign]


def _collection_of_recorder(recorder: Any) -> str | None:
    """Say what a recorder's table holds; ``None``: it does not say."""
    if isinstance(recorder, ApplicationRecorder):
        return ITEMS
    name = getattr(recorder, "events_table_name", "")
    return SNAPSHOTS if isinstance(name, str) and name.strip('"').endswith(SNAPSHOTS) else None

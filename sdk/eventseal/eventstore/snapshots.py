"""Snapshots: an entity's state at a version, so that its earlier events need not be read again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from eventseal.errors import SequencedItemConflictError
from eventseal.eventstore.entities import state_of
from eventseal.eventstore.events import EventWithOriginatorID, EventWithOriginatorVersion, EventWithTimestamp
from eventseal.items.objects import restore
from eventseal.items.topics import resolve_topic, topic_of

if TYPE_CHECKING:
    from eventseal.eventstore.store import EventStore


class Snapshot(EventWithTimestamp, EventWithOriginatorVersion, EventWithOriginatorID):
    """
    The state of an entity just after one of its events, sealed like an event.

    Attributes:
        originator_id: The entity's id.
        originator_version: The position of the last event in it.
        topic: Names the entity's class; ``None`` if the entity was discarded.
        state: The entity's attributes; ``None`` if the entity was discarded.
    """


class SnapshotStrategy(Protocol):
    """Keeps snapshots."""

    def get_snapshot(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Snapshot | None:
        """Give the last snapshot of an entity, before or at a position if one is given."""
        ...

    def take_snapshot(self, entity_id: Any, entity: Any, last_event_version: int) -> Snapshot:
        """Keep the state of *entity*, which is ``None`` if it was discarded."""
        ...


class EventSourcedSnapshotStrategy:
    """
    Keeps snapshots in an event store of their own.

    Args:
        event_store: Of a collection of its own, ``snapshots``, so that no snapshot passes for an event.
    """

    def __init__(self, event_store: EventStore) -> None:
        self.event_store = event_store

    def get_snapshot(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Snapshot | None:
        """
        Give the last snapshot of an entity.

        Args:
            entity_id: Whose.
            lt: Before this position.
            lte: At or before this position.
        """
        snapshot: Snapshot | None = self.event_store.get_most_recent_event(entity_id, lt=lt, lte=lte)
        return snapshot

    def take_snapshot(self, entity_id: Any, entity: Any, last_event_version: int) -> Snapshot:
        """
        Store the state of an entity.

        Args:
            entity_id: Whose.
            entity: The entity; ``None`` if it was discarded.
            last_event_version: The position of its last event.

        Returns:
            The snapshot.

        Raises:
            SerializationError: An attribute of the entity has no encoding.
        """
        snapshot = Snapshot(
            originator_id=entity_id,
            originator_version=last_event_version,
            topic=None if entity is None else topic_of(type(entity)),
            state=None if entity is None else state_of(entity),
        )
        try:
            self.event_store.append(snapshot)
        except SequencedItemConflictError:
            # Another process took it at the same version: the state is the same.
            taken: Snapshot = self.event_store.get_domain_event(entity_id, eq=last_event_version)
            return taken
        return snapshot


def entity_from_snapshot(snapshot: Snapshot) -> Any:
    """
    Make the entity that a snapshot is of.

    Returns:
        The entity; ``None`` if it was discarded.

    Raises:
        SerializationError: Its class is not there any more.
    """
    if snapshot.state is None:
        return None
    return restore(resolve_topic(snapshot.topic), dict(snapshot.state))

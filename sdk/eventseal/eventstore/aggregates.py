"""Aggregates: clusters of objects whose events are stored together or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.eventstore.entities import TimestampedVersionedEntity

if TYPE_CHECKING:
    from eventseal.eventstore.events import DomainEvent


class AggregateRoot(TimestampedVersionedEntity):
    """
    The entity that stands for an aggregate. It keeps its events until it is saved.

    Args:
        arguments: Those of an entity: ``id``, ``version``, ``timestamp``.
    """

    class Event(TimestampedVersionedEntity.Event):
        """Of an aggregate."""

    class Created(Event, TimestampedVersionedEntity.Created):
        """The first event."""

    class AttributeChanged(Event, TimestampedVersionedEntity.AttributeChanged):
        """An attribute of the root has a new value."""

    class Discarded(Event, TimestampedVersionedEntity.Discarded):
        """The last event."""

    def save(self) -> None:
        """
        Publish what happened since the last time, as one list, which is stored as one transaction.

        If that fails, the events stay: save again if the database was away; after a conflict, get the
        aggregate from its repository and decide again.
        """
        pending = self._pending()
        if pending:
            super()._publish(list(pending))
            pending.clear()

    def _publish(self, event: DomainEvent | list[DomainEvent]) -> None:
        self._pending().extend(event if isinstance(event, list) else [event])

    def _pending(self) -> list[DomainEvent]:
        # Not made by the constructor: an aggregate that comes from a snapshot was not constructed.
        pending: list[DomainEvent] = vars(self).setdefault("_pending_events", [])
        return pending

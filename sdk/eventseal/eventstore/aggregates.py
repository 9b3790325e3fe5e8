"""Aggregates: clusters of objects whose events are stored all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventseal.eventstore.entities import TimestampedVersionedEntity

if TYPE_CHECKING:
    from eventseal.eventstore.events import DomainEvent


class AggregateRoot(TimestampedVersionedEntity):
    """
    The root entity of an aggregate. It keeps events until saved.

    Args:
        arguments: The arguments of an entity: ``id``, ``version``, ``timestamp``.
    """

    class Event(TimestampedVersionedEntity.Event):
        """An event of an aggregate."""

    class Created(Event, TimestampedVersionedEntity.Created):
        """The first event."""

    class AttributeChanged(Event, TimestampedVersionedEntity.AttributeChanged):
        """An attribute of the root has a new value."""

    class Discarded(Event, TimestampedVersionedEntity.Discarded):
        """The last event."""

    def save(self) -> None:
        """
        Publish the events since the last save as one list.

        They are stored in one transaction. If that fails, the events stay. If the database was unavailable,
        save again. After a conflict, get the aggregate from its repository and decide again.
        """
        pending = self._pending()
        if pending:
            super()._publish(list(pending))
            pending.clear()

    def _publish(self, event: DomainEvent | list[DomainEvent]) -> None:
        self._pending().extend(event if isinstance(event, list) else [event])

    def _pending(self) -> list[DomainEvent]:
        # Not created in the constructor: restoring an aggregate from a snapshot does not call it.
        pending: list[DomainEvent] = vars(self).setdefault("_pending_events", [])
        return pending

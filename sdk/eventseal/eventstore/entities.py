"""Entities, whose state is the result of their events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self
from uuid import UUID, uuid4

from eventseal.errors import ConfigurationError, IntegrityError, ItemNotFoundError, SequencedItemConflictError
from eventseal.eventstore import events
from eventseal.eventstore.events import current_owner, mutator, owned_by, publish
from eventseal.eventstore.personal_state import personal_names, refuse_unmarked
from eventseal.items.event_modules import refuse_methods
from eventseal.items.objects import attributes_of
from eventseal.items.personal import plan_of
from eventseal.items.scopes import Erased
from eventseal.items.topics import resolve_topic, topic_of, with_known_subclasses

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from eventseal.eventstore.events import DomainEvent, Mutate

TRANSIENT = frozenset({"_owner", "_is_stale", "_pending_events"})
"""The attributes of an entity that are not part of its state."""

_ARGUMENTS = {"originator_id": "id", "originator_version": "version"}


@with_known_subclasses
class EventSourcedEntity:
    """
    An object with an identity that only events change.

    Args:
        id: The identity of the entity, which is also its stream.
    """

    class Event(events.EventWithOriginatorID):
        """An event of an entity."""

    class Created(Event, events.Created):
        """An entity was created. The other attributes are the arguments of its constructor."""

    class AttributeChanged(Event, events.AttributeChanged):
        """An attribute of an entity has a new value."""

    class Discarded(Event, events.Discarded):
        """An entity was discarded."""

    # These belong to the object, not to the entity's state: an entity from a snapshot starts with them.
    _is_stale: bool = False
    _owner: object | None = None

    def __init__(self, id: UUID | str) -> None:  # noqa: A002 - what an identity is called
        self._id = id
        self._is_discarded = False

    @classmethod
    def create(cls, originator_id: UUID | str | None = None, **attributes: Any) -> Self:
        """
        Create an entity, and publish its ``Created`` event.

        Args:
            originator_id: The id of the entity. A random UUID by default.
            attributes: The constructor's arguments, which the ``Created`` event keeps.

        Raises:
            ConfigurationError: The class marks an argument as personal data, but its ``Created`` does not.
        """
        refuse_unmarked(cls, attributes)
        created = cls.Created(
            originator_id=uuid4() if originator_id is None else originator_id,
            originator_topic=topic_of(cls),
            **attributes,
        )
        entity: Self = cls._mutate(None, created)
        entity._publish_applied(created)
        return entity

    @property
    def id(self) -> Any:
        """The identity of the entity: a UUID or a string."""
        return self._id

    def change_attribute(self, name: str, value: Any) -> None:
        """
        Set the attribute *name* to *value*, and publish an event.

        Raises:
            ConfigurationError: The attribute holds personal data, which the event would store unencrypted.
        """
        if name.lstrip("_") in personal_names(type(self)) and not plan_of(self.AttributeChanged).fields:
            raise ConfigurationError(
                f"{name!r} of {type(self).__qualname__} holds personal data, "
                "which the event would not encrypt",
                remedy="Change it with a separate event class whose field is annotated with PersonalData.",
            )
        self._trigger_event(self.AttributeChanged, name=name, value=value)

    def discard(self) -> None:
        """Discard the entity, and publish an event. Repositories no longer find it."""
        self._trigger_event(self.Discarded)

    def _trigger_event(self, event_class: type[DomainEvent], **attributes: Any) -> None:
        self._assert_changeable()
        self._apply_and_publish(event_class(**self._next_place(), **attributes))

    def _next_place(self) -> dict[str, Any]:
        return {"originator_id": self._id}

    def _apply_and_publish(self, event: DomainEvent) -> None:
        self._apply(event)
        self._publish_applied(event)

    def _apply(self, event: DomainEvent) -> None:
        self._assert_changeable()
        self._validate_originator(event)
        self._mutate(self, event)
        self._event_applied(event)

    @classmethod
    def _mutate(cls, initial: Any, event: DomainEvent) -> Any:
        """Apply *event* to the entity *initial*, or create the entity. Override it for your own events."""
        return mutate_entity(cls if initial is None else initial, event)

    def _publish_applied(self, event: DomainEvent) -> None:
        try:
            self._publish(event)
        except BaseException:
            # The applied event may not be stored. The next event would leave a gap, or have no basis
            # (docs/decisions/0005).
            self._is_stale = True
            raise

    def _publish(self, event: DomainEvent | list[DomainEvent]) -> None:
        with owned_by(self._owner or current_owner()):
            publish(event)

    def _assert_changeable(self) -> None:
        if self._is_discarded:
            raise ItemNotFoundError(
                f"{self!r} is discarded, so it cannot change", remedy="Create another entity."
            )
        if self._is_stale:
            raise SequencedItemConflictError(
                f"{self!r} has an event that was not stored, so it cannot change",
                remedy="Get the entity from its repository again.",
            )

    def _validate_originator(self, event: DomainEvent) -> None:
        if event.originator_id != self._id:
            raise IntegrityError(f"an event of {event.originator_id} does not belong to {self!r}")

    def _event_applied(self, event: DomainEvent) -> None:
        self._is_discarded = isinstance(event, events.Discarded)

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} {vars(self).get('_id')}>"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and state_of(other) == state_of(self)

    __hash__ = None  # type: ignore[assignment]


def state_of(entity: object) -> dict[str, Any]:
    """Return a copy of the attributes that are an entity's state."""
    return {name: value for name, value in attributes_of(entity).items() if name not in TRANSIENT}


class VersionedEntity(EventSourcedEntity):
    """
    An entity that counts its events.

    Two changes of the same version cannot both be stored.

    Args:
        version: The number of events that were applied to the entity.
    """

    class Event(events.EventWithOriginatorVersion, EventSourcedEntity.Event):
        """An event of a versioned entity."""

    class Created(Event, EventSourcedEntity.Created):
        """The first event."""

        def __init__(self, *, originator_version: int = 0, **attributes: Any) -> None:
            super().__init__(originator_version=originator_version, **attributes)

    class AttributeChanged(Event, EventSourcedEntity.AttributeChanged):
        """An attribute of an entity has a new value."""

    class Discarded(Event, EventSourcedEntity.Discarded):
        """The last event."""

    def __init__(self, version: int = 0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._version = version

    @property
    def version(self) -> int:
        """The number of applied events, which is the next event's position."""
        return self._version

    def _increment_version(self) -> None:
        self._version += 1

    def _next_place(self) -> dict[str, Any]:
        return {**super()._next_place(), "originator_version": self._version}

    def _validate_originator(self, event: DomainEvent) -> None:
        super()._validate_originator(event)
        if event.originator_version != self._version:
            raise IntegrityError(
                f"an event at {event.originator_version} does not follow {self!r} at version {self._version}",
                remedy="If this happened while reading a stream, restore the missing item from a backup.",
            )

    def _event_applied(self, event: DomainEvent) -> None:
        super()._event_applied(event)
        # Set, not incremented: a mutator function may have counted already.
        self._version = event.originator_version + 1


class TimestampedEntity(EventSourcedEntity):
    """
    An entity with the times of its creation and last change.

    Args:
        timestamp: When the entity was created, in seconds since the epoch.
    """

    class Event(events.EventWithTimestamp, EventSourcedEntity.Event):
        """An event of a timestamped entity."""

    class Created(Event, EventSourcedEntity.Created):
        """An entity was created."""

    class AttributeChanged(Event, EventSourcedEntity.AttributeChanged):
        """An attribute of an entity has a new value."""

    class Discarded(Event, EventSourcedEntity.Discarded):
        """An entity was discarded."""

    def __init__(self, timestamp: Decimal, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._created_on = timestamp
        self._last_modified = timestamp

    @property
    def created_on(self) -> Decimal:
        """When the entity was created, in seconds since the epoch."""
        return self._created_on

    @property
    def last_modified(self) -> Decimal:
        """When the entity was last changed, in seconds since the epoch."""
        return self._last_modified

    def _event_applied(self, event: DomainEvent) -> None:
        super()._event_applied(event)
        if not isinstance(event, Erased):
            self._last_modified = event.timestamp


class TimestampedVersionedEntity(TimestampedEntity, VersionedEntity):
    """A versioned entity with the times of its creation and last change."""

    class Event(TimestampedEntity.Event, VersionedEntity.Event):
        """An event of a timestamped, versioned entity."""

    class Created(Event, TimestampedEntity.Created, VersionedEntity.Created):
        """The first event."""

    class AttributeChanged(Event, TimestampedEntity.AttributeChanged, VersionedEntity.AttributeChanged):
        """An attribute of an entity has a new value."""

    class Discarded(Event, TimestampedEntity.Discarded, VersionedEntity.Discarded):
        """The last event."""


class WithReflexiveMutator(EventSourcedEntity):
    """
    An entity whose events change it with their method ``mutate(entity)``.

    Events without this method are applied as usual.
    """

    @classmethod
    def _mutate(cls, initial: Any, event: DomainEvent) -> Any:
        # Only a method of the class: an attribute may come from an unauthenticated item.
        mutate = getattr(event, "mutate", None) if hasattr(type(event), "mutate") else None
        if not callable(mutate):
            return super()._mutate(initial, event)
        changed = mutate(cls if initial is None else initial)
        return initial if changed is None and not isinstance(event, events.Discarded) else changed


@mutator
def mutate_entity(initial: Any, event: DomainEvent) -> Any:  # noqa: ARG001 - the signature of a mutator function
    """Apply the events of every entity: created, attribute changed, discarded."""
    raise ConfigurationError(
        f"no mutator function takes a {type(event).__qualname__}",
        remedy="Override _mutate() of the entity with a function that takes it, or mix in "
        "WithReflexiveMutator.",
    )


@mutate_entity.register(events.Created)
def _(cls: type[EventSourcedEntity], event: DomainEvent) -> EventSourcedEntity:
    arguments = {_ARGUMENTS.get(name, name): value for name, value in vars(event).items()}
    arguments.pop("originator_topic", None)
    self = cls(**arguments)
    self._event_applied(event)
    self._owner = current_owner()
    return self


@mutate_entity.register(events.AttributeChanged)
def _(self: EventSourcedEntity, event: DomainEvent) -> EventSourcedEntity:
    self._validate_originator(event)
    if callable(event.value):
        refuse_methods(type(self), (event.name,))
    setattr(self, event.name, event.value)
    self._event_applied(event)
    return self


@mutate_entity.register(events.Discarded)
def _(self: EventSourcedEntity, event: DomainEvent) -> None:
    self._validate_originator(event)
    self._event_applied(event)


@mutate_entity.register(Erased)
def _(self: Any, event: Erased) -> Any:  # noqa: ARG001 - the effect of an erased event is unknown
    return None if isinstance(self, type) else self


def mutate_stored(self: Any, event: DomainEvent) -> Any:
    """
    Apply *event* with the ``_mutate`` of its entity's class.

    The first event, which ``create()`` published, names the class.
    """
    if self is not None:
        return self._mutate(self, event)
    topic = getattr(event, "originator_topic", None)
    cls = None if topic is None else resolve_topic(topic)
    if cls is None or not issubclass(cls, EventSourcedEntity):
        raise ConfigurationError(
            f"{event!r} does not name its entity's class, so the entity cannot be rebuilt",
            remedy="Create entities with their create(), or pass mutator= to the repository.",
        )
    return cls._mutate(None, event)


def replay(mutate: Mutate, entity: Any, stored: Iterable[DomainEvent], *, owner: object) -> Any:
    """
    Return an entity after applying stored events.

    Args:
        mutate: Returns the changed entity, or ``None`` if it was discarded.
        entity: The entity after the events before these. ``None`` before the first event.
        stored: The events, in order.
        owner: The owner of the event store that holds the events.

    Raises:
        IntegrityError: An event belongs to another entity, or does not follow the event before it.
    """
    with owned_by(owner):
        for event in stored:
            if entity is None and isinstance(event, Erased):
                continue
            if isinstance(entity, EventSourcedEntity):
                entity._validate_originator(event)  # noqa: SLF001 - of this module
            entity = mutate(entity, event)
            if isinstance(entity, EventSourcedEntity):
                entity._event_applied(event)  # noqa: SLF001 - of this module
    if isinstance(entity, EventSourcedEntity):
        vars(entity)["_owner"] = owner
    return entity

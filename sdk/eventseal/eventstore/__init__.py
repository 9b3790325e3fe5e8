"""
A small event store.

It has events, entities, repositories, snapshots, policies and applications.
"""

from eventseal.eventstore.aggregates import AggregateRoot
from eventseal.eventstore.application import (
    ApplicationWithEventStores,
    ApplicationWithPersistencePolicies,
    EventSourcedRepository,
    PersistencePolicy,
    RepositoryKeyError,
    SnapshottingPolicy,
)
from eventseal.eventstore.entities import (
    EventSourcedEntity,
    TimestampedEntity,
    TimestampedVersionedEntity,
    VersionedEntity,
    WithReflexiveMutator,
    mutate_entity,
)
from eventseal.eventstore.events import (
    AttributeChanged,
    Created,
    Discarded,
    DomainEvent,
    EventWithOriginatorID,
    EventWithOriginatorVersion,
    EventWithTimestamp,
    Logged,
    attribute,
    mutator,
    publish,
    retry,
    subscribe,
    unsubscribe,
)
from eventseal.eventstore.snapshots import EventSourcedSnapshotStrategy, Snapshot, SnapshotStrategy
from eventseal.eventstore.store import ActiveRecordStrategy, EventStore

__all__ = [
    "ActiveRecordStrategy",
    "AggregateRoot",
    "ApplicationWithEventStores",
    "ApplicationWithPersistencePolicies",
    "AttributeChanged",
    "Created",
    "Discarded",
    "DomainEvent",
    "EventSourcedEntity",
    "EventSourcedRepository",
    "EventSourcedSnapshotStrategy",
    "EventStore",
    "EventWithOriginatorID",
    "EventWithOriginatorVersion",
    "EventWithTimestamp",
    "Logged",
    "PersistencePolicy",
    "RepositoryKeyError",
    "Snapshot",
    "SnapshotStrategy",
    "SnapshottingPolicy",
    "TimestampedEntity",
    "TimestampedVersionedEntity",
    "VersionedEntity",
    "WithReflexiveMutator",
    "attribute",
    "mutate_entity",
    "mutator",
    "publish",
    "retry",
    "subscribe",
    "unsubscribe",
]

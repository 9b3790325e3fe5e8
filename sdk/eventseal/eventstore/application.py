"""Applications with event stores, policies that write, and repositories that read."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from eventseal.errors import ConfigurationError, ItemNotFoundError, KeyDestroyedError, KmsError, StoreError
from eventseal.eventstore.entities import mutate_stored, replay
from eventseal.eventstore.events import (
    DomainEvent,
    EventWithOriginatorVersion,
    Logged,
    current_owner,
    owned_by,
    subscribe,
    unsubscribe,
)
from eventseal.eventstore.snapshots import Chronicle, entity_from_snapshot
from eventseal.eventstore.store import EventStore
from eventseal.items.mapper import SequencedItemMapper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from eventseal.cipher import AESCipher
    from eventseal.eventstore.events import Mutate
    from eventseal.eventstore.snapshots import Snapshot, SnapshotStrategy
    from eventseal.eventstore.store import ActiveRecordStrategy

    EventTypes = type[Any] | tuple[type[Any], ...]


class RepositoryKeyError(ItemNotFoundError, KeyError):
    """There is no entity with this id, or it was discarded."""

    default_remedy = "Check the id. To read a discarded entity, read its events from the event store."

    __str__ = Exception.__str__  # KeyError would show the message's repr


class EventSourcedRepository:
    """
    Rebuilds entities from their events: ``repository[id]``, ``id in repository``.

    Args:
        event_store: The store of their events.
        mutator: A function of an entity and an event, such as ``Order._mutate``. By default, the class in the
            first event, which ``create()`` recorded, decides how events change the entity.
        snapshot_strategy: The store of their snapshots.
    """

    def __init__(
        self,
        event_store: EventStore,
        mutator: Mutate | None = None,
        snapshot_strategy: SnapshotStrategy | None = None,
    ) -> None:
        self.event_store = event_store
        self.snapshot_strategy = snapshot_strategy
        self._mutator = mutate_stored if mutator is None else mutator

    def __contains__(self, entity_id: object) -> bool:
        return self.get_entity(entity_id) is not None

    def __getitem__(self, entity_id: Any) -> Any:
        """
        Return the entity with this id.

        Raises:
            RepositoryKeyError: There is no such entity, or it was discarded. A ``KeyError``.
            IntegrityError: An item of its stream was changed, or is missing.
        """
        entity = self.get_entity(entity_id)
        if entity is None:
            raise RepositoryKeyError(f"there is no entity {entity_id}, or it was discarded")
        return entity

    def get_entity(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Any:
        """
        Return an entity in its current or an earlier state.

        Args:
            entity_id: The id of the entity.
            lt: Return the state before the event at this position.
            lte: Return the state after the event at this position.

        Returns:
            The entity, or ``None`` if it did not exist or was discarded.
        """
        snapshot = (
            None
            if self.snapshot_strategy is None
            else self.snapshot_strategy.get_snapshot(entity_id, lt, lte)
        )
        return self._replayed(entity_id, snapshot, lt, lte)

    def take_snapshot(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Snapshot | None:
        """
        Store the current or an earlier state of an entity.

        Args:
            entity_id: The id of the entity.
            lt: Store the state before the event at this position.
            lte: Store the state after the event at this position.

        Returns:
            The snapshot, or ``None`` if the entity did not exist.

        Raises:
            ConfigurationError: The repository has no snapshot strategy, or an erasure would not reach a
                snapshot of this entity. The message says why.
            KeyDestroyedError: A subject, or the scope of its events, was erased.
        """
        strategy = self.snapshot_strategy
        if strategy is None:
            raise _no_snapshot_strategy()
        last_event = self.event_store.get_most_recent_event(entity_id, lt, lte)
        if last_event is None:
            return None
        version = last_event.originator_version
        snapshot = strategy.get_snapshot(entity_id, lte=version)
        if snapshot is not None and snapshot.originator_version == version:
            return snapshot
        if getattr(snapshot, "key_scope", None) is None:  # an older snapshot, whose scope is unknown
            snapshot = None
        chronicle = Chronicle(self.event_store.sequenced_item_mapper, snapshot)
        entity = self._replayed(entity_id, snapshot, lte=version, chronicle=chronicle)
        return strategy.take_snapshot(entity_id, entity, version, history=chronicle.history())

    def _replayed(
        self,
        entity_id: Any,
        snapshot: Snapshot | None,
        lt: int | None = None,
        lte: int | None = None,
        *,
        chronicle: Chronicle | None = None,
    ) -> Any:
        entity = None if snapshot is None else entity_from_snapshot(snapshot)
        after = None if snapshot is None else snapshot.originator_version
        stored = self.event_store.iterate_domain_events(entity_id, gt=after, lt=lt, lte=lte)
        if chronicle is not None:
            stored = chronicle.noting(stored)
        return replay(self._mutator, entity, stored, owner=self.event_store.owner)


_log = logging.getLogger(__name__)


def _no_snapshot_strategy() -> ConfigurationError:
    return ConfigurationError(
        "the repository has no snapshot strategy", remedy="Pass snapshot_strategy= to the repository."
    )


class PersistencePolicy:
    """
    Stores events when they are published, until it is closed.

    If several applications are open in one process, each stores the events of its own entities. An entity has
    no owner if, for example, it was not created in an application's name. If exactly one application would
    store the events of such an entity, it does. If two would, the events are refused.

    Args:
        event_store: The store that receives the events.
        event_type: The class of the events to store, or a tuple of classes.
    """

    def __init__(self, event_store: EventStore, event_type: EventTypes = DomainEvent) -> None:
        self.event_store = event_store
        self.event_type = event_type
        _open_policies.append(self)
        _owners.add(event_store.owner)
        subscribe(self.store_event, self.is_event)

    def close(self) -> None:
        """Stop storing events."""
        unsubscribe(self.store_event, self.is_event)
        if self in _open_policies:
            _open_policies.remove(self)

    def is_event(self, event: Any) -> bool:
        """Whether *event*, or every event of a list, has the policy's type."""
        if isinstance(event, list | tuple):
            return bool(event) and all(isinstance(one, self.event_type) for one in event)
        return isinstance(event, self.event_type)

    def store_event(self, event: Any) -> None:
        """
        Store published events.

        Raises:
            ConfigurationError: Two owners would store the events, or their own application is closed.
            EventSealError: The events were not stored. See ``EventStore.append``.
        """
        if self._takes(event):
            self.event_store.append(event)

    def _takes(self, event: Any) -> bool:
        # Otherwise, a plaintext application would also store an encrypted one's events (docs/decisions/0005).
        owner, mine = current_owner(), self.event_store.owner
        if owner is mine:
            return True
        others = [policy for policy in _open_policies if policy.event_store.owner is not mine]
        if owner in _owners:
            if any(policy.event_store.owner is owner for policy in others):
                return False
            raise ConfigurationError(
                "nothing was stored: the application that the entity belongs to is closed, and another one "
                "would store its event",
                remedy="Get the entity from the repository of the open application.",
            )
        if any(policy.is_event(event) for policy in others):
            raise ConfigurationError(
                "nothing was stored: two applications are open, and the entity that published belongs to "
                "neither",
                remedy="Create the entity in a block `with app.publishing():` of its application.",
            )
        return True


class SnapshottingPolicy:
    """
    Takes a snapshot of an entity after every *period* events.

    It stops when it is closed. If the KMS or the database refuses a snapshot, or its subject is being erased,
    the policy logs a warning instead. The events are stored anyway, and the next snapshot covers them.

    Args:
        repository: The repository that takes the snapshots. It must have a snapshot strategy.
        event_type: The class of the events to count, or a tuple of classes.
        period: The number of events between two snapshots, 1 or more.

    Raises:
        ConfigurationError: *period* is out of range, or the repository has no snapshot strategy.
    """

    def __init__(
        self,
        repository: EventSourcedRepository,
        event_type: EventTypes = EventWithOriginatorVersion,
        period: int = 10,
    ) -> None:
        if period < 1:
            raise ConfigurationError(
                f"a snapshot is taken every 1 or more events, not every {period}", remedy="Correct period=."
            )
        if repository.snapshot_strategy is None:
            raise _no_snapshot_strategy()
        self.repository = repository
        self.event_type = event_type
        self.period = period
        subscribe(self.take_snapshot, self.is_due)

    def close(self) -> None:
        """Stop taking snapshots."""
        unsubscribe(self.take_snapshot, self.is_due)

    def is_due(self, event: Any) -> bool:
        """Whether *event*, or one of a list, makes an entity's snapshot due."""
        owner = current_owner()
        if owner in _owners and owner is not self.repository.event_store.owner:
            return False
        return any(map(self._is_due, event if isinstance(event, list | tuple) else (event,)))

    def take_snapshot(self, event: Any) -> None:
        """
        Take a snapshot of the state after *event*.

        For a list, take one of each entity, after its last event that makes a snapshot due.
        """
        published = event if isinstance(event, list | tuple) else (event,)
        versions = {one.originator_id: one.originator_version for one in published if self._is_due(one)}
        for entity_id, version in versions.items():
            try:
                self.repository.take_snapshot(entity_id, lte=version)
            except (KeyDestroyedError, KmsError, StoreError) as exc:
                _log.warning("no snapshot of %s at version %s: %s", entity_id, version, exc)

    def _is_due(self, event: Any) -> bool:
        return isinstance(event, self.event_type) and (event.originator_version + 1) % self.period == 0


_open_policies: list[PersistencePolicy] = []
_owners: WeakSet[Any] = WeakSet()  # all that have, or had, a persistence policy


class ApplicationWithEventStores:
    """
    An application with event stores for entities, logs and snapshots.

    Logs are in order of time. The application is a context manager: the end of the block closes it.

    Args:
        entity_active_record_strategy: Stores events whose position is ``originator_version``.
        log_active_record_strategy: Stores events whose position is ``timestamp``.
        always_encrypt: Whether every item is encrypted, and plaintext items are refused. ``None``: only if
            there is a cipher.
        cipher: Seals and opens the items. ``None``: the items are plaintext.
        event_modules: The modules whose classes an unauthenticated item may name. See
            :class:`~eventseal.items.SequencedItemMapper`.
    """

    _stored_when_published: Mapping[str, type[DomainEvent]] = MappingProxyType({})

    def __init__(
        self,
        *,
        entity_active_record_strategy: ActiveRecordStrategy | None = None,
        log_active_record_strategy: ActiveRecordStrategy | None = None,
        snapshot_active_record_strategy: ActiveRecordStrategy | None = None,
        always_encrypt: bool | None = None,
        cipher: AESCipher | None = None,
        event_modules: Collection[str] = (),
    ) -> None:
        self.always_encrypt = always_encrypt
        self.cipher = cipher
        self.event_modules = event_modules
        self._event_stores: dict[str, EventStore] = {}
        for name, strategy, position in (
            ("entity", entity_active_record_strategy, "originator_version"),
            ("log", log_active_record_strategy, "timestamp"),
            ("snapshot", snapshot_active_record_strategy, "originator_version"),
        ):
            if strategy is not None:
                store = EventStore(strategy, self.construct_sequenced_item_mapper(strategy, position))
                store.owner = self
                self._event_stores[name] = store
        self._policies = [
            PersistencePolicy(self._event_stores[name], event_type)
            for name, event_type in self._stored_when_published.items()
            if name in self._event_stores
        ]

    @property
    def entity_event_store(self) -> EventStore:
        """The event store of entities."""
        return self._event_store("entity")

    @property
    def log_event_store(self) -> EventStore:
        """The event store of logs, in order of time."""
        return self._event_store("log")

    @property
    def snapshot_event_store(self) -> EventStore:
        """The event store of snapshots."""
        return self._event_store("snapshot")

    def construct_sequenced_item_mapper(
        self, strategy: ActiveRecordStrategy, position_attr_name: str
    ) -> SequencedItemMapper:
        """
        Create the mapper of one event store.

        Override it to use your own key scopes or encodings.

        Args:
            strategy: The strategy that names the item class and the collection.
            position_attr_name: The attribute of the events that holds their position.
        """
        return SequencedItemMapper(
            strategy.sequenced_item_class,
            cipher=self.cipher,
            always_encrypt=self.always_encrypt,
            sequence_id_attr_name="originator_id",
            position_attr_name=position_attr_name,
            collection=strategy.collection,
            event_modules=self.event_modules,
        )

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """
        Create entities in this application's name while the block runs.

        Other open applications do not matter.
        """
        with owned_by(self):
            yield

    def close(self) -> None:
        """Stop storing events. The database stays open."""
        for policy in self._policies:
            policy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _event_store(self, name: str) -> EventStore:
        try:
            return self._event_stores[name]
        except KeyError:
            raise ConfigurationError(
                f"the application has no {name}_event_store",
                remedy=f"Pass {name}_active_record_strategy= to the application.",
            ) from None


class ApplicationWithPersistencePolicies(ApplicationWithEventStores):
    """
    An application that stores versioned and logged events when they are published.

    The snapshot strategy that takes a snapshot stores it. The arguments are those of
    :class:`ApplicationWithEventStores`.
    """

    _stored_when_published = MappingProxyType({"entity": EventWithOriginatorVersion, "log": Logged})

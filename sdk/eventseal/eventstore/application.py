"""Applications: event stores over active record strategies, and the policies that fill them."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from eventseal.errors import ConfigurationError, KeyDestroyedError, KmsError, StoreError
from eventseal.eventstore.events import (
    DomainEvent,
    EventWithOriginatorVersion,
    Logged,
    current_owner,
    owned_by,
    subscribe,
    unsubscribe,
)
from eventseal.eventstore.store import EventStore
from eventseal.items.mapper import SequencedItemMapper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from eventseal.cipher import AESCipher
    from eventseal.eventstore.repository import EventSourcedRepository
    from eventseal.eventstore.store import ActiveRecordStrategy


if TYPE_CHECKING:
    EventTypes = type[Any] | tuple[type[Any], ...]

_log = logging.getLogger(__name__)


class PersistencePolicy:
    """
    Stores events when they are published, until it is closed.

    Several applications may be open in one process: each stores the events of its own entities. The events
    of an entity that nobody owns, such as one that was not created in an application's name, are stored where
    one application alone would store them, and refused where two would.

    Args:
        event_store: Where they go.
        event_type: Which events: their class, or several.
    """

    def __init__(self, event_store: EventStore, event_type: EventTypes = DomainEvent) -> None:
        self.event_store = event_store
        self.event_type = event_type
        _open_policies.append(self)
        _owners.add(event_store.owner)
        subscribe(self.store_event, self.is_event)

    def close(self) -> None:
        """Store nothing more."""
        unsubscribe(self.store_event, self.is_event)
        if self in _open_policies:
            _open_policies.remove(self)

    def is_event(self, event: Any) -> bool:
        """Whether *event* is of the policy's type: an event, or a list of nothing else."""
        if isinstance(event, list | tuple):
            return bool(event) and all(isinstance(one, self.event_type) for one in event)
        return isinstance(event, self.event_type)

    def store_event(self, event: Any) -> None:
        """
        Store what was published.

        Raises:
            ConfigurationError: Two owners would store it, or its own stores nothing any more.
            EventSealError: It was not stored; see ``EventStore.append``.
        """
        if self._takes(event):
            self.event_store.append(event)

    def _takes(self, event: Any) -> bool:
        owner, mine = current_owner(), self.event_store.owner
        if owner is mine:
            return True
        others = [policy for policy in _open_policies if policy.event_store.owner is not mine]
        if owner in _owners:
            if any(policy.event_store.owner is owner for policy in others):
                return False
            raise ConfigurationError(
                "the application that the entity belongs to is closed, and another one would store its event",
                remedy="Get the entity from the repository of the application that is open.",
            )
        if any(policy.is_event(event) for policy in others):
            raise ConfigurationError(
                "two applications are open, and the entity that published belongs to neither",
                remedy="Create it in one application's name, in a block `with app.publishing():`.",
            )
        return True


class SnapshottingPolicy:
    """
    Takes a snapshot whenever an entity has had so many more events, until it is closed.

    A snapshot that the KMS or the database refuses, or whose subject is being erased, is left out with a
    warning: the events are stored, and the next snapshot makes up for it.

    Args:
        repository: Takes the snapshots; it has a snapshot strategy.
        event_type: The events that count.
        period: How many events there are between two snapshots, 1 or more.

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
            raise ConfigurationError(f"a snapshot is taken every 1 event or more, not every {period}")
        if repository.snapshot_strategy is None:
            raise ConfigurationError(
                "the repository has no snapshot strategy", remedy="Give it snapshot_strategy=."
            )
        self.repository = repository
        self.event_type = event_type
        self.period = period
        subscribe(self.take_snapshot, self.is_due)

    def close(self) -> None:
        """Take no more snapshots."""
        unsubscribe(self.take_snapshot, self.is_due)

    def is_due(self, event: Any) -> bool:
        """Whether *event*, or one of a list of events, asks for a snapshot of an entity of the repository."""
        owner = current_owner()
        if owner in _owners and owner is not self.repository.event_store.owner:
            return False
        return any(map(self._is_due, event if isinstance(event, list | tuple) else (event,)))

    def take_snapshot(self, event: Any) -> None:
        """Take a snapshot as of *event*; of a list, for each entity as of its last event that is due."""
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
_owners: WeakSet[Any] = WeakSet()  # who has, or had, a persistence policy


class ApplicationWithEventStores:
    """
    An application with event stores: for entities, for logs in order of time, for snapshots.

    It is a context manager: the end of the block closes it.

    Args:
        entity_active_record_strategy: Of events that are positioned by ``originator_version``.
        log_active_record_strategy: Of events that are positioned by ``timestamp``.
        snapshot_active_record_strategy: Of snapshots.
        always_encrypt: Whether every item is sealed, and all else refused; ``None``: if there is a cipher.
        cipher: Seals and opens the items; ``None`` for items in plain.
        event_modules: Modules whose classes an unauthenticated item may name; see
            :class:`~eventseal.items.SequencedItemMapper`.
    """

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

    @property
    def entity_event_store(self) -> EventStore:
        """The events of entities."""
        return self._event_store("entity")

    @property
    def log_event_store(self) -> EventStore:
        """Events in order of time."""
        return self._event_store("log")

    @property
    def snapshot_event_store(self) -> EventStore:
        """The snapshots of entities."""
        return self._event_store("snapshot")

    def construct_sequenced_item_mapper(
        self, strategy: ActiveRecordStrategy, position_attr_name: str
    ) -> SequencedItemMapper:
        """
        Make the mapper of one event store; override it for key scopes or encodings of your own.

        Args:
            strategy: Says the item class and the collection.
            position_attr_name: The events' attribute that is their position.
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
        """Create entities in this application's name while the block runs, whatever others are open."""
        with owned_by(self):
            yield

    def close(self) -> None:
        """Take no more events; the database stays open."""

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
                remedy=f"Give it {name}_active_record_strategy=.",
            ) from None


class ApplicationWithPersistencePolicies(ApplicationWithEventStores):
    """
    An application that stores events when they are published: versioned ones, and logged ones.

    Snapshots are stored by the strategy that takes them.

    Args:
        entity_active_record_strategy: Of events that are positioned by ``originator_version``.
        log_active_record_strategy: Of events that are positioned by ``timestamp``.
        snapshot_active_record_strategy: Of snapshots.
        always_encrypt: Whether every item is sealed, and all else refused; ``None``: if there is a cipher.
        cipher: Seals and opens the items; ``None`` for items in plain.
        event_modules: Modules whose classes an unauthenticated item may name; see
            :class:`~eventseal.items.SequencedItemMapper`.
    """

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
        super().__init__(
            entity_active_record_strategy=entity_active_record_strategy,
            log_active_record_strategy=log_active_record_strategy,
            snapshot_active_record_strategy=snapshot_active_record_strategy,
            always_encrypt=always_encrypt,
            cipher=cipher,
            event_modules=event_modules,
        )
        types = {"entity": EventWithOriginatorVersion, "log": Logged}
        self._policies = [
            PersistencePolicy(self._event_stores[name], event_type)
            for name, event_type in types.items()
            if name in self._event_stores
        ]

    def close(self) -> None:
        """Store nothing more; the database stays open."""
        for policy in self._policies:
            policy.close()
        super().close()

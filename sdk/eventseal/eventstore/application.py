"""The base of an application: event stores over active record strategies, and policies that fill them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from eventseal.errors import ConfigurationError
from eventseal.eventstore.events import EventWithOriginatorVersion, Logged
from eventseal.eventstore.policies import PersistencePolicy
from eventseal.eventstore.publishing import owned_by
from eventseal.eventstore.store import EventStore
from eventseal.items.mapper import SequencedItemMapper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from eventseal.cipher import AESCipher
    from eventseal.eventstore.store import ActiveRecordStrategy


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

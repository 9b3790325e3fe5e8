"""Repositories: entities by their id, made from their events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError, ItemNotFoundError
from eventseal.eventstore.entities import mutate_stored, replay
from eventseal.eventstore.snapshots import Chronicle, entity_from_snapshot

if TYPE_CHECKING:
    from eventseal.eventstore.decorators import Mutate
    from eventseal.eventstore.snapshots import Snapshot, SnapshotStrategy
    from eventseal.eventstore.store import EventStore


class RepositoryKeyError(ItemNotFoundError, KeyError):
    """There is no entity of this id, or it was discarded."""

    default_remedy = "Check the id; a discarded entity is found by its events alone."

    __str__ = Exception.__str__  # KeyError would show the message's repr


class EventSourcedRepository:
    """
    Gives entities by their id, as their events made them: ``repository[id]``, ``id in repository``.

    Args:
        event_store: Where their events are.
        mutator: A function of an entity and an event, such as ``Order._mutate``; by default the class that
            ``create()`` noted in the first event says what events do.
        snapshot_strategy: Where their snapshots are.
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
        Give the entity of this id.

        Raises:
            RepositoryKeyError: There is none, or it was discarded. A ``KeyError``.
            IntegrityError: An item of its stream was changed, or is missing.
        """
        entity = self.get_entity(entity_id)
        if entity is None:
            raise RepositoryKeyError(f"there is no entity {entity_id}, or it was discarded")
        return entity

    def get_entity(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Any:
        """
        Give an entity as it is, or as it was.

        Args:
            entity_id: Which.
            lt: As before the event at this position.
            lte: As after the event at this position.

        Returns:
            The entity; ``None`` if there was none, or it was discarded.
        """
        snapshot = (
            None
            if self.snapshot_strategy is None
            else self.snapshot_strategy.get_snapshot(entity_id, lt, lte)
        )
        return self._replayed(entity_id, snapshot, lt, lte)

    def take_snapshot(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Snapshot | None:
        """
        Keep an entity's state, as it is or as it was.

        Returns:
            The snapshot; ``None`` if there was no such entity.

        Raises:
            ConfigurationError: The repository has no snapshot strategy, or a snapshot of this entity would
                keep what is erased elsewhere; the message says why.
            KeyDestroyedError: A subject, or the scope of its events, was erased.
        """
        strategy = self.snapshot_strategy
        if strategy is None:
            raise ConfigurationError(
                "the repository has no snapshot strategy", remedy="Give it snapshot_strategy=."
            )
        last_event = self.event_store.get_most_recent_event(entity_id, lt, lte)
        if last_event is None:
            return None
        version = last_event.originator_version
        snapshot = strategy.get_snapshot(entity_id, lte=version)
        if snapshot is not None and snapshot.originator_version == version:
            return snapshot
        if getattr(snapshot, "key_scope", None) is None:  # an older one: what it holds is not known
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

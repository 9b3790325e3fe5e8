"""
Snapshots: an entity's state at a version.

With a snapshot, the earlier events need not be read again.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from eventseal.errors import ConfigurationError, KeyDestroyedError, SequencedItemConflictError
from eventseal.eventstore.entities import state_of
from eventseal.eventstore.events import EventWithOriginatorID, EventWithOriginatorVersion, EventWithTimestamp
from eventseal.eventstore.personal_state import (
    event_classes_of,
    protected_state,
    subjects_in,
    subjects_of,
    with_personal_masks,
)
from eventseal.items.objects import form_of, in_todays_form, restore_current
from eventseal.items.personal import plan_of
from eventseal.items.scopes import CLASS_RULE, Erased
from eventseal.items.topics import resolve_topic, topic_of
from eventseal.keys.records import DEFAULT_SCOPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from eventseal.eventstore.store import EventStore
    from eventseal.items.mapper import SequencedItemMapper


class Snapshot(EventWithTimestamp, EventWithOriginatorVersion, EventWithOriginatorID):
    """
    The state of an entity after an event, encrypted like events.

    Attributes:
        originator_id: The entity's id.
        originator_version: The position of the last event that the state includes.
        topic: The topic of the entity's class. ``None`` if the entity was discarded.
        state: The entity's attributes. ``None`` if the entity was discarded.
        key_scope: The scope of the entity's events, whose key also encrypts the snapshot.
        personal_topics: The topics of its event classes that hold personal data.
    """

    __keeps_key_scope__ = True
    __names_classes__ = ("topic", "personal_topics")


@dataclass(frozen=True, slots=True)
class History:
    """
    The facts about an entity's events that a snapshot needs.

    Attributes:
        key_scopes: The scopes whose keys encrypt the events.
        event_classes: The event classes that hold personal data.
        subjects: For each field of these classes, the scope of the subject that owns its last value.
    """

    key_scopes: frozenset[str] = frozenset()
    event_classes: frozenset[type[Any]] = frozenset()
    subjects: Mapping[str, str] = field(default_factory=dict)


class Chronicle:
    """
    Collects facts about events while an entity is replayed.

    Args:
        mapper: Decides which events are encrypted, and for which scope.
        snapshot: The snapshot from which the replay starts. ``None``: it starts at the first event.
    """

    def __init__(self, mapper: SequencedItemMapper, snapshot: Snapshot | None) -> None:
        self._mapper = mapper
        self._key_scopes: set[str] = set()
        self._event_classes: set[type[Any]] = set()
        self._subjects: dict[str, str] = {}
        if snapshot is not None and snapshot.state is not None:
            self._key_scopes.add(snapshot.key_scope)
            self._event_classes.update(map(resolve_topic, snapshot.personal_topics))
            cls = resolve_topic(snapshot.topic)
            self._subjects |= subjects_of(cls, _current_state(cls, snapshot), self._event_classes)

    def noting(self, events: Iterable[Any]) -> Iterator[Any]:
        """Yield the given events, and record the facts about each."""
        for event in events:
            cls = type(event)
            if cls is not Erased:  # the entity has nothing of an erased event
                if self._mapper.is_sealed(cls):
                    self._key_scopes.add(self._mapper.key_scope_of(event))
                if plan_of(cls).fields:
                    self._event_classes.add(cls)
                    self._note_subjects(subjects_in(event))
            yield event

    def history(self) -> History:
        """Return the collected facts."""
        return History(frozenset(self._key_scopes), frozenset(self._event_classes), self._subjects)

    def _note_subjects(self, subjects: Mapping[str, str | None]) -> None:
        for name, scope in subjects.items():
            self._subjects.pop(name, None)
            if scope is not None:
                self._subjects[name] = scope


class SnapshotStrategy(Protocol):
    """A store of snapshots."""

    def get_snapshot(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Snapshot | None:
        """
        Return the last snapshot of an entity.

        With *lt*, it is the last one before that position. With *lte*, it may also be at that position.
        """
        ...

    def take_snapshot(
        self, entity_id: Any, entity: Any, last_event_version: int, *, history: History | None = None
    ) -> Snapshot:
        """Store the state of *entity*, which is ``None`` if it was discarded."""
        ...


class EventSourcedSnapshotStrategy:
    """
    Stores snapshots in a separate event store.

    Args:
        event_store: An event store of the separate collection ``snapshots``, so that a snapshot cannot pass
            for an event.
    """

    def __init__(self, event_store: EventStore) -> None:
        self.event_store = event_store

    def get_snapshot(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Snapshot | None:
        """
        Return the last snapshot of an entity.

        Args:
            entity_id: The id of the entity.
            lt: Only snapshots before this position.
            lte: Only snapshots at or before this position.

        Returns:
            The snapshot. ``None`` if there is no snapshot, or its key was shredded, so that the events must
            be read instead.
        """
        try:
            snapshot = self.event_store.get_most_recent_event(entity_id, lt=lt, lte=lte)
        except KeyDestroyedError as error:
            if error.destroyed_by != "shredded":
                raise
            return None
        return snapshot if isinstance(snapshot, Snapshot) else None

    def take_snapshot(
        self, entity_id: Any, entity: Any, last_event_version: int, *, history: History | None = None
    ) -> Snapshot:
        """
        Store the state of an entity, encrypted for its events' scope.

        Its personal data are encrypted inside it, as in its events.

        Args:
            entity_id: The id of the entity.
            entity: The entity. ``None`` if it was discarded.
            last_event_version: The position of its last event.
            history: The facts that the repository collected about its events. Without them, none of the
                entity's event classes may have its own key scope.

        Returns:
            The snapshot.

        Raises:
            ConfigurationError: The entity's events are under several scopes, or no declaration says where it
                keeps their personal data.
            KeyDestroyedError: A subject, or the scope of its events, was erased meanwhile.
            SerializationError: An attribute of the entity has no encoding.
        """
        if entity is None:
            state, history = None, History()
        else:
            state = state_of(entity)
            history = history or _unseen(type(entity))
        classes = history.event_classes
        snapshot = Snapshot(
            originator_id=entity_id,
            originator_version=last_event_version,
            topic=None if entity is None else topic_of(type(entity)),
            state=state,
            key_scope=_common_scope(entity_id, history.key_scopes),
            personal_topics=sorted(map(topic_of, classes)),
        )
        stored = snapshot
        if state is not None:
            sealed = protected_state(type(entity), state, classes, history.subjects)
            stored = Snapshot(**{**vars(snapshot), "state": sealed})
        self._check_scope(snapshot)
        try:
            self.event_store.append(stored)
        except SequencedItemConflictError:
            # Another process took a snapshot of this version first: its state is the same.
            taken: Snapshot = self.event_store.get_domain_event(entity_id, eq=last_event_version)
            return taken
        return snapshot

    def _check_scope(self, snapshot: Snapshot) -> None:
        scope = snapshot.key_scope
        if scope == DEFAULT_SCOPE:
            return
        # A snapshot under another key would survive the erasure of its events (docs/decisions/0011).
        mapper = self.event_store.sequenced_item_mapper
        found = mapper.key_scope_of(snapshot) if mapper.is_sealed(Snapshot) else None
        if found != scope:
            sealed = "plaintext" if found is None else f"encrypted for scope {found!r}"
            raise ConfigurationError(
                f"the events of {snapshot.originator_id} are encrypted for scope {scope!r}, but a snapshot "
                f"would be {sealed}: erasing the one would not reach the other",
                remedy="Configure the mapper of the snapshots with a cipher, and with the same key_scope or "
                "none.",
            )


def _unseen(cls: type[Any]) -> History:
    for event_class in event_classes_of(cls):
        if getattr(event_class, CLASS_RULE, None) is not None:
            raise ConfigurationError(
                f"{event_class.__qualname__} has its own key scope, which a snapshot must have too",
                remedy="Take the snapshot with take_snapshot() of the repository, which knows the events.",
            )
    return History()


def _common_scope(entity_id: Any, scopes: Iterable[str]) -> str:
    """Return the single scope for a snapshot. The scope of the application yields to any other scope."""
    others = sorted(set(scopes) - {DEFAULT_SCOPE})
    if len(others) > 1:
        raise ConfigurationError(
            f"the events of {entity_id} are encrypted for {len(others)} scopes other than the application's, "
            "and an erasure of only one of them would reach a snapshot",
            remedy="Use personal-data fields for several subjects in one stream, or take no snapshots of it.",
        )
    return others[0] if others else DEFAULT_SCOPE


def entity_from_snapshot(snapshot: Snapshot) -> Any:
    """
    Rebuild the entity of a snapshot.

    Returns:
        The entity, or ``None`` if it was discarded.

    Raises:
        SerializationError: The class of the entity no longer exists.
    """
    if snapshot.state is None:
        return None
    cls = resolve_topic(snapshot.topic)
    classes = map(resolve_topic, vars(snapshot).get("personal_topics", ()))
    return restore_current(cls, with_personal_masks(cls, _current_state(cls, snapshot), list(classes)))


def _current_state(cls: type[Any], snapshot: Snapshot) -> dict[str, Any]:
    """Return a copy of the state in the class's current form."""
    is_first = form_of(cls).version == 1
    return in_todays_form(cls, dict(snapshot.state) if is_first else deepcopy(snapshot.state))

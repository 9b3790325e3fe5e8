"""Snapshots: an entity's state at a version, so that its earlier events need not be read again."""

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
    The state of an entity just after one of its events, sealed like an event.

    Attributes:
        originator_id: The entity's id.
        originator_version: The position of the last event in it.
        topic: Names the entity's class; ``None`` if the entity was discarded.
        state: The entity's attributes; ``None`` if the entity was discarded.
        key_scope: That of the entity's events, under whose key it is sealed.
        personal_topics: Names the classes of its events that hold personal data.
    """

    __keeps_key_scope__ = True
    __names_classes__ = ("topic", "personal_topics")


@dataclass(frozen=True, slots=True)
class History:
    """
    What a snapshot must know of the events that made an entity.

    Attributes:
        key_scopes: Under whose keys they are sealed.
        event_classes: Those of them that hold personal data.
        subjects: By field of these, the scope of the subject whose its last value is.
    """

    key_scopes: frozenset[str] = frozenset()
    event_classes: frozenset[type[Any]] = frozenset()
    subjects: Mapping[str, str] = field(default_factory=dict)


class Chronicle:
    """
    Notes what passes while an entity is replayed.

    Args:
        mapper: Says which events are sealed, and for which scope.
        snapshot: What was replayed before; ``None`` at the first event.
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
        """Give events on, noting each."""
        for event in events:
            cls = type(event)
            if cls is not Erased:  # nothing of it is in the entity
                if self._mapper.is_sealed(cls):
                    self._key_scopes.add(self._mapper.key_scope_of(event))
                if plan_of(cls).fields:
                    self._event_classes.add(cls)
                    self._note_subjects(subjects_in(event))
            yield event

    def history(self) -> History:
        """Say what was noted."""
        return History(frozenset(self._key_scopes), frozenset(self._event_classes), self._subjects)

    def _note_subjects(self, subjects: Mapping[str, str | None]) -> None:
        for name, scope in subjects.items():
            self._subjects.pop(name, None)
            if scope is not None:
                self._subjects[name] = scope


class SnapshotStrategy(Protocol):
    """Keeps snapshots."""

    def get_snapshot(self, entity_id: Any, lt: int | None = None, lte: int | None = None) -> Snapshot | None:
        """Give the last snapshot of an entity, before or at a position if one is given."""
        ...

    def take_snapshot(
        self, entity_id: Any, entity: Any, last_event_version: int, *, history: History | None = None
    ) -> Snapshot:
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

        Returns:
            The snapshot; ``None`` if there is none, or its key was shredded: then the events tell.
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
        Store the state of an entity, its personal data sealed as in its events, the whole under their scope.

        Args:
            entity_id: Whose.
            entity: The entity; ``None`` if it was discarded.
            last_event_version: The position of its last event.
            history: What the repository saw of its events; without it, none of the entity's event classes may
                have a key scope of its own.

        Returns:
            The snapshot.

        Raises:
            ConfigurationError: The entity's events are under several scopes, or nothing says where it keeps
                their personal data.
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
            # Another process took it at the same version: the state is the same.
            taken: Snapshot = self.event_store.get_domain_event(entity_id, eq=last_event_version)
            return taken
        return snapshot

    def _check_scope(self, snapshot: Snapshot) -> None:
        scope = snapshot.key_scope
        if scope == DEFAULT_SCOPE:
            return
        # A snapshot under another key would outlive the subject of its events (docs/decisions/0011).
        mapper = self.event_store.sequenced_item_mapper
        found = mapper.key_scope_of(snapshot) if mapper.is_sealed(Snapshot) else None
        if found != scope:
            sealed = "in plain" if found is None else f"sealed for scope {found!r}"
            raise ConfigurationError(
                f"the events of {snapshot.originator_id} are sealed for scope {scope!r}, "
                f"and a snapshot of it would be {sealed}: erasing the one would not reach the other",
                remedy="Give the mapper of the snapshots a cipher, and no key_scope or one that agrees.",
            )


def _unseen(cls: type[Any]) -> History:
    for event_class in event_classes_of(cls):
        if getattr(event_class, CLASS_RULE, None) is not None:
            raise ConfigurationError(
                f"{event_class.__qualname__} has a key scope of its own, which a snapshot must have too",
                remedy="Take the snapshot through the repository, which knows the events.",
            )
    return History()


def _common_scope(entity_id: Any, scopes: Iterable[str]) -> str:
    """Give the one scope that reaches a snapshot; that of the application stands back for any other."""
    others = sorted(set(scopes) - {DEFAULT_SCOPE})
    if len(others) > 1:
        raise ConfigurationError(
            f"the events of {entity_id} are sealed for {len(others)} scopes besides the application's, "
            "and a snapshot could be erased with one of them only",
            remedy="Use personal-data fields for several subjects in one stream, or take no snapshots of it.",
        )
    return others[0] if others else DEFAULT_SCOPE


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
    cls = resolve_topic(snapshot.topic)
    classes = map(resolve_topic, vars(snapshot).get("personal_topics", ()))
    return restore_current(cls, with_personal_masks(cls, _current_state(cls, snapshot), list(classes)))


def _current_state(cls: type[Any], snapshot: Snapshot) -> dict[str, Any]:
    """Copy the state into the form that the entity's class has today."""
    is_first = form_of(cls).version == 1
    return in_todays_form(cls, dict(snapshot.state) if is_first else deepcopy(snapshot.state))

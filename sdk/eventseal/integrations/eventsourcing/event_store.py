"""An event store that maps pages, and a base class for factories."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from eventsourcing.persistence import EventStore, Notification, PersistenceError, Recording
from eventsourcing.utils import resolve_topic

from eventseal.errors import ConfigurationError, KeyDestroyedError
from eventseal.integrations.eventsourcing.mapper import REMEDY_BESIDE, EncryptingMapper
from eventseal.integrations.eventsourcing.stored_events import ITEMS, SNAPSHOTS
from eventseal.storage.items.fences import is_fence_refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventsourcing.persistence import (
        AggregateRecorder,
        InfrastructureFactory,
        Mapper,
        StoredEvent,
        Transcoder,
    )

    _EventStore = EventStore[Any]
    _Factory = InfrastructureFactory[Any]
else:
    _EventStore = EventStore  # not generic before release 9.4
    _Factory = object  # the library looks for subclasses of its own factory, and must find one

PAGE = 1000
"""
The number of events that one call opens.

More events are opened page by page, when they are requested.
"""

ATTEMPTS = 3
"""How often an operation is tried if keys are retired in between."""


class SealedEventStore(_EventStore):
    """
    The library's event store, which knows the collection of its table.

    If events cannot be recorded because their key was retired meanwhile, they are sealed and recorded again.
    This is safe: the recorder rolled back its transaction, which held only these events.

    Args:
        mapper: The mapper that seals and opens the events.
        recorder: The recorder of one table.
        collection: The collection of that table: ``items`` or ``snapshots``.
    """

    mapper: EncryptingMapper

    def __init__(self, mapper: EncryptingMapper, recorder: AggregateRecorder, *, collection: str) -> None:
        super().__init__(mapper, recorder)
        self._collection = collection

    def put(self, domain_events: Sequence[Any], **kwargs: Any) -> list[Recording[Any]]:
        """
        Record events, all or none.

        Args:
            domain_events: Events of any number of aggregates.
            kwargs: Options for the recorder.

        Raises:
            EventSealError: The events cannot be sealed. See ``EncryptingMapper.to_stored_events``.
        """
        stored_events, notification_ids = self._recorded(domain_events, kwargs)
        if not notification_ids:
            return []
        return [
            Recording(event, _notification(stored, number))
            for event, stored, number in zip(domain_events, stored_events, notification_ids, strict=True)
        ]

    def get(self, originator_id: Any, **selection: Any) -> Iterator[Any]:
        """
        Return the events of one aggregate, page by page.

        Args:
            originator_id: The id of the aggregate.
            selection: The limits of the selection: ``gt``, ``lte``, ``desc``, ``limit``.

        Raises:
            EventSealError: An event does not open. See ``EncryptingMapper.to_domain_events``.
        """
        stored = self.recorder.select_events(originator_id=originator_id, **selection)
        pages = (stored[start : start + PAGE] for start in range(0, len(stored), PAGE))
        return chain.from_iterable(map(self._opened, pages))

    def _opened(self, page: Sequence[StoredEvent], attempts: int = ATTEMPTS) -> Sequence[Any]:
        """Map events of one aggregate that were read before."""
        try:
            return self.mapper.to_domain_events(page, collection=self._collection)
        except KeyDestroyedError as error:
            if error.destroyed_by != "retired" or attempts == 1:
                raise
        # Since the reading, the events were re-encrypted, and their old key was retired.
        versions = [stored.originator_version for stored in page]
        there = {
            stored.originator_version: stored
            for stored in self.recorder.select_events(
                originator_id=page[0].originator_id, gt=min(versions) - 1, lte=max(versions)
            )
        }
        return self._opened([there.get(stored.originator_version, stored) for stored in page], attempts - 1)

    def _recorded(
        self, domain_events: Sequence[Any], kwargs: dict[str, Any], attempts: int = ATTEMPTS
    ) -> tuple[list[StoredEvent], Sequence[int] | None]:
        stored_events = self.mapper.to_stored_events(domain_events, collection=self._collection)
        try:
            return stored_events, self.recorder.insert_events(stored_events, **kwargs)
        except PersistenceError as error:
            if attempts == 1 or not is_fence_refusal(error):
                raise
        self.mapper.refresh_keys()
        return self._recorded(domain_events, kwargs, attempts - 1)


def _notification(stored: StoredEvent, number: int) -> Notification:
    return Notification(
        originator_id=stored.originator_id,
        originator_version=stored.originator_version,
        topic=stored.topic,
        state=stored.state,
        id=number,
    )


_REFUSED = ("COMPRESSOR_TOPIC", "CIPHER_TOPIC", "CIPHER_KEY")


class SealedInfrastructure(_Factory):
    """
    A base class for factories whose event stores open pages of events.

    Place it before a factory of the library::

        class Factory(SealedInfrastructure, SQLAlchemyFactory): ...

    Each call opens a whole page. The factory creates the mapper that ``MAPPER_TOPIC`` names, or an
    :class:`EncryptingMapper`. This also works in releases of the library that do not know this variable.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._of_snapshots: WeakSet[AggregateRecorder] = WeakSet()

    def mapper(
        self, transcoder: Transcoder | None = None, mapper_class: type[Mapper[Any]] | None = None
    ) -> Mapper[Any]:
        """
        Create a mapper.

        Args:
            transcoder: The transcoder. By default, the transcoder of the environment.
            mapper_class: The mapper class. By default, the class that ``MAPPER_TOPIC`` names, or
                :class:`EncryptingMapper`.

        Raises:
            ConfigurationError: The mapper is not an ``EncryptingMapper``, or the environment also names a
                compressor or a cipher.
        """
        topic = self.env.get("MAPPER_TOPIC")
        chosen: type[Any] = mapper_class or (resolve_topic(topic) if topic else EncryptingMapper)
        if not issubclass(chosen, EncryptingMapper):
            raise ConfigurationError(
                f"{type(self).__module__} is for mappers that seal, and {chosen.__qualname__} does not",
                remedy="Unset MAPPER_TOPIC, or set it to EncryptingMapper or to a class from its using(). "
                "For plaintext events, use the library's own persistence module.",
            )
        beside = [name for name in _REFUSED if self.env.get(name)]
        if beside:
            # Before the library creates them, which could first fail for lack of a package or a key.
            raise ConfigurationError(
                "EncryptingMapper compresses and encrypts itself, but the environment also sets "
                f"{' and '.join(beside)}",
                remedy=REMEDY_BESIDE,
            )
        return chosen(transcoder=transcoder or self.transcoder())

    def event_store(
        self, mapper: Mapper[Any] | None = None, recorder: AggregateRecorder | None = None
    ) -> EventStore[Any]:
        """Create an event store for a recorder, or for the application's events."""
        sealing = self.mapper() if mapper is None else mapper
        if not isinstance(sealing, EncryptingMapper):
            raise ConfigurationError(
                f"the mapper {type(sealing).__qualname__} does not seal events",
                remedy="Pass an EncryptingMapper, or no mapper.",
            )
        recorder = self.application_recorder() if recorder is None else recorder
        collection = SNAPSHOTS if recorder in self._of_snapshots else ITEMS
        return SealedEventStore(sealing, recorder, collection=collection)

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """Create a recorder, and remember its purpose."""
        recorder = super().aggregate_recorder(purpose)  # type: ignore[safe-super]  # the database's factory has it
        if purpose == "snapshots":
            self._of_snapshots.add(recorder)
        return recorder

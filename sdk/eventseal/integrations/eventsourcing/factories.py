"""Infrastructure factories that map pages; a persistence module of ours has one for each database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from eventsourcing.utils import resolve_topic

from eventseal.errors import ConfigurationError
from eventseal.integrations.eventsourcing.event_class import ITEMS, SNAPSHOTS
from eventseal.integrations.eventsourcing.event_store import SealedEventStore
from eventseal.integrations.eventsourcing.mapper import REMEDY_BESIDE, EncryptingMapper

if TYPE_CHECKING:
    from eventsourcing.persistence import (
        AggregateRecorder,
        EventStore,
        InfrastructureFactory,
        Mapper,
        Transcoder,
    )

    _Factory = InfrastructureFactory[Any]
else:
    _Factory = object  # the library looks for subclasses of its own factory, and must find one

_REFUSED = ("COMPRESSOR_TOPIC", "CIPHER_TOPIC", "CIPHER_KEY")


class SealedInfrastructure(_Factory):
    """
    Goes before a factory of the library's: its event stores open a page of events in one call.

    ::

        class Factory(SealedInfrastructure, SQLAlchemyFactory): ...

    It makes the mapper of ``MAPPER_TOPIC``, or the :class:`EncryptingMapper` where none is named: also in
    releases of the library that do not know this variable.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self._of_snapshots: WeakSet[AggregateRecorder] = WeakSet()

    def mapper(
        self, transcoder: Transcoder | None = None, mapper_class: type[Mapper[Any]] | None = None
    ) -> Mapper[Any]:
        """
        Make a mapper.

        Args:
            transcoder: Or the environment's.
            mapper_class: Or ``MAPPER_TOPIC``'s, or :class:`EncryptingMapper`.

        Raises:
            ConfigurationError: The environment names a compressor or a cipher beside one of ours, or the
                mapper is none of ours.
        """
        topic = self.env.get("MAPPER_TOPIC")
        chosen: type[Any] = mapper_class or (resolve_topic(topic) if topic else EncryptingMapper)
        if not issubclass(chosen, EncryptingMapper):
            raise ConfigurationError(
                f"{type(self).__module__} is for mappers that seal, and {chosen.__qualname__} is none",
                remedy="Leave MAPPER_TOPIC out, or name EncryptingMapper or a class of its using(); "
                "for events in plain use the library's own persistence module.",
            )
        beside = [name for name in _REFUSED if self.env.get(name)]
        if beside:
            # Before the library makes them: it would miss a package first, or a key.
            raise ConfigurationError(
                f"EncryptingMapper compresses and encrypts itself, and {', '.join(beside)} is set beside it",
                remedy=REMEDY_BESIDE,
            )
        return chosen(transcoder=transcoder or self.transcoder())

    def event_store(
        self, mapper: Mapper[Any] | None = None, recorder: AggregateRecorder | None = None
    ) -> EventStore[Any]:
        """Make an event store for a recorder of this factory, or for the application's events."""
        sealing = self.mapper() if mapper is None else mapper
        if not isinstance(sealing, EncryptingMapper):
            raise ConfigurationError(f"{type(sealing).__qualname__} does not seal")
        recorder = self.application_recorder() if recorder is None else recorder
        collection = SNAPSHOTS if recorder in self._of_snapshots else ITEMS
        return SealedEventStore(sealing, recorder, collection=collection)

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """Make a recorder, and remember what it is for."""
        recorder = super().aggregate_recorder(purpose)  # type: ignore[safe-super]  # the database's factory has it
        if purpose == "snapshots":
            self._of_snapshots.add(recorder)
        return recorder

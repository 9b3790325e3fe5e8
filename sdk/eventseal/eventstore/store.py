"""The event store: domain events into and out of a database."""

from __future__ import annotations

import sys
from itertools import groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from eventseal.errors import ConfigurationError, IntegrityError, KeyClosedError, KeyDestroyedError
from eventseal.items.item import field_names
from eventseal.items.sealed_places import SealedPlace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from eventseal.items.mapper import SequencedItemMapper

PAGE_SIZE = 1000

READS_AGAIN = 3
"""How often items are read again whose key was retired between the reading and the opening."""


class ActiveRecordStrategy(Protocol):
    """Reads and writes sequenced items; ``SQLAlchemyActiveRecordStrategy`` is one."""

    @property
    def sequenced_item_class(self) -> type[Any]:
        """What it reads and writes."""
        ...

    @property
    def collection(self) -> str:
        """Which kind of items its record class holds."""
        ...

    @property
    def place(self) -> SealedPlace:
        """Where it writes: what ``eventseal.rotation.retire`` closes and counts before it destroys a key."""
        ...

    def append(self, items: Any) -> None:
        """
        Write an item or a list of them: all or none.

        Raises:
            SequencedItemConflictError: A position is taken.
            KeyClosedError: A key that sealed one of them was retired meanwhile.
        """
        ...

    def get_item(self, sequence_id: Any, eq: Any) -> Any:
        """
        Read the item at one position.

        Raises:
            ItemNotFoundError: There is none.
        """
        ...

    def get_items(
        self,
        sequence_id: Any,
        gt: Any = None,
        gte: Any = None,
        lt: Any = None,
        lte: Any = None,
        limit: int | None = None,
        query_ascending: bool = True,
        results_ascending: bool = True,
    ) -> list[Any]:
        """
        Read items of a stream.

        Raises:
            ConfigurationError: The limit is negative.
        """
        ...

    def all_items(self, *, page_size: int = PAGE_SIZE) -> Iterator[Any]:
        """Read every item of every stream, a page at a time."""
        ...


class EventStore:
    """
    Stores domain events as sequenced items.

    Args:
        active_record_strategy: Reads and writes items.
        sequenced_item_mapper: Maps events to items and back.

    Attributes:
        owner: In whose name the events of its entities are published: the store itself, or its application.

    Raises:
        ConfigurationError: The two are not of one item class and one collection, or the mapper seals, and
            nobody could count what the strategy stores.
    """

    def __init__(
        self, active_record_strategy: ActiveRecordStrategy, sequenced_item_mapper: SequencedItemMapper
    ) -> None:
        mapper = sequenced_item_mapper.over(active_record_strategy.collection)
        _check_pair(active_record_strategy, mapper)
        self._new_place = _place_beside_tables(active_record_strategy, mapper)
        self.active_record_strategy = active_record_strategy
        self.sequenced_item_mapper = mapper
        self.owner: object = self
        place = field_names(sequenced_item_mapper.sequenced_item_class)[:2]
        self._position_of = attrgetter(place[1])
        self._stream_of = attrgetter(place[0])

    def append(self, domain_events: Any) -> None:
        """
        Store events: all or none.

        Args:
            domain_events: An event, or a list or tuple of them.

        Raises:
            SequencedItemConflictError: A position is taken: reload the entity and decide again.
            SerializationError: An event cannot be written; nothing was.
            EventSealError: There is no key to seal with, or the database refused or failed.
        """
        events = list(domain_events) if isinstance(domain_events, list | tuple) else [domain_events]
        if not events:
            return
        mapper = self.sequenced_item_mapper
        if self._new_place is not None and mapper.cipher is not None:
            # Before the first item is there: from now on no key is retired unless the place is counted.
            mapper.cipher.add_place(self._new_place.name, self._new_place.collection)
            self._new_place = None
        try:
            self.active_record_strategy.append(mapper.to_sequenced_items(events))
        except KeyClosedError:
            if mapper.cipher is None:
                raise
            # A key was retired between sealing and writing: the keyring has to see it and seal with the next.
            mapper.cipher.refresh()
            self.active_record_strategy.append(mapper.to_sequenced_items(events))

    def get_domain_event(self, originator_id: Any, eq: Any) -> Any:
        """
        Give the event at one position; ``None`` if it was erased, and the mapper skips such.

        Raises:
            ItemNotFoundError: There is none.
        """
        events = self._events([self.active_record_strategy.get_item(originator_id, eq)])
        return events[0] if events else None

    def get_domain_events(
        self,
        originator_id: Any,
        gt: Any = None,
        gte: Any = None,
        lt: Any = None,
        lte: Any = None,
        limit: int | None = None,
        is_ascending: bool = True,
    ) -> list[Any]:
        """
        Give events of a stream.

        Args:
            originator_id: The stream.
            gt: After this position.
            gte: At or after this position.
            lt: Before this position.
            lte: At or before this position.
            limit: At most so many: the first, or, not ascending, the last. Those that the mapper skips count.
            is_ascending: Whether the earliest comes first.

        Returns:
            The events, in order.
        """
        items = self.active_record_strategy.get_items(
            originator_id,
            gt=gt,
            gte=gte,
            lt=lt,
            lte=lte,
            limit=limit,
            query_ascending=is_ascending,
            results_ascending=is_ascending,
        )
        return self._events(items)

    def get_most_recent_event(self, originator_id: Any, lt: Any = None, lte: Any = None) -> Any:
        """Give the last event of a stream, before or at a position if one is given; else ``None``."""
        read, limit = self.active_record_strategy.get_items, 1
        while items := read(
            originator_id, lt=lt, lte=lte, limit=limit, query_ascending=False, results_ascending=False
        ):
            events = self._events(items)
            if events or len(items) < limit:
                return events[0] if events else None
            lt, lte, limit = self._position_of(items[-1]), None, PAGE_SIZE  # erased ones, which are skipped
        return None

    def iterate_domain_events(
        self,
        originator_id: Any,
        gt: Any = None,
        lt: Any = None,
        lte: Any = None,
        *,
        page_size: int = PAGE_SIZE,
    ) -> Iterator[Any]:
        """
        Give the events of a stream, earliest first, reading a page at a time.

        Args:
            originator_id: The stream.
            gt: After this position.
            lt: Before this position.
            lte: At or before this position.
            page_size: Events a page, 1 or more.
        """
        read = self.active_record_strategy.get_items
        while True:
            items = read(originator_id, gt=gt, lt=lt, lte=lte, limit=page_size)
            yield from self._events(items)
            if len(items) < page_size:
                return
            gt = self._position_of(items[-1])

    def all_domain_events(self, *, page_size: int = PAGE_SIZE) -> Iterator[Any]:
        """Give the events of all streams, a page at a time; in order within a stream."""
        items = self.active_record_strategy.all_items(page_size=page_size)
        while page := list(islice(items, page_size)):
            yield from self._events(page)

    def _events(self, items: list[Any], reads_again: int = READS_AGAIN) -> list[Any]:
        """Map items that were just read."""
        try:
            return self._mapped(items)
        except KeyDestroyedError as error:
            if error.destroyed_by != "retired" or not reads_again:
                raise
        # Between the reading and the opening they were encrypted again, and their old key was retired.
        return self._events(self._read_again(items), reads_again - 1)

    def _mapped(self, items: list[Any]) -> list[Any]:
        """Map items; only if one does not open, ask whether the table's are bound to another name still."""
        # Nothing is remembered: once the items are moved, the former name is refused (docs/decisions/0022).
        mapper, strategy = self.sequenced_item_mapper, self.active_record_strategy
        try:
            return mapper.from_sequenced_items(items)
        except IntegrityError:
            # If its table was given another collection, the strategy names those that items may have still.
            name_others = getattr(strategy, "other_collections", None)
            if mapper.cipher is None or name_others is None:
                raise
            others = name_others(mapper.cipher.application)
            if not others:
                raise
        return mapper.from_sequenced_items(items, other_collections=others)

    def _read_again(self, items: list[Any]) -> list[Any]:
        """Read items from where they were, with one statement for a stream: the next key may go soon, too."""
        strategy, found = self.active_record_strategy, []
        for stream, of_stream in groupby(items, self._stream_of):
            positions = [self._position_of(item) for item in of_stream]
            there = {
                self._position_of(item): item
                for item in strategy.get_items(stream, gte=min(positions), lte=max(positions))
            }
            found += [there.get(position) or strategy.get_item(stream, position) for position in positions]
        return found


def _place_beside_tables(strategy: ActiveRecordStrategy, mapper: SequencedItemMapper) -> SealedPlace | None:
    """Give the place that sealed items go to, unless it is a table, which the registry has."""
    # Looked up, not imported: a strategy of SQLAlchemy's needs the module, and others need no SQLAlchemy.
    storage = sys.modules.get("eventseal.storage.strategy")
    is_table = storage is not None and isinstance(strategy, storage.SQLAlchemyActiveRecordStrategy)
    if mapper.cipher is None or not mapper.cipher.has_keyring or is_table:
        return None
    place = getattr(strategy, "place", None)
    if not isinstance(place, SealedPlace):
        raise ConfigurationError(
            f"{type(strategy).__qualname__} has no place that can be counted: keys that its items need would "
            "be destroyed",
            remedy="Give it a property `place` that is a SealedPlace; docs/testing.md names the suite.",
        )
    return place


def _check_pair(strategy: ActiveRecordStrategy, mapper: SequencedItemMapper) -> None:
    if strategy.collection != mapper.collection:
        raise ConfigurationError(
            f"the mapper's collection is {mapper.collection!r}, the table's is {strategy.collection!r}",
            remedy=f"Give the mapper collection={strategy.collection!r}.",
        )
    if strategy.sequenced_item_class is not mapper.sequenced_item_class:
        raise ConfigurationError(
            f"the mapper makes {mapper.sequenced_item_class.__qualname__} items, "
            f"the strategy takes {strategy.sequenced_item_class.__qualname__}",
            remedy="Give both the same sequenced_item_class.",
        )

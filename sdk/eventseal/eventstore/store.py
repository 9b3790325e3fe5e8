"""The event store, which stores and reads domain events."""

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
    from contextlib import AbstractContextManager

    from eventseal.items.mapper import SequencedItemMapper

PAGE_SIZE = 1000

READS_AGAIN = 3
"""How often items are read again if their key was retired meanwhile."""


class ActiveRecordStrategy(Protocol):
    """Reads and writes sequenced items. ``SQLAlchemyActiveRecordStrategy`` is such a strategy."""

    @property
    def sequenced_item_class(self) -> type[Any]:
        """The class of the items that it reads and writes."""
        ...

    @property
    def collection(self) -> str:
        """The collection of the items in its record class."""
        ...

    @property
    def place(self) -> SealedPlace:
        """
        The place to which it writes.

        ``eventseal.rotation.retire`` closes the place and counts its items before it destroys a key.
        """
        ...

    def append(self, items: Any) -> None:
        """
        Write an item or a list of items, all or none.

        Raises:
            SequencedItemConflictError: A position is taken.
            KeyClosedError: A key that sealed one of the items was retired meanwhile.
        """
        ...

    def get_item(self, sequence_id: Any, eq: Any) -> Any:
        """
        Return the item at one position.

        Raises:
            ItemNotFoundError: There is no such item.
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
        Return items of a stream.

        Raises:
            ConfigurationError: The limit is negative.
        """
        ...

    def all_items(self, *, page_size: int = PAGE_SIZE) -> Iterator[Any]:
        """Yield every item of every stream, reading a page at a time."""
        ...


class EventStore:
    """
    Stores domain events as sequenced items.

    Args:
        active_record_strategy: Reads and writes items.
        sequenced_item_mapper: Maps events to items and back.

    Attributes:
        owner: The owner in whose name its entities publish events: the store itself, or its application.

    Raises:
        ConfigurationError: The strategy and the mapper differ in item class or collection. Or the mapper
            encrypts, and the items of the strategy cannot be counted.
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
        Store events, all or none.

        Args:
            domain_events: An event, or a list or tuple of events.

        Raises:
            SequencedItemConflictError: A position is taken. Reload the entity and decide again.
            SerializationError: An event cannot be serialized. Nothing was written.
            EventSealError: There is no key to encrypt with, or the database rejects the request or fails.
        """
        events = list(domain_events) if isinstance(domain_events, list | tuple) else [domain_events]
        if not events:
            return
        mapper = self.sequenced_item_mapper
        if self._new_place is not None and mapper.cipher is not None:
            # Before the first item exists: from now on, no key is retired unless the place is counted.
            mapper.cipher.add_place(self._new_place.name, self._new_place.collection)
            self._new_place = None
        try:
            self.active_record_strategy.append(mapper.to_sequenced_items(events))
        except KeyClosedError:
            if mapper.cipher is None:
                raise
            # A key was retired between sealing and writing: the keyring must notice it, and use the next key.
            mapper.cipher.refresh()
            self.active_record_strategy.append(mapper.to_sequenced_items(events))

    def transaction(self, session: Any = None) -> AbstractContextManager[Any]:
        """
        Store events and your own rows together, in one block.

        Every append of this thread inside the block writes to one transaction: those of this store, and those
        of all event stores of the same datastore. Reads inside it see what it has written.

        After a conflict, only the append that raised it is undone, and the error says so. After any other
        error of the database, the whole transaction is rolled back, and must be run again.

        Args:
            session: Your own SQLAlchemy session, on the database of the events. You commit it, or roll it
                back, after the block. With ``None``, the end of the block commits. An error that leaves the
                block rolls everything back.

        Returns:
            A context manager that yields the session, to which you add your own rows.

        Raises:
            ConfigurationError: The block is inside another one, or the session has an open transaction that
                you did not pass. Or the strategy has no transactions.
            StoreError: The transaction was not committed.
        """
        begin = getattr(self.active_record_strategy, "transaction", None)
        if begin is None:
            raise ConfigurationError(
                f"{type(self.active_record_strategy).__qualname__} has no transactions",
                remedy="Use SQLAlchemyActiveRecordStrategy, or append each list of events alone.",
            )
        block: AbstractContextManager[Any] = begin(session)
        return block

    def get_domain_event(self, originator_id: Any, eq: Any) -> Any:
        """
        Return the event at one position.

        It is ``None`` if the event was erased and the mapper skips erased events.

        Raises:
            ItemNotFoundError: There is no such event.
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
        Return events of a stream.

        Args:
            originator_id: The stream.
            gt: Only events after this position.
            gte: Only events at or after this position.
            lt: Only events before this position.
            lte: Only events at or before this position.
            limit: The highest number of events: the first ones, or the last ones if not ascending. Events
                that the mapper skips count too.
            is_ascending: Whether the earliest event comes first.

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
        """
        Return the last event of a stream, or ``None``.

        With *lt*, it is the last one before that position. With *lte*, it may also be at that position.
        """
        read, limit = self.active_record_strategy.get_items, 1
        while items := read(
            originator_id, lt=lt, lte=lte, limit=limit, query_ascending=False, results_ascending=False
        ):
            events = self._events(items)
            if events or len(items) < limit:
                return events[0] if events else None
            lt, lte, limit = self._position_of(items[-1]), None, PAGE_SIZE  # skip erased events
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
        Yield the events of a stream, earliest first.

        It reads a page at a time.

        Args:
            originator_id: The stream.
            gt: Only events after this position.
            lt: Only events before this position.
            lte: Only events at or before this position.
            page_size: The number of events in a page, 1 or more.
        """
        read = self.active_record_strategy.get_items
        while True:
            items = read(originator_id, gt=gt, lt=lt, lte=lte, limit=page_size)
            yield from self._events(items)
            if len(items) < page_size:
                return
            gt = self._position_of(items[-1])

    def all_domain_events(self, *, page_size: int = PAGE_SIZE) -> Iterator[Any]:
        """
        Yield the events of all streams, reading a page at a time.

        The events of each stream are in order.
        """
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
        # Between reading and opening, the items were re-encrypted, and their old key was retired.
        return self._events(self._read_again(items), reads_again - 1)

    def _mapped(self, items: list[Any]) -> list[Any]:
        """
        Map items, and try other collection names if one does not open.

        The items of a table may still be bound to its former collection name.
        """
        # Nothing is remembered: after the items are moved, the former name is refused (docs/decisions/0022).
        mapper, strategy = self.sequenced_item_mapper, self.active_record_strategy
        try:
            return mapper.from_sequenced_items(items)
        except IntegrityError:
            # If its table got another collection, the strategy names those that items may still have.
            name_others = getattr(strategy, "other_collections", None)
            if mapper.cipher is None or name_others is None:
                raise
            others = name_others(mapper.cipher.application)
            if not others:
                raise
        return mapper.from_sequenced_items(items, other_collections=others)

    def _read_again(self, items: list[Any]) -> list[Any]:
        """
        Read items again, with one statement for each stream.

        More statements would take longer, and the next key may be retired soon, too.
        """
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
    """Return the place of sealed items, unless it is a table. The registry lists the tables."""
    # Looked up, not imported: only SQLAlchemy strategies load the module, and others need no SQLAlchemy.
    storage = sys.modules.get("eventseal.storage.strategy")
    is_table = storage is not None and isinstance(strategy, storage.SQLAlchemyActiveRecordStrategy)
    if mapper.cipher is None or not mapper.cipher.has_keyring or is_table:
        return None
    place = getattr(strategy, "place", None)
    if not isinstance(place, SealedPlace):
        raise ConfigurationError(
            f"{type(strategy).__qualname__} has no place that can be counted, so keys that its items need "
            "would be destroyed",
            remedy="Add a property `place` that returns a SealedPlace. See the page Testing.",
        )
    return place


def _check_pair(strategy: ActiveRecordStrategy, mapper: SequencedItemMapper) -> None:
    if strategy.collection != mapper.collection:
        raise ConfigurationError(
            f"the mapper's collection is {mapper.collection!r}, the table's is {strategy.collection!r}",
            remedy=f"Pass collection={strategy.collection!r} to the mapper.",
        )
    if strategy.sequenced_item_class is not mapper.sequenced_item_class:
        raise ConfigurationError(
            f"the mapper creates {mapper.sequenced_item_class.__qualname__} items, "
            f"but the strategy takes {strategy.sequenced_item_class.__qualname__}",
            remedy="Configure both with the same sequenced_item_class.",
        )

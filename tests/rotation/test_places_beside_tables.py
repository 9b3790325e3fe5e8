"""A record strategy of one's own: its items count like those of tables, or no key goes."""

from __future__ import annotations

import threading
from bisect import insort
from collections import Counter
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventseal import AESCipher, InMemoryKeyStore, Keyring
from eventseal.errors import (
    ConfigurationError,
    ItemNotFoundError,
    JobError,
    KeyClosedError,
    SequencedItemConflictError,
    SerializationError,
)
from eventseal.eventstore import EventStore
from eventseal.eventstore.events import EventWithOriginatorID, EventWithOriginatorVersion
from eventseal.items import SequencedItem, SequencedItemMapper
from eventseal.items.sealed_places import Change, Page, Selection, refuse_other_purposes
from eventseal.keys import KeyPurpose, KeyState
from eventseal.rotation import retire, rotate_keys
from eventseal.testing import FakeKms
from eventseal.testing.record_strategy_contract import RecordStrategyContract


class Placed(EventWithOriginatorVersion, EventWithOriginatorID):
    pass


class Shelf:
    """A store that is no database: items in order of their places, and the keys whose fence is closed."""

    name, collection = "shelf", "items"

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.items: list[SequencedItem] = []
        self.closed: set[UUID] = set()

    def close_fence(self, key_ids: Any) -> None:
        with self.lock:
            self.closed |= set(key_ids)

    def count_by_key(self, key_ids: Any, *, purpose: KeyPurpose = KeyPurpose.DATA) -> dict[UUID, int]:
        refuse_other_purposes(purpose)
        with self.lock:
            counts = Counter(header(item) for item in self.items)
        return {key_id: counts[key_id] for key_id in key_ids if counts[key_id]}

    def pages(self, selection: Selection, after: Any, limit: int) -> Page:
        with self.lock:
            found = [item for item in self.items if after is None or item[:2] > after]
        wanted = [item for item in found if header(item) in (selection.keys or ())][:limit]
        return Page(
            sequence_ids=[item.sequence_id for item in wanted],
            positions=[item.position for item in wanted],
            topics=[item.topic for item in wanted],
            envelopes=[item.data for item in wanted],
            key_ids=[item.data[3:19] for item in wanted],
        )

    def swap(self, change: Change) -> list[int]:
        with self.lock:
            if closed := self.closed.intersection(change.fences):
                raise KeyClosedError("closed", key_ids=tuple(closed))
            before, numbers = list(self.items), []
            places = [item[:2] for item in self.items]
            page = change.page
            for number, envelope in enumerate(change.envelopes):
                at = places.index((page.sequence_ids[number], page.positions[number]))
                if self.items[at].data == page.envelopes[number]:
                    self.items[at] = self.items[at]._replace(data=envelope, key_id=UUID(bytes=envelope[3:19]))
                    numbers.append(number)
            try:
                if change.cursor is not None:
                    change.cursor(None, numbers)
                change.sources(None, numbers)
            except Exception:
                self.items = before
                raise
            return numbers


def header(item: SequencedItem) -> UUID | None:
    return UUID(bytes=item.data[3:19]) if len(item.data) >= 59 and item.data[0] == 1 else None


class PlacelessStrategy:
    """As it could be written before places were asked for."""

    sequenced_item_class, collection = SequencedItem, "items"

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def append(self, items: Any) -> None:
        batch = [items] if isinstance(items, SequencedItem) else list(items)
        if any(type(item.position) is not int for item in batch):
            raise SerializationError("a position is an integer")
        with self.shelf.lock:
            taken = {item[:2] for item in self.shelf.items}
            if taken.intersection(item[:2] for item in batch):
                raise SequencedItemConflictError("taken")
            if closed := self.shelf.closed.intersection(item.key_id for item in batch):
                raise KeyClosedError("closed", key_ids=tuple(closed))
            for item in batch:
                insort(self.shelf.items, item, key=lambda item: item[:2])

    def get_item(self, sequence_id: Any, eq: Any) -> SequencedItem:
        for item in self.get_items(sequence_id):
            if item.position == eq:
                return item
        raise ItemNotFoundError("none")

    def get_items(self, sequence_id: Any, **bounds: Any) -> list[SequencedItem]:
        ascending = bounds.pop("query_ascending", True)
        results = bounds.pop("results_ascending", True)
        limit = bounds.pop("limit", None)
        if limit is not None and limit < 0:
            raise ConfigurationError("the limit is negative")
        operators = {"gt": int.__gt__, "gte": int.__ge__, "lt": int.__lt__, "lte": int.__le__}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        found = [
            item
            for item in self.shelf.items
            if item.sequence_id == sequence_id
            and all(operators[name](item.position, bound) for name, bound in given.items())
        ]
        found = (found if ascending else found[::-1])[:limit]
        return found if ascending == results else found[::-1]

    def all_items(self, *, page_size: int = 1000) -> Any:
        yield from list(self.shelf.items)


class ShelfStrategy(PlacelessStrategy):
    @property
    def place(self) -> Shelf:
        return self.shelf


class TestShelfStrategy(RecordStrategyContract):
    @pytest.fixture
    def strategy(self):
        return ShelfStrategy(Shelf())

    @pytest.fixture
    def other_strategy(self, strategy):
        return ShelfStrategy(strategy.shelf)


def placed(number: int = 0) -> Placed:
    return Placed(originator_id=uuid4(), originator_version=number)


def store_of(strategy: Any, seal: Any) -> EventStore:
    return EventStore(strategy, SequencedItemMapper(cipher=seal.cipher))


def test_a_strategy_that_nobody_can_count_is_refused_before_it_seals(shop) -> None:
    with pytest.raises(ConfigurationError, match="PlacelessStrategy has no place") as caught:
        store_of(PlacelessStrategy(Shelf()), shop.seal)
    assert "SealedPlace" in caught.value.remedy
    EventStore(PlacelessStrategy(Shelf()), SequencedItemMapper())  # of plain items, nobody needs to know
    EventStore(PlacelessStrategy(Shelf()), SequencedItemMapper(cipher=AESCipher(bytes(32))))


@pytest.mark.slow
def test_no_key_goes_while_a_place_is_not_counted(shop) -> None:
    """Also from a process that never heard of the place, such as the command."""
    shelf = Shelf()
    store_of(ShelfStrategy(shelf), shop.seal).append(placed())
    (key_id,) = [item.key_id for item in shelf.items]
    rotate_keys(shop.seal)
    for seal in (shop.seal, shop.again().seal):
        with pytest.raises(ConfigurationError, match="sealed in shelf") as caught:
            retire(seal)
        assert "places=[...]" in caught.value.remedy
    assert shop.seal.key_store.get([key_id])[key_id].state is KeyState.DEACTIVATED


@pytest.mark.slow
def test_a_place_that_is_known_keeps_the_keys_that_its_items_need(shop) -> None:
    shelf, seal = Shelf(), shop.seal
    seal.places = (shelf,)
    store_of(ShelfStrategy(shelf), seal).append([placed(), placed()])
    needed = shelf.items[0].key_id
    unused = seal.keyring.sealing_keys({"b": 0})["b"].key_id
    shelf.items = [item._replace(key_id=uuid4()) for item in shelf.items]
    rotate_keys(seal)
    result = retire(seal)
    assert (result.done, result.left, result.by_key) == (1, 1, {needed: 2, unused: 0})
    assert result.by_table == {"shelf": {"left": 2}}
    assert shelf.closed == {unused}
    with pytest.raises(JobError, match="2 items of shelf"):
        retire(seal, keys=[needed])
    shelf.items.clear()
    assert retire(seal).done == 1
    assert shelf.closed == {unused, needed}


@pytest.mark.slow
def test_what_was_written_there_before_the_fence_closed_keeps_its_key(shop) -> None:
    shelf, seal = Shelf(), shop.seal
    seal.places = (shelf,)
    store_of(ShelfStrategy(shelf), seal).append(placed())
    late = shelf.items.pop()
    rotate_keys(seal)
    close_fence = shelf.close_fence

    def overtaken(key_ids: Any) -> None:
        ShelfStrategy(shelf).append(late)
        close_fence(key_ids)

    shelf.close_fence = overtaken
    result = retire(seal)
    assert (result.done, result.by_key) == (0, {late.key_id: 1})
    assert seal.key_store.get([late.key_id])[late.key_id].state is KeyState.DEACTIVATED


def test_a_key_store_in_memory_remembers_places_too(shop) -> None:
    keyring = Keyring(FakeKms(), InMemoryKeyStore(), application="shop")
    seal = SimpleNamespace(
        keyring=keyring,
        cipher=AESCipher(keyring),
        key_store=keyring._given.key_store,
        datastore=shop.seal.datastore,
    )
    store_of(ShelfStrategy(Shelf()), seal).append(placed())
    rotate_keys(seal)
    with pytest.raises(ConfigurationError, match="sealed in shelf"):
        retire(seal)


@pytest.mark.slow
def test_a_place_hides_no_table_of_its_name(shop) -> None:
    shelf = Shelf()
    shelf.name = "integer_sequenced_items"
    store_of(ShelfStrategy(shelf), shop.seal).append(placed())
    shop.seal.places = (shelf,)
    (item,) = shop.append()
    rotate_keys(shop.seal)
    assert retire(shop.seal).by_key == {item.key_id: 2}
    shop.execute("DELETE FROM integer_sequenced_items")
    assert retire(shop.seal).by_key == {item.key_id: 1}  # of the shelf

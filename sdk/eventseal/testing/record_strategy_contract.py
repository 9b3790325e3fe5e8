"""
The tests that every active record strategy must pass.

Subclass the suite, override its fixtures with two handles on one database, and run pytest::

    class TestMyStrategy(RecordStrategyContract):
        @pytest.fixture
        def strategy(self, my_database):
            return MyStrategy(my_database)

        @pytest.fixture
        def other_strategy(self, my_database):
            return MyStrategy(my_database)
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from eventseal.errors import (
    ConfigurationError,
    ItemNotFoundError,
    KeyClosedError,
    SequencedItemConflictError,
    SerializationError,
)
from eventseal.items.item import SequencedItem
from eventseal.items.sealed_places import Change, SealedPlace, Selection
from eventseal.keys.states import KeyPurpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eventseal.eventstore.store import ActiveRecordStrategy

TOPIC = "contract:Happened"
WRITERS = 4
ROUNDS = 20

BOUNDS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [0, 1, 2, 3, 4]),
    ({"gt": 1}, [2, 3, 4]),
    ({"gte": 1}, [1, 2, 3, 4]),
    ({"lt": 3}, [0, 1, 2]),
    ({"lte": 3}, [0, 1, 2, 3]),
    ({"gte": 1, "lte": 3}, [1, 2, 3]),
    ({"gt": 4}, []),
    ({"limit": 0}, []),
    ({"limit": 2}, [0, 1]),
    ({"limit": 2, "query_ascending": False}, [3, 4]),
    ({"limit": 2, "query_ascending": False, "results_ascending": False}, [4, 3]),
    ({"gt": 0, "limit": 2, "results_ascending": False}, [2, 1]),
]


def _item(
    sequence_id: UUID, position: int, *, data: bytes = b"data", key_id: UUID | None = None
) -> SequencedItem:
    return SequencedItem(sequence_id, position, TOPIC, data, key_id)


def _envelope(key_id: UUID, number: int = 0) -> bytes:
    """Return bytes with the header of an envelope."""
    return bytes((1, 3, 0)) + key_id.bytes + number.to_bytes(8, "big") + bytes(32) + number.to_bytes(8, "big")


def _sealed(stream: UUID, position: int, key_id: UUID, *, said: UUID | None = None) -> SequencedItem:
    """Return an item under a key. Its row may name another key."""
    return _item(stream, position, data=_envelope(key_id, position), key_id=said or key_id)


def _all_live(_transaction: Any, _numbers: Sequence[int]) -> None:
    """Accept every source, as if all keys still existed."""


class RecordStrategyContract:
    """
    The tests of a strategy for :class:`eventseal.SequencedItem` in integer sequences.

    Tests may share a database, since each test uses its own sequences.
    """

    @pytest.fixture
    def strategy(self) -> ActiveRecordStrategy:
        """The strategy under test. Override it."""
        raise NotImplementedError("override the fixture `strategy`")

    @pytest.fixture
    def other_strategy(self, strategy: ActiveRecordStrategy) -> ActiveRecordStrategy:
        """Another handle on the same table, with its own connection. Override it."""
        raise NotImplementedError("override the fixture `other_strategy`")

    def test_an_item_comes_back_as_it_was_appended(self, strategy: ActiveRecordStrategy) -> None:
        """The strategy must return an item unchanged."""
        stream, key_id = uuid4(), uuid4()
        sealed, plain = _item(stream, 0, data=bytes(range(256)), key_id=key_id), _item(stream, 1, data=b"")
        strategy.append(sealed)
        strategy.append([plain])
        assert strategy.get_item(stream, eq=0) == sealed
        assert strategy.get_item(stream, eq=1) == plain
        assert type(strategy.get_item(stream, eq=1)) is strategy.sequenced_item_class

    def test_what_was_appended_is_committed(
        self, strategy: ActiveRecordStrategy, other_strategy: ActiveRecordStrategy
    ) -> None:
        """Another handle must see an appended item."""
        item = _item(uuid4(), 0)
        strategy.append(item)
        assert other_strategy.get_item(item.sequence_id, eq=0) == item

    def test_a_batch_under_several_keys_and_none_is_written_whole(
        self, strategy: ActiveRecordStrategy
    ) -> None:
        """The strategy must write all items of a batch."""
        stream, keys = uuid4(), (uuid4(), uuid4(), None)
        batch = [_item(stream, n, data=b"%d" % n, key_id=keys[n % 3]) for n in range(30)]
        strategy.append(batch)
        assert strategy.get_items(stream) == batch

    def test_a_position_that_is_taken_is_a_conflict_and_nothing_of_the_batch_is_written(
        self, strategy: ActiveRecordStrategy
    ) -> None:
        """A taken position must be a conflict that writes nothing."""
        stream, other = uuid4(), uuid4()
        first = _item(stream, 1, key_id=uuid4())
        strategy.append(first)
        for key_id in (None, uuid4()):
            batch = [_item(other, 0, key_id=key_id), _item(stream, 1, data=b"late", key_id=key_id)]
            with pytest.raises(SequencedItemConflictError):
                strategy.append(batch)
        assert strategy.get_items(stream) == [first]
        assert strategy.get_items(other) == []

    def test_an_equal_item_is_a_conflict_too(self, strategy: ActiveRecordStrategy) -> None:
        """An equal item must be a conflict. Two equal commands must not both succeed."""
        item = _item(uuid4(), 0, key_id=uuid4())
        strategy.append(item)
        with pytest.raises(SequencedItemConflictError):
            strategy.append(item)

    @pytest.mark.parametrize("position", [0.5, 1.0, True], ids=repr)
    def test_a_position_that_a_database_would_round_is_refused_and_nothing_is_written(
        self, strategy: ActiveRecordStrategy, position: Any
    ) -> None:
        """The strategy must refuse a position that is not an integer."""
        stream = uuid4()
        with pytest.raises(SerializationError):
            strategy.append([_item(stream, 0), _item(stream, position)])
        assert strategy.get_items(stream) == []

    def test_a_missing_item_is_a_lookup_error(self, strategy: ActiveRecordStrategy) -> None:
        """A missing item must raise ``ItemNotFoundError``."""
        with pytest.raises(ItemNotFoundError):
            strategy.get_item(uuid4(), eq=0)

    @pytest.mark.parametrize(("bounds", "positions"), BOUNDS, ids=str)
    def test_items_are_read_within_their_bounds_and_in_their_order(
        self, strategy: ActiveRecordStrategy, bounds: dict[str, Any], positions: list[int]
    ) -> None:
        """A read must respect its bounds, limit and order."""
        stream = uuid4()
        strategy.append([_item(uuid4(), 0), *(_item(stream, n) for n in range(5))])
        assert [item.position for item in strategy.get_items(stream, **bounds)] == positions

    def test_a_negative_limit_is_refused(self, strategy: ActiveRecordStrategy) -> None:
        """
        The strategy must refuse a negative limit.

        Otherwise SQLite would read all items, and PostgreSQL would refuse.
        """
        with pytest.raises(ConfigurationError):
            strategy.get_items(uuid4(), limit=-1)

    @pytest.mark.parametrize("page_size", [1, 2, 3, 100])
    def test_all_items_come_once_and_in_order_within_a_sequence(
        self, strategy: ActiveRecordStrategy, page_size: int
    ) -> None:
        """A full read must return each item once, in order."""
        streams = {uuid4(): [], uuid4(): [], uuid4(): []}  # type: dict[UUID, list[int]]
        strategy.append([_item(stream, n) for n in range(3) for stream in streams])
        for item in strategy.all_items(page_size=page_size):
            if item.sequence_id in streams:
                streams[item.sequence_id].append(item.position)
        assert list(streams.values()) == [[0, 1, 2]] * 3

    def test_one_of_several_writers_wins_each_position(
        self, strategy: ActiveRecordStrategy, other_strategy: ActiveRecordStrategy
    ) -> None:
        """One of several writers must win each position."""
        stream, start = uuid4(), threading.Barrier(WRITERS)

        def write(number: int) -> list[int]:
            start.wait()
            won = []
            for position in range(ROUNDS):
                handle = (strategy, other_strategy)[number % 2]
                try:
                    handle.append(_item(stream, position, data=b"%d" % number, key_id=uuid4()))
                except SequencedItemConflictError:
                    continue
                won.append(position)
            return won

        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(write, range(WRITERS)))
        assert sorted(position for positions in won for position in positions) == list(range(ROUNDS))
        stored = {item.position: int(item.data) for item in strategy.get_items(stream)}
        assert stored == {position: number for number, positions in enumerate(won) for position in positions}

    # --- its place, which a retire uses ---

    @pytest.fixture
    def place(self, strategy: ActiveRecordStrategy) -> SealedPlace:
        """The place that the strategy writes to."""
        return strategy.place

    def test_its_place_is_one_and_has_its_collection(
        self, strategy: ActiveRecordStrategy, place: SealedPlace, other_strategy: ActiveRecordStrategy
    ) -> None:
        """The strategy must have a place with its collection."""
        assert isinstance(place, SealedPlace)
        assert place.name
        assert place.name == other_strategy.place.name
        assert place.collection == strategy.collection

    def test_items_are_counted_by_the_header_of_their_envelope(
        self, strategy: ActiveRecordStrategy, place: SealedPlace
    ) -> None:
        """
        A count must use the key id in the envelope's header.

        Anyone who can write to the table can edit the other columns of a row.
        """
        stream, key_id, none = uuid4(), uuid4(), uuid4()
        strategy.append([_sealed(stream, n, key_id, said=uuid4() if n == 2 else None) for n in range(3)])
        assert place.count_by_key([key_id, none]) == {key_id: 3}

    @pytest.mark.parametrize("purpose", [each for each in KeyPurpose if each is not KeyPurpose.DATA], ids=str)
    def test_keys_of_other_purposes_are_not_counted_as_0(
        self, place: SealedPlace, purpose: KeyPurpose
    ) -> None:
        """A count for another purpose must raise, not return 0."""
        with pytest.raises(ConfigurationError):
            place.count_by_key([uuid4()], purpose=purpose)

    def test_nothing_is_appended_under_a_key_whose_fence_is_closed(
        self, strategy: ActiveRecordStrategy, place: SealedPlace, other_strategy: ActiveRecordStrategy
    ) -> None:
        """A closed fence must refuse every append under its key."""
        stream, used, unused, free = uuid4(), uuid4(), uuid4(), uuid4()
        strategy.append(_sealed(stream, 0, used))
        place.close_fence([used, unused])
        for handle in (strategy, other_strategy):
            for closed in (used, unused):
                with pytest.raises(KeyClosedError) as caught:
                    handle.append([_sealed(stream, 1, free), _sealed(stream, 2, closed)])
                assert set(caught.value.key_ids) == {closed}
        strategy.append(_sealed(stream, 1, free))
        assert place.count_by_key([used, unused, free]) == {used: 1, free: 1}

    def test_a_fence_that_is_closed_has_waited_for_every_writer(
        self, strategy: ActiveRecordStrategy, place: SealedPlace, other_strategy: ActiveRecordStrategy
    ) -> None:
        """
        A closed fence must have waited for every writer.

        Otherwise an item could be committed after the count by which its key is destroyed.
        """
        key_id, writing = uuid4(), threading.Barrier(WRITERS + 1)

        def write(number: int) -> int:
            stream, handle = uuid4(), (strategy, other_strategy)[number % 2]
            handle.append(_sealed(stream, 0, key_id))
            writing.wait()
            for position in range(1, 1000):
                try:
                    handle.append(_sealed(stream, position, key_id))
                except KeyClosedError:
                    return position
            return 1000

        with ThreadPoolExecutor(WRITERS) as pool:
            writers = [pool.submit(write, number) for number in range(WRITERS)]
            writing.wait()
            place.close_fence([key_id])
            counted = place.count_by_key([key_id])
            assert counted == {key_id: sum(writer.result() for writer in writers)}

    @pytest.mark.parametrize("limit", [1, 2, 100])
    def test_pages_give_each_item_of_the_keys_once(
        self, strategy: ActiveRecordStrategy, place: SealedPlace, limit: int
    ) -> None:
        """Pages must return each item of the keys once."""
        key_id, other = uuid4(), uuid4()
        streams = [uuid4(), uuid4()]
        items = [_sealed(stream, n, key_id) for stream in streams for n in range(3)]
        strategy.append([*items, _sealed(streams[0], 3, other), _item(streams[1], 3)])
        after: Any = None
        found: list[Any] = []
        while page := place.pages(Selection(keys=(key_id,)), after, limit):
            assert len(page) <= limit
            assert set(page.key_ids) == {key_id.bytes}
            found += zip(page.sequence_ids, page.positions, page.topics, page.envelopes, strict=True)
            after = page.last_place
        assert sorted(found) == sorted(item[:4] for item in items)

    def test_items_are_swapped_only_if_they_are_as_they_were_read(
        self, strategy: ActiveRecordStrategy, place: SealedPlace
    ) -> None:
        """A swap must change only items that are unchanged since reading."""
        stream, old, new = uuid4(), uuid4(), uuid4()
        strategy.append([_sealed(stream, n, old) for n in range(3)])
        page = place.pages(Selection(keys=(old,)), None, 10)
        seen: list[list[int]] = []
        first = Change(page=page.only([1]), envelopes=[_envelope(new, 1)], fences=[new], sources=_all_live)
        assert list(place.swap(first)) == [0]
        rest = Change(
            page=page,
            envelopes=[_envelope(new, 10 + n) for n in range(3)],
            fences=[new],
            sources=_all_live,
            cursor=lambda _, numbers: seen.append(list(numbers)),
        )
        assert list(place.swap(rest)) == [0, 2]
        assert seen == [[0, 2]]
        stored = [item.data for item in strategy.get_items(stream)]
        assert stored == [_envelope(new, 10), _envelope(new, 1), _envelope(new, 12)]
        assert {item.key_id for item in strategy.get_items(stream)} == {new}
        assert place.count_by_key([old, new]) == {new: 3}

    @pytest.mark.parametrize("why", ["the fence is closed", "a source is gone", "the job was taken"])
    def test_nothing_is_swapped_where_one_part_of_the_change_fails(
        self, strategy: ActiveRecordStrategy, place: SealedPlace, why: str
    ) -> None:
        """If one part of a change fails, no item may change."""
        stream, old, new = uuid4(), uuid4(), uuid4()
        items = [_sealed(stream, n, old) for n in range(2)]
        strategy.append(items)

        def fail(_transaction: Any, _numbers: Sequence[int]) -> None:
            raise KeyClosedError("the test refuses this change")

        if why == "the fence is closed":
            place.close_fence([new])
        change = Change(
            page=place.pages(Selection(keys=(old,)), None, 10),
            envelopes=[_envelope(new, n) for n in range(2)],
            fences=[new],
            sources=fail if why == "a source is gone" else _all_live,
            cursor=fail if why == "the job was taken" else None,
        )
        with pytest.raises(KeyClosedError):
            place.swap(change)
        assert strategy.get_items(stream) == items


__all__ = ["RecordStrategyContract"]

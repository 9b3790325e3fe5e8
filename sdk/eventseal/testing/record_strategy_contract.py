"""
What every active record strategy must pass: subclass it, give it two handles on one database, and run pytest.

::

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
    SequencedItemConflictError,
    SerializationError,
)
from eventseal.items.item import SequencedItem

if TYPE_CHECKING:
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


class RecordStrategyContract:
    """
    The suite, for a strategy of :class:`eventseal.SequencedItem` in integer-numbered sequences.

    The database may be shared by tests: each uses sequences of its own.
    """

    @pytest.fixture
    def strategy(self) -> ActiveRecordStrategy:
        """The strategy under test. Override it."""
        raise NotImplementedError("override the fixture `strategy`")

    @pytest.fixture
    def other_strategy(self, strategy: ActiveRecordStrategy) -> ActiveRecordStrategy:
        """Another handle on the same table, with a connection of its own. Override it."""
        raise NotImplementedError("override the fixture `other_strategy`")

    def test_an_item_comes_back_as_it_was_appended(self, strategy: ActiveRecordStrategy) -> None:
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
        item = _item(uuid4(), 0)
        strategy.append(item)
        assert other_strategy.get_item(item.sequence_id, eq=0) == item

    def test_a_batch_under_several_keys_and_none_is_written_whole(
        self, strategy: ActiveRecordStrategy
    ) -> None:
        stream, keys = uuid4(), (uuid4(), uuid4(), None)
        batch = [_item(stream, n, data=b"%d" % n, key_id=keys[n % 3]) for n in range(30)]
        strategy.append(batch)
        assert strategy.get_items(stream) == batch

    def test_a_position_that_is_taken_is_a_conflict_and_nothing_of_the_batch_is_written(
        self, strategy: ActiveRecordStrategy
    ) -> None:
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
        """Two equal commands must not both succeed."""
        item = _item(uuid4(), 0, key_id=uuid4())
        strategy.append(item)
        with pytest.raises(SequencedItemConflictError):
            strategy.append(item)

    @pytest.mark.parametrize("position", [0.5, 1.0, True], ids=repr)
    def test_a_position_that_a_database_would_round_is_refused_and_nothing_is_written(
        self, strategy: ActiveRecordStrategy, position: Any
    ) -> None:
        stream = uuid4()
        with pytest.raises(SerializationError):
            strategy.append([_item(stream, 0), _item(stream, position)])
        assert strategy.get_items(stream) == []

    def test_a_missing_item_is_a_lookup_error(self, strategy: ActiveRecordStrategy) -> None:
        with pytest.raises(ItemNotFoundError):
            strategy.get_item(uuid4(), eq=0)

    @pytest.mark.parametrize(("bounds", "positions"), BOUNDS, ids=str)
    def test_items_are_read_within_their_bounds_and_in_their_order(
        self, strategy: ActiveRecordStrategy, bounds: dict[str, Any], positions: list[int]
    ) -> None:
        stream = uuid4()
        strategy.append([_item(uuid4(), 0), *(_item(stream, n) for n in range(5))])
        assert [item.position for item in strategy.get_items(stream, **bounds)] == positions

    def test_a_negative_limit_is_refused(self, strategy: ActiveRecordStrategy) -> None:
        """SQLite would read all items, and PostgreSQL refuse."""
        with pytest.raises(ConfigurationError):
            strategy.get_items(uuid4(), limit=-1)

    @pytest.mark.parametrize("page_size", [1, 2, 3, 100])
    def test_all_items_come_once_and_in_order_within_a_sequence(
        self, strategy: ActiveRecordStrategy, page_size: int
    ) -> None:
        streams = {uuid4(): [], uuid4(): [], uuid4(): []}  # type: dict[UUID, list[int]]
        strategy.append([_item(stream, n) for n in range(3) for stream in streams])
        for item in strategy.all_items(page_size=page_size):
            if item.sequence_id in streams:
                streams[item.sequence_id].append(item.position)
        assert list(streams.values()) == [[0, 1, 2]] * 3

    def test_one_of_several_writers_wins_each_position(
        self, strategy: ActiveRecordStrategy, other_strategy: ActiveRecordStrategy
    ) -> None:
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


__all__ = ["RecordStrategyContract"]

"""Databases for event stores, and a strategy in memory that fails on command."""

from bisect import insort

import pytest

from eventseal.cipher import AESCipher
from eventseal.errors import ItemNotFoundError, SequencedItemConflictError
from eventseal.eventstore import EventStore
from eventseal.items import SequencedItem, SequencedItemMapper
from eventseal.storage import (
    IntegerSequencedItemRecord,
    SnapshotRecord,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyDatastore,
    SQLAlchemySettings,
    TimestampSequencedItemRecord,
)

RECORDS = (IntegerSequencedItemRecord, TimestampSequencedItemRecord, SnapshotRecord)


class InMemoryStrategy:
    """Items in a list; what stands in ``faults`` is raised by the next appends."""

    sequenced_item_class = SequencedItem
    collection = "items"

    def __init__(self):
        self.items = []
        self.faults = []
        self.reads = []

    def append(self, items):
        if self.faults:
            raise self.faults.pop(0)
        taken = {item[:2] for item in self.items}
        if any(item[:2] in taken for item in items):
            raise SequencedItemConflictError("taken")
        for item in items:
            insort(self.items, item, key=lambda item: item[:2])

    def get_item(self, sequence_id, eq):
        for item in self.items:
            if item[:2] == (sequence_id, eq):
                return item
        raise ItemNotFoundError("none")

    def get_items(
        self,
        sequence_id,
        gt=None,
        gte=None,
        lt=None,
        lte=None,
        limit=None,
        query_ascending=True,
        results_ascending=True,
    ):
        self.reads.append(limit)
        found = [
            item
            for item in self.items
            if item.sequence_id == sequence_id
            and (gt is None or item.position > gt)
            and (gte is None or item.position >= gte)
            and (lt is None or item.position < lt)
            and (lte is None or item.position <= lte)
        ]
        found = (found if query_ascending else found[::-1])[:limit]
        return found if query_ascending == results_ascending else found[::-1]

    def all_items(self, *, page_size=1000):
        yield from list(self.items)


@pytest.fixture
def memory():
    return InMemoryStrategy()


@pytest.fixture
def datastore(tmp_path):
    datastore = SQLAlchemyDatastore(
        settings=SQLAlchemySettings(uri=f"sqlite:///{tmp_path / 'events.sqlite'}"), tables=RECORDS
    )
    datastore.setup_connection()
    datastore.setup_tables()
    yield datastore
    datastore.close()


@pytest.fixture
def strategy(datastore):
    """Makes the strategy of a record class."""

    def make(record_class=IntegerSequencedItemRecord, **options):
        return SQLAlchemyActiveRecordStrategy(record_class, datastore.session, **options)

    return make


@pytest.fixture
def cipher():
    return AESCipher(bytes(range(32)))


@pytest.fixture
def store(strategy, cipher):
    return EventStore(strategy(), SequencedItemMapper(cipher=cipher))

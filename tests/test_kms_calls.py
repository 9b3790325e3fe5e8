"""What the bill depends on: how often a KMS is called, end to end."""

from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from eventseal import (
    AESCipher,
    Keyring,
    SequencedItemMapper,
    SQLAlchemyActiveRecordStrategy,
    SQLAlchemyDatastore,
    SQLAlchemyKeyStore,
    SQLAlchemySettings,
)
from eventseal.items import register_topic
from eventseal.storage import IntegerSequencedItemRecord
from eventseal.testing import FakeKms

APPENDS = 100_000
PAGE = 500


@dataclass(frozen=True, slots=True)
class Counted:
    originator_id: UUID
    originator_version: int


register_topic("tests:Counted", Counted)


class Process:
    """What one process has: its own connections, its own keyring, nothing in memory."""

    def __init__(self, url, kms):
        self.datastore = SQLAlchemyDatastore(
            SQLAlchemySettings(uri=url), tables=(IntegerSequencedItemRecord,)
        )
        self.datastore.setup_tables()
        self.keyring = Keyring(kms=kms, key_store=SQLAlchemyKeyStore(self.datastore))
        self.mapper = SequencedItemMapper(cipher=AESCipher(self.keyring))
        self.strategy = SQLAlchemyActiveRecordStrategy(
            IntegerSequencedItemRecord, session=self.datastore.session
        )

    def close(self):
        self.keyring.close()
        self.datastore.close()


@pytest.fixture
def start(tmp_path):
    processes = []

    def make(kms):
        processes.append(Process(f"sqlite:///{tmp_path}/store.sqlite", kms))
        return processes[-1]

    yield make
    for process in processes:
        process.close()


@pytest.mark.slow
def test_appends_on_a_warmed_store_make_two_calls_and_so_does_a_replay(start):
    """A store key is unwrapped and a data key made, then both are unwrapped, however many items there are."""
    kms, stream = FakeKms(), uuid4()
    start(kms).keyring.prepare([])  # as `eventseal init` does: the store has its store key

    warmed = len(kms.calls)
    writer = start(kms)
    for first in range(0, APPENDS, PAGE):
        events = [Counted(stream, position) for position in range(first, first + PAGE)]
        writer.strategy.append(writer.mapper.to_sequenced_items(events))
    assert [call.operation for call in kms.calls[warmed:]] == ["unwrap", "generate_data_key"]
    assert writer.keyring.counters.kms_calls == 2

    written = len(kms.calls)
    reader = start(kms)
    replayed = 0
    for first in range(0, APPENDS, PAGE):
        items = reader.strategy.get_items(stream, gte=first, limit=PAGE)
        replayed += len(reader.mapper.from_sequenced_items(items))
    assert replayed == APPENDS
    assert [call.operation for call in kms.calls[written:]] == ["unwrap", "unwrap"]
    assert reader.keyring.counters.kms_calls == 2

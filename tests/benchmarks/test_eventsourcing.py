"""The real log through the eventsourcing library: our mapper beside its own ciphers and compressor."""

from __future__ import annotations

import os
from base64 import b64encode
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest
from eventsourcing.application import Application
from eventsourcing.compressor import ZlibCompressor
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import EventStore, Mapper
from eventsourcing.popo import POPOAggregateRecorder
from eventsourcing.sqlite import SQLiteAggregateRecorder, SQLiteDatastore
from eventsourcing.utils import Environment, resolve_topic

from eventseal import AESCipher, Keyring, SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.cipher import EventZstd
from eventseal.integrations.eventsourcing import EncryptingMapper
from eventseal.integrations.eventsourcing.event_store import SealedEventStore
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

ITS_CIPHERS = {
    "its AESCipher + zlib": "eventsourcing.cipher:AESCipher",
    "its cryptography + zlib": "eventsourcing.cryptography:AESCipher",
}
IN_PLAIN = "in plain"


class Progressed(Aggregate.Event):
    """Somebody, or the bank's system, did something about a loan application."""

    activity: str
    transition: str
    resource: str
    occurred_at: datetime
    amount_requested: int
    registered_at: datetime


@pytest.fixture(scope="module")
def streams(events):
    """The log's events as the library has them, by loan application."""
    return [
        [
            Progressed(
                originator_id=loan,
                originator_version=event.place.position + 1,
                timestamp=datetime.fromisoformat(event.attributes["occurred_at"]),
                **{
                    name: datetime.fromisoformat(value) if name.endswith("_at") else value
                    for name, value in event.attributes.items()
                },
            )
            for event in found
        ]
        for loan, found in groupby(events, key=lambda event: event.place.sequence_id)
    ]


@pytest.fixture(scope="module")
def mappers():
    """One for each contender, with the transcoder that applications have."""
    datastore = SQLAlchemyDatastore(SQLAlchemySettings())
    datastore.setup_tables()
    keyring = Keyring(FakeKms(), SQLAlchemyKeyStore(datastore), application="loans")

    class Seal:
        cipher = AESCipher(keyring, compression=EventZstd())  # as EventSeal.from_settings() has it

    Seal.keyring, Seal.datastore = keyring, datastore
    transcoder = Application().construct_transcoder()
    key = Environment(env={"CIPHER_KEY": b64encode(os.urandom(32)).decode()})
    yield {
        "EventSeal": EncryptingMapper.using(Seal)(transcoder),
        **{
            name: Mapper(transcoder, ZlibCompressor(), resolve_topic(topic)(key))
            for name, topic in ITS_CIPHERS.items()
        },
        IN_PLAIN: Mapper(transcoder),
    }
    keyring.close()
    datastore.close()


def in_memory():
    return POPOAggregateRecorder()


def on_sqlite():
    recorder = SQLiteAggregateRecorder(SQLiteDatastore(":memory:"))
    recorder.create_table()
    return recorder


@pytest.fixture(params=[in_memory, on_sqlite], ids=["no database", "SQLite"])
def new_recorder(request) -> Callable[[], Any]:
    return request.param


@pytest.fixture(params=[False, True], ids=["one by one", "in pages"])
def new_store(request) -> Callable[..., Any]:
    """As the library's module for a database makes it, or as ours does."""

    def make(mapper, recorder):
        if request.param and isinstance(mapper, EncryptingMapper):
            return SealedEventStore(mapper, recorder, collection="items")
        return EventStore(mapper, recorder)

    return make


def appended(store, streams):
    for stream in streams:
        store.put(stream)
    return store


def replayed(store, streams):
    return [list(store.get(stream[0].originator_id)) for stream in streams]


def count_of(streams):
    return sum(map(len, streams))


def titled(request, what):
    ways = request.node.callspec.id.split("-")
    return f"{what}, {ways[1]}, {ways[0]}"


def test_append(streams, mappers, new_recorder, new_store, side_by_side, request):
    contenders = {
        name: lambda mapper=mapper: appended(new_store(mapper, new_recorder()), streams)
        for name, mapper in mappers.items()
    }
    side_by_side(titled(request, "append"), contenders, count_of(streams))


def test_replay(streams, mappers, new_recorder, new_store, side_by_side, request):
    stores = {name: appended(new_store(mapper, new_recorder()), streams) for name, mapper in mappers.items()}
    contenders = {name: lambda store=store: replayed(store, streams) for name, store in stores.items()}
    side_by_side(titled(request, "replay"), contenders, count_of(streams))
    assert all(replayed(store, streams) == streams for store in stores.values())


def test_bytes(streams, mappers, report_size, benchmark):
    def bytes_of(mapper):
        states = [mapper.to_stored_event(event).state for stream in streams for event in stream]
        return sum(map(len, states)) / count_of(streams)

    sizes = {name: bytes_of(mapper) for name, mapper in mappers.items()}
    benchmark.pedantic(lambda: bytes_of(mappers["EventSeal"]), rounds=1)
    for name, size in sizes.items():
        report_size(f"a state, {name}", size)
    assert sizes["EventSeal"] < min(sizes[name] for name in ITS_CIPHERS)

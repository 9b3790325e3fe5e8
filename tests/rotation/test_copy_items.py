"""Copying: tables as releases 1 to 7 made them, on both databases, into tables of the store's own."""

from __future__ import annotations

import base64
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, text
from tests.fixtures.old_formats import OLD_KEY, cbc, gcm_text

from eventseal.cipher import ItemContext
from eventseal.errors import ConfigurationError, KeyClosedError, SequencedItemConflictError
from eventseal.items import SequencedItem, register_alias
from eventseal.rotation import copy_items, verify
from eventseal.storage import SQLAlchemyActiveRecordStrategy, SQLAlchemySettings, TimestampSequencedItemRecord

ITEMS, TIMES = "integer_sequenced_items", "timestamp_sequenced_items"
FORMATS = ["eventsourcing-cbc key=env:OLD", "eventsourcing-gcm-base64 key=env:OLD", "plain-json"]
TOPIC = "old.shop#Bought"


class Bought:
    pass


register_alias(TOPIC, Bought)


class Source:
    """A database that an older release of the library wrote, beside the store."""

    def __init__(self, url: str) -> None:
        self.settings = SQLAlchemySettings(url)
        self.on_sqlite = url.startswith("sqlite")
        self._engine = create_engine(self.settings.url)
        id_type, number = ("BINARY(16)", "BIGINT") if self.on_sqlite else ("UUID", "BIGINT")
        self.execute(
            f"CREATE TABLE old_items (sequence_id {id_type}, position {number}, topic VARCHAR(255),"
            " data TEXT, PRIMARY KEY (sequence_id, position))"
        )
        self.execute(
            f"CREATE TABLE old_times (sequence_id {id_type}, position DECIMAL(24, 6), topic TEXT, data TEXT)"
        )
        self.execute(
            f"CREATE TABLE stored_events (application_name VARCHAR(32), originator_id {id_type},"
            " originator_version BIGINT, event_type TEXT, state TEXT)"
        )

    def execute(self, sql: str, **parameters) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(sql), parameters)

    def insert(self, table: str, stream: UUID, position, data: bytes, **more) -> None:
        stored = stream.bytes if self.on_sqlite else stream
        values = {"s": stored, "p": position, "t": TOPIC, "d": data.decode(), **more}
        columns = ", ".join(f":{name}" for name in (*more, "s", "p", "t", "d"))
        self.execute(f"INSERT INTO {table} VALUES ({columns})", **values)

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture
def source(request, store_url, tmp_path):
    if store_url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path / 'old.sqlite'}"
    else:
        url = request.getfixturevalue("new_postgres_database")()
    found = Source(url)
    yield found
    found.close()


@pytest.fixture
def shop(open_shop, store_url, monkeypatch):
    monkeypatch.setenv("OLD", base64.b64encode(OLD_KEY).decode())
    return open_shop(store_url, old_formats=FORMATS)


def plaintexts(shop, stream, record=None):
    strategy = shop.strategy() if record is None else shop.strategy(record)
    items = strategy.get_items(stream)
    return [shop.seal.cipher.decrypt(i.data, ItemContext(*i[:3])) for i in items]


def test_integers_and_texts_are_copied_whatever_they_were_encrypted_with(shop, source):
    streams = [uuid4() for _ in range(3)]
    for stream, write in zip(streams, (cbc, gcm_text, lambda data: data), strict=True):
        for number in range(7):
            source.insert("old_items", stream, number, write(b'{"n":%d}' % number))
    copy = {"source": source.settings, "table": "old_items", "into": ITEMS}
    told = []
    result = copy_items(shop.seal, **copy, batch=5, progress=told.append)
    assert (result.done, result.failed, result.complete) == (21, 0, True)
    assert told[0].left == 16
    for stream in streams:
        assert plaintexts(shop, stream) == [b'{"n":%d}' % number for number in range(7)]
    source.insert("old_items", streams[0], 7, b'{"n":7}')  # the old application goes on meanwhile
    again = copy_items(shop.seal, **copy, batch=5)
    assert (again.done, again.by_table[ITEMS]["there"]) == (1, 21)
    assert verify(shop.seal).done == 22


def test_times_are_copied_to_the_microsecond(shop, source):
    stream = uuid4()
    times = ["1511443200.000001", "1511443200.123456", "1511443201.999999"]
    for each in times:
        source.insert("old_times", stream, each, cbc(b'{"n":1}'))
    into = {"source": source.settings, "table": "old_times", "into": TIMES}
    assert copy_items(shop.seal, **into, batch=2).done == 3
    assert copy_items(shop.seal, **into).done == 0
    strategy = SQLAlchemyActiveRecordStrategy(TimestampSequencedItemRecord, shop.seal.datastore.session)
    assert [item.position for item in strategy.get_items(stream)] == [Decimal(each) for each in times]
    with pytest.raises(ConfigurationError, match=r"fits integer_sequenced_items: .* not a whole number"):
        copy_items(shop.seal, source=source.settings, table="old_times", into=ITEMS)


def test_applications_that_share_a_table_are_told_apart(shop, source):
    stream = uuid4()
    for number, name in enumerate(["orders", "billing", "orders"]):
        source.insert("stored_events", stream, number, gcm_text(b'{"n":1}'), a=name)
    copy = {"source": source.settings, "table": "stored_events", "into": ITEMS}
    with pytest.raises(ConfigurationError, match="several values of application_name"):
        copy_items(shop.seal, **copy)
    assert copy_items(shop.seal, **copy, only={"application_name": "orders"}).done == 2


def test_columns_with_other_names_are_said(shop, source):
    source.execute("CREATE TABLE odd (stream TEXT, number BIGINT, topic TEXT, body TEXT)")
    source.execute("INSERT INTO odd VALUES (:s, 0, :t, '{}')", s=str(UUID(int=5)), t=TOPIC)
    copy = {"source": source.settings, "table": "odd", "into": ITEMS}
    with pytest.raises(ConfigurationError, match="no column sequence_id or originator_id") as refused:
        copy_items(shop.seal, **copy)
    assert "stream, number, topic, body" in refused.value.remedy
    named = {"sequence_id": "stream", "position": "number", "data": "body"}
    assert copy_items(shop.seal, **copy, columns=named).done == 1
    assert plaintexts(shop, UUID(int=5)) == [b"{}"]


def test_another_copier_and_a_closed_key_cost_another_look(shop, source, monkeypatch):
    stream = uuid4()
    for number in range(4):
        source.insert("old_items", stream, number, b'{"n":1}')
    real, calls = SQLAlchemyActiveRecordStrategy.append, []

    def append(self, items):
        calls.append(len(items))
        if len(calls) == 1:
            raise KeyClosedError("closed", key_ids=())
        if len(calls) == 2:
            place = ItemContext(stream, 2, TOPIC)
            data = shop.seal.cipher.encrypt(b'{"n":1}', place)
            key = shop.seal.keyring.sealing_keys({"application": 0})["application"]
            real(self, [SequencedItem(stream, 2, TOPIC, data, key.key_id)])
            raise SequencedItemConflictError("taken")
        return real(self, items)

    monkeypatch.setattr(SQLAlchemyActiveRecordStrategy, "append", append)
    result = copy_items(shop.seal, source=source.settings, table="old_items", into=ITEMS)
    assert (result.done, result.by_table[ITEMS]["there"]) == (3, 1)
    assert calls == [4, 4, 3]


@pytest.mark.parametrize("batch", [0, 5001])
def test_a_batch_that_cannot_be_is_refused(shop, source, batch):
    with pytest.raises(ConfigurationError, match="batch"):
        copy_items(shop.seal, source=source.settings, table="old_items", into=ITEMS, batch=batch)

"""Pages of key ranges and compare-and-swap, for every kind of id and position, on both databases."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from sqlalchemy import LargeBinary, UniqueConstraint, Uuid, event, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventseal.items.sealed_places import Selection
from eventseal.storage import (
    BinaryUUID,
    ExactDecimal,
    ExactInteger,
    ExactText,
    SQLAlchemyDatastore,
    SQLAlchemySettings,
)
from eventseal.storage.items.columns import sealed_columns
from eventseal.storage.items.places import item_swaps
from eventseal.storage.items.rows import range_bounds
from eventseal.storage.items.swaps import place_from_json, place_to_json
from eventseal.storage.items.tables import SealedTable

OLD, NEW, OTHER = UUID(int=1), UUID(int=2), UUID(int=3)


class Base(DeclarativeBase):
    pass


def record_class(name, id_type, position_type, key_type=BinaryUUID):
    """Make a table whose columns have names of their own, one of them with a capital and a blank."""
    attributes = {
        "__tablename__": name,
        "number": mapped_column(primary_key=True),
        "stream": mapped_column("the Stream", id_type(), nullable=False),
        "place": mapped_column(position_type(), nullable=False),
        "kind": mapped_column(ExactText()),
        "body": mapped_column(LargeBinary()),
        "key_id": mapped_column(key_type(), index=True, nullable=True),
        "__table_args__": (UniqueConstraint("the Stream", "place"),),
        "__annotations__": {"number": Mapped[int]},
    }
    return type(name.title(), (Base,), attributes)


KINDS = {
    "uuid": (BinaryUUID, ExactInteger, lambda n: (UUID(int=n << 64), n)),
    "generic-uuid": (Uuid, ExactInteger, lambda n: (UUID(int=n << 64), -n)),
    "text": (ExactText, ExactInteger, lambda n: (f"ström-{n:04}", n)),
    "integer": (ExactInteger, ExactInteger, lambda n: (n - 40, n)),
    "decimal": (BinaryUUID, ExactDecimal, lambda n: (UUID(int=n // 7), Decimal(n) / 8)),
}
RECORDS = {
    name: record_class(
        f"items_{name.replace('-', '_')}", id_type, position_type, Uuid if "gen" in name else BinaryUUID
    )
    for name, (id_type, position_type, _) in KINDS.items()
}


def sealed(key_id, content=b"", size=80):
    return bytes((1, 3, 0)) + key_id.bytes + content.ljust(size - 32, b".") + uuid4().bytes * 2


class Table:
    """A filled table, and its swaps."""

    def __init__(self, datastore, record, place_of):
        self.engine = datastore.engine
        self.record = record
        self.place_of = place_of
        self.table = SealedTable.of(sealed_columns(record), None)
        self.swaps = item_swaps(self.engine, self.table)

    def fill(self, count, key_id=OLD):
        rows = []
        for n in range(count):
            stream, place = self.place_of(n)
            rows.append(self.row(stream, place, f"k{n}", key_id))
        with self.engine.begin() as connection:
            connection.execute(insert(self.record), rows)

    @staticmethod
    def row(stream, place, kind, key_id):
        body = sealed(key_id)
        return {"the Stream": stream, "place": place, "kind": kind, "body": body, "key_id": key_id}

    def page(self, selection=None, *, after=None, upto=None, limit=1000, written=False):
        selection = selection or Selection(keys=(OLD,))
        with self.engine.connect() as connection:
            return self.swaps.page(
                connection, selection, after=after, upto=upto, limit=limit, written=written
            )

    def places(self, selection=None, *, after=None, upto=None, limit=7):
        found = []
        while page := self.page(selection, after=after, upto=upto, limit=limit):
            found += zip(page.sequence_ids, page.positions, strict=True)
            after = page.last_place
        return found

    def swap(self, page, envelopes):
        with self.engine.begin() as connection:
            return self.swaps.swap(connection, self.swaps.prepare(page, envelopes))

    def stored(self):
        with self.engine.connect() as connection:
            record = self.record
            query = select(record.kind, record.body, record.key_id).order_by(record.number)
            return [tuple(row) for row in connection.execute(query)]


@pytest.fixture(params=list(KINDS))
def table(request, store_url):
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(store_url), [RECORDS[request.param]])
    datastore.setup_tables()
    yield Table(datastore, RECORDS[request.param], KINDS[request.param][2])
    datastore.close()


def test_pages_give_each_row_once_and_as_it_is_stored(table):
    table.fill(50)
    places = table.places()
    assert len(places) == len(set(places)) == 50
    assert set(places) == {table.place_of(n) for n in range(50)}
    page = table.page()
    assert page.key_id(0) == OLD
    assert all(isinstance(envelope, bytes) for envelope in page.envelopes)


def test_no_page_sorts_the_table_whatever_the_statistics_say(table):
    table.fill(500)
    if table.engine.dialect.name == "postgresql":  # SQLite without statistics takes the index of keys
        with table.engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE")
    page = table.page()
    table.swap(page, [sealed(NEW) for _ in page.envelopes])  # a key that the statistics do not know
    asked = []

    def note(_connection, _cursor, statement, parameters, *_):
        asked.append((statement, parameters))

    with table.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", note)
        rows = table.swaps.page(connection, Selection(keys=(NEW,)), after=page.last_place, upto=None, limit=9)
        event.remove(connection, "before_cursor_execute", note)
        statement, parameters = asked[-1]
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        plan = "\n".join(str(row) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters))
    assert len(rows) == 0
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan


def test_a_few_rows_are_found_by_their_key(table):
    table.fill(30)
    assert table.places(Selection(keys=(OLD,), few=True)) == table.places()


def test_ranges_cover_the_table_without_overlap(table):
    table.fill(300)
    with table.engine.connect() as connection:
        bounds = range_bounds(connection, table.table, 4)
    assert len(bounds) == 3
    ends = [None, *[place_from_json(place_to_json(bound)) for bound in bounds], None]
    ranges = [table.places(after=after, upto=upto) for after, upto in pairwise(ends)]
    assert [place for found in ranges for place in found] == table.places()
    assert min(map(len, ranges)) > 60


def test_small_and_empty_tables_are_one_range(table):
    with table.engine.connect() as connection:
        assert range_bounds(connection, table.table, 4) == []
    table.fill(3)
    with table.engine.connect() as connection:
        assert range_bounds(connection, table.table, 4) == []
        assert range_bounds(connection, table.table, 1) == []


def test_rows_are_swapped_to_the_key_that_their_envelope_names(table):
    table.fill(6)
    page = table.page()
    envelopes = [sealed(NEW if n % 2 else OTHER) for n in range(6)]
    assert table.swap(page, envelopes) == list(range(6))
    by_place = dict(zip(page.topics, envelopes, strict=True))
    for topic, body, key_id in table.stored():
        assert body == by_place[topic]
        assert key_id.bytes == body[3:19]


def test_all_rows_go_to_one_key(table):
    table.fill(6)
    page = table.page()
    assert table.swap(page, [sealed(NEW) for _ in range(6)]) == list(range(6))
    assert {key_id for _, _, key_id in table.stored()} == {NEW}


def test_a_row_that_changed_or_went_is_not_swapped(table):
    table.fill(6)
    page = table.page()
    newer = sealed(OLD, b"newer")
    with table.engine.begin() as connection:
        record = table.record
        changed, gone = page.topics[1], page.topics[4]
        connection.execute(record.__table__.update().where(record.kind == changed).values(body=newer))
        connection.execute(record.__table__.delete().where(record.kind == gone))
    assert table.swap(page, [sealed(NEW) for _ in range(6)]) == [0, 2, 3, 5]
    stored = {topic: (body, key_id) for topic, body, key_id in table.stored()}
    assert stored[changed] == (newer, OLD)
    assert gone not in stored


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("table", ["uuid"], indirect=True)
def test_another_row_in_the_place_of_one_that_went_is_not_swapped(table):
    table.fill(6)
    page = table.page()
    with table.engine.begin() as connection:
        # After TRUNCATE a table is filled from its first place. VACUUM frees a place only if nobody else
        # needs the row or uses its page at that moment: autovacuum and the checkpointer do, now and then.
        connection.exec_driver_sql(f"TRUNCATE {table.record.__tablename__}")
    table.fill(6, OTHER)
    assert table.page(Selection(keys=(OTHER,))).locators == page.locators
    assert table.swap(page, [sealed(NEW) for _ in range(6)]) == []
    assert {key_id for _, _, key_id in table.stored()} == {OTHER}


def test_a_page_of_some_rows_is_swapped_alone(table):
    table.fill(6)
    page = table.page().only([1, 3])
    assert table.swap(page, [sealed(NEW), sealed(NEW)]) == [0, 1]
    assert sum(key_id == NEW for _, _, key_id in table.stored()) == 2


def test_a_selection_takes_other_beginnings_of_fitting_keys_too(table):
    table.fill(4, OLD)
    page = table.page()
    zlib = bytes((1, 3, 1)) + sealed(NEW)[3:]
    table.swap(page, [sealed(NEW), zlib, sealed(NEW), sealed(OTHER)])
    heads = (bytes((1, 3, 0)), bytes((1, 3, 2)))
    assert table.places(Selection(keys=(), fitting=(NEW,), heads=heads)) == [page.only([1]).last_place]
    found = table.places(Selection(keys=(OTHER,), fitting=(NEW,), heads=heads))
    assert found == [page.only([1]).last_place, page.only([3]).last_place]
    assert len(table.places(Selection(keys=None))) == 4


def test_rows_tell_in_which_order_they_were_written_where_the_database_knows_it(table):
    table.fill(3)
    first = table.page(written=True).written
    if table.engine.dialect.name == "sqlite":  # a row's number proves nothing there
        assert first == ()
        return
    with table.engine.begin() as connection:
        stream, place = table.place_of(10)
        connection.execute(
            insert(table.record),
            [table.row(stream, place, "late", OLD)],
        )
    page = table.page(written=True)
    late = page.written[list(page.topics).index("late")]
    assert late > max(first)


@pytest.mark.parametrize(
    "place",
    [(UUID(int=9), 4), ("tëxt", -(2**63)), (2**63 - 1, Decimal("1.500000")), (b"\x00edited", 0.1)],
    ids=["uuid", "text", "decimal", "edited"],
)
def test_a_place_survives_json(place):
    found = place_from_json(place_to_json(place))
    assert found == place
    assert list(map(type, found)) == list(map(type, place))

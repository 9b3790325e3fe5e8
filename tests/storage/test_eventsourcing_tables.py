"""The eventsourcing library's tables as the registry has them: found, checked, fenced, indexed."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import StoredEvent
from sqlalchemy import event, text
from tests.fixtures.eventsourcing_store import EVENTS, SNAPSHOTS, TOPIC, LibraryStore

from eventseal.errors import ConfigurationError
from eventseal.items.sealed_places import Selection
from eventseal.storage.items.key_counts import count_by_key
from eventseal.storage.items.key_id_indexes import has_key_id_indexes, index_name, make_key_id_indexes
from eventseal.storage.items.places import item_swaps
from eventseal.storage.items.registry import read_registry, set_old_formats
from eventseal.storage.items.rows import range_bounds
from eventseal.storage.items.table_queries import key_id_in_header
from eventseal.storage.unregistered import unregistered_eventsourcing_tables
from eventseal.suites.envelope import CompressionId, SuiteId
from eventseal.testing import FakeKms

if TYPE_CHECKING:
    from eventseal.storage.items.tables import SealedTable


@pytest.fixture
def open_library():
    opened = []

    def open_one(url, *, made=True, **options):
        opened.append(LibraryStore(url, FakeKms(), **options))
        return opened[-1].make() if made else opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def library(open_library, store_url):
    return open_library(store_url)


def tables(library) -> dict[str, SealedTable]:
    with library.seal.datastore.key_engine.connect() as connection:
        return {table.table: table for table in read_registry(connection).complete() if not table.has_key_ids}


def test_the_tables_are_registered_as_what_they_hold(library):
    found = tables(library)
    assert {name: table.collection for name, table in found.items()} == {
        EVENTS: "items",
        SNAPSHOTS: "snapshots",
    }
    assert found[EVENTS].application == "shop"
    assert {role: column.name for role, column in found[EVENTS].columns.items()} == {
        "sequence_id": "originator_id",
        "position": "originator_version",
        "topic": "topic",
        "data": "state",
    }


def test_setting_up_again_changes_nothing(library):
    def made():
        catalog = (
            "SELECT tgname, xmin::text FROM pg_trigger UNION ALL"
            " SELECT indexrelid::text, xmin::text FROM pg_index"
            if library.on_postgresql
            else "SELECT name, sql FROM sqlite_master"
        )
        return sorted(map(tuple, library.execute(catalog)))

    before = made()
    library.make_ours()
    assert made() == before


def test_a_table_that_is_not_there_yet_is_left_for_later(open_library, store_url):
    library = open_library(store_url, made=False)
    library.make_ours()
    assert tables(library) == {}
    library.make()
    assert set(tables(library)) == {EVENTS, SNAPSHOTS}


def test_setting_up_again_keeps_what_readers_accept(library):
    with library.seal.datastore.key_engine.begin() as connection:
        set_old_formats(connection, tables(library)[EVENTS], ["plaintext"])
    library.make_ours()
    found = tables(library)
    assert found[EVENTS].old_formats == ("plaintext",)
    assert found[SNAPSHOTS].old_formats == ()


@pytest.mark.slow
@pytest.mark.postgres
def test_tables_in_a_schema_of_their_own(open_library, postgres_url):
    library = open_library(postgres_url, schema="shop")
    library.append(2)
    (table,) = [table for name, table in tables(library).items() if name == f"shop.{EVENTS}"]
    with library.seal.datastore.engine.connect() as connection:
        assert count_by_key(connection, table) == {library.active_key(): 2}
        assert has_key_id_indexes(connection, table)
        known = read_registry(connection).complete()
        assert unregistered_eventsourcing_tables(connection, known) == []
        assert unregistered_eventsourcing_tables(connection, []) == [
            f"shop.{EVENTS}",
            f"shop.{SNAPSHOTS}",
        ]


# --- ids ---


def sequence_ids(library, *, limit=1000):
    """Read the ids of all rows, page by page."""
    engine, table = library.seal.datastore.engine, tables(library)[EVENTS]
    swaps, found, after = item_swaps(engine, table), [], None
    with engine.connect() as connection:
        every = Selection(keys=None, plain=True)
        while page := swaps.page(connection, every, after=after, upto=None, limit=limit):
            found += page.sequence_ids
            after = page.last_place
    return found


@pytest.mark.parametrize("id_type", ["uuid", "text"])
def test_ids_come_back_as_they_were_bound(open_library, store_url, id_type):
    library = open_library(store_url, id_type=id_type)
    ids = {library.append()[0].originator_id for _ in range(3)}
    found = sequence_ids(library)
    assert set(found) == ids
    assert {type(sequence_id) for sequence_id in found} == {UUID if id_type == "uuid" else str}


def test_a_text_id_of_32_digits_stays_text(open_library, store_url):
    library = open_library(store_url, id_type="text")
    originator_id = uuid4().hex
    library.events.insert_events(library.states(originator_id, [1]))
    assert sequence_ids(library) == [originator_id]


def test_on_sqlite_text_ids_are_not_taken_for_uuids(open_library, sqlite_url):
    library = open_library(sqlite_url, id_type="text")
    library.append()
    for told in (None, "uuid"):
        with library.open(originator_id_type=told) as other, pytest.raises(ConfigurationError) as refused:
            other.datastore.setup_tables(application="shop")
        assert 'originator_id_type = "text"' in refused.value.remedy


@pytest.mark.postgres
@pytest.mark.parametrize(("there", "told"), [("uuid", "text"), ("text", "uuid")])
def test_on_postgresql_the_column_says_the_type_of_ids(open_library, postgres_url, there, told):
    library = open_library(postgres_url, made=False, id_type=there)
    library.make_theirs()
    with (
        library.open(originator_id_type=told) as other,
        pytest.raises(ConfigurationError, match=f"is {there}, but originator_id_type is {told}"),
    ):
        other.datastore.setup_tables(application="shop")


def test_an_id_that_an_edit_put_there_hides_no_other(open_library, sqlite_url):
    library = open_library(sqlite_url)
    library.append(2)
    library.execute(f"UPDATE {EVENTS} SET originator_id = 'no uuid' WHERE originator_version = 1")
    found = sequence_ids(library)
    assert {type(sequence_id) for sequence_id in found} == {UUID, str}
    assert "no uuid" in found


@pytest.mark.postgres
def test_text_ids_are_compared_in_the_order_of_their_column(open_library, postgres_url):
    """A collation of ours beside the column's own order would skip rows between two pages."""
    library = open_library(postgres_url, id_type="text")
    for originator_id in ("B", "a", "a-b", "A", "ab", "\u00e4", "z"):
        library.events.insert_events(library.states(originator_id, [1]))
    engine, table = library.seal.datastore.engine, tables(library)[EVENTS]
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *words: statements.append(words[2]))
    found = sequence_ids(library, limit=2)
    assert len(found) == len(set(found)) == 7

    swaps, moved, after = item_swaps(engine, table), [], None
    with engine.connect() as connection:
        selection = Selection(keys=(library.active_key(),))
        while page := swaps.page(connection, selection, after=after, upto=None, limit=2):
            moved += page.sequence_ids
            after = page.last_place
        bounds = range_bounds(connection, table, 4)
    assert moved == found
    assert [place[0] for place in bounds] == [name for name in found if name in dict(bounds)]
    theirs = [statement for statement in statements if EVENTS in statement]
    assert len(theirs) > 8
    assert not [statement for statement in theirs if "COLLATE" in statement]


# --- what is no table of theirs ---


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (
            "originator_id TEXT, topic TEXT, state BYTEA, PRIMARY KEY (originator_id)",
            "no column originator_version",
        ),
        (
            (
                "originator_id TEXT, originator_version INTEGER, topic TEXT, state TEXT, "
                "PRIMARY KEY (originator_id, originator_version)"
            ),
            "its column state is",
        ),
        (
            "originator_id TEXT, originator_version INTEGER, topic TEXT, state BYTEA",
            "its primary key is absent",
        ),
        (
            (
                "id INTEGER PRIMARY KEY, name TEXT, originator_id TEXT, originator_version INTEGER, "
                "topic TEXT, state BYTEA, UNIQUE (name, originator_id, originator_version)"
            ),
            "its primary key is id",
        ),
    ],
    ids=["column", "type", "key", "several applications"],
)
def test_another_programs_table_is_refused_by_name(open_library, store_url, columns, why):
    library = open_library(store_url, made=False)
    binary = "BYTEA" if library.on_postgresql else "BLOB"
    library.execute(f"CREATE TABLE {EVENTS} ({columns.replace('BYTEA', binary)})")
    with pytest.raises(
        ConfigurationError, match=f"{EVENTS} is not a table that the eventsourcing library.*{why}"
    ):
        library.make_ours()


def test_places_may_be_unique_beside_another_primary_key(open_library, store_url):
    """As eventsourcing-sqlalchemy makes its tables."""
    library = open_library(store_url, made=False)
    library.execute(
        f"CREATE TABLE {EVENTS} (id INTEGER PRIMARY KEY, originator_id CHAR(32), originator_version INTEGER, "
        f"topic TEXT, state {'BYTEA' if library.on_postgresql else 'BLOB'})"
    )
    with pytest.raises(ConfigurationError, match="its primary key is id"):
        library.make_ours()
    library.execute(f"CREATE UNIQUE INDEX places ON {EVENTS} (originator_id, originator_version)")
    library.make_ours()
    assert set(tables(library)) == {EVENTS}


# --- the expression ---


def test_every_envelope_of_version_1_names_its_key_and_nothing_else_does(library):
    key_id = uuid4()
    heads = {bytes((1, suite, compression)) for suite in SuiteId for compression in range(16)}
    assert {compression for _, _, compression in heads} >= set(CompressionId)
    near = {b"\0\3\0", b"\2\3\0", b"\1\0\0", b"\1\4\0", b"\1\x10\0", b"\1\x12\0", b"\1\3\x10", b"\1\3\xff"}
    states = [*sorted(heads), *sorted(near)]
    library.events.insert_events(
        [StoredEvent(uuid4(), 1, TOPIC, head + key_id.bytes + bytes(40)) for head in states]
    )
    library.append_plain(state=bytes((1, 3, 0)) + key_id.bytes + bytes(39))
    with library.seal.datastore.engine.connect() as connection:
        counts = count_by_key(connection, tables(library)[EVENTS])
    assert counts == {key_id: len(heads), None: len(near) + 1}


def test_queries_by_key_use_the_index(library):
    library.append(3)
    engine, table = library.seal.datastore.engine, tables(library)[EVENTS]
    expression = key_id_in_header(engine, "state")
    with engine.connect() as connection:
        if library.on_postgresql:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        explain = "EXPLAIN" if library.on_postgresql else "EXPLAIN QUERY PLAN"
        value = f"'{uuid4()}'" if library.on_postgresql else "x'00'"
        plan = connection.exec_driver_sql(
            f"{explain} SELECT count(*) FROM {EVENTS} WHERE ({expression}) = {value}",
            execution_options={"no_parameters": True},
        )
        assert index_name(engine, table) in " ".join(str(row) for row in plan)


@pytest.mark.postgres
def test_an_index_that_was_left_half_made_is_made_anew(open_library, postgres_url):
    library = open_library(postgres_url)
    engine, table = library.seal.datastore.engine, tables(library)[EVENTS]
    name = index_name(engine, table)
    library.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass")
    with engine.connect() as connection:
        assert not has_key_id_indexes(connection, table)
    assert make_key_id_indexes(engine, table)
    with engine.connect() as connection:
        assert has_key_id_indexes(connection, table)
    assert not make_key_id_indexes(engine, table)

"""Retirement beside the eventsourcing library's recorders: nothing that they write is lost with its key."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from uuid import uuid4

import eventsourcing.persistence
import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from sqlalchemy.exc import DBAPIError
from tests.fixtures.eventsourcing_store import EVENTS, SECRET, TOPIC

from eventseal.errors import ConfigurationError, JobError, StoreUnavailableError
from eventseal.rotation import mark_compromised, reencrypt, retire, rotate_keys, verify
from eventseal.storage.database.faults import sqlstate
from eventseal.storage.items.fences import CLOSED, FENCE_CONSTRAINT, OPEN, fence_states, is_fence_refusal


@pytest.fixture
def library(open_library, store_url):
    return open_library(store_url)


@pytest.fixture
def pg_library(open_library, postgres_url):
    return open_library(postgres_url)


@contextmanager
def long_append(library, events):
    """A transaction of the library's own that has inserted, and commits when the block ends."""
    with library.library.transaction(commit=True) as cursor:
        library.insert_events(cursor, events)
        yield


def fences(library, *key_ids):
    with library.seal.datastore.engine.connect() as connection:
        return fence_states(connection, key_ids)


@pytest.mark.slow
def test_a_key_is_not_retired_while_a_transaction_that_wrote_under_it_is_open(library):
    impatient = "?timeout=0.2" if not library.on_postgresql else ""
    others = library.open(store_url=f"{library.settings['store_url']}{impatient}")
    library.append()
    old = library.active_key()
    events = library.states(uuid4(), [1, 2])
    rotate_keys(others)
    reencrypt(others)
    with long_append(library, events), pytest.raises(StoreUnavailableError):
        retire(others, keys=[old])
    with pytest.raises(JobError, match=f"it is needed by 2 items of {EVENTS}"):
        retire(others, keys=[old])
    reencrypt(others)
    assert retire(others, keys=[old]).done == 1
    assert library.read(events[0].originator_id) == [SECRET] * 2
    others.close()


@pytest.mark.slow
def test_a_late_writer_is_refused_and_its_retry_succeeds(library):
    library.append()
    old, originator_id = library.active_key(), uuid4()
    late = library.states(originator_id, [1, 2])
    with library.open() as others:
        rotate_keys(others)
        reencrypt(others)
        assert retire(others).done == 1
    with pytest.raises(eventsourcing.persistence.IntegrityError, match="is closed") as refused:
        library.events.insert_events(late)
    assert is_fence_refusal(refused.value)
    assert library.events.select_events(originator_id) == []
    assert fences(library, old) == {old: CLOSED}

    library.seal.keyring.refresh()
    library.events.insert_events(library.states(originator_id, [1, 2]))
    assert library.read(originator_id) == [SECRET] * 2
    assert verify(library.seal).failed == 0


def test_a_taken_position_is_no_refusal_by_a_fence(library):
    events = library.append()
    with pytest.raises(eventsourcing.persistence.IntegrityError) as conflict:
        library.events.insert_events(events)
    assert not is_fence_refusal(conflict.value)


@pytest.mark.postgres
def test_a_refusal_names_the_key_and_the_constraint(pg_library):
    library = pg_library
    events = library.append()
    key = library.active_key()
    library.execute("UPDATE eventseal_key_fences SET state = 'closed'")
    with pytest.raises(eventsourcing.persistence.IntegrityError) as refused:
        library.append()
    cause = refused.value.__cause__
    assert isinstance(cause, psycopg.IntegrityError)
    assert (cause.diag.constraint_name, cause.diag.table_name) == (FENCE_CONSTRAINT, EVENTS)
    assert str(key) in str(cause)
    assert len(library.events.select_events(events[0].originator_id)) == 1


@pytest.mark.postgres
def test_a_fence_that_nobody_made_is_made_and_held_by_the_trigger(pg_library):
    library = pg_library
    key = library.active_key()
    assert fences(library, key) == {}
    library.append(3)
    assert fences(library, key) == {key: OPEN}


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("had_fence", [True, False], ids=["fenced", "unfenced"])
def test_a_writer_with_an_older_snapshot_fails_rather_than_writing_under_a_retired_key(
    pg_library, isolation, had_fence
):
    library = pg_library
    if had_fence:
        library.append()
    old, (event,) = library.active_key(), library.states(uuid4(), [1])
    engine = library.seal.datastore.engine.execution_options(isolation_level=isolation)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1 FROM eventseal_key_fences")
        with library.open() as others:
            rotate_keys(others)
            reencrypt(others)
            assert retire(others, keys=[old]).done == 1
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql(
                f"INSERT INTO {EVENTS} VALUES (%s, 1, %s, %s)", (event.originator_id, TOPIC, event.state)
            )
        assert sqlstate(refused.value) == "40001"


@pytest.mark.slow
def test_a_state_is_not_changed_to_one_under_a_closed_key(library):
    (event,) = library.append()
    key = library.active_key()
    stale = event.state
    rotate_keys(library.seal)
    reencrypt(library.seal)
    retire(library.seal, keys=[key])
    with pytest.raises(Exception, match="is closed") as refused:
        library.execute(f"UPDATE {EVENTS} SET state = :stale", stale=stale)
    assert is_fence_refusal(refused.value)


def test_other_columns_change_also_of_items_whose_key_seals_no_more(library):
    library.append()
    mark_compromised(library.seal, [library.active_key()])
    assert library.execute(f"UPDATE {EVENTS} SET topic = 'shop:Order.Put'") == 1


@pytest.mark.parametrize(
    "state",
    [b'{"amount": 5}', b"", bytes(range(256)), bytes((1, 3, 0)) + b"short", None],
    ids=["json", "empty", "binary", "short", "null"],
)
def test_what_is_no_envelope_passes_and_takes_no_fence(library, state):
    library.append_plain(state=state)
    assert library.execute("SELECT count(*) FROM eventseal_key_fences")[0][0] == 0
    assert verify(library.seal).failed == 1


@pytest.mark.slow
@pytest.mark.parametrize("which", ["insert", "update"])
def test_no_key_is_retired_where_a_trigger_is_missing(library, which):
    library.append()
    rotate_keys(library.seal)
    reencrypt(library.seal)
    name = f"eventseal_fence_{which}_{EVENTS}"
    library.execute(f"DROP TRIGGER {name}" + (f" ON {EVENTS}" if library.on_postgresql else ""))
    with pytest.raises(ConfigurationError, match="has no trigger"):
        retire(library.seal)
    library.make_ours()
    assert retire(library.seal).done == 1


@pytest.mark.postgres
@pytest.mark.parametrize(
    "change",
    [
        f"ALTER TABLE {EVENTS} DISABLE TRIGGER eventseal_fence_insert_{EVENTS}",
        (
            f"CREATE OR REPLACE FUNCTION eventseal_fence_insert_{EVENTS}() RETURNS trigger "
            "LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
        ),
    ],
    ids=["disabled", "other"],
)
def test_a_trigger_that_does_something_else_is_put_right(pg_library, change):
    library = pg_library
    library.append()
    library.execute(change)
    with pytest.raises(ConfigurationError, match="has no trigger"):
        retire(library.seal)
    library.make_ours()
    library.execute("UPDATE eventseal_key_fences SET state = 'closed'")
    with pytest.raises(eventsourcing.persistence.IntegrityError, match="is closed"):
        library.append()


@pytest.mark.slow
@pytest.mark.postgres
def test_a_role_without_rights_on_the_fences_writes_through_them(pg_library):
    library = pg_library
    role = f"writer_{uuid4().hex}"
    library.execute(f"CREATE ROLE {role}")
    library.execute(f"GRANT SELECT, INSERT ON {EVENTS} TO {role}")
    library.execute(f"GRANT USAGE ON SEQUENCE {EVENTS}_notification_id_seq TO {role}")
    events = library.states(uuid4(), [1])

    def insert(connection):
        connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
        connection.exec_driver_sql("SET LOCAL search_path = pg_temp")
        connection.exec_driver_sql(
            f"INSERT INTO public.{EVENTS} VALUES (%s, 1, %s, %s)",
            (uuid4(), TOPIC, events[0].state),
        )

    with library.seal.datastore.engine.begin() as connection:
        insert(connection)
    key = library.active_key()
    assert fences(library, key) == {key: OPEN}
    library.execute("UPDATE eventseal_key_fences SET state = 'closed'")
    with pytest.raises(DBAPIError, match="is closed"), library.seal.datastore.engine.begin() as connection:
        insert(connection)


@pytest.mark.slow
@pytest.mark.postgres
def test_no_key_is_retired_while_events_by_tags_may_be_under_it(pg_library):
    library = pg_library
    library.execute("CREATE TABLE dcb_events (id bigserial, type text, data bytea, tags text[])")
    library.append()
    rotate_keys(library.seal)
    assert reencrypt(library.seal).done == 1
    with pytest.raises(ConfigurationError, match="dcb_events holds events by tags"):
        retire(library.seal)
    with library.open(unsealed_tables=["dcb_events"]) as told:
        assert retire(told).done == 1


@pytest.mark.slow
@pytest.mark.postgres
def test_the_triggers_wait_for_whoever_writes_without_them(open_library, postgres_url):
    library = open_library(postgres_url, made=False)
    library.make_theirs()
    with library.open(eventsourcing_tables=()) as plain:
        plain.datastore.setup_tables(application="shop")
    events = library.states(uuid4(), [1])
    with long_append(library, events), pytest.raises(StoreUnavailableError):
        library.make_ours()
    library.make_ours()
    rotate_keys(library.seal)
    assert reencrypt(library.seal).done == 1


@pytest.mark.slow
def test_nothing_is_lost_while_writers_append_and_keys_come_and_go(library):
    rounds, errors, written, done = 4, [], [], threading.Event()

    def append(seal, originator_id):
        try:
            library.events.insert_events(library.states(originator_id, [1, 2], seal=seal))
        except eventsourcing.persistence.IntegrityError as error:
            if not is_fence_refusal(error):
                raise
            seal.keyring.refresh()
            return False
        return True

    def write():
        try:
            with library.open() as seal:
                # SQLite has no queue: without a pause, one writer keeps out all others.
                while not done.wait(0.001):
                    originator_id = uuid4()
                    for _ in range(20):
                        if append(seal, originator_id):
                            written.append(originator_id)
                            break
        except Exception as error:  # noqa: BLE001 - told to the test below
            errors.append(error)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    retired = 0
    try:
        for _ in range(rounds):
            rotate_keys(library.seal)
            reencrypt(library.seal)
            retired += retire(library.seal).done
    finally:
        done.set()
        for writer in writers:
            writer.join(60)
    assert errors == []
    assert retired > 0
    checked = verify(library.seal)
    assert (checked.done, checked.failed) == (2 * len(written), 0)
    assert library.read(written[-1]) == [SECRET] * 2


@pytest.mark.slow
def test_an_envelope_of_a_later_release_is_fenced_and_counted(library):
    library.append()
    key = library.active_key()
    rotate_keys(library.seal)
    reencrypt(library.seal)
    later = bytes((1, 0x11, 15)) + key.bytes + bytes(40)
    library.events.insert_events([StoredEvent(uuid4(), 1, TOPIC, later)])
    with pytest.raises(JobError, match=f"1 item of {EVENTS}"):
        retire(library.seal, keys=[key])

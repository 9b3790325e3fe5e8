"""The verbs over the eventsourcing library's own tables, in place, on both databases."""

from __future__ import annotations

from uuid import uuid4

import eventsourcing.persistence
import pytest
from sqlalchemy import delete, insert, select, text
from tests.fixtures.eventsourcing_store import EVENTS, SECRET, SNAPSHOTS, TOPIC

from eventseal.cipher import ItemContext
from eventseal.erasure import after_restore, shred
from eventseal.errors import ConfigurationError, JobError, KeyDestroyedError
from eventseal.items.acceptance import AcceptedFormats
from eventseal.rotation import reencrypt, retire, rotate_keys, status, verify
from eventseal.rotation.did_you_mean import find_item
from eventseal.rotation.status.application_status import list_keys
from eventseal.storage.items.registry import read_registry, set_old_formats
from eventseal.storage.keys.tables import key_metadata

KEY_TABLES = key_metadata.sorted_tables


@pytest.fixture(params=["uuid", "text"])
def library(request, open_library, store_url):
    return open_library(store_url, id_type=request.param)


@pytest.mark.slow
def test_a_whole_rotation_of_their_tables(library):
    events = library.append(7)
    snapshot = library.take_snapshot()
    old = library.active_key()
    rotate_keys(library.seal)
    new = library.active_key()
    with pytest.raises(JobError, match="7 items of stored_events, 1 item of stored_snapshots"):
        retire(library.seal, keys=[old])

    moved = reencrypt(library.seal)
    assert (moved.done, moved.failed, moved.left) == (8, 0, 0)
    assert moved.by_key == {old: 8}
    assert retire(library.seal).by_key == {old: 0}

    checked = verify(library.seal)
    assert (checked.done, checked.failed, checked.by_key) == (8, 0, {new: 8})
    assert {t: c["done"] for t, c in checked.by_table.items() if c["done"]} == {EVENTS: 7, SNAPSHOTS: 1}
    assert library.read(events[0].originator_id) == [SECRET] * 7
    (found,) = library.snapshots.select_events(snapshot.originator_id)
    assert found.state[3:19] == new.bytes


def test_status_counts_their_items_by_the_state_of_their_keys(library):
    library.append(3)
    library.append_plain(2)
    rotate_keys(library.seal)
    library.append(1)
    found = status(library.seal.key_store, library.seal.datastore, "shop")
    assert found.items[EVENTS] == {"deactivated": 3, "active": 1, "plain": 2}
    assert [step.command for step in found.next_steps] == ["eventseal verify", "eventseal reencrypt"]


def test_keys_are_listed_with_their_items(library):
    library.append(3)
    library.append_plain(2)
    page = list_keys(library.seal.key_store, library.seal.datastore, "shop")
    items = {listed.record.key_id: listed.items for listed in page.keys}
    assert items[library.active_key()] == 3
    assert page.plain_items == 2


@pytest.mark.slow
def test_items_in_plain_are_left_alone_and_fail(library):
    library.append(1)
    (plain,) = library.append_plain(1)
    rotate_keys(library.seal)
    moved = reencrypt(library.seal)
    assert (moved.done, moved.failed, moved.by_table[EVENTS]["plain"]) == (1, 1, 0)
    (found,) = library.events.select_events(plain.originator_id)
    assert found.state == plain.state


# --- what begins like an envelope by chance ---


def by_chance():
    return bytes((1, 3, 0)) + uuid4().bytes + bytes(16 * 6)


@pytest.mark.slow
def test_what_names_a_key_that_there_never_was_fails_where_nothing_old_is_accepted(library):
    library.append_plain(state=by_chance())
    assert verify(library.seal).failed == 1
    moved = reencrypt(library.seal)
    assert (moved.done, moved.failed) == (0, 1)


@pytest.mark.slow
def test_what_begins_like_an_envelope_is_left_alone_while_older_formats_are_accepted(library):
    library.append()
    (odd,) = library.append_plain(state=by_chance())
    accept_old_formats(library)
    rotate_keys(library.seal)
    moved = reencrypt(library.seal)
    # None of the formats that are named here opens it.
    assert (moved.done, moved.failed, moved.by_table[EVENTS]["plain"]) == (1, 1, 0)
    assert retire(library.seal).done == 1
    assert verify(library.seal).failed == 1
    library.seal.accepted_formats = AcceptedFormats([AnyBytes()])
    moved = reencrypt(library.seal)
    assert (moved.failed, moved.by_table[EVENTS]["plain"]) == (0, 1)
    checked = verify(library.seal)
    assert (checked.done, checked.failed, checked.by_table[EVENTS]["unmigrated"]) == (1, 0, 1)
    assert library.events.select_events(odd.originator_id)[0].state == odd.state
    found = status(library.seal.key_store, library.seal.datastore, "shop")
    assert found.items[EVENTS] == {"active": 1, "plain": 1}


@pytest.mark.slow
def test_an_envelope_that_was_cut_fails_also_while_older_formats_are_accepted(library):
    (event,) = library.append()
    accept_old_formats(library)
    library.execute(f"UPDATE {EVENTS} SET state = :cut", cut=event.state[:-1])
    assert verify(library.seal).failed == 1


class AnyBytes:
    """An older format in which such bytes are an item."""

    name, key_id = "plaintext", None

    def open(self, data, context):
        return b"{}"


def accept_old_formats(library):
    with library.seal.datastore.key_engine.begin() as connection:
        for table in read_registry(connection, "shop").complete():
            set_old_formats(connection, table, ["plaintext"])


# --- rows that somebody moved ---


@pytest.mark.slow
def test_states_that_were_swapped_between_two_aggregates_are_reported_and_keep_their_key(library):
    (first,), (second,) = library.append(), library.append()
    old = library.active_key()
    for event, state in ((first, second.state), (second, first.state)):
        stored = event.originator_id
        if not library.on_postgresql and library.id_type == "uuid":
            stored = stored.hex
        library.execute(f"UPDATE {EVENTS} SET state = :s WHERE originator_id = :i", s=state, i=stored)
    assert verify(library.seal).failed == 2
    rotate_keys(library.seal)
    moved = reencrypt(library.seal)
    assert (moved.done, moved.failed) == (0, 2)
    assert {failure.row["sequence_id"] for failure in moved.failures} == {
        str(first.originator_id),
        str(second.originator_id),
    }
    with pytest.raises(JobError):
        retire(library.seal, keys=[old])


@pytest.mark.slow
def test_one_item_is_found_by_what_a_person_types(library):
    (event,) = library.append()
    row = find_item(library.seal.datastore, "shop", EVENTS, str(event.originator_id), "1")
    assert (row.sequence_id, row.data, row.key_id) == (
        event.originator_id,
        event.state,
        library.active_key(),
    )


# --- compromised keys, and shredded ones ---


@pytest.mark.slow
@pytest.mark.parametrize("table", [EVENTS, SNAPSHOTS])
def test_a_forgery_under_a_compromised_key_is_reported(open_library, store_url, table):
    """The trigger refuses it; who gets around the trigger meets the mark."""
    library = open_library(store_url)
    library.append(3)
    library.take_snapshot()
    old = library.active_key()
    collection = "items" if table == EVENTS else "snapshots"
    forged = library.states(library.new_id(), [1], collection=collection)
    rotate_keys(library.seal, compromised=True)
    recorder = library.events if table == EVENTS else library.snapshots
    with pytest.raises(eventsourcing.persistence.IntegrityError, match="is closed"):
        recorder.insert_events(forged)
    with library.seal.datastore.engine.begin() as connection:
        if library.on_postgresql:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        else:
            for event in ("insert", "update"):
                connection.exec_driver_sql(f"DROP TRIGGER eventseal_fence_{event}_{table}")
        columns = "(originator_id, originator_version, topic, state)"
        connection.execute(
            text(f"INSERT INTO {table} {columns} VALUES (:id, 1, :topic, :state)"),
            {
                "id": forged[0].originator_id if library.on_postgresql else forged[0].originator_id.hex,
                "topic": TOPIC,
                "state": forged[0].state,
            },
        )
    library.make_ours()
    moved = reencrypt(library.seal)
    assert (moved.done, moved.by_table[table]["suspected"]) == (4, 1)
    assert moved.failures[0].row["sequence_id"] == str(forged[0].originator_id)
    with pytest.raises(JobError, match=str(old)):
        retire(library.seal, keys=[old])


@pytest.mark.slow
def test_the_items_of_a_compromised_key_are_moved(library):
    library.append(3)
    library.take_snapshot()
    old = library.active_key()
    rotate_keys(library.seal, compromised=True)
    moved = reencrypt(library.seal)
    assert (moved.done, moved.failed, moved.by_key) == (4, 0, {old: 4})
    assert retire(library.seal, keys=[old]).done == 1


@pytest.mark.slow
def test_a_shredded_scope_counts_its_items_and_refuses_late_ones(library):
    events = library.append(2, scope="subject:ada")
    library.append(1)
    late = library.states(library.new_id(), [1], scope="subject:ada")
    with library.open() as others:
        result = shred(others, "subject:ada")
    assert result.by_table == {EVENTS: {"erased": 2}}
    with pytest.raises(eventsourcing.persistence.IntegrityError, match="is closed"):
        library.events.insert_events(late)
    library.seal.keyring.refresh()
    with pytest.raises(KeyDestroyedError):
        library.read(events[0].originator_id)
    moved = reencrypt(library.seal)
    assert (moved.failed, moved.by_table[EVENTS]["erased"]) == (0, 2)


@pytest.mark.slow
def test_a_restore_of_the_keys_brings_no_erased_state_of_theirs_back(open_library, store_url, tmp_path):
    library = open_library(store_url, ledger=str(tmp_path / "erasures.jsonl"))
    erased = library.append(2, scope="subject:ada")
    kept = library.append(1)
    with library.seal.datastore.key_engine.begin() as connection:
        backup = [(table, connection.execute(select(table)).mappings().all()) for table in KEY_TABLES]
    shred(library.seal, "subject:ada")
    with library.seal.datastore.key_engine.begin() as connection:
        for table in reversed(KEY_TABLES):
            connection.execute(delete(table))
        for table, rows in backup:
            if rows:
                connection.execute(insert(table), [dict(row) for row in rows])
    with library.open() as restored:
        place = ItemContext(erased[0].originator_id, erased[0].originator_version, TOPIC)
        assert restored.cipher.decrypt(erased[0].state, place) == SECRET
        result = after_restore(restored)
        assert (result.failed, result.by_table) == (0, {EVENTS: {"erased": 2}})
    with library.open() as later:
        with pytest.raises(KeyDestroyedError):
            later.cipher.decrypt(erased[0].state, place)
        found = verify(later)
        assert (found.done, found.failed, found.by_table[EVENTS]["erased"]) == (1, 0, 2)
        assert after_restore(later).done == 0
    assert library.read(kept[0].originator_id) == [SECRET]


# --- tables that nobody named ---


@pytest.mark.parametrize("verb", [retire, reencrypt, verify], ids=lambda verb: verb.__name__)
def test_a_table_of_theirs_that_nobody_named_stops_the_verbs(library, verb):
    forgotten = "pets_events"
    binary = "BYTEA" if library.on_postgresql else "BLOB"
    library.execute(
        f"CREATE TABLE {forgotten} "
        f"(originator_id TEXT, originator_version BIGINT, topic TEXT, state {binary})"
    )
    with pytest.raises(
        ConfigurationError, match=f"of the eventsourcing library are not registered: {forgotten}"
    ):
        verb(library.seal)
    with library.open(unsealed_tables=[forgotten]) as told:
        verb(told)

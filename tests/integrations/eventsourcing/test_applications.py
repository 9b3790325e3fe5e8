"""Applications of the library with our mapper, over each database: one by one, and in pages."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from uuid import uuid4

import pytest
from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.persistence import StoredEvent
from eventsourcing.system import SingleThreadedRunner, System
from tests.integrations.eventsourcing.conftest import OURS, knows_text_ids
from tests.integrations.eventsourcing.dogs import BookPut, Diplomas, DogSchool, OldPrice, Price

from eventseal.cipher import ItemContext, inspect
from eventseal.errors import IntegrityError
from eventseal.integrations.eventsourcing import EncryptingMapper
from eventseal.integrations.eventsourcing.sealing import process_seal


@pytest.fixture
def school(environment):
    with closing(DogSchool(env=environment)) as app:
        yield app


def test_what_was_saved_comes_back_and_is_nowhere_in_plain(school):
    dog = school.register("Fido", "roll over")
    school.teach(dog, "play dead")
    assert school.tricks(dog) == ["roll over", "play dead"]
    states = [stored.state for stored in school.recorder.select_events(dog)]
    assert len(states) == 3
    assert not any(word in state for state in states for word in (b"Fido", b"roll", b"dead", b"timestamp"))
    assert len({inspect(state).key_id for state in states}) == 1


def test_an_aggregate_that_is_not_there_is_not_found(school):
    with pytest.raises(AggregateNotFoundError):
        school.tricks(uuid4())


def test_a_snapshot_is_sealed_as_one_of_the_snapshots(school):
    dog = school.register("Fido", "roll over")
    school.take_snapshot(dog)
    (snapshot,) = school.snapshots.recorder.select_events(dog)
    cipher = process_seal().cipher
    place = (dog, snapshot.originator_version, snapshot.topic)
    assert b"roll over" in cipher.decrypt(snapshot.state, ItemContext(*place, "snapshots"))
    with pytest.raises(IntegrityError):
        cipher.decrypt(snapshot.state, ItemContext(*place, "items"))
    school.teach(dog, "play dead")
    assert school.tricks(dog) == ["roll over", "play dead"]
    assert [taken.originator_version for taken in school.snapshots.get(dog)] == [2]


@pytest.mark.parametrize("package", [OURS], indirect=True)
def test_a_store_takes_no_snapshot_for_an_event_nor_an_event_for_a_snapshot(school):
    dog = school.register("Fido", "roll over")
    school.take_snapshot(dog)
    (snapshot,) = school.snapshots.recorder.select_events(dog)
    event = school.recorder.select_events(dog)[1]
    assert school.mapper.to_domain_events([snapshot], collection="snapshots")
    for stored, wrong in ((snapshot, "items"), (event, "snapshots")):
        with pytest.raises(IntegrityError):
            school.mapper.to_domain_events([stored], collection=wrong)


def copied_over(school, wrong_way=False):
    """Give a dog whose snapshot was copied over its last event, or the other way round, behind all backs."""
    dog = school.register("Fido", "roll over")
    school.take_snapshot(dog)
    tables = [school.recorder.events_table_name, school.snapshots.recorder.events_table_name]
    into, source = reversed(tables) if wrong_way else tables
    here = f"{source}.originator_id = {into}.originator_id AND {source}.originator_version = 2"
    with (
        closing(sqlite3.connect(os.environ["EVENTSEAL_STORE_URL"].partition("///")[2])) as database,
        database,
    ):
        changed = database.execute(
            f"UPDATE {into} SET (topic, state) = (SELECT topic, state FROM {source} WHERE {here}) "
            "WHERE originator_version = 2"
        )
        assert changed.rowcount == 1
    return dog


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_snapshot_that_is_copied_over_its_event_is_refused(school):
    dog = copied_over(school)
    for read in (
        lambda: list(school.events.get(dog)),
        lambda: list(map(school.mapper.to_domain_event, school.notification_log.select(start=2, limit=1))),
        lambda: school.mapper.to_domain_events(school.notification_log.select(start=2, limit=1)),
    ):
        with pytest.raises(IntegrityError):
            read()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_event_that_is_copied_over_its_snapshot_is_refused(school):
    dog = copied_over(school, wrong_way=True)
    with pytest.raises(IntegrityError):
        school.tricks(dog)


def test_notifications_are_read_one_by_one_and_as_a_page(school):
    dog = school.register("Fido", "roll over", "play dead")
    page = school.notification_log.select(start=1, limit=10)
    events = school.mapper.to_domain_events(page)
    assert [event.originator_version for event in events] == [1, 2, 3]
    assert events == [school.mapper.to_domain_event(notification) for notification in page]
    assert {event.originator_id for event in events} == {dog}


def test_a_process_application_follows_the_events_of_another(environment):
    apart = {
        **environment,
        "DIPLOMAS_SQLITE_DBNAME": "diplomas.sqlite",
    }  # elsewhere its tables have other names
    runner = SingleThreadedRunner(System(pipes=[[DogSchool, Diplomas]]), env=apart)
    runner.start()
    school, diplomas = runner.get(DogSchool), runner.get(Diplomas)
    for name in ("Fido", "Rex"):
        school.register(name, "roll over")
    written = diplomas.mapper.to_domain_events(diplomas.notification_log.select(start=1, limit=10))
    assert [event.name for event in written] == ["Fido", "Rex"]
    assert isinstance(diplomas.mappers["DogSchool"], EncryptingMapper)
    runner.stop()
    school.close()
    diplomas.close()


def test_an_event_of_an_older_class_is_upcast(environment):
    with closing(Application(env=environment)) as app:
        old = OldPrice(5)
        app.save(old)
        (stored,) = app.recorder.select_events(old.id)
        topic = stored.topic.replace("OldPrice", "Price")
        (context, cipher) = ItemContext(old.id, 1, topic), process_seal().cipher
        plain = cipher.decrypt(stored.state, ItemContext(old.id, 1, stored.topic))
        renamed = StoredEvent(old.id, 1, topic, cipher.encrypt(plain, context))
        event = app.mapper.to_domain_event(renamed)
        assert isinstance(event, Price.Set)
        assert (event.amount, event.currency) == (5, "EUR")
        assert app.mapper.to_domain_events([renamed])[0] == event


@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)
@knows_text_ids
def test_ids_may_be_text(environment):
    with closing(Application(env={**environment, "ORIGINATOR_ID_TYPE": "text"})) as app:
        for shelf in ("shelf-1", str(uuid4()), "ABCDEF01-0000-0000-0000-000000000000"):
            put = [BookPut(shelf, 1, "a book"), BookPut(shelf, 2, "another")]
            app.events.put(put)
            assert list(app.events.get(shelf)) == put


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)
def test_a_forked_process_seals_and_opens_with_what_its_parent_had(environment):
    with closing(DogSchool(env=environment)) as app:
        dog = app.register("Fido", "roll over")
        assert app.tricks(dog) == ["roll over"]
    seal = process_seal()
    child = os.fork()
    if not child:
        try:
            with closing(DogSchool(env=environment)) as app:
                app.teach(dog, "play dead")
                os._exit(app.tricks(dog) != ["roll over", "play dead"])
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    with closing(DogSchool(env=environment)) as app:
        assert app.tricks(dog) == ["roll over", "play dead"]
    assert process_seal() is seal

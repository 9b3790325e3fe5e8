"""Applications of the library go on while the keys under their events are rotated, retired and shredded."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager

import pytest
from tests.integrations.eventsourcing.conftest import MAPPER, OURS, library_environment
from tests.integrations.eventsourcing.dogs import DogSchool

from eventseal.erasure import shred
from eventseal.errors import ConfigurationError, KeyDestroyedError
from eventseal.integrations.eventsourcing.sealing import process_seal
from eventseal.rotation import reencrypt, retire, rotate_keys, verify

TABLES = "stored_events,stored_snapshots"


class School(DogSchool):
    name = "stored"  # PostgreSQL's tables are called after it


class Schools:
    """Applications on one database, and the store of an operator beside them."""

    def __init__(self, url, sealed_process):
        self.module = "postgres" if "postgres" in url else "sqlite"
        self.environment = library_environment(url)
        if self.module == "sqlite":  # which has no queue of writers: on a busy machine some wait for long
            self.environment["SQLITE_LOCK_TIMEOUT"] = "60"
            url += "?timeout=60"
        sealed_process(url)
        with closing(self.open()):
            pass  # its tables are there now
        self.seal = sealed_process(url, eventsourcing_tables=TABLES)

    def open(self, **env):
        return School(
            env={
                "PERSISTENCE_MODULE": f"{OURS}.{self.module}",
                "MAPPER_TOPIC": MAPPER,
                **self.environment,
                **env,
            }
        )


@pytest.fixture
def schools(store_url, sealed_process):
    return Schools(store_url, sealed_process)


@contextmanager
def at_work(school):
    """Two threads register dogs and teach them, a third reads what they wrote; none may see an error."""
    dogs, errors, done = {}, [], threading.Event()

    def write(teacher):
        for number in range(10_000):
            if done.wait(0.001):  # SQLite has no queue: without a pause, one writer keeps out all others
                return
            dog = school.register(f"{teacher} {number}", "sit")
            school.teach(dog, "roll over")
            dogs[dog] = ["sit", "roll over"]

    def look():
        while not done.is_set():
            for dog, tricks in list(dogs.items())[-5:]:
                if school.tricks(dog) != tricks:
                    raise AssertionError(dog)

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - told to the test below
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=arguments)
        for arguments in ((write, "Ann"), (write, "Bob"), (look,))
    ]
    for thread in threads:
        thread.start()
    try:
        while not dogs and not errors:  # else all could be over before there is a dog
            done.wait(0.001)
        yield dogs
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert errors == []


@pytest.mark.slow
def test_an_application_goes_on_while_keys_come_and_go(schools):
    retired = 0
    with closing(schools.open()) as school:
        with at_work(school) as dogs:
            for _ in range(3):
                rotate_keys(schools.seal)
                reencrypt(schools.seal)
                retired += retire(schools.seal).done
        assert retired > 0
        assert dogs
        assert all(school.tricks(dog) == tricks for dog, tricks in dogs.items())
        events = len(school.recorder.select_notifications(start=1, limit=10**6))
    checked = verify(schools.seal)
    assert (checked.done, checked.failed) == (events, 0)
    assert checked.by_table["stored_events"]["plain"] == 0


@pytest.mark.slow
def test_events_are_read_although_their_key_is_retired_before_they_are_opened(schools):
    with closing(schools.open()) as school:
        dog = school.register("Fido", "sit")
        replay = school.events.get(dog)
        rotate_keys(schools.seal)
        reencrypt(schools.seal)
        assert retire(schools.seal).done == 1
        process_seal().keyring.refresh()
        assert [event.originator_version for event in replay] == [1, 2]


@pytest.mark.slow
def test_snapshots_are_moved_with_the_events(schools):
    with closing(schools.open(IS_SNAPSHOTTING_ENABLED="y")) as school:
        dog = school.register("Fido", "sit")
        school.take_snapshot(dog)
        school.teach(dog, "roll over")
        rotate_keys(schools.seal)
        moved = reencrypt(schools.seal)
        assert (moved.done, moved.failed) == (4, 0)
        assert moved.by_table["stored_snapshots"]["done"] == 1
        assert retire(schools.seal).done == 1
        process_seal().keyring.refresh()
        assert school.tricks(dog) == ["sit", "roll over"]
    assert verify(schools.seal).failed == 0


def test_no_key_is_retired_where_the_application_writes_to_another_database(store_url, sealed_process):
    seal = sealed_process(store_url, eventsourcing_tables=TABLES)
    with closing(School(env={"PERSISTENCE_MODULE": f"{OURS}.popo"})) as school:
        dog = school.register("Fido", "sit")
        rotate_keys(seal)
        with pytest.raises(ConfigurationError, match=r"no table of eventsourcing_tables exists here"):
            retire(seal)
        process_seal().keyring.refresh()
        assert school.tricks(dog) == ["sit"]


def test_the_events_of_a_shredded_scope_open_nowhere(schools):
    with closing(schools.open()) as school:
        dog = school.register("Fido", "sit")
        result = shred(schools.seal, "application", destroy_application_items=True)
        assert result.by_table == {"stored_events": {"erased": 2}}
        process_seal().keyring.refresh()
        with pytest.raises(KeyDestroyedError):
            school.tricks(dog)

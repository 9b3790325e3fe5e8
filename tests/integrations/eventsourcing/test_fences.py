"""Keys that are retired while applications of the library write: nothing is lost, ours try again."""

from __future__ import annotations

from contextlib import closing

import pytest
from eventsourcing.persistence import PersistenceError
from tests.integrations.eventsourcing.conftest import (
    BOTH,
    LIBRARY,
    MAPPER,
    OURS,
    knows_mapper_topic,
    library_environment,
)
from tests.integrations.eventsourcing.dogs import DogSchool

from eventseal.cipher import inspect
from eventseal.errors import KeyClosedError
from eventseal.integrations.eventsourcing.sealing import process_seal
from eventseal.rotation import retire
from eventseal.storage.database.transactions import read, write
from eventseal.storage.items.fences import close_fences, fence_states, is_fence_refusal

TABLES = "stored_events,stored_snapshots"


class School(DogSchool):
    name = "stored"  # PostgreSQL's tables are called after it


@pytest.fixture
def library(store_url, sealed_process):
    """Makes applications on one database, whose tables EventSeal knows and fences."""
    sealed_process(store_url)
    module = "postgres" if "postgres" in store_url else "sqlite"
    environment = library_environment(store_url)

    def make(package, **env):
        return School(
            env={"PERSISTENCE_MODULE": f"{package}.{module}", "MAPPER_TOPIC": MAPPER, **environment, **env}
        )

    with closing(make(OURS)):
        pass  # its tables are there now
    make.seal = sealed_process(store_url, eventsourcing_tables=TABLES)
    return make


def states_of(seal, key_ids):
    return read(seal.datastore.engine, lambda own: fence_states(own, key_ids), doing="reading fences")


def close(seal, key_id):
    write(seal.datastore.engine, lambda own: close_fences(own, [key_id]), doing="closing a fence")


def active_key(seal):
    return seal.keyring.sealing_keys({"application": 0})["application"].key_id


def keys_of(school, dog):
    return {inspect(stored.state).key_id for stored in school.recorder.select_events(dog)}


@pytest.mark.parametrize("package", BOTH)
def test_the_fence_of_a_key_is_there_before_anything_under_it_is_written(library, package):
    seal = library.seal
    with closing(library(package)) as school:
        (stored,) = school.mapper.to_stored_events(_new_dog())
        assert states_of(seal, [inspect(stored.state).key_id]) == {inspect(stored.state).key_id: "open"}


@pytest.mark.slow
@pytest.mark.parametrize("package", BOTH)
def test_a_key_that_was_retired_before_this_process_saw_it_is_not_used(library, package):
    seal = library.seal
    with closing(library(package)) as school:
        process_seal().keyring.sealing_keys({"application": 1})  # in memory, and soon out of date
        old = active_key(seal)
        seal.keyring.rotate("application")
        assert retire(seal, keys=[old]).complete
        dog = school.register("Fido", "sit")
        assert school.tricks(dog) == ["sit"]
        assert keys_of(school, dog) == {active_key(seal)} != {old}


def test_a_closed_fence_without_another_key_is_an_error(library):
    with closing(library(OURS)) as school:
        close(library.seal, active_key(library.seal))
        with pytest.raises(KeyClosedError):
            school.register("Fido")


@pytest.mark.parametrize("functions", ["n", "y"], ids=["by statements", "by its function"])
def test_our_module_writes_again_what_was_sealed_under_a_key_that_was_retired_meanwhile(library, functions):
    with closing(library(OURS, POSTGRES_ENABLE_DB_FUNCTIONS=functions)) as school:
        first = school.register("Fido", "sit")
        old = active_key(library.seal)
        library.seal.keyring.rotate("application")
        close(library.seal, old)  # as a retirement does first; this process has not noticed
        second = school.register("Rex", "stay", "come")
        assert school.tricks(first) == ["sit"]
        assert school.tricks(second) == ["stay", "come"]
        keys = [
            {inspect(s.state).key_id for s in school.recorder.select_events(dog)} for dog in (first, second)
        ]
        assert keys == [{old}, {active_key(library.seal)}]
        assert [n.id for n in school.notification_log.select(start=1, limit=10)][:2] == [1, 2]


@knows_mapper_topic
@pytest.mark.parametrize("functions", ["n", "y"], ids=["by statements", "by its function"])
def test_under_its_own_module_the_application_gets_its_databases_error_and_tries_again(library, functions):
    with closing(library(LIBRARY, POSTGRES_ENABLE_DB_FUNCTIONS=functions)) as school:
        first = school.register("Fido", "sit")
        library.seal.keyring.rotate("application")
        close(library.seal, inspect(school.recorder.select_events(first)[0].state).key_id)
        with pytest.raises(PersistenceError) as caught:
            school.register("Rex")
        assert is_fence_refusal(caught.value)
        school.mapper.refresh_keys()
        second = school.register("Rex", "stay")
        assert school.tricks(second) == ["stay"]
        assert len(school.notification_log.select(start=1, limit=10)) == 4


def test_any_other_error_of_the_database_is_handed_on(library):
    with closing(library(OURS)) as school:
        dog = school.register("Fido")
        with pytest.raises(PersistenceError) as caught:
            school.events.put(list(school.events.get(dog)))
        assert not is_fence_refusal(caught.value)


def _new_dog():
    from tests.integrations.eventsourcing.dogs import Dog

    return Dog("Fido").collect_events()

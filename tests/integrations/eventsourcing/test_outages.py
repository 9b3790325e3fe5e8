"""What an application of the library sees when what is around it is wrong, down, or another application's."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import closing
from types import SimpleNamespace

import pytest
from eventsourcing.persistence import StoredEvent
from tests.integrations.eventsourcing.conftest import MAPPER, library_environment
from tests.integrations.eventsourcing.dogs import Dog, DogSchool

from eventseal import AESCipher, Keyring, SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.cipher import inspect
from eventseal.errors import (
    KekNotConfiguredError,
    KmsUnavailableError,
    MissingTableError,
    WrongApplicationError,
)
from eventseal.integrations.eventsourcing import EncryptingMapper
from eventseal.integrations.eventsourcing.sealing import process_seal
from eventseal.testing import FakeKms
from eventseal_kms.local import LocalKmsAdapter


class School(DogSchool):
    name = "stored"  # PostgreSQL's tables are called after it


@pytest.fixture
def environment(store_url, package):
    """Of an application on a database that EventSeal may have no tables in yet."""
    module = "postgres" if "postgres" in store_url else "sqlite"
    return {
        "PERSISTENCE_MODULE": f"{package}.{module}",
        "MAPPER_TOPIC": MAPPER,
        **library_environment(store_url),
    }


def count_of(school):
    return len(school.recorder.select_notifications(start=1, limit=100))


def in_another_process(monkeypatch, **settings):
    """Let what is made from now on read other settings, as a process does that starts with them."""
    process_seal.close()
    for name, value in settings.items():
        monkeypatch.setenv(f"EVENTSEAL_{name.upper()}", value)


# --- settings --------------------------------------------------------------------------------------


def test_a_kek_that_wrapped_no_key_here_reads_nothing_and_writes_nothing(
    environment, store_url, sealed_process, monkeypatch, tmp_path
):
    sealed_process(store_url)
    with closing(School(env=environment)) as school:
        dog = school.register("Fido", "sit")
    LocalKmsAdapter.create(tmp_path / "other.key")
    in_another_process(monkeypatch, kms_key=f"local://{tmp_path}/other.key")
    with closing(School(env=environment)) as school:
        for refused in (lambda: school.tricks(dog), lambda: school.register("Rex")):
            with pytest.raises(
                KekNotConfiguredError, match=r"is wrapped under local://.*is configured with local://"
            ):
                refused()
        assert count_of(school) == 2
    in_another_process(monkeypatch, kms_key=f"local://{tmp_path}/dev.key")
    with closing(School(env=environment)) as school:
        assert school.tricks(dog) == ["sit"]


def test_before_init_nothing_is_written_and_the_missing_tables_are_named(
    environment, store_url, monkeypatch, tmp_path
):
    LocalKmsAdapter.create(tmp_path / "dev.key")
    settings = {"kms_key": f"local://{tmp_path}/dev.key", "store_url": store_url, "application": "shop"}
    in_another_process(monkeypatch, **settings)
    try:
        with closing(School(env=environment)) as school:
            with pytest.raises(MissingTableError) as caught:
                school.register("Fido")
            assert "eventseal init" in caught.value.remedy
            assert count_of(school) == 0
    finally:
        process_seal.close()


def test_an_envelope_of_another_application_in_the_same_table_is_named_and_left_alone(
    environment, store_url, sealed_process, monkeypatch
):
    sealed_process(store_url)
    with closing(School(env=environment)) as school:
        theirs = school.register("Fido", "sit")
    in_another_process(monkeypatch, application="kennel")
    with closing(School(env=environment)) as school:
        ours = school.register("Rex", "stay")
        assert school.tricks(ours) == ["stay"]
        with pytest.raises(WrongApplicationError, match="to application 'shop', not to 'kennel'") as caught:
            school.tricks(theirs)
        assert any(f"position 1 of {theirs}" in note for note in caught.value.__notes__)
    in_another_process(monkeypatch, application="shop")
    with closing(School(env=environment)) as school:
        assert school.tricks(theirs) == ["sit"]
        with pytest.raises(WrongApplicationError):
            school.tricks(ours)


# --- a KMS that is down ----------------------------------------------------------------------------


@pytest.fixture
def kms():
    return FakeKms()


@pytest.fixture
def new_process(store_url, environment, kms):
    """Makes applications that have no key in memory yet, as after a start."""
    opened = []

    def make():
        datastore = SQLAlchemyDatastore(SQLAlchemySettings(store_url))
        datastore.setup_tables(application="shop")
        keyring = Keyring(kms, SQLAlchemyKeyStore(datastore), application="shop")
        opened.extend((keyring, datastore))
        seal = SimpleNamespace(keyring=keyring, cipher=AESCipher(keyring), datastore=datastore)

        class InProcess(School):
            name = "stored"

            def construct_mapper(self):
                chosen = EncryptingMapper.using(seal)
                return self.factory.mapper(self.construct_transcoder(), mapper_class=chosen)

        return InProcess(env={name: environment[name] for name in environment if name != "MAPPER_TOPIC"})

    yield make
    for each in opened:
        each.close()


def test_while_the_kms_is_down_an_application_goes_on_with_the_keys_that_it_has(new_process, kms):
    with closing(new_process()) as school:
        dog = school.register("Fido", "sit")
        kms.fail_always()
        school.teach(dog, "stay")
        assert school.tricks(dog) == ["sit", "stay"]


def test_one_that_starts_while_the_kms_is_down_says_so_writes_nothing_and_recovers_by_itself(
    new_process, kms
):
    with closing(new_process()) as school:
        dog = school.register("Fido", "sit")
    kms.fail_always()
    with closing(new_process()) as school:
        for refused in (lambda: school.tricks(dog), lambda: school.register("Rex")):
            with pytest.raises(KmsUnavailableError):
                refused()
        assert count_of(school) == 2
        kms.recover()
        school.teach(dog, "stay")
        assert school.tricks(dog) == ["sit", "stay"]


# --- a server that forks its workers ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_workers_seal_with_the_mapper_that_their_parent_made(environment, store_url, sealed_process):
    sealed_process(store_url)
    with closing(School(env=environment)) as school:
        dog = school.register("Fido", "sit")
        mapper, stored = school.mapper, school.recorder.select_events(dog)
    environment["CREATE_TABLE"] = "n"  # the library's workers must not do that at the same time
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            try:
                os._exit(not _is_at_work(mapper, stored, environment, f"Fido {number}"))
            except Exception:  # noqa: BLE001 - a child must not go on as the test
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(2)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    with closing(School(env=environment)) as school:
        stored = school.recorder.select_notifications(start=1, limit=100)
        events = school.mapper.to_domain_events(stored)
        assert sorted(event.name for event in events if hasattr(event, "name")) == [
            "Fido",
            *(f"Fido {number}" for number in range(3)),
        ]


def _is_at_work(mapper, stored, environment, name):
    """Whether a worker reads what its parent wrote, and writes, with that mapper and one of its own."""
    (event,) = Dog(name).collect_events()
    sealed = mapper.to_stored_event(event)
    with closing(School(env=environment)) as school:  # connections are the library's, and never shared
        school.register(name, "stay")
        return (
            school.mapper.to_domain_event(sealed) == event
            and [mapper.to_domain_event(one).originator_version for one in stored] == [1, 2]
            and inspect(sealed.state).key_id == inspect(stored[0].state).key_id
            and isinstance(sealed, StoredEvent)
        )

"""What a state is bound to, whose key seals it, what an erased one is, and what is refused."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace
from uuid import uuid4

import pytest
from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent
from sqlalchemy import text
from tests.integrations.eventsourcing.conftest import (
    BOTH,
    LIBRARY,
    MAPPER,
    OURS,
    knows_mapper_topic,
    library_environment,
)
from tests.integrations.eventsourcing.dogs import Dog, DogSchool

from eventseal import AESCipher, Keyring, SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.cipher import inspect
from eventseal.erasure import shred
from eventseal.errors import (
    ConfigurationError,
    IntegrityError,
    KeyDestroyedError,
    KeyNotFoundError,
    UnknownFormatError,
)
from eventseal.integrations.eventsourcing import EncryptingMapper, ErasedEvent, stream_scope
from eventseal.items.acceptance import AcceptedFormats
from eventseal.items.formats import PlainJSON
from eventseal.storage import IntegerSequencedItemRecord
from eventseal.testing import FakeKms

CIPHER = {
    "CIPHER_TOPIC": "eventsourcing.cipher:AESCipher",
    "CIPHER_KEY": "MDEyMzQ1Njc4OWFiY2RlZg==",
    "COMPRESSOR_TOPIC": "eventsourcing.compressor:ZlibCompressor",
}


@pytest.fixture
def seal():
    """A store of keys in memory, and a cipher."""
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(), tables=[IntegerSequencedItemRecord])
    datastore.setup_tables()
    key_store = SQLAlchemyKeyStore(datastore)
    keyring = Keyring(FakeKms(), key_store, application="shop")
    yield SimpleNamespace(
        keyring=keyring,
        cipher=AESCipher(keyring),
        key_store=key_store,
        datastore=datastore,
        unsealed_tables=(),
    )
    keyring.close()
    datastore.close()


def school_with(mapper_class, package=OURS):
    class School(DogSchool):
        name = "DogSchool"

        def construct_mapper(self):
            return self.factory.mapper(self.construct_transcoder(), mapper_class=mapper_class)

    return School(env={"PERSISTENCE_MODULE": f"{package}.popo"})


def stored_dog(school, *tricks, **options):
    dog = school.register("Fido", *tricks, **options)
    return dog, list(school.recorder.select_events(dog))


# --- what a state is bound to ----------------------------------------------------------------------


def swapped_states(url, first, second):
    """Write the state of one aggregate's second row into another's: anybody can who may write."""
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(url))
    as_stored = (lambda an_id: an_id) if "postgres" in url else (lambda an_id: an_id.hex)
    with datastore.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE stored_events SET state = (SELECT state FROM stored_events"
                " WHERE originator_id = :other AND originator_version = 2)"
                " WHERE originator_id = :one AND originator_version = 2"
            ),
            {"one": as_stored(first), "other": as_stored(second)},
        )
    datastore.close()


@pytest.mark.parametrize("package", BOTH)
def test_its_cipher_accepts_a_state_of_another_aggregate_and_ours_refuses_it(
    store_url, sealed_process, package
):
    sealed_process(store_url)
    module = "postgres" if "postgres" in store_url else "sqlite"
    tables = library_environment(store_url)
    theirs = {"PERSISTENCE_MODULE": f"{LIBRARY}.{module}", **tables, **CIPHER}
    ours = {"PERSISTENCE_MODULE": f"{package}.{module}", **tables, "MAPPER_TOPIC": MAPPER}

    class School(DogSchool):
        name = "stored"  # one name of the tables for both, on PostgreSQL too

    for environment in (theirs, ours):
        with closing(School(env=environment)) as school:
            good, bad = school.register("Fido", "fetch the paper"), school.register("Rex", "bite the postman")
            swapped_states(store_url, good, bad)
            if environment is theirs:
                assert school.tricks(good) == ["bite the postman"]  # nobody notices
            else:
                with pytest.raises(IntegrityError):
                    school.tricks(good)
                assert school.tricks(bad) == ["bite the postman"]


CHANGES = {
    "another aggregate": {"originator_id": uuid4()},
    "another version": {"originator_version": 1},
    "another topic": {"topic": "tests.integrations.eventsourcing.dogs:Dog.Registered"},
    "a topic that names nothing": {"topic": "no.such.module:Thing"},
    "text in place of the id": {"originator_id": "Fido"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_state_opens_in_no_other_row(seal, change):
    school = school_with(EncryptingMapper.using(seal))
    _, (_, stored) = stored_dog(school, "sit")
    changed = StoredEvent(**{**vars(stored), **change})
    for read in (school.mapper.to_domain_event, lambda one: school.mapper.to_domain_events([one])):
        assert read(stored)
        with pytest.raises(IntegrityError) as caught:
            read(changed)
    assert caught.value.position == changed.originator_version
    assert any(changed.topic in note for note in caught.value.__notes__)


def test_one_bad_state_in_a_page_is_named(seal):
    school = school_with(EncryptingMapper.using(seal))
    dog, stored = stored_dog(school, *"abcdef")
    stored[3] = StoredEvent(dog, 4, stored[3].topic, stored[4].state)
    with pytest.raises(IntegrityError) as caught:
        school.mapper.to_domain_events(stored)
    assert (caught.value.sequence_id, caught.value.position) == (dog, 4)


def test_another_applications_state_is_not_ours(seal):
    other = Keyring(FakeKms(), seal.key_store, application="other")
    others = SimpleNamespace(cipher=AESCipher(other), datastore=seal.datastore)
    _, (stored,) = stored_dog(school_with(EncryptingMapper.using(others)))
    with pytest.raises((ConfigurationError, KeyNotFoundError)):
        school_with(EncryptingMapper.using(seal)).mapper.to_domain_event(stored)
    other.close()


# --- pages -----------------------------------------------------------------------------------------


class CountingCipher:
    """Counts the calls of a cipher."""

    def __init__(self, cipher):
        self.cipher, self.calls = cipher, []

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.cipher, name)


def test_with_our_modules_an_append_and_a_replay_are_one_call_each(seal):
    seal.cipher = CountingCipher(seal.cipher)
    school = school_with(EncryptingMapper.using(seal))
    dog = school.register("Fido", *"abcdefgh")
    assert seal.cipher.calls == ["encrypt_many"]
    seal.cipher.calls.clear()
    assert school.tricks(dog) == [*"abcdefgh"]
    assert seal.cipher.calls == ["open_many"]


def test_a_long_replay_opens_page_after_page_as_it_is_read(seal, monkeypatch):
    monkeypatch.setattr("eventseal.integrations.eventsourcing.event_store.PAGE", 3)
    seal.cipher = CountingCipher(seal.cipher)
    school = school_with(EncryptingMapper.using(seal))
    dog = school.register("Fido", *"abcdefg")
    seal.cipher.calls.clear()
    events = school.events.get(dog)
    assert seal.cipher.calls == []
    assert next(events).originator_version == 1
    assert seal.cipher.calls == ["open_many"]
    assert [event.originator_version for event in events] == [2, 3, 4, 5, 6, 7, 8]
    assert [
        event.originator_version for event in school.events.get(dog, gt=2, lte=6, desc=True, limit=3)
    ] == [6, 5, 4]


# --- whose key seals -------------------------------------------------------------------------------


def scope_by_owner(event):
    return f"owner:{event.owner}" if hasattr(event, "owner") else "application"


@pytest.mark.parametrize("package", [LIBRARY, OURS], ids=["one by one", "pages"])
def test_a_function_chooses_the_scope(seal, package):
    school = school_with(EncryptingMapper.using(seal, key_scope=scope_by_owner), package)
    dog, stored = stored_dog(school, "sit", owner="ann")
    keys = [inspect(one.state).key_id for one in stored]
    assert keys[0] == seal.keyring.sealing_keys({"owner:ann": 0})["owner:ann"].key_id
    assert keys[1] == seal.keyring.sealing_keys({"application": 0})["application"].key_id
    assert school.tricks(dog) == ["sit"]


@pytest.mark.parametrize("package", [LIBRARY, OURS], ids=["one by one", "pages"])
def test_a_class_chooses_the_scope_for_its_events(seal, package, monkeypatch):
    monkeypatch.setattr(Dog.Registered, "__key_scope__", scope_by_owner, raising=False)
    from eventseal.integrations.eventsourcing.stored_events import _event_class

    _event_class.cache_clear()
    school = school_with(EncryptingMapper.using(seal), package)
    dog, stored = stored_dog(school, "sit", owner="ann")
    assert inspect(stored[0].state).key_id != inspect(stored[1].state).key_id
    assert school.tricks(dog) == ["sit"]
    _event_class.cache_clear()


def test_an_event_under_another_scopes_key_is_refused(seal):
    _, (stored,) = stored_dog(school_with(EncryptingMapper.using(seal)))
    school = school_with(EncryptingMapper.using(seal, key_scope=stream_scope))
    for read in (school.mapper.to_domain_event, lambda one: school.mapper.to_domain_events([one])):
        with pytest.raises(IntegrityError, match="not a key of the event's scope"):
            read(stored)


def test_a_class_may_go_without_compression(seal, monkeypatch):
    from eventseal.integrations.eventsourcing.stored_events import _event_class

    school = school_with(EncryptingMapper.using(seal))
    assert inspect(stored_dog(school)[1][0].state).compression
    monkeypatch.setattr(Dog.Registered, "__compress__", False, raising=False)
    _event_class.cache_clear()
    assert not inspect(stored_dog(school)[1][0].state).compression
    _event_class.cache_clear()


# --- what an erased event is -----------------------------------------------------------------------


def erasing(seal, on_erased, package=OURS):
    mapper = EncryptingMapper.using(
        seal, key_scope=stream_scope, on_erased=on_erased, erased_scope=stream_scope
    )
    school = school_with(mapper, package)
    dogs = [school.register(name, "sit") for name in ("Fido", "Rex")]
    school.take_snapshot(dogs[0])
    shred(seal, f"stream:{dogs[0]}")
    return school, *dogs


@pytest.mark.parametrize("package", [LIBRARY, OURS], ids=["one by one", "pages"])
def test_an_erased_aggregate_is_raised(seal, package):
    school, erased, other = erasing(seal, "raise", package)
    with pytest.raises(KeyDestroyedError):
        school.tricks(erased)
    assert school.tricks(other) == ["sit"]


@pytest.mark.parametrize("package", [LIBRARY, OURS], ids=["one by one", "pages"])
def test_an_erased_aggregate_is_not_found_where_it_is_masked(seal, package):
    school, erased, other = erasing(seal, "mask", package)
    with pytest.raises(AggregateNotFoundError):
        school.tricks(erased)
    assert school.tricks(other) == ["sit"]
    masked = list(school.events.get(erased))
    assert [type(event) for event in masked] == [ErasedEvent, ErasedEvent]
    assert [(event.originator_id, event.originator_version) for event in masked] == [(erased, 1), (erased, 2)]
    assert {event.scope for event in masked} == {f"stream:{erased}"}


def test_erased_events_are_left_out_of_pages_and_masked_one_by_one(seal):
    school, erased, other = erasing(seal, "skip")
    assert list(school.events.get(erased)) == []
    page = school.notification_log.select(start=1, limit=10)
    assert {event.originator_id for event in school.mapper.to_domain_events(page)} == {other}
    assert isinstance(school.mapper.to_domain_event(page[0]), ErasedEvent)
    with pytest.raises(AggregateNotFoundError):
        school.tricks(erased)


def test_an_aggregate_goes_on_behind_an_event_that_was_erased(seal):
    mapper = EncryptingMapper.using(
        seal,
        key_scope=lambda event: f"trick:{event.trick}" if hasattr(event, "trick") else "application",
        on_erased="mask",
        erased_scope=lambda stored: "trick:bite" if stored.originator_version == 2 else "application",
    )
    school = school_with(mapper)
    dog = school.register("Fido", "bite", "sit")
    shred(seal, "trick:bite")
    assert school.tricks(dog) == ["sit"]
    school.teach(dog, "stay")
    assert school.tricks(dog) == ["sit", "stay"]


def test_an_erased_event_of_another_scope_than_expected_is_raised(seal):
    mapper = EncryptingMapper.using(
        seal, key_scope=stream_scope, on_erased="mask", erased_scope=lambda stored: "stream:another"
    )
    school = school_with(mapper)
    dog = school.register("Fido")
    shred(seal, f"stream:{dog}")
    with pytest.raises(KeyDestroyedError):
        list(school.events.get(dog))


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("package", BOTH, ids=["its module", "our module"])
@pytest.mark.parametrize("name", ["COMPRESSOR_TOPIC", "CIPHER_TOPIC"])
def test_a_compressor_or_a_cipher_beside_it_is_refused(sealed_process, sqlite_url, package, name):
    sealed_process(sqlite_url)
    beside = {key: value for key, value in CIPHER.items() if key.startswith(name[:6])}
    with pytest.raises(ConfigurationError, match="EncryptingMapper compresses and encrypts itself") as caught:
        Application(env={"PERSISTENCE_MODULE": f"{package}.popo", "MAPPER_TOPIC": MAPPER, **beside})
    assert name in str(caught.value)
    assert "Unset" in caught.value.remedy


def test_our_module_refuses_a_mapper_that_does_not_seal(sealed_process, sqlite_url):
    sealed_process(sqlite_url)
    plain = "eventsourcing.persistence:Mapper"
    with pytest.raises(ConfigurationError, match="mappers that seal"):
        Application(env={"PERSISTENCE_MODULE": f"{OURS}.popo", "MAPPER_TOPIC": plain})


def test_our_module_seals_without_being_told_the_mapper(sealed_process, sqlite_url):
    sealed_process(sqlite_url)
    with closing(DogSchool(env={"PERSISTENCE_MODULE": f"{OURS}.popo"})) as school:
        assert inspect(stored_dog(school)[1][0].state).version == 1


@knows_mapper_topic
def test_without_settings_the_mapper_is_not_made():
    with pytest.raises(ConfigurationError, match="no KMS key is configured"):
        Application(env={"MAPPER_TOPIC": MAPPER})


def test_what_is_no_envelope_is_refused(seal):
    mapper = EncryptingMapper.using(seal)(JSONTranscoder())
    dog = Dog("Fido")
    plain = Mapper(school_with(EncryptingMapper.using(seal)).mapper.transcoder).to_stored_event(
        dog.collect_events()[0]
    )
    with pytest.raises(UnknownFormatError):
        mapper.to_domain_event(plain)


def test_an_older_format_is_read_while_it_is_accepted(seal):
    sealing = school_with(EncryptingMapper.using(seal))
    (event,) = Dog("Fido").collect_events()
    plain = Mapper(sealing.mapper.transcoder).to_stored_event(event)
    seal.accepted_formats = AcceptedFormats([PlainJSON()])
    reading = school_with(EncryptingMapper.using(seal))
    assert reading.mapper.to_domain_event(plain) == event
    assert reading.mapper.to_domain_events([plain, sealing.mapper.to_stored_event(event)]) == [event, event]
    assert inspect(reading.mapper.to_stored_event(event).state).version == 1


@pytest.mark.parametrize("choice", [{"on_erased": "hide"}, {"key_scope": 5}, {"key_scope": ""}])
def test_a_choice_that_is_none_is_refused_at_once(choice):
    with pytest.raises(ConfigurationError):
        EncryptingMapper.using(**choice)


def test_a_class_of_a_collection_that_there_is_not_is_refused(seal, monkeypatch):
    from eventseal.integrations.eventsourcing.stored_events import _event_class

    monkeypatch.setattr(Dog.Registered, "__collection__", "letters", raising=False)
    _event_class.cache_clear()
    with pytest.raises(ConfigurationError, match="letters"):
        school_with(EncryptingMapper.using(seal), LIBRARY).register("Fido")
    _event_class.cache_clear()


@pytest.mark.parametrize("package", [LIBRARY, OURS], ids=["one by one", "pages"])
def test_ids_that_a_recorder_gives_back_as_bare_digits_are_the_uuids_that_were_bound(seal, package):
    """As the library's own recorder does on SQLite in releases before 9.5."""
    mapper = EncryptingMapper.using(seal, key_scope=stream_scope, on_erased="mask", erased_scope=stream_scope)
    school = school_with(mapper, package)
    dog, stored = stored_dog(school, "sit")
    school.take_snapshot(dog)
    stored += school.snapshots.recorder.select_events(dog)
    digits = [StoredEvent(**{**vars(one), "originator_id": dog.hex}) for one in stored]
    for _ in range(2):  # and again, when the mapper has learned it
        assert [str(event.originator_id) for event in school.mapper.to_domain_events(digits)]
        assert school.mapper.to_domain_event(digits[2]).originator_version == 2
        with pytest.raises(IntegrityError):
            school.mapper.to_domain_event(StoredEvent(**{**vars(digits[0]), "originator_id": uuid4().hex}))
    shred(seal, f"stream:{dog}")
    assert {type(event) for event in school.mapper.to_domain_events(digits)} == {ErasedEvent}

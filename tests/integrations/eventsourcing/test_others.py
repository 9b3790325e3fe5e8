"""Events by tags, the cipher that binds nothing, and releases of the library."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Annotated
from uuid import uuid4

import pytest
from eventsourcing.application import Application
from eventsourcing.dcb.api import DCBEvent
from eventsourcing.dcb.application import DCBApplication
from eventsourcing.dcb.domain import EnduringObject, Tagged
from eventsourcing.dcb.msgpack import Decision, InitialDecision, MessagePackMapper
from eventsourcing.domain import event
from eventsourcing.persistence import StoredEvent
from eventsourcing.tests.projection import TaggedDecisionCountersProjectionTestCase
from tests.integrations.eventsourcing.conftest import library_environment
from tests.integrations.eventsourcing.dogs import DogSchool
from tests.integrations.eventsourcing.test_library_cases import Counters

from eventseal import AESCipher, InMemoryKeyStore, Keyring, SQLAlchemyDatastore, SQLAlchemySettings
from eventseal.cipher import inspect
from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.integrations.eventsourcing import (
    EncryptingDCBMapper,
    EnvelopeCipher,
    UnboundCipherWarning,
    check_release,
    unbound,
)
from eventseal.items import PersonalData
from eventseal.testing import FakeKms

DCB = "eventseal.integrations.eventsourcing:EncryptingDCBMapper"


Email = Annotated[str, PersonalData(subject="person_id")]


class Course(EnduringObject[Decision, str]):
    class Registered(InitialDecision):
        course_id: str
        title: str


class Renamed(Decision):
    title: str


class Marked(Decision):
    email: Email


class MarkedInTheMethod(Decision):
    email: str


class Person(EnduringObject[Decision, str]):
    class Registered(InitialDecision):
        person_id: str

    @event(Registered)
    def __init__(self, *, person_id: str) -> None:
        self.id = person_id

    @event(MarkedInTheMethod)
    def move(self, email: Email) -> None:
        self.email = email


@pytest.fixture
def seal():
    datastore = SQLAlchemyDatastore(SQLAlchemySettings())
    datastore.setup_tables()
    keyring = Keyring(FakeKms(), InMemoryKeyStore(), application="shop")
    yield SimpleNamespace(keyring=keyring, cipher=AESCipher(keyring), datastore=datastore)
    keyring.close()
    datastore.close()


# --- events by tags --------------------------------------------------------------------------------


class TestDecisionsOverPopo(TaggedDecisionCountersProjectionTestCase):
    """The library's own case; its recorder for PostgreSQL does not select by types alone, as this needs."""

    view_class = Counters

    @pytest.fixture(autouse=True)
    def _environment(self, sqlite_url, sealed_process):
        sealed_process(sqlite_url)
        type(self).env = {"MAPPER_TOPIC": DCB, "EVENTCOUNTERS_PERSISTENCE_MODULE": "eventsourcing.popo"}


del TaggedDecisionCountersProjectionTestCase


def test_decisions_come_back_and_are_sealed(store_url, sealed_process):
    sealed_process(store_url)
    in_tables = {"PERSISTENCE_MODULE": "eventsourcing.dcb.postgres_tt", **library_environment(store_url)}
    recorder = in_tables if "postgres" in store_url else {}
    with DCBApplication(env={"MAPPER_TOPIC": DCB, **recorder}) as app:
        course = Course(title="Tracking")
        app.repository.save(course)
        (stored,) = (sequenced.event for sequenced in app.recorder.read())
        assert b"Tracking" not in stored.data
        assert inspect(stored.data).version == 1
        (read,) = app.events.read()
        assert read.decision.title == "Tracking"
        assert app.repository.get(course.id).id == course.id


@pytest.fixture
def tagged(seal):
    mapper = EncryptingDCBMapper.using(seal)()
    return mapper, mapper.to_dcb_event(Tagged(["course-1", "term-2"], Renamed(title="Tracking")))


def test_tags_are_a_set(tagged):
    mapper, event = tagged
    turned = DCBEvent(event.type, event.data, ["term-2", "course-1", "term-2"])
    assert mapper.to_domain_event(turned).decision == Renamed(title="Tracking")


@pytest.mark.parametrize(
    "change",
    [
        {"tags": ["course-1"]},
        {"tags": ["course-1", "term-2", "x"]},
        {"tags": []},
        {"type": "no.module:Thing"},
    ],
    ids=["a tag less", "a tag more", "no tags", "another type"],
)
def test_data_open_under_no_other_type_or_tags(tagged, change):
    mapper, event = tagged
    with pytest.raises(IntegrityError):
        mapper.to_domain_event(DCBEvent(**{**vars(event), **change}))


def test_the_position_is_not_bound(tagged):
    mapper, event = tagged
    assert [one.decision for one in mapper.to_domain_events([event, event])] == [
        Renamed(title="Tracking")
    ] * 2


def test_a_function_chooses_the_scope_of_a_decision(seal):
    mapper = EncryptingDCBMapper.using(seal, key_scope=lambda decision: f"title:{decision.title}")()
    event = mapper.to_dcb_event(Tagged([], Renamed(title="a")))
    assert inspect(event.data).key_id == seal.keyring.sealing_keys({"title:a": 0})["title:a"].key_id
    other = EncryptingDCBMapper.using(seal)()
    with pytest.raises(IntegrityError, match="not a key of the event's scope"):
        other.to_domain_event(event)


@pytest.mark.parametrize("cls", [Marked, MarkedInTheMethod], ids=lambda cls: cls.__name__)
def test_a_decision_that_says_personal_data_is_refused(seal, cls):
    mapper = EncryptingDCBMapper.using(seal)()
    with pytest.raises(ConfigurationError, match="do not encrypt single fields"):
        mapper.to_dcb_event(Tagged(tags=["a"], decision=cls(email="ann@example.org")))


def test_a_mapper_of_decisions_whose_methods_are_replaced_is_refused(seal):
    class Plain(EncryptingDCBMapper):
        def to_dcb_event(self, event):
            return self._inner.to_dcb_event(event)

    with pytest.raises(ConfigurationError, match="replaces to_dcb_event of EncryptingDCBMapper"):
        Plain.using(seal)()


def test_another_mapper_may_be_inside(seal):
    class Mine(MessagePackMapper):
        pass

    mapper = EncryptingDCBMapper.using(seal, inner=Mine)()
    assert mapper.to_domain_event(mapper.to_dcb_event(Tagged([], Renamed(title="a")))).tags == []
    with pytest.raises(ConfigurationError, match="inner must create a DCBMapper"):
        EncryptingDCBMapper.using(seal, inner=dict)()


# --- the cipher that binds nothing -----------------------------------------------------------------


@pytest.fixture
def unbound_school(sqlite_url, sealed_process):
    unbound._warn_once.cache_clear()
    sealed_process(sqlite_url)

    def make(**environment):
        topic = "eventseal.integrations.eventsourcing:EnvelopeCipher"
        return DogSchool(env={"CIPHER_TOPIC": topic, **environment})

    return make


def test_the_cipher_seals_and_says_once_that_it_binds_nothing(unbound_school):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        school, another = unbound_school(), unbound_school()
    (warning,) = [warned for warned in caught if warned.category is UnboundCipherWarning]
    assert "binds no state to its row" in str(warning.message)
    dog = school.register("Fido", "sit")
    assert school.tricks(dog) == ["sit"]
    first, second = school.recorder.select_events(dog)
    assert isinstance(school.mapper.cipher, EnvelopeCipher)
    assert inspect(first.state).key_id == inspect(second.state).key_id
    moved = StoredEvent(uuid4(), 7, second.topic, second.state)
    assert another.mapper.to_domain_event(moved).trick == "sit"


@pytest.mark.filterwarnings("ignore::eventseal.integrations.eventsourcing.UnboundCipherWarning")
def test_the_cipher_leaves_compression_to_a_compressor_that_is_there(unbound_school):
    school = unbound_school(COMPRESSOR_TOPIC="eventsourcing.compressor:ZlibCompressor")
    dog = school.register("Fido", "sit " * 100)
    assert school.tricks(dog) == ["sit " * 100]
    assert {inspect(stored.state).compression for stored in school.recorder.select_events(dog)} == {0}


@pytest.mark.filterwarnings("ignore::eventseal.integrations.eventsourcing.UnboundCipherWarning")
def test_the_cipher_opens_nothing_that_was_changed(unbound_school):
    cipher = unbound_school().mapper.cipher
    sealed = cipher.encrypt(b"a state")
    with pytest.raises(IntegrityError):
        cipher.decrypt(sealed[:-1] + bytes([sealed[-1] ^ 1]))


# --- releases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("installed", ["8.3.0", "9.2.22", "10.0.0", "unknown"])
def test_a_release_that_is_not_supported_is_refused_by_name(monkeypatch, installed):
    monkeypatch.setattr("eventseal.integrations.eventsourcing.version", lambda _: installed)
    with pytest.raises(ConfigurationError) as caught:
        check_release()
    assert installed in str(caught.value)
    assert ">=9.3,<10" in str(caught.value)


@pytest.mark.parametrize("installed", ["9.3.0", "9.5.6", "9.12.1", "9.6.0rc1"])
def test_a_release_that_is_supported_is_not(monkeypatch, installed):
    monkeypatch.setattr("eventseal.integrations.eventsourcing.version", lambda _: installed)
    check_release()


def test_a_library_that_is_not_there_is_named_with_its_install_command():
    program = (
        "import sys, importlib.metadata as m\n"
        "def version(name): raise m.PackageNotFoundError(name)\n"
        "m.version = version\n"
        "from eventseal.errors import ConfigurationError\n"
        "try:\n"
        "    import eventseal.integrations.eventsourcing\n"
        "except ConfigurationError as error:\n"
        "    print(error.remedy)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "Run: pip install 'eventseal[eventsourcing]'\n"


@pytest.mark.slow
def test_names_are_loaded_when_they_are_asked_for():
    program = (
        "import sys, eventseal.integrations.eventsourcing as ours\n"
        "assert 'eventsourcing.persistence' not in sys.modules\n"
        "assert all(getattr(ours, name) for name in ours.__all__)\n"
        "assert set(ours.__all__) <= set(dir(ours))\n"
        "assert not hasattr(ours, 'no_such_name')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_an_applications_mapper_is_ours_by_its_topic(sqlite_url, sealed_process):
    sealed_process(sqlite_url)
    with Application(env={"MAPPER_TOPIC": "eventseal.integrations.eventsourcing:EncryptingMapper"}) as app:
        assert type(app.mapper).__module__ == "eventseal.integrations.eventsourcing.mapper"

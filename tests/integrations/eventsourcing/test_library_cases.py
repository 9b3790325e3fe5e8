"""
The library's own reusable test cases, with our mapper, over its three databases and our modules for them.

Each case is a subclass made here of one that the library ships in ``eventsourcing.tests``, run as it stands,
in the environment that an application would have. What must differ is overridden below: a compressor and a
cipher beside our mapper are refused.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from eventsourcing import popo, postgres, sqlite
from eventsourcing.domain import DomainEvent
from eventsourcing.persistence import InfrastructureFactory
from eventsourcing.tests import application as application_cases
from eventsourcing.tests import persistence as persistence_cases
from eventsourcing.tests import projection as projection_cases
from eventsourcing.utils import Environment, get_topic
from tests.integrations.eventsourcing.conftest import LIBRARY, MAPPER, OURS, library_environment

from eventseal.cipher import inspect
from eventseal.errors import ConfigurationError, IntegrityError
from eventseal.integrations.eventsourcing import EncryptingMapper
from eventseal.integrations.eventsourcing.popo import SealedPOPOFactory
from eventseal.integrations.eventsourcing.postgres import SealedPostgresFactory
from eventseal.integrations.eventsourcing.sqlite import SealedSQLiteFactory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from unittest import TestCase

pytestmark = pytest.mark.slow

FACTORIES = {
    f"{LIBRARY}.popo": popo.POPOFactory,
    f"{LIBRARY}.sqlite": sqlite.SQLiteFactory,
    f"{LIBRARY}.postgres": postgres.PostgresFactory,
    f"{OURS}.popo": SealedPOPOFactory,
    f"{OURS}.sqlite": SealedSQLiteFactory,
    f"{OURS}.postgres": SealedPostgresFactory,
}
RECORDERS = {
    "popo": (
        popo.POPOAggregateRecorder,
        popo.POPOApplicationRecorder,
        popo.POPOTrackingRecorder,
        popo.POPOProcessRecorder,
    ),
    "sqlite": (
        sqlite.SQLiteAggregateRecorder,
        sqlite.SQLiteApplicationRecorder,
        sqlite.SQLiteTrackingRecorder,
        sqlite.SQLiteProcessRecorder,
    ),
    "postgres": (
        postgres.PostgresAggregateRecorder,
        postgres.PostgresApplicationRecorder,
        postgres.PostgresTrackingRecorder,
        postgres.PostgresProcessRecorder,
    ),
}


class TrackingOfTheTest(popo.POPOTrackingRecorder):
    """A tracking recorder that a factory is told to make."""


class SQLiteTrackingOfTheTest(sqlite.SQLiteTrackingRecorder):
    """The same on SQLite."""


class PostgresTrackingOfTheTest(postgres.PostgresTrackingRecorder):
    """The same on PostgreSQL."""


OWN_TRACKING = {
    "popo": TrackingOfTheTest,
    "sqlite": SQLiteTrackingOfTheTest,
    "postgres": PostgresTrackingOfTheTest,
}


class Counters(popo.POPOTrackingRecorder, projection_cases.EventCountersView):
    """The view that the cases of projections fill."""

    def __init__(self) -> None:
        super().__init__()
        self.created = self.subsequent = 0

    def get_created_event_counter(self) -> int:
        return self.created

    def get_subsequent_event_counter(self) -> int:
        return self.subsequent

    def incr_created_event_counter(self, tracking: Any) -> None:
        self.insert_tracking(tracking)
        self.created += 1

    def incr_subsequent_event_counter(self, tracking: Any) -> None:
        self.insert_tracking(tracking)
        self.subsequent += 1


class InEnvironment:
    """Puts a case into the environment of an application on an empty database."""

    module: str
    database: str

    @pytest.fixture(autouse=True)
    def _environment(self, request: Any, monkeypatch: Any, sealed_process: Any) -> Iterator[None]:
        url = request.getfixturevalue("postgres_url" if self.database == "postgres" else "sqlite_url")
        sealed_process(url)
        self.variables = {
            "PERSISTENCE_MODULE": self.module,
            "MAPPER_TOPIC": MAPPER,
            "EVENTCOUNTERS_PERSISTENCE_MODULE": "eventsourcing.popo",
            **({} if self.database == "popo" else library_environment(url)),
        }
        for name, value in self.variables.items():
            monkeypatch.setenv(name, value)
        self.expected_factory_topic = get_topic(FACTORIES[self.module])
        return


class Factory(InEnvironment, persistence_cases.InfrastructureFactoryTestCase[Any]):
    def setUp(self) -> None:
        self.env = Environment(env=self.variables)
        super().setUp()

    def expected_factory_class(self) -> Any:
        return FACTORIES[self.module]

    def expected_aggregate_recorder_class(self) -> Any:
        return RECORDERS[self.database][0]

    def expected_application_recorder_class(self) -> Any:
        return RECORDERS[self.database][1]

    def expected_tracking_recorder_class(self) -> Any:
        return RECORDERS[self.database][2]

    def tracking_recorder_subclass(self) -> Any:
        return OWN_TRACKING[self.database]

    def expected_process_recorder_class(self) -> Any:
        return RECORDERS[self.database][3]

    def test_mapper(self) -> None:
        super().test_mapper()
        assert isinstance(self.factory.mapper(transcoder=self.transcoder), EncryptingMapper)

    def test_mapper_with_compressor(self) -> None:
        with pytest.raises(ConfigurationError, match="compress"):
            super().test_mapper_with_compressor()

    def test_mapper_with_cipher(self) -> None:
        self.env["CIPHER_KEY"] = "MDEyMzQ1Njc4OWFiY2RlZg=="
        with pytest.raises(ConfigurationError, match="encrypts itself"):
            self.factory.mapper(transcoder=self.transcoder)

    def test_mapper_with_cipher_and_compressor(self) -> None:
        with pytest.raises(ConfigurationError, match="encrypts itself, but"):
            super().test_mapper_with_cipher_and_compressor()

    def test_mapper_with_wrong_cipher_key(self) -> None:
        mapper = self.factory.mapper(transcoder=self.transcoder)
        event = DomainEvent(
            originator_id=uuid4(), originator_version=1, timestamp=DomainEvent.create_timestamp()
        )
        stored = mapper.to_stored_event(event)
        assert mapper.to_domain_event(stored) == event
        moved = type(stored)(uuid4(), stored.originator_version, stored.topic, stored.state)
        with pytest.raises(IntegrityError):
            mapper.to_domain_event(moved)


class OfFactory(InEnvironment):
    """Gives a case the recorders of the environment's factory."""

    def setUp(self) -> None:
        self.before = set(threading.enumerate())
        self.factory: Any = InfrastructureFactory.construct(Environment(env=self.variables))

    def tearDown(self) -> None:
        # The library's cases tell their readers to end, and do not wait for it. SQLite crashes the process if
        # a connection is closed that another thread is just reading from.
        for thread in set(threading.enumerate()) - self.before:
            if not thread.daemon:
                thread.join(timeout=60)
        self.factory.close()

    def new_originator_id(self) -> UUID:
        return uuid4()


class AggregateRecorder(OfFactory, persistence_cases.AggregateRecorderTestCase):
    def create_recorder(self) -> Any:
        return self.factory.aggregate_recorder()


class ApplicationRecorder(OfFactory, persistence_cases.ApplicationRecorderTestCase[Any]):
    def create_recorder(self) -> Any:
        return self.factory.application_recorder()


class ProcessRecorder(OfFactory, persistence_cases.ProcessRecorderTestCase):
    def create_recorder(self) -> Any:
        return self.factory.process_recorder()


class Tracking(OfFactory, persistence_cases.TrackingRecorderTestCase):
    def create_recorder(self) -> Any:
        return self.factory.tracking_recorder()


class ExampleApplication(InEnvironment, application_cases.ExampleApplicationTestCase):
    def test_example_application(self) -> None:
        super().test_example_application()
        with application_cases.BankAccounts() as app:
            account = app.open_account("Bob", "bob@example.com")
            (stored,) = app.recorder.select_events(account)
            assert inspect(stored.state).version == 1


@pytest.mark.filterwarnings("default:'log' is deprecated")  # which the case looks for
class Application(InEnvironment, application_cases.ApplicationTestCase):
    pass


class NonInterleaving(OfFactory, persistence_cases.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> Any:
        return self.factory.application_recorder()


class EventSourcedProjection(InEnvironment, projection_cases.EventSourcedProjectionTestCase):
    pass


class AggregateProjection(InEnvironment, projection_cases.AggregateEventCountersProjectionTestCase):
    view_class = Counters


RECORDING = (AggregateRecorder, ApplicationRecorder, ProcessRecorder, Tracking, NonInterleaving)
SUBSCRIBING = (EventSourcedProjection, AggregateProjection)
CASES = (
    Factory,
    AggregateRecorder,
    ApplicationRecorder,
    ProcessRecorder,
    Tracking,
    NonInterleaving,
    ExampleApplication,
    Application,
    *SUBSCRIBING,
)


def _made() -> Iterator[tuple[str, type[TestCase]]]:
    for module in FACTORIES:
        package, _, database = module.rpartition(".")
        for case in CASES:
            if case in SUBSCRIBING and database == "sqlite":
                continue  # the library's SQLite recorder has no subscriptions
            if case in RECORDING and package == LIBRARY:
                continue  # nothing of ours is in there
            name = f"Test{case.__name__}Over{'Our' if package == OURS else 'Its'}{database.title()}"
            made = type(name, (case,), {"module": module, "database": database, "__module__": __name__})
            yield name, pytest.mark.postgres(made) if database == "postgres" else made


globals().update(_made())
del (
    Factory,
    AggregateRecorder,
    ApplicationRecorder,
    ProcessRecorder,
    Tracking,
    NonInterleaving,
    ExampleApplication,
    Application,
    EventSourcedProjection,
    AggregateProjection,
)

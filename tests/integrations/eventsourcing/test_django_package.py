"""Under eventsourcing-django, which `make eventsourcing` has in an environment of its own."""

from __future__ import annotations

from contextlib import closing
from uuid import uuid4

import pytest
from eventsourcing.persistence import StoredEvent
from tests.integrations.eventsourcing.conftest import MAPPER
from tests.integrations.eventsourcing.dogs import DogSchool

from eventseal.cipher import inspect
from eventseal.errors import IntegrityError
from eventseal.integrations import eventsourcing

django = pytest.importorskip("django", reason="not here: see `make eventsourcing`")
pytest.importorskip("eventsourcing_django", reason="not here: see `make eventsourcing`")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Django, with the package's tables in a file."""
    from django.conf import settings
    from django.core.management import call_command

    file = tmp_path_factory.mktemp("django") / "school.sqlite"
    settings.configure(
        INSTALLED_APPS=["eventsourcing_django"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file)}},
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()
    call_command("migrate", verbosity=0)
    yield
    django.db.connections.close_all()


@pytest.fixture(params=["its", "ours"])
def module(request, tables):
    if request.param == "its":
        return "eventsourcing_django.factory:Factory"
    from eventsourcing_django import factory

    class Factory(eventsourcing.SealedInfrastructure, factory.Factory):
        """As the page for users of the library has it."""

    globals()["Factory"] = Factory
    return f"{__name__}:Factory"


def test_events_are_sealed_and_read_and_no_state_is_moved(sqlite_url, sealed_process, module):
    sealed_process(sqlite_url)
    with closing(DogSchool(env={"PERSISTENCE_MODULE": module, "MAPPER_TOPIC": MAPPER})) as school:
        dog = school.register("Fido", "sit", "stay")
        school.take_snapshot(dog)
        school.teach(dog, "come")
        assert school.tricks(dog) == ["sit", "stay", "come"]
        stored = school.recorder.select_events(dog)
        assert {inspect(one.state).version for one in stored} == {1}
        assert not any(b"Fido" in one.state for one in stored)
        with pytest.raises(IntegrityError):
            school.mapper.to_domain_event(StoredEvent(uuid4(), 2, stored[1].topic, stored[1].state))

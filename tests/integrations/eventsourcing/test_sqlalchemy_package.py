"""Under eventsourcing-sqlalchemy, which `make eventsourcing` has in an environment of its own."""

from __future__ import annotations

from contextlib import closing
from importlib import import_module

import pytest
from tests.integrations.eventsourcing.conftest import MAPPER
from tests.integrations.eventsourcing.dogs import DogSchool

from eventseal.cipher import inspect
from eventseal.integrations import eventsourcing
from eventseal.rotation import reencrypt, retire, rotate_keys, verify

pytest.importorskip("eventsourcing_sqlalchemy", reason="not here: see `make eventsourcing`")
factory = import_module("eventsourcing_sqlalchemy.factory")


class Factory(eventsourcing.SealedInfrastructure, factory.SQLAlchemyFactory):
    """As the page for users of the library has it."""


class School(DogSchool):
    name = "stored"

    def close(self):
        super().close()
        self.factory.datastore.engine.dispose()  # which the package leaves open


MODULES = ("eventsourcing_sqlalchemy", f"{__name__}:Factory")


@pytest.mark.parametrize("module", MODULES, ids=["its", "ours"])
def test_events_are_sealed_and_read(store_url, sealed_process, module):
    sealed_process(store_url)
    environment = {"PERSISTENCE_MODULE": module, "MAPPER_TOPIC": MAPPER, "SQLALCHEMY_URL": store_url}
    with closing(School(env=environment)) as school:
        dog = school.register("Fido", "sit", "stay")
        school.take_snapshot(dog)
        school.teach(dog, "come")
        assert school.tricks(dog) == ["sit", "stay", "come"]
        assert {inspect(stored.state).version for stored in school.recorder.select_events(dog)} == {1}


@pytest.mark.postgres
@pytest.mark.parametrize("module", MODULES, ids=["its", "ours"])
def test_its_tables_on_postgresql_are_rotated_in_place(postgres_url, sealed_process, module):
    sealed_process(postgres_url)
    environment = {"PERSISTENCE_MODULE": module, "MAPPER_TOPIC": MAPPER, "SQLALCHEMY_URL": postgres_url}
    with closing(School(env=environment)) as school:
        dog = school.register("Fido", "sit", "stay")
        school.take_snapshot(dog)
        seal = sealed_process(postgres_url, eventsourcing_tables="stored_events,stored_snapshots")
        rotate_keys(seal)
        assert reencrypt(seal).done == 4
        assert retire(seal).done == 1
        assert verify(seal).failed == 0
        school.mapper.refresh_keys()
        school.teach(dog, "come")
        assert school.tricks(dog) == ["sit", "stay", "come"]

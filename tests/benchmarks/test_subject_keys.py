"""A key for each subject, under branch keys: the time that making and loading one takes, and its bytes."""

from __future__ import annotations

from itertools import count

import pytest

from eventseal.keys import DataKey, InMemoryKeyStore, Keyring
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal_kms.local import LocalKmsAdapter

pytestmark = pytest.mark.slow

PAGE, BRANCHES, SUBJECTS = 100, 16, 2_000
WITHOUT = "under the KEK itself"


@pytest.fixture(params=["memory", "SQLite"])
def key_store(request, sqlite_url):
    if request.param == "memory":
        yield InMemoryKeyStore()
        return
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(sqlite_url))
    datastore.setup_tables()
    yield SQLAlchemyKeyStore(datastore)
    datastore.close()


@pytest.fixture
def kms(tmp_path):
    """In this process, so that what is measured is what branch keys cost, without what they save."""
    return LocalKmsAdapter.create(tmp_path / "dev.key")


@pytest.fixture
def place(request):
    return request.node.callspec.id


def page_maker(keyring: Keyring):
    numbers = count()

    def make() -> list[DataKey]:
        page = next(numbers)
        scopes = [f"subject:customer-{page:04}-{number:03}" for number in range(PAGE)]
        return list(keyring.sealing_keys(dict.fromkeys(scopes, 1)).values())

    return make


def page_loader(kms, key_store, ids):
    def load() -> None:
        keyring = Keyring(kms, key_store)
        keyring.opening_keys(ids[:1])  # the store key, the mark and a branch key
        found = keyring.opening_keys(ids)
        assert all(isinstance(key, DataKey) for key in found.values())

    return load


def test_make_a_subject_key(kms, key_store, place, side_by_side):
    branched = Keyring(kms, key_store, application="branched", branches=BRANCHES)
    work = {"EventSeal": page_maker(branched), WITHOUT: page_maker(Keyring(kms, key_store))}
    side_by_side(f"make a subject key, {place}", work, PAGE)


def test_load_a_subject_key(kms, key_store, place, side_by_side):
    under_branches = page_maker(Keyring(kms, key_store, branches=BRANCHES))()
    under_kek = page_maker(Keyring(kms, key_store))()
    work = {
        name: page_loader(kms, key_store, [key.key_id for key in keys])
        for name, keys in (("EventSeal", under_branches), (WITHOUT, under_kek))
    }
    side_by_side(f"load a subject key, {place}", work, PAGE)


def test_bytes_of_a_subject_key(kms, tmp_path, benchmark, report_size):
    def bytes_with(subjects: int) -> int:
        file = tmp_path / f"{subjects}.sqlite"
        datastore = SQLAlchemyDatastore(SQLAlchemySettings(f"sqlite:///{file}"))
        datastore.setup_tables()
        make = page_maker(Keyring(kms, SQLAlchemyKeyStore(datastore), branches=BRANCHES))
        for _ in range(subjects // PAGE):
            make()
        datastore.close()
        return file.stat().st_size

    empty = bytes_with(0)
    size = (benchmark.pedantic(bytes_with, args=(SUBJECTS,), rounds=1) - empty) / SUBJECTS
    benchmark.extra_info["bytes of a subject key"] = size
    report_size("a subject key in SQLite", size)
    assert 300 < size < 1_000

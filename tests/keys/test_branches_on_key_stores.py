"""Branch keys over every key store: what they cost, and that processes that race make one of each."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import event
from tests.fixtures.key_marks import mark_of

from eventseal.errors import IntegrityError, KeyDestroyedError
from eventseal.keys import DataKey, InMemoryKeyStore, KeyPurpose, Keyring, KeyState
from eventseal.keys.wrapping.branches import branch_scopes
from eventseal.storage import SQLAlchemyDatastore, SQLAlchemyKeyStore, SQLAlchemySettings
from eventseal.testing import FakeBatchKms, FakeKms
from eventseal_kms.local import LocalKmsAdapter

RACER = Path(__file__).with_name("branch_racer.py")
STORES = ["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture
def datastore(request, store_name):
    if store_name == "memory":
        yield None
        return
    url = request.getfixturevalue("sqlite_url" if store_name == "sqlite" else "postgres_url")
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(url))
    datastore.setup_tables()
    yield datastore
    datastore.close()


@pytest.fixture(params=STORES)
def store_name(request) -> str:
    return request.param


@pytest.fixture
def store(datastore):
    return InMemoryKeyStore() if datastore is None else SQLAlchemyKeyStore(datastore)


def branches_of(store) -> list:
    return list(store.active("default", branch_scopes(64), purpose=KeyPurpose.BRANCH).values())


@pytest.mark.slow
def test_data_keys_are_made_and_open_elsewhere(store) -> None:
    kms = FakeBatchKms()
    keyring = Keyring(kms, store, branches=8)
    names = [f"subject:{number}" for number in range(700)]
    ids = {scope: key.key_id for scope, key in keyring.sealing_keys(dict.fromkeys(names, 1)).items()}
    assert kms.count("generate_data_key") == 9
    kms.calls.clear()
    other = Keyring(kms, store)
    found = other.opening_keys(list(ids.values()))
    assert all(isinstance(key, DataKey) for key in found.values())
    assert [(call.operation, len(call.key_ids)) for call in kms.calls] == [("unwrap", 1), ("unwrap_many", 8)]
    assert other.counters.store_queries == 4  # the store key, the mark, the keys, the branch keys
    assert {scope: key.key_id for scope, key in other.sealing_keys(dict.fromkeys(names, 0)).items()} == ids
    assert len(branches_of(store)) == 8


def test_threads_of_two_keyrings_that_race_make_one_key_for_each_branch(store) -> None:
    kms = FakeKms()
    keyrings = [Keyring(kms, store, branches=4) for _ in range(2)]
    barrier = threading.Barrier(8)

    def make(number: int):
        barrier.wait(60)
        return keyrings[number % 2].sealing_keys({f"{number // 2}:{n}": 1 for n in range(30)})

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(8)))
    for first, second in zip(made[::2], made[1::2], strict=True):
        assert {s: key.key_id for s, key in first.items()} == {s: key.key_id for s, key in second.items()}
    assert len(branches_of(store)) == 4
    purposes = Counter(record.purpose for record in store.page("default"))
    assert purposes == {KeyPurpose.STORE: 1, KeyPurpose.BRANCH: 4, KeyPurpose.DATA: 120}
    found = Keyring(kms, store).opening_keys([key.key_id for some in made for key in some.values()])
    assert all(isinstance(key, DataKey) for key in found.values())


@pytest.mark.slow
def test_branches_rotate_while_keys_are_made_and_all_keys_open(store) -> None:
    kms = FakeKms()
    maker, rotator = Keyring(kms, store, branches=2), Keyring(kms, store, branches=2)
    maker.prepare(["warm"])
    stop = threading.Event()

    def rotate() -> int:
        for turn in range(5):
            rotator.rotate_branches(compromised=turn == 2)
            maker.refresh()
        stop.set()
        return turn

    def make(number: int) -> list[UUID]:
        made: list[UUID] = []
        while not stop.is_set():
            scope = f"{number}:{len(made)}"
            made.append(maker.sealing_keys({scope: 1})[scope].key_id)
        return made

    with ThreadPoolExecutor(4) as pool:
        rotating = pool.submit(rotate)
        ids = [key_id for made in pool.map(make, range(3)) for key_id in made]
        rotating.result(60)
    found = Keyring(kms, store).opening_keys(ids)
    assert all(isinstance(key, DataKey) for key in found.values())
    states = Counter(r.state for r in store.page("default") if r.purpose is KeyPurpose.BRANCH)
    assert states[KeyState.ACTIVE] == 2
    assert states[KeyState.COMPROMISED] == 2


@pytest.mark.slow
@pytest.mark.parametrize("store_name", STORES[1:], indirect=True)
def test_processes_that_race_make_one_key_for_each_branch(store, datastore, tmp_path) -> None:
    key_file = tmp_path / "dev.key"
    kms = LocalKmsAdapter.create(key_file)
    url = datastore.settings.url.render_as_string(hide_password=False)
    racers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", RACER, url, key_file, f"racer-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        made = [json.loads(racer.stdout.readline()) for racer in racers]
    finally:
        for racer in racers:
            racer.communicate(timeout=60)
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(branches_of(store)) == 4
    assert len({keys["shared"] for keys in made}) == 1
    ids = {UUID(key_id) for keys in made for key_id in keys.values()}
    found = Keyring(kms, store).opening_keys(ids)
    assert all(isinstance(key, DataKey) for key in found.values())
    assert len(found) == 121


@pytest.mark.parametrize("store_name", STORES[1:], indirect=True)
def test_a_page_of_500_new_scopes_is_one_transaction_with_few_statements(store, datastore) -> None:
    kms = FakeKms()
    keyring = Keyring(kms, store, branches=4)
    keyring.prepare([f"warm:{number}" for number in range(50)])
    statements, commits = [], []
    engine = datastore.key_engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2].split()[0]))
    event.listen(engine, "commit", commits.append)
    kms.calls.clear()
    keyring.prepare([f"subject:{number}" for number in range(500)])
    assert kms.calls == []
    assert len(commits) == 1
    assert len(statements) < 15, statements


def test_edited_rows_are_refused_as_they_stand_in_the_database(store, datastore, needed_branches_end) -> None:
    kms = FakeKms()
    keyring = Keyring(kms, store, branches=1)
    first, second = [key.key_id for key in keyring.sealing_keys({"a": 1, "b": 1}).values()]
    (branch,) = branches_of(store)
    _set_wrapping(store, datastore, first, store.get([second])[second].wrappings[0].ciphertext)
    outcome = Keyring(kms, store).opening_keys([first, second])
    assert isinstance(outcome[first], IntegrityError)
    assert isinstance(outcome[second], DataKey)
    _destroy(store, kms, branch, needed_branches_end)
    outcome = Keyring(kms, store).opening_keys([second])[second]
    assert isinstance(outcome, KeyDestroyedError)


def _set_wrapping(store, datastore, key_id, ciphertext: bytes) -> None:
    from dataclasses import replace

    from eventseal.storage.keys.tables import key_wrappings

    if datastore is None:
        record = store._records[key_id]
        edited = (replace(record.wrappings[0], ciphertext=ciphertext),)
        store._records[key_id] = replace(record, wrappings=edited)
        return
    with datastore.key_engine.begin() as connection:
        connection.execute(
            key_wrappings.update().where(key_wrappings.c.key_id == key_id).values(wrapped=ciphertext)
        )


def _destroy(store, kms, record, needed_branches_end) -> None:
    from dataclasses import replace

    seals = Keyring(kms, store)._ring.store_key.made_seals()
    tombstone = seals.sealed(
        replace(
            record,
            state=KeyState.DESTROYED,
            destroyed_by="retired",
            active_scope=None,
            row_version=record.row_version + 1,
        )
    )
    with needed_branches_end():
        assert store.set_states([tombstone], next_mark=mark_of(seals, [tombstone]))

"""Several processes on one database: forked ones, and ones that race for a key."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest

from eventseal.keys.states import KeyPurpose, KeyState
from eventseal.storage import SQLAlchemyKeyStore
from eventseal_kms.local import LocalKmsAdapter

PROCESSES = 4

FORK = """
import os, sys
from uuid import uuid4
from sqlalchemy import text
from eventseal.items.item import SequencedItem
from eventseal.storage import *

datastore = SQLAlchemyDatastore(SQLAlchemySettings(sys.argv[1]), [IntegerSequencedItemRecord])
datastore.setup_tables()
strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, datastore.session)
key_store, key_id = SQLAlchemyKeyStore(datastore), uuid4()

def use(expected):
    strategy.append(SequencedItem(uuid4(), 0, "topic", b"data", key_id))
    assert len(list(strategy.all_items())) == expected
    assert key_store.get([key_id]) == {}

def backends():
    # The server's side of the connection that the session holds, and of an idle one.
    if "postgresql" not in sys.argv[1]:
        return set()
    ask = text("SELECT pg_backend_pid()")
    with datastore.engine.connect() as connection:
        return {session().execute(ask).scalar_one(), connection.execute(ask).scalar_one()}

use(1)
key_store.now()
session = datastore.session
session.execute(text("SELECT 1"))  # the session holds a connection while the process forks
parents = backends()
child = os.fork()
if child == 0:
    try:
        assert not session().in_transaction()
        assert not backends() & parents
        session.rollback()
        for expected in (2, 3):
            use(expected)
        datastore.close()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0
assert session().in_transaction()
assert backends() == parents
session.rollback()
use(4)
datastore.close()
"""

RACE = """
import sys, warnings
from eventseal.keys import Keyring
from eventseal.storage import *
from eventseal_kms.local import LocalKmsAdapter

warnings.simplefilter("ignore")
url, kek = sys.argv[1:]
datastore = SQLAlchemyDatastore(SQLAlchemySettings(url))
keyring = Keyring(LocalKmsAdapter.from_uri(kek), SQLAlchemyKeyStore(datastore), application="shop")
print("ready", flush=True)
sys.stdin.readline()
key = keyring.sealing_keys({"tenant:acme": 1})["tenant:acme"]
print(key.key_id, keyring.counters.kms_calls)
keyring.close()
datastore.close()
"""


CROWD = """
import json, os, sys, warnings
from eventseal.keys import CachePolicy, Keyring
from eventseal.storage import *
from eventseal.testing import FakeKms, ManualClock

url, count, store = sys.argv[1], int(sys.argv[2]), sys.argv[3]
kms = FakeKms("kek")
kms.delay = 0.02
scope = "tenant:acme"

def work(go):
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(url), [IntegerSequencedItemRecord])
    clock, cache = ManualClock(), CachePolicy(ttl=1e9)
    keyring = Keyring(kms, SQLAlchemyKeyStore(datastore), application="shop", clock=clock, cache=cache)
    if store == "expired":
        keyring.sealing_keys({scope: 1})
        clock.advance(91 * 86400)
        ready()
    os.read(go, 1)
    if store == "new":
        datastore.setup_tables()
    key = keyring.sealing_keys({scope: 1})[scope]
    return {"key": str(key.key_id), "made": kms.count("generate_data_key")}

if store != "new":
    datastore = SQLAlchemyDatastore(SQLAlchemySettings(url), [IntegerSequencedItemRecord])
    datastore.setup_tables()
    if store == "expired":
        Keyring(kms, SQLAlchemyKeyStore(datastore), application="shop").prepare([scope])
    datastore.close()
    kms.calls.clear()
go, start = os.pipe()
readers, ready_end = os.pipe()
answers, answer_end = os.pipe()

def ready():
    os.write(ready_end, b".")

for _ in range(count):
    if os.fork() == 0:
        os.close(start)
        try:
            answer = work(go)
        except BaseException as error:
            answer = {"error": repr(error)}
        os.write(answer_end, json.dumps(answer).encode() + b"\\n")
        os._exit(0)
os.close(answer_end)
if store == "expired":
    for _ in range(count):
        os.read(readers, 1)
os.close(start)
with open(answers) as lines:
    sys.stdout.writelines(lines)
"""


def crowd(url: str, processes: int, store: str) -> list[dict[str, Any]]:
    """
    Let processes that were forked from one start together, and use the key of one scope.

    Args:
        url: An empty database.
        processes: How many.
        store: ``new`` if they create its tables too, ``empty`` if it has no key yet, or ``expired`` if the
            key of the scope is due for rotation.
    """
    command = [sys.executable, "-W", "error", "-c", CROWD, url, str(processes), store]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == processes
    assert not [answer["error"] for answer in answers if "error" in answer]
    return answers


@pytest.mark.slow
def test_fifty_processes_that_start_together_make_one_key(store_url, open_datastore):
    # PostgreSQL takes long to list its tables for each of them.
    answers = crowd(store_url, 50, "new" if store_url.startswith("sqlite") else "empty")
    assert len({answer["key"] for answer in answers}) == 1
    assert sum(answer["made"] for answer in answers) == 2  # with the store key
    assert len(SQLAlchemyKeyStore(open_datastore(store_url, setup=False)).page("shop")) == 2


@pytest.mark.slow
@pytest.mark.postgres
def test_processes_that_set_up_a_new_store_on_postgresql_together_make_one_key(postgres_url):
    assert sum(answer["made"] for answer in crowd(postgres_url, 8, "new")) == 2


@pytest.mark.slow
def test_processes_whose_key_expires_make_one_new_key(store_url, open_datastore):
    answers = crowd(store_url, 12, "expired")
    assert sum(answer["made"] for answer in answers) == 1
    records = SQLAlchemyKeyStore(open_datastore(store_url, setup=False)).page("shop")
    data_keys = [record for record in records if record.purpose is KeyPurpose.DATA]
    assert sorted(record.state for record in data_keys) == [KeyState.ACTIVE, KeyState.DEACTIVATED]


@pytest.mark.slow
def test_a_forked_process_uses_connections_of_its_own(store_url):
    command = [sys.executable, "-W", "error", "-c", FORK, store_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::eventseal_kms.local.DevelopmentKeyWarning")
def test_processes_that_race_on_a_cold_scope_make_one_data_key_and_one_store_key(
    store_url, open_datastore, tmp_path
):
    key_store = SQLAlchemyKeyStore(open_datastore(store_url))
    path = tmp_path / "dev.key"
    LocalKmsAdapter.create(path)
    command = [sys.executable, "-W", "error", "-c", RACE, store_url, f"local://{path}"]
    with ExitStack() as running:
        racers = [
            running.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(PROCESSES)
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        answers = []
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=120)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * PROCESSES
    records = key_store.page("shop")
    assert [record.state for record in records] == [KeyState.ACTIVE] * 2
    assert {record.purpose for record in records} == {KeyPurpose.STORE, KeyPurpose.DATA}
    (data_key,) = [record.key_id for record in records if record.purpose is KeyPurpose.DATA]
    assert {UUID(key_id) for key_id, _ in answers} == {data_key}
    assert (
        max(int(calls) for _, calls in answers) <= 4
    )  # two keys, each made and, if the race was lost, unwrapped

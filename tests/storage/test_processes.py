"""Several processes on one database: forked ones, and ones that race for a key."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
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

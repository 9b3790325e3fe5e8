"""The eventsourcing library's tables by the settings alone: made ready by init, looked at by doctor."""

from __future__ import annotations

import pytest
from tests.fixtures.eventsourcing_store import EVENTS, SNAPSHOTS, LibraryStore

from eventseal.configuration import EventSeal, load_settings
from eventseal.configuration.diagnosis import Severity, diagnose
from eventseal.configuration.initialise import initialise
from eventseal.errors import ConfigurationError
from eventseal.rotation import reencrypt, retire, rotate_keys
from eventseal.storage.items.key_id_indexes import index_name
from eventseal_kms.local import LocalKmsAdapter


@pytest.fixture
def library(store_url, monkeypatch):
    """The library's tables in a database that is to be ours by the environment alone."""
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key")
    monkeypatch.setenv("EVENTSEAL_STORE_URL", store_url)
    monkeypatch.setenv("EVENTSEAL_APPLICATION", "shop")
    monkeypatch.setenv("EVENTSEAL_LEDGER", "erasures.jsonl")
    LocalKmsAdapter.create("dev.key")
    store = LibraryStore(store_url, LocalKmsAdapter("dev.key"))
    yield store
    store.close()


@pytest.fixture
def listed(monkeypatch):
    monkeypatch.setenv("EVENTSEAL_EVENTSOURCING_TABLES", f"{EVENTS},{SNAPSHOTS}")


@pytest.fixture
def ready(library, listed):
    library.make_theirs()
    initialise()
    return library


def amiss():
    found = [finding for finding in diagnose() if finding.severity.asks_for_action]
    return [finding for finding in found if "fsync is off" not in finding.text]


def the_one(word):
    (finding,) = [finding for finding in diagnose() if word in finding.text]
    return finding


def the_step(*, dry_run=False):
    (step,) = [step for step in initialise(dry_run=dry_run) if step.name == "eventsourcing"]
    return step


@pytest.mark.slow
def test_init_makes_triggers_and_index_once(library, listed):
    library.make_theirs()
    assert the_step(dry_run=True).changed
    assert the_step(dry_run=True).changed
    step = the_step()
    assert (step.changed, step.detail) == (True, f"triggers and index of {EVENTS}, {SNAPSHOTS}")
    assert not the_step().changed
    assert not any(step.changed for step in initialise())
    assert amiss() == []


@pytest.mark.slow
def test_init_says_which_tables_are_not_there_yet(library, listed):
    step = the_step()
    assert not step.changed
    assert step.detail.startswith(f"no table yet: {EVENTS}, {SNAPSHOTS}")
    finding = the_one("not in the database yet")
    assert (finding.severity, finding.text) == (
        Severity.NOTE,
        f"listed in eventsourcing_tables, but not in the database yet: {EVENTS}, {SNAPSHOTS}",
    )
    library.make_theirs()
    assert the_step().changed
    assert amiss() == []


def test_init_says_nothing_of_them_where_none_is_listed(library):
    assert "eventsourcing" not in {step.name for step in initialise()}


@pytest.mark.slow
def test_doctor_tells_tables_that_nobody_listed(library, monkeypatch):
    library.make_theirs()
    initialise()
    finding = the_one(f"with the columns of the eventsourcing library: {EVENTS}, {SNAPSHOTS}")
    assert f'eventsourcing_tables = ["{EVENTS}", "{SNAPSHOTS}"]' in finding.remedy
    assert f'unsealed_tables = ["{EVENTS}", "{SNAPSHOTS}"]' in finding.remedy
    monkeypatch.setenv("EVENTSEAL_UNSEALED_TABLES", f"{EVENTS},{SNAPSHOTS}")
    assert amiss() == []


@pytest.mark.slow
def test_doctor_tells_the_one_that_was_forgotten_beside_those_that_are_listed(library, monkeypatch):
    library.make_theirs()
    monkeypatch.setenv("EVENTSEAL_EVENTSOURCING_TABLES", EVENTS)
    initialise()
    (finding,) = amiss()
    assert finding.text.endswith(f"library: {SNAPSHOTS}")
    assert f'eventsourcing_tables = ["{EVENTS}", "{SNAPSHOTS}"]' in finding.remedy


@pytest.mark.slow
def test_doctor_tells_tables_that_are_listed_and_not_registered(library, monkeypatch):
    library.make_theirs()
    monkeypatch.setenv("EVENTSEAL_UNSEALED_TABLES", SNAPSHOTS)
    initialise()
    monkeypatch.setenv("EVENTSEAL_EVENTSOURCING_TABLES", EVENTS)
    (finding,) = amiss()
    assert finding.text == f"table {EVENTS} is not registered for application shop"
    assert finding.remedy == "eventseal init"
    initialise()
    assert amiss() == []


@pytest.mark.slow
@pytest.mark.parametrize("event", ["insert", "update"])
def test_doctor_tells_a_trigger_that_is_missing(ready, event):
    ready.execute(
        f"DROP TRIGGER eventseal_fence_{event}_{EVENTS}" + (f" ON {EVENTS}" if ready.on_postgresql else "")
    )
    (finding,) = amiss()
    assert f"table {EVENTS}, which another program writes, has no trigger" in finding.text
    assert finding.remedy == "eventseal init"
    assert the_step().detail == f"triggers and index of {EVENTS}"
    assert amiss() == []


@pytest.mark.slow
def test_doctor_tells_an_index_that_is_missing(ready):
    with EventSeal.from_settings() as seal:
        (table, _) = seal.datastore.described_eventsourcing_tables()
        ready.execute(f"DROP INDEX {index_name(seal.datastore.engine, table)}")
    (finding,) = amiss()
    assert f"table {EVENTS} lacks an index on the key ids in its envelopes" in finding.text
    initialise()
    assert amiss() == []


@pytest.mark.slow
def test_doctor_finds_items_under_keys_that_are_gone(ready):
    ready.append()
    key = ready.active_key()
    rotate_keys(ready.seal)
    reencrypt(ready.seal)
    (stale,) = ready.states(ready.new_id(), [1])
    retire(ready.seal)
    ready.execute("DELETE FROM eventseal_key_fences")
    ready.events.insert_events(
        [stale.__class__(stale.originator_id, 1, stale.topic, stale.state[:3] + key.bytes + stale.state[19:])]
    )
    assert f"items of table {EVENTS} name key {key}, which was retired" in the_one("was retired").text


@pytest.mark.slow
def test_the_commands_work_on_them_by_the_environment_alone(ready):
    ready.append(3)
    with EventSeal.from_settings() as seal:
        rotate_keys(seal)
        assert reencrypt(seal).done == 3
        assert retire(seal).done == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [("a.b.c", "does not name a table"), ("shop.", "does not name a table"), ("a,a", "listed twice")],
)
def test_a_name_that_names_no_table_is_refused(monkeypatch, value, words):
    monkeypatch.setenv("EVENTSEAL_EVENTSOURCING_TABLES", value)
    with pytest.raises(ConfigurationError, match=words):
        load_settings()


def test_the_type_of_ids_is_one_of_two(monkeypatch):
    monkeypatch.setenv("EVENTSEAL_ORIGINATOR_ID_TYPE", "integer")
    with pytest.raises(ConfigurationError, match="originator_id_type"):
        load_settings()

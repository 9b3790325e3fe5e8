"""``eventseal migrate``: three steps, each one command; and the copy of what older releases wrote."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from tests.fixtures import legacy
from tests.fixtures.old_formats import OLD_KEY, WRONG_KEY, cbc, gcm

from eventseal.configuration import EventSeal
from eventseal.items import SequencedItem
from eventseal.rotation.jobs import passes
from eventseal.storage import IntegerSequencedItemRecord, SQLAlchemyActiveRecordStrategy

ROOT = Path(__file__).parents[2]
EXECUTABLE = Path(sys.executable).with_name("eventseal")
ITEMS = "integer_sequenced_items"
PLAIN = b'{"customer":"Ada"}'
TOPIC = "tests.cli.conftest:Order"
KEY_64 = base64.b64encode(OLD_KEY).decode()


@pytest.fixture
def old(store, monkeypatch):
    """A store with 30 older items of three formats, and two envelopes."""
    monkeypatch.setenv("OLD", KEY_64)
    monkeypatch.setenv(
        "EVENTSEAL_OLD_FORMATS", "eventsourcing-cbc key=env:OLD,eventsourcing-gcm key=env:OLD,plain-json"
    )
    store(2)
    stream = uuid4()
    data = [[cbc(PLAIN), gcm(PLAIN), PLAIN][n % 3] for n in range(30)]
    with EventSeal.from_settings() as seal:
        strategy = SQLAlchemyActiveRecordStrategy(IntegerSequencedItemRecord, seal.datastore.session)
        strategy.append([SequencedItem(stream, n, TOPIC, each) for n, each in enumerate(data)])
    return stream


def test_three_commands_bring_everything_under_the_kek(run_json, run, old, query):
    begun = run_json("migrate", "begin")
    assert (begun["verb"], begun["left"], begun["failed"]) == ("migrate", 30, 0)
    assert begun["by_table"][ITEMS] == {
        "left": 30,
        "sampled": 30,
        "eventsourcing-cbc": 10,
        "eventsourcing-gcm": 10,
        "plain-json": 10,
    }
    done = run_json("migrate")
    assert (done["done"], done["left"], done["complete"]) == (30, 0, True)
    assert run_json("verify")["done"] == 32
    run("migrate", "finish")
    assert query(f"SELECT count(*) FROM {ITEMS} WHERE key_id IS NULL") == [(0,)]
    assert "no migration has begun" in run("migrate", exits=4).stderr


@pytest.mark.slow
def test_items_that_are_left_make_the_exit_code_1(run, run_json, old, monkeypatch):
    run("migrate", "begin")
    with monkeypatch.context() as patched:
        patched.setattr(passes, "MOST_PASSES", 0)
        assert "Not complete. To continue: eventseal migrate" in run("migrate", exits=1).stdout
    assert run_json("migrate")["left"] == 0


def test_people_are_told_what_comes_next(run, old):
    begun = run("migrate", "begin").stdout
    assert "Items to migrate: 30. Readers accept both formats now." in begun
    assert "EVENTSOURCING-CBC" in begun
    assert "30 items would be encrypted, in about 0:00:00" in run("migrate", "--dry-run").stdout
    done = run("migrate").stdout
    assert "Encrypted 30 items" in done
    assert done.rstrip().endswith("run `eventseal migrate finish`.")
    assert "No item is in an older format." in run("migrate", "finish", "--dry-run").stdout
    assert "destroy the keys of the older formats" in run("migrate", "finish").stdout


@pytest.mark.slow
def test_status_tells_the_next_step_until_nothing_old_is_read_any_more(run, run_json, old):
    def steps(**exits):
        return [step["command"] for step in run_json("status", **exits)["next"]]

    assert steps(exits=1) == ["eventseal verify"]  # nothing was begun, and no reader takes the items yet
    run("migrate", "begin")
    (step,) = run_json("status")["next"]
    assert step["command"] == "eventseal migrate"
    assert step["reason"].startswith("30 items must be migrated from eventsourcing-cbc, eventsourcing-gcm,")
    assert run_json("status")["old_formats"][ITEMS] == [
        "eventsourcing-cbc",
        "eventsourcing-gcm",
        "plain-json",
    ]
    run("migrate")
    assert steps() == ["eventseal migrate finish"]
    (job,) = run_json("status")["jobs"]
    assert (job["verb"], job["state"], job["done"]) == ("migrate", "finished", 30)
    assert "  migrate  finished" in run("status").stdout
    run("migrate", "finish")
    assert (steps(), run_json("status")["old_formats"]) == ([], {})


def test_of_a_migration_that_stopped_status_tells_how_it_goes_on(run, run_json, old, query):
    run("migrate", "begin")
    run("migrate")
    query(
        "UPDATE eventseal_reencryption_jobs SET state = 'running', updated_at = '2020-01-01 00:00:00.000000'"
    )
    (step,) = run_json("status")["next"]
    assert step["command"].startswith("eventseal migrate --resume ")
    assert step["reason"].startswith("a migration is not finished: 30 of 30 items done")
    run(*step["command"].split()[1:])
    assert [step["command"] for step in run_json("status")["next"]] == ["eventseal migrate finish"]


def test_what_is_left_is_counted_and_refused(run, old):
    run("migrate", "begin")
    refused = run("migrate", "finish", exits=4).stderr
    assert "30 items in integer_sequenced_items" in refused


def test_a_migration_that_is_abandoned_leaves_the_rest_to_no_reader(run, run_json, old):
    assert "no migration has begun" in run("migrate", "abandon", "--yes", exits=4).stderr
    run("migrate", "begin")
    assert run_json("migrate", "abandon", "--dry-run")["left"] == 30
    refused = run("migrate", "abandon", exits=2).stderr
    assert "error: readers are about to refuse 30 items in older formats. Not a terminal" in refused
    assert "confirmation is impossible. Nothing was changed" in refused
    assert run_json("status")["old_formats"] != {}
    said = run("migrate", "abandon", "--yes").stdout
    assert "Readers refuse 30 items in older formats. To accept them again: eventseal migrate begin" in said
    assert run_json("status", exits=1)["old_formats"] == {}
    assert run_json("verify", exits=1)["failed"] == 30
    run("migrate", "begin")
    assert run_json("migrate")["done"] == 30


def test_a_wrong_key_is_named_by_its_check_value_alone(run, old, monkeypatch, query):
    run("migrate", "begin")
    monkeypatch.setenv("OLD", base64.b64encode(WRONG_KEY).decode())
    refused = run("migrate", exits=2).stderr
    assert "the key of eventsourcing-cbc, whose check value is" in refused
    assert base64.b64encode(WRONG_KEY).decode() not in refused
    assert query(f"SELECT count(*) FROM {ITEMS} WHERE key_id IS NULL") == [(30,)]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("eventsourcing-cbc", "needs key=env:NAME or key=file:PATH"),
        (f"eventsourcing-cbc key={KEY_64}", "never a key itself"),
        ("eventsourcing-xyz key=env:OLD", "does not begin with one of"),
        ("plain-json key=env:OLD", "only before=... may follow plain-json"),
        ("plain-json plain-json", "may follow plain-json"),
        ("plain-json,plain-json", "listed twice"),
    ],
    ids=["no key", "a key itself", "unknown", "a key for plain", "a word", "twice"],
)
def test_a_setting_that_is_wrong_is_told_and_never_shown(run, store, monkeypatch, entry, said):
    monkeypatch.setenv("EVENTSEAL_OLD_FORMATS", entry)
    refused = run("migrate", "begin", exits=2).stderr
    assert said in refused
    assert KEY_64 not in refused


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("eventsourcing-gcm key=env:NOWHERE", "no such variable"),
        ("eventsourcing-gcm key=file:nowhere.key", "cannot be read"),
        ("eventsourcing-gcm key=env:BAD", "is not base64 of 16, 24 or 32 bytes"),
        ("eventsourcing-gcm key=env:OLD before=never", "is not a number"),
    ],
    ids=["no variable", "no file", "no key", "no position"],
)
def test_a_key_that_is_not_there_is_told_when_it_is_needed(run, store, monkeypatch, entry, said):
    monkeypatch.setenv("BAD", "c2hvcnQ=")
    monkeypatch.setenv("OLD", KEY_64)
    monkeypatch.setenv("EVENTSEAL_OLD_FORMATS", entry)
    refused = run("migrate", "begin", exits=2).stderr
    assert said in refused
    assert "c2hvcnQ=" not in refused
    run("verify")  # needs none of it


def test_a_key_may_be_in_a_file(run_json, old, tmp_path, monkeypatch):
    (tmp_path / "old.key").write_text(f"{KEY_64}\n")
    monkeypatch.delenv("OLD")
    monkeypatch.setenv(
        "EVENTSEAL_OLD_FORMATS",
        "eventsourcing-cbc key=file:old.key,eventsourcing-gcm key=file:old.key,plain-json",
    )
    assert run_json("migrate", "begin")["failed"] == 0


@pytest.mark.parametrize(
    "words",
    [
        ("begin", "finish"),
        ("begin", "--workers", "2"),
        ("finish", "--resume", "0190f3a2-5b1c-7a53-8f2e-8a1f3f6e6f0b"),
        ("abandon", "--key-scope", "tenant:a"),
        ("--key-scope", "tenant:a", "--key-scope-function", "a:b"),
        ("--into", "y"),
        ("copy", "x", "--table", "y"),
        ("copy", "x", "--only", "nothing"),
        ("copy", "x", "--key-scope", "tenant:a", "--key-scope-function", "a:b"),
        ("--key-scope-function", "no.such:function"),
        ("--begin", "--finish"),
        ("--copy", "x", "--begin"),
    ],
    ids=" ".join,
)
def test_words_that_do_not_go_together_are_refused(run, store, words):
    run("migrate", *words, exits=2)


@pytest.mark.slow
def test_several_workers_share_it(run_json, old, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("EVENTSEAL_EVENT_MODULES", "tests.cli.conftest")
    run_json("migrate", "begin")
    result = run_json("migrate", "--workers", "2", "--batch", "5")
    assert (result["done"], result["failed"], result["complete"]) == (30, 0, True)


@pytest.mark.slow
def test_the_oldest_release_is_copied_and_no_key_is_in_the_arguments(tmp_path, run, monkeypatch):
    path = legacy.copied(legacy.OLDEST, tmp_path)
    run(
        "init",
        "--kms-key",
        "local://dev.key",
        "--store-url",
        "sqlite:///shop.sqlite",
        "--application",
        "shop",
    )
    environment = {
        **os.environ,
        "OLD": legacy.old_key_64(legacy.OLDEST),
        "EVENTSEAL_OLD_FORMATS": "eventsourcing-cbc key=env:OLD,plain-json",
        "EVENTSEAL_OLD_STORE_URL": f"sqlite:///{path}",
        "EVENTSEAL_EVENT_MODULES": "tests.fixtures.old_example",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [str(EXECUTABLE), "migrate", "copy", ITEMS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert "Copied 130 items" in done.stdout
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert "Copied 0 items" in again.stdout
    assert "130" in run("verify").stdout

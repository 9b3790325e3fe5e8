"""``eventseal retire``: what goes, what stays and why, and whether a KEK may go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eventseal.configuration import EventSeal
from eventseal.keys import Keyring
from eventseal_kms.local import LocalKmsAdapter

ITEMS = "integer_sequenced_items"


@pytest.fixture
def old(store, query):
    """A rotated key with three items, which every process has noticed."""
    key_id = store(3)[0].key_id
    rotate("application")
    query("UPDATE key_changes SET refresh_interval = 0")
    return key_id


def rotate(*scopes):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(scopes)
        for scope in scopes:
            seal.keyring.rotate(scope)


def destroyed(query):
    return query("SELECT count(*) FROM encryption_keys WHERE state = 'destroyed'")[0][0]


def test_a_key_without_items_goes_and_one_with_items_stays(run_json, old, query):
    rotate("tenant:a")
    result = run_json("retire", "--yes")
    assert (result["verb"], result["done"], result["left"]) == ("retire", 1, 1)
    assert result["by_key"][str(old)] == 3
    assert destroyed(query) == 1
    assert run_json("verify")["done"] == 3


def test_people_are_told_what_needs_which_key(run, old):
    rotate("tenant:a")
    shown = run("retire", "--yes").stdout
    assert any(line.split() == [str(old), "3"] for line in shown.splitlines())
    assert "1 keys were destroyed, 1 stay, 0 failed" in shown
    assert "to free them: eventseal reencrypt" in shown


def test_a_named_key_that_is_needed_is_refused_with_what_needs_it(run, old, query):
    result = run("retire", "--key", str(old), "--yes", exits=4)
    assert f"key {old} stays: 3 items of {ITEMS} need it" in result.stderr
    assert destroyed(query) == 0
    result = run("--json", "retire", "--key", str(old), "--yes", exits=4)
    assert json.loads(result.stdout)["left"] == 1


def test_an_active_key_is_refused(run, store, query):
    (active,) = query("SELECT lower(hex(key_id)) FROM encryption_keys WHERE purpose = 'data'")[0]
    assert "active" in run("retire", "--key", active, "--yes", exits=4).stderr
    assert destroyed(query) == 0


def test_a_dry_run_counts_and_destroys_nothing(run, run_json, old, query):
    rotate("tenant:a")
    result = run_json("retire", "--dry-run")
    assert (result["done"], result["left"], result["dry_run"]) == (1, 1, True)
    assert "1 keys would be destroyed" in run("--dry-run", "retire").stdout
    assert destroyed(query) == 0


def test_without_yes_and_with_nobody_to_ask_nothing_is_destroyed(run, old, query):
    rotate("tenant:a")
    for words in (["retire"], ["--json", "retire"]):
        shown = run(*words, exits=2).stderr
        assert "1 keys are about to be destroyed for good. Not a terminal, so" in shown
        assert "confirmation is impossible. Nothing was changed.\neventseal: remedy: Pass --yes to" in shown
    assert destroyed(query) == 0


def test_where_nothing_is_to_be_destroyed_nothing_is_asked(run, old):
    assert "0 keys were destroyed, 1 stay" in run("retire").stdout


@pytest.mark.parametrize(("answer", "code", "gone"), [("y\n", 0, 1), ("n\n", 4, 0), ("", 130, 0)])
def test_on_a_terminal_it_asks(run, old, query, monkeypatch, answer, code, gone):
    rotate("tenant:a")
    monkeypatch.setattr("eventseal.cli.confirmation.is_anybody_there", lambda: True)
    result = run("retire", input=answer, exits=code)
    assert "1 keys are about to be destroyed for good. Is that meant? [y/N]" in result.stderr
    assert ("Not confirmed. Nothing was changed." in result.stderr) == (code == 4)
    assert destroyed(query) == gone


def test_with_json_a_terminal_is_not_asked_either(run, old, monkeypatch):
    rotate("tenant:a")
    monkeypatch.setattr("eventseal.cli.confirmation.is_anybody_there", lambda: True)
    assert "The output is JSON, so confirmation is impossible" in run("--json", "retire", exits=2).stderr


def test_an_unknown_key_names_the_nearest(run, old):
    typo = str(old)[:-1] + ("0" if str(old)[-1] != "0" else "1")
    assert f"Did you mean {old}?" in run("retire", "--key", typo, "--yes", exits=2).stderr


def test_another_applications_key_is_unknown(run, old, query):
    with EventSeal.from_settings() as seal:
        theirs = Keyring(LocalKmsAdapter("dev.key"), seal.key_store, application="theirs")
        theirs.prepare(["tenant:x"])
        first = theirs.sealing_keys({"tenant:x": 0})["tenant:x"].key_id
        theirs.rotate("tenant:x")
        theirs.close()
    assert f"shop has no key {first}" in run("retire", "--key", str(first), "--yes", exits=2).stderr
    assert destroyed(query) == 0


def test_an_unregistered_table_with_a_key_id_stops_it(run, old, query):
    rotate("tenant:a")
    query("CREATE TABLE strangers (key_id BLOB, data BLOB)")
    assert "strangers" in run("retire", "--yes", exits=2).stderr
    assert destroyed(query) == 0


@pytest.mark.slow
def test_whether_a_kek_may_go_is_said_by_the_exit_code(run, run_json, old, monkeypatch):
    LocalKmsAdapter.create("other.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://other.key")
    first = LocalKmsAdapter("dev.key").uri
    shown = run("retire", "--kek", first, exits=4).stderr
    assert "3 live keys do not open without it" in shown
    run("rewrap")
    assert run_json("retire", "--kek", "local://dev.key")["needed"] == 0
    assert "3 wrappings under it are left" in run("retire", "--kek", "local://dev.key").stdout
    run("rewrap", "--to", "local://other.key")
    assert "may go: no key is wrapped under it" in run("retire", "--kek", "local://dev.key").stdout
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://other.key")
    shown = run("retire", "--kek", "local://dev.key", exits=2).stderr
    assert "no key is wrapped under local://dev.key, and it is not configured" in shown
    shown = run("retire", "--kek", "local://other.key", "--kek-version", "9", exits=2).stderr
    assert "no key is wrapped under version '9' of local://other.key" in shown
    Path("dev.key").unlink()
    run("verify")


@pytest.mark.parametrize(
    "words", [["--kek", "x", "--key", "y"], ["--kek-version", "1"], ["--kek", "nonsense"]]
)
def test_words_that_say_nothing_are_wrong_use(run, old, words):
    run("retire", *words, exits=2)

"""``eventseal retire``: what goes, and what stays and why."""

from __future__ import annotations

import json

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
    query("UPDATE eventseal_key_changes SET refresh_interval = 0")
    return key_id


def rotate(*scopes):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(scopes)
        for scope in scopes:
            seal.keyring.rotate(scope)


def destroyed(query):
    return query("SELECT count(*) FROM eventseal_encryption_keys WHERE state = 'destroyed'")[0][0]


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
    assert "Keys destroyed: 1. Kept: 1. Failed: 0." in shown
    assert "Next: run `eventseal reencrypt`, then `eventseal retire` again." in shown


def test_a_named_key_that_is_needed_is_refused_with_what_needs_it(run, old, query):
    result = run("retire", "--key", str(old), "--yes", exits=4)
    assert f"key {old} was not destroyed: it is needed by 3 items of {ITEMS}" in result.stderr
    assert destroyed(query) == 0
    result = run("--json", "retire", "--key", str(old), "--yes", exits=4)
    assert json.loads(result.stdout)["left"] == 1


def test_an_active_key_is_refused(run, store, query):
    (active,) = query("SELECT lower(hex(key_id)) FROM eventseal_encryption_keys WHERE purpose = 'data'")[0]
    assert "active" in run("retire", "--key", active, "--yes", exits=4).stderr
    assert destroyed(query) == 0


def test_a_dry_run_counts_and_destroys_nothing(run, run_json, old, query):
    rotate("tenant:a")
    result = run_json("retire", "--dry-run")
    assert (result["done"], result["left"], result["dry_run"]) == (1, 1, True)
    assert "Keys that would be destroyed: 1." in run("--dry-run", "retire").stdout
    assert destroyed(query) == 0


def test_without_yes_and_with_nobody_to_ask_nothing_is_destroyed(run, old, query):
    rotate("tenant:a")
    for words in (["retire"], ["--json", "retire"]):
        shown = run(*words, exits=2).stderr
        assert "1 key is about to be destroyed permanently. Not a terminal, so" in shown
        assert "confirmation is impossible. Nothing was changed.\neventseal: remedy: Pass --yes to" in shown
    assert destroyed(query) == 0


def test_where_nothing_is_to_be_destroyed_nothing_is_asked(run, old):
    assert "Keys destroyed: 0. Kept: 1." in run("retire").stdout


@pytest.mark.parametrize(("answer", "code", "gone"), [("y\n", 0, 1), ("n\n", 4, 0), ("", 130, 0)])
def test_on_a_terminal_it_asks(run, old, query, monkeypatch, answer, code, gone):
    rotate("tenant:a")
    monkeypatch.setattr("eventseal.cli.output.is_anybody_there", lambda: True)
    result = run("retire", input=answer, exits=code)
    assert "1 key is about to be destroyed permanently. Continue? [y/N]" in result.stderr
    assert ("Not confirmed. Nothing was changed." in result.stderr) == (code == 4)
    assert destroyed(query) == gone


def test_with_json_a_terminal_is_not_asked_either(run, old, monkeypatch):
    rotate("tenant:a")
    monkeypatch.setattr("eventseal.cli.output.is_anybody_there", lambda: True)
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

"""``eventseal status``: what stands where, and what is worth running next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.fixtures import legacy

from eventseal.configuration import EventSeal


def rotate(*scopes: str) -> None:
    with EventSeal.from_settings() as seal:
        for scope in scopes or ("application",):
            seal.keyring.rotate(scope)


def test_everything_is_counted(run_json, store):
    store(3)
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["tenant:a", "tenant:b", "stream:x"])
    rotate("tenant:a", "application")
    store(2)
    shown = run_json("status")
    assert (shown["verb"], shown["application"]) == ("status", "shop")
    assert {(t["purpose"], t["kind"], t["state"]): t["keys"] for t in shown["keys"]} == {
        ("data", "application", "active"): 1,
        ("data", "application", "deactivated"): 1,
        ("data", "tenant", "active"): 2,
        ("data", "tenant", "deactivated"): 1,
        ("data", "stream", "active"): 1,
        ("store", "store", "active"): 1,
    }
    assert shown["items"]["integer_sequenced_items"] == {"deactivated": 3, "active": 2}
    assert [kek["wrappings"] for kek in shown["keks"]] == [7]


def test_plain_items_and_unknown_keys_are_told(run_json, store, query):
    store(3)
    query("UPDATE integer_sequenced_items SET data = x'7b7d', key_id = NULL WHERE position = 0")
    query("UPDATE integer_sequenced_items SET data = ? WHERE position = 1", b"\1\3\0" + bytes(56))
    shown = run_json("status", exits=1)
    assert shown["items"]["integer_sequenced_items"] == {"active": 1, "plain": 1, "unknown": 1}
    assert shown["unreadable"] == {"integer_sequenced_items": 2}


@pytest.mark.parametrize(
    "key_id", ["NULL", "randomblob(16)", "(SELECT key_id FROM eventseal_encryption_keys LIMIT 1)"]
)
def test_items_whose_column_names_another_key_are_told(run_json, store, query, key_id):
    store(3)
    rotate("tenant:a")
    query(f"UPDATE integer_sequenced_items SET key_id = {key_id} WHERE position = 1")
    shown = run_json("status", exits=1)
    assert shown["items"]["integer_sequenced_items"] == {"active": 3}
    assert shown["unreadable"] == {"integer_sequenced_items": 1}


def test_an_item_that_is_not_encrypted_and_names_a_key_is_told_where_plain_ones_are_allowed(
    run, run_json, store, query, monkeypatch
):
    store(3)
    query("UPDATE integer_sequenced_items SET data = CAST('{}' AS BLOB) WHERE position = 1")
    for always in ("true", "false"):
        monkeypatch.setenv("EVENTSEAL_ALWAYS_ENCRYPT", always)
        run("verify", exits=1)
        assert run_json("status", exits=1)["unreadable"] == {"integer_sequenced_items": 1}


@pytest.mark.slow
@pytest.mark.parametrize("edited", ["x'ff' || substr(data, 2)", "CAST(data AS TEXT)", "x''"])
def test_what_no_reader_takes_is_told_where_plain_items_are_allowed(
    run, run_json, with_ledger, query, monkeypatch, edited
):
    monkeypatch.setenv("EVENTSEAL_ALWAYS_ENCRYPT", "false")
    with_ledger(2)
    query("UPDATE integer_sequenced_items SET data = x'207b7d', key_id = NULL WHERE position = 0")
    run("doctor")
    assert run_json("status")["unreadable"] == {}
    query(f"UPDATE integer_sequenced_items SET data = {edited}, key_id = NULL WHERE position = 1")
    assert run_json("status", exits=1)["unreadable"] == {"integer_sequenced_items": 1}
    assert "1 item of integer_sequenced_items is not encrypted" in run("doctor", exits=1).stdout
    run("verify", exits=1)


def test_a_store_in_which_nothing_is_to_do_says_so(run, run_json, store):
    store(3)
    assert run_json("status")["next"] == []
    assert run("status").stdout.endswith("No command needs to run now.\n")


def test_items_under_an_old_key_are_worth_reencrypting(run_json, store):
    store(3)
    rotate()
    (step,) = run_json("status")["next"]
    assert step["command"] == "eventseal reencrypt"
    assert step["reason"].startswith("3 items under 1 deactivated key ")


def test_an_old_key_is_worth_retiring_a_refresh_interval_after_it_was_deactivated(
    run, run_json, store, query
):
    rotate()
    (step,) = run_json("status")["next"]
    assert step["command"] == "eventseal retire"
    (then,) = query("SELECT deactivated_at FROM eventseal_encryption_keys WHERE state = 'deactivated'")[0]
    minute_later = f"{then[:10]}T"
    assert step["after"].startswith(minute_later)
    assert "Next: run `eventseal retire` after " in run("status").stdout
    query("UPDATE eventseal_key_changes SET refresh_interval = 0")
    (step,) = run_json("status")["next"]
    assert step["after"] is None
    assert "Next: run `eventseal retire`." in run("status").stdout


def test_a_compromised_key_with_items_comes_first_and_is_named(run_json, store):
    key_id = store(3)[0].key_id
    with EventSeal.from_settings() as seal:
        seal.keyring.rotate(compromised=True)
        seal.keyring.prepare(["tenant:a"])
        seal.keyring.rotate("tenant:a")
    steps = run_json("status")["next"]
    assert steps[0]["command"] == f"eventseal reencrypt --key {key_id}"
    assert [step["command"] for step in steps[1:]] == ["eventseal retire"]


def test_keys_that_are_over_age_are_worth_rotating(run_json, store, monkeypatch):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["tenant:o'neill"])
    monkeypatch.setenv("EVENTSEAL_ROTATION_MAX_AGE", "1ms")
    (step,) = run_json("status")["next"]
    assert step["command"] == """eventseal rotate --scope application --scope 'tenant:o'"'"'neill'"""


def test_a_branch_key_that_wraps_keys_still_is_not_worth_retiring(run_json, store, monkeypatch, query):
    monkeypatch.setenv("EVENTSEAL_BRANCHES", "1")
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["tenant:a"])
        seal.keyring.rotate_branches()
    assert "eventseal retire" not in {step["command"] for step in run_json("status")["next"]}


def test_it_needs_no_kek(run, store):
    store()
    Path("dev.key").unlink()
    run("status")


@pytest.mark.slow
def test_rows_that_were_edited_are_shown_and_hide_nothing(run, run_json, store, query):
    store(3)
    rotate()
    run_json("reencrypt", "--yes")
    query("UPDATE eventseal_sealed_tables SET columns = '{}' WHERE table_name = 'snapshots'")
    query("UPDATE eventseal_reencryption_jobs SET options = '[]'")
    shown = run_json("status", exits=1)
    assert shown["items"]["integer_sequenced_items"] == {"active": 3}
    (problem,) = shown["edited"]
    assert "table snapshots in database items was edited: its columns" in problem["message"]
    (job,) = shown["jobs"]
    assert job["state"] == "unreadable"
    (step,) = [step for step in shown["next"] if job["job_id"] in step["reason"]]
    assert "DELETE FROM eventseal_reencryption_jobs WHERE job_id = X'" in step["reason"]
    text = run("status", exits=1).stdout
    assert "table snapshots in database items was edited" in text
    assert "unreadable" in text
    assert "table snapshots" in run("keys").stdout
    assert len(run_json("keys")["unreadable"]) == 1


@pytest.mark.parametrize("scope", [b"\xff", b"tenant:a", b"\xff:a", 5, 2.5])
def test_a_scope_that_was_edited_hides_nothing(run, run_json, lax_tables, store, query, scope):
    store(3)
    rotate()
    query("UPDATE eventseal_encryption_keys SET scope = ? WHERE state = 'deactivated'", scope)
    kind = str(scope) if isinstance(scope, int | float) else ":unreadable"
    exits = int(kind == ":unreadable")
    shown, text = run_json("status", exits=exits), run("status", exits=exits).stdout
    kinds = {(total["kind"], total["state"]) for total in shown["keys"]}
    assert kinds == {(kind, "deactivated"), ("application", "active"), ("store", "active")}
    assert kind in text
    said = [problem["message"] for problem in shown["edited"]]
    assert said == ["the scope of 1 deactivated data key was edited and cannot be read"] * exits
    assert all(message in text for message in said)


def test_a_scope_may_be_called_unreadable(run, run_json, store):
    store(1)
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["unreadable", "unreadable:customer-1"])
    shown = run_json("status")
    assert {total["kind"]: total["keys"] for total in shown["keys"]}["unreadable"] == 2
    assert shown["edited"] == shown["next"] == []
    run("status")


def test_what_an_earlier_release_s_key_tables_need_first_is_the_upgrade(run, run_json):
    key = shutil.copy(legacy.FOLDER / "key-tables-1.key", "dev.key")
    Path(key).chmod(0o600)
    shutil.copy(legacy.FOLDER / "key-tables-1.sqlite", "shop.sqlite")
    Path("eventseal.toml").write_text(
        'kms_key = "local://dev.key"\nstore_url = "sqlite:///shop.sqlite"\napplication = "shop"\n'
    )
    first, *later = [step["command"] for step in run_json("status")["next"]]
    assert first == "eventseal upgrade"
    assert later
    assert "eventseal upgrade" in run("init", exits=2).stderr
    shown = run_json("upgrade", "--yes")
    assert [step["name"] for step in shown["steps"] if step["changed"]]
    assert run_json("upgrade")["changed"] is False
    assert [step["command"] for step in run_json("status")["next"]] == later


def test_no_row_of_a_job_decides_which_command_is_advised(run, run_json, store, query):
    store(3)
    rotate()
    run_json("reencrypt", "--yes")
    (options,) = query("SELECT options FROM eventseal_reencryption_jobs")[0]
    forged = {
        **json.loads(options),
        "verb": "shred application --yes --destroy-application-items #",
        "key_scope": {"scope": "application"},
        "formats": [],
    }
    stale = "updated_at = '2020-01-01 00:00:00.000000'"
    query(
        f"UPDATE eventseal_reencryption_jobs SET state = 'running', {stale}, options = ?", json.dumps(forged)
    )
    told = run("status", exits=1).stdout + json.dumps(run_json("status", exits=1))
    assert "shred" not in told
    assert run_json("status", exits=1)["jobs"][0]["state"] == "unreadable"

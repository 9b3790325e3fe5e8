"""``eventseal shred``, ``reopen``, ``verify --after-restore``: refuses, asks, does, and tells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eventseal.configuration import EventSeal
from eventseal.erasure import FileLedger, shred
from eventseal.erasure.shredding import ErasedItems
from eventseal.errors import StoreUnavailableError
from eventseal.keys import KeyState
from eventseal.rotation.results import Failure

SCOPE = "subject:customer-42"
LEDGER = "erasures.jsonl"


@pytest.fixture
def shop(store, run, monkeypatch):
    """A store with a ledger and with keys of two subjects; no order is of either."""
    monkeypatch.setenv("EVENTSEAL_LEDGER", LEDGER)
    run("init")
    store(2)
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare([SCOPE, "subject:other"])
    return store


def is_open(scope: str = SCOPE) -> bool:
    with EventSeal.from_settings() as seal:
        rows = seal.key_store.of_scope("shop", scope)
        return any(row.state is KeyState.ACTIVE for row in rows)


def put_back(backup: str) -> None:
    for file in Path().glob("shop.sqlite*"):
        file.unlink()
    shutil.copyfile(backup, "shop.sqlite")


def test_init_makes_the_ledger_once(store, run_json, monkeypatch) -> None:
    monkeypatch.setenv("EVENTSEAL_LEDGER", LEDGER)
    assert run_json("init", "--dry-run")["steps"][-1]["changed"]
    assert not Path(LEDGER).exists()
    for changed in (True, False):
        step = run_json("init")["steps"][-1]
        assert (step["name"], step["changed"]) == ("ledger", changed)


def test_a_scope_is_shredded_and_opened_again(shop, run, run_json) -> None:
    shown = run_json("shred", SCOPE, "--yes")
    assert (shown["verb"], shown["done"], shown["complete"], shown["scope"]) == ("shred", 1, True, SCOPE)
    assert shown["receipt"]["ledger"]["done"]["entry"] == 3
    assert not is_open()
    assert is_open("subject:other")
    assert run_json("reopen", SCOPE)["done"] == 1
    assert "is open again" not in run("reopen", SCOPE).stdout


def test_afterwards_the_store_verifies_with_what_was_erased_counted_apart(shop, run) -> None:
    run("shred", "application", "--yes", "--destroy-application-items")
    lines = run("verify").stdout.splitlines()
    assert lines[0].split()[-2:] == ["ERASED", "LEFT"]
    assert lines[-1].startswith("Opened 0 items under 0 keys in ")
    assert lines[-1].endswith(" s. Erased: 2. Failed: 0.")


def test_it_asks_and_shows_what_goes(shop, run, monkeypatch) -> None:
    monkeypatch.setattr("eventseal.cli.output.is_anybody_there", lambda: True)
    refused = run("shred", SCOPE, input="n\n", exits=4)
    assert "Scope subject:customer-42: 1 key is" in refused.stdout + refused.stderr
    assert is_open()
    assert "entries 2 and 3" in run("shred", SCOPE, input="y\n").stdout
    assert not is_open()


def test_where_nobody_can_be_asked_nothing_is_done(shop, run) -> None:
    run("shred", SCOPE, exits=2)
    run("--json", "shred", SCOPE, exits=2)
    assert is_open()


def test_a_dry_run_shows_keys_and_items_by_table(shop, run, run_json) -> None:
    words = ("shred", "application", "--destroy-application-items", "--dry-run")
    shown = run_json(*words)
    assert (shown["dry_run"], shown["done"], shown["receipt"]) == (True, 1, None)
    assert shown["by_table"] == {"integer_sequenced_items": {"erased": 2}}
    assert list(shown["by_key"].values()) == [2]
    assert "would be destroyed" in run(*words).stdout
    assert is_open("application")


def test_everybodys_scope_needs_the_flag_that_names_what_it_destroys(shop, run) -> None:
    refused = run("shred", "application", "--yes", exits=4)
    assert "--destroy-application-items" in refused.stderr
    assert is_open("application")
    run("shred", "application", "--yes", "--destroy-application-items")
    assert not is_open("application")


def test_init_makes_a_ledger_also_where_everybodys_scope_was_shredded(shop, run, monkeypatch) -> None:
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    Path(LEDGER).unlink()
    run("shred", "application", "--yes", "--destroy-application-items", "--restorable-without-ledger")
    monkeypatch.setenv("EVENTSEAL_LEDGER", LEDGER)
    lines = run("init").stdout.splitlines()
    assert lines[-2].endswith("of application shop, whose scope application was shredded and is closed")
    assert lines[-1] == f"created  ledger {LEDGER}, with 1 scope shredded before"
    assert not is_open("application")


def test_in_place_of_an_unknown_scope_nobody_else_is_suggested(shop, run) -> None:
    for command in ("shred", "reopen"):
        for unknown in ("subject:customer-24", "store"):
            refused = run(command, unknown, "--yes", exits=2)
            assert f"no key of scope '{unknown}'" in refused.stderr
            assert SCOPE not in refused.stderr
            assert "Did you mean" not in refused.stderr
    assert is_open()


def test_without_a_ledger_it_is_refused_unless_told(shop, run, run_json, monkeypatch) -> None:
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    assert "--restorable-without-ledger" in run("shred", SCOPE, "--yes", exits=2).stderr
    assert is_open()
    run("shred", SCOPE, "--dry-run")
    assert run_json("shred", SCOPE, "--yes", "--restorable-without-ledger")["receipt"] is None
    assert not is_open()


def test_a_ledger_that_cannot_be_written_keeps_the_keys(shop, run, monkeypatch) -> None:
    monkeypatch.setenv("EVENTSEAL_LEDGER", "nowhere/erasures.jsonl")
    run("shred", SCOPE, "--yes", exits=2)
    monkeypatch.setenv("EVENTSEAL_LEDGER", LEDGER)
    Path(LEDGER).write_text("{}\n")
    run("shred", SCOPE, "--yes", exits=1)
    assert is_open()


@pytest.mark.parametrize("url", ["sqlite:///shop.sqlite", "shop.sqlite", "sqlite://", "mysql://db/ledger"])
def test_a_ledger_that_a_restore_would_set_back_is_refused(shop, run, monkeypatch, url) -> None:
    monkeypatch.setenv("EVENTSEAL_LEDGER", url)
    assert "ledger: " in run("shred", SCOPE, "--yes", exits=2).stderr
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    assert is_open()


def test_the_password_of_a_ledger_is_not_shown(shop, run, monkeypatch) -> None:
    monkeypatch.setenv("EVENTSEAL_LEDGER", "postgresql://ann:hunter2@localhost:1/ledger")
    shown = run("shred", SCOPE, "--yes", exits=3)
    assert "hunter2" not in shown.stdout + shown.stderr
    assert is_open()


def test_the_receipt_is_a_page_or_json(shop, run) -> None:
    run("shred", SCOPE, "--yes", "--receipt", "one.html")
    page = Path("one.html")
    assert SCOPE in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
    run("shred", SCOPE, "--yes", "--receipt", "two.json")
    assert json.loads(Path("two.json").read_text())["scope"] == SCOPE


def test_a_receipt_that_cannot_be_written_is_told_before_anything_is_destroyed(
    shop, run, monkeypatch
) -> None:
    Path("there.json").write_text("")
    run("shred", SCOPE, "--yes", "--receipt", "there.json", exits=2)
    run("shred", SCOPE, "--yes", "--receipt", "nowhere/one.json", exits=2)
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    run("shred", SCOPE, "--yes", "--restorable-without-ledger", "--receipt", "one.json", exits=2)
    monkeypatch.setenv("EVENTSEAL_LEDGER", LEDGER)
    with monkeypatch.context() as patch:

        def refused(**_):
            raise PermissionError(13, "Permission denied")

        patch.setattr("eventseal.cli.receipt_command.tempfile.TemporaryFile", refused)
        run("shred", SCOPE, "--yes", "--receipt", "one.json", exits=2)
    assert is_open()


def test_while_a_fence_is_open_there_is_no_receipt_and_the_result_is_told(shop, run, monkeypatch) -> None:
    def held(store, _tables, shredded):
        error = StoreUnavailableError("the fence is held")
        return ErasedItems(failures=[Failure.of_key("eventseal_key_fences", shredded[0].key_id, error)])

    with monkeypatch.context() as patch:
        patch.setattr("eventseal.erasure.shredding.close_scope_fences", held)
        shown = run("shred", SCOPE, "--yes", "--receipt", "one.json", exits=1)
    assert "Scope subject:customer-42. Keys destroyed: 1." in shown.stdout
    assert "no receipt was written to one.json. Run the command again." in shown.stderr
    assert not Path("one.json").exists()
    run("shred", SCOPE, "--yes", "--receipt", "one.json")
    assert json.loads(Path("one.json").read_text())["scope"] == SCOPE


@pytest.mark.slow
def test_after_a_restore_what_came_back_is_shown_asked_for_and_shredded(shop, run, run_json) -> None:
    shutil.copyfile("shop.sqlite", "backup")
    run("shred", SCOPE, "--yes")
    put_back("backup")
    assert is_open()
    would = run_json("verify", "--after-restore", "--dry-run")
    assert (would["dry_run"], would["done"], would["scopes"][0]["scope"]) == (True, 3, SCOPE)
    assert is_open()
    run("verify", "--after-restore", exits=2)
    assert is_open()
    assert SCOPE in run("verify", "--after-restore", "--yes").stdout
    assert not is_open()
    assert is_open("subject:other")
    done = run_json("verify", "--after-restore", "--yes")
    assert (done["done"], done["scopes"], done["failed"], done["entries"]) == (0, [], 0, 4)
    assert "Every erasure in the ledger is in force." in run("verify", "--after-restore").stdout


def test_after_a_restore_a_no_is_heeded(shop, run, monkeypatch) -> None:
    shutil.copyfile("shop.sqlite", "backup")
    run("shred", SCOPE, "--yes")
    put_back("backup")
    monkeypatch.setattr("eventseal.cli.output.is_anybody_there", lambda: True)
    run("verify", "--after-restore", input="n\n", exits=4)
    assert is_open()


def test_after_a_restore_failures_make_the_exit_code(shop, run, run_json) -> None:
    with EventSeal.from_settings() as seal:
        seal.keyring.shred(SCOPE)
    shown = run_json("verify", "--after-restore", "--yes", exits=1)
    assert (shown["failed"], shown["failures"][0]["error"]) == (1, "JobError")
    Path(LEDGER).write_text("{}\n")
    run("verify", "--after-restore", "--yes", exits=1)
    Path(LEDGER).unlink()
    run("verify", "--after-restore", "--yes", exits=2)
    run("verify", "--after-restore", "--sample", "0.5", exits=2)


@pytest.mark.slow
def test_status_and_doctor_tell_what_was_begun_and_not_done(shop, run, run_json, monkeypatch) -> None:
    assert run_json("status")["open_intents"] == []
    with monkeypatch.context() as patch:
        patch.setattr("eventseal.erasure.ledger.recording.Recording.finish", lambda *_, **__: 1 / 0)
        with EventSeal.from_settings() as seal, pytest.raises(ZeroDivisionError):
            shred(seal, SCOPE)
    (intent,) = run_json("status")["open_intents"]
    assert (intent["entry"], intent["scope"]) == (2, SCOPE)
    assert f"eventseal shred {SCOPE}" in run("status").stdout
    findings = [f for f in run_json("doctor", exits=1)["findings"] if f["area"] == "ledger"]
    assert any(f["severity"] == "warning" and SCOPE in f["finding"] for f in findings)


@pytest.mark.slow
def test_doctor_asks_for_a_ledger_where_there_are_subjects(shop, run, run_json, monkeypatch) -> None:
    def found() -> list[tuple[str, str]]:
        shown = json.loads(run("--json", "doctor", exits=code).stdout)
        return [(f["severity"], f["error"]) for f in shown["findings"] if f["area"] == "ledger"]

    code = 0
    assert found() == [("ok", None)]
    code = 1
    Path(LEDGER).write_text("{}\n")
    assert found() == [("error", "IntegrityError")]
    Path(LEDGER).unlink()
    code = 2
    assert found() == [("warning", "ConfigurationError")]
    code = 1
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    assert found() == [("warning", None)]


def test_doctor_compares_the_ledger_with_the_tombstones(shop, run_json) -> None:
    with EventSeal.from_settings() as seal:
        seal.keyring.shred(SCOPE)
    (finding,) = [f for f in run_json("doctor", exits=1)["findings"] if f["area"] == "ledger"]
    assert (finding["severity"], finding["error"]) == ("error", "IntegrityError")


def test_a_rewrap_carries_the_ledger_along(shop, run, monkeypatch) -> None:
    run("shred", SCOPE, "--yes")
    from eventseal_kms.local import LocalKmsAdapter

    LocalKmsAdapter.create("new.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://new.key")
    run("rewrap")
    run("verify")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://new.key")
    run("rewrap")
    Path("dev.key").unlink()
    with EventSeal.from_settings() as seal:
        kinds = [entry.kind for entry in FileLedger(LEDGER).entries(seal)]
    assert kinds == ["created", "intent", "done", "wrapped", "wrapped"]


@pytest.mark.slow
def test_a_kek_that_only_the_ledger_needs_may_not_go(shop, run, monkeypatch) -> None:
    from eventseal_kms.local import LocalKmsAdapter

    uri = json.loads(Path(LEDGER).read_text())["entry"]["details"]["wrappings"][0]["kek_uri"]
    LocalKmsAdapter.create("new.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://new.key")
    monkeypatch.delenv("EVENTSEAL_LEDGER")
    run("rewrap")
    run("rewrap", "--to", "local://new.key")
    run("verify")  # every key is opened under the new KEK
    run("kek", "check", uri)
    monkeypatch.setenv("EVENTSEAL_LEDGER", LEDGER)
    assert "ledger" in run("kek", "check", uri, exits=4).stderr
    run("rewrap")
    run("kek", "check", uri)

"""``eventseal verify``: counts for people and programs, progress on standard error, and exit codes."""

from __future__ import annotations

import pytest

from eventseal.cli import verify_command
from eventseal.errors import KmsUnavailableError
from eventseal.rotation import JobResult
from eventseal_kms.local import LocalKmsAdapter

ITEMS = "integer_sequenced_items"


def test_a_whole_store_is_counted_by_table(run, store):
    store(5)
    lines = run("verify").stdout.splitlines()
    assert lines[0].split() == ["TABLE", "DONE", "FAILED", "PLAIN", "UNMIGRATED", "FOREIGN", "ERASED", "LEFT"]
    assert [line.split() for line in lines if line.startswith(ITEMS)] == [
        [ITEMS, "5", "0", "0", "0", "0", "0", "0"]
    ]
    assert lines[-1].startswith("Opened 5 items under 1 key in ")
    assert lines[-1].endswith("s. Failed: 0.")


def test_its_json_is_all_of_standard_output(run_json, store):
    item = store(3)[0]
    shown = run_json("verify")
    assert (shown["verb"], shown["complete"], shown["done"], shown["failed"]) == ("verify", True, 3, 0)
    assert shown["by_key"] == {str(item.key_id): 3}
    assert shown["by_table"][ITEMS] == {
        "done": 3,
        "failed": 0,
        "plain": 0,
        "unmigrated": 0,
        "foreign": 0,
        "erased": 0,
        "left": 0,
    }
    assert shown["failures"] == []


def test_a_failed_item_exits_with_1_and_is_named(run, run_json, store, query):
    item = store(3)[1]
    query("UPDATE integer_sequenced_items SET topic = 'x' WHERE position = 1")
    shown = run("verify", exits=1).stdout
    assert f"IntegrityError: {ITEMS} sequence_id={item.sequence_id} position=1 (key {item.key_id})" in shown
    assert run_json("verify", exits=1)["failures"][0]["error"] == "IntegrityError"


def test_a_key_row_edited_by_hand_exits_with_1(run, store, query):
    query("UPDATE eventseal_encryption_keys SET scope = 'tenant:b' WHERE purpose = 'data'")
    assert "IntegrityError: eventseal_encryption_keys key_id=" in run("verify", exits=1).stdout


def test_an_edited_store_key_exits_with_1(run, store, query):
    query("UPDATE eventseal_encryption_keys SET binding = zeroblob(32) WHERE purpose = 'store'")
    assert "IntegrityError: eventseal_encryption_keys key_id=" in run("verify", exits=1).stdout


def test_the_wrong_application_is_told_by_name(run, store, query, monkeypatch):
    store(2)
    monkeypatch.setenv("EVENTSEAL_APPLICATION", "other")
    assert "These applications have tables: shop" in run("verify", exits=2).stderr
    query("UPDATE eventseal_sealed_tables SET application = ''")
    shown = run("verify", exits=2).stderr
    assert "'shop'" in shown
    assert "'other'" in shown
    query("UPDATE eventseal_sealed_tables SET application = 'other'")
    assert "WrongApplicationError" in run("verify", exits=1).stdout


def test_an_outage_exits_with_3_and_fails_no_item(run, store, monkeypatch):
    store(2)

    def away(_self, _keys):
        raise KmsUnavailableError("the KMS did not answer")

    monkeypatch.setattr(LocalKmsAdapter, "unwrap_many", away)
    result = run("verify", exits=3)
    assert result.stdout == ""
    assert "the KMS did not answer" in result.stderr


def test_many_failures_are_cut_short_for_people(run, run_json, store, query):
    store(30)
    query("UPDATE integer_sequenced_items SET topic = 'x'")
    shown = run("verify", exits=1).stdout
    assert shown.count("IntegrityError") == 20
    assert "and 10 more" in shown
    assert len(run_json("verify", exits=1)["failures"]) == 30


def test_a_wrong_or_a_missing_kek_is_one_line_and_no_failed_item(run, run_json, store, monkeypatch):
    store(30)
    (kek,) = {key["wrapped_by"][0] for key in run_json("keys")["keys"]}
    LocalKmsAdapter.create("other.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://other.key")
    result = run("verify", exits=2)
    assert result.stdout == ""
    error, remedy = result.stderr.splitlines()
    assert f"wrapped under {kek}" in error
    assert remedy.startswith(
        "eventseal: remedy: Restore the key file, or add the KMS key to kms_key (EVENTSEAL_KMS_KEY)"
    )
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://no.key")
    assert "no.key" in run("verify", exits=2).stderr


def test_a_class_of_failures_behind_many_others_is_shown_and_explained(run, store, query):
    store(30)
    query("UPDATE integer_sequenced_items SET topic = 'x'")
    query("UPDATE integer_sequenced_items SET data = CAST('{}' AS BLOB) WHERE position = 29")
    shown = run("verify", exits=1).stdout
    assert shown.count("IntegrityError") == 20
    assert shown.count("the item does not authenticate") == 1
    assert f"UnknownFormatError: {ITEMS}" in shown
    assert "and 9 more" in shown


@pytest.mark.slow
def test_tables_and_samples_can_be_asked_for(run, run_json, store):
    store(200)
    assert set(run_json("verify", "--table", "snapshots")["by_table"]) == {"snapshots"}
    shown = run_json("verify", "--sample", "0.2")
    assert 0 < shown["done"] < 200
    assert shown["left"] == 200 - shown["done"]
    assert "Did you mean snapshots?" in run("verify", "--table", "snapshot", exits=2).stderr
    assert "sample" in run("verify", "--sample", "2", exits=2).stderr


def test_what_an_edit_put_in_a_row_does_not_reach_the_terminal(run, store, query):
    store()
    query("UPDATE integer_sequenced_items SET position = '\x1b[2J\x9b2J'")
    shown = run("verify", exits=1).stdout
    assert "\\x1b[2J" in shown
    assert not {"\x1b", "\x9b"} & set(shown)


@pytest.mark.slow
def test_plain_items_fail_unless_the_settings_say_that_there_are_some(
    run, run_json, with_ledger, query, monkeypatch
):
    with_ledger(2)
    query("UPDATE integer_sequenced_items SET key_id = NULL, data = CAST('{}' AS BLOB) WHERE position = 0")
    assert f"EncryptionRequiredError: {ITEMS}" in run("verify", exits=1).stdout
    assert "not encrypted, and no reader" in run("doctor", exits=1).stdout
    assert run_json("status", exits=1)["unreadable"] == {ITEMS: 1}
    monkeypatch.setenv("EVENTSEAL_ALWAYS_ENCRYPT", "false")
    assert run_json("verify")["by_table"][ITEMS]["plain"] == 1
    run("doctor")
    assert run_json("status")["unreadable"] == {}


def test_without_a_terminal_progress_is_a_line_for_each_tenth(run, store, monkeypatch):
    monkeypatch.setattr("eventseal.rotation.item_checks.PAGE_SIZE", 10)
    store(200)
    result = run("verify")
    told = [line for line in result.stderr.splitlines() if line.startswith("verify: ")]
    assert told[0].startswith("verify: 20 of 200 items, 0 failed")
    assert told[-1].startswith("verify: 200 of 200 items, 0 failed")
    assert len(told) == 10
    assert "verify:" not in result.stdout


@pytest.mark.parametrize(("sample", "total"), [(1.0, 100), (0.5, 50)])
def test_the_share_of_a_sample_ends_at_all_of_it(sample, total):
    result = JobResult(
        verb="verify",
        complete=False,
        done=30,
        left=70,
        failed=0,
        seconds=1.0,
        by_table={"t": {"done": 30, "left": 9}},
    )
    assert verify_command._share(result, sample=sample) == (30, total)

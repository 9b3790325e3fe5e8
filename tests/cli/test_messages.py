"""What every user reads: remedies to follow, counts with their nouns, key files by name, times in UTC."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from eventseal.configuration import EventSeal
from eventseal_kms.local import LocalKmsAdapter

NEW_PROJECT = "In a new project, run: eventseal init --kms-key local://dev.key"
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


@pytest.fixture
def stored_uri(store) -> str:
    return LocalKmsAdapter("dev.key").uri


@pytest.fixture
def shown(stored_uri) -> str:
    """The key file as people read it."""
    return f"dev.key ({stored_uri[:12]}…)"


def test_init_says_that_a_lost_key_file_must_be_restored(run, store):
    Path("dev.key").unlink()
    for words in (("init",), ("init", "--dry-run")):
        stderr = run(*words, exits=2).stderr
        assert "there is no key file for local://dev.key, and the 2 keys of application shop" in stderr
        assert "cannot be decrypted without it" in stderr
        assert "eventseal init --kms-key" not in stderr
        assert "Restore the file from a backup" in stderr
        assert not Path("dev.key").exists()


def test_init_says_how_to_create_a_second_key_file(run, store, monkeypatch):
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://dev.key,local://new.key")
    stderr = run("init", exits=2).stderr
    assert "there is no key file for local://new.key. No key of application shop depends on it" in stderr
    command = re.search(r"python -c (.*)", stderr)
    assert command is not None
    exec(shlex.split(command[1])[0])  # noqa: S102 - what the remedy says
    run("init")
    assert Path("new.key").exists()


@pytest.mark.parametrize(
    "words", [("verify",), ("rotate",), ("doctor",), ("kek", "check", "local://dev.key")]
)
def test_a_lost_key_file_is_restored_in_an_old_project_and_created_in_a_new_one(run, store, words):
    Path("dev.key").unlink()
    result = run(*words, exits=2)
    told = result.stdout + result.stderr
    assert "there is no key file dev.key" in told
    assert "If the application has keys, restore the file to that path from a backup, or correct" in told
    assert NEW_PROJECT in told


def test_doctor_does_not_say_that_the_kek_of_a_lost_file_is_not_configured(run, store):
    Path("dev.key").unlink()
    told = run("doctor", exits=2).stdout
    assert "2 wrappings under local://" in told
    assert "the configured KMS keys that could be opened do not unwrap them" in told


def test_only_similar_names_are_suggested(run, store, monkeypatch):
    unlike = run("rotate", "--scope", "tenant:none", exits=2).stderr
    assert "Did you mean" not in unlike
    assert "List the scopes that have keys: eventseal keys" in unlike
    table = run("reencrypt", "--table", "foo", exits=2).stderr
    assert "Did you mean" not in table
    assert "integer_sequenced_items, snapshots, timestamp_sequenced_items" in table
    key = run("retire", "--key", "foo", exits=2).stderr
    assert "remedy: List the keys: eventseal keys" in key
    monkeypatch.setenv("EVENTSEAL_ZZZZZZ", "x")
    variable = run("status", exits=2).stderr
    assert "Did you mean" not in variable
    assert "the page Configuration" in variable


def test_one_thing_is_counted_in_the_singular(run, store, monkeypatch):
    store()
    monkeypatch.setenv("EVENTSEAL_CACHE_REFRESH_INTERVAL", "1ms")
    doctor = run("doctor", exits=1).stdout
    told = [run(*words).stdout for words in (("rotate", "--dry-run"), ("rotate",), ("retire", "--dry-run"))]
    told += [run(*words).stdout for words in (("reencrypt", "--dry-run"), ("reencrypt",), ("verify",))]
    told += [run("rewrap").stdout, run("retire", "--yes").stdout]
    for text in (doctor, *told):
        assert not re.search(
            r"(?<![\d,.])1 (keys|items|scopes|errors|warnings|rows|tables|wrappings)\b", text
        )
    assert doctor.endswith("0 errors, 1 warning\n")


def test_a_key_file_is_shown_by_its_name(run, run_json, store, shown, stored_uri):
    (item,) = store()
    place = ("--sequence", str(item.sequence_id), "--position", "0")
    row = ("inspect", "--table", "integer_sequenced_items", *place)
    for words in (("keys",), ("status",), ("rewrap",), row, ("init",)):
        stdout = run(*words).stdout
        assert shown in stdout
        assert stored_uri not in stdout
    doctor = run("doctor", exits=1).stdout
    assert shown in doctor
    assert stored_uri not in doctor
    assert run_json("keys")["keys"][0]["wrapped_by"] == [stored_uri]


def test_a_key_file_that_is_not_configured_is_shown_whole(run, store, stored_uri, monkeypatch):
    LocalKmsAdapter.create("other.key")
    monkeypatch.setenv("EVENTSEAL_KMS_KEY", "local://other.key")
    assert stored_uri in run("keys").stdout


def test_times_are_in_utc_and_say_how_long_that_is(run, store):
    store()
    moment = rf"{MOMENT} \(in \d+ s\)"
    assert re.search(
        rf"^Next: run `eventseal reencrypt`, then `eventseal retire` after {moment}\.$",
        run("rotate").stdout,
        re.MULTILINE,
    )
    assert re.search(rf"until {moment}", run("reencrypt").stdout)


def test_text_that_is_no_envelope_is_named_so(run):
    stderr = run("inspect", "--text", "zz", exits=2).stderr
    assert "error: --text is neither hex nor base64\n" in stderr
    assert "backup" not in stderr


def test_the_default_scope_is_shredded_only_with_its_flag(run, store):
    stderr = run("shred", "application", "--yes", exits=4).stderr
    assert "error: refused: scope `application` holds every event without its own scope." in stderr
    assert "Shredding it erases them all." in stderr
    assert "--destroy-application-items" in stderr


def test_the_warning_of_a_key_file_says_who_can_decrypt(recwarn, tmp_path):
    LocalKmsAdapter.create(tmp_path / "warned.key")
    (warning,) = [each for each in recwarn if "warned.key" in str(each.message)]
    assert "for development only: anyone who can read the file can decrypt every item" in str(warning.message)


def test_the_remedy_of_a_first_command_without_settings_is_init(run):
    stderr = run("status", exits=2).stderr
    assert "In a new project, run: eventseal init" in stderr


def test_init_says_created_and_exists(run):
    words = ("--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite")
    assert run("init", *words, "--dry-run").stdout.startswith("would create  settings file")
    assert run("init", *words).stdout.startswith("created  settings file")
    assert run("init").stdout.startswith("exists   settings file")
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare(["application"])

"""What every user reads: remedies to follow, counts with their nouns, key files by name, times in UTC."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from eventseal.cli import output
from eventseal.cli.shared_options import Options
from eventseal.configuration import EventSeal
from eventseal.configuration.diagnosis import database_checks
from eventseal.erasure import epoch
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
    assert "If the file was moved or lost, correct the path, or restore the file from a backup" in told
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


@pytest.mark.slow
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


HOSTILE = "subject:x y; touch owned"


def test_a_scope_in_a_printed_command_is_one_word(run, run_json, store):
    with EventSeal.from_settings() as seal:
        seal.keyring.rotate(HOSTILE)
    key = run_json("keys", "--scope", HOSTILE)["keys"][0]["key_id"]
    stderr = run("retire", "--key", key, "--yes", exits=4)
    assert f"eventseal rotate --scope '{HOSTILE}'" in stderr.stderr + stderr.stdout


def test_a_file_name_in_a_printed_command_is_one_word(run, store):
    Path("dev.key").rename("my; key")
    Path("eventseal.toml").write_text(
        Path("eventseal.toml").read_text().replace("local://dev.key", "local://my; key")
    )
    run("verify")
    Path("my; key").chmod(0o644)
    assert "chmod 600 'my; key'" in run("verify", exits=2).stderr
    Path("my; key").unlink()
    assert "run: eventseal init --kms-key 'local://my; key'" in run("verify", exits=2).stderr


def test_two_key_files_of_one_name_are_told_apart_by_their_folders(run, store):
    Path("eu").mkdir()
    LocalKmsAdapter.create_from_uri("local://eu/dev.key")
    settings = Path("eventseal.toml").read_text()
    Path("eventseal.toml").write_text(
        settings.replace('"local://dev.key"', '["local://eu/dev.key", "local://dev.key"]')
    )
    run("rewrap")
    text = run("status").stdout
    assert f"\ndev.key ({LocalKmsAdapter('dev.key').uri[:12]}…)" in text
    assert f"\neu/dev.key ({LocalKmsAdapter('eu/dev.key').uri[:12]}…)" in text


def test_a_question_shows_no_control_characters(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(output, "is_anybody_there", lambda: True)
    monkeypatch.setattr(output.typer, "confirm", lambda text, **_: asked.append(text) or True)
    output.confirm(Options(), "Rows of shop\x1b[2K are about to be replaced.")
    assert asked == ["Rows of shop\\x1b[2K are about to be replaced. Continue?"]


def remedies(result) -> str:
    return " ".join(re.findall(r"remedy: (.*)", result.stdout + result.stderr))


def test_the_remedy_of_a_damaged_key_file_leads_on_in_a_new_project(run, tmp_path):
    Path("dev.key").write_text("damaged")
    Path("dev.key").chmod(0o600)
    words = ("init", "--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite")
    assert "In a new project, move the file away, then run `eventseal init` again." in remedies(
        run(*words, exits=2)
    )
    Path("dev.key").rename("damaged.key")
    run(*words)
    run("verify")


def test_the_remedies_for_a_second_key_file_lead_on(run, store, stored_uri):
    needed = run("kek", "check", "local://dev.key", exits=4)
    assert "If kms_key names no other KMS key, add one. Then run `eventseal rewrap`" in remedies(needed)
    settings = Path("eventseal.toml").read_text()
    both = settings.replace('"local://dev.key"', '["local://dev.key", "local://new.key"]')
    Path("eventseal.toml").write_text(both)
    assert "To add a new KMS key to a project, list it in kms_key, then run `eventseal init`" in remedies(
        run("rewrap", exits=2)
    )
    command = re.search(r"python -c (.*)", run("init", exits=2).stderr)
    assert command is not None
    exec(shlex.split(command[1])[0])  # noqa: S102 - what the remedy says
    run("rewrap")
    run("kek", "check", "local://dev.key")


def test_nobody_is_asked_to_set_kms_key_to_a_check_value(run, store, stored_uri):
    Path("dev.key").unlink()
    LocalKmsAdapter.create("dev.key")
    told = run("doctor", exits=2).stdout
    assert f"under {stored_uri}, which is not configured" in told
    assert "restore its key file, and add the file to kms_key" in told


def test_a_closed_scope_is_reopened_by_its_name(run, with_ledger):
    with EventSeal.from_settings() as seal:
        seal.keyring.prepare([HOSTILE])
    run("shred", HOSTILE, "--yes")
    stderr = run("rotate", "--scope", HOSTILE, exits=1).stderr
    assert "Nothing can decrypt this item" not in stderr
    command = re.search(r"`eventseal (reopen .*)`", stderr)
    assert command is not None
    run(*shlex.split(command[1]))
    run("rotate", "--scope", HOSTILE)


def test_a_missing_settings_file_is_written_where_it_is_looked_for(run, tmp_path):
    remedy = remedies(run("--config", "shop.toml", "status", exits=2))
    assert "run `eventseal init` with the same --config or EVENTSEAL_CONFIG, which writes the file" in remedy
    words = ("--kms-key", "local://dev.key", "--store-url", "sqlite:///shop.sqlite")
    run("--config", "shop.toml", "init", *words)
    run("--config", "shop.toml", "status")


def test_a_remedy_names_no_check_value_where_a_key_file_belongs(stored_uri):
    run = SimpleNamespace(to=LocalKmsAdapter("dev.key"), _others=lambda _: {"shop": 1})
    remedy = epoch._Roll._needed(run, {"old": 1}).remedy
    assert "run `eventseal roll-epoch --to local://FILE` again" in remedy
    assert stored_uri not in remedy


def test_the_statement_for_a_lost_unique_key_runs_on_sqlite(run, run_json, store, query):
    query("CREATE TABLE copied AS SELECT * FROM integer_sequenced_items")
    query("DROP TABLE integer_sequenced_items")
    query("ALTER TABLE copied RENAME TO integer_sequenced_items")
    told = [found["remedy"] for found in run_json("doctor", exits=2)["findings"]]
    (statement,) = {remedy for remedy in told if remedy.startswith("CREATE UNIQUE INDEX")}
    query(statement)
    assert "does not keep" not in run("doctor", exits=1).stdout


@pytest.mark.parametrize(("role", "shown"), [("shop-app", '"shop-app"'), ('a"b', '"a""b"')])
def test_a_role_in_a_printed_statement_is_quoted(role, shown):
    facts = SimpleNamespace(synchronous_commit="off", fsync="on", full_page_writes="on", role=role)
    (finding,) = database_checks._check_durability("items", facts)
    assert finding.remedy == f"ALTER ROLE {shown} SET synchronous_commit = on;"
